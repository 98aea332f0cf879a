"""What a figure shows is what it was given; how it is made leaves no trace behind."""

import io
from functools import cache

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from fedmorl import figures
from fedmorl.dca import CSMA_CA, Scenario, simulate
from fedmorl.embed import timeline_steps


def tidy(panels=("AC_VO", "AC_BE"), series=("frozen", "bianchi"), x=(2, 6, 14)) -> pd.DataFrame:
    """A table whose every number is different."""
    rows = [(p, s, n) for p in panels for s in series for n in x]
    mean = 0.1 + 0.05 * np.arange(len(rows))
    frame = pd.DataFrame(rows, columns=["panel", "series", "n_stations"])
    return frame.assign(mean=mean, low=mean - 0.01, high=mean + 0.02)


def panel(figure, title):
    return next(axis for axis in figure.axes if axis.get_title(loc="left") == title)


def labelled(axis, label):
    return next(handle for handle, name in zip(*axis.get_legend_handles_labels(), strict=True) if name == label)


LABELS = {"x": "n_stations", "x_label": "number of stations N", "y_label": "throughput ratio [share of time]"}
FIGURES = {
    "curves": lambda: figures.curves(tidy(), tidy(), **LABELS),
    "comparison": lambda: figures.comparison(tidy(panels=("AC_VO", "AC_VI", "AC_BE")), **LABELS),
    "residuals": lambda: figures.residuals(tidy().assign(tolerance=0.3), **LABELS),
    "fixed_point": lambda: figures.fixed_point(
        np.linspace(0, 1, 5), {"N = 2": np.linspace(1, 0, 5)}, {"N = 2": 0.5}, x_label="guess", y_label="implied"
    ),
    "time_shares": lambda: figures.time_shares(
        pd.DataFrame({"panel": "AC_VO", "N": [2, 6], "busy": [0.7, 0.8], "idle": [0.3, 0.2]}), x="N", x_label="N"
    ),
    "tails": lambda: figures.tails({"AC_VO": np.array([124, 500])}, [50, 99], slot_us=9, lines={"TDMA": 1240}),
    "timeline_still": lambda: figures.timeline_still(steps_of_three()[1], slot_us=9),
    "stacked_counts": lambda: figures.stacked_counts(
        pd.DataFrame({"open": [7, 300], "partly": [2, 0]}, index=["FedMORL", "LOGO"]), x_label="claims"
    ),
}


@cache
def steps_of_three():
    scenario = Scenario.uniform(CSMA_CA, n_stations=3)
    trace = simulate(scenario, n_slots=2600, seed=3, warmup_slots=0, trace=True).trace.to_frame()
    return trace, timeline_steps(trace, 3)


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_a_small_png_and_leaves_no_setting_and_no_pyplot_figure_behind(name):
    before = dict(matplotlib.rcParams)
    png = FIGURES[name]().png()
    assert dict(matplotlib.rcParams) == before
    assert plt.get_fignums() == []
    assert len(png) < 60_000
    image = Image.open(io.BytesIO(png))
    assert image.size[0] == round(figures.WIDTH * figures.DPI)
    assert len(image.getcolors()) <= 64


def test_equal_figures_are_equal_bytes_and_a_notebook_shows_them_at_their_size():
    first, second = FIGURES["comparison"](), FIGURES["comparison"]()
    png, size = first._repr_png_()
    assert png == second.png()
    assert size["width"] == round(figures.WIDTH * figures.SCREEN_DPI)


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_names_both_axes(name):
    figure = FIGURES[name]()
    said = {text.get_text() for text in figure.texts} | {
        axis.get_label_text() for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)
    }
    said |= {label.get_text() for axes in figure.axes for label in axes.get_yticklabels()}  # "station 1" names its row
    wanted = {
        "tails": {"access delay [ms]", "share of packets that wait longer"},
        "timeline_still": {"time [slots]", "station 1"},
        "fixed_point": {"guess", "implied"},
        "time_shares": {"N", "share of time"},
        "stacked_counts": {"claims", "FedMORL"},
    }
    assert wanted.get(name, {LABELS["x_label"], LABELS["y_label"]}) <= said


