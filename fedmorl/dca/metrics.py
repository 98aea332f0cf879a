"""What a run measured. Every ratio's denominator is in its docstring; the window is slots [W, T)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fedmorl.dca.fairness import count_captures, mean_jain_of_blocks, mean_jain_of_windows
from fedmorl.dca.histogram import percentiles
from fedmorl.dca.scenario import Saturated, Scenario
from fedmorl.dca.state import CHANNEL, EVENT_NAMES, TRACE_FIELDS, State

if TYPE_CHECKING:
    import pandas as pd

SCALARS = (
    "throughput_ratio",
    "collision_rate",
    "collision_event_rate",
    "error_rate",
    "idle_fraction",
    "difs_fraction",
    "collision_time_fraction",
    "mean_access_delay_slots",
    "mean_delay_slots",
    "mean_queue_length",
    "jain_index",
    "jain_short",
    "capture_index",
    "delivered",
    "blocked",
    "dropped",
    "arrivals",
)


def jain_index(shares: np.ndarray) -> np.ndarray:
    """Jain's fairness index along the last axis, (..., N) -> (...); NaN where every share is 0.

    J(x) = (sum_i x_i)^2 / (N sum_i x_i^2), from 1/N (one station has all) to 1 (equal shares).
    Source: Jain, Chiu & Hawe (1984), DEC-TR-301.
    """
    shares = np.asarray(shares, dtype=float)
    squares = (shares**2).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return shares.sum(-1) ** 2 / (shares.shape[-1] * squares)


def _ratio(numerator: float, denominator: float) -> float:
    return float(numerator) / float(denominator) if denominator else float("nan")


@dataclass(frozen=True)
class Trace:
    """Every back-off draw, success, collision and frame error of a run, in order."""

    rows: np.ndarray  # (events,) structured, see fedmorl.dca.state.TRACE

    def to_frame(self) -> "pd.DataFrame":
        """One row an event of one station.

        Columns: slot and end_slot (boundaries), station, event ("draw", "success", "collision", "error"), and
        cw, counter, retries *after* it; dropped says whether the packet was given up. "draw" is a station that
        turned active; its slot is the boundary from which its packet was visible.
        """
        import pandas as pd

        frame = pd.DataFrame({name: np.array(self.rows[name]) for name in TRACE_FIELDS})
        frame["event"] = np.array(EVENT_NAMES)[frame["event"]]
        return frame.astype({"dropped": bool})


@dataclass(frozen=True, repr=False)
class Metrics:
    """Measurements over slots [W, T) of one run; undefined ones are NaN."""

    scenario: Scenario
    window_slots: int
    warmup_slots: int
    counts: dict[str, int]  # the channel's counters, by their name in fedmorl.dca.state.CHANNEL
    stations: np.ndarray  # (N,) STATION rows
    access_histogram: np.ndarray  # (N, bins)
    delay_histogram: np.ndarray  # (N, bins)
    log: np.ndarray  # (successes,) end_slot << 8 | station
    trace: Trace | None = field(default=None)

    def __repr__(self) -> str:
        return (
            f"Metrics({self.scenario.n_stations} stations, {self.window_slots} slots: "
            f"throughput_ratio={self.throughput_ratio:.4f}, collision_rate={self.collision_rate:.4f}, "
            f"mean_access_delay_slots={self.mean_access_delay_slots:.1f}, jain_index={self.jain_index:.4f})"
        )

    # -- the channel's time -------------------------------------------------------------------------------
    @property
    def throughput_ratio(self) -> float:
        """Successes x tx_slots / window: the share of time spent on packets that got through."""
        return self.scenario.tx_slots * self.counts["n_successes"] / self.window_slots

    @property
    def idle_fraction(self) -> float:
        """Idle contention slots / window."""
        return self.counts["idle_slots"] / self.window_slots

    @property
    def difs_fraction(self) -> float:
        """DIFS slots / window."""
        return self.counts["difs_count"] / self.window_slots

    @property
    def collision_time_fraction(self) -> float:
        """Slots lost to collisions / window."""
        return self.counts["collision_slots"] / self.window_slots

    # -- attempts -----------------------------------------------------------------------------------------
    @property
    def collision_rate(self) -> float:
        """Collided station-transmissions / all station-transmissions."""
        collided = self.stations["collisions"].sum()
        return _ratio(collided, collided + self.stations["successes"].sum() + self.stations["errors"].sum())

    @property
    def collision_event_rate(self) -> float:
        """Collisions / busy periods."""
        c = self.counts
        return _ratio(c["n_collisions"], c["n_successes"] + c["n_collisions"] + c["n_errors"])

    @property
    def error_rate(self) -> float:
        """Lone transmissions lost to frame errors / lone transmissions."""
        return _ratio(self.counts["n_errors"], self.counts["n_errors"] + self.counts["n_successes"])

    # -- delay --------------------------------------------------------------------------------------------
    @property
    def mean_access_delay_slots(self) -> float:
        """Mean over delivered packets of end of transmission - head-of-line instant [slots]."""
        return _ratio(self.stations["access_delay_sum"].sum(), self.access_histogram.sum())

    @property
    def mean_access_delay_us(self) -> float:
        """`mean_access_delay_slots` in microseconds."""
        return self.mean_access_delay_slots * self.scenario.slot_us

    @property
    def mean_delay_slots(self) -> float:
        """Mean over delivered packets of end of transmission - arrival [slots]; NaN under saturation."""
        return _ratio(self.stations["delay_sum"].sum(), self.delay_histogram.sum())

    @property
    def mean_delay_us(self) -> float:
        """`mean_delay_slots` in microseconds."""
        return self.mean_delay_slots * self.scenario.slot_us

    def access_delay_percentiles_slots(self, percents: Sequence[float]) -> dict[float, float]:
        """Percentiles of the access delay over all stations' packets [slots], bins of 0.8 %."""
        return percentiles(self.access_histogram.sum(0), percents)

    def delay_percentiles_slots(self, percents: Sequence[float]) -> dict[float, float]:
        """Percentiles of the delay, queueing included [slots]; NaN under saturation."""
        return percentiles(self.delay_histogram.sum(0), percents)

    # -- packets ------------------------------------------------------------------------------------------
    @property
    def delivered(self) -> int:
        """Packets received in the window."""
        return int(self.stations["successes"].sum())

    @property
    def dropped(self) -> int:
        """Packets given up at the retry limit."""
        return int(self.stations["dropped"].sum())

    @property
    def blocked(self) -> int:
        """Arrivals lost to a full FIFO."""
        return int(self.stations["blocked"].sum())

    @property
    def arrivals(self) -> int:
        """Packets that arrived, blocked ones included; 0 under saturation."""
        return int(self.stations["arrivals"].sum())

    @property
    def queued_at_start(self) -> int:
        """Packets in the FIFOs when the window opened; 0 under saturation."""
        return int(self.stations["queued_at_start"].sum())

    @property
    def queued_at_end(self) -> int:
        """Packets in the FIFOs when the window closed; 0 under saturation."""
        return int(self.stations["queue_len"].sum())

    @property
    def mean_queue_length(self) -> float:
        """Time average of a station's FIFO length, the packet in service included; B under saturation."""
        return float(self._queue_lengths.mean())

    @property
    def _queue_lengths(self) -> np.ndarray:
        n = self.scenario.n_stations
        saturated = [isinstance(self.scenario.station_traffic(k), Saturated) for k in range(n)]
        return np.where(saturated, self.scenario.buffer, self.stations["queue_area"] / self.window_slots)

    # -- fairness -----------------------------------------------------------------------------------------
    @property
    def jain_index(self) -> float:
        """Jain's index of the stations' successes over the whole window; NaN without a success."""
        return float(jain_index(self.stations["successes"]))

    @property
    def jain_short(self) -> float:
        """Mean Jain's index over successive blocks of 10 N successes (ours); NaN if there is no full block."""
        n = self.scenario.n_stations
        return float(mean_jain_of_blocks(self.log, n, 10 * n))

    def jain_window(self, slots: int) -> float:
        """Mean Jain's index over successive full windows of `slots` slots; windows without a success are left out.

        Raises ValueError if no full window fits.
        """
        if isinstance(slots, bool) or not 1 <= slots <= self.window_slots:
            raise ValueError(f"slots must be from 1 to the {self.window_slots} slots observed; got {slots!r}")
        n_windows = self.window_slots // int(slots)
        n, busy_slots = self.scenario.n_stations, self.scenario.tx_slots + self.scenario.difs_slots
        return float(mean_jain_of_windows(self.log, n, self.warmup_slots, int(slots), n_windows, busy_slots))

    @property
    def capture_index(self) -> float:
        """Share of successes whose previous success on the channel was the same station's."""
        return _ratio(count_captures(self.log), self.log.size - 1) if self.log.size > 1 else float("nan")

    # -- tables -------------------------------------------------------------------------------------------
    @property
    def per_station(self) -> "pd.DataFrame":
        """One row a station: its settings, shares, rates, delays [slots] and packet counts."""
        import pandas as pd

        s, served = self.stations, self.access_histogram.sum(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            attempts = s["successes"] + s["collisions"] + s["errors"]
            frame = pd.DataFrame(
                {
                    "station": np.arange(len(s)),
                    "name": [x.name for x in self.scenario.stations],
                    "throughput_ratio": self.scenario.tx_slots * s["successes"] / self.window_slots,
                    "collision_rate": s["collisions"] / attempts,
                    "mean_access_delay_slots": s["access_delay_sum"] / served,
                    "mean_delay_slots": s["delay_sum"] / self.delay_histogram.sum(1),
                    "mean_queue_length": self._queue_lengths,
                }
            )
        for p in (50, 95, 99):
            frame[f"access_delay_p{p}_slots"] = [percentiles(h, [p])[p] for h in self.access_histogram]
        for name in ("successes", "collisions", "errors", "arrivals", "blocked", "dropped"):
            frame[name] = np.array(s[name])
        return frame

    def to_dict(self) -> dict[str, Any]:
        """The scalar metrics by name, with delay percentiles, plain Python numbers."""
        plain: dict[str, Any] = {name: getattr(self, name) for name in SCALARS}
        for p, value in self.access_delay_percentiles_slots([50, 95, 99]).items():
            plain[f"access_delay_p{p}_slots"] = value
        for p, value in self.delay_percentiles_slots([50, 95, 99]).items():
            plain[f"delay_p{p}_slots"] = value
        return plain


def measure(scenario: Scenario, state: State, trace: bool) -> Metrics:
    """The window so far, as views of `state`: for a state that no kernel will touch again."""
    channel = state.channel[0]
    counts = {name: int(channel[name]) for name in CHANNEL.names or ()}
    return Metrics(
        scenario=scenario,
        window_slots=counts["t"] - counts["window_start"],
        warmup_slots=counts["window_start"],
        counts=counts,
        stations=state.stations.view(np.ndarray),
        access_histogram=state.access_histogram,
        delay_histogram=state.delay_histogram,
        log=state.log[: counts["log_length"]],
        trace=Trace(state.trace[: counts["trace_length"]]) if trace else None,
    )
