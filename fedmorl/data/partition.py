"""Clients that differ: who gets what of which regime's log, and how far apart the clients' logs are.

Logs differ by regime, not by label: by contenders, load, window. Four skews are kept apart, and a figure names
the one it varies: *covariate*, the station's own load, moves what it observes; *behaviour*, its window, moves what
it does; *quantity* is how much it has logged; *dynamics*, another number of contenders, moves what follows from the
same observation and action, and then no single model is right. Each has a maker below. On the channel none moves
quite alone, so `skews` measures all four, in bits.

K clients, R regimes, B transitions; a *cell* is a bin of observations with the action taken and its outcome.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from fedmorl.data.dataset import DatasetError, Transitions, concatenate_transitions
from fedmorl.dca.logs import OUTCOMES
from fedmorl.dca.policy import OBSERVATION
from fedmorl.dca.scenario import Scenario, Station, Traffic

# --- regimes: scenarios that differ in one thing; the client is station 0 -----------------------------------


def covariate_regimes(scenario: Scenario, traffics: Sequence[Traffic]) -> list[Scenario]:
    """Station 0's own load varies, the others' stays."""
    return [_with_first(scenario, replace(scenario.stations[0], traffic=traffic)) for traffic in traffics]


def behaviour_regimes(scenario: Scenario, stations: Sequence[Station]) -> list[Scenario]:
    """Station 0 follows another rule each time, such as another window; the others stay."""
    return [_with_first(scenario, station) for station in stations]


def dynamics_regimes(scenario: Scenario, counts: Sequence[int]) -> list[Scenario]:
    """The number of stations varies: copies of station 1 (of station 0, where it is alone) beside station 0."""
    first, *others = scenario.stations
    return [replace(scenario, stations=[first, *[others[0] if others else first] * (n - 1)]) for n in counts]


def _with_first(scenario: Scenario, station: Station) -> Scenario:
    return replace(scenario, stations=[station, *scenario.stations[1:]])


# --- partitions: how much each client gets, and of which regime ----------------------------------------------


def dirichlet_mixtures(n_clients: int, n_regimes: int, concentration: float, rng: np.random.Generator) -> np.ndarray:
    """Each client's mixture of the regimes, rows ~ Dirichlet(concentration): (K, R), rows add up to 1.

    Small concentration: one regime a client; large: every client the same mixture.
    """
    _check("concentration", concentration, concentration > 0, "> 0")
    return rng.dirichlet(np.full(n_regimes, float(concentration)), n_clients)


def pathological_mixtures(
    n_clients: int, n_regimes: int, regimes_per_client: int, rng: np.random.Generator
) -> np.ndarray:
    """Each client has equal parts of a few regimes and nothing of the others: (K, R), rows add up to 1.

    Regimes are dealt in shuffled rounds, so that each is held by as many clients as any other, give or take one.
    """
    _check("regimes_per_client", regimes_per_client, 1 <= regimes_per_client <= n_regimes, f"from 1 to {n_regimes}")
    mixtures, held = np.zeros((n_clients, n_regimes)), np.zeros(n_regimes)
    for client in mixtures:
        chosen = np.lexsort((rng.random(n_regimes), held))[:regimes_per_client]  # the least held, ties by lot
        client[chosen] = 1.0 / regimes_per_client
        held[chosen] += 1
    return mixtures


def continuous_split(
    values: np.ndarray, n_clients: int, strictness: float, rng: np.random.Generator
) -> list[np.ndarray]:
    """Split B items among K clients along a continuous property: the indices of each.

    Items are ordered by strictness x standardised value + (1 - strictness) x normal noise and cut into equal
    parts: 0 deals at random, 1 gives each client a range of values of its own.
    """
    _check("strictness", strictness, 0 <= strictness <= 1, "from 0 to 1")
    spread = np.std(values)
    standard = (np.asarray(values, dtype=float) - np.mean(values)) / (spread if spread > 0 else 1.0)
    order = np.argsort(strictness * standard + (1 - strictness) * rng.standard_normal(standard.size), kind="stable")
    return [np.sort(part) for part in np.array_split(order, n_clients)]


def dirichlet_sizes(n_clients: int, total: int, concentration: float, rng: np.random.Generator) -> np.ndarray:
    """Quantity skew: how many of `total` transitions each client has, (K,), at least 1 each."""
    _check("concentration", concentration, concentration > 0, "> 0")
    _check("total", total, total >= n_clients, f"at least one a client, {n_clients}")
    return 1 + _rounded(rng.dirichlet(np.full(n_clients, float(concentration))), total - n_clients)


def draw_clients(
    logs: Sequence[Transitions], mixtures: np.ndarray, sizes: Sequence[int] | int, rng: np.random.Generator
) -> list[Transitions]:
    """K clients, each a draw without replacement from R logs: mixtures (K, R), sizes (K,) or one for all.

    No transition goes to two clients. `extras["regimes"]` says which log each came from.

    Raises
    ------
    DatasetError
        If a log is too short for what the clients take of it, or observations mean different things.
    """
    mixtures = np.asarray(mixtures, dtype=float)
    if mixtures.ndim != 2 or mixtures.shape[1] != len(logs):
        raise ValueError(f"mixtures must have shape (clients, {len(logs)}), one column a log; got {mixtures.shape}")
    if not (mixtures >= 0).all() or not np.allclose(mixtures.sum(1), 1):
        raise ValueError("mixtures must be >= 0 and each row must add up to 1")
    wanted = np.broadcast_to(np.asarray(sizes), len(mixtures))
    counts = np.array([_rounded(row, int(n)) for row, n in zip(mixtures, wanted, strict=True)])  # (K, R)
    if (short := np.flatnonzero(counts.sum(0) > [len(log) for log in logs])).size:
        r = int(short[0])
        raise DatasetError(
            f"log {r} has {len(logs[r])} transitions and the clients take {counts[:, r].sum()}; collect a longer one"
        )
    starts = np.vstack([np.zeros_like(counts[:1]), counts.cumsum(0)])  # (K + 1, R)
    orders = [rng.permutation(len(log)) for log in logs]
    return [
        concatenate_transitions(
            [_taken(log, orders[r][starts[k, r] : starts[k + 1, r]], r) for r, log in enumerate(logs)]
        )
        for k in range(len(mixtures))
    ]


def _taken(log: Transitions, chosen: np.ndarray, regime: int) -> Transitions:
    taken = log.take(chosen)
    return replace(taken, extras={**taken.extras, "regimes": np.full(len(chosen), regime, np.int16)})


def _rounded(shares: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers in proportion to `shares` that add up to `total`: largest remainders round up."""
    exact = shares / shares.sum() * total
    whole = np.floor(exact).astype(np.int64)
    whole[np.argsort(whole - exact, kind="stable")[: total - whole.sum()]] += 1
    return whole


