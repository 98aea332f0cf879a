"""What the wireless tasks have in common: E networks in lockstep, arrays in and out; and PettingZoo's view of one.

Letters: E networks, N agents, O observation, A levels of an action.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv

Tally = Mapping[str, tuple[np.ndarray, np.ndarray]]  # name -> (what was counted, out of what), both (E,)


class NetworkTask(Protocol):
    """E networks of N agents that each choose one of A levels an epoch, at the same time."""

    name: str
    n_networks: int
    n_agents: int
    n_levels: int
    observation_size: int
    change_probability: float  # of the level of an unoptimised agent, per epoch

    @property
    def own(self) -> np.ndarray:
        """(E, N) float32: what each agent alone got out of the last epoch, whatever it cost the others."""

    @property
    def credit(self) -> np.ndarray | None:
        """(E, N) float32: `own` less what the others lost by this agent; None where that cannot be told."""

    def reset(self, rng: np.random.Generator) -> np.ndarray:
        """Draw E networks and play one epoch at levels drawn evenly -> observations (E, N, O) float32."""

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Levels (E, N) -> observations (E, N, O) and rewards (E, N), both float32."""

    def reference(self) -> np.ndarray:
        """Levels (E, N) that somebody with full information would choose now."""

    def weights(self) -> np.ndarray:
        """(E, N, N): how much agent i hears of agent j, rows adding up to 1, nothing of itself."""

    def tally(self) -> Tally:
        """What the last epoch counted; the first entry is what the task is judged by."""

    def new_level(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        """Levels that an unoptimised agent changes to."""


def check_size(name: str, value: Any, least: int) -> int:
    """`value` as an integer >= `least`, or a ValueError that says so."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name} must be an integer >= {least}; got {value!r}")
    return int(value)


def check_actions(actions: Any, task: NetworkTask) -> np.ndarray:
    """`actions` as int64, or a ValueError: one level from 0 to A - 1 for each agent of each network."""
    actions = np.asarray(actions)
    wanted = (task.n_networks, task.n_agents)
    if actions.shape != wanted:
        raise ValueError(f"actions must have shape {wanted} (networks, agents); got {actions.shape}")
    if actions.dtype.kind not in "iu" or actions.min() < 0 or actions.max() >= task.n_levels:
        raise ValueError(
            f"actions must be integers from 0 to {task.n_levels - 1}; got {actions.dtype} "
            f"from {actions.min()} to {actions.max()}"
        )
    return actions.astype(np.int64)


def even_weights(n_networks: int, n_agents: int) -> np.ndarray:
    """(E, N, N): each agent hears all others alike."""
    one = (1 - np.eye(n_agents)) / max(n_agents - 1, 1)
    return np.broadcast_to(one, (n_networks, n_agents, n_agents))


def code_of(actions: np.ndarray, n_levels: int) -> np.ndarray:
    """Levels 0..A-1 as numbers from -1 to 1: 2 a / (A - 1) - 1."""
    return 2.0 * actions / (n_levels - 1) - 1.0


class NetworkParallelEnv(ParallelEnv):
    """One network as a PettingZoo `ParallelEnv`; one step is one epoch, and an episode is truncated after `n_steps`.

    >>> from fedmorl.tasks.power_control import PowerControl
    >>> env = NetworkParallelEnv(PowerControl(1, 3), n_steps=5)
    >>> observations, _ = env.reset(seed=1)
    >>> sorted(observations), observations["agent_0"].shape
    (['agent_0', 'agent_1', 'agent_2'], (9,))
    """

    metadata = {"name": "networks_v0", "render_modes": []}  # noqa: RUF012  (PettingZoo's own convention)

    def __init__(self, task: NetworkTask, n_steps: int = 64) -> None:
        if task.n_networks != 1:
            raise ValueError(f"task must hold one network (n_networks=1); got {task.n_networks}")
        self.task, self.n_steps = task, check_size("n_steps", n_steps, 1)
        self.possible_agents = [f"agent_{k}" for k in range(task.n_agents)]
        self.agents: list[str] = []
        self.render_mode = None
        self._rng = np.random.default_rng(0)
        box = spaces.Box(-np.inf, np.inf, (task.observation_size,), np.float32)
        self.observation_spaces = dict.fromkeys(self.possible_agents, box)
        self.action_spaces = {agent: spaces.Discrete(task.n_levels) for agent in self.possible_agents}

    def observation_space(self, agent: str) -> spaces.Space:
        """Box(O,)."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space:
        """Discrete(A)."""
        return self.action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        """Draw a network; without a seed the next one of the seed in use (0 at first)."""
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        self.agents, self._t = list(self.possible_agents), 0
        observations = self.task.reset(self._rng.spawn(1)[0])[0]
        return dict(zip(self.agents, observations, strict=True)), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, int]) -> tuple[dict, dict, dict, dict, dict]:
        """One epoch."""
        if not self.agents:
            raise RuntimeError("the episode is over (or has not begun): call reset() before step()")
        if set(actions) != set(self.agents):
            raise ValueError(f"actions must hold one level for each of {', '.join(self.agents)}; got {sorted(actions)}")
        observations, rewards = self.task.step(np.array([[actions[agent] for agent in self.agents]]))
        self._t += 1
        agents, over = self.agents, self._t >= self.n_steps
        self.agents = [] if over else agents
        return (
            dict(zip(agents, observations[0], strict=True)),
            {agent: float(r) for agent, r in zip(agents, rewards[0], strict=True)},
            dict.fromkeys(agents, False),
            dict.fromkeys(agents, over),
            {agent: {} for agent in agents},
        )

    def render(self) -> None:
        """Nothing to draw."""

    def close(self) -> None:
        """Nothing to release."""
