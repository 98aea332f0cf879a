"""Who sends when, within a few milliseconds of one point: what a timeline strip is drawn from."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from fedmorl.dca import simulate
from fedmorl.dca.state import EVENT_NAMES
from fedmorl.explore.configuration import Configuration

STRIP_SLOTS = 3_000  # 27 ms of channel, two dozen packets


class Sending(NamedTuple):
    """One station's transmission; slots count from the start of the strip."""

    station: int
    slot: int
    end_slot: int
    outcome: str  # success, collision or error


@lru_cache(maxsize=512)
def who_sends(
    n_stations: int,
    configuration: Configuration,
    *,
    n_slots: int = STRIP_SLOTS,
    seed: int = 0,
    warmup_slots: int = 100_000,
) -> tuple[Sending, ...]:
    """Every transmission in `n_slots` slots after the warm-up, in order of time.

    These are the first measured slots of the first run of `compute` with the same `seed` and `warmup_slots`. A
    transmission that is under way at either end is cut there.
    """
    scenario = configuration.scenario(n_stations)
    longest = max(scenario.tx_slots, scenario.failure_slots)  # the trace tells of a transmission when it is over
    run = simulate(scenario, warmup_slots + n_slots + longest, seed, warmup_slots, trace=True)
    rows = () if run.trace is None else run.trace.rows[["station", "slot", "end_slot", "event"]].tolist()
    return tuple(
        Sending(station, max(slot - warmup_slots, 0), min(end_slot - warmup_slots, n_slots), EVENT_NAMES[event])
        for station, slot, end_slot, event in rows
        if EVENT_NAMES[event] != "draw" and slot < warmup_slots + n_slots
    )


def captures(sendings: Sequence[Sending]) -> tuple[int, int]:
    """How many successes come right after one of the same station, and how many come after any."""
    winners = [s.station for s in sendings if s.outcome == "success"]
    return sum(a == b for a, b in pairwise(winners)), max(len(winners) - 1, 0)