def _check(name: str, value: float, holds: bool, rule: str) -> None:
    if not holds:
        raise ValueError(f"{name} must be {rule}; got {value!r}")


# --- measures: on one declared binning, in bits -----------------------------------------------------------

# d~ is about 1 / N, so its edges are powers of 4: below 1/64, 1/16, 1/4, and above.
DELAY_EDGES = 4.0 ** np.arange(-3, 0)
N_BINS = len(OUTCOMES) * 2 * (len(DELAY_EDGES) + 1) * 2  # c x previous action x d~ x (buffer over half full)


def bin_observations(observations: np.ndarray) -> np.ndarray:
    """(B, 7 or 8) observations of the channel -> (B,) bins from 0 to N_BINS - 1 = 63."""
    outcome = observations[:, :4].argmax(1)
    sent, d2lt, buffer = (observations[:, OBSERVATION.index(name)] for name in ("previous_action", "d2lt", "buffer"))
    delay = np.digitize(d2lt, DELAY_EDGES)
    return ((outcome * 2 + (sent > 0.5)) * (len(DELAY_EDGES) + 1) + delay) * 2 + (buffer > 0.5)


def count_cells(log: Transitions) -> np.ndarray:
    """How often a log visits each cell: (N_BINS, 2 actions, 4 outcomes) int64; visits to a bin are its sum."""
    if log.observation_names[: len(OBSERVATION)] != OBSERVATION or "outcomes" not in log.extras:
        raise DatasetError(f"cells are counted on logs of the channel, with {OBSERVATION} and extras/outcomes")
    shape = (N_BINS, 2, len(OUTCOMES))
    cells = (bin_observations(log.observations), log.actions.astype(int), log.extras["outcomes"].astype(int))
    return np.bincount(np.ravel_multi_index(cells, shape), minlength=int(np.prod(shape))).reshape(shape)


