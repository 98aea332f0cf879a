"""How well agents do on networks nobody has seen: play, count, and the score between logs and full information.

Letters: E networks, N agents, T epochs.
"""

import time
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from fedmorl.data.network_logs import Wandering
from fedmorl.learners.networld_planner import Plan, reconsidered
from fedmorl.tasks.networks import NetworkTask
from fedmorl.world_models.latent_codec import D, mean_field, to_bytes
from fedmorl.world_models.networld import NetWorldModel

BURN_IN = 5  # epochs that do not count


class Planner(Protocol):
    """`NetWorldPlanner` and what it is compared with."""

    @property
    def model(self) -> NetWorldModel:
        """Whose encoder messages are in terms of."""

    @property
    def messages(self) -> bool:
        """Whether messages are wanted."""

    def plan(
        self,
        task: str,
        observations: np.ndarray,
        received: np.ndarray | None,
        n_levels: int,
        *,
        rng: np.random.Generator,
        held: np.ndarray | None = None,
    ) -> Plan:
        """Levels (B,) of observations (B, O) and mean fields (B, D)."""


class NetworkPolicy(Protocol):
    """Levels for all agents of E networks."""

    def start(self, task: NetworkTask, rng: np.random.Generator) -> None:
        """Networks were reset."""

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Observations (E, N, O) -> levels (E, N)."""


class Logged:
    """What the logs do."""

    def start(self, task: NetworkTask, rng: np.random.Generator) -> None:
        """A behaviour of its own for every play."""
        self._behaviour = Wandering(task, rng)

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Levels (E, N)."""
        return self._behaviour.act(observations)


class Informed:
    """A rule that the task itself knows: `reference`, which knows everything, or another method of the same form.

    revise : probability that an agent follows it in an epoch; else it keeps the level it holds.
    """

    def __init__(self, rule: str = "reference", *, revise: float = 1.0) -> None:
        self.rule, self.revise = rule, revise

    def start(self, task: NetworkTask, rng: np.random.Generator) -> None:
        """It asks the task."""
        self._levels, self._rng = getattr(task, self.rule), rng
        self._held: np.ndarray | None = None

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Levels (E, N)."""
        found = self._levels().reshape(-1)
        self._held = reconsidered(lambda who: found[who], len(found), self._held, self.revise, self._rng)
        return self._held.reshape(observations.shape[:2])


class Always:
    """One level for all, always: rank 0 is the strongest station, the last level full power."""

    def __init__(self, level: int) -> None:
        self.level = level

    def start(self, task: NetworkTask, rng: np.random.Generator) -> None:
        """Remember the shape."""
        self._shape = (task.n_networks, task.n_agents)
        self._level = self.level % task.n_levels

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Levels (E, N)."""
        return np.full(self._shape, self._level)


class Planned:
    """Every agent plans in NetWorld, on what it saw and on the mean field of what the others sent.

    age : epochs by which messages are late. bits : of each latent in a message.
    """

    def __init__(self, planner: Planner, *, age: int = 0, bits: int = 8) -> None:
        self.planner, self.age, self.bits = planner, age, bits

    def start(self, task: NetworkTask, rng: np.random.Generator) -> None:
        """Nobody holds a level yet, and nothing was sent."""
        self._task, self._rng = task, rng
        self._held: np.ndarray | None = None
        self._sent: list[np.ndarray] = []

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Levels (E, N)."""
        e, n, _ = observations.shape
        received = self._received(observations)
        plan = self.planner.plan(
            self._task.name,
            observations.reshape(e * n, -1),
            None if received is None else received.reshape(e * n, -1),
            self._task.n_levels,
            rng=self._rng,
            held=None if self._held is None else self._held.reshape(-1),
        )
        self._held = actions = plan.actions.reshape(e, n)
        return actions

    def _received(self, observations: np.ndarray) -> np.ndarray | None:
        if not self.planner.messages:
            return None
        z = self.planner.model.codec.encode(self._task.name, observations).numpy()
        self._sent.append(mean_field(to_bytes(z, np.zeros(z.shape[:-1]), self.bits), self._task.weights(), self.bits))
        return self._sent[max(len(self._sent) - 1 - self.age, 0)]


def play(task: NetworkTask, policy: NetworkPolicy, n_epochs: int, *, seed: int) -> dict[str, np.ndarray]:
    """Play `n_epochs` on the networks of `seed`, the same for every policy; each count (E,).

    Epochs 0 to 4 do not count; of five epochs or fewer the last one does.
    """
    rng_task, rng_policy = np.random.default_rng(seed).spawn(2)
    observations = task.reset(rng_task)
    policy.start(task, rng_policy)
    sums: dict[str, list[np.ndarray]] = {}
    for t in range(n_epochs):
        observations, reward = task.step(policy.act(observations))
        if t < min(BURN_IN, n_epochs - 1):
            continue
        for name, pair in (dict(task.tally()) | {"reward": (reward.mean(1), np.ones(len(reward)))}).items():
            known = sums.setdefault(name, [np.zeros(len(reward)), np.zeros(len(reward))])
            for total, x in zip(known, pair, strict=True):
                total += x
    return {name: a / b for name, (a, b) in sums.items()}


def score(found: np.ndarray, logs: np.ndarray, reference: np.ndarray) -> float:
    """(J - J_logs) / (J_reference - J_logs), means over the same networks; NaN where the two differ within their noise.

    The noise is two standard errors of the paired difference of reference and logs.
    """
    gap = reference - logs
    if len(gap) > 1 and gap.mean() < 2 * gap.std(ddof=1) / len(gap) ** 0.5:
        return float("nan")
    return float((found - logs).mean() / gap.mean())


def merit(found: Mapping[str, np.ndarray]) -> np.ndarray:
    """(E,): the first count, which the task is judged by."""
    return next(iter(found.values()))


def plan_cpu_ms(planner: Planner, task: NetworkTask, *, rng: np.random.Generator, n: int = 30) -> float:
    """Median CPU time [ms] of one decision of one agent by itself, on one thread, after five that do not count."""
    observation = task.reset(rng)[0, :1]
    received = np.zeros((1, D), np.float32) if planner.messages else None
    spent = []
    for _ in range(n + 5):
        begin = time.process_time()
        planner.plan(task.name, observation, received, task.n_levels, rng=rng)
        spent.append(time.process_time() - begin)
    return float(np.median(spent[5:]) * 1e3)
