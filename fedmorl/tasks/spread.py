"""Spread: coupled point masses that are to stand on landmarks, each of which sees only what is near it.

A toy with true partial observation, whose noise floor is known. B episodes in lockstep, arrays in and out.

Letters: B episodes, N agents and as many landmarks, T steps, O observation, S state.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedmorl.evaluation.team import TeamStep

VERSION = "1"
SLOTS = ("nearest", "by_id")
TIME_LIMIT = 50
BORDER = 1.5  # of the square, |x| and |y|
RANGE = 0.6  # within which agents see and push each other
REST = 0.3  # distance at which they neither push nor pull
DAMPING, TIME_STEP, THRUST, STIFFNESS = 0.9, 0.1, 3.0, 1.0
NOISE = 0.01  # standard deviation of a velocity's disturbance
COLLISION = 0.1  # distance below which two agents collide
SEEN_NEIGHBOURS, SEEN_LANDMARKS = 2, 2
REWARD_DEF = "spread: -mean distance of a landmark to its nearest agent, -0.1 collisions / N, -0.01 |a|^2"
MOVES = np.array([[0, 0], [0, 1], [0, -1], [-1, 0], [1, 0]], np.float64)  # of the discrete form


class Spread:
    """B episodes of N point masses.

    Parameters
    ----------
    n_agents : N >= 2.
    coupling : c >= 0, how much an agent is carried along by the mean thrust of its neighbours: with c > 0 nobody can
        predict its own velocity without others' actions.
    slots : "nearest" shows the two nearest agents in range, so that a place in the observation changes its owner;
        "by_id" has a place for each of the others, empty if it is out of range.
    discrete : five actions (stay, up, down, left, right) in place of a thrust in [-1, 1]^2.
    time_limit : steps; an episode never ends before it.

    The state (S = 6 N) is every agent's position and velocity and every landmark. An agent observes its own position
    and velocity, of others in range relative position, relative velocity and a flag, and the two nearest landmarks,
    relative. A step is

        v' = 0.9 v + 0.1 (3 a_i + sum_j (d_ij - 0.3) e_ij + 3 c mean_j a_j) + N(0, 0.01^2),    p' = p + 0.1 v',

    j over the agents in range, e_ij the direction to j; at the border it stands still. Ours.
    """

    reward_def = REWARD_DEF

    def __init__(
        self,
        n_agents: int = 5,
        *,
        coupling: float = 0.0,
        slots: str = "nearest",
        discrete: bool = False,
        time_limit: int = TIME_LIMIT,
    ) -> None:
        for name, value, least in (("n_agents", n_agents, 2), ("time_limit", time_limit, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be an integer >= {least}; got {value!r}")
        if not (np.isfinite(coupling) and coupling >= 0):
            raise ValueError(f"coupling must be finite and >= 0; got {coupling!r}")
        if slots not in SLOTS:
            raise ValueError(f"slots must be one of {', '.join(SLOTS)}; got {slots!r}")
        self.n_agents, self.coupling, self.slots, self.discrete = n_agents, float(coupling), slots, discrete
        self.time_limit = time_limit
        self.n_seen = min(SEEN_NEIGHBOURS, n_agents - 1) if slots == "nearest" else n_agents - 1
        self.observation_size = 4 + 5 * self.n_seen + 2 * SEEN_LANDMARKS
        self.state_size, self.action_size = 6 * n_agents, len(MOVES) if discrete else 2
        self.n_actions = len(MOVES)  # of the discrete form
        self.env_id, self.env_version = "spread", VERSION
        self._t = time_limit

    @property
    def env_kwargs(self) -> dict[str, Any]:
        """What `Spread` needs to make this task again."""
        return {
            "n_agents": self.n_agents,
            "coupling": self.coupling,
            "slots": self.slots,
            "discrete": self.discrete,
            "time_limit": self.time_limit,
        }

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """Begin B episodes, one a seed, which fixes places and disturbances. (B, N, O)"""
        if len(seeds) < 1 or any(isinstance(s, bool) or int(s) != s or s < 0 for s in seeds):
            raise ValueError(f"seeds must be integers >= 0, one an episode; got {list(seeds)}")
        drawn = [self._draw(int(seed)) for seed in seeds]
        self._p, self._landmarks, self._noise = (np.stack(x) for x in zip(*drawn, strict=True))
        self._v = np.zeros_like(self._p)
        self._t = 0
        return self.observe()

    def step(self, actions: np.ndarray) -> TeamStep:
        """Joint actions, (B, N, 2) from -1 to 1 or (B, N) from 0 to 4 -> what follows."""
        thrust = self._checked(actions)
        self._p, self._v, _ = advance(self._p, self._v, thrust, self.coupling, self._noise[:, self._t])
        self._t += 1
        batch = len(thrust)
        return TeamStep(
            observations=self.observe(),
            rewards=reward(self._p, self._landmarks, thrust),
            terminated=np.zeros(batch, bool),
            truncated=np.full(batch, self._t >= self.time_limit),
            extras={"collisions": collisions(self._p)},
        )

    def states(self) -> np.ndarray:
        """(B, S) float32: positions, velocities, landmarks, each agent by agent."""
        parts = [x.reshape(len(x), -1) for x in (self._p, self._v, self._landmarks)]
        return np.concatenate(parts, 1).astype(np.float32)

    def observe(self) -> np.ndarray:
        """(B, N, O) float32."""
        return observe(self._p, self._v, self._landmarks, self.slots, self.n_seen)

    def _draw(self, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        places, landmarks = rng.uniform(-1, 1, (2, self.n_agents, 2))
        return places, landmarks, NOISE * rng.standard_normal((self.time_limit, self.n_agents, 2))

    def _checked(self, actions: np.ndarray) -> np.ndarray:
        if self._t >= self.time_limit:
            raise RuntimeError("the episodes are over (or have not begun): call reset(seeds) before step()")
        actions = np.asarray(actions)
        wanted = (*self._p.shape[:2], *(() if self.discrete else (2,)))
        if actions.shape != wanted:
            raise ValueError(
                f"actions must have shape {wanted} (episodes, agents{', 2' * (not self.discrete)}); got {actions.shape}"
            )
        if self.discrete:
            if actions.dtype.kind not in "iu" or actions.min() < 0 or actions.max() >= len(MOVES):
                raise ValueError(
                    f"actions must be integers from 0 to {len(MOVES) - 1}; got {actions.dtype} "
                    f"from {actions.min()} to {actions.max()}"
                )
            return MOVES[actions]
        if not (abs(actions) <= 1).all():  # NaN is refused too
            worst = actions.ravel()[np.argmax(~(abs(actions) <= 1))]
            raise ValueError(f"actions must be from -1 to 1; got {worst:g}: clip them on purpose or not at all")
        return actions.astype(np.float64)


def neighbours(p: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places (..., N, 2) -> vectors from i to j (..., N, N, 2), their lengths and who is in range, both (..., N, N)."""
    away = p[..., None, :, :] - p[..., :, None, :]
    distance = np.linalg.norm(away, axis=-1)
    near = (distance < RANGE) & ~np.eye(p.shape[-2], dtype=bool)
    return away, distance, near


