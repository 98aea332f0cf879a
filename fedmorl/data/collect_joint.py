"""Joint transitions of a team at play, of any task that shows its global state."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from fedmorl.data.joint_transitions import JointTransitions
from fedmorl.evaluation.team import TeamPolicy, TeamStep

BATCH = 64  # episodes side by side


class StateTask(Protocol):
    """A team task that shows its state and says what it is."""

    time_limit: int
    env_id: str
    env_version: str
    reward_def: str
    discrete: bool
    action_size: int

    @property
    def env_kwargs(self) -> dict[str, Any]:
        """What its class needs to make it again."""

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """Begin B episodes: observations (B, N, O)."""

    def step(self, actions: np.ndarray) -> TeamStep:
        """One step of all episodes."""

    def states(self) -> np.ndarray:
        """(B, S)."""


def collect_joint(
    task: StateTask,
    policy: TeamPolicy,
    n_episodes: int,
    *,
    seed: int,
    behaviour: Mapping[str, Any],
    progress: bool = False,
) -> JointTransitions:
    """Play `n_episodes` and log every step.

    Episode e is played from seed 1,000,000 `seed` + e; a policy draws from a generator of the first of 64 that play
    together. Data have seeds below `fedmorl.evaluation.team.EVALUATION_SEED`.
    """
    if not 0 <= seed <= 999:
        raise ValueError(
            f"seed must be an integer from 0 to 999, so that data share no episode with an evaluation; got {seed}"
        )
    if n_episodes < 1:
        raise ValueError(f"n_episodes must be >= 1; got {n_episodes}")
    names = 1_000_000 * seed + np.arange(n_episodes)
    return collect_episodes(task, policy, names, behaviour=behaviour, progress=progress)


def collect_episodes(
    task: StateTask, policy: TeamPolicy, seeds: np.ndarray, *, behaviour: Mapping[str, Any], progress: bool = False
) -> JointTransitions:
    """Play the episodes of these seeds, 64 side by side, and log every step; rows are sorted by seed, then step."""
    from tqdm.auto import tqdm

    parts: list[dict[str, np.ndarray]] = []
    with tqdm(total=len(seeds), desc="collecting", unit="episode", disable=not progress) as bar:
        for first in range(0, len(seeds), BATCH):
            some = seeds[first : first + BATCH]
            parts += _play(task, policy, some)
            bar.update(len(some))
    rows: dict[str, Any] = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.lexsort((rows.pop("steps"), rows["episodes"]))
    if task.discrete:
        rows["actions"] = np.eye(task.action_size, dtype=np.float32)[rows["actions"]]
    return JointTransitions(
        **{name: array[order] for name, array in rows.items()},
        discrete=task.discrete,
        env_id=task.env_id,
        env_version=task.env_version,
        env_kwargs=task.env_kwargs,
        reward_def=task.reward_def,
        behaviour=behaviour,
        widths=getattr(task, "widths", None),  # of tasks whose agents see more or less; else all see all
    )


def _play(task: StateTask, policy: TeamPolicy, seeds: np.ndarray) -> list[dict[str, np.ndarray]]:
    """One step an entry, of the episodes that were not over before it."""
    rng = np.random.default_rng([int(seeds[0])])
    observations, states = task.reset([int(s) for s in seeds]), task.states()
    memory, alive, parts = policy.start(len(seeds), rng), np.ones(len(seeds), bool), []
    for t in range(task.time_limit):
        actions, memory = policy.act(observations, memory, rng)
        step = task.step(actions)
        memory, after = policy.rewarded(memory, step.rewards), task.states()
        row = {
            "states": states,
            "observations": observations,
            "actions": actions,
            "rewards": step.rewards,
            "next_states": after,
            "next_observations": step.observations,
            "terminated": step.terminated,
            "episodes": seeds,
            "steps": np.full(len(seeds), t),
        }
        parts.append({name: array[alive] for name, array in row.items()})
        observations, states = step.observations, after
        alive = alive & ~(step.terminated | step.truncated)
        if not alive.any():
            break
    return parts
