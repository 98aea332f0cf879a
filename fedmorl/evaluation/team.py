"""A team plays a task: B episodes side by side, arrays in and out.

Letters: B episodes, N agents, O observation. A task steps all its episodes together; a policy answers all of them at
once and keeps what it remembers in a memory that is handed in and out.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

EVALUATION_SEED = 10**9  # episodes of an evaluation have seeds from here on, those of data smaller ones


class TeamStep(NamedTuple):
    """What a step of B episodes gives back."""

    observations: np.ndarray  # (B, N, O) float32
    rewards: np.ndarray  # (B,) float64, in the task's unit of reward
    terminated: np.ndarray  # (B,) bool
    truncated: np.ndarray  # (B,) bool
    extras: Mapping[str, np.ndarray]  # name -> (B, ...), such as what all agents together delivered


class TeamTask(Protocol):
    """B episodes of one task in lockstep."""

    n_agents: int
    n_actions: int
    observation_size: int
    time_limit: int

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """Begin B episodes: observations (B, N, O)."""

    def step(self, actions: np.ndarray) -> TeamStep:
        """One step of all episodes for joint actions (B, N)."""


class TeamPolicy(Protocol):
    """Acts for a team. A memory handed in is left as it is."""

    def start(self, batch: int, rng: np.random.Generator) -> Any:
        """The memory before the first step of `batch` episodes."""

    def act(self, observations: np.ndarray, memory: Any, rng: np.random.Generator) -> tuple[np.ndarray, Any]:
        """Joint actions (B, N) int64 for observations (B, N, O), and the memory after them."""

    def rewarded(self, memory: Any, rewards: np.ndarray) -> Any:
        """The memory after rewards (B,): a return-to-go falls by them."""


def play_team(
    task: TeamTask, policy: TeamPolicy, seeds: Sequence[int], rng: np.random.Generator, progress: bool = False
) -> dict[str, np.ndarray]:
    """Play one episode for each seed: `returns` (B,), `lengths` (B,), and the sum of each extra over the episode.

    What comes after an episode's end is not counted.
    """
    from tqdm.auto import tqdm

    observations = task.reset(seeds)
    memory, alive = policy.start(len(seeds), rng), np.ones(len(seeds), bool)
    sums: dict[str, np.ndarray] = {"returns": np.zeros(len(seeds)), "lengths": np.zeros(len(seeds), int)}
    for _ in tqdm(range(task.time_limit), desc="steps", unit="step", disable=not progress, leave=False):
        actions, memory = policy.act(observations, memory, rng)
        step = task.step(actions)
        memory, observations = policy.rewarded(memory, step.rewards), step.observations
        for name, values in {"returns": step.rewards, "lengths": alive, **step.extras}.items():
            counted = values * alive.reshape(-1, *[1] * (values.ndim - 1))
            sums[name] = sums[name] + counted if name in sums else counted
        alive = alive & ~(step.terminated | step.truncated)
        if not alive.any():
            break
    return sums
