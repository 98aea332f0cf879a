"""The state of one channel as arrays, shared by every kernel.

A kernel takes a `State` and a slot to run to, changes it in place, and can be called again: simulate in
one go, in chunks, or one decision at a time, and the numbers are the same.
"""

from typing import NamedTuple

import numpy as np

from fedmorl.dca.histogram import N_BINS
from fedmorl.dca.policy import FEATURES, LISTENING, MLPPolicy, pack_weights
from fedmorl.dca.scenario import MAX_SLOTS, Poisson, Saturated, Scenario, Station
from fedmorl.dca.streams import draw_exponential, draw_uniform, make_streams

DCF, ECA, AGENT = range(3)  # how a station decides to send
SATURATED, POISSON, CONSTANT_RATE = range(3)
CONTENTION, BUSY, DIFS = range(3)  # phase of the channel
IDLE, SUCCESS, COLLISION, ERROR = range(4)  # what the last channel event was
DRAW = 0  # a trace row's event: DRAW, SUCCESS, COLLISION or ERROR
EVENT_NAMES = ("draw", "success", "collision", "error")

STREAM_FIELDS = ("arrival_stream", "backoff_stream", "policy_stream", "channel_stream", "hearing_stream")
STATION_SETTINGS = "access policy listens cw_min cw_max eca_backoff aifs_extra retry_limit traffic stop_slot".split()
STATION_DYNAMICS = (
    "cw counter defer retries active sending "  # back-off
    "queue_head queue_len hol last_success previous_action action may_decide "  # queue, head of line, agent
    "present heard_successes rank others_heard collision_average out_of_turn out_of_turn_average"  # what it heard
).split()
STATION_COUNTS = "successes collisions errors dropped blocked arrivals access_delay_sum".split()
STATION = np.dtype(
    [(name, np.int64) for name in (*STATION_SETTINGS, *STATION_DYNAMICS, *STATION_COUNTS, "queued_at_start")]
    + [
        (name, np.float64)
        for name in "frame_error_rate overhearing_loss rate next_arrival queue_area_since queue_area delay_sum".split()
    ]
    + [(name, np.uint64, 4) for name in STREAM_FIELDS]
    + [("observation", np.float32, len(LISTENING))],  # see fedmorl.dca.policy.LISTENING
    align=True,
)

CHANNEL_SETTINGS = (
    "tx_slots failure_slots difs_slots eifs_extra buffer bianchi d2lt_local has_arrivals listening logging tracing"
).split()
CHANNEL_DYNAMICS = (
    "t phase remaining kind n_sending n_deciding outcome winner answered "
    "last_success_sum last_winner_slot other_winner_slot reward_glob contention_start window_start"
).split()
CHANNEL_COUNTS = (
    "idle_slots success_slots collision_slots error_slots difs_count n_successes n_collisions n_errors "
    "decisions log_length trace_length"
).split()
CHANNEL = np.dtype([(name, np.int64) for name in (*CHANNEL_SETTINGS, *CHANNEL_DYNAMICS, *CHANNEL_COUNTS)])

TRACE_FIELDS = "slot end_slot station event cw counter retries dropped".split()
TRACE = np.dtype([(name, np.int64) for name in TRACE_FIELDS])


class State(NamedTuple):
    """Arrays of one channel with N stations, B packets of buffer, P in-kernel policies."""

    stations: np.ndarray  # (N,) STATION
    channel: np.ndarray  # (1,) CHANNEL
    queue: np.ndarray  # (N, B) arrival instants [slots, real], a ring
    heard: np.ndarray  # (N, N) [i, j]: which of the successes heard by i was j's last, 0: none; (0, 0): nobody listens
    access_histogram: np.ndarray  # (N, N_BINS) access delays
    delay_histogram: np.ndarray  # (N, N_BINS) delays, queueing included
    log: np.ndarray  # (capacity,) int64: end_slot << 8 | station, one a success
    trace: np.ndarray  # (capacity,) TRACE
    sizes: np.ndarray  # (P, ...) int64, see pack_weights
    weights: np.ndarray  # (P, ...) float32
    scratch: np.ndarray  # (2, widest layer) float32


