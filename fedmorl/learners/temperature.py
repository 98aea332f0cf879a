"""The temperature beta chosen offline: from logs alone, without the simulator.

A log says how many stations there seem to be (N_eff). That many copies of a policy play a chain of three states, whose
throughput is a closed form; the beta whose policy does best in it is taken.
"""

from collections.abc import Callable, Sequence

import numpy as np

from fedmorl.dca.logs import OUTCOMES
from fedmorl.learners.behaviour_cloning import cells
from fedmorl.world_models.transition import N_OUTCOMES, Log, flat

IDLE, SUCCESS, COLLISION, ACK = range(len(OUTCOMES))
TX_SLOTS, BUSY_SLOTS = 120, 124
BETAS = tuple(np.geomspace(0.05, 2.0, 41))  # about 10 % apart


def effective_stations(logs: Sequence[Log]) -> float:
    """N_eff = 1 + ln(1 - p) / ln(1 - tau), pooled over logs: as many stations as make the collisions seen.

    tau is the share of decisions to transmit and p the share of those that collided; every other station is taken
    to send with tau, so N_eff is the number of contenders only in the mean (2.2 at N = 2, 13 at N = 11). ValueError
    if nobody transmitted, or every transmission collided.
    """
    batches = [flat(log) for log in logs]
    sent = np.concatenate([batch.actions == 1 for batch in batches])
    collided = np.concatenate([batch.next_observations[:, COLLISION] > 0.5 for batch in batches])[sent]
    if not 0 < sent.mean() < 1 or not len(collided) or collided.all():
        raise ValueError("the logs tell no number of stations: nobody transmits, everybody always, or all collide")
    return float(1 + np.log1p(-collided.mean()) / np.log1p(-sent.mean()))


def population_throughput(attempt: np.ndarray, n_stations: float) -> float:
    """Throughput ratio of n copies of a policy that attempts with `attempt` (4, 2), by (last outcome, own action).

    A chain over the last outcome (idle, success, collision): after an idle slot all n have listened; after a success
    one of them hears ACK; after a collision two have collided (more are counted as two). For a constant attempt
    probability p it is exact: 120 P_s / (P_i + 124 (1 - P_i)) with P_i = (1 - p)^n and P_s = n p (1 - p)^(n - 1).
    """
    if n_stations < 2:
        raise ValueError(f"n_stations must be >= 2; got {n_stations:g}")
    groups = (
        [(n_stations, attempt[IDLE, 0])],
        [(1.0, attempt[ACK, 1]), (n_stations - 1, attempt[SUCCESS, 0])],
        [(2.0, attempt[COLLISION, 1]), (n_stations - 2, attempt[COLLISION, 0])],
    )
    idle, success, collision = _stationary(np.array([_next_outcome(group) for group in groups]))
    return float(TX_SLOTS * success / (idle + BUSY_SLOTS * (success + collision)))


def _next_outcome(groups: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """P(nobody sends), P(one does), P(several do), of groups of (how many, attempt probability)."""
    none = [(1 - p) ** n for n, p in groups]
    one = [n * p * (1 - p) ** (n - 1) if n > 0 else 0.0 for n, p in groups]
    alone = sum(one[k] * np.prod(none[:k] + none[k + 1 :]) for k in range(len(groups)))
    silent = np.prod(none)
    return float(silent), float(alone), float(max(1 - silent - alone, 0.0))


def _stationary(transition: np.ndarray) -> np.ndarray:
    """The distribution that a stochastic matrix leaves as it is."""
    n = len(transition)
    equations = np.vstack([transition.T - np.eye(n), np.ones(n)])
    return np.linalg.lstsq(equations, np.r_[np.zeros(n), 1.0], rcond=None)[0]


def choose_beta(
    probability: Callable[[float], np.ndarray],
    observations: np.ndarray,
    n_stations: float,
    betas: Sequence[float] = BETAS,
) -> float:
    """The beta whose policy n copies of play best; `probability(beta)` is P(transmit) at `observations` (B, 7)."""
    cell = cells(observations)
    counts = np.maximum(np.bincount(cell, minlength=2 * N_OUTCOMES), 1)

    def throughput(beta: float) -> float:
        mean = np.bincount(cell, probability(beta), minlength=2 * N_OUTCOMES) / counts
        return population_throughput(mean.reshape(N_OUTCOMES, 2), max(n_stations, 2.0))

    return float(max(betas, key=throughput))