def test_curves_draw_the_means_the_bands_and_the_predictions_they_were_given():
    measured, predicted = tidy(), tidy().assign(mean=lambda f: f["mean"] / 2)
    figure = figures.curves(measured, predicted, names=("simulated", "fixed point"), **LABELS)
    for title in ("AC_VO", "AC_BE"):
        axis = panel(figure, title)
        for k, series in enumerate(("frozen", "bianchi")):
            rows = measured.query("panel == @title and series == @series")
            points, line = labelled(axis, f"{series}, simulated"), labelled(axis, f"{series}, fixed point")
            np.testing.assert_array_equal(points.get_xydata(), rows[["n_stations", "mean"]])
            np.testing.assert_array_equal(line.get_ydata(), rows["mean"] / 2)
            assert points.get_linestyle() == "None" and line.get_linestyle() == "-"
            assert points.get_color() == line.get_color()
            corners = axis.collections[k].get_paths()[0].vertices
            edges = rows[["n_stations", "low"]].to_numpy().tolist() + rows[["n_stations", "high"]].to_numpy().tolist()
            assert {(x, y) for x, y in corners} == {(x, y) for x, y in edges}


def test_references_without_a_panel_are_drawn_in_all_panels_and_named_once():
    bound = pd.DataFrame({"n_stations": [2, 14], "series": "TDMA", "mean": 0.9677})
    figure = figures.curves(tidy(), references=bound, **LABELS)
    for title in ("AC_VO", "AC_BE"):
        np.testing.assert_array_equal(labelled(panel(figure, title), "TDMA").get_ydata(), [0.9677, 0.9677])
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert sorted(names) == ["TDMA", "bianchi", "frozen"]


def test_series_differ_in_more_than_colour():
    axis = panel(figures.curves(tidy(), **LABELS), "AC_VO")
    frozen, bianchi = labelled(axis, "frozen"), labelled(axis, "bianchi")
    assert frozen.get_marker() != bianchi.get_marker()
    assert frozen.get_color() != bianchi.get_color()


def test_a_logarithmic_axis_is_labelled_in_plain_numbers_between_the_powers_of_ten_too():
    waits = np.geomspace(2.4, 38, 6)
    figure = figures.curves(tidy(panels=("",)).assign(mean=waits, low=waits, high=waits), y_scale="log", **LABELS)
    figure.draw_without_rendering()
    ticks = figure.axes[0].get_yticklabels(minor=True) + figure.axes[0].get_yticklabels()
    assert {"3", "10", "20"} <= {tick.get_text() for tick in ticks}
    assert not any("times" in tick.get_text() for tick in ticks)


def test_error_bars_reach_from_low_to_high_and_series_stand_side_by_side():
    frame = tidy()
    axis = panel(figures.comparison(frame, **LABELS), "AC_BE")
    places = []
    for (points, _, (bars,)), series in zip(axis.containers, ("frozen", "bianchi"), strict=True):
        rows = frame[(frame["panel"] == "AC_BE") & (frame["series"] == series)]
        np.testing.assert_array_equal(points.get_ydata(), rows["mean"])
        ends = np.array([segment[:, 1] for segment in bars.get_segments()])
        np.testing.assert_allclose(ends, rows[["low", "high"]], rtol=1e-12)
        places.append(points.get_xdata())
    assert (places[0] < places[1]).all() and (places[1] < places[0] + 1).all()
    assert [label.get_text() for label in axis.get_xticklabels()] == ["2", "6", "14"]


def test_residuals_shade_each_panels_own_tolerance_around_zero():
    frame = tidy().assign(tolerance=lambda f: np.where(f["panel"] == "AC_VO", 2.0, 0.5))
    figure = figures.residuals(frame, **LABELS)
    for title, allowed in (("AC_VO", 2.0), ("AC_BE", 0.5)):
        box = labelled(panel(figure, title), "tolerance")
        assert (box.get_y(), box.get_height()) == (-allowed, 2 * allowed)


