"""The fast path: saturated DCF and CSMA/ECA stations on a bucket ring.

Idle contention slots are counted by one clock. A station waits in the bucket of the clock value at which
its counter reaches 0, so nothing is decremented and the next event is a count of trailing zeros in the
map of occupied buckets: the cost hardly depends on the number of stations. Same rules, same streams, same
bits as `kernels.run_events`.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from fedmorl.dca.compiled import compiled
from fedmorl.dca.histogram import bin_index
from fedmorl.dca.scenario import Saturated, Scenario
from fedmorl.dca.state import COLLISION, ECA, SUCCESS
from fedmorl.dca.streams import draw_backoff

MAX_RING_STATIONS = 64
_ZERO, _ONE, _U6, _U63 = np.uint64(0), np.uint64(1), np.uint64(6), np.uint64(63)


@intrinsic
def _cttz(typingctx, x):
    def codegen(context, builder, signature, args):
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 0))

    return types.uint64(types.uint64), codegen


def trailing_zeros(x):
    """Number of trailing zero bits of a positive integer."""
    return (int(x) & -int(x)).bit_length() - 1


@overload(trailing_zeros, inline="always")
def _trailing_zeros_jitted(x):
    return lambda x: np.int64(_cttz(np.uint64(x)))


def ring_size(scenario: Scenario) -> int:
    """Buckets needed: a power of two above the largest draw + 1, at least one 64-bit word."""
    largest = max(max(s.cw_max, s.eca_backoff_slots or 0) for s in scenario.stations)
    return max(64, 1 << (largest + 2 - 1).bit_length())


def ring_fits(scenario: Scenario) -> bool:
    """Whether the ring can run this scenario: saturated rule-based stations, equal waits, no frame errors."""
    return (
        scenario.n_stations <= MAX_RING_STATIONS
        and scenario.eifs_extra_slots == 0
        and all(
            s.policy is None
            and s.aifs_slots == scenario.difs_slots
            and s.frame_error_rate == 0.0
            and isinstance(scenario.station_traffic(k), Saturated)
            for k, s in enumerate(scenario.stations)
        )
    )


@compiled
def run_ring(s, until, n_buckets):
    """From a contention slot, run every busy period whose DIFS ends by `until`; stop at the slot it opens.

    The few slots left to `until` are `run_events`' to finish.
    """
    ch = s.channel[0]
    n = s.stations.shape[0]
    buckets = np.zeros(n_buckets, np.uint64)  # stations whose counter reaches 0 at this clock value
    occupied = np.zeros(n_buckets >> 6, np.uint64)
    bucket_mask, word_mask = np.int64(n_buckets - 1), np.int64((n_buckets >> 6) - 1)
    streams = np.empty((n, 4), np.uint64)
    expiry, cw, retries = np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n, np.int64)
    hol, last_success = np.empty(n, np.int64), np.empty(n, np.int64)
    successes, collisions, delay_sum = np.zeros(n, np.int64), np.zeros(n, np.int64), np.zeros(n, np.int64)
    cw_min, eca = np.empty(n, np.int64), np.empty(n, np.int64)
    for i in range(n):
        u = s.stations[i]
        expiry[i], cw[i], retries[i], hol[i], last_success[i] = (
            u.counter,
            u.cw,
            u.retries,
            u.hol,
            u.last_success,
        )
        streams[i] = u.backoff_stream
        cw_min[i] = u.cw_min
        eca[i] = u.eca_backoff if u.access == ECA else 0
        put(buckets, occupied, expiry[i] & bucket_mask, _ONE << np.uint64(i))

    log, histogram, log_length = s.log, s.access_histogram, ch.log_length
    tx_slots, failure_slots, difs_slots, bianchi = ch.tx_slots, ch.failure_slots, ch.difs_slots, ch.bianchi
    t, clock, n_successes, n_collisions = ch.t, np.int64(0), np.int64(0), np.int64(0)
    last_kind, winner = np.int64(-1), np.int64(-1)
    while True:
        # the next occupied bucket at or after the clock
        position = clock & bucket_mask
        word = position >> 6
        ahead = occupied[word] >> np.uint64(position & 63)
        if ahead != _ZERO:
            gap = trailing_zeros(ahead)
        else:
            gap = 64 - (position & 63)
            word = (word + 1) & word_mask
            while occupied[word] == _ZERO:
                gap += 64
                word = (word + 1) & word_mask
            gap += trailing_zeros(occupied[word])
        position = (position + gap) & bucket_mask
        members = buckets[position]
        alone = (members & (members - _ONE)) == _ZERO
        end_slot = t + gap + (tx_slots if alone else failure_slots)
        if end_slot + difs_slots > until:
            break
        buckets[position] = _ZERO
        occupied[position >> 6] ^= _ONE << np.uint64(position & 63)
        clock += gap + bianchi
        t = end_slot + difs_slots
        if alone:
            i = trailing_zeros(members)
            access_delay = end_slot - hol[i]
            delay_sum[i] += access_delay
            histogram[i, bin_index(access_delay)] += np.uint32(1)
            hol[i] = end_slot
            last_success[i] = end_slot
            successes[i] += 1
            n_successes += 1
            log[log_length] = (end_slot << 8) | i
            log_length += 1
            retries[i], cw[i] = 0, cw_min[i]
            counter = eca[i] if eca[i] > 0 else draw_backoff(streams[i], cw[i])
            expiry[i] = clock + counter
            put(buckets, occupied, expiry[i] & bucket_mask, members)
            last_kind, winner = SUCCESS, i
        else:
            n_collisions += 1
            last_kind = COLLISION
            while members != _ZERO:
                i = trailing_zeros(members)
                collisions[i] += 1
                retries[i] += 1
                u = s.stations[i]
                if u.retry_limit > 0 and retries[i] >= u.retry_limit:
                    u.dropped += 1
                    retries[i], hol[i], cw[i] = 0, end_slot, cw_min[i]
                else:
                    cw[i] = min(2 * cw[i] + 1, u.cw_max)
                expiry[i] = clock + draw_backoff(streams[i], cw[i])
                put(buckets, occupied, expiry[i] & bucket_mask, _ONE << np.uint64(i))
                members &= members - _ONE

    n_busy = n_successes + n_collisions
    ch.idle_slots += clock - bianchi * n_busy
    ch.success_slots += n_successes * tx_slots
    ch.collision_slots += n_collisions * failure_slots
    ch.difs_count += n_busy * difs_slots
    ch.n_successes += n_successes
    ch.n_collisions += n_collisions
    ch.reward_glob += n_successes - n_collisions
    ch.log_length, ch.t = log_length, t
    for i in range(n):
        u = s.stations[i]
        u.counter, u.cw, u.retries, u.hol, u.last_success = (
            expiry[i] - clock,
            cw[i],
            retries[i],
            hol[i],
            last_success[i],
        )
        u.successes += successes[i]
        u.collisions += collisions[i]
        u.access_delay_sum += delay_sum[i]
        u.backoff_stream[:] = streams[i]
    note_last_event(s, last_kind, winner)


@compiled(inline="always")
def put(buckets, occupied, position, members):
    buckets[position] |= members
    occupied[position >> 6] |= _ONE << np.uint64(position & 63)


@compiled
def note_last_event(s, last_kind, winner):
    """What stations would observe next: the last outcome, and who succeeded when."""
    ch = s.channel[0]
    if last_kind >= 0:
        ch.outcome = last_kind
        for i in range(s.stations.shape[0]):
            s.stations[i].defer = 0
    if winner >= 0:
        ch.winner, ch.last_winner_slot = winner, s.stations[winner].last_success
    ch.last_success_sum = 0
    for i in range(s.stations.shape[0]):
        last_success = s.stations[i].last_success
        ch.last_success_sum += last_success
        if i != ch.winner and last_success > ch.other_winner_slot:
            ch.other_winner_slot = last_success
