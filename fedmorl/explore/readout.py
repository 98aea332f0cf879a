"""What the live explorer writes: the table, the legend, the two cuts, as strings of HTML."""

import math
from collections.abc import Sequence
from html import escape

from fedmorl.dca import PRESETS
from fedmorl.explore import strip
from fedmorl.explore.chart import BOUND_LABEL, Curve, legend, panel
from fedmorl.explore.configuration import Configuration, label_of_load
from fedmorl.explore.points import METRICS, Estimate, Result
from fedmorl.explore.sendings import STRIP_SLOTS, Sending

CSS = ("now", "pinned")
FITTED = ("mean_access_delay_ms", "mean_delay_ms")  # every other metric lies between 0 and 1
N_TICKS = (1, 2, 5, 10, 20, 50)
CW_TICKS = (1, 3, 7, 15, 31, 63, 127, 255, 511, 1023)


def name_of(configuration: Configuration) -> str:
    """`AC_BE 31–1023`, or the window alone, or the policy's name."""
    c = configuration
    if c.policy is not None:
        return c.name
    key = (c.cw_min, c.cw_max, c.eca_backoff_slots)
    known = [s.name for s in PRESETS.values() if (s.cw_min, s.cw_max, s.eca_backoff_slots) == key]
    eca = f"ECA V={c.eca_backoff_slots} " if c.eca_backoff_slots and not known else ""
    return f"{known[0] + ' ' if known else eca}{c.cw_min}–{c.cw_max}"


def describe(configuration: Configuration) -> str:
    """`frozen, saturated`; under a policy nobody counts down."""
    load = label_of_load(configuration.load)
    return load if configuration.policy is not None else f"{configuration.countdown}, {load}"


def number(value: float, half_width: float = math.nan) -> str:
    """To the second digit of the half-width; without one, to four figures; a dash where undefined."""
    if not math.isfinite(value):
        return "–"
    if math.isfinite(half_width) and half_width > 0:
        digits = min(max(1 - math.floor(math.log10(half_width)), 0), 6)
        return f"{value:.{digits}f} <small>± {half_width:.{digits}f}</small>"
    return f"{value:.4g}"


def table(shown: Sequence[Result], generation: int) -> str:
    """Metrics by row; the current and the pinned configuration, theory and bounds by column."""
    now = shown[0]
    letters = [""] if len(shown) == 1 else ["B ", "A "]
    heads = [
        f'<th scope="col" class="{css}">{letter}{escape(name_of(r.configuration))}'
        f"<small>{escape(describe(r.configuration))}</small></th>"
        for css, letter, r in zip(CSS, letters, shown, strict=False)
    ]
    heads.append('<th scope="col">Theory<small>fixed point</small></th>')
    heads += [f'<th scope="col">{escape(short(name))}</th>' for name in now.bounds]
    rows = "".join(_row(name, shown) for name in METRICS)
    return (
        f'<div class="scroll"><table data-generation="{generation}" data-n="{now.n_stations}">'
        f'<thead><tr><th scope="row"><b>N = {now.n_stations}</b></th>{"".join(heads)}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def short(bound: str) -> str:
    """A bound's name for a column's head."""
    return {"optimum": "p-persistent", "eca": "ECA, locked", "offered": "offered"}.get(bound, BOUND_LABEL[bound])


def _row(name: str, shown: Sequence[Result]) -> str:
    label, unit, hint = METRICS[name]
    missing = Estimate(math.nan, math.nan)
    estimates = [r.metrics.get(name, missing) for r in shown]
    cells = [f'<td class="{css}">{number(e.mean, e.half_width)}</td>' for css, e in zip(CSS, estimates, strict=False)]
    references = [shown[0].theory, *shown[0].bounds.values()]
    cells += [f"<td><small>{number(r[name]) if name in r else ''}</small></td>" for r in references]
    head = f"{escape(label)}{f' [{unit}]' if unit else ''} <small>{escape(hint)}</small>"
    return f'<tr><th scope="row">{head}</th>{"".join(cells)}</tr>'


def charts(shown: Sequence[Result], metric: str, cuts: Sequence[Sequence[Sequence[tuple[float, Result]]]]) -> str:
    """Two cuts through the same surface: over N with the windows as set, over CWmin with N as set.

    `cuts` holds for each chart, and in it for each configuration, (x, result) with x rising. A policy has no window:
    over CWmin it is a level line without a marker.
    """
    now, (over_n, over_cw) = shown[0], cuts
    label, unit, _ = METRICS[metric]
    named = label + (f" [{unit}]" if unit else "")
    top = None if metric in FITTED else 1.0
    pictures = [
        panel(
            f"{named} over the number of stations", _curves(over_n, metric, [now.n_stations] * 2),
            _bounds(over_n[0], metric), x_label="stations N", x_ticks=N_TICKS, y_top=top,
        ),
        panel(
            f"{named} over the window, N = {now.n_stations}",
            _curves(over_cw, metric, [_window(r.configuration) for r in shown]),
            _flat(now, metric), x_label="CWmin", x_ticks=CW_TICKS, y_top=top,
        ),
    ]  # fmt: skip
    letters = [""] if len(shown) == 1 else ["B: ", "A: "]
    keys = [
        (css, f"{letter}{name_of(r.configuration)}, {describe(r.configuration)}")
        for css, letter, r in zip(CSS, letters, shown, strict=False)
    ]
    drawn = [name for name, bound in now.bounds.items() if metric in bound]
    return f'<div class="panels">{"".join(pictures)}</div>{legend(keys, drawn, metric in now.theory)}'


def _window(configuration: Configuration) -> int | None:
    return None if configuration.policy is not None else configuration.cw_min


def _curves(cut: Sequence[Sequence[tuple[float, Result]]], metric: str, here: Sequence[float | None]) -> list[Curve]:
    curves = [
        Curve(
            css,
            [(x, r.metrics[metric].mean, r.metrics[metric].half_width) for x, r in points],
            [(x, r.theory[metric]) for x, r in points if metric in r.theory],
            x,
        )
        for css, points, x in zip(CSS, cut, here, strict=False)
    ]
    return curves[::-1]  # the current configuration on top


def _bounds(points: Sequence[tuple[float, Result]], metric: str) -> dict[str, list[tuple[float, float]]]:
    names = dict.fromkeys(name for _, r in points for name in r.bounds if metric in r.bounds[name])
    return {
        name: [(x, r.bounds[name][metric]) for x, r in points if metric in r.bounds.get(name, {})] for name in names
    }


def _flat(now: Result, metric: str) -> dict[str, list[tuple[float, float]]]:
    ends = (CW_TICKS[0], CW_TICKS[-1])
    return {name: [(x, b[metric]) for x in ends] for name, b in now.bounds.items() if metric in b}


def strips(shown: Sequence[Result], sendings: Sequence[Sequence[Sending]]) -> str:
    """Who sends when, a strip for the current and one for the pinned configuration."""
    letters = [""] if len(shown) == 1 else ["B: ", "A: "]
    drawn = [
        strip.strip(f"Who sends when. {letter}{name_of(r.configuration)}, N = {r.n_stations}", sent, r.n_stations,
                    STRIP_SLOTS)
        for letter, r, sent in zip(letters, shown, sendings, strict=False)
    ]  # fmt: skip
    return f'<div class="panels">{"".join(drawn)}</div>{strip.legend()}'


def status(text: str, failed: bool = False) -> str:
    """One line that assistive technology reads out when it changes."""
    colour = ";color:var(--jp-error-color1,#b00020)" if failed else ""
    return f'<span role="status" style="font-size:12px{colour}">{escape(text)}</span>'