def test_time_shares_stack_to_what_the_rows_add_up_to():
    frame = pd.DataFrame({"panel": "AC_VO", "N": [2, 6], "busy": [0.7, 0.8], "DIFS": [0.1, 0.05], "idle": [0.2, 0.15]})
    axis = panel(figures.time_shares(frame, x="N", x_label="N"), "AC_VO")
    heights = np.array([[bar.get_height() for bar in bars] for bars in axis.containers])
    np.testing.assert_allclose(heights, frame[["busy", "DIFS", "idle"]].T, rtol=1e-12)
    tops = [bar.get_y() + bar.get_height() for bar in axis.containers[-1]]
    np.testing.assert_allclose(tops, 1)


def test_tails_are_in_milliseconds_and_fall_with_the_percentile():
    figure = figures.tails({"AC_VO": np.array([124, 500, 9000])}, [50, 95, 99], slot_us=9, lines={"turn": 1240})
    line, mark = labelled(figure.axes[0], "AC_VO"), labelled(figure.axes[0], "turn")
    np.testing.assert_allclose(line.get_xdata(), [1.116, 4.5, 81])
    np.testing.assert_allclose(line.get_ydata(), [0.5, 0.05, 0.01])
    np.testing.assert_allclose(mark.get_xdata(), 11.16)


def test_the_still_has_a_box_for_each_transmission_of_the_trace_and_the_frozen_counters_between():
    trace, steps = steps_of_three()
    axis = figures.timeline_still(steps, slot_us=9).axes[0]
    sent = trace[trace["event"] != "draw"]
    boxes = {
        (round(box.get_x()), round(box.get_x() + box.get_width()), round(box.get_y() + box.get_height() / 2)): to_hex(
            box.get_facecolor()
        )
        for box in axis.patches
        if box.get_height() == 0.5
    }
    expected = {(row.slot, row.end_slot, row.station): figures.OUTCOME[row.event].lower() for row in sent.itertuples()}
    assert boxes == expected
    words = [text.get_text() for text in axis.texts]
    assert words.count("S") == (sent["event"] == "success").sum()
    assert words.count("C") == (sent["event"] == "collision").sum()
    first = next(step for step in steps if step["kind"] in figures.OUTCOME)
    waiting = [str(first["counters"][k]) for k in range(3) if k not in first["senders"]]
    assert [word for word in words[:4] if word in waiting] == waiting


def test_speed_bars_draw_each_program_once_a_case_on_a_logarithmic_axis():
    rows = pd.DataFrame(
        [
            ("N = 2", "slots per CPU second", 2e10, "C", 2.5e10),
            ("N = 2", "slots per CPU second", 2e10, "Python", 1e8),
            ("ratio", "CPU seconds at N = 64 / N = 2", 2.5, "", ""),
        ],
        columns=["case", "quantity", "ours", "peer", "peer_value"],
    )
    (axis,) = figures.speed_bars(rows).axes
    assert [bar.get_width() for bar in axis.patches] == [1e8, 2.5e10, 2e10]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["N = 2: Python", "N = 2: C", "N = 2: fedmorl"]
    assert (axis.get_xscale(), axis.get_xlabel()) == ("log", "slots per CPU second")


def test_stacked_counts_lay_the_parts_end_to_end_and_number_those_with_room():
    (axis,) = FIGURES["stacked_counts"]().axes
    parts = [[(bar.get_x(), bar.get_width()) for bar in bars] for bars in axis.containers]
    assert parts == [[(0, 7), (0, 300)], [(7, 2), (300, 0)]]
    assert [text.get_text() for text in axis.texts] == ["", "300", "", ""]
    assert len({bars[0].get_hatch() or bars[0].get_facecolor() for bars in axis.containers}) == 2
    first, second = axis.get_ylim()
    assert first > second  # the first row is on top
