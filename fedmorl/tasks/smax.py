"""Battles of SMAX, JaxMARL's simplified relative of SMAC, many in lockstep: arrays in, arrays out.

SMAX has other units, other physics and another opponent than SMAC, and returns of at most 2: its numbers are SMAX's
and stand beside no number of SMAC's. Maps bear the names of the SMAC maps with as many units on each side.

Letters: B battles, N allies, M enemies, A = 5 + M actions, O observation, S state. `jax` and `jaxmarl` are imported
where a battle is made: the extra `smax` has them.
"""

from collections.abc import Callable, Sequence
from functools import cache
from importlib import metadata
from typing import Any, NamedTuple

import numpy as np

from fedmorl.evaluation.team import TeamStep

MAPS = ("5m_vs_6m", "6h_vs_8z")
SMAC_ONLY = ("2c_vs_64zg", "corridor")  # MADS4's other two maps
STOP = 4  # the one action that a fallen unit has; 0 to 3 go up, right, down, left, 5 + m attacks enemy m
REWARD_DEF = "SMAX: share of the enemies' health taken, and 1 for a win"
TIME_LIMIT = 100  # JaxMARL's own
MAX_SEED = 2**32 - 1  # of a battle: JAX keeps 32 bits of it


def check_map(map_name: str) -> str:
    """The name itself; ValueError, one sentence, if SMAX has no such map or this project does not use it."""
    if map_name in SMAC_ONLY:
        raise ValueError(f"map_name must be one of {', '.join(MAPS)}; {map_name} is a map of SMAC that SMAX lacks")
    if map_name not in MAPS:
        raise ValueError(f"map_name must be one of {', '.join(MAPS)}; got {map_name!r}")
    return map_name


def jaxmarl_version() -> str:
    """The version of the installed package, or one sentence that says how to get it."""
    try:
        return metadata.version("jaxmarl")
    except metadata.PackageNotFoundError:
        raise ModuleNotFoundError(
            "SMAX needs the packages jax and jaxmarl; install the extra: pip install -c constraints.txt -e '.[smax]'"
        ) from None


class Battles(NamedTuple):
    """JaxMARL's functions for B battles of one map, compiled once for each B."""

    environment: Any  # HeuristicEnemySMAX
    begin: Callable[..., Any]  # keys (B,) -> states of the game
    look: Callable[..., Any]  # states -> observations (B, N, O), available (B, N, A), global (B, S), standing (B, 2)
    advance: Callable[..., Any]  # keys, t, states, actions (B, N) -> states, team rewards (B,)


@cache
def battles(map_name: str) -> Battles:
    """The map against JaxMARL's scripted enemies, who shoot whom is closest and hold on to that target."""
    jaxmarl_version()
    import jax
    import jax.numpy as jnp
    from jaxmarl.environments.smax import HeuristicEnemySMAX, map_name_to_scenario

    environment = HeuristicEnemySMAX(scenario=map_name_to_scenario(map_name))

    def of_allies(values: dict[str, Any]) -> Any:
        return jnp.stack([values[name] for name in environment.agents])

    def begin(key: Any) -> Any:
        return typed(environment.reset(key)[1])

    def look(state: Any) -> tuple[Any, ...]:
        available = of_allies(environment.get_avail_actions(state)).astype(bool)
        observations = of_allies(environment.get_obs(state))
        alive, n = state.state.unit_alive, environment.num_allies
        standing = jnp.stack([alive[:n].any(), alive[n:].any()])  # the allies, the enemies
        return observations, available, environment.get_world_state(state), standing

    def advance(key: Any, t: int, state: Any, actions: Any) -> tuple[Any, Any]:
        """`step_env`, not `step`, which would begin the next battle and hide how this one ended."""
        chosen = dict(zip(environment.agents, actions, strict=True))
        _, state, rewards, _, _ = environment.step_env(jax.random.fold_in(key, t), state, chosen)
        return state, rewards[environment.agents[0]]  # the same for every ally

    return Battles(
        environment,
        jax.jit(jax.vmap(begin)),
        jax.jit(jax.vmap(look)),
        jax.jit(jax.vmap(advance, in_axes=(0, None, 0, 0))),
    )


def keys_of(seeds: Sequence[int] | np.ndarray) -> Any:
    """JAX's keys (B,) of integer seeds from 0 to 2^32 - 1."""
    import jax

    return jax.vmap(jax.random.key)(np.asarray(seeds, np.uint32))


def typed(tree: Any) -> Any:
    """The same arrays, each with a dtype of its own: for one left to Python's numbers JAX compiles a step twice."""
    import jax
    import jax.numpy as jnp

    return jax.tree.map(lambda x: jnp.asarray(x, jnp.asarray(x).dtype), tree)


