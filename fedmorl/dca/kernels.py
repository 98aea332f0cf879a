"""The channel's rules, compiled.

`run_slots` steps one slot at a time and reads like the rules; `run_events` jumps from one event to the
next; `run_ring` does the same for saturated rule-based stations with a bucket ring. All three change the
same `State` and give the same bits. "Rule k" is the numbering of the book's page on the rules.

The first draw of a station at slot 0 is rule 3's; `start` makes it.
"""

import numpy as np

from fedmorl.dca.compiled import compiled
from fedmorl.dca.histogram import bin_index
from fedmorl.dca.policy import AVERAGE_PERIODS, COUNT_LIMIT, COUNT_SCALE, HEARD_SUCCESSES
from fedmorl.dca.state import (
    AGENT,
    BUSY,
    COLLISION,
    CONTENTION,
    DIFS,
    DRAW,
    ECA,
    ERROR,
    IDLE,
    POISSON,
    SATURATED,
    SUCCESS,
)
from fedmorl.dca.streams import draw_backoff, draw_exponential, draw_uniform

REACHED, DECIDE, TRACE_FULL = range(3)  # why a kernel returned
ONE = 1 << 16  # 1.0 of the averages that a listening station keeps, in whole numbers


@compiled
def start(s):
    """Rule 3: at slot 0 every saturated station that is present has a head-of-line packet and draws its counter."""
    for i in range(s.stations.shape[0]):
        if s.stations[i].traffic == SATURATED and s.stations[i].present == 1:
            activate(s.stations[i], i, s.channel[0], s.trace, 0)


@compiled
def add_trace(u, i, ch, trace, slot, end_slot, event, dropped):
    if ch.tracing == 0:
        return
    row = trace[ch.trace_length]
    row.slot, row.end_slot, row.station, row.event = slot, end_slot, i, event
    row.cw, row.counter, row.retries, row.dropped = u.cw, u.counter, u.retries, dropped
    ch.trace_length += 1


@compiled
def activate(u, i, ch, trace, boundary):
    """Rule 4: an empty station gets a packet, visible from `boundary`, and draws its counter."""
    u.active, u.hol, u.retries = 1, boundary, 0
    if u.access != AGENT:
        u.counter = draw_backoff(u.backoff_stream, u.cw)
    add_trace(u, i, ch, trace, boundary, boundary, DRAW, 0)


@compiled
def add_queue_area(u, window_start, instant):
    """Integrate the FIFO length up to `instant` [packet slots]."""
    now = max(instant, np.float64(window_start))
    u.queue_area += u.queue_len * (now - u.queue_area_since)
    u.queue_area_since = now


@compiled
def first_arrival(stations):
    """The earliest arrival instant still to be taken [slots, real]; infinite under saturation."""
    earliest = np.inf
    for i in range(stations.shape[0]):
        earliest = min(earliest, stations[i].next_arrival)
    return earliest


@compiled
def take_arrivals(stations, ch, queue, trace, before):
    """Rule 4: every arrival with instant < `before`, station by station."""
    for i in range(stations.shape[0]):
        u = stations[i]
        if u.traffic == SATURATED:
            if u.next_arrival < before:
                join(u, i, ch, trace)
            continue
        while u.next_arrival < before:
            instant = u.next_arrival
            u.arrivals += 1
            if u.queue_len == ch.buffer:
                u.blocked += 1
            else:
                add_queue_area(u, ch.window_start, instant)
                queue[i, (u.queue_head + u.queue_len) % ch.buffer] = instant
                u.queue_len += 1
                if u.queue_len == 1:
                    activate(u, i, ch, trace, np.int64(np.floor(instant)) + 1)
            if u.traffic == POISSON:
                u.next_arrival = instant + draw_exponential(u.arrival_stream, u.rate)
            else:
                u.next_arrival = instant + 1.0 / u.rate