def entropy_bits(shares: np.ndarray) -> np.ndarray:
    """H(p) = - sum p log2 p along the last axis, 0 log 0 = 0: (..., bins) -> (...)."""
    return -(shares * np.log2(np.where(shares > 0, shares, 1.0))).sum(-1)


def generalised_js(counts: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Generalised Jensen-Shannon divergence of K distributions [bits]: H(sum_k w_k p_k) - sum_k w_k H(p_k).

    Counts (K, bins), normalised here; weights (K,) add up to 1 and are equal by default, so that quantity does
    not mix in. From 0 (all alike) to H(w) (disjoint). Source: Lin (1991), IEEE Trans. Inf. Theory 37(1), eq. (5.1).
    """
    p = _shares(counts)
    w = np.full(len(p), 1 / len(p)) if weights is None else np.asarray(weights, dtype=float)
    return float(entropy_bits(w @ p) - w @ entropy_bits(p))


def mean_pairwise_js(counts: np.ndarray) -> float:
    """Mean Jensen-Shannon divergence over all pairs of K >= 2 clients [bits], from 0 to 1; counts (K, bins)."""
    k = len(counts)
    _check("clients", k, k >= 2, "at least 2, to make a pair")
    return float(np.mean([generalised_js(counts[[i, j]]) for i in range(k) for j in range(i)]))


def visitation_entropy(counts: np.ndarray) -> np.ndarray:
    """H(p) / log2(bins): 0, one bin holds all, to 1, all are visited alike. Counts (..., bins) -> (...)."""
    return entropy_bits(_shares(counts)) / np.log2(counts.shape[-1])


def coverage(counts: np.ndarray, min_visits: int = 5) -> np.ndarray:
    """Share of the bins with at least `min_visits` visits, (..., bins) -> (...); compare logs of equal size."""
    return (counts >= min_visits).mean(-1)


class Skews(NamedTuple):
    """How K clients differ [bits]; the first three add up to `joint`."""

    covariate: float  # in what they observe: I(client; bin)
    behaviour: float  # in what they do there: I(client; action | bin)
    dynamics: float  # in what follows: I(client; outcome | bin, action)
    joint: float  # generalised JS divergence of (bin, action, outcome)
    quantity: float  # in how much they have: log2 K - H(n_k / n)


def skews(cells: np.ndarray) -> Skews:
    """The four skews of K clients from their cells, (K, bins, actions, outcomes), see `count_cells`.

    Clients weigh the same, whatever their sizes. By the chain rule of mutual information,
    JS(bin, action, outcome) = JS(bin) + sum_bin p(bin) JS(action | bin) + sum p(bin, action) JS(outcome | bin, action).
    Estimates from counts are too high by about (K - 1) x (visited cells) / (2 n ln 2) bits for n counts in all:
    compare at equal sizes.
    """
    k = len(cells)
    covariate = generalised_js(cells.sum((2, 3)))
    up_to_action = generalised_js(cells.sum(3).reshape(k, -1))
    joint = generalised_js(cells.reshape(k, -1))
    sizes = cells.sum((1, 2, 3))
    return Skews(
        covariate=covariate,
        behaviour=up_to_action - covariate,
        dynamics=joint - up_to_action,
        joint=joint,
        quantity=float(np.log2(k) - entropy_bits(sizes / sizes.sum())),
    )


def _shares(counts: np.ndarray) -> np.ndarray:
    """(..., bins) counts -> shares; DatasetError if a client has none."""
    totals = counts.sum(-1, keepdims=True)
    if (totals == 0).any():
        raise DatasetError("a client has no transitions, so nothing can be measured on its log")
    return counts / totals