class SMAX:
    """B battles of one map, stepped together, against JaxMARL's scripted enemies (`HeuristicEnemySMAX`).

    Parameters
    ----------
    map_name : "5m_vs_6m" (five marines against six) or "6h_vs_8z" (six hydralisks against eight zealots).
    batch : B; another number of seeds in `reset` changes it, and compiles anew.
    time_limit : steps until a battle that is not decided is truncated.

    Observations (B, N, O) float32 and the rewards of the team are JaxMARL's: the share of the enemies' health taken in
    the step, each enemy counting 1 / M, and 1 for a win, so that an episode returns at most 2. A battle terminates when
    a side has no unit left; when both fall in one step nobody has won. `step` tells in its extras `win` (B,).
    Not every action may be taken: `available()` says which, and `step` refuses others.

    Departs from source: JaxMARL ends an undecided battle one step after its limit and as if it were decided; here
    the limit is met exactly and is a truncation. In lockstep, a battle that is over goes on unheeded.

    Source: Rutherford et al. (2024), JaxMARL, section on SMAX.
    """

    reward_def = REWARD_DEF

    def __init__(self, map_name: str = "5m_vs_6m", batch: int = 1, time_limit: int = TIME_LIMIT) -> None:
        for name, value in (("batch", batch), ("time_limit", time_limit)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer >= 1; got {value!r}")
        self.map_name, self.batch, self.time_limit = check_map(map_name), batch, time_limit
        self.env_id, self.env_version = f"SMAX-{map_name}", jaxmarl_version()
        self._battles = battles(map_name)
        environment = self._battles.environment
        self.n_agents, self.n_enemies = environment.num_allies, environment.num_enemies
        self.n_actions, self.observation_size = environment.num_ally_actions, environment.obs_size
        self._seen: tuple[np.ndarray, ...] = ()
        self._t = time_limit

    @property
    def env_kwargs(self) -> dict[str, Any]:
        """What `SMAX` needs to make this task again."""
        return {"map_name": self.map_name, "time_limit": self.time_limit}

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """Begin B battles, one a seed, which fixes places and all later chance. (B, N, O)"""
        if len(seeds) < 1 or any(isinstance(s, bool) or int(s) != s or not 0 <= s <= MAX_SEED for s in seeds):
            raise ValueError(f"seeds must be integers from 0 to {MAX_SEED}, one a battle; got {list(seeds)}")
        self.batch, self._t = len(seeds), 0
        self._keys = keys_of(seeds)
        self._states = self._battles.begin(self._keys)
        return self._look()

    def step(self, actions: np.ndarray) -> TeamStep:
        """(B, N) actions -> what follows."""
        actions = self._checked(actions)
        self._states, rewards = self._battles.advance(self._keys, self._t, self._states, actions)
        self._t += 1
        observations = self._look()
        allies, enemies = self._seen[3].T  # (B,) bool: has the side a unit left?
        terminated = ~(allies & enemies)
        return TeamStep(
            observations=observations,
            rewards=np.array(rewards, np.float64),
            terminated=terminated,
            truncated=~terminated & (self._t >= self.time_limit),
            extras={"win": (allies & ~enemies).astype(np.float64)},
        )

    def available(self) -> np.ndarray:
        """(B, N, A) bool: moves and stop for a unit that stands, attacks on enemies in range; stop for a fallen one."""
        return self._now()[1]

    def states(self) -> np.ndarray:
        """(B, S) float32: health, place, cooldown and type of every unit, then their sides and types."""
        return self._now()[2]

    def _look(self) -> np.ndarray:
        self._seen = tuple(np.array(x) for x in self._battles.look(self._states))  # copies that may be written
        return self._seen[0]

    def _now(self) -> tuple[np.ndarray, ...]:
        if not self._seen:
            raise RuntimeError("no battle has begun: call reset(seeds) first")
        return self._seen

    def _checked(self, actions: np.ndarray) -> np.ndarray:
        if self._t >= self.time_limit:
            raise RuntimeError("the battles are over (or have not begun): call reset(seeds) before step()")
        actions = np.asarray(actions)
        if actions.shape != (self.batch, self.n_agents):
            raise ValueError(
                f"actions must have shape {(self.batch, self.n_agents)} (battles, allies); got {actions.shape}"
            )
        if actions.dtype.kind not in "iu" or actions.min() < 0 or actions.max() >= self.n_actions:
            got = f"{actions.dtype} from {actions.min()} to {actions.max()}"
            raise ValueError(f"actions must be integers from 0 to {self.n_actions - 1}; got {got}")
        allowed = np.take_along_axis(self.available(), actions[..., None].astype(np.int64), -1)[..., 0]
        if not allowed.all():
            b, n = (int(k) for k in np.argwhere(~allowed)[0])
            raise ValueError(
                f"actions must be available: {actions[b, n]} of ally {n} in battle {b} is not; "
                "let AmongAvailable(policy, task) play"
            )
        return actions.astype(np.int32)


class AmongAvailable:
    """A team policy that takes only what `task` has available at the moment, for `play_team`, which does not say.

    `policy` is any team policy whose `act` also takes `available` (B, N, A): MADS4's, cloned teams, `Heuristic`.
    """

    def __init__(self, policy: Any, task: SMAX) -> None:
        self.policy, self.task = policy, task

    def start(self, batch: int, rng: np.random.Generator) -> Any:
        """The policy's own."""
        return self.policy.start(batch, rng)

    def act(self, observations: np.ndarray, memory: Any, rng: np.random.Generator) -> tuple[np.ndarray, Any]:
        """Joint actions (B, N), each available, and the memory after them."""
        return self.policy.act(observations, memory, rng, self.task.available())

    def rewarded(self, memory: Any, rewards: np.ndarray) -> Any:
        """The policy's own."""
        return self.policy.rewarded(memory, rewards)
