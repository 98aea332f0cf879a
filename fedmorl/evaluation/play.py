"""What a policy is worth on the channel: the numbers of one row, saturated and under Poisson load."""

from collections.abc import Sequence
from typing import Any

from fedmorl.dca import CSMA_CA, Poisson, Policy, Scenario, simulate


def channel_numbers(
    policies: Sequence[Policy],
    *,
    n_slots: int,
    seed: int,
    warmup_slots: int = 100_000,
    poisson_rate_per_slot: float = 0.0,
) -> dict[str, Any]:
    """Station i follows policies[i]: throughput, collisions, delay, Jain's index over 1e6 and 1e5 slots, capture.

    All are of the saturated channel over `n_slots` after the warm-up; with a rate also the mean delay under Poisson
    arrivals, `poisson_mean_delay_slots`. `min_share` is the smallest station's share of the packets x N.
    """
    if n_slots < 1_000_000:
        raise ValueError(f"n_slots must be >= 1000000, for Jain's index over a million slots; got {n_slots}")
    scenario = Scenario.uniform(CSMA_CA, n_stations=len(policies)).with_policies(dict(enumerate(policies)))
    m = simulate(scenario, n_slots=warmup_slots + n_slots, seed=seed, warmup_slots=warmup_slots)
    delivered = m.per_station["successes"]
    numbers = {
        "throughput_ratio": m.throughput_ratio,
        "collision_rate": m.collision_rate,
        "mean_access_delay_slots": m.mean_access_delay_slots,
        "jain_1e6": m.jain_window(1_000_000),
        "jain_1e5": m.jain_window(100_000),
        "capture_index": m.capture_index,
        "min_share": float(delivered.min() * len(policies) / delivered.sum()) if delivered.sum() else 0.0,
    }
    if poisson_rate_per_slot > 0:
        loaded = Scenario.uniform(CSMA_CA, n_stations=len(policies), traffic=Poisson(poisson_rate_per_slot))
        loaded = loaded.with_policies(dict(enumerate(policies)))
        m = simulate(loaded, n_slots=warmup_slots + n_slots, seed=seed, warmup_slots=warmup_slots)
        numbers["poisson_mean_delay_slots"] = m.mean_delay_slots
    return numbers
