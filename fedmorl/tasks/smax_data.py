"""Offline data of SMAX: battles that JaxMARL's scripted units fight on both sides, the allies graded by noise.

Letters: E episodes, T steps of the longest, B battles side by side, N allies, A actions, O observation.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from tqdm.auto import tqdm

from fedmorl.data.trajectories import Trajectories, concatenate_trajectories
from fedmorl.tasks.smax import REWARD_DEF, SMAX, STOP, TIME_LIMIT, battles, check_map, keys_of, typed

GRADES = {"expert": 0.0, "medium": 0.15, "poor": 0.4}  # share of actions that are drawn at random
BATCH = 32  # battles side by side; an episode is the same in any batch, and compiling takes longer than playing
EPISODES_PER_SEED = 1_000_000  # episode e of seed s is the battle of seed 1_000_000 s + e ...
MAX_SEED = 999  # ... so that data stay below fedmorl.evaluation.team.EVALUATION_SEED, 10**9


class Orders(NamedTuple):
    """What the scripted allies keep in mind: `t` steps taken, a key and JaxMARL's own memory for each battle."""

    t: int
    keys: Any  # (B,)
    minds: Any  # of each unit, (B, N, ...)


class Heuristic:
    """JaxMARL's scripted units on the side of the allies, as a team policy.

    A unit attacks the closest enemy in range and holds on to it; otherwise it follows one that it sees, or crosses the
    map. It has no tactics against the same units in larger numbers, and loses: "expert" means free of noise.

    Parameters
    ----------
    map_name : "5m_vs_6m" or "6h_vs_8z".
    noise : from 0 to 1, the chance that a unit's action is replaced by an available one, all equally likely.

    Departs from source: where the script names an action that is not available (a fallen unit's), the unit stops.
    """

    def __init__(self, map_name: str, noise: float = 0.0) -> None:
        if not 0 <= noise <= 1:
            raise ValueError(f"noise must be from 0 to 1; got {noise!r}")
        self.map_name, self.noise = check_map(map_name), noise
        self._decide, self._mind = scripted_allies(map_name)

    def start(self, batch: int, rng: np.random.Generator) -> Orders:
        """The memory before the first step, all later chance drawn from `rng`."""
        return self.seeded(rng.integers(2**32, size=batch))

    def seeded(self, seeds: Sequence[int] | np.ndarray) -> Orders:
        """The memory before the first step, one seed a battle."""
        import jax
        import jax.numpy as jnp

        shape = (len(seeds), battles(self.map_name).environment.num_allies)
        minds = jax.tree.map(lambda x: jnp.broadcast_to(x, shape + x.shape), typed(self._mind))
        return Orders(0, keys_of(seeds), minds)

    def act(
        self, observations: np.ndarray, memory: Orders, rng: np.random.Generator | None, available: np.ndarray
    ) -> tuple[np.ndarray, Orders]:
        """Joint actions (B, N) for observations (B, N, O) and what is available (B, N, A), and the memory after them.

        Chance is the memory's own; `rng` is not drawn from.
        """
        actions, minds = self._decide(memory.keys, memory.t, memory.minds, observations, available, self.noise)
        return np.array(actions, np.int64), Orders(memory.t + 1, memory.keys, minds)

    def rewarded(self, memory: Orders, rewards: np.ndarray) -> Orders:
        """Rewards are not looked at."""
        return memory


@cache
def scripted_allies(map_name: str) -> tuple[Callable[..., Any], Any]:
    """The decision of B teams, compiled, and a unit's memory before the first step."""
    environment = battles(map_name).environment
    import jax
    import jax.numpy as jnp
    from jaxmarl.environments.smax.heuristic_enemy import create_heuristic_policy, get_heuristic_policy_initial_state

    script, n = create_heuristic_policy(environment, team=0), environment.num_allies

    def decide(key: Any, t: int, minds: Any, seen: Any, available: Any, noise: float) -> tuple[Any, Any]:
        of_script, of_noise, of_choice = jax.random.split(jax.random.fold_in(key, t), 3)
        actions, minds = jax.vmap(script)(jax.random.split(of_script, n), minds, seen)
        allowed = jnp.take_along_axis(available, actions[:, None], 1)[:, 0]
        at_random = jax.random.categorical(of_choice, jnp.where(available, 0.0, -jnp.inf))
        noisy = jax.random.uniform(of_noise, (n,)) < noise
        return jnp.where(noisy, at_random, jnp.where(allowed, actions, STOP)), minds

    return jax.jit(jax.vmap(decide, in_axes=(0, None, 0, 0, 0, None))), get_heuristic_policy_initial_state()


