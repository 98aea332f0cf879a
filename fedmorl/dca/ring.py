"""The fast path: saturated DCF and CSMA/ECA stations, from one busy period to the next.

Idle contention slots are counted by one clock. A station waits in the bucket of the clock value at which
its counter reaches 0, so nothing is decremented and the next event is a count of trailing zeros in the
map of occupied buckets: the cost hardly depends on the number of stations. Of two equal stations only the
difference of the counters matters, and `run_pair` keeps just that. Same rules, same streams, same bits as
`kernels.run_events`, which finishes what is left to the slot asked for.

All arithmetic is unsigned: numba then indexes arrays without asking whether the index is negative.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from fedmorl.dca.compiled import compiled
from fedmorl.dca.histogram import bin_index_unsigned
from fedmorl.dca.scenario import Saturated, Scenario
from fedmorl.dca.state import COLLISION, ECA, SUCCESS
from fedmorl.dca.streams import next_word, step_back

MAX_RING_STATIONS = 64
_ZERO, _ONE, _TWO, _U6, _U8, _U32, _U63, _U64 = (np.uint64(k) for k in (0, 1, 2, 6, 8, 32, 63, 64))
_COUNT = np.uint32(1)
SPAN_MIN, SPAN_MAX, ECA_BACKOFF, RETRY_LIMIT = range(4)


@intrinsic
def _cttz(typingctx, x):
    def codegen(context, builder, signature, args):
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 0))

    return types.uint64(types.uint64), codegen


def trailing_zeros(x):
    """Number of trailing zero bits of a positive uint64."""
    return np.uint64((int(x) & -int(x)).bit_length() - 1)


@overload(trailing_zeros, inline="always")
def _trailing_zeros_jitted(x):
    return lambda x: _cttz(x)


def ring_size(scenario: Scenario) -> int:
    """Buckets needed: a power of two with room for the largest draw and a spare word of 64."""
    largest = max(max(s.cw_max, s.eca_backoff_slots or 0) for s in scenario.stations)
    return 1 << (largest + 64).bit_length()


def ring_fits(scenario: Scenario) -> bool:
    """Whether the ring can run this scenario: saturated rule-based stations, equal waits, no frame errors."""
    return (
        scenario.n_stations <= MAX_RING_STATIONS
        and scenario.eifs_extra_slots == 0
        and all(
            s.policy is None
            and s.aifs_slots == scenario.difs_slots
            and s.frame_error_rate == 0.0
            and scenario.station_traffic(k) == Saturated()
            for k, s in enumerate(scenario.stations)
        )
    )


def pair_fits(scenario: Scenario) -> bool:
    """Whether `run_pair` can: the ring fits, and there are two DCF stations with the same CWmin."""
    a, b = scenario.stations[0], scenario.stations[-1]
    plain = a.eca_backoff_slots is None and b.eca_backoff_slots is None
    return scenario.n_stations == 2 and plain and a.cw_min == b.cw_min and ring_fits(scenario)


@compiled
def run_ring(s, until, n_buckets):
    """From a contention slot, run every busy period whose DIFS ends by `until`; stop at the slot it opens.

    Real time is clock + lag: the clock counts idle contention slots (and, under `bianchi`, busy periods), the
    lag the rest. `page` is the word of the map of occupied buckets that holds the clock, kept in a register;
    its copy in memory may be stale.
    """
    ch, n = s.channel[0], np.uint64(s.stations.shape[0])
    stations, log, histogram = s.stations, s.log, s.access_histogram
    tx_slots, failure_slots, difs_slots = np.uint64(ch.tx_slots), np.uint64(ch.failure_slots), np.uint64(ch.difs_slots)
    limit, bianchi, n_log = np.uint64(max(until - ch.difs_slots, 0)), np.uint64(ch.bianchi), np.uint64(ch.log_length)
    buckets = np.zeros(n_buckets, np.uint64)  # the stations whose counter reaches 0 at each clock value
    occupied = np.zeros(n_buckets >> 6, np.uint64)
    ring_mask = np.uint64(n_buckets - 1)
    streams, hol, span, retries, fixed, collided = load_stations(stations)
    for i in range(n):
        put(buckets, occupied, ring_mask, np.uint64(stations[i].counter), _ONE << np.uint64(i))

    clock, lag, n_collisions = _ZERO, np.uint64(ch.t), _ZERO
    page_start, page = _ZERO, occupied[0]
    while True:
        while page == _ZERO:
            occupied[(page_start & ring_mask) >> _U6] = _ZERO
            page_start += _U64
            page = occupied[(page_start & ring_mask) >> _U6]
        at = page_start + trailing_zeros(page)
        members = buckets[at & ring_mask]
        alone = members & (members - _ONE) == _ZERO
        end_slot = at + lag + (tx_slots if alone else failure_slots)
        if end_slot > limit:
            break
        lag = end_slot + difs_slots - at - bianchi
        clock = at + bianchi
        page &= page - _ONE
        buckets[at & ring_mask] = _ZERO
        if alone:
            i = trailing_zeros(members)
            since = hol[i]
            hol[i] = end_slot
            histogram[i, bin_index_unsigned(end_slot - since)] += _COUNT
            span[i], retries[i] = fixed[i, SPAN_MIN], _ZERO
            log[n_log] = np.int64((end_slot << _U8) | i)
            n_log += _ONE
            expiry = clock + fixed[i, ECA_BACKOFF]
            if fixed[i, ECA_BACKOFF] == _ZERO:
                expiry += (next_word(streams, i) * fixed[i, SPAN_MIN]) >> _U32
            put(buckets, occupied, ring_mask, expiry, members)
            if expiry - page_start < _U64:
                page |= _ONE << (expiry & _U63)
        else:
            n_collisions += _ONE
            while members != _ZERO:
                i = trailing_zeros(members)
                fail(stations, i, hol, span, retries, fixed, collided, end_slot)
                expiry = clock + ((next_word(streams, i) * span[i]) >> _U32)
                put(buckets, occupied, ring_mask, expiry, _ONE << i)
                if expiry - page_start < _U64:
                    page |= _ONE << (expiry & _U63)
                members &= members - _ONE

    for distance in range(n_buckets):
        members = buckets[(clock + np.uint64(distance)) & ring_mask]
        while members != _ZERO:
            stations[trailing_zeros(members)].counter = distance
            members &= members - _ONE
    store_stations(stations, streams, hol, span, retries, collided)
    close_run(s, np.int64(clock + lag), np.int64(n_log), np.int64(n_collisions))


@compiled
def run_pair(s, until):
    """`run_ring` for two DCF stations with the same CWmin: one expires in `gap`, the other `rest` later.

    Who is next is arithmetic, not a branch (it would be a coin flip), and each station's next word is drawn
    ahead, so that nothing waits for the generator.
    """
    ch = s.channel[0]
    stations, log, histogram = s.stations, s.log, s.access_histogram
    tx_slots, failure_slots, difs_slots = np.uint64(ch.tx_slots), np.uint64(ch.failure_slots), np.uint64(ch.difs_slots)
    limit, bianchi, n_log = np.uint64(max(until - ch.difs_slots, 0)), np.uint64(ch.bianchi), np.uint64(ch.log_length)
    streams, hol, span, retries, fixed, collided = load_stations(stations)
    span_min = fixed[0, SPAN_MIN]
    counter0, counter1 = np.uint64(stations[0].counter), np.uint64(stations[1].counter)
    word0, word1 = next_word(streams, _ZERO), next_word(streams, _ONE)
    i = np.uint64(counter1 < counter0)
    gap = min(counter0, counter1)
    rest = max(counter0, counter1) - gap
    t, n_collisions = np.uint64(ch.t), _ZERO
    while True:
        if rest != _ZERO:
            end_slot = t + gap + tx_slots
            if end_slot > limit:
                break
            t = end_slot + difs_slots
            since = hol[i]
            hol[i] = end_slot
            histogram[i, bin_index_unsigned(end_slot - since)] += _COUNT
            span[i], retries[i] = span_min, _ZERO
            log[n_log] = np.int64((end_slot << _U8) | i)
            n_log += _ONE
            is1 = _ZERO - i  # all ones for station 1
            word = (word1 & is1) | (word0 & ~is1)
            following = next_word(streams, i)
            word0, word1 = (word0 & is1) | (following & ~is1), (word1 & ~is1) | (following & is1)
            other = rest - bianchi
            ahead = np.int64((word * span_min) >> _U32) - np.int64(other)
            same = ahead >> np.int64(63)  # -1: the same station again
            gap = other + np.uint64(ahead & same)
            rest = np.uint64((ahead ^ same) - same)
            i ^= np.uint64(same + np.int64(1))
        else:
            end_slot = t + gap + failure_slots
            if end_slot > limit:
                break
            t = end_slot + difs_slots
            n_collisions += _ONE
            fail(stations, _ZERO, hol, span, retries, fixed, collided, end_slot)
            fail(stations, _ONE, hol, span, retries, fixed, collided, end_slot)
            counter0, counter1 = (word0 * span[0]) >> _U32, (word1 * span[1]) >> _U32
            word0, word1 = next_word(streams, _ZERO), next_word(streams, _ONE)
            i = np.uint64(counter1 < counter0)
            gap = min(counter0, counter1)
            rest = max(counter0, counter1) - gap

    stations[i].counter = np.int64(gap)
    stations[_ONE - i].counter = np.int64(gap + rest)
    step_back(streams[0])
    step_back(streams[1])
    store_stations(stations, streams, hol, span, retries, collided)
    close_run(s, np.int64(t), np.int64(n_log), np.int64(n_collisions))


@compiled(inline="always")
def put(buckets, occupied, ring_mask, expiry, members):
    """File a set of stations under the clock value at which their counters reach 0."""
    place = expiry & ring_mask
    buckets[place] |= members
    occupied[place >> _U6] |= _ONE << (expiry & _U63)


@compiled(inline="always")
def fail(stations, i, hol, span, retries, fixed, collided, end_slot):
    """Rule 7, collision, of station i: count it, double its window or drop its packet."""
    collided[i] += _ONE
    retries[i] += _ONE
    span[i] = min(_TWO * span[i], fixed[i, SPAN_MAX])
    if retries[i] == fixed[i, RETRY_LIMIT]:
        u = stations[i]
        u.dropped += 1
        u.access_delay_sum -= np.int64(end_slot - hol[i])  # the packet's time at the head is no delivery's
        hol[i], span[i], retries[i] = end_slot, fixed[i, SPAN_MIN], _ZERO


@compiled
def load_stations(stations):
    """All stations as flat arrays: streams (N, 4), head-of-line instants, spans (CW + 1), retries, what is fixed
    (N, 4: least and largest span, ECA back-off or 0, retry limit or 0), and collisions counted from 0.
    """
    n = stations.shape[0]
    streams, fixed = np.empty((n, 4), np.uint64), np.empty((n, 4), np.uint64)
    hol, span, retries = np.empty(n, np.uint64), np.empty(n, np.uint64), np.empty(n, np.uint64)
    for i in range(n):
        u = stations[i]
        streams[i] = u.backoff_stream
        hol[i], span[i], retries[i] = np.uint64(u.hol), np.uint64(u.cw + 1), np.uint64(u.retries)
        fixed[i, SPAN_MIN], fixed[i, SPAN_MAX] = np.uint64(u.cw_min + 1), np.uint64(u.cw_max + 1)
        fixed[i, ECA_BACKOFF] = np.uint64(u.eca_backoff if u.access == ECA else 0)
        fixed[i, RETRY_LIMIT] = np.uint64(u.retry_limit)
    return streams, hol, span, retries, fixed, np.zeros(n, np.uint64)


@compiled
def store_stations(stations, streams, hol, span, retries, collided):
    """The inverse of `load_stations`; access delays telescope, so their sum is how far the head moved."""
    for i in range(stations.shape[0]):
        u = stations[i]
        u.backoff_stream[:] = streams[i]
        u.access_delay_sum += np.int64(hol[i]) - u.hol
        u.hol, u.cw, u.retries = np.int64(hol[i]), np.int64(span[i]) - 1, np.int64(retries[i])
        u.collisions += np.int64(collided[i])


@compiled
def close_run(s, t, log_length, n_collisions):
    """Count what the loop did not: slots by kind, successes, and who succeeded last."""
    ch = s.channel[0]
    n_successes = log_length - ch.log_length
    n_busy = n_successes + n_collisions
    ch.idle_slots += t - ch.t - n_successes * ch.tx_slots - n_collisions * ch.failure_slots - n_busy * ch.difs_slots
    ch.success_slots += n_successes * ch.tx_slots
    ch.collision_slots += n_collisions * ch.failure_slots
    ch.difs_count += n_busy * ch.difs_slots
    ch.n_successes += n_successes
    ch.n_collisions += n_collisions
    ch.reward_glob += n_successes - n_collisions
    if n_busy > 0:
        ended_well = n_successes > 0 and (s.log[log_length - 1] >> 8) + ch.difs_slots == t
        ch.outcome = SUCCESS if ended_well else COLLISION
    note_winners(s.stations, ch, s.log, log_length)
    ch.log_length, ch.t = log_length, t
    for i in range(s.stations.shape[0]):
        s.stations[i].successes = s.access_histogram[i].sum()
        s.stations[i].defer = 0 if n_busy > 0 else s.stations[i].defer


@compiled
def note_winners(stations, ch, log, log_length):
    """From the end of this run's log: each station's last success, the last winner, and the last other one."""
    missing = stations.shape[0]
    seen = np.zeros(stations.shape[0], np.bool_)
    k = log_length - 1
    if k >= ch.log_length:
        ch.winner, ch.last_winner_slot = log[k] & 255, log[k] >> 8
    while k >= ch.log_length and missing > 0:
        i = log[k] & 255
        if not seen[i]:
            seen[i] = True
            missing -= 1
            stations[i].last_success = log[k] >> 8
        k -= 1
    ch.last_success_sum = 0
    for i in range(stations.shape[0]):
        last_success = stations[i].last_success
        ch.last_success_sum += last_success
        if i != ch.winner and last_success > ch.other_winner_slot:
            ch.other_winner_slot = last_success
