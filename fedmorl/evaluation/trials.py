"""A policy deployed in the simulator: how it does under saturation, from cold, through change, load and neighbours.

Each function runs `fedmorl.dca.simulate` and returns one flat dict of numbers. Station counts are the scenario's
business; no policy is told.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fedmorl.dca import AC_BE, CSMA_ECA, Metrics, MLPPolicy, Poisson, Saturated, Scenario, Station, simulate

BACK_AT = 0.955  # ours: a channel is back when this share of `WINDOW_SLOTS` is successful
WINDOW_SLOTS = 10_000
WARMUP_SLOTS = 200_000
TX_SLOTS = 120  # of the channel by default; a load is the share of time that the packets offered would take


def saturated(policy: MLPPolicy, n_stations: int, seed: int, n_slots: int, **station: Any) -> dict[str, float]:
    """The long run after a warm-up of 2e5 slots; `station` are further fields, such as frame_error_rate."""
    scenario = Scenario.uniform(Station(policy=policy, **station), n_stations)
    m = simulate(scenario, WARMUP_SLOTS + n_slots, seed, WARMUP_SLOTS)
    return {
        "throughput_ratio": m.throughput_ratio,
        "collision_rate": m.collision_rate,
        "mean_access_delay_slots": m.mean_access_delay_slots,
        "jain_1e6": m.jain_window(1_000_000) if n_slots >= 1_000_000 else float("nan"),
        "jain_1e5": m.jain_window(100_000) if n_slots >= 100_000 else float("nan"),
        "capture_index": m.capture_index,
        "least_share": least_share(m),
    }


def cold(policy: MLPPolicy, n_stations: int, seed: int, n_replications: int) -> dict[str, float]:
    """The first 1e5 slots of stations that have never heard each other: mean and least over replications."""
    scenario = Scenario.uniform(Station(policy=policy), n_stations)
    runs = [simulate(scenario, 100_000, seed, 0, replication=r).throughput_ratio for r in range(n_replications)]
    return {"throughput_cold": float(np.mean(runs)), "throughput_cold_least": min(runs)}


def change(policy: MLPPolicy, n_before: int, n_after: int, seed: int, n_replications: int) -> dict[str, float]:
    """Stations join or leave at slot 3e5: slots until the channel is back, and throughput from 3e4 to 13e4 after.

    A channel that is not back after 13e4 slots, when the run ends, counts as that.
    """
    at_slot, n_kept = 300_000, min(n_before, n_after)
    visit = Saturated(at_slot) if n_after > n_before else Saturated(0, at_slot)
    visitors = [Station(policy=policy, traffic=visit)] * abs(n_after - n_before)
    scenario = Scenario(stations=[Station(policy=policy)] * n_kept + visitors)
    slots, after = [], []
    for r in range(n_replications):
        log = simulate(scenario, at_slot + 130_000, seed, 0, replication=r).log
        slots.append(min(recovery_slots(log >> 8, at_slot), 130_000))
        after.append(TX_SLOTS * np.count_nonzero(log >> 8 > at_slot + 30_000) / 100_000)
    return {"recovery_slots": float(np.mean(slots)), "recovery_slots_most": float(max(slots)),
            "throughput_after": float(np.mean(after))}  # fmt: skip


def recovery_slots(success_ends: np.ndarray, at_slot: int) -> float:
    """Slots from `at_slot` to the end of the first window of 1e4 slots with a throughput of .955; inf if none.

    `success_ends` are the boundaries at which successes ended, ascending; windows begin every 100 slots.
    """
    starts = np.arange(at_slot, success_ends.max(initial=0) - WINDOW_SLOTS + 1, 100)
    first, last = (np.searchsorted(success_ends, edge, "right") for edge in (starts, starts + WINDOW_SLOTS))
    back = np.flatnonzero((last - first) * TX_SLOTS >= BACK_AT * WINDOW_SLOTS)
    return float(starts[back[0]] + WINDOW_SLOTS - at_slot) if back.size else float("inf")


def under_load(policy: MLPPolicy, n_stations: int, load: float, seed: int, n_slots: int) -> dict[str, float]:
    """Poisson arrivals that offer `load` of the channel: mean delay, beside AC_BE and CSMA/ECA on equal arrivals."""
    traffic, delay = Poisson(load / (n_stations * TX_SLOTS)), {}
    for name, station in (("", Station(policy=policy)), ("_ac_be", AC_BE), ("_csma_eca", CSMA_ECA)):
        m = simulate(Scenario.uniform(station, n_stations, traffic=traffic), WARMUP_SLOTS + n_slots, seed, WARMUP_SLOTS)
        delay[f"mean_delay_slots{name}"] = m.mean_delay_slots
        delay[f"blocked_share{name}"] = m.blocked / m.arrivals
    return delay


def beside(policy: MLPPolicy, n_stations: int, legacy: Station, seed: int, n_slots: int) -> dict[str, float]:
    """Half the stations are `legacy`: total, shares of the fair share, and what a legacy station keeps.

    `legacy_kept` is the least successful legacy station against the mean station where all are legacy.
    """
    n_ours = (n_stations + 1) // 2
    mixed = Scenario(stations=[Station(policy=policy)] * n_ours + [legacy] * (n_stations - n_ours))
    m, alone = (
        simulate(s, WARMUP_SLOTS + n_slots, seed, WARMUP_SLOTS) for s in (mixed, Scenario.uniform(legacy, n_stations))
    )
    x = m.stations["successes"]
    return {
        "throughput_ratio": m.throughput_ratio,
        "throughput_all_legacy": alone.throughput_ratio,
        "agents_share": float(x[:n_ours].sum() / x.sum()),
        "least_share": least_share(m),
        "legacy_kept": float(x[n_ours:].min() / alone.stations["successes"].mean()),
        "collision_rate": m.collision_rate,
    }


def least_share(m: Metrics) -> float:
    """The least successful station's share over the fair share: 1 all equal, 0 somebody starves."""
    x = m.stations["successes"]
    return float(x.min() * x.size / x.sum()) if x.sum() else 0.0


def timeline(policies: Sequence[MLPPolicy | None], n_slots: int, seed: int, start_slots: Sequence[int] = ()) -> Metrics:
    """A traced run from cold, for `fedmorl.embed.timeline`; None stands for AC_BE."""
    starts = list(start_slots) or [0] * len(policies)
    stations = [
        replace(AC_BE if policy is None else Station(policy=policy), traffic=Saturated(start))
        for policy, start in zip(policies, starts, strict=True)
    ]
    return simulate(Scenario(stations=stations), n_slots, seed, 0, trace=True)