@compiled
def join(u, i, ch, trace):
    """Rule 4: a saturated station that was not there from the start comes in."""
    boundary = np.int64(np.floor(u.next_arrival)) + 1
    u.next_arrival, u.present = np.inf, 1
    activate(u, i, ch, trace, boundary)


@compiled
def pop_packet(u, ch, packets, access_counts, delay_counts, end_slot, delivered):
    """The head-of-line packet leaves at boundary `end_slot`; the next one becomes head of line."""
    if delivered:
        access_delay = end_slot - u.hol
        u.access_delay_sum += access_delay
        access_counts[bin_index(access_delay)] += np.uint32(1)
    u.hol, u.retries, u.cw = end_slot, 0, u.cw_min
    if u.traffic == SATURATED:
        u.active = np.int64(end_slot < u.stop_slot)
        return
    if delivered:
        delay = end_slot - packets[u.queue_head]
        u.delay_sum += delay
        delay_counts[bin_index(np.int64(delay))] += np.uint32(1)
    add_queue_area(u, ch.window_start, np.float64(end_slot))
    u.queue_head = (u.queue_head + 1) % ch.buffer
    u.queue_len -= 1
    if u.queue_len == 0:
        u.active = 0


@compiled
def end_success(u, i, ch, log, end_slot):
    """Rule 7, success, once the packet is gone."""
    u.successes += 1
    ch.last_success_sum += end_slot - u.last_success
    u.last_success = end_slot
    if ch.winner != i:
        ch.other_winner_slot, ch.winner = ch.last_winner_slot, i
    ch.last_winner_slot = end_slot
    if ch.logging == 1:
        log[ch.log_length] = (end_slot << 8) | i
        ch.log_length += 1
    if u.active == 1 and u.access == ECA:
        u.counter = u.eca_backoff
    elif u.active == 1 and u.access != AGENT:
        u.counter = draw_backoff(u.backoff_stream, u.cw)


@compiled
def count_failure(u, kind):
    """Rule 7, collision or frame error: count the attempt; True if the packet is to be dropped."""
    u.retries += 1
    u.collisions += np.int64(kind == COLLISION)
    u.errors += np.int64(kind == ERROR)
    dropped = u.retry_limit > 0 and u.retries >= u.retry_limit
    u.dropped += np.int64(dropped)
    return dropped


@compiled
def end_failure(u, dropped):
    """Rule 7, collision, once a dropped packet is gone; a frame error is handled alike by its sender."""
    if not dropped:
        u.cw = min(2 * u.cw + 1, u.cw_max)
    if u.active == 1 and u.access != AGENT:
        u.counter = draw_backoff(u.backoff_stream, u.cw)


@compiled
def turns_ahead(last_heard, newest, k):
    """How many stations heard within the last `HEARD_SUCCESSES` have waited longer than k since their success."""
    n_ahead = 0
    for j in range(last_heard.shape[0]):
        n_ahead += np.int64(max(newest - HEARD_SUCCESSES, 0) < last_heard[j] < last_heard[k])
    return n_ahead


@compiled
def moving_average(average, event):
    """Rule 16: one step of an exponential average in 2^-16, in whole numbers."""
    return average + (ONE * np.int64(event) - average) // AVERAGE_PERIODS


@compiled
def listen(stations, ch, heard):
    """Rule 16: what every listening station learns from the busy period that ends now."""
    ch.contention_start = ch.t + ch.difs_slots
    for i in range(stations.shape[0]):
        u = stations[i]
        if u.listens == 1 and u.present == 1:
            u.collision_average = moving_average(u.collision_average, ch.kind != SUCCESS)
            if ch.kind == SUCCESS:
                hear_success(u, i, ch.winner, heard[i])


