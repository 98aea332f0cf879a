"""Offline data of the warehouse: episodes of the scripted team, graded, the same on any number of processes."""

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from fedmorl.data.trajectories import Trajectories
from fedmorl.tasks.rware import ACTIONS, REWARD_DEF, Warehouses
from fedmorl.tasks.rware_expert import LocalExpert

EPISODES_PER_SEED = 1_000_000  # episode e of seed s is the warehouse's episode 1_000_000 s + e ...
MAX_SEED = 999  # ... so that data stay below fedmorl.evaluation.team.EVALUATION_SEED, 10**9
GRADES: dict[str, dict[str, Any]] = {
    "expert": {"patrol_radius": None, "noise": 0.0},
    "medium": {"patrol_radius": 4, "noise": 0.15},
    "poor": {"patrol_radius": None, "noise": 0.4},
}
MIXED = "mixed"  # the three in turn, episode by episode


def collect_rware(
    task: str,
    n_episodes: int,
    *,
    grade: str = "expert",
    seed: int = 0,
    episode_limit: int = 500,
    workers: int | None = None,
    progress: bool = True,
) -> Trajectories:
    """Let `LocalExpert` play and log it; rewards are in AlberDICE's unit.

    Parameters
    ----------
    task : "tiny-2ag" and so on, see `fedmorl.tasks.rware.TASKS`.
    n_episodes : E, up to a million.
    grade : "expert", "medium" (noise 0.15, looks 4 steps far), "poor" (noise 0.4), or "mixed", the three in turn.
    seed : from 0 to 999; the same seed gives the same data, whatever the number of processes.
    episode_limit : steps of every episode, which is then truncated.
    workers : processes (default: the cores at hand); 1 stays in this process.
    progress : show a bar of episodes.

    Returns
    -------
    Trajectories
        With the state (E, T + 1, 7N) and the extras `team_deliveries` (E, T), `rewards_agent` (E, T, N), the package's
        individual rewards, `deadlock_breaks` (E, T, N), 1 where a robot gave up waiting and began to move at random,
        and `stalled_steps` (E, T, N), for how long it had then not come nearer to its goal.
    """
    if grade not in (*GRADES, MIXED):
        raise ValueError(f"grade must be one of {', '.join((*GRADES, MIXED))}; got {grade!r}")
    workers = os.cpu_count() or 1 if workers is None else workers
    limits = {
        "n_episodes": (n_episodes, 1, EPISODES_PER_SEED),
        "seed": (seed, 0, MAX_SEED),
        "workers": (workers, 1, 1024),
    }
    for name, (value, low, high) in limits.items():
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"{name} must be an integer from {low} to {high}; got {value!r}")
    task_in = Warehouses(task, 1, episode_limit)
    names = tuple(GRADES) if grade == MIXED else (grade,)
    jobs = [(task, names[e % len(names)], seed, e, episode_limit) for e in range(n_episodes)]
    arrays: dict[str, np.ndarray] = {}
    bar = tqdm(_played(jobs, workers), total=n_episodes, desc=f"{task} {grade}", unit="episode", disable=not progress)
    for e, episode in enumerate(bar):
        arrays = arrays or {name: np.zeros((n_episodes, *a.shape), a.dtype) for name, a in episode.items()}
        for name, array in episode.items():
            arrays[name][e] = array
    ends = np.zeros((n_episodes, episode_limit), np.bool_)
    return Trajectories(
        observations=arrays.pop("observations"),
        actions=arrays.pop("actions"),
        rewards=arrays.pop("rewards"),
        states=arrays.pop("states"),
        terminated=ends,
        truncated=ends | (np.arange(episode_limit) == episode_limit - 1),
        lengths=np.full(n_episodes, episode_limit),
        episode_seeds=np.array([episode_seed(seed, e) for e in range(n_episodes)]),
        behaviour_ids=np.arange(n_episodes) % len(names),
        env_id=task_in.env_id,
        env_version=task_in.env_version,
        env_kwargs=task_in.env_kwargs,
        n_actions=len(ACTIONS),
        reward_def=REWARD_DEF,
        time_limit=episode_limit,
        behaviours=tuple({"name": f"LocalExpert/{name}", **GRADES[name]} for name in names),
        extras=arrays,
    )


def episode_seed(seed: int, episode: int) -> int:
    """The warehouse's own seed of an episode of data."""
    return EPISODES_PER_SEED * seed + episode


def _played(jobs: list[tuple[str, str, int, int, int]], workers: int) -> Iterator[dict[str, np.ndarray]]:
    """The episodes of `jobs` in their order."""
    workers = min(workers, len(jobs))
    if workers == 1:
        yield from map(_episode, jobs)
        return
    start = "fork" if sys.platform == "linux" else None  # others cannot fork safely
    with ProcessPoolExecutor(workers, mp_context=get_context(start)) as pool:
        yield from pool.map(_episode, jobs)


def _episode(job: tuple[str, str, int, int, int]) -> dict[str, np.ndarray]:
    """One episode: arrays (T, ...), observations and states (T + 1, ...)."""
    task, grade, seed, episode, episode_limit = job
    rng = np.random.default_rng([seed, episode])
    warehouse, expert = Warehouses(task, 1, episode_limit), LocalExpert(task=task, **GRADES[grade])
    observations, memory = warehouse.reset([episode_seed(seed, episode)]), expert.start(1, rng)
    before = [{"observations": observations, "states": warehouse.states()}]
    after = []
    for _ in range(episode_limit):
        actions, memory = expert.act(observations, memory, rng)
        step = warehouse.step(actions)
        observations = step.observations
        before.append({"observations": observations, "states": warehouse.states()})
        after.append({"actions": actions, "rewards": step.rewards, **step.extras, **expert.counts(memory)})
    rows = {name: np.concatenate([row[name] for row in rows]) for rows in (before, after) for name in rows[0]}
    narrow = {
        "actions": np.int16,
        "rewards": np.float32,
        "rewards_agent": np.float32,
        "team_deliveries": np.float32,
        "deadlock_breaks": np.int16,
        "stalled_steps": np.int16,
    }
    return rows | {name: rows[name].astype(dtype) for name, dtype in narrow.items()}