def collect_smax(
    map_name: str,
    n_episodes: int,
    *,
    grade: str = "expert",
    seed: int = 0,
    time_limit: int = TIME_LIMIT,
    progress: bool = True,
) -> Trajectories:
    """Let `Heuristic` play and log it; rewards are SMAX's, see `fedmorl.tasks.smax.SMAX`.

    Parameters
    ----------
    map_name : "5m_vs_6m" or "6h_vs_8z".
    n_episodes : E, up to a million.
    grade : "expert" (no noise), "medium" (noise 0.15) or "poor" (noise 0.4).
    seed : from 0 to 999; the same seed gives the same episodes, however many are asked for.
    time_limit : steps after which a battle is truncated.
    progress : show a bar of episodes.

    Returns
    -------
    Trajectories
        With available (E, T + 1, N, A), states (E, T + 1, S) and the extra `win` (E, T), 1 at the step that won.
    """
    if grade not in GRADES:
        raise ValueError(f"grade must be one of {', '.join(GRADES)}; got {grade!r}")
    for name, value, low, high in (("n_episodes", n_episodes, 1, EPISODES_PER_SEED), ("seed", seed, 0, MAX_SEED)):
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"{name} must be an integer from {low} to {high}; got {value!r}")
    task = SMAX(map_name, BATCH, time_limit)
    team = Heuristic(map_name, GRADES[grade])
    behaviour = {"name": f"JaxMARL's heuristic/{grade}", "noise": GRADES[grade]}
    parts = []
    with tqdm(total=n_episodes, desc=f"{task.env_id} {grade}", unit="episode", disable=not progress) as bar:
        for first in range(0, n_episodes, BATCH):
            part = _played(task, team, seed, np.arange(first, first + BATCH), behaviour)
            parts.append(part.take(np.arange(min(BATCH, n_episodes - first))))
            bar.update(len(parts[-1]))
    return concatenate_trajectories(parts)


def _played(task: SMAX, team: Heuristic, seed: int, episodes: np.ndarray, behaviour: dict[str, Any]) -> Trajectories:
    """The battles `episodes` (B,), each padded with zeros behind its end."""
    battle_seeds = EPISODES_PER_SEED * seed + episodes
    observations = task.reset(battle_seeds.tolist())
    memory = team.seeded(np.array([np.random.default_rng([seed, int(e)]).integers(2**32) for e in episodes]))
    alive = np.ones(len(episodes), np.bool_)
    before = [_kept(alive, observations=observations, states=task.states(), available=task.available())]
    after = []
    while alive.any():
        actions, memory = team.act(observations, memory, None, task.available())
        step = task.step(actions)
        observations = step.observations
        ends = {"terminated": step.terminated, "truncated": step.truncated, "mask": alive}
        after.append(_kept(alive, actions=actions, rewards=step.rewards, **ends, **step.extras))
        before.append(_kept(alive, observations=observations, states=task.states(), available=task.available()))
        alive = alive & ~(step.terminated | step.truncated)
    arrays = {name: np.stack([row[name] for row in rows], 1) for rows in (before, after) for name in rows[0]}
    return Trajectories(
        lengths=arrays.pop("mask").sum(1),
        extras={"win": arrays.pop("win").astype(np.float32)},
        **arrays,
        episode_seeds=battle_seeds,
        behaviour_ids=np.zeros(len(episodes), np.int16),
        env_id=task.env_id,
        env_version=task.env_version,
        env_kwargs=task.env_kwargs,
        n_actions=task.n_actions,
        reward_def=REWARD_DEF,
        time_limit=task.time_limit,
        behaviours=(behaviour,),
    )


def _kept(alive: np.ndarray, **arrays: np.ndarray) -> dict[str, np.ndarray]:
    """Arrays (B, ...), zero where a battle is over."""
    return {name: array * alive.reshape(-1, *[1] * (array.ndim - 1)) for name, array in arrays.items()}
