"""How updates become one state: pure functions, the same under every engine.

Every rule orders the updates by client id before anything is summed, accumulates in float64 and casts back once,
so that the answer does not depend on the order of arrival. x_k = client parameters, w = server parameters,
n_k = log sizes, f = bad clients among K.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedmorl.federated.records import ClientUpdate, ServerState, State


class TooFewUpdates(ValueError):
    """A rule got fewer updates than its guarantee needs: the round fails, the model stays."""


@dataclass(frozen=True, kw_only=True)
class FedAvg:
    """Mean weighted by log size: sum_k n_k x_k / sum_k n_k. Tolerates no bad client.

    Source: McMahan et al. (2017), arXiv 1602.05629, Algorithm 1.

    Attributes
    ----------
    max_n : int or None
        A client states its own n; no more than this counts.
    """

    max_n: int | None = None

    def __post_init__(self) -> None:
        if self.max_n is not None and self.max_n < 1:
            raise ValueError(f"max_n must be >= 1 or None; got {self.max_n}")

    def __call__(self, server: ServerState, updates: Sequence[ClientUpdate]) -> ServerState:
        return _next_round(server, _weighted_mean(updates, self.max_n))


class FedProx(FedAvg):
    """FedAvg on the server; the *client* adds prox_mu / 2 * sum((x - w)**2) to its loss.

    The weight is `FitConfig.prox_mu`; with prox_mu = 0 it is FedAvg, bit for bit.
    Source: Li et al. (2020), arXiv 1812.06127, Algorithm 2.
    """


@dataclass(frozen=True, kw_only=True)
class FedAdam:
    """Adam on the server, its gradient the mean of the clients' moves. Tolerates no bad client.

    d = FedAvg - w;  m = b1 m + (1 - b1) d;  v = b2 v + (1 - b2) d^2;  w += eta_r m / (sqrt(v) + tau)

    Source: Reddi et al. (2021), arXiv 2003.00295, Algorithm 2, where eta_r = eta.
    With `bias_correction`, eta_r = eta sqrt(1 - b2^(r+1)) / (1 - b1^(r+1)) for r = 1, 2, ..., as Flower has it.
    """

    eta: float = 0.1  # Flower's four; 0.1 moves a weight by up to 0.07 in round 1
    b1: float = 0.9
    b2: float = 0.99
    tau: float = 1e-3
    bias_correction: bool = False

    def __call__(self, server: ServerState, updates: Sequence[ClientUpdate]) -> ServerState:
        mean, w, power = _weighted_mean(updates, None), server.state, server.round + 2
        correction = np.sqrt(1 - self.b2**power) / (1 - self.b1**power) if self.bias_correction else 1.0
        zero = {k: np.zeros(v.shape) for k, v in w.items()}
        old_m, old_v = server.opt.get("m", zero), server.opt.get("v", zero)
        d = {k: mean[k] - w[k] for k in w}
        m = {k: self.b1 * old_m[k] + (1 - self.b1) * d[k] for k in w}
        v = {k: self.b2 * old_v[k] + (1 - self.b2) * d[k] ** 2 for k in w}
        moved = {k: w[k] + self.eta * correction * m[k] / (np.sqrt(v[k]) + self.tau) for k in w}
        return replace(_next_round(server, moved), opt={"m": m, "v": v})


@dataclass(frozen=True, kw_only=True)
class TrimmedMean:
    """Per coordinate, drop int(beta K) values at each end and average the rest, unweighted.

    Tolerates f <= int(beta K). Source: Yin et al. (2018), arXiv 1803.01498, Definition 2.
    """

    beta: float

    def __post_init__(self) -> None:
        if not 0 <= self.beta < 0.5:
            raise ValueError(f"beta must be from 0 to below 1/2, the share dropped at each end; got {self.beta}")

    def __call__(self, server: ServerState, updates: Sequence[ClientUpdate]) -> ServerState:
        drop = int(self.beta * len(updates))
        sorted_values = ((k, np.sort(values, axis=0)) for k, values in _stacked(updates))
        return _next_round(server, {k: values[drop : len(values) - drop].mean(axis=0) for k, values in sorted_values})


@dataclass(frozen=True, kw_only=True)
class Median:
    """Per coordinate, the median; of an even number, the mean of the middle two. Unweighted.

    Tolerates f < K / 2. Source: Yin et al. (2018), arXiv 1803.01498, Definition 1.
    """

    def __call__(self, server: ServerState, updates: Sequence[ClientUpdate]) -> ServerState:
        return _next_round(server, {k: np.median(values, axis=0) for k, values in _stacked(updates)})


@dataclass(frozen=True, kw_only=True)
class Krum:
    """The update nearest to its neighbours; or the mean of the m such, unweighted.

    score_k = sum of squared distances from x_k to its K - f - 2 nearest others; ties go to the lowest client id.
    Tolerates f with K >= 2 f + 3. Source: Blanchard et al. (2017), arXiv 1703.02757, section 4.
    Distances are direct sums of squared differences in float64: the expanded form |a|^2 + |b|^2 - 2ab cancels for
    models that are close. It discards the client of a rare regime as readily as an attacker.
    """

    f: int
    m: int = 1

    def __post_init__(self) -> None:
        if self.f < 0 or self.m < 1:
            raise ValueError(f"Krum needs f >= 0 and m >= 1; got f = {self.f}, m = {self.m}")

    def __call__(self, server: ServerState, updates: Sequence[ClientUpdate]) -> ServerState:
        if len(updates) < max(2 * self.f + 3, self.m):
            needed = max(2 * self.f + 3, self.m)
            raise TooFewUpdates(f"Krum with f = {self.f}, m = {self.m} needs {needed} updates; got {len(updates)}")
        chosen = set(self.select(updates))
        kept = [update for update in updates if update.client_id in chosen]
        return _next_round(server, {k: values.mean(axis=0) for k, values in _stacked(kept)})

    def select(self, updates: Sequence[ClientUpdate]) -> list[int]:
        """Ids of the m updates with the lowest scores, best first."""
        squares = _squared_distances(updates)
        K = len(updates)
        others = [np.delete(squares[k], k) for k in range(K)]  # self leaves by its index, not by its distance
        scores = [np.sort(row)[: K - self.f - 2].sum() for row in others]
        ids = sorted(update.client_id for update in updates)
        return [ids[k] for k in np.argsort(scores, kind="stable")[: self.m]]


# --- shared ----------------------------------------------------------------------------------------------


def _ordered(updates: Sequence[ClientUpdate]) -> list[ClientUpdate]:
    return sorted(updates, key=lambda update: update.client_id)


def _stacked(updates: Sequence[ClientUpdate]) -> list[tuple[str, np.ndarray]]:
    """(name, values of all clients in the order of their ids (K, ...) float64), by name."""
    ordered = _ordered(updates)
    return [(k, np.stack([u.state[k] for u in ordered]).astype(np.float64)) for k in sorted(ordered[0].state)]


def _weighted_mean(updates: Sequence[ClientUpdate], max_n: int | None) -> State:
    """FedAvg in float64."""
    ordered = _ordered(updates)
    sizes = [int(u.n) if max_n is None else min(int(u.n), max_n) for u in ordered]
    total = sum(sizes)
    mean = {k: np.zeros(value.shape) for k, value in sorted(ordered[0].state.items())}
    for update, n in zip(ordered, sizes, strict=True):
        for k in mean:
            mean[k] += n / total * update.state[k].astype(np.float64)
    return mean


def _squared_distances(updates: Sequence[ClientUpdate]) -> np.ndarray:
    """(K, K) float64; row k is the client with the k-th lowest id."""
    squares = np.zeros((len(updates), len(updates)))
    for _, values in _stacked(updates):
        flat = values.reshape(len(values), -1)
        for k in range(len(flat)):
            row = ((flat[k + 1 :] - flat[k]) ** 2).sum(axis=1)
            squares[k, k + 1 :] += row
            squares[k + 1 :, k] += row
    return squares


def _next_round(server: ServerState, state: State) -> ServerState:
    """The server one round on; the only cast back to the parameters' dtypes."""
    with np.errstate(over="ignore"):  # the driver refuses what overflows
        cast = {k: np.asarray(state[k]).astype(server.state[k].dtype) for k in sorted(state)}
    return replace(server, round=server.round + 1, state=cast)
