"""The imagined channel, compiled: the stations are real, all that they hear is drawn from a model.

Decisions, queues, counters and memories are those of `fedmorl.dca.kernels`. What a busy period brings, and how long
it takes, comes from a table (see `fedmorl.world_models.joint`). With the true table it is the simulator, bit for bit.
"""

# mypy: disable-error-code="no-untyped-def"

import numpy as np

from fedmorl.dca import kernels
from fedmorl.dca.compiled import compiled
from fedmorl.dca.logs import OUTCOMES
from fedmorl.dca.state import COLLISION, IDLE, SUCCESS
from fedmorl.dca.streams import draw_uniform

ACK = OUTCOMES.index("ack")
DEFER, SEND = 0, 1


@compiled
def imagine(s, cumulative, duration_slots, at_most_one_ack, until):
    """Stations with their queues, networks, counters and memories; all that they hear comes from the model."""
    stations, ch = s.stations, s.channel[0]
    outcomes = np.zeros(stations.shape[0], np.int64)
    while ch.t < until:
        kernels.open_contention(stations, ch, s.queue, s.heard, s.trace, s.sizes, s.weights, s.scratch)
        n_sending = kernels.mark_senders(stations, ch)
        winner = draw_outcomes(stations, n_sending, cumulative, at_most_one_ack, outcomes)
        n_slots = 1
        for i in range(stations.shape[0]):
            n_slots = max(n_slots, duration_slots[outcomes[i]] * (outcomes[i] != IDLE))
        if n_slots > 1 or n_sending > 0:
            end_period(s, ch, outcomes, winner, n_slots)
        else:
            skip = 1 if ch.n_deciding > 0 else kernels.slots_to_next_event(stations, ch.t, until)
            kernels.pass_idle_slots(stations, ch, skip)


@compiled
def draw_outcomes(stations, n_sending, cumulative, at_most_one_ack, outcomes):
    """Each sender draws its own answer, the others share one; the station whose success the others hear, or -1."""
    winner, n_acks = -1, 0
    heard = draw_outcome(cumulative[DEFER, min(n_sending, 2)], stations[0].channel_stream)
    for i in range(stations.shape[0]):
        outcomes[i] = heard
        if stations[i].sending == 1:
            outcomes[i] = draw_outcome(cumulative[SEND, min(n_sending - 1, 2)], stations[i].channel_stream)
            if outcomes[i] == ACK:
                n_acks += 1
                if draw_uniform(stations[i].channel_stream) * n_acks < 1.0:
                    winner = i
    if at_most_one_ack:
        for i in range(stations.shape[0]):
            outcomes[i] = COLLISION if outcomes[i] == ACK and i != winner else outcomes[i]
    return winner


@compiled
def draw_outcome(cumulative, stream):
    """An index of `cumulative` (4,), which ends in 1."""
    u, outcome = draw_uniform(stream), 0
    while outcome < 3 and u >= cumulative[outcome]:
        outcome += 1
    return outcome


@compiled
def end_period(s, ch, outcomes, winner, n_slots):
    """The end of what somebody heard as busy: rules 7 and 8, by what each station was told."""
    stations, end_slot = s.stations, ch.t + n_slots - ch.difs_slots
    if ch.has_arrivals == 1:
        kernels.take_arrivals(stations, ch, s.queue, s.trace, end_slot)
    ch.t += n_slots
    for i in range(stations.shape[0]):
        u = stations[i]
        u.defer = u.aifs_extra
        if u.sending == 1:
            u.sending = 0
            is_acked = outcomes[i] == ACK
            dropped = not is_acked and kernels.count_failure(u, COLLISION)
            if is_acked or dropped:
                kernels.pop_packet(u, ch, s.queue[i], s.access_histogram[i], s.delay_histogram[i], end_slot, is_acked)
            if is_acked:
                kernels.end_success(u, i, ch, s.log, end_slot)
                ch.n_successes += 1
            else:
                kernels.end_failure(u, dropped)
    for i in range(stations.shape[0]):
        remember(stations[i], i, outcomes[i], winner, s.heard)
    ch.n_collisions += np.int64(winner < 0)
    ch.winner, ch.contention_start = winner, ch.t
    ch.outcome = SUCCESS if winner >= 0 else COLLISION


@compiled
def remember(u, i, outcome, winner, heard):
    """Rule 16, by what this station was told."""
    if u.listens == 1 and u.present == 1:
        u.collision_average = kernels.moving_average(u.collision_average, outcome == COLLISION)
        if outcome == ACK:
            kernels.hear_success(u, i, i, heard[i])
        elif outcome == SUCCESS and winner >= 0:
            kernels.hear_success(u, i, winner, heard[i])
