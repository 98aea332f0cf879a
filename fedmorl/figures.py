"""One function a figure kind: arrays or tables in, a matplotlib Figure out.

Every function returns a `Picture` and shows, saves and remembers nothing: no pyplot, no global state. The look is in
`STYLE`, the colours are Okabe and Ito's, which readers with any kind of colour vision can tell apart, and each series
has a marker or a dash pattern of its own, so that colour is never the only sign. The ground is white in both themes
of the book.

A new kind is a function that starts with `_axes` or `_panels` and ends with `_legend`, inside `rc_context(STYLE)`.

Tables are tidy: one row a point, with the columns `x` (its name is an argument), `panel`, `series`, `mean`, and `low`
and `high` where there is an interval. Panels and series stand in the order of their first row.
"""

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

if TYPE_CHECKING:
    import pandas as pd

BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES: tuple[Any, ...] = ((0, (6, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (3, 1, 1, 1, 1, 1)))
OUTCOME = {"success": GREEN, "collision": VERMILLION, "error": PURPLE}  # as in the timeline player
LETTER = {"success": "S", "collision": "C", "error": "E"}
INK, MUTED, PALE = "#222222", "#5A5A5A", "#E8EAED"
WIDTH = 7.4  # inches, the book's text column
DPI, SCREEN_DPI = 160, 96  # drawn finer than shown, for screens with many dots

STYLE: Any = {
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.labelsize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": PALE,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
    "font.size": 9,
}


class Picture(Figure):
    """A Figure that a notebook shows as a small PNG, whatever backend is set; equal figures give equal bytes.

    64 colours are plenty for a diagram and make it a quarter as heavy, so that a page of a dozen stays light.
    """

    def png(self) -> bytes:
        """The figure as PNG."""
        from PIL import Image

        drawn, packed = io.BytesIO(), io.BytesIO()
        with rc_context(STYLE):
            self.savefig(drawn, format="png", dpi=DPI, metadata={"Software": None})
        few = Image.open(drawn).convert("RGB").quantize(64, dither=Image.Dither.NONE)
        few.save(packed, format="png", optimize=True)
        return packed.getvalue()

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        width, height = (round(inches * SCREEN_DPI) for inches in self.get_size_inches())
        return self.png(), {"width": width, "height": height}


# --------------------------------------------------------------------------------------------- curves


def curves(
    measured: "pd.DataFrame",
    predicted: "pd.DataFrame | None" = None,
    references: "pd.DataFrame | None" = None,
    *,
    x: str,
    x_label: str,
    y_label: str,
    names: tuple[str, str] = ("simulated", "closed form"),
    x_scale: str = "linear",
    y_scale: str = "linear",
    columns: int = 2,
) -> Picture:
    """Means with interval bands against x, a panel each for the values of `panel`, with lines of theory.

    Parameters
    ----------
    measured : DataFrame
        Columns x, panel, series, mean, low, high: markers with a band from low to high. Without `predicted` the
        markers are joined.
    predicted : DataFrame, optional
        Columns x, panel, series, mean: a line in the colour of its series, no markers.
    references : DataFrame, optional
        Columns x, series, mean, and panel if not for all panels: grey dashed lines.
    names : pair of str
        What the legend calls the measured and the predicted of a series.
    """
    with rc_context(STYLE):
        figure, axes = _panels(_values(measured, "panel"), columns, x_label, y_label)
        looks = _looks(_values(measured, "series"))
        for title, axis in axes.items():
            axis.set(xscale=x_scale, yscale=y_scale)
            _reference_lines(axis, _series(references, title), x)
            for series, rows in _series(predicted, title):
                axis.plot(rows[x], rows["mean"], color=looks[series]["color"], label=f"{series}, {names[1]}", zorder=2)
            for series, rows in _series(measured, title):
                name = series if predicted is None else f"{series}, {names[0]}"
                joined = "-" if predicted is None else "none"
                axis.fill_between(rows[x], rows["low"], rows["high"], color=looks[series]["color"], alpha=0.25, lw=0)
                axis.plot(rows[x], rows["mean"], linestyle=joined, label=name, zorder=3, **looks[series])
        _plain_ticks(axes.values(), measured[x], x_scale, y_scale)
        return _legend(figure, axes.values())


def _reference_lines(axis: Axes, references: "Iterable[tuple[str, pd.DataFrame]]", x: str) -> None:
    for (series, rows), dash in zip(references, cycle(DASHES), strict=False):
        axis.plot(rows[x], rows["mean"], color=MUTED, linestyle=dash, lw=1.2, label=series, zorder=1)


# ----------------------------------------------------------------------------------- points side by side


def comparison(
    frame: "pd.DataFrame",
    *,
    x: str,
    x_label: str,
    y_label: str,
    columns: int = 2,
) -> Picture:
    """Points with their intervals, side by side at each x: two simulators, two rules.

    `frame` has the columns x, panel, series, mean, low, high. The x axis has one place a value, number
    or word, evenly spaced.
    """
    with rc_context(STYLE):
        figure, axes = _panels(_values(frame, "panel"), columns, x_label, y_label)
        _side_by_side(axes, frame, x)
        return _legend(figure, axes.values())


def residuals(
    frame: "pd.DataFrame",
    *,
    x: str,
    x_label: str,
    y_label: str,
    columns: int = 2,
) -> Picture:
    """Simulation minus reference with intervals, beside zero; a grey band is what is allowed.

    `frame` has the columns x, panel, series, mean, low, high, and optionally tolerance: half the width of the band,
    one value a panel, in the unit of `mean`.
    """
    with rc_context(STYLE):
        figure, axes = _panels(_values(frame, "panel"), columns, x_label, y_label)
        for title, axis in axes.items():
            axis.axhline(0, color=INK, lw=1)
            if "tolerance" in frame:
                allowed = float(_of_panel(frame, title)["tolerance"].iloc[0])
                axis.axhspan(-allowed, allowed, color=PALE, zorder=0, label="tolerance")
                axis.grid(False, axis="y")
        _side_by_side(axes, frame, x)
        return _legend(figure, axes.values())


def _side_by_side(axes: Mapping[str, Axes], frame: "pd.DataFrame", x: str) -> None:
    """Markers with error bars, the series of one x shifted beside each other by at most a quarter of a place."""
    series_names, places = _values(frame, "series"), _places(frame[x])
    looks = _looks(series_names)
    shifts = dict(zip(series_names, _spread(len(series_names)), strict=True))
    for title, axis in axes.items():
        for series, rows in _series(frame, title):
            at = np.array([places.index(value) for value in rows[x]]) + shifts[series]
            bars = np.stack([rows["mean"] - rows["low"], rows["high"] - rows["mean"]])  # (2, points)
            look: Any = {"linestyle": "none", "elinewidth": 1.2, "capsize": 2, **looks[series]}
            axis.errorbar(at, rows["mean"], yerr=np.maximum(bars, 0), label=series, zorder=3, **look)
        axis.set_xticks(range(len(places)), [place if isinstance(place, str) else f"{place:g}" for place in places])
        axis.set_xlim(-0.6, len(places) - 0.4)
        axis.grid(False, axis="x")


def _places(values: "pd.Series") -> list[Any]:
    """Numbers in order, words in the order in which they come."""
    places = list(values.unique())
    return places if isinstance(places[0], str) else sorted(places)


def _spread(count: int) -> np.ndarray:
    return np.linspace(-0.25, 0.25, count) if count > 1 else np.zeros(1)


# ---------------------------------------------------------------------------------------- one figure each


def fixed_point(
    guess: np.ndarray, implied: Mapping[str, np.ndarray], solved: Mapping[str, float], *, x_label: str, y_label: str
) -> Picture:
    """Curves of the value that a guess implies, shape (P,) each, and where they cross the diagonal."""
    with rc_context(STYLE):
        figure, axis = _axes(height=3.4)
        axis.plot(guess, guess, color=MUTED, linestyle=DASHES[0], lw=1.2, label="implied = guess")
        for name, colour in zip(implied, cycle(COLOURS), strict=False):
            axis.plot(guess, implied[name], color=colour, label=name)
            axis.plot([solved[name]], [solved[name]], "o", color=colour, markersize=6)
            axis.annotate(f"{solved[name]:.3f}", (solved[name], solved[name]), (7, -3), textcoords="offset points")
        axis.set(xlabel=x_label, ylabel=y_label, xlim=(guess[0], guess[-1]), ylim=(0, 1))
        return _legend(figure, [axis], columns=4)


def time_shares(frame: "pd.DataFrame", *, x: str, x_label: str, columns: int = 4) -> Picture:
    """How the channel's time splits up: a stacked bar at each x, which adds up to 1.

    `frame` has the columns x, panel, and one a share; shares are stacked in the order of the columns.
    """
    names = [name for name in frame.columns if name not in (x, "panel")]
    fills = dict(zip(names, cycle((GREEN, VERMILLION, SKY, PALE, ORANGE)), strict=False))
    hatches = dict(zip(names, cycle(("", "////", "")), strict=False))
    with rc_context(STYLE):
        figure, axes = _panels(_values(frame, "panel"), columns, x_label, "share of time")
        for title, axis in axes.items():
            rows = _of_panel(frame, title)
            at, bottom = np.arange(len(rows)), np.zeros(len(rows))
            for name in names:
                look = {"color": fills[name], "hatch": hatches[name], "edgecolor": "white", "linewidth": 0}
                axis.bar(at, rows[name], 0.85, bottom=bottom, label=name, **look)
                bottom += rows[name].to_numpy()
            every = 1 + len(at) // 9
            axis.set_xticks(at[::every], [f"{value:g}" for value in rows[x][::every]])
            axis.set_ylim(0, 1)
            axis.grid(False)
        return _legend(figure, axes.values(), columns=len(names))


def tails(
    delays_slots: Mapping[str, np.ndarray], percents: Sequence[float], *, slot_us: float, lines: Mapping[str, float]
) -> Picture:
    """Share of packets that wait longer than a given time, both axes logarithmic.

    Parameters
    ----------
    delays_slots : mapping of str to ndarray, shape (P,)
        Percentiles of the delay [slots], one a percent.
    percents : sequence of float, shape (P,)
        Which percentiles these are, 0..100, rising.
    slot_us : float
        Length of a slot [us]; the axis is in milliseconds.
    lines : mapping of str to float
        Vertical lines at delays [slots].
    """
    longer = 1 - np.asarray(percents, dtype=float) / 100
    with rc_context(STYLE):
        figure, axis = _axes(height=3.6)
        dashes: Iterator[Any] = cycle(("-", *DASHES))
        for (name, slots), colour, dash in zip(delays_slots.items(), cycle(COLOURS), dashes, strict=False):
            axis.plot(np.asarray(slots) * slot_us / 1000, longer, color=colour, linestyle=dash, label=name)
        for (name, at), dash in zip(lines.items(), cycle(DASHES), strict=False):
            axis.axvline(at * slot_us / 1000, color=MUTED, linestyle=dash, lw=1.2, label=name)
        axis.set(xscale="log", yscale="log", xlabel="access delay [ms]", ylabel="share of packets that wait longer")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_major_formatter("{x:g}")
        return _legend(figure, [axis])


def timeline_still(steps: Sequence[Mapping[str, Any]], *, slot_us: float) -> Picture:
    """A trace to scale: a row a station, a box a transmission, and the counters that wait meanwhile.

    Parameters
    ----------
    steps : sequence of dict
        What `fedmorl.embed.timeline_steps` returns: `kind`, `slot`, `end`, `counters`, `cw`, and for busy periods
        `senders` and `after`.
    slot_us : float
        Length of a slot [us], for the upper axis.

    Notes
    -----
    A box holds S (success), C (collision) or E (frame error), and below it the window CW of the next draw. In the rows
    of those who wait stands the counter they hold.
    """
    busy = [step for step in steps if step["kind"] in OUTCOME]
    n_stations = len(steps[0]["counters"])
    with rc_context(STYLE):
        figure, axis = _axes(height=1.1 + 0.5 * n_stations)
        for step in busy:
            _draw_busy(axis, step, n_stations)
        for kind in dict.fromkeys(step["kind"] for step in busy):
            axis.bar(0, 0, color=OUTCOME[kind], label=f"{LETTER[kind]}: {kind}")
        axis.bar(0, 0, color=PALE, label="waits, holding a counter")
        axis.set(xlim=(steps[0]["slot"], steps[-1]["end"]), ylim=(n_stations - 0.45, -0.55), xlabel="time [slots]")
        axis.set_yticks(range(n_stations), [f"station {i + 1}" for i in range(n_stations)])
        axis.tick_params(axis="y", length=0)
        axis.grid(False)
        to_ms: Any = (lambda slot: slot * slot_us / 1000, lambda ms: ms * 1000 / slot_us)
        axis.secondary_xaxis("top", to_ms).set_xlabel("time [ms]")
        return _legend(figure, [axis])


def _draw_busy(axis: Axes, step: Mapping[str, Any], n_stations: int) -> None:
    middle, length = (step["slot"] + step["end"]) / 2, step["end"] - step["slot"]
    for i in range(n_stations):
        sends = i in step["senders"]
        fill, word = (OUTCOME[step["kind"]], LETTER[step["kind"]]) if sends else (PALE, step["counters"][i])
        height, bold = (0.5, "bold") if sends else (0.26, "normal")
        axis.barh(i, length, height, left=step["slot"], color=fill, edgecolor="white", linewidth=0.5)
        word = "–" if word is None else word
        axis.text(middle, i, word, ha="center", va="center", weight=bold, color="black" if sends else MUTED)
        if sends and step["after"]["cw"][i] is not None:
            axis.text(middle, i + 0.27, step["after"]["cw"][i], ha="center", va="top", fontsize=7)


def who_sends(
    sendings: "Mapping[str, Sequence[tuple[int, int, int, str]]]", *, n_stations: int, n_slots: int
) -> Picture:
    """Who sends when under several rules, to scale: a panel a rule, a row a station, a box a transmission.

    Parameters
    ----------
    sendings : mapping
        Title of the panel -> transmissions (station from 0, first slot, slot after the last, success or collision),
        as `fedmorl.explore.who_sends` returns them.
    n_stations : int
        Rows of each panel.
    n_slots : int
        Length of the time axis [slots].
    """
    every = -(-n_stations // 10)
    with rc_context(STYLE):
        figure, axes = _panels(list(sendings), 1, "time [slots]", "station")
        figure.set_size_inches(WIDTH, 1 + (0.5 + 0.11 * n_stations) * len(axes))
        for title, axis in axes.items():
            for outcome, hatch in (("success", ""), ("collision", "//////")):
                sent = [sending for sending in sendings[title] if sending[3] == outcome]
                rows, slots, ends = ([sending[k] for sending in sent] for k in range(3))
                look: Any = {"color": OUTCOME[outcome], "hatch": hatch, "edgecolor": "white", "linewidth": 0}
                axis.barh(rows, np.subtract(ends, slots), 0.8, left=slots, label=outcome, **look)
            axis.set(xlim=(0, n_slots), ylim=(n_stations - 0.4, -0.6))
            axis.set_yticks(range(every - 1, n_stations, every), [str(k) for k in range(every, n_stations + 1, every)])
            axis.grid(False, axis="x")
        return _legend(figure, axes.values())


# ------------------------------------------------------------------------- a quantity over two settings


def surface(
    table: "pd.DataFrame",
    lines: Mapping[str, Mapping[float, float]],
    *,
    x_label: str,
    y_label: str,
    value_label: str,
) -> Picture:
    """A heat map with a number in each cell, and lines across it.

    Parameters
    ----------
    table : DataFrame, shape (Y, X)
        Values; the index has the y and the columns the x of the cells, both rising. Cells are evenly spaced.
    lines : mapping
        Name -> {x: y}; y is placed between the cells in the logarithm of y + 1.
    """
    values, at_x, at_y = table.to_numpy(dtype=float), list(table.columns), np.log2(np.asarray(table.index) + 1.0)
    with rc_context(STYLE):
        figure, axis = _axes(height=1.4 + 0.3 * len(table))
        shown = axis.imshow(values, cmap="Blues", aspect="auto", origin="lower")
        dark = 0.4 * np.nanmin(values) + 0.6 * np.nanmax(values)
        for (row, column), value in np.ndenumerate(values):
            ink = "white" if value > dark else INK
            axis.text(column, row, f"{value:.0f}", ha="center", va="center", color=ink)
        dashes: Iterator[Any] = cycle(("-", *DASHES))
        for (name, line), dash in zip(lines.items(), dashes, strict=False):
            y = np.interp(np.log2(np.array(list(line.values())) + 1), at_y, np.arange(len(at_y)))
            axis.plot(np.interp(list(line), at_x, np.arange(len(at_x))), y, color=VERMILLION, ls=dash, lw=2, label=name)
        axis.set(xlabel=x_label, ylabel=y_label)
        axis.set_xticks(range(len(at_x)), [f"{x:g}" for x in at_x])
        axis.set_yticks(range(len(at_y)), [f"{y:g}" for y in table.index])
        axis.grid(False)
        figure.colorbar(shown, label=value_label)
        return _legend(figure, [axis])


# --------------------------------------------------------------------------------- speed beside peers


def speed_bars(rows: "pd.DataFrame") -> Picture:
    """Bars of one benchmark group on a logarithmic axis: ours beside each peer, case by case.

    Parameters
    ----------
    rows : DataFrame
        Rows of results/benchmarks.csv of one group: case, quantity, ours, peer, peer_value. Only rows of the first
        row's quantity are drawn.
    """
    rows = rows[rows["quantity"] == rows["quantity"].iloc[0]]
    bars: dict[tuple[str, str], float] = {}
    for row in rows.itertuples():
        bars[row.case, "fedmorl"] = float(row.ours)
        if row.peer:
            bars[row.case, row.peer] = float(row.peer_value)
    programs = list(dict.fromkeys(program for _, program in bars))
    colour = dict(zip(programs, cycle(COLOURS), strict=False))
    with rc_context(STYLE):
        figure, axis = _axes(height=0.7 + 0.21 * len(bars))
        for place, ((_, program), value) in enumerate(reversed(bars.items())):
            axis.barh(place, value, color=colour[program], height=0.72)
            axis.text(value, place, f" {value:.2g}", va="center", fontsize=8)
        labels = [f"{case}: {program}" for case, program in reversed(bars)]
        axis.set_yticks(range(len(bars)), labels)
        axis.set(xscale="log", xlabel=rows["quantity"].iloc[0])
        axis.set_xlim(min(bars.values()) / 3, max(bars.values()) * 4)
        axis.grid(False, axis="y")
        return figure


# ----------------------------------------------------------------------------- how many, in what state


def stacked_counts(table: "pd.DataFrame", *, x_label: str) -> Picture:
    """A bar a row, split into the counts of the columns, with the number where its part is wide enough to hold it.

    Parameters
    ----------
    table : DataFrame
        Whole numbers; the index names the bars from top to bottom, the columns the parts from left to right.
    """
    fills, hatches = cycle((PALE, GREEN, ORANGE, VERMILLION, SKY)), cycle(("", "", "////", "xxxx", "...."))
    widest = table.sum(axis="columns").max()
    with rc_context(STYLE):
        figure, axis = _axes(height=1.1 + 0.38 * len(table))
        left = np.zeros(len(table))
        for (name, counts), fill, hatch in zip(table.items(), fills, hatches, strict=False):
            look: Any = {"color": fill, "hatch": hatch, "edgecolor": "white", "linewidth": 0.5}
            bars = axis.barh(range(len(table)), counts, 0.7, left=left, label=str(name), **look)
            words = [f"{n}" if n > 0.03 * widest else "" for n in counts]
            axis.bar_label(bars, words, label_type="center", bbox={"color": "white", "pad": 1, "lw": 0})
            left += counts.to_numpy()
        axis.set_yticks(range(len(table)), list(table.index))
        axis.set(xlabel=x_label, ylim=(len(table) - 0.5, -0.5))
        axis.grid(False, axis="y")
        return _legend(figure, [axis], columns=len(table.columns))


# ---------------------------------------------------------------------------------------- ways on a floor


def ways(
    standing: np.ndarray, x: np.ndarray, y: np.ndarray, marks: "Mapping[str, Sequence[tuple[int, int]]]"
) -> Picture:
    """Where N robots have been on a floor: `standing` (rows, columns) bool in grey, x and y (steps, N) [cells].

    `marks` are words to write on cells (x, y). Lines lie side by side, so that two on one way are both seen.
    """
    with rc_context(STYLE):
        figure, axis = _axes(height=4.6)
        axis.imshow(standing, cmap="Greys", vmin=0, vmax=5)
        for k in range(x.shape[1]):
            aside = 0.16 * (k - (x.shape[1] - 1) / 2)
            axis.plot(x[:, k] + aside, y[:, k] + aside, lw=1.4, marker=".", ms=3, label=f"robot {k}")
        for word, cells in marks.items():
            for cell in cells:
                axis.text(*cell, word, ha="center", va="center", fontsize=8)
        axis.set(xlabel="x [cells]", ylabel="y [cells]")
        return _legend(figure, [axis])


# ---------------------------------------------------------------------------------------------- shared


def _axes(*, height: float) -> tuple[Picture, Axes]:
    figure = Picture(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def _panels(titles: Sequence[str], columns: int, x_label: str, y_label: str) -> tuple[Picture, dict[str, Axes]]:
    """One set of axes a title, on a grid with shared scales; the two labels stand once at the edges."""
    columns = min(columns, len(titles))
    n_rows = -(-len(titles) // columns)
    figure = Picture(figsize=(WIDTH, (0.7 if n_rows > 1 else 1.2) + 2.3 * n_rows), layout="constrained")
    grid = figure.subplots(n_rows, columns, sharex=True, sharey=True, squeeze=False)
    for axis in grid.flat[len(titles) :]:
        axis.set_visible(False)
    axes = dict(zip(titles, grid.flat, strict=False))
    for title, axis in axes.items():
        axis.set_title(title)
    if n_rows == 1:
        grid[0, 0].set_ylabel(y_label)
    else:
        figure.supylabel(y_label, fontsize=STYLE["axes.labelsize"])
    figure.supxlabel(x_label, fontsize=STYLE["axes.labelsize"])
    return figure, axes


def _values(frame: "pd.DataFrame", column: str) -> list[str]:
    """The values of a column in the order of their first row; [""] where there is no such column."""
    return list(dict.fromkeys(frame[column])) if column in frame else [""]


def _of_panel(frame: "pd.DataFrame", title: str) -> "pd.DataFrame":
    return frame[frame["panel"] == title] if "panel" in frame else frame


def _series(frame: "pd.DataFrame | None", title: str) -> "Iterator[tuple[str, pd.DataFrame]]":
    """The rows of each series in a panel."""
    if frame is not None:
        rows = _of_panel(frame, title)
        yield from ((name, rows[rows["series"] == name]) for name in _values(rows, "series"))


def _looks(series: Sequence[str]) -> dict[str, dict[str, Any]]:
    looks = ({"color": c, "marker": m} for c, m in zip(cycle(COLOURS), cycle(MARKERS), strict=False))
    return dict(zip(series, islice(looks, len(series)), strict=True))


def _plain_ticks(axes: Iterable[Axes], x: Iterable[float], x_scale: str, y_scale: str) -> None:
    """A tick at each x if they are few whole numbers, such as N; 1, 10, 100 on logarithmic scales."""
    places = sorted(set(x))
    whole = len(places) <= 14 and all(float(place).is_integer() for place in places)
    for axis in axes:
        if x_scale == "linear" and whole:
            axis.set_xticks(places)
        for side in [axis.xaxis] * (x_scale == "log") + [axis.yaxis] * (y_scale == "log"):
            side.set_major_formatter("{x:g}")
            side.set_minor_formatter(_PlainLog(labelOnlyBase=False))


class _PlainLog(LogFormatter):
    """Labels the places that matplotlib would label between the powers of ten, 20 for 2 x 10^1."""

    def __call__(self, x: float, pos: Any = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def _legend(figure: Picture, axes: Iterable[Axes], columns: int = 0) -> Picture:
    """One legend above all panels, each name once; up to four names share a line unless `columns` says otherwise."""
    found: dict[str, Any] = {}
    for axis in axes:
        for handle, name in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(name, handle)
    if found:
        figure.legend(
            found.values(), found, loc="outside upper center", ncols=columns or (len(found) if len(found) <= 4 else 3)
        )
    return figure