def advance(
    p: np.ndarray, v: np.ndarray, thrust: np.ndarray, coupling: float, noise: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One step of places and velocities (..., N, 2); the third is the mean thrust of the neighbours, (..., N, 2)."""
    away, distance, near = neighbours(p)
    spring = STIFFNESS * ((distance - REST) / np.maximum(distance, 1e-9) * near)[..., None]
    others = near @ thrust / np.maximum(near.sum(-1, keepdims=True), 1)
    force = THRUST * thrust + (spring * away).sum(-2) + THRUST * coupling * others
    v = DAMPING * v + TIME_STEP * force + noise
    free = p + TIME_STEP * v
    p = np.clip(free, -BORDER, BORDER)
    return p, np.where(free == p, v, 0.0), others


def collisions(p: np.ndarray) -> np.ndarray:
    """(..., N, 2) -> (...): pairs of agents nearer than 0.1."""
    _, distance, _ = neighbours(p)
    return np.triu(distance < COLLISION, 1).sum((-2, -1)).astype(np.float64)


def reward(p: np.ndarray, landmarks: np.ndarray, thrust: np.ndarray) -> np.ndarray:
    """(...): what a step that ends at `p` earns the team."""
    gap = np.linalg.norm(landmarks[..., :, None, :] - p[..., None, :, :], axis=-1).min(-1).mean(-1)
    return -gap - 0.1 * collisions(p) / p.shape[-2] - 0.01 * (thrust**2).sum(-1).mean(-1)


def observe(p: np.ndarray, v: np.ndarray, landmarks: np.ndarray, slots: str, n_seen: int) -> np.ndarray:
    """What each of N agents sees, (..., N, O) float32."""
    n = p.shape[-2]
    away, distance, near = neighbours(p)
    if slots == "nearest":
        order = np.argsort(np.where(near, distance, np.inf), axis=-1, kind="stable")[..., :n_seen]  # (..., N, K)
    else:
        order = np.broadcast_to([[j for j in range(n) if j != i] for i in range(n)], (*p.shape[:-1], n - 1))
    faster = v[..., None, :, :] - v[..., :, None, :]
    places = np.concatenate([away, faster, np.ones((*away.shape[:-1], 1))], -1) * near[..., None]  # (..., N, N, 5)
    seen = np.take_along_axis(places, order[..., None], -2).reshape(*p.shape[:-1], -1)
    to_landmark = landmarks[..., None, :, :] - p[..., :, None, :]
    nearest = np.argsort(np.linalg.norm(to_landmark, axis=-1), axis=-1, kind="stable")[..., :SEEN_LANDMARKS]
    marks = np.take_along_axis(to_landmark, nearest[..., None], -2).reshape(*p.shape[:-1], -1)
    return np.concatenate([p, v, seen, marks], -1).astype(np.float32)


class PDTeam:
    """Each agent steers to the nearest landmark it sees that no agent it sees is nearer to, with noise.

    Acts on observations of either form of `slots`; of no landmark free it takes the nearest. Proportional to the way
    and against the velocity; the noise is normal with standard deviation `noise`, and the sum clipped to [-1, 1]: that
    is part of the behaviour, and what is logged is what was done. A team policy as `fedmorl.evaluation.team` has it.
    """

    def __init__(self, noise: float = 0.1, gain: float = 2.0, brake: float = 1.0) -> None:
        if not (np.isfinite(noise) and noise >= 0):
            raise ValueError(f"noise must be finite and >= 0; got {noise!r}")
        self.noise, self.gain, self.brake = noise, gain, brake

    def describe(self) -> Mapping[str, Any]:
        """Name and parameters, as plain JSON values."""
        return {"name": "pd", "noise": self.noise, "gain": self.gain, "brake": self.brake}

    def start(self, batch: int, rng: np.random.Generator) -> None:
        """It remembers nothing."""

    def rewarded(self, memory: None, rewards: np.ndarray) -> None:
        """Rewards are not looked at."""

    def act(self, observations: np.ndarray, memory: None, rng: np.random.Generator) -> tuple[np.ndarray, None]:
        """Joint thrust (B, N, 2)."""
        wish = self.mean(observations)
        return np.clip(wish + self.noise * rng.standard_normal(wish.shape), -1, 1), None

    def mean(self, observations: np.ndarray) -> np.ndarray:
        """What it would do without noise, not clipped: (B, N, 2)."""
        n_seen = (observations.shape[-1] - 4 - 2 * SEEN_LANDMARKS) // 5
        v, seen = observations[..., 2:4], observations[..., 4 : 4 + 5 * n_seen]
        seen = seen.reshape(*seen.shape[:-1], n_seen, 5)
        marks = observations[..., 4 + 5 * n_seen :].reshape(*v.shape[:-1], SEEN_LANDMARKS, 2)
        own = np.linalg.norm(marks, axis=-1)  # (B, N, 2)
        theirs = np.linalg.norm(marks[..., :, None, :] - seen[..., None, :, :2], axis=-1)
        theirs = np.where(seen[..., None, :, 4] > 0, theirs, np.inf).min(-1, initial=np.inf)
        chosen = np.where((theirs < own)[..., :1] & ~(theirs < own)[..., 1:], marks[..., 1, :], marks[..., 0, :])
        return self.gain * chosen - self.brake * v


class RandomTeam(PDTeam):
    """Uniform thrust in [-1, 1]^2."""

    def __init__(self) -> None:
        super().__init__(noise=0.0)

    def describe(self) -> Mapping[str, Any]:
        """Name, as plain JSON values."""
        return {"name": "random"}

    def act(self, observations: np.ndarray, memory: None, rng: np.random.Generator) -> tuple[np.ndarray, None]:
        """Joint thrust (B, N, 2)."""
        return rng.uniform(-1, 1, (*observations.shape[:2], 2)), None
