"""The temperature beta chosen offline: from logs alone, without the simulator.

A log says how many stations there seem to be (N_eff). The throughput of that many stations that attempt alike is
a closed form; the beta whose policy attempts at the best rate is taken.
"""

from collections.abc import Callable, Sequence

import numpy as np

from fedmorl.dca.logs import OUTCOMES
from fedmorl.world_models.transition import Log, flat

COLLISION = OUTCOMES.index("collision")
TX_SLOTS, BUSY_SLOTS = 120, 124
BETAS = tuple(np.geomspace(0.05, 2.0, 41))  # about 10 % apart


def effective_stations(logs: Sequence[Log]) -> float:
    """N_eff = 1 + ln(1 - p) / ln(1 - tau), pooled over logs: as many stations as make the collisions seen.

    tau is the share of decisions to transmit and p the share of those that collided; every other station is taken
    to send with tau, so N_eff is the number of contenders only in the mean (2.2 at N = 2, 13 at N = 14). ValueError
    if nobody transmitted, or every transmission collided.
    """
    batches = [flat(log) for log in logs]
    sent = np.concatenate([batch.actions == 1 for batch in batches])
    collided = np.concatenate([batch.next_observations[:, COLLISION] > 0.5 for batch in batches])[sent]
    if not 0 < sent.mean() < 1 or not len(collided) or collided.all():
        raise ValueError("the logs tell no number of stations: nobody transmits, everybody always, or all collide")
    return float(1 + np.log1p(-collided.mean()) / np.log1p(-sent.mean()))


def slotted_throughput(attempt: float, n_stations: float) -> float:
    """Throughput ratio of n stations (real) that each send with `attempt` in every contention slot.

    S = 120 P_s / (P_i + 124 (1 - P_i)) with P_i = (1 - p)^n and P_s = n p (1 - p)^(n - 1), slots of 1 and 124.
    """
    idle, alone = (1 - attempt) ** n_stations, n_stations * attempt * (1 - attempt) ** (n_stations - 1)
    return TX_SLOTS * alone / (idle + BUSY_SLOTS * (1 - idle))


def choose_beta(mean_attempt: Callable[[float], float], n_stations: float, betas: Sequence[float] = BETAS) -> float:
    """The beta whose policy's mean attempt rate would serve n stations best, were it the same in every slot.

    `mean_attempt(beta)` is the mean of pi(transmit | o) over the observations of the logs.
    """
    return float(max(betas, key=lambda beta: slotted_throughput(mean_attempt(beta), n_stations)))
