"""Many points at once as a tidy table, which the rendered explorer and the chapter's figures are drawn from."""

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from fedmorl.dca import PRESETS, Station
from fedmorl.dca.scenario import COUNTDOWNS
from fedmorl.explore.configuration import Configuration, Countdown, label_of_load
from fedmorl.explore.points import Result, compute

if TYPE_CHECKING:
    import pandas as pd


COLUMNS = (
    *("config", "label", "cw_min", "cw_max", "countdown", "load", "n_stations", "metric"),
    *("mean", "half_width", "theory"),
)


def windows(*pairs: tuple[int, int]) -> tuple[Station, ...]:
    """Stations without a name for (cw_min, cw_max) pairs."""
    return tuple(Station(cw_min=low, cw_max=high) for low, high in pairs)


FIXED = windows(*((2**k - 1, 2**k - 1) for k in range(2, 11)))  # 3 to 1023, never doubled
DOUBLED = windows(*((2**k - 1, 1023) for k in (1, 2, 4, 6, 7, 8, 9)))  # beside CSMA_CA's 7 and AC_BE's 31
DEFAULT_LOADS: Mapping[Countdown, Sequence[float | None]] = {"frozen": (None, 0.3, 0.6, 0.9), "bianchi": (None,)}


def id_of(station: Station) -> str:
    """`ac_be` for a preset, `cw_15_63` for a window without a name, `learned_at_n_10` for a policy so called."""
    return re.sub(r"\W+", "_", station.name.lower()).strip("_") or f"cw_{station.cw_min}_{station.cw_max}"


def grid(
    n_values: Iterable[int],
    *,
    stations: Sequence[Station] = (*PRESETS.values(), *FIXED, *DOUBLED),
    loads: Mapping[Countdown, Sequence[float | None]] = DEFAULT_LOADS,
    n_slots: int = 1_000_000,
    n_replications: int = 5,
    seed: int = 0,
    warmup_slots: int = 100_000,
    workers: int | None = None,
    progress: bool = False,
) -> "pd.DataFrame":
    """Every station count in every configuration, as `fedmorl.embed.explorer_grid` reads it.

    Parameters
    ----------
    n_values : iterable of int
        Station counts.
    stations : sequence of Station
        How the stations contend; a name makes it one of the explorer's presets. One with a policy needs a name.
    loads : mapping
        Count-down -> loads (None: saturated) simulated under it.
    n_slots, n_replications, seed, warmup_slots
        As in `compute`, the same for every point: all points share the random numbers of `seed`.
    workers : int, optional
        Threads; the numbers do not depend on it. None: one a core.
    progress : bool
        Show a progress bar.

    Returns
    -------
    DataFrame
        config, label, cw_min, cw_max, countdown, load, n_stations, metric, mean, half_width, theory; what is
        undefined (the delay with queueing of saturated stations, say) or has no closed form is NaN, and so is the
        window of stations under a policy.
    """
    counts = [int(n) for n in n_values]
    unknown = sorted(set(loads) - set(COUNTDOWNS))
    if unknown:
        raise ValueError(f"loads must be keyed by count-down, {' or '.join(map(repr, COUNTDOWNS))}; got {unknown[0]!r}")
    nameless = [k for k, station in enumerate(stations) if station.policy is not None and not station.name]
    if nameless:
        raise ValueError(f"stations[{nameless[0]}] follows a policy and needs a name, to be told from the others")
    points = [
        (station, Configuration.of(station, countdown, load), n)
        for station in stations
        for countdown, values in loads.items()
        for load in values
        for n in counts
    ]

    def one(point: tuple[Station, Configuration, int]) -> Result | None:
        return compute(
            point[2], point[1], n_slots=n_slots, n_replications=n_replications, seed=seed, warmup_slots=warmup_slots
        )

    pool = ThreadPoolExecutor(workers or os.cpu_count() or 1)
    try:
        results: Iterable[Result | None] = pool.map(one, points)
        if progress:
            from tqdm.auto import tqdm

            results = tqdm(results, total=len(points), desc="points", mininterval=1.0)
        found = [(station, result) for (station, _, _), result in zip(points, results, strict=True) if result]
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt does not wait for what has not begun
    return _table([row for station, result in found for row in _rows(station, result)])


def _rows(station: Station, result: Result) -> Iterable[tuple]:
    c = result.configuration
    low, high = (math.nan, math.nan) if c.policy is not None else (c.cw_min, c.cw_max)
    head = (id_of(station), station.name, low, high, c.countdown, label_of_load(c.load), result.n_stations)
    return (
        (*head, name, e.mean, e.half_width, result.theory.get(name, math.nan)) for name, e in result.metrics.items()
    )


def _table(rows: list[tuple]) -> "pd.DataFrame":
    import pandas as pd

    return pd.DataFrame(rows, columns=list(COLUMNS))
