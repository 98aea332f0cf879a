"""A log described from its own numbers; nothing in it is typed by hand."""

import json
from typing import Any

import numpy as np

from fedmorl.data.dataset import ARRAYS, OfflineDataset
from fedmorl.data.partition import N_BINS, count_cells, coverage, visitation_entropy
from fedmorl.dca.logs import OUTCOMES
from fedmorl.dca.policy import OBSERVATION


def card(log: OfflineDataset) -> str:
    """The card of a log, as text of one fact a line."""
    e, t, n, o = log.observations.shape
    parts = [
        ("content", log.content_hash),
        ("shape", f"{e} episodes x {t} decisions x {n} stations x {o} observations"),
        ("transitions", f"{log.n_transitions}, {log.mask.mean():.1%} of the entries"),
        ("observations", ", ".join(log.observation_names)),
        ("reward", f"r_glob + {log.alpha:g} r_local, d2lt {log.d2lt}"),
        ("seeds", ", ".join(f"{s}:{r}" for s, r in zip(log.seeds[:8], log.replications[:8], strict=True))
            + (", ..." if e > 8 else "")),
        *_scenario(log),
        *_statistics(log),
    ]  # fmt: skip
    lines = [f"{name:<14} {text}" for name, text in parts]
    arrays = [f"  {name:<26} {a.dtype.str} {a.shape}  {_unit(name)}" for name, a in log.arrays().items()]
    return "\n".join([*lines, "arrays", *arrays])


def _unit(name: str) -> str:
    from fedmorl.data.files import EXTRA_UNITS

    return ARRAYS[name][2] if name in ARRAYS else EXTRA_UNITS.get(name.removeprefix("extras/"), "")


def _scenario(log: OfflineDataset) -> list[tuple[str, str]]:
    """The scenario's fields, and its stations with equal ones drawn together."""
    rows = [("scenario", _plain({k: v for k, v in log.scenario.items() if k != "stations"}))]
    described = [_plain(station) for station in log.scenario.get("stations", [])]
    for text in dict.fromkeys(described[k] for k in log.stations if k < len(described)):
        which = [str(k) for k in log.stations if k < len(described) and described[k] == text]
        rows.append((f"station {which[0]}" if len(which) == 1 else f"{len(which)} stations", text))
    return rows


def _plain(values: dict[str, Any]) -> str:
    return ", ".join(
        f"{k} {v if isinstance(v, str) else json.dumps(v)}" for k, v in values.items() if v not in (None, "")
    )


def _statistics(log: OfflineDataset) -> list[tuple[str, str]]:
    flat, slots = log.transitions(), log.durations.sum(1)  # (E, N)
    returns = log.rewards.sum(1, dtype=float)
    rate, lasts = log.actions.sum((0, 1)) / log.mask.sum((0, 1)), np.percentile(flat.durations, [50, 95, 100])
    rows = [
        ("return", f"{_spread(returns)} a station and episode; {returns.sum() / slots.sum():.3g} a slot"),
        ("ends", f"{int(log.terminated.sum())} terminated, {int(log.truncated.sum())} truncated"),
        ("transmits", f"{flat.actions.mean():.4f} of the decisions; by station {rate.min():.4f} to {rate.max():.4f}"),
        ("duration", f"{flat.durations.mean():.1f} slots; median, 95 %, most: {', '.join(f'{x:g}' for x in lasts)}"),
    ]
    if "outcomes" in flat.extras:
        shares = np.bincount(flat.extras["outcomes"], minlength=len(OUTCOMES)) / len(flat)
        rows.append(("outcomes", ", ".join(f"{name} {x:.4f}" for name, x in zip(OUTCOMES, shares, strict=True))))
    if "outcomes" in flat.extras and log.observation_names[: len(OBSERVATION)] == OBSERVATION:
        visits = count_cells(flat).sum((1, 2))
        text = f"{coverage(visits):.3f} of {N_BINS} bins with >= 5 visits, entropy {visitation_entropy(visits):.3f}"
        rows.append(("coverage", text))
    return rows


def _spread(values: np.ndarray) -> str:
    return f"{values.mean():.4g} (sd {values.std():.3g}, {values.min():.4g} to {values.max():.4g})"
