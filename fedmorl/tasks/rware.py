"""Warehouse robots of the `rware` package, many warehouses in lockstep: arrays in, arrays out.

The package moves the robots; here its observations are written for all warehouses at once (equal to its own, see the
tests), its individual rewards become AlberDICE's, and its time limit is reported as truncation.

Letters: B warehouses, N robots, O = 71 numbers of an observation, C cells.
"""

import re
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv

from fedmorl.evaluation.team import TeamStep

TASKS = tuple(f"{size}-{n}ag" for size in ("tiny", "small") for n in (2, 4, 6))
ACTIONS = ("stay", "forward", "left", "right", "toggle")
DIRECTIONS = ("up", "down", "left", "right")
OBSERVATION_SIZE = 71
SELF_SIZE, CELL_SIZE, VIEW_SIZE = 8, 7, 9  # 8 numbers about oneself, then 7 about each of 9 cells, row by row
OWN_CELL = 4  # the middle one of the 9
REWARD_DEF = "agent0+shaping"
CARRIES_REQUESTED, STANDS_UNDER_REQUESTED, SEES_REQUESTED = 0.006, 0.003, 0.001


def environment_id(task: str) -> str:
    """The package's id of a task: "tiny-2ag" is rware-tiny-2ag-easy-v2; easy means two requested shelves a robot."""
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}; got {task!r}")
    return f"rware-{task}-easy-v2"


def n_robots(task: str) -> int:
    """The number in the task's name."""
    environment_id(task)
    return int(re.findall(r"\d+", task)[0])


def rware_version() -> str:
    """The version of the installed package, or one sentence that says how to get it."""
    try:
        return metadata.version("rware")
    except metadata.PackageNotFoundError:
        raise ModuleNotFoundError(
            "the warehouse tasks need the package rware; install the extra: pip install 'fedmorl[rware]'"
        ) from None


def make_warehouse(task: str) -> Any:
    """One warehouse of the package without its wrappers and without a time limit of its own."""
    rware_version()
    import rware  # noqa: F401  (registers the ids)

    return gymnasium.make(environment_id(task), max_steps=None, disable_env_checker=True).unwrapped


def alberdice_reward(observations: np.ndarray, rewards_agent: np.ndarray) -> np.ndarray:
    """The team's reward in AlberDICE's unit, (B,): what robot 0 got itself, and its shaping.

    r_0 + 0.006 [robot 0 carries a requested shelf] + 0.003 [it stands under one without carrying]
    + 0.001 [any of the 9 cells that it sees holds one]; read from robot 0's observation after the step. At most 1.007 a
    step; 500 steps of shaping add at most 3.5. It is one robot's shaped return and no count of team deliveries.

    Parameters
    ----------
    observations : (B, N, 71), those that follow the action.
    rewards_agent : (B, N), 1 for a robot that has just delivered a requested shelf.

    Source: data of AlberDICE (Matsunaga et al., 2023), the RWARE sets that MADS4 trains on (section 4.1).
    """
    own = observations[:, 0]  # (B, O)
    requested = own[:, SELF_SIZE + CELL_SIZE - 1 :: CELL_SIZE] > 0.5  # (B, 9)
    here, carrying = requested[:, OWN_CELL], own[:, 2] > 0.5
    shaping = np.where(here, np.where(carrying, CARRIES_REQUESTED, STANDS_UNDER_REQUESTED), 0.0)
    return rewards_agent[:, 0] + shaping + SEES_REQUESTED * requested.any(1)