@compiled
def hear_success(u, i, winner, last_heard):
    """Rule 16: remember whose success it was, unless the address is lost; the own one never is."""
    is_lost = winner != i and u.overhearing_loss > 0.0 and draw_uniform(u.hearing_stream) < u.overhearing_loss
    if not is_lost:
        u.out_of_turn = np.int64(turns_ahead(last_heard, u.heard_successes, winner) > 0)
        u.out_of_turn_average = moving_average(u.out_of_turn_average, u.out_of_turn)
    u.heard_successes += 1
    if not is_lost:
        last_heard[winner] = u.heard_successes
    u.rank = turns_ahead(last_heard, u.heard_successes, i)
    u.others_heard = 0
    for j in range(last_heard.shape[0]):
        u.others_heard += np.int64(j != i and last_heard[j] > max(u.heard_successes - HEARD_SUCCESSES, 0))


@compiled
def end_busy(stations, ch, queue, heard, access_histogram, delay_histogram, log, trace):
    """Rules 7 and 8 at the boundary that ends a busy period: arrivals, outcomes, deferrals, DIFS."""
    end_slot, kind = ch.t, ch.kind
    start_slot = end_slot - (ch.failure_slots if kind == COLLISION else ch.tx_slots)
    if ch.has_arrivals == 1 and first_arrival(stations) < end_slot:
        take_arrivals(stations, ch, queue, trace, end_slot)
    for i in range(stations.shape[0]):
        u = stations[i]
        u.defer = u.aifs_extra
        if u.sending == 0:
            u.defer += ch.eifs_extra if kind != SUCCESS else 0
            continue
        u.sending = 0
        dropped = kind != SUCCESS and count_failure(u, kind)
        if kind == SUCCESS or dropped:
            pop_packet(u, ch, queue[i], access_histogram[i], delay_histogram[i], end_slot, not dropped)
        if kind == SUCCESS:
            end_success(u, i, ch, log, end_slot)
        else:
            end_failure(u, dropped)
        add_trace(u, i, ch, trace, start_slot, end_slot, kind, np.int64(dropped))
    if kind == SUCCESS:
        ch.n_successes += 1
        ch.reward_glob += 1
    elif kind == COLLISION:
        ch.n_collisions += 1
        ch.reward_glob -= 1
    else:
        ch.n_errors += 1
    ch.outcome = SUCCESS if kind == SUCCESS else COLLISION  # a frame error is heard as a collision
    if ch.listening == 1:
        listen(stations, ch, heard)
    ch.remaining = ch.difs_slots
    ch.phase = DIFS if ch.difs_slots > 0 else CONTENTION


@compiled
def begin_busy(stations, ch):
    """Rule 6: the marked stations start to send; under `bianchi` every other counter falls by one."""
    ch.kind = SUCCESS if ch.n_sending == 1 else COLLISION
    for i in range(stations.shape[0]):
        u = stations[i]
        if u.sending == 1:
            if ch.n_sending == 1 and u.frame_error_rate > 0.0:
                if draw_uniform(u.channel_stream) < u.frame_error_rate:
                    ch.kind = ERROR
        elif ch.bianchi == 1 and u.active == 1 and u.access != AGENT:
            u.counter -= 1
    ch.remaining = ch.failure_slots if ch.kind == COLLISION else ch.tx_slots
    ch.phase = BUSY


@compiled
def pass_busy_slots(ch, n_slots):
    """Count `n_slots` slots of the current busy period."""
    if ch.kind == SUCCESS:
        ch.success_slots += n_slots
    elif ch.kind == COLLISION:
        ch.collision_slots += n_slots
    else:
        ch.error_slots += n_slots
    ch.t += n_slots
    ch.remaining -= n_slots


@compiled
def pass_difs_slots(ch, n_slots):
    """Count `n_slots` slots of DIFS; contention resumes when none is left."""
    ch.difs_count += n_slots
    ch.t += n_slots
    ch.remaining -= n_slots
    if ch.remaining == 0:
        ch.phase = CONTENTION


