"""The floor of a warehouse, which never changes, and all its shortest ways, computed once a map.

A robot's pose is a cell and a direction; forward and a turn cost one step each. Ways keep to the aisles (the package's
highways): a loaded robot has to, and an empty one does too; either may start from a storage cell, and enter one from
the aisle beside it at the end. The aisles in the middle are lanes, down on the left and up on the right; a step against
the lane costs four. The two outer aisles are too narrow for that and lead both ways.

Letters: C cells, numbered row by row; 4 directions: up, down, left, right.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import shortest_path

from fedmorl.tasks.rware import make_warehouse

UP, DOWN = 0, 1
OUTER = 3  # the columns of the outer aisle and the two columns of shelves beside it
STEPS = ((0, -1), (0, 1), (-1, 0), (1, 0))  # (x, y) of a step up, down, left, right
AFTER_LEFT, AFTER_RIGHT = (2, 3, 1, 0), (3, 2, 0, 1)  # the direction after a turn
TURNS = ((0, 2, 1, 1), (2, 0, 1, 1), (1, 1, 0, 2), (1, 1, 2, 0))  # turns from one direction to another [steps]
OUTSIDE = -1
AGAINST_THE_LANE = 3  # [steps] on top
UNREACHABLE = np.iinfo(np.int16).max


@dataclass(frozen=True)
class Floor:
    """A map with its shortest ways; all robots know it, as it is the same in every episode."""

    width: int
    storage: np.ndarray  # (C,) bool: shelves may stand here
    deliveries: tuple[int, ...]  # cells
    ahead: list[list[int]]  # [cell][direction] -> cell or OUTSIDE
    view: np.ndarray  # (C, 9): the cells of a robot's view, row by row, or OUTSIDE
    toll: np.ndarray  # (C, 4): what a step in that direction costs on top, against the lane [steps]
    steps: np.ndarray  # (C, C, 4) int16: cost to [goal] from [cell, direction], tolls included [steps]


@lru_cache(maxsize=4)
def floor_of(size: str) -> Floor:
    """The floor of "tiny" or "small"; read from the package, whatever the number of robots."""
    warehouse = make_warehouse(f"{size}-2ag")
    (height, width), goals = warehouse.grid_size, warehouse.goals
    y, x = np.divmod(np.arange(height * width), width)
    storage = warehouse.highways.ravel() == 0
    ahead = np.stack([_cell(x + dx, y + dy, width, height) for dx, dy in STEPS], 1)  # (C, 4)
    view = np.stack([_cell(x + dx, y + dy, width, height) for dy in (-1, 0, 1) for dx in (-1, 0, 1)], 1)
    toll = np.zeros_like(ahead)
    toll[(x >= OUTER) & (x < width // 2), UP] = toll[(x < width - OUTER) & (x >= width // 2), DOWN] = AGAINST_THE_LANE
    return Floor(
        width=width,
        storage=storage,
        deliveries=tuple(gy * width + gx for gx, gy in goals),
        ahead=ahead.tolist(),
        view=view,
        toll=toll,
        steps=_steps_to_cells(ahead, storage, toll),
    )


def _cell(x: np.ndarray, y: np.ndarray, width: int, height: int) -> np.ndarray:
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return np.where(inside, y * width + x, OUTSIDE)


def _steps_to_cells(ahead: np.ndarray, walls: np.ndarray, toll: np.ndarray) -> np.ndarray:
    """(C, C, 4): cost to [goal] from [cell, direction], entering no wall but the goal itself."""
    n_cells = len(ahead)
    between = _steps_between_poses(ahead, walls, toll)  # (4C, 4C), from, to
    steps = between.reshape(4 * n_cells, n_cells, 4).min(2).T  # (C, 4C), to, from
    for goal in np.flatnonzero(walls):
        entries = np.flatnonzero((ahead == goal) & ~walls[:, None])  # poses
        steps[goal] = np.minimum(steps[goal], (between[:, entries] + 1 + toll.ravel()[entries]).min(1))
    return np.minimum(steps, UNREACHABLE).astype(np.int16).reshape(n_cells, n_cells, 4)


def _steps_between_poses(ahead: np.ndarray, walls: np.ndarray, toll: np.ndarray) -> np.ndarray:
    """(4C, 4C) float: cost from pose to pose, 4 * cell + direction; a wall may be left but not entered."""
    pose = np.arange(ahead.size).reshape(ahead.shape)  # (C, 4)
    open_ahead = (ahead >= 0) & ~walls[ahead]
    moves = (pose[open_ahead], (4 * ahead + np.arange(4))[open_ahead])
    turns = [(pose.ravel(), pose[:, list(after)].ravel()) for after in (AFTER_LEFT, AFTER_RIGHT)]
    sources, targets = (np.concatenate(part) for part in zip(moves, *turns, strict=True))
    cost = np.ones(len(sources))
    cost[: len(moves[0])] += toll[open_ahead]
    return shortest_path(csr_array((cost, (sources, targets)), shape=(ahead.size, ahead.size)))
