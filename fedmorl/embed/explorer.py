"""The kernel-free explorer: tidy results to a JSON grid, and the HTML block that shows it."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from fedmorl.embed.block import Block, make_block, to_json

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

MAX_GRID_BYTES = 300_000  # ours: a page stays below 1.5 MB with room for figures
MAX_COMPARED = 4
KEYS = ("metric", "config", "countdown", "load", "n_stations")
GRID_COLUMNS = (*KEYS, "label", "cw_min", "cw_max", "mean", "half_width")
COUNTDOWN_LABELS = {"frozen": "frozen (802.11)", "bianchi": "Bianchi"}
METRICS = {  # id -> label, unit, what it means in a few words
    "throughput_ratio": ("Throughput ratio", "", "share of time that delivers packets"),
    "collision_rate": ("Collision rate", "", "share of transmissions that collide"),
    "collision_event_rate": ("Collided busy periods", "", "share of all busy periods"),
    "idle_fraction": ("Idle time", "", "share of time"),
    "mean_access_delay_ms": ("Mean access delay", "ms", "from head of the queue to delivery"),
    "mean_delay_ms": ("Mean delay", "ms", "from arrival to delivery, queue included"),
    "jain_index": ("Jain index, long", "", "1: equal shares over the whole run"),
    "jain_short": ("Jain index, short", "", "1: equal shares within a short window"),
    "capture_index": ("Capture index", "", "successes right after an own success"),
}


def explorer_grid(
    frame: pd.DataFrame,
    *,
    bounds: Sequence[Mapping[str, Any]] = (),
    metrics: Mapping[str, tuple[str, str, str]] | None = None,
    provenance: str = "",
) -> dict[str, Any]:
    """Turn tidy results into the grid that the rendered explorer reads.

    Parameters
    ----------
    frame : DataFrame
        One row a point and metric: config, label, cw_min, cw_max, countdown, load, n_stations, metric, mean,
        half_width (of the 95 % interval). An empty label marks a window without a name of its own, found by
        its CWmin and CWmax; NaN there means that stations follow a policy. Points may be missing. Order of first
        appearance is the order shown.
    bounds : sequence of dict
        Reference curves: `id`, `label`, `metric`, `values` (one a station count in rising order, None where
        there is none); with `load` or `countdown`, drawn only beside curves of that load or count-down.
        `channel_bounds` makes them.
    metrics : mapping
        id -> (label, unit, hint): adds to or replaces `METRICS`.
    provenance : str
        One line below the explorer: slots, replications, seeds, commit.

    Returns
    -------
    dict
        `axes` (n, config, countdown, load), `metrics`, `values[metric][config][countdown][load][n]` = [mean,
        half-width] or None, rounded to the second digit of the half-width, the list over n being empty where it has
        no point; `bounds`, `provenance`.
    """
    _check_frame(frame)
    n = sorted(int(value) for value in frame["n_stations"].unique())
    for bound in bounds:
        if len(bound["values"]) != len(n):
            got = len(bound["values"])
            raise ValueError(f"bound {bound['id']!r} has {got} values for {len(n)} station counts")
    order = {name: list(frame[name].unique()) for name in KEYS[:-1]}
    grid = {
        "axes": {
            "n": n,
            "config": _configs(frame),
            "countdown": [{"id": c, "label": COUNTDOWN_LABELS.get(c, c)} for c in order["countdown"]],
            "load": order["load"],
        },
        "metrics": [_metric(name, METRICS | dict(metrics or {})) for name in order["metric"]],
        "values": _values(frame, order, n),
        "bounds": [dict(bound) | {"values": [_finite(v, 5) for v in bound["values"]]} for bound in bounds],
        "provenance": provenance,
    }
    size, limit = len(to_json(grid).encode()) / 1000, MAX_GRID_BYTES / 1000
    if size > limit:
        raise ValueError(f"the grid is {size:.0f} kB, over {limit:.0f} kB; drop some points")
    return grid


def channel_bounds(
    n_values: Sequence[int],
    *,
    eca_backoff_slots: int = 16,
    saturated: str = "saturated",
    slot_us: float = 9.0,
) -> list[dict[str, Any]]:
    """Reference curves for `explorer_grid`: the p-persistent optimum, CSMA/ECA (for N <= V) and TDMA.

    Throughput ratio and, beside the load called `saturated`, access delay [ms] and collision rate.
    """
    from fedmorl.dca import analytic

    counts, v = sorted(int(n) for n in n_values), eca_backoff_slots
    best = [analytic.p_persistent_optimum(n) for n in counts]

    def eca(formula: Callable[[int, int], float]) -> list[float | None]:
        return [formula(n, v) if n <= v else None for n in counts]  # above V some stations keep colliding

    def ms(slots: Sequence[float | None]) -> list[float | None]:
        return [None if s is None else s * slot_us / 1000 for s in slots]

    locked = f"CSMA/ECA, locked, V = {v}"
    delay = "mean_access_delay_ms"
    curves: list[tuple[str, str, str, Sequence[float | None]]] = [
        ("throughput_ratio", "optimum", "p-persistent optimum", [b.throughput_ratio for b in best]),
        ("throughput_ratio", "eca", locked, eca(analytic.eca_throughput)),
        ("throughput_ratio", "tdma", "TDMA", [analytic.tdma_throughput() for _ in counts]),
        (delay, "optimum", "p-persistent optimum", ms([b.access_delay_slots for b in best])),
        (delay, "eca", locked, ms(eca(analytic.eca_access_delay_slots))),
        (delay, "tdma", "TDMA", ms([analytic.tdma_access_delay_slots(n) for n in counts])),
        ("collision_rate", "optimum", "p-persistent optimum", [b.collision_probability for b in best]),
    ]
    found = [dict(zip(("metric", "id", "label", "values"), curve, strict=True)) for curve in curves]
    return [c if c["metric"] == "throughput_ratio" else c | {"load": saturated} for c in found]


def explorer(
    grid: Mapping[str, Any],
    *,
    figure: Figure | bytes,
    alt: str,
    compare: Sequence[str] = (),
    n_stations: int | None = None,
) -> Block:
    """The kernel-free explorer of a grid from `explorer_grid`.

    Parameters
    ----------
    figure, alt
        Still picture (a matplotlib figure, or the bytes of a PNG) shown where no script runs, and its text.
    compare : sequence of str
        Configs set side by side at first, 1 to 4 ids; default: the first two.
    n_stations : int
        Station count shown at first; default: the middle of the axis.
    """
    if not alt.strip():
        raise ValueError("explorer needs alt, a sentence that says what the still picture shows")
    ids = [config["id"] for config in grid["axes"]["config"]]
    chosen = list(compare) or ids[:2]
    if not set(chosen) <= set(ids) or len(chosen) > MAX_COMPARED:
        raise ValueError(f"compare takes up to {MAX_COMPARED} of {ids}, got {chosen}")
    counts = grid["axes"]["n"]
    if n_stations is not None and n_stations not in counts:
        raise ValueError(f"n_stations must be one of {counts}, got {n_stations}")
    start = {"n": n_stations or counts[len(counts) // 2], "compare": chosen}
    still = f'<img src="data:image/png;base64,{_png(figure)}" alt="{escape(alt)}" style="max-width:100%">'
    return make_block("explorer", dict(grid) | {"start": start}, still)


def _check_frame(frame: pd.DataFrame) -> None:
    missing = [name for name in GRID_COLUMNS if name not in frame.columns]
    if missing:
        raise ValueError(f"the frame has no column {missing}; explorer_grid needs {', '.join(GRID_COLUMNS)}")
    keys = list(KEYS)
    if not len(frame) or frame[keys].isna().to_numpy().any():
        raise ValueError(f"explorer_grid needs at least one row, and {', '.join(keys)} in each")
    if frame.duplicated(keys).any():
        twice = frame.loc[frame.duplicated(keys), keys].iloc[0].to_dict()
        raise ValueError(f"the frame has two rows for {twice}; pass one row a point and metric")


def _configs(frame: pd.DataFrame) -> list[dict[str, Any]]:
    facts = frame[["config", "label", "cw_min", "cw_max"]].drop_duplicates()
    if facts["config"].duplicated().any():
        name = facts.loc[facts["config"].duplicated(), "config"].iloc[0]
        raise ValueError(f"config {name!r} has more than one label, cw_min or cw_max; give each its own id")
    return [
        {"id": row.config, "label": row.label, "cw_min": _window(row.cw_min), "cw_max": _window(row.cw_max)}
        for row in facts.itertuples(index=False)
    ]


def _window(value: float) -> int | None:
    return None if math.isnan(value) else int(value)


def _metric(name: str, known: Mapping[str, tuple[str, str, str]]) -> dict[str, str]:
    label, unit, hint = known.get(name, (name.replace("_", " ").capitalize(), "", ""))
    return {"id": name, "label": label, "unit": unit, "hint": hint}


def _values(frame: pd.DataFrame, order: Mapping[str, list[str]], n: list[int]) -> list[Any]:
    rows = frame[[*KEYS, "mean", "half_width"]].itertuples(index=False, name=None)
    points = {(*key, int(k)): _pair(mean, half) for *key, k, mean, half in rows}

    def nested(*chosen: Any) -> list[Any]:
        if len(chosen) == len(KEYS) - 1:
            curve = [points.get((*chosen, k)) for k in n]
            return curve if any(curve) else []
        return [nested(*chosen, name) for name in order[KEYS[len(chosen)]]]

    return nested()


def _pair(mean: float, half: float | None) -> list[float | None] | None:
    """[mean, half-width] to the second digit of the half-width; None where nothing was computed."""
    value, spread = _finite(mean, 6), _finite(half, 2)
    if value is None:
        return None
    if not spread:
        return [value, spread]
    digits = min(max(1 - math.floor(math.log10(spread)), 0), 9)
    return [round(float(mean), digits), round(spread, digits)]


def _finite(value: float | None, digits: int) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{float(value):.{digits}g}")


def _png(figure: Figure | bytes) -> str:
    if not isinstance(figure, bytes):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=100, bbox_inches="tight", metadata={"Software": None})
        figure = buffer.getvalue()
    return base64.b64encode(figure).decode()
