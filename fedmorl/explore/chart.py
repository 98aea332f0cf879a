"""The live explorer's picture as a string of SVG, in about a millisecond; a raster picture costs hundreds.

Colours are Okabe and Ito's (2008); dash and marker tell the same. Text and lines take JupyterLab's own colours,
so both of its themes hold.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from fedmorl.embed.timeline import FILL

WIDTH, HEIGHT = 500, 290
LEFT, RIGHT, TOP, BOTTOM = 46, 16, 12, 42

STYLE = """<style>
.fm-live svg{display:block;width:100%;height:auto;overflow:visible}
.fm-live svg text{fill:var(--jp-ui-font-color2,#555);font:12px var(--jp-ui-font-family,sans-serif)}
.fm-live .rule{stroke:var(--jp-border-color2,#ddd);stroke-width:1}
.fm-live .here{stroke:var(--jp-ui-font-color3,#999);stroke-width:1}
.fm-live .curve{fill:none;stroke-width:2;stroke-linejoin:round}
.fm-live .theory{fill:none;stroke-width:1.2;stroke-dasharray:1 3;stroke-linecap:round}
.fm-live .bound{fill:none;stroke:var(--jp-ui-font-color3,#999);stroke-width:1.4}
.fm-live{--fm-now:#0072b2;--fm-pinned:#c25a00}
[data-jp-theme-light="false"] .fm-live{--fm-now:#56b4e9;--fm-pinned:#e69f00}
.fm-live g.now{color:var(--fm-now)}.fm-live g.pinned{color:var(--fm-pinned)}
.fm-live .now .curve,.fm-live .pinned .curve,.fm-live .now .theory,.fm-live .pinned .theory{stroke:currentColor}
.fm-live .pinned .curve{stroke-dasharray:7 4}
.fm-live .band{fill:currentColor;fill-opacity:.18}
.fm-live .dot{fill:currentColor;stroke:var(--jp-layout-color0,#fff);stroke-width:1.5}
.fm-live .panels{display:grid;grid-template-columns:repeat(auto-fit,minmax(19rem,1fr));gap:.4rem 1.6rem}
.fm-live .panels p{margin:.2rem 0 0;font-size:13px;font-weight:600;color:var(--jp-ui-font-color1,#222)}
.fm-live .legend{display:flex;flex-wrap:wrap;gap:.1rem 1.2rem;margin:.3rem 0 0;font-size:12px;
color:var(--jp-ui-font-color2,#555)}
.fm-live .legend span{display:inline-flex;gap:.4rem;align-items:center}
.fm-live .legend svg{width:28px;flex:none}
.fm-live table{border-collapse:collapse;width:100%;font-size:13px;font-variant-numeric:tabular-nums;
color:var(--jp-ui-font-color1,#222)}
.fm-live th,.fm-live td{padding:.22rem .6rem;text-align:right;font-weight:400;white-space:nowrap;line-height:1.35;
border-bottom:1px solid var(--jp-border-color2,#ddd)}
.fm-live thead th{font-weight:600;color:var(--jp-ui-font-color2,#555);vertical-align:bottom}
.fm-live thead .now{color:var(--fm-now)}.fm-live thead .pinned{color:var(--fm-pinned)}
.fm-live th[scope=row]{text-align:left;padding-left:0;white-space:normal;min-width:9rem}
.fm-live .scroll{overflow-x:auto}
.fm-live small{color:var(--jp-ui-font-color2,#555)}
.fm-live thead small{display:block;font-weight:400}
.fm-live td.now{font-size:15px}.fm-live .strip small{font-size:12px}
.fm-live .success{fill:SUCCESS}.fm-live .collision{fill:COLLISION}
.fm-live .cross{fill:none;stroke:#fff;stroke-width:1.2}
</style>""".replace("SUCCESS", FILL["success"]).replace("COLLISION", FILL["collision"])

BOUND_DASH = {"optimum": "12 5", "eca": "1 4", "tdma": "12 4 2 4", "offered": "4 4"}
BOUND_LABEL = {
    "optimum": "p-persistent optimum",
    "eca": "CSMA/ECA, locked",
    "tdma": "TDMA",
    "offered": "what is offered",
}


@dataclass(frozen=True)
class Curve:
    """One configuration's values along an axis: (x, mean, half-width), x rising; theory as (x, value)."""

    css: str  # "now" or "pinned"
    points: Sequence[tuple[float, float, float]]
    theory: Sequence[tuple[float, float]] = ()
    here: float | None = None  # the x whose marker is drawn


def panel(
    title: str,
    curves: Sequence[Curve],
    bounds: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x_label: str,
    x_ticks: Sequence[float],
    y_top: float | None = None,
) -> str:
    """One small chart: `curves` and `bounds` over a logarithmic axis; `y_top` None fits the values."""
    highest = max((mean for c in curves for _, mean, _ in c.points if math.isfinite(mean)), default=1.0)
    scale = _Scale(x_ticks[0], x_ticks[-1], y_top or highest * 1.05 or 1.0)
    parts = [*_frame(scale, x_ticks, x_label)]
    parts += [
        f'<path class="bound" stroke-dasharray="{BOUND_DASH[name]}" d="{scale.path(points)}"/>'
        for name, points in bounds.items()
    ]
    for curve in curves:
        parts.append(f'<g class="{curve.css}">{_curve(curve, scale)}</g>')
    told = escape(_told(title, curves))
    return (
        f'<div><p>{escape(title)}</p><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{told}">'
        f"{''.join(parts)}</svg></div>"
    )


def legend(curves: Iterable[tuple[str, str]], bounds: Iterable[str], theory: bool) -> str:
    """What each line is; `curves` are (css, label)."""
    items = [key(f'<g class="{css}"><path class="curve" d="M1 6H27"/></g>', label) for css, label in curves]
    if theory:
        items.append(key('<g class="now"><path class="theory" d="M1 6H27"/></g>', "fixed point (theory)"))
    for name in bounds:
        items.append(key(f'<path class="bound" stroke-dasharray="{BOUND_DASH[name]}" d="M1 6H27"/>', BOUND_LABEL[name]))
    return f'<div class="legend">{"".join(items)}</div>'


def key(drawing: str, label: str) -> str:
    """One entry of a legend; `drawing` is SVG in a box of 28 by 12."""
    return f'<span><svg viewBox="0 0 28 12" aria-hidden="true">{drawing}</svg>{escape(label)}</span>'


@dataclass(frozen=True)
class _Scale:
    """Data to picture: x logarithmic from low to high, y from 0 to top."""

    low: float
    high: float
    top: float

    def x(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - min(max(value / self.top, 0), 1.02) * (HEIGHT - TOP - BOTTOM)

    def path(self, points: Iterable[tuple[float, float]]) -> str:
        shown = [f"{self.x(x):.1f} {self.y(y):.1f}" for x, y in points if y / self.top < 1.02]  # leaves out NaN too
        return "M" + "L".join(shown) if shown else ""


def _frame(scale: _Scale, x_ticks: Sequence[float], x_label: str) -> Iterable[str]:
    for value in y_ticks(scale.top):
        y = scale.y(value)
        yield f'<path class="rule" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
        yield f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
    for value in x_ticks:
        yield f'<text x="{scale.x(value):.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{value:g}</text>'
    middle = (LEFT + WIDTH - RIGHT) / 2
    yield f'<text x="{middle}" y="{HEIGHT - 5}" text-anchor="middle">{escape(x_label)}</text>'


def y_ticks(top: float) -> list[float]:
    """About five round values from 0 to `top`."""
    rough = top / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    return [k * step for k in range(int(top / step * 1.0001) + 1)]


def _curve(curve: Curve, scale: _Scale) -> str:
    known = [(x, m, h if math.isfinite(h) else 0.0) for x, m, h in curve.points if math.isfinite(m)]
    upper = [f"{scale.x(x):.1f} {scale.y(m + h):.1f}" for x, m, h in known]
    lower = [f"{scale.x(x):.1f} {scale.y(m - h):.1f}" for x, m, h in reversed(known)]
    parts = [f'<path class="band" d="M{"L".join(upper + lower)}Z"/>' if len(known) > 1 else ""]
    parts.append(f'<path class="theory" d="{scale.path(curve.theory)}"/>')
    parts.append(f'<path class="curve" d="{scale.path((x, m) for x, m, _ in known)}"/>')
    for x, m, _ in known:
        if x == curve.here:
            parts.append(_marker(curve.css, scale.x(x), scale.y(m)))
    return "".join(parts)


def _marker(css: str, x: float, y: float) -> str:
    if css == "now":
        return f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="6"/>'
    return f'<rect class="dot" x="{x - 5:.1f}" y="{y - 5:.1f}" width="10" height="10"/>'


def _told(title: str, curves: Sequence[Curve]) -> str:
    said = [title + "."]
    for curve in curves:
        values = ", ".join(f"{m:.3g} at {x:g}" for x, m, _ in curve.points if math.isfinite(m))
        said.append(f"{'Current' if curve.css == 'now' else 'Pinned'} configuration: {values or 'nothing yet'}.")
    return " ".join(said)
