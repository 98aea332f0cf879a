"""What theory says about a configuration: its fixed point or cycle, the bounds beside it, the best fixed window."""

from functools import lru_cache

from fedmorl.dca import CSMA_ECA, Scenario, analytic
from fedmorl.explore.configuration import Configuration, Countdown


@lru_cache(maxsize=4096)
def theory(configuration: Configuration, n_stations: int) -> dict[str, float]:
    """What theory predicts for this very configuration, by metric; empty where there is no closed form.

    Saturated DCF: the fixed point of the same count-down. Saturated CSMA/ECA: the locked cycle, where it has
    room for everybody. Poisson load: nothing, though what is offered is a bound. A policy: nothing.
    """
    c = configuration
    if c.load is not None or c.policy is not None:
        return {}
    if c.eca_backoff_slots is None:
        found = analytic.bianchi(c.cw_min, c.cw_max, n_stations, c.countdown)
        return _named(found.throughput_ratio, found.collision_probability, found.access_delay_slots)
    if not fits(n_stations, c.eca_backoff_slots, c.countdown):
        return {}
    return _locked(n_stations, c.eca_backoff_slots, c.countdown)


def fits(n_stations: int, backoff: int, countdown: str) -> bool:
    """Whether CSMA/ECA's cycle has room for everybody, so that it ends without collisions."""
    return n_stations <= backoff + (countdown == "bianchi")


def _locked(n_stations: int, backoff: int, countdown: str) -> dict[str, float]:
    cycle = analytic.eca_access_delay_slots(n_stations, backoff, countdown)
    return _named(analytic.eca_throughput(n_stations, backoff, countdown), 0.0, cycle)


def bounds(configuration: Configuration, n_stations: int) -> dict[str, dict[str, float]]:
    """Reference points at N stations: the p-persistent optimum, ECA with V = 16, TDMA, and what is offered.

    The first is the best of all memoryless policies, the second a cycle without collisions, the third the
    ceiling of everybody who honours DIFS. Delays and collisions are those of saturated stations.
    """
    best = analytic.p_persistent_optimum(n_stations)
    v = configuration.eca_backoff_slots or CSMA_ECA.eca_backoff_slots or 0
    found = {
        "optimum": _named(best.throughput_ratio, best.collision_probability, best.access_delay_slots),
        "tdma": _named(analytic.tdma_throughput(), 0.0, analytic.tdma_access_delay_slots(n_stations)),
    }
    if fits(n_stations, v, configuration.countdown):
        found["eca"] = _locked(n_stations, v, configuration.countdown)
    if configuration.load is None:
        return found
    ceilings = {name: {"throughput_ratio": bound["throughput_ratio"]} for name, bound in found.items()}
    return ceilings | {"offered": {"throughput_ratio": configuration.load}}


def _named(throughput_ratio: float, collision_rate: float, access_delay_slots: float) -> dict[str, float]:
    return {
        "throughput_ratio": throughput_ratio,
        "collision_rate": collision_rate,
        "mean_access_delay_ms": access_delay_slots * Scenario.slot_us / 1000,
    }


def best_fixed_window(n_stations: int, countdown: Countdown = "frozen", **airtime: int) -> int:
    """CW* of saturated stations that never double their window: the largest throughput of the fixed point.

    The throughput rises with CW up to one maximum and falls after it, so the last rise is found by bisection.
    `airtime` goes to `analytic.bianchi` (tx_slots, difs_slots, collision_slots).
    """

    def rises(cw: int) -> bool:
        here, next_ = (analytic.bianchi(c, c, n_stations, countdown, **airtime) for c in (cw, cw + 1))
        return next_.throughput_ratio > here.throughput_ratio

    low, high = 1, 65_534  # CW* is in (low, high] if S rises at low
    if not rises(low):
        return low
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if rises(middle) else (low, middle)
    return high