@compiled
def observe(u, i, ch, n_stations):
    """Fill `u.observation` at the current contention slot: FedMORL's observation and own retries."""
    row = u.observation
    row[:] = 0.0
    if ch.outcome == SUCCESS and ch.winner == i:
        row[3] = 1.0  # ACK
    else:
        row[ch.outcome] = 1.0  # IDLE, another's SUCCESS, COLLISION
    row[4] = u.previous_action
    own = np.float64(ch.t - u.last_success)
    row[5] = own / (reference_d2lt(i, ch, n_stations, own) + 1e-8)
    row[6] = 1.0 if u.traffic == SATURATED else u.queue_len / ch.buffer
    row[7] = min(u.retries, 7) / 7.0


@compiled
def reference_d2lt(i, ch, n_stations, own):
    """What the own D2LT is divided by: everybody's sum, or own plus the last overheard success's."""
    if ch.d2lt_local == 0:
        return np.float64(n_stations * ch.t - ch.last_success_sum)
    other = ch.other_winner_slot if ch.winner == i else ch.last_winner_slot
    return own + np.float64(ch.t - other)


@compiled
def observe_listening(u, i, ch, last_heard):
    """Rule 16: the rest of `u.observation`, what the station has heard; counts as min(count, 64) / 8."""
    row = u.observation
    since_own = u.heard_successes - last_heard[i]
    row[8] = min(u.rank, COUNT_LIMIT) / COUNT_SCALE
    row[9] = min(ch.t - ch.contention_start, COUNT_LIMIT) / COUNT_SCALE
    row[10] = min(since_own, COUNT_LIMIT) / COUNT_SCALE
    row[11] = min(u.others_heard, COUNT_LIMIT) / COUNT_SCALE
    row[12] = 1.0 if since_own == 0 and u.heard_successes > 0 else 0.0
    row[13] = u.collision_average / ONE
    row[14] = u.out_of_turn
    row[15] = u.out_of_turn_average / ONE


@compiled(fastmath=True)
def transmit_logit(observation, policy, sizes, weights, scratch):
    """logit(transmit) - logit(defer) of a packed ReLU network; `scratch` holds two layers."""
    n_in, offset, here = sizes[policy, 1], 0, 0
    for j in range(n_in):
        scratch[0, j] = observation[j]
    for layer in range(sizes[policy, 0] - 1):
        n_out, there = sizes[policy, 2 + layer], 1 - here
        if layer == 0 and n_in == 8:
            first_layer(observation, policy, weights, scratch, n_out)
        elif layer == 0:
            first_layer_listening(observation, policy, weights, scratch, n_out)
        else:
            for k in range(n_out):
                scratch[there, k] = weights[policy, offset + n_in * n_out + k]
            for j in range(n_in):
                x = scratch[here, j]
                if x != 0.0:
                    for k in range(n_out):
                        scratch[there, k] += x * weights[policy, offset + j * n_out + k]
            for k in range(n_out):
                scratch[there, k] = max(scratch[there, k], np.float32(0.0))
        offset += (n_in + 1) * n_out
        n_in, here = n_out, there
    logit = weights[policy, offset + n_in]
    for j in range(n_in):
        logit += scratch[here, j] * weights[policy, offset + j]
    return logit


@compiled(fastmath=True)
def first_layer(observation, policy, weights, scratch, n):
    """ReLU(observation @ W + b) into scratch[1]: eight inputs by name, so that the loop over units is vectors."""
    x0, x1, x2, x3 = observation[0], observation[1], observation[2], observation[3]
    x4, x5, x6, x7 = observation[4], observation[5], observation[6], observation[7]
    w = policy
    for k in range(n):
        unit = (
            weights[w, 8 * n + k]
            + x0 * weights[w, k] + x1 * weights[w, n + k]
            + x2 * weights[w, 2 * n + k] + x3 * weights[w, 3 * n + k]
            + x4 * weights[w, 4 * n + k] + x5 * weights[w, 5 * n + k]
            + x6 * weights[w, 6 * n + k] + x7 * weights[w, 7 * n + k]
        )  # fmt: skip
        scratch[1, k] = max(unit, np.float32(0.0))


