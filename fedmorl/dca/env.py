"""The channel as an environment: PettingZoo's `ParallelEnv`, and many replications at once on arrays.

One step is one decision: it starts at a contention slot where some agent may decide and ends at the next
one, 1 slot later if the channel stayed idle, 124 if somebody sent. Everything random comes from the streams
of `fedmorl.dca.streams`; an agent's own randomness is its policy's business.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv

from fedmorl.dca import kernels
from fedmorl.dca.policy import OBSERVATION
from fedmorl.dca.scenario import Scenario
from fedmorl.dca.simulate import check_count
from fedmorl.dca.state import State, make_state
from fedmorl.dca.stepping import step_batch


class Outside:
    """Marks a station whose actions come through `step`."""

    def act(self, observation: np.ndarray, memory: Any, rng: np.random.Generator) -> tuple[int, Any]:
        raise RuntimeError("this station is controlled through the environment's step(), not by act()")


class BatchedEnv:
    """B replications of a scenario, stepped together; arrays in and out.

    Parameters
    ----------
    agents : indices of the stations that are controlled from outside; None means all of them (A in number).
        The others keep their rule or their in-kernel policy.
    n_steps : decisions until the episode is truncated. Channel access never terminates.

    `reset` gives observations (B, A, 7) float32 and a mask (B, A) bool that says who may decide. `step` takes
    actions (B, A) of 0 (defer) and 1 (transmit); where the mask is False the action counts as 0 (rule 11).
    """

    def __init__(
        self, scenario: Scenario, n_envs: int = 64, agents: Sequence[int] | None = None, n_steps: int = 10_000
    ) -> None:
        if not isinstance(scenario, Scenario):
            raise ValueError(f"scenario must be a Scenario, such as Scenario.uniform(AC_BE, 10); got {scenario!r}")
        self.n_envs, self.n_steps = check_count("n_envs", n_envs, 1, 10**6), check_count("n_steps", n_steps, 1)
        chosen = range(scenario.n_stations) if agents is None else [check_count("agents", k, 0, 255) for k in agents]
        if len(chosen) == 0 or len(set(chosen)) != len(chosen):
            raise ValueError(f"agents must name each station at most once, and at least one; got {agents!r}")
        self.agent_stations = np.array(list(chosen), dtype=np.int64)
        self.scenario = scenario.with_policies({k: Outside() for k in chosen})
        self._seed, self._episode, self._step = 0, -1, self.n_steps
        shape = (self.n_envs, len(chosen))
        self._observations = np.zeros((*shape, len(OBSERVATION)), np.float32)
        self._mask, self._rewards = np.zeros(shape, np.bool_), np.zeros(shape, np.float32)
        self._local_rewards = np.zeros(shape, np.float32)
        self._durations, self._global_rewards = np.zeros(self.n_envs, np.int64), np.zeros(self.n_envs, np.float32)

    def reset(self, seed: int | None = None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Start B fresh replications: of `seed` if given, else the next B of the seed in use (0 at first)."""
        if seed is not None:
            self._seed, self._episode = check_count("seed", seed, 0, 2**63), -1
        self._episode += 1
        first = self._episode * self.n_envs
        states = [make_state(self.scenario, self._seed, first + b) for b in range(self.n_envs)]
        for state in states:
            state.channel["logging"] = 0
            kernels.start(state)
        self._stations = np.stack([s.stations for s in states]).view(np.recarray)
        self._channels = np.concatenate([s.channel for s in states]).view(np.recarray)
        self._queues, self._heard = np.stack([s.queue for s in states]), np.stack([s.heard for s in states])
        self._shared = states[0]  # histograms (pooled over replications), policies
        self._step = 0
        self._advance(np.zeros(self._mask.shape, np.int64), first=True)
        return self._observations.copy(), self._info()

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """(B, A) actions -> observations, rewards (B, A), terminated (B,), truncated (B,), info.

        `info`: mask (B, A); duration_slots (B,), the slots this step took; r_glob (B,) and r_local (B, A), the
        parts of the reward.

        Raises
        ------
        ValueError
            If an action is neither 0 nor 1, or the shape is not (B, A).
        RuntimeError
            If the episode is over; call `reset`.
        """
        if self._step >= self.n_steps:
            raise RuntimeError("the episode is over (or has not begun): call reset() before step()")
        actions = np.asarray(actions)
        if actions.shape != self._mask.shape:
            raise ValueError(f"actions must have shape {self._mask.shape} (environments, agents); got {actions.shape}")
        if not np.isin(actions, (0, 1)).all():
            wrong = actions[~np.isin(actions, (0, 1))].ravel()[0]
            raise ValueError(f"actions must be 0 (defer) or 1 (transmit); got {wrong!r}")
        self._advance(actions.astype(np.int64), first=False)
        self._step += 1
        ended = np.zeros(self.n_envs, np.bool_)
        over = np.full(self.n_envs, self._step >= self.n_steps)
        return self._observations.copy(), self._rewards.copy(), ended, over, self._info()

    @property
    def throughput_ratio(self) -> np.ndarray:
        """Share of time spent on successful packets since the reset, (B,)."""
        ch = self._channels
        return ch["n_successes"] * ch["tx_slots"] / np.maximum(ch["t"], 1)

    @property
    def successes(self) -> np.ndarray:
        """Packets delivered by each station since the reset, (B, N)."""
        return np.array(self._stations["successes"])

    @property
    def t(self) -> np.ndarray:
        """The current slot of each replication, (B,)."""
        return np.array(self._channels["t"])

    def _info(self) -> dict[str, np.ndarray]:
        return {
            "mask": self._mask.copy(),
            "duration_slots": self._durations.copy(),
            "r_glob": self._global_rewards.copy(),
            "r_local": self._local_rewards.copy(),
        }

    def _advance(self, actions: np.ndarray, first: bool) -> None:
        s: State = self._shared
        step_batch(
            self._stations, self._channels, self._queues, self._heard, s.access_histogram, s.delay_histogram, s.log,
            s.trace, s.sizes, s.weights, s.scratch, self.agent_stations, actions, first, self.scenario.reward_alpha,
            self.scenario.delay_term == "raw", self._observations, self._mask, self._rewards, self._durations,
            self._global_rewards, self._local_rewards,
        )  # fmt: skip


