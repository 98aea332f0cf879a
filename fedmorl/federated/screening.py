"""Which updates count: the checks of a round, in a fixed order; the first that fails is the reason.

A rejected update is a failure and is never mended: NaN stays NaN and goes nowhere.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedmorl.federated.records import ClientUpdate, ServerState, distance

REASONS = (
    "stale_round", "duplicate", "not_asked", "bad_keys", "bad_shape", "bad_dtype", "non_finite", "bad_n", "norm",
    "error", "died", "timeout",
)  # fmt: skip
NORM_FACTOR = 10.0  # of the median update norm; ours

MaxNorm = float | Literal["auto"] | None


@dataclass(frozen=True, kw_only=True)
class Screened:
    """What a round may use, and who failed why."""

    updates: tuple[ClientUpdate, ...]  # sorted by client id
    failures: dict[int, str]  # client -> one of REASONS
    details: dict[int, str]  # client -> what was wrong, one line
    median_norm: float | None  # of the updates that count


def screen(
    updates: Sequence[ClientUpdate],
    server: ServerState,
    asked: Sequence[int],
    round: int,
    max_norm: MaxNorm = None,
    last_median: float | None = None,
) -> Screened:
    """Sort the updates of a round into those that count and those that fail.

    The order is that of `REASONS`. A client of whom two updates of this round arrive is a `duplicate`, and neither
    counts: which came first is chance. A stale update fails, but does not spoil a fresh one of the same client.

    Parameters
    ----------
    max_norm : float, "auto" or None
        Largest |x_k - w| that counts. "auto" is 10 times `last_median`; without one (round 1, or nothing moved)
        10 times the median of this round's own updates.
    last_median : float, optional
        Median update norm of the last round that had updates.
    """
    fresh = Counter(update.client_id for update in updates if update.round == round)
    kept: list[tuple[float, ClientUpdate]] = []
    failures: dict[int, str] = {}
    details: dict[int, str] = {}
    for update in sorted(updates, key=lambda u: (u.client_id, u.round != round)):
        reason, detail = _first_fault(update, server, asked, round, fresh)
        if reason:
            failures.setdefault(update.client_id, reason)
            details.setdefault(update.client_id, detail)
        else:
            kept.append((distance(update.state, server.state), update))
    bound = norm_bound(max_norm, last_median, [norm for norm, _ in kept])
    for norm, update in kept:
        if norm > bound:
            failures[update.client_id] = "norm"
            details[update.client_id] = f"its update has the norm {norm:.4g}; at most {bound:.4g} counts"
    counted = [(norm, update) for norm, update in kept if norm <= bound]
    return Screened(
        updates=tuple(update for _, update in counted),
        failures=failures,
        details=details,
        median_norm=lower_median([norm for norm, _ in counted]),
    )


def norm_bound(max_norm: MaxNorm, last_median: float | None, norms: Sequence[float]) -> float:
    """The largest update norm that counts in a round."""
    if max_norm is None:
        return np.inf
    if max_norm != "auto":
        return max_norm
    return NORM_FACTOR * (last_median or lower_median(norms) or 0.0)


def lower_median(norms: Sequence[float]) -> float | None:
    """The median, of an even number the lower of the middle two: of two clients, one bad one cannot lift it."""
    return sorted(norms)[(len(norms) - 1) // 2] if norms else None


def _first_fault(
    update: ClientUpdate, server: ServerState, asked: Sequence[int], round: int, fresh: Counter
) -> tuple[str, str]:
    """(reason, detail) of the first check that fails; ("", "") if none does."""
    if update.round != round:
        return "stale_round", f"its update is of round {update.round}, not {round}"
    if fresh[update.client_id] > 1:
        return "duplicate", f"{fresh[update.client_id]} updates came under its id"
    if update.client_id not in asked:
        return "not_asked", "nobody asked it in this round"
    return _fault_of_arrays(update, server) or _fault_of_size(update)


def _fault_of_arrays(update: ClientUpdate, server: ServerState) -> tuple[str, str] | None:
    if set(update.state) != set(server.state):
        odd = sorted(map(str, set(update.state) ^ set(server.state)))
        return "bad_keys", f"the state's names differ from the server's in {', '.join(odd)}"
    pairs = [(name, update.state[name], server.state[name]) for name in sorted(server.state)]
    for name, value, ours in pairs:
        if isinstance(value, np.ndarray) and value.shape != ours.shape:
            return "bad_shape", f"{name} has the shape {value.shape}; the server's has {ours.shape}"
    for name, value, ours in pairs:
        if not isinstance(value, np.ndarray) or value.dtype != ours.dtype:
            kind = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
            return "bad_dtype", f"{name} is {kind}; the server's is {ours.dtype}"
    for name, value, _ in pairs:
        if not np.isfinite(value).all():
            return "non_finite", f"{name} holds NaN or infinity"
    return None


def _fault_of_size(update: ClientUpdate) -> tuple[str, str]:
    n = update.n
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1:
        return "bad_n", f"n must be an integer >= 1; got {n!r}"
    return "", ""
