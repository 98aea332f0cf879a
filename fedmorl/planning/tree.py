"""Monte Carlo tree search in a learned model: action values at any observation, without a grid.

Given an observation and an action the model leaves only the outcome to chance, so a node has a child for each of
(action, outcome), made when it is first reached. The search agrees with `planning.grid` where both apply.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from fedmorl.planning.grid import ACK, D2LT, IDLE, N_ACTIONS, N_OUTCOMES, PREVIOUS, Model, PlanConfig
from fedmorl.world_models.transition import BUFFER


@dataclass(eq=False)
class Node:
    """An observation, what the model expects of its actions, and what the search has seen of them."""

    observation: np.ndarray  # (7,)
    gain: np.ndarray  # (A,) reward, less rho x expected duration where that is the objective
    cumulative: np.ndarray  # (A, 4) of the outcome's probabilities
    factor: np.ndarray  # (A, 4) weight of the next value
    next_d2lt: np.ndarray  # (A, 4)
    next_buffer: np.ndarray  # (A,)
    visits: np.ndarray = field(default_factory=lambda: np.zeros(N_ACTIONS, np.int64))
    totals: np.ndarray = field(default_factory=lambda: np.zeros(N_ACTIONS))
    squares: np.ndarray = field(default_factory=lambda: np.zeros(N_ACTIONS))
    children: dict[tuple[int, int], "Node"] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TreeSearch:
    """UCT over `config.horizon` decisions; with the backup "behaviour", actions below the root follow pi_b.

    model : a world model.
    behaviour : (4, 2) probability of transmitting by last outcome and previous action (`BlindBehaviour.table`);
        needed by the backup "behaviour".
    exploration : c of UCB1, in units of a reward of 1; for the backup "max".

    Source: Kocsis and Szepesvari (2006), UCT; FedMORL, section 3.3, names the search and gives no details.
    """

    model: Model
    config: PlanConfig
    behaviour: np.ndarray | None = None
    reward_rate: float = 0.0
    exploration: float = 1.0

    def __post_init__(self) -> None:
        if self.config.backup == "behaviour" and self.behaviour is None:
            raise ValueError('backup "behaviour" needs the behaviour policy, a (4, 2) table of probabilities')

    def q_values(
        self, observation: np.ndarray, *, n_simulations: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """(7,) -> values of both actions (2,), and their standard errors (2,); the root tries both alike."""
        if n_simulations < 2 * N_ACTIONS:
            raise ValueError(f"n_simulations must be >= {2 * N_ACTIONS}; got {n_simulations}")
        root = self._node(np.asarray(observation, np.float32))
        for k in range(n_simulations):
            self._simulate(root, k % N_ACTIONS, self.config.horizon, rng)
        mean = root.totals / root.visits
        variance = np.maximum(root.squares / root.visits - mean**2, 0)
        return mean, np.sqrt(variance / root.visits)

    def _simulate(self, node: Node, action: int, depth: int, rng: np.random.Generator) -> float:
        """One path from `node`, `depth` decisions long; returns what it gained."""
        value = float(node.gain[action])
        if depth > 1:
            outcome = int((rng.random() * node.cumulative[action, -1] > node.cumulative[action]).sum())
            child = node.children.get((action, outcome))
            if child is None:
                child = node.children[action, outcome] = self._node(_next(node, action, outcome))
            value += node.factor[action, outcome] * self._simulate(child, self._choose(child, rng), depth - 1, rng)
        node.visits[action] += 1
        node.totals[action] += value
        node.squares[action] += value**2
        return value

    def _choose(self, node: Node, rng: np.random.Generator) -> int:
        if self.config.backup == "behaviour" and self.behaviour is not None:
            cell = node.observation[:N_OUTCOMES].argmax(), int(node.observation[PREVIOUS] > 0.5)
            return int(rng.random() < self.behaviour[cell])
        if (node.visits == 0).any():
            return int(node.visits.argmin())
        bonus = self.exploration * np.sqrt(math.log(node.visits.sum()) / node.visits)
        return int((node.totals / node.visits + bonus).argmax())

    def _node(self, observation: np.ndarray) -> Node:
        asked = observation
        if not self.config.capture and observation[ACK] > 0.5:
            asked = observation.copy()
            asked[ACK], asked[IDLE], asked[PREVIOUS] = 0, 1, 0
        answer = self.model.predict(np.stack([asked, asked]), np.arange(N_ACTIONS))
        durations = answer.duration_slots.astype(np.float64)
        gain = answer.reward.astype(np.float64)
        if self.config.objective == "average_reward":
            gain = gain - self.reward_rate * (answer.outcome * durations).sum(-1)
        return Node(
            observation=observation,
            gain=gain,
            cumulative=answer.outcome.astype(np.float64).cumsum(-1),
            factor=self._factor(durations),
            next_d2lt=answer.next_d2lt,
            next_buffer=answer.next_buffer,
        )

    def _factor(self, durations: np.ndarray) -> np.ndarray:
        if self.config.objective == "average_reward":
            return np.ones_like(durations)
        steps = durations if self.config.objective == "discount_slots" else np.ones_like(durations)
        return self.config.discount**steps


def _next(node: Node, action: int, outcome: int) -> np.ndarray:
    observation = np.zeros_like(node.observation)
    observation[outcome] = 1
    observation[PREVIOUS] = action
    observation[D2LT] = node.next_d2lt[action, outcome]
    observation[BUFFER] = node.next_buffer[action]
    return observation