class Warehouses:
    """B warehouses of one task, stepped together.

    Parameters
    ----------
    task : "tiny-2ag" and so on, see `TASKS`; tiny is 11 x 10 cells, small 20 x 10.
    batch : B.
    episode_limit : steps until every episode is truncated; a warehouse never terminates.

    Observations (B, N, 71) float32 are the package's: x, y, carrying, direction (4), highway, then for each of 3 x 3
    cells robot, its direction (4), shelf, requested. Actions (B, N): stay, forward, left, right, toggle.
    `step` returns rewards in AlberDICE's unit; its extras are `team_deliveries` (B,) of this step and `rewards_agent`
    (B, N), the package's individual ones.
    """

    n_actions = len(ACTIONS)
    observation_size = OBSERVATION_SIZE
    reward_def = REWARD_DEF

    def __init__(self, task: str = "tiny-2ag", batch: int = 1, episode_limit: int = 500) -> None:
        for name, value in (("batch", batch), ("episode_limit", episode_limit)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer >= 1; got {value!r}")
        self.env_id, self.env_version = environment_id(task), rware_version()
        self.task, self.n_agents = task, n_robots(task)
        self.batch, self.time_limit = batch, episode_limit
        self._warehouses: list[Any] = []
        self._t = episode_limit

    @property
    def env_kwargs(self) -> dict[str, Any]:
        """What `Warehouses` needs to make this task again."""
        return {"task": self.task, "episode_limit": self.time_limit}

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """Start B episodes, one a seed: the seed fixes places, directions and every later request. (B, N, 71)"""
        if len(seeds) < 1 or any(isinstance(s, bool) or int(s) != s or s < 0 for s in seeds):
            raise ValueError(f"seeds must be integers >= 0, one a warehouse; got {list(seeds)}")
        self.batch = len(seeds)
        while len(self._warehouses) < self.batch:
            self._warehouses.append(_without_observations(make_warehouse(self.task)))
        for warehouse, seed in zip(self._warehouses, seeds, strict=False):
            warehouse.reset(seed=int(seed))
        self._t = 0
        return self.observations()

    def step(self, actions: np.ndarray) -> TeamStep:
        """(B, N) actions -> what follows; all B episodes are truncated together at the time limit."""
        actions = self._checked(actions)
        rewards_agent = np.zeros(actions.shape)  # (B, N)
        for b, row in enumerate(actions.tolist()):
            rewards_agent[b] = self._warehouses[b].step(row)[1]
        self._t += 1
        observations = self.observations()
        return TeamStep(
            observations=observations,
            rewards=alberdice_reward(observations, rewards_agent),
            terminated=np.zeros(self.batch, np.bool_),
            truncated=np.full(self.batch, self._t >= self.time_limit),
            extras={"team_deliveries": rewards_agent.sum(1), "rewards_agent": rewards_agent},
        )

    def observations(self) -> np.ndarray:
        """(B, N, 71) float32: what each robot sees now."""
        running = self._running()
        cells = np.stack([_cells(warehouse) for warehouse in running])  # (B, H + 2, W + 2, 7)
        x, y, direction, loaded = np.moveaxis(np.array([_robots(w) for w in running]), 2, 0)  # each (B, N)
        highways = running[0].highways
        b = np.arange(self.batch)[:, None]
        seen = np.empty((*x.shape, OBSERVATION_SIZE), np.float32)
        seen[..., 0], seen[..., 1], seen[..., 2] = x, y, loaded
        seen[..., 3:7] = np.eye(4)[direction]
        seen[..., 7] = highways[y, x]
        for k in range(VIEW_SIZE):
            first = SELF_SIZE + CELL_SIZE * k
            seen[..., first : first + CELL_SIZE] = cells[b, y + k // 3, x + k % 3]
        return seen

    def states(self) -> np.ndarray:
        """(B, 7N) float32: x, y, direction of each robot, then x, y of each requested shelf (AlberDICE's state)."""
        rows = [
            [v for a in w.agents for v in (a.x, a.y, a.dir.value)] + [v for s in w.request_queue for v in (s.x, s.y)]
            for w in self._running()
        ]
        return np.array(rows, np.float32)

    def _running(self) -> list[Any]:
        if not self._warehouses:
            raise RuntimeError("no episode has begun: call reset(seeds) first")
        return self._warehouses[: self.batch]

    def _checked(self, actions: np.ndarray) -> np.ndarray:
        if self._t >= self.time_limit:
            raise RuntimeError("the episodes are over (or have not begun): call reset(seeds) before step()")
        actions = np.asarray(actions)
        if actions.shape != (self.batch, self.n_agents):
            raise ValueError(
                f"actions must have shape {(self.batch, self.n_agents)} (warehouses, robots); got {actions.shape}"
            )
        if actions.dtype.kind not in "iu" or actions.min() < 0 or actions.max() >= self.n_actions:
            got = f"{actions.dtype} from {actions.min()} to {actions.max()}"
            raise ValueError(f"actions must be integers from 0 to 4 ({', '.join(ACTIONS)}); got {got}")
        return actions.astype(np.int64)


def _without_observations(warehouse: Any) -> Any:
    """The same warehouse, whose own observations are not made: half of its time goes into them."""
    warehouse._make_obs = lambda agent: None
    return warehouse


def _robots(warehouse: Any) -> list[tuple[int, int, int, bool]]:
    return [(a.x, a.y, a.dir.value, a.carrying_shelf is not None) for a in warehouse.agents]


def _cells(warehouse: Any) -> np.ndarray:
    """(H + 2, W + 2, 7): what a robot is told of each cell, with a rim of cells outside."""
    robots, shelves = warehouse.grid  # ids, 0 for none
    facing = np.array([0] + [a.dir.value for a in warehouse.agents])
    requested = np.zeros(len(warehouse.shelfs) + 1, np.bool_)
    requested[[s.id for s in warehouse.request_queue]] = True
    cells = np.zeros((robots.shape[0] + 2, robots.shape[1] + 2, CELL_SIZE), np.float32)
    cells[..., 1] = 1  # where nobody stands the package writes "up"
    inner = cells[1:-1, 1:-1]
    inner[..., 0] = robots > 0
    inner[..., 1:5] = np.eye(4)[facing[robots]]
    inner[..., 5], inner[..., 6] = shelves > 0, requested[shelves]
    return cells


class RwareParallelEnv(ParallelEnv):
    """One warehouse as a PettingZoo `ParallelEnv`; every robot gets the team's reward in AlberDICE's unit.

    `infos[agent]` holds "team_deliveries" and "reward_agent", the robot's own.
    """

    metadata = {"name": "rware_v2", "render_modes": []}  # noqa: RUF012  (PettingZoo's own convention)

    def __init__(self, task: str = "tiny-2ag", episode_limit: int = 500) -> None:
        self._task = Warehouses(task, 1, episode_limit)
        self._seed = -1
        self.possible_agents = [f"robot_{i}" for i in range(self._task.n_agents)]
        self.agents: list[str] = []
        self.render_mode = None
        box = spaces.Box(0, np.inf, (OBSERVATION_SIZE,), np.float32)
        self.observation_spaces = dict.fromkeys(self.possible_agents, box)
        self.action_spaces = {agent: spaces.Discrete(len(ACTIONS)) for agent in self.possible_agents}

    def observation_space(self, agent: str) -> spaces.Space:
        """Box(71,)."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space:
        """Discrete(5): stay, forward, left, right, toggle."""
        return self.action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        """Start the episode of `seed`; without one, that of the seed after the last (0 at first)."""
        self._seed = self._seed + 1 if seed is None else seed
        self.agents = list(self.possible_agents)
        observations = self._task.reset([self._seed])[0]
        return dict(zip(self.agents, observations, strict=True)), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, int]) -> tuple[dict, dict, dict, dict, dict]:
        """One step of every robot."""
        if not isinstance(actions, dict) or set(actions) != set(self.agents):
            raise ValueError(f"actions must be a dict with one action for each of {', '.join(self.agents)}")
        step = self._task.step(np.array([[actions[agent] for agent in self.agents]]))
        agents, deliveries = self.agents, float(step.extras["team_deliveries"][0])
        own = step.extras["rewards_agent"][0].tolist()
        if step.truncated[0]:
            self.agents = []
        return (
            dict(zip(agents, step.observations[0], strict=True)),
            dict.fromkeys(agents, float(step.rewards[0])),
            dict.fromkeys(agents, bool(step.terminated[0])),
            dict.fromkeys(agents, bool(step.truncated[0])),
            {a: {"team_deliveries": deliveries, "reward_agent": r} for a, r in zip(agents, own, strict=True)},
        )

    def render(self) -> None:
        """Nothing to draw."""

    def close(self) -> None:
        """Nothing to release."""
