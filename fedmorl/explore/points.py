"""One point of the CW/N trade-off: N equal stations in one configuration, by simulation and by theory."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fedmorl.dca import Metrics, Simulation
from fedmorl.dca.simulate import check_count
from fedmorl.embed import METRICS as KNOWN_METRICS
from fedmorl.explore.configuration import Configuration
from fedmorl.explore.predictions import bounds, theory

JAIN_WINDOW_SLOTS = 100_000  # 0.9 s of channel
CHUNK_SLOTS = 2_000_000  # 3 ms to 30 ms of work between two looks at `carry_on`

MEASURES: dict[str, Callable[[Metrics], float]] = {
    "throughput_ratio": lambda m: m.throughput_ratio,
    "collision_rate": lambda m: m.collision_rate,
    "mean_access_delay_ms": lambda m: m.mean_access_delay_us / 1000,
    "mean_delay_ms": lambda m: m.mean_delay_us / 1000,
    "jain_index": lambda m: m.jain_index,
    "jain_100k": lambda m: m.jain_window(JAIN_WINDOW_SLOTS),
    "capture_index": lambda m: m.capture_index,
}
METRICS = {  # id -> label, unit, what it means in a few words
    name: KNOWN_METRICS.get(name, ("Jain index, 0.9 s", "", "mean over windows of 100 000 slots")) for name in MEASURES
}


@dataclass(frozen=True)
class Estimate:
    """A mean over independent runs and half of its 95 % Student t interval; NaN where it is undefined."""

    mean: float
    half_width: float


@dataclass(frozen=True)
class Result:
    """One point: estimates by metric, what theory predicts for it, and bounds by name and metric."""

    n_stations: int
    configuration: Configuration
    metrics: Mapping[str, Estimate]
    theory: Mapping[str, float]
    bounds: Mapping[str, Mapping[str, float]]


def _always(fraction: float) -> bool:
    return True


def compute(
    n_stations: int,
    configuration: Configuration,
    *,
    n_slots: int = 1_000_000,
    n_replications: int = 5,
    seed: int = 0,
    warmup_slots: int = 100_000,
    carry_on: Callable[[float], bool] = _always,
) -> Result | None:
    """Simulate one point and set theory and bounds beside it.

    Parameters
    ----------
    n_slots, warmup_slots : int
        Length of each run, and how many of these slots, at its start, are not measured.
    n_replications : int
        Independent runs, at least 2 for an interval.
    carry_on : callable
        Asked every few milliseconds, with the share of the work that is done; once it says False, the
        result is None.

    Examples
    --------
    >>> result = compute(2, Configuration(7, 15), n_slots=300_000, n_replications=2)
    >>> round(result.metrics["throughput_ratio"].mean, 2), round(result.theory["throughput_ratio"], 2)
    (0.84, 0.85)
    """
    warmup_slots = check_count("warmup_slots", warmup_slots)
    n_slots = check_count("n_slots", n_slots)
    if n_slots < warmup_slots + JAIN_WINDOW_SLOTS:
        raise ValueError(
            f"n_slots must hold the warm-up and one fairness window of {JAIN_WINDOW_SLOTS} slots; got "
            f"n_slots={n_slots} and warmup_slots={warmup_slots}"
        )
    n_replications = check_count("n_replications", n_replications, 2, 10**6)
    scenario = configuration.scenario(n_stations)

    def part(done: int) -> Callable[[float], bool]:
        return lambda share: carry_on((done + share) / n_replications)

    runs: list[Metrics] = []
    for replication in range(n_replications):
        run = _run(Simulation(scenario, seed, replication), warmup_slots, n_slots, part(replication))
        if run is None:
            return None
        runs.append(run)
    return Result(
        n_stations,
        configuration,
        _estimates(runs),
        theory(configuration, n_stations),
        bounds(configuration, n_stations),
    )


def _run(simulation: Simulation, warmup: int, n_slots: int, carry_on: Callable[[float], bool]) -> Metrics | None:
    """One run in chunks; None as soon as `carry_on` says False."""
    while simulation.t < n_slots:
        if not carry_on(simulation.t / n_slots):
            return None
        end = warmup if simulation.t < warmup else n_slots
        simulation.run(min(end, simulation.t + CHUNK_SLOTS))
        if simulation.t == warmup:
            simulation.open_window()
    return simulation.metrics()


def _estimates(runs: Sequence[Metrics]) -> dict[str, Estimate]:
    values = np.array([[measure(run) for measure in MEASURES.values()] for run in runs])  # (R, M)
    half = t_quantile(len(runs)) * values.std(0, ddof=1) / np.sqrt(len(runs))
    return {name: Estimate(float(m), float(h)) for name, m, h in zip(MEASURES, values.mean(0), half, strict=True)}


@lru_cache
def t_quantile(n_values: int) -> float:
    """The 97.5 % quantile of Student's t for the mean of `n_values` independent values."""
    from scipy.stats import t

    return float(t.ppf(0.975, n_values - 1))