def make_state(scenario: Scenario, seed: int, replication: int = 0) -> State:
    """A channel at slot 0: idle, DIFS regarded as over, a packet at each saturated station."""
    n = scenario.n_stations
    policies = list(dict.fromkeys(s.policy for s in scenario.stations if isinstance(s.policy, MLPPolicy)))
    sizes, weights = pack_weights(policies)
    n_heard = n if any(policy.listens for policy in policies) else 0
    state = State(
        stations=np.zeros(n, STATION).view(np.recarray),
        channel=np.zeros(1, CHANNEL).view(np.recarray),
        queue=np.zeros((n, scenario.buffer)),
        heard=np.zeros((n_heard, n_heard), np.int64),
        access_histogram=np.zeros((n, N_BINS), np.uint32),
        delay_histogram=np.zeros((n, N_BINS), np.uint32),
        log=np.empty(0, np.int64),
        trace=np.empty(0, TRACE).view(np.recarray),
        sizes=sizes,
        weights=weights,
        scratch=np.zeros((2, int(sizes[:, 1:].max(initial=len(FEATURES)))), np.float32),
    )
    streams = make_streams(seed, replication, n)
    for purpose, name in enumerate(STREAM_FIELDS):
        state.stations[name] = streams[:, purpose]
    _fill_channel(state.channel, scenario)
    state.channel["listening"] = n_heard > 0
    for i, station in enumerate(scenario.stations):
        _fill_station(state, i, station, scenario, policies)
    return state


def _fill_channel(channel: np.ndarray, scenario: Scenario) -> None:
    channel["tx_slots"] = scenario.tx_slots
    channel["failure_slots"] = scenario.failure_slots
    channel["difs_slots"] = scenario.difs_slots
    channel["eifs_extra"] = scenario.eifs_extra_slots
    channel["buffer"] = scenario.buffer
    channel["bianchi"] = scenario.countdown == "bianchi"
    channel["d2lt_local"] = scenario.d2lt == "local"
    channel["has_arrivals"] = any(
        not isinstance(traffic, Saturated) or traffic.start_slot > 0
        for traffic in map(scenario.station_traffic, range(scenario.n_stations))
    )
    channel["winner"] = -1
    channel["logging"] = 1


def _fill_station(state: State, i: int, station: Station, scenario: Scenario, policies: list[MLPPolicy]) -> None:
    row, traffic = state.stations[i], scenario.station_traffic(i)
    row["access"] = AGENT if station.policy is not None else DCF if station.eca_backoff_slots is None else ECA
    row["policy"] = policies.index(station.policy) if isinstance(station.policy, MLPPolicy) else -1
    row["cw_min"], row["cw_max"], row["cw"] = station.cw_min, station.cw_max, station.cw_min
    row["eca_backoff"] = station.eca_backoff_slots or 0
    row["aifs_extra"] = station.aifs_slots - scenario.difs_slots
    row["retry_limit"], row["frame_error_rate"] = station.retry_limit, station.frame_error_rate
    row["overhearing_loss"] = station.overhearing_loss
    row["listens"] = isinstance(station.policy, MLPPolicy) and station.policy.listens
    row["next_arrival"], row["present"] = np.inf, 1
    if isinstance(traffic, Saturated):
        row["traffic"], row["stop_slot"] = SATURATED, traffic.stop_slot or MAX_SLOTS
        if traffic.start_slot > 0:  # it joins as if by an arrival during the slot before
            row["next_arrival"], row["present"] = traffic.start_slot - 0.5, 0
        return
    row["rate"], stream = traffic.rate_per_slot, row["arrival_stream"]
    with np.errstate(over="ignore"):  # the streams wrap modulo 2^64 by design
        if isinstance(traffic, Poisson):
            row["traffic"], row["next_arrival"] = POISSON, draw_exponential(stream, traffic.rate_per_slot)
        else:
            row["traffic"], row["next_arrival"] = CONSTANT_RATE, draw_uniform(stream) / traffic.rate_per_slot


def open_window(state: State) -> None:
    """Start counting at the current slot: zero every count, keep every rule's state (rule 12)."""
    channel, stations = state.channel, state.stations
    channel["window_start"] = channel["t"]
    for name in CHANNEL_COUNTS:
        channel[name] = 0
    for name in (*STATION_COUNTS, "queue_area", "delay_sum"):
        stations[name] = 0
    stations["queued_at_start"] = stations["queue_len"]
    stations["queue_area_since"] = channel["t"]
    state.access_histogram.fill(0)
    state.delay_histogram.fill(0)
