"""Exact dynamic programming in a learned transition model, on a grid of what a saturated station can see.

A state is (last outcome, previous action, normalised delay); the buffer is full. The delay lies on a grid, and a next
delay between two of its points counts for both by its distance (linear interpolation). All of FedMORL's Eq. (1)
takes about a millisecond; `fedmorl.planning.tree` searches in samples of the model and must agree.

S states of the grid: 4 outcomes x 2 previous actions x D delays, delay fastest.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, get_args

import numpy as np

from fedmorl.dca.logs import OUTCOMES
from fedmorl.dca.policy import OBSERVATION
from fedmorl.world_models.transition import Prediction

Objective = Literal["average_reward", "discount_slots", "discount_decisions"]
Backup = Literal["behaviour", "max"]

N_OUTCOMES, N_ACTIONS, N_D2LT = len(OUTCOMES), 2, 65
IDLE, ACK = OUTCOMES.index("idle"), OUTCOMES.index("ack")
D2LT, PREVIOUS, BUFFER = (OBSERVATION.index(name) for name in ("d2lt", "previous_action", "buffer"))


class Model(Protocol):
    """What planning asks of a world model."""

    def predict(self, observations: np.ndarray, actions: np.ndarray) -> Prediction:
        """(B, 7) and (B,) -> what the model expects."""
        ...


class GridModel(NamedTuple):
    """A model evaluated on the grid: everything that a backup reads."""

    reward: np.ndarray  # (S, A)
    duration_slots: np.ndarray  # (S, A, 4) by outcome
    outcome: np.ndarray  # (S, A, 4) probabilities
    lower: np.ndarray  # (S, A, 4) the state whose delay is the next one below
    fraction: np.ndarray  # (S, A, 4) how far towards the one above


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """How action values are computed; the defaults are ours, `LITERAL` is FedMORL's Eq. (1).

    horizon : decisions to look ahead; 1 is the expected reward alone.
    objective : "average_reward", r - rho x duration; "discount_slots", gamma^duration for each next value;
        "discount_decisions", gamma.
    backup : "behaviour", the mean of the next values under the behaviour policy; "max", their maximum.
    discount : gamma, for the objectives that discount.
    capture : False takes away what a station knows after its own success: that nobody else can send.
    """

    horizon: int = 10
    objective: Objective = "average_reward"
    backup: Backup = "behaviour"
    discount: float = 0.99
    capture: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.horizon, bool) or not isinstance(self.horizon, int) or self.horizon < 1:
            raise ValueError(f"horizon must be an integer >= 1; got {self.horizon!r}")
        for name, choices in (("objective", Objective), ("backup", Backup)):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(f"{name} must be one of {', '.join(get_args(choices))}; got {getattr(self, name)!r}")
        if not 0 < self.discount <= 1:
            raise ValueError(f"discount must be above 0 and at most 1; got {self.discount}")


LITERAL = PlanConfig(objective="discount_decisions", backup="max")


def grid_observations(n_d2lt: int = N_D2LT) -> np.ndarray:
    """(S, 7) float32 observations of the grid."""
    outcome, previous, delay = np.meshgrid(np.arange(N_OUTCOMES), (0, 1), np.linspace(0, 1, n_d2lt), indexing="ij")
    observations = np.zeros((outcome.size, len(OBSERVATION)), np.float32)
    observations[np.arange(outcome.size), outcome.ravel()] = 1
    observations[:, PREVIOUS] = previous.ravel()
    observations[:, D2LT] = delay.ravel()
    observations[:, BUFFER] = 1
    return observations


def evaluate_on_grid(model: Model, n_d2lt: int = N_D2LT) -> GridModel:
    """Ask the model for every state of the grid and both actions."""
    if n_d2lt < 2:
        raise ValueError(f"n_d2lt must be >= 2; got {n_d2lt}")
    observations = grid_observations(n_d2lt)
    answers = [model.predict(observations, np.full(len(observations), action)) for action in range(N_ACTIONS)]
    reward, durations, outcome, next_d2lt = (
        np.stack([getattr(answer, name) for answer in answers], axis=1).astype(np.float64)
        for name in ("reward", "duration_slots", "outcome", "next_d2lt")
    )
    position = next_d2lt * (n_d2lt - 1)
    below = np.minimum(position.astype(np.int64), n_d2lt - 2)
    first = (np.arange(N_OUTCOMES) * N_ACTIONS + np.arange(N_ACTIONS)[:, None]) * n_d2lt  # (A, 4): next (c, a_prev)
    return GridModel(
        reward=reward,
        duration_slots=durations,
        outcome=outcome / outcome.sum(-1, keepdims=True),
        lower=first[None] + below,
        fraction=position - below,
    )


def without_capture(grid: GridModel) -> GridModel:
    """The model that forgets its own success: there it expects what it expects after an idle slot.

    With frozen counters nobody else can send in the slot after one's own success, the log says so, and every planner
    learns to send again. This takes that knowledge away and leaves all else. (After another's success nobody has
    ever sent in a log, so that nothing is known of it.)
    """
    per_outcome = len(grid.reward) // N_OUTCOMES
    per_action = per_outcome // N_ACTIONS
    source = np.arange(len(grid.reward)).reshape(N_OUTCOMES, N_ACTIONS, per_action)
    source[ACK] = source[IDLE, 0]
    rows = source.ravel()
    return GridModel(*(array[rows] for array in grid))


def q_values(
    grid: GridModel, config: PlanConfig, *, behaviour: np.ndarray | None = None, reward_rate: float = 0.0
) -> np.ndarray:
    """H-step action values on the grid, (S, A): FedMORL's Eq. (1), with the backup and the clock of your choice.

    Parameters
    ----------
    behaviour : (S,) probability of transmitting, for the backup under the behaviour policy.
    reward_rate : rho, the log's reward a slot, for the average-reward objective.

    Notes
    -----
    Departs from source: Eq. (1) discounts each decision and takes the maximum. One decision lasts 1 or 124 slots,
    and the others of the model are the logging policy, so both are options here and not the defaults.
    """
    if config.backup == "behaviour" and behaviour is None:
        raise ValueError('backup "behaviour" needs the behaviour policy, one probability a state')
    if not config.capture:
        grid = without_capture(grid)
    expected_slots = (grid.outcome * grid.duration_slots).sum(-1)
    immediate = grid.reward - (reward_rate * expected_slots if config.objective == "average_reward" else 0.0)
    factor = _discounts(config, grid.duration_slots)
    look = _backup(config.backup, behaviour)
    q = immediate
    for _ in range(config.horizon - 1):
        q = immediate + expected_next(grid, look(q), factor)
    return q


def expected_next(grid: GridModel, values: np.ndarray, factor: np.ndarray | float = 1.0) -> np.ndarray:
    """(S,) values of next states -> (S, A): their mean under the model, each outcome weighted by `factor`."""
    below, above = values[grid.lower], values[grid.lower + 1]
    return (grid.outcome * factor * (below + grid.fraction * (above - below))).sum(-1)


def interpolate(values: np.ndarray, observations: np.ndarray) -> np.ndarray:
    """Values (S, ...) of the grid at observations (B, 7) -> (B, ...), linear in the delay."""
    n_d2lt = len(values) // (N_OUTCOMES * N_ACTIONS)
    position = observations[:, D2LT].astype(np.float64) * (n_d2lt - 1)
    below = np.minimum(position.astype(np.int64), n_d2lt - 2)
    cell = observations[:, :N_OUTCOMES].argmax(1) * N_ACTIONS + (observations[:, PREVIOUS] > 0.5)
    lower, fraction = cell * n_d2lt + below, position - below
    fraction = fraction.reshape(-1, *[1] * (values.ndim - 1))
    return values[lower] * (1 - fraction) + values[lower + 1] * fraction


def _discounts(config: PlanConfig, duration_slots: np.ndarray) -> np.ndarray | float:
    if config.objective == "discount_slots":
        return config.discount**duration_slots
    return config.discount if config.objective == "discount_decisions" else 1.0


def _backup(name: Backup, behaviour: np.ndarray | None) -> Callable[[np.ndarray], np.ndarray]:
    if name == "max" or behaviour is None:
        return lambda q: q.max(-1)
    return lambda q: (1 - behaviour) * q[:, 0] + behaviour * q[:, 1]