@compiled(fastmath=True)
def first_layer_listening(observation, policy, weights, scratch, n):
    """`first_layer` of all sixteen inputs."""
    x0, x1, x2, x3 = observation[0], observation[1], observation[2], observation[3]
    x4, x5, x6, x7 = observation[4], observation[5], observation[6], observation[7]
    y0, y1, y2, y3 = observation[8], observation[9], observation[10], observation[11]
    y4, y5, y6, y7 = observation[12], observation[13], observation[14], observation[15]
    w = policy
    for k in range(n):
        unit = (
            weights[w, 16 * n + k]
            + x0 * weights[w, k] + x1 * weights[w, n + k]
            + x2 * weights[w, 2 * n + k] + x3 * weights[w, 3 * n + k]
            + x4 * weights[w, 4 * n + k] + x5 * weights[w, 5 * n + k]
            + x6 * weights[w, 6 * n + k] + x7 * weights[w, 7 * n + k]
            + y0 * weights[w, 8 * n + k] + y1 * weights[w, 9 * n + k]
            + y2 * weights[w, 10 * n + k] + y3 * weights[w, 11 * n + k]
            + y4 * weights[w, 12 * n + k] + y5 * weights[w, 13 * n + k]
            + y6 * weights[w, 14 * n + k] + y7 * weights[w, 15 * n + k]
        )  # fmt: skip
        scratch[1, k] = max(unit, np.float32(0.0))


@compiled
def mark_deciders(stations):
    """Rule 11: mark the stations whose policy may decide in this slot: (all of them, those outside)."""
    n_deciding, n_outside = 0, 0
    for i in range(stations.shape[0]):
        u = stations[i]
        u.may_decide = np.int64(u.access == AGENT and u.active == 1 and u.defer == 0)
        n_deciding += u.may_decide
        n_outside += np.int64(u.may_decide == 1 and u.policy < 0)
    return n_deciding, n_outside


@compiled
def decide(stations, ch, heard, sizes, weights, scratch):
    """Rule 11: every in-kernel policy that may decide draws its action from the same snapshot."""
    n_stations = stations.shape[0]
    for i in range(n_stations):
        u = stations[i]
        if u.may_decide == 1:
            if u.policy >= 0:
                observe(u, i, ch, n_stations)
                if u.listens == 1:
                    observe_listening(u, i, ch, heard[i])
                logit = transmit_logit(u.observation, u.policy, sizes, weights, scratch)
                u.action = np.int64(draw_uniform(u.policy_stream) < 1.0 / (1.0 + np.exp(-np.float64(logit))))
                ch.decisions += 1
            u.previous_action = u.action


@compiled
def mark_senders(stations, ch):
    """Rule 5: the set K of stations that send in this contention slot; its size."""
    ch.n_sending = 0
    for i in range(stations.shape[0]):
        u = stations[i]
        if u.active == 1 and u.defer == 0:
            u.sending = np.int64(u.action == 1 if u.access == AGENT else u.counter == 0)
            ch.n_sending += u.sending
        u.action = 0
    return ch.n_sending


@compiled
def observe_outside(stations, ch):
    """Observations for the policies that live outside the kernel."""
    for i in range(stations.shape[0]):
        if stations[i].may_decide == 1 and stations[i].policy < 0:
            observe(stations[i], i, ch, stations.shape[0])


@compiled
def pass_idle_slots(stations, ch, n_slots):
    """Rule 5, K empty: deferrals fall first, then the counters of active stations."""
    for i in range(stations.shape[0]):
        u = stations[i]
        deferred = min(u.defer, n_slots)
        u.defer -= deferred
        if u.active == 1 and u.access != AGENT:
            u.counter -= n_slots - deferred
    ch.idle_slots += n_slots
    ch.t += n_slots
    ch.outcome = IDLE


