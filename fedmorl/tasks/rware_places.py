"""The warehouse seen with places instead of coordinates: x and y as one-hot vectors, the other 69 numbers as they are.

A robot's way depends on the very cell it stands on, and two coordinates are hard for a small network to take apart. All
learners of a comparison are given the same. Departs from source: MADS4 and AlberDICE hand the coordinates over.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from fedmorl.data.trajectories import Trajectories
from fedmorl.evaluation.team import TeamStep
from fedmorl.tasks.rware import OBSERVATION_SIZE, Warehouses, make_warehouse


@lru_cache(maxsize=16)
def _size(task: str) -> tuple[int, int]:
    """Rows and columns of the task's grid."""
    return make_warehouse(task).grid_size


def place_observations(observations: np.ndarray, task: str) -> np.ndarray:
    """(..., 71) -> (..., width + height + 69) float32: one-hot x, one-hot y, and what follows them."""
    height, width = _size(task)
    x, y = (observations[..., k].astype(np.int64) for k in (0, 1))
    places = [np.eye(width, dtype=np.float32)[x], np.eye(height, dtype=np.float32)[y]]
    return np.concatenate([*places, observations[..., 2:]], -1)


def placed(log: Trajectories) -> Trajectories:
    """The same episodes with places; the padding of shorter episodes stays zero."""
    seen = place_observations(log.observations, log.env_kwargs["task"])
    played = np.arange(seen.shape[1]) <= log.lengths[:, None]
    kwargs = dict(log.env_kwargs) | {"places": True}
    return replace(log, observations=seen * played[..., None, None].astype(np.float32), env_kwargs=kwargs)


class PlacedWarehouses(Warehouses):
    """`Warehouses` whose observations hold places."""

    def __init__(self, task: str = "tiny-2ag", batch: int = 1, episode_limit: int = 500) -> None:
        super().__init__(task, batch, episode_limit)
        height, width = _size(task)
        self.observation_size = OBSERVATION_SIZE - 2 + width + height

    @property
    def env_kwargs(self) -> dict[str, Any]:
        """What makes this task again."""
        return super().env_kwargs | {"places": True}

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """See `Warehouses.reset`: (B, N, O)."""
        return place_observations(super().reset(seeds), self.task)

    def step(self, actions: np.ndarray) -> TeamStep:
        """See `Warehouses.step`."""
        step = super().step(actions)
        return step._replace(observations=place_observations(step.observations, self.task))