class DCAParallelEnv(ParallelEnv):
    """The channel as a PettingZoo `ParallelEnv`; one step is one decision.

    Observations are (7,) float32: the last channel event one-hot (idle, another's success, collision, own
    success), the own previous action, the normalised delay since the last success, the buffer share. Actions:
    0 defer, 1 transmit. `infos[agent]` holds "action_mask" (int8, [defer, transmit]), "duration_slots",
    "r_glob" and "r_local". Rewards: FedMORL Eq. (3), r_glob + alpha r_local, with the choices the book's page on
    the rules lists.

    >>> from fedmorl.dca import AC_BE, Scenario
    >>> env = DCAParallelEnv(Scenario.uniform(AC_BE, n_stations=3), agents=[0], n_steps=5)
    >>> observations, infos = env.reset(seed=1)
    >>> sorted(observations), infos["station_0"]["action_mask"].tolist()
    (['station_0'], [1, 1])
    """

    metadata = {"name": "dca_v0", "render_modes": []}  # noqa: RUF012  (PettingZoo's own convention)

    def __init__(self, scenario: Scenario, agents: Sequence[int] | None = None, n_steps: int = 10_000) -> None:
        self._batch = BatchedEnv(scenario, 1, agents, n_steps)
        self.possible_agents = [f"station_{k}" for k in self._batch.agent_stations]
        self.agents: list[str] = []
        self.render_mode = None
        low, high = np.zeros(len(OBSERVATION), np.float32), np.ones(len(OBSERVATION), np.float32)
        self.observation_spaces = {agent: spaces.Box(low, high) for agent in self.possible_agents}
        self.action_spaces = {agent: spaces.Discrete(2) for agent in self.possible_agents}

    def observation_space(self, agent: str) -> spaces.Space:
        """Box(7,) between 0 and 1."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space:
        """Discrete(2): 0 defer, 1 transmit."""
        return self.action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        """Start an episode; without a seed the next replication of the seed in use (0 at first)."""
        self.agents = list(self.possible_agents)
        observations, info = self._batch.reset(seed)
        return dict(zip(self.agents, observations[0], strict=True)), self._infos(info)

    def step(self, actions: dict[str, int]) -> tuple[dict, dict, dict, dict, dict]:
        """One decision of every agent that may decide; the others' actions count as 0."""
        if not isinstance(actions, dict):
            raise ValueError(f"actions must be a dict of agent -> 0 or 1; got {type(actions).__name__}")
        unknown = sorted(set(actions) - set(self.possible_agents))
        if unknown:
            raise ValueError(f"actions names unknown agents {', '.join(unknown)}; agents are {', '.join(self.agents)}")
        missing = [agent for agent in self.agents if agent not in actions]
        if missing:
            raise ValueError(f"actions must hold every agent; missing {', '.join(missing)}")
        chosen = np.array([[actions[agent] for agent in self.agents]]).reshape(1, -1)
        observations, rewards, terminated, truncated, info = self._batch.step(chosen)
        agents, infos = self.agents, self._infos(info)
        if truncated[0]:
            self.agents = []
        return (
            dict(zip(agents, observations[0], strict=True)),
            {agent: float(r) for agent, r in zip(agents, rewards[0], strict=True)},
            dict.fromkeys(agents, bool(terminated[0])),
            dict.fromkeys(agents, bool(truncated[0])),
            infos,
        )

    def _infos(self, info: dict[str, np.ndarray]) -> dict[str, dict[str, Any]]:
        return {
            agent: {
                "action_mask": np.array([1, info["mask"][0, a]], np.int8),
                "duration_slots": int(info["duration_slots"][0]),
                "r_glob": float(info["r_glob"][0]),
                "r_local": float(info["r_local"][0, a]),
            }
            for a, agent in enumerate(self.agents)
        }

    @property
    def throughput_ratio(self) -> float:
        """Share of time spent on successful packets since the reset."""
        return float(self._batch.throughput_ratio[0])

    def render(self) -> None:
        """Nothing to draw; the book's timeline plays a trace."""

    def close(self) -> None:
        """Nothing to release."""