@compiled
def slots_to_next_event(stations, t, until):
    """Rule 13: how far every station agrees to skip from an idle contention slot."""
    skip = until - t
    for i in range(stations.shape[0]):
        u = stations[i]
        if u.active == 0:
            if u.next_arrival < np.float64(until):
                skip = min(skip, np.int64(np.floor(u.next_arrival)) + 1 - t)
        elif u.access == AGENT:
            skip = min(skip, u.defer)  # > 0, since nobody decides in this slot
        else:
            skip = min(skip, u.defer + u.counter)
    return skip


@compiled
def open_contention(stations, ch, queue, heard, trace, sizes, weights, scratch):
    """Arrivals and decisions at the current contention slot; DECIDE if an outside policy must answer first."""
    if ch.tracing == 1 and ch.trace_length + 2 * stations.shape[0] > trace.shape[0]:
        return TRACE_FULL
    if ch.has_arrivals == 1 and first_arrival(stations) < ch.t:
        take_arrivals(stations, ch, queue, trace, ch.t)
    ch.n_deciding, n_outside = mark_deciders(stations)
    if n_outside > 0 and ch.answered == 0:
        observe_outside(stations, ch)
        return DECIDE
    ch.answered = 0
    if ch.n_deciding > 0:
        decide(stations, ch, heard, sizes, weights, scratch)
    return REACHED


@compiled
def run_slots(s, until):
    """Run to slot `until`, one slot at a time; returns why it stopped: REACHED, DECIDE or TRACE_FULL."""
    stations, queue, heard, log, trace = s.stations, s.queue, s.heard, s.log, s.trace
    access_histogram, delay_histogram = s.access_histogram, s.delay_histogram
    sizes, weights, scratch = s.sizes, s.weights, s.scratch
    ch = s.channel[0]
    while ch.t < until:
        if ch.phase == BUSY:
            pass_busy_slots(ch, 1)
            if ch.remaining == 0:
                end_busy(stations, ch, queue, heard, access_histogram, delay_histogram, log, trace)
        elif ch.phase == DIFS:
            pass_difs_slots(ch, 1)
        else:
            stopped = open_contention(stations, ch, queue, heard, trace, sizes, weights, scratch)
            if stopped != REACHED:
                return stopped
            if mark_senders(stations, ch) > 0:
                begin_busy(stations, ch)
            else:
                pass_idle_slots(stations, ch, 1)
    return REACHED


@compiled
def advance(stations, ch, queue, heard, access_histogram, delay_histogram, log, trace, sizes, weights, scratch, until):
    """`run_events` on the arrays of one channel."""
    while ch.t < until:
        if ch.phase == BUSY:
            pass_busy_slots(ch, min(ch.remaining, until - ch.t))
            if ch.remaining == 0:
                end_busy(stations, ch, queue, heard, access_histogram, delay_histogram, log, trace)
        elif ch.phase == DIFS:
            pass_difs_slots(ch, min(ch.remaining, until - ch.t))
        else:
            stopped = open_contention(stations, ch, queue, heard, trace, sizes, weights, scratch)
            if stopped != REACHED:
                return stopped
            if mark_senders(stations, ch) > 0:
                begin_busy(stations, ch)
            else:
                n_slots = 1 if ch.n_deciding > 0 else slots_to_next_event(stations, ch.t, until)
                pass_idle_slots(stations, ch, n_slots)
    return REACHED


@compiled
def run_events(s, until):
    """Run to slot `until` from event to event; returns why it stopped: REACHED, DECIDE or TRACE_FULL."""
    return advance(
        s.stations, s.channel[0], s.queue, s.heard, s.access_histogram, s.delay_histogram, s.log, s.trace,
        s.sizes, s.weights, s.scratch, until,
    )  # fmt: skip


@compiled
def settle(s):
    """Take the arrivals up to the current slot (rule 12), without moving time."""
    take_arrivals(s.stations, s.channel[0], s.queue, s.trace, s.channel[0].t)
    for i in range(s.stations.shape[0]):
        add_queue_area(s.stations[i], s.channel[0].window_start, np.float64(s.channel[0].t))
