"""Who won the channel when: Jain's index over blocks and windows, and capture, from the success log.

The log holds end_slot << 8 | station, one int64 a success, in order.
"""

import numpy as np

from fedmorl.dca.compiled import compiled

_PACKED_STATIONS = 4
_LANE = np.uint64(65_535)  # what a 16-bit counter holds


@compiled(inline="always")
def count_winners(log, start, stop, counts):
    """Successes of each station in log[start:stop], into `counts` (N,) int64; all bounds uint64."""
    counts[:] = 0
    if counts.size > _PACKED_STATIONS:
        for k in range(start, stop):
            counts[np.uint64(log[k] & 255)] += 1
        return
    while start < stop:  # four 16-bit counters in one word: the loop becomes vectors
        upto, packed = min(stop, start + _LANE), np.int64(0)
        for k in range(start, upto):
            packed += np.int64(1) << ((log[k] & 3) << 4)
        for i in range(counts.size):
            counts[i] += (packed >> (16 * i)) & 0xFFFF
        start = upto


@compiled(inline="always")
def jain_of_counts(counts):
    """Jain's index of counts (N,); NaN if all are 0."""
    total, squares = 0.0, 0.0
    for i in range(counts.size):
        total += counts[i]
        squares += np.float64(counts[i]) * counts[i]
    return total * total / (counts.size * squares) if squares > 0.0 else np.nan


@compiled
def mean_jain_of_blocks(log, n_stations, block):
    """Mean Jain's index over successive full blocks of `block` successes; NaN if there is none."""
    counts, total, n_blocks = np.zeros(n_stations, np.int64), 0.0, log.size // block
    for b in range(n_blocks):
        count_winners(log, np.uint64(b * block), np.uint64((b + 1) * block), counts)
        total += jain_of_counts(counts)
    return total / n_blocks if n_blocks > 0 else np.nan


@compiled
def mean_jain_of_windows(log, n_stations, opened, slots, n_windows, busy_slots):
    """Mean Jain's index over `n_windows` windows of `slots` slots from slot `opened`; empty ones are left out.

    Two successes end at least `busy_slots` apart, which bounds the search for a window's end.
    """
    counts, total, n_counted, start = np.zeros(n_stations, np.int64), 0.0, 0, 0
    for window in range(n_windows):
        most = min(log.size, start + slots // busy_slots + 2)
        stop = start + np.searchsorted(log[start:most], (opened + (window + 1) * slots + 1) << 8)
        if stop > start:
            count_winners(log, np.uint64(start), np.uint64(stop), counts)
            total += jain_of_counts(counts)
            n_counted += 1
        start = stop
    return total / n_counted if n_counted > 0 else np.nan


@compiled
def count_captures(log):
    """How many successes follow a success of the same station."""
    same = 0
    for k in range(1, log.size):
        same += np.int64(((log[k] ^ log[k - 1]) & 255) == 0)
    return same
