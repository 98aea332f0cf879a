"""The decisions of every station as rows: the compiled half of the offline logs.

The channel moves by the kernels of `fedmorl.dca.kernels`, bit for bit; here each station's decision slots (rule 11)
are written down on the way. A rule-based station decides too: it transmits iff its counter is 0. Idle slots in
which somebody may decide are taken one by one; the others are skipped (rule 13).
"""

from typing import NamedTuple

import numpy as np

from fedmorl.dca import kernels
from fedmorl.dca.compiled import compiled
from fedmorl.dca.state import AGENT, BUSY, DIFS, IDLE, SUCCESS
from fedmorl.dca.stepping import delay_term

# What a decision led to, as its station heard it; in the order of the observation's one-hot part.
OUTCOMES = ("idle", "success", "collision", "ack")
_ACK = 3
ROWS_FULL = 3  # a fourth reason to return, beside REACHED, DECIDE, TRACE_FULL of the kernels


class Rows(NamedTuple):
    """T rows, one a contention slot in which some logged decision was taken; zero where a station took none."""

    slots: np.ndarray  # (T,) int64, the contention slot
    winners: np.ndarray  # (T,) int16, the station whose packet got through; -1: none
    mask: np.ndarray  # (T, N) bool, True where the station decided
    observations: np.ndarray  # (T, N, O) float32, at the decision
    next_observations: np.ndarray  # (T, N, O) float32, at the same station's next decision
    actions: np.ndarray  # (T, N) uint8
    outcomes: np.ndarray  # (T, N) int8, index into OUTCOMES
    durations: np.ndarray  # (T, N) int64, slots to the same station's next decision
    global_rewards: np.ndarray  # (T, N) int32, successes - collisions that ended in between
    local_rewards: np.ndarray  # (T, N) float32, - d~ b~ at the decision


class Cursor(NamedTuple):
    """Where the writing stands."""

    counts: np.ndarray  # (2,) int64: rows written, stations that are done
    open_row: np.ndarray  # (N,) int64, row of the decision whose successor is awaited; -1: none
    opened: np.ndarray  # (N,) int64, decisions written so far, the open one included
    credited: np.ndarray  # (N,) int64, the channel's reward account when the open decision was taken


@compiled
def log_decisions(s, rows, cursor, n_decisions, first_slot, raw_delay, until):
    """Run to slot `until`, or until every station has `n_decisions` closed decisions from `first_slot` on."""
    stations, queue, heard, log, trace = s.stations, s.queue, s.heard, s.log, s.trace
    access_histogram, delay_histogram = s.access_histogram, s.delay_histogram
    ch, n_stations = s.channel[0], s.stations.shape[0]
    while ch.t < until and cursor.counts[1] < n_stations:
        if ch.phase == BUSY:
            kernels.pass_busy_slots(ch, min(ch.remaining, until - ch.t))
            if ch.remaining == 0:
                kernels.end_busy(stations, ch, queue, heard, access_histogram, delay_histogram, log, trace)
        elif ch.phase == DIFS:
            kernels.pass_difs_slots(ch, min(ch.remaining, until - ch.t))
        elif cursor.counts[0] == rows.slots.shape[0] and not is_closing(cursor, n_decisions):
            return ROWS_FULL
        else:
            stopped = kernels.open_contention(stations, ch, queue, heard, trace, s.sizes, s.weights, s.scratch)
            if stopped != kernels.REACHED:
                return stopped
            n_sending = kernels.mark_senders(stations, ch)
            n_deciding, is_new = log_slot(stations, ch, rows, cursor, n_decisions, first_slot, raw_delay)
            if n_sending > 0:
                kernels.begin_busy(stations, ch)
            if is_new:
                label_row(stations, ch, rows, cursor.counts[0], n_sending)
                cursor.counts[0] += 1
            if n_sending == 0:
                kernels.pass_idle_slots(stations, ch, 1 if n_deciding > 0 else slots_to_decision(stations, ch, until))
    return kernels.REACHED


@compiled
def is_closing(cursor, n_decisions):
    """No station will open another decision."""
    for i in range(cursor.opened.shape[0]):
        if cursor.opened[i] < n_decisions:
            return False
    return True


@compiled
def log_slot(stations, ch, rows, cursor, n_decisions, first_slot, raw_delay):
    """Close and open the decisions of a contention slot: (how many decide, whether a row was begun)."""
    n_deciding, is_new, row = 0, False, cursor.counts[0]
    for i in range(stations.shape[0]):
        u = stations[i]
        if u.active == 0 or u.defer > 0:
            continue
        n_deciding += 1
        if u.access != AGENT:  # an agent was observed when it was asked
            kernels.observe(u, i, ch, stations.shape[0])
        if cursor.open_row[i] >= 0:
            close_decision(u, i, ch, rows, cursor, n_decisions)
        if ch.t >= first_slot and cursor.opened[i] < n_decisions:
            open_decision(u, i, ch, rows, cursor, raw_delay)
            is_new = True
        u.previous_action = u.sending
    if is_new:
        rows.slots[row] = ch.t
    return n_deciding, is_new


@compiled
def open_decision(u, i, ch, rows, cursor, raw_delay):
    row = cursor.counts[0]
    rows.mask[row, i] = True
    for k in range(rows.observations.shape[2]):
        rows.observations[row, i, k] = u.observation[k]
    rows.actions[row, i] = u.sending
    rows.local_rewards[row, i] = -delay_term(u, ch, raw_delay)
    cursor.open_row[i], cursor.credited[i] = row, ch.reward_glob
    rows.durations[row, i] = -ch.t  # closed by adding the next decision's slot
    cursor.opened[i] += 1


@compiled
def close_decision(u, i, ch, rows, cursor, n_decisions):
    row = cursor.open_row[i]
    for k in range(rows.observations.shape[2]):
        rows.next_observations[row, i, k] = u.observation[k]
    rows.durations[row, i] += ch.t
    rows.global_rewards[row, i] = ch.reward_glob - cursor.credited[i]
    cursor.open_row[i] = -1
    cursor.counts[1] += np.int64(cursor.opened[i] == n_decisions)


@compiled
def label_row(stations, ch, rows, row, n_sending):
    """What the decisions of a row led to; a frame error is heard as a collision."""
    rows.winners[row] = -1
    for i in range(stations.shape[0]):
        u = stations[i]
        is_success = n_sending == 1 and ch.kind == SUCCESS
        if is_success and u.sending == 1:
            rows.winners[row] = i
        if rows.mask[row, i]:
            heard = IDLE if n_sending == 0 else ch.kind if ch.kind == SUCCESS else 2
            rows.outcomes[row, i] = _ACK if is_success and u.sending == 1 else heard


@compiled
def slots_to_decision(stations, ch, until):
    """How far an idle channel can be skipped when nobody may decide: to an arrival, or the end of a deferral."""
    skip = kernels.slots_to_next_event(stations, ch.t, until)
    for i in range(stations.shape[0]):
        if stations[i].active == 1:
            skip = min(skip, stations[i].defer)  # > 0: who is active and does not defer decides
    return skip
