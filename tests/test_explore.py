"""The explorer: one point, a grid of points, the closed forms beside them, and the live view without a browser."""

import asyncio
import math
import re
import subprocess
import sys
import threading
import time

import numpy as np
import pandas as pd
import pytest

from fedmorl.dca import AC_BE, AC_VO, CSMA_CA, CSMA_ECA, Poisson, Saturated, Scenario, analytic, replicate
from fedmorl.embed import METRICS as RENDERED
from fedmorl.embed import channel_bounds, explorer_grid
from fedmorl.explore import (
    METRICS,
    Configuration,
    Explorer,
    best_fixed_window,
    chart,
    compute,
    grid,
    label_of_load,
    points,
    view,
)
from fedmorl.explore.grids import windows
from fedmorl.explore.predictions import bounds, theory
from fedmorl.explore.readout import number


@pytest.fixture(autouse=True)
def no_event_loop():
    """A browser test that ran before leaves Playwright's event loop running in this thread; here there is none."""
    loop = asyncio._get_running_loop()
    asyncio._set_running_loop(None)
    yield
    asyncio._set_running_loop(loop)


SHORT = {"n_slots": 300_000, "n_replications": 3, "warmup_slots": 100_000}


def estimates(result, name):
    return result.metrics[name].mean, result.metrics[name].half_width


# ------------------------------------------------------------------------------------------------ one point


def test_a_point_is_what_replicate_measures_bit_for_bit():
    result = compute(4, Configuration.of(CSMA_CA), seed=5, **SHORT)
    runs = replicate(Scenario.uniform(CSMA_CA, 4), seed=5, **SHORT)
    low, high = runs.interval("collision_rate")
    assert result.metrics["throughput_ratio"].mean == runs.mean("throughput_ratio")
    assert result.metrics["mean_access_delay_ms"].mean == pytest.approx(runs.mean("mean_access_delay_us") / 1000)
    assert result.metrics["collision_rate"].half_width == pytest.approx((high - low) / 2)
    assert result.metrics["jain_100k"].mean == pytest.approx(np.mean([m.jain_window(100_000) for m in runs.runs]))


def test_the_chunks_do_not_change_the_numbers(monkeypatch):
    whole = compute(3, Configuration(7, 63, load=0.5), **SHORT)
    monkeypatch.setattr(points, "CHUNK_SLOTS", 7_919)
    in_chunks = compute(3, Configuration(7, 63, load=0.5), **SHORT)
    assert repr(in_chunks.metrics) == repr(whole.metrics)


def test_work_that_nobody_wants_any_more_ends_at_the_next_chunk(monkeypatch):
    monkeypatch.setattr(points, "CHUNK_SLOTS", 10_000)
    asked: list[float] = []

    def carry_on(share: float) -> bool:
        asked.append(share)
        return len(asked) < 5

    assert compute(3, Configuration(), n_slots=10**9, n_replications=5, carry_on=carry_on) is None
    assert len(asked) == 5 and asked == sorted(asked) and asked[-1] < 1e-3


def test_progress_reaches_the_last_run():
    asked: list[float] = []
    compute(2, Configuration(), carry_on=lambda share: asked.append(share) or True, **SHORT)
    assert asked[0] == 0 and asked == sorted(asked) and 2 / 3 <= asked[-1] < 1


@pytest.mark.parametrize("load", [0.1, 0.4])
def test_a_load_that_fits_is_delivered_in_full(load):
    mean, half = estimates(compute(10, Configuration.of(AC_BE, load=load), n_slots=2_000_000), "throughput_ratio")
    assert abs(mean - load) < 4 * half / points.t_quantile(5)


def test_saturated_stations_are_those_that_always_have_a_packet():
    assert Configuration().scenario(3).traffic == Saturated()
    assert Configuration(load=0.6).scenario(3).traffic == Poisson(0.6 / (3 * 120))
    assert label_of_load(None) == "saturated" and label_of_load(0.6) == "Poisson, G = 0.6"


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"n_stations": 0}, "n_stations must be from 1 to 256"),
        ({"configuration": Configuration(31, 7)}, "cw_min must be <= cw_max"),
        ({"configuration": Configuration(load=0.0)}, "load must be None (saturated) or the offered load, above 0"),
        ({"configuration": Configuration(load=math.nan)}, "got nan"),
        ({"configuration": Configuration(countdown="melted")}, "countdown must be one of"),
        ({"n_slots": 150_000}, "n_slots must hold the warm-up and one fairness window of 100000 slots"),
        ({"n_replications": 1}, "n_replications must be an integer from 2"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(change, sentence):
    given = {"n_stations": 2, "configuration": Configuration(), "n_slots": 300_000} | change
    with pytest.raises(ValueError, match=re.escape(sentence)) as refusal:
        compute(**given)
    assert "\n" not in str(refusal.value)


# --------------------------------------------------------------------------------------------- closed forms


@pytest.mark.parametrize("countdown", ["frozen", "bianchi"])
@pytest.mark.parametrize("n_stations", [1, 2, 5, 10])
def test_the_best_fixed_window_is_the_best_of_all(n_stations, countdown):
    S = [analytic.bianchi(cw, cw, n_stations, countdown).throughput_ratio for cw in range(1, 250)]
    best = best_fixed_window(n_stations, countdown)
    assert best == 1 + int(np.argmax(S))
    if n_stations > 2:  # the rule of thumb: sqrt(2 T_b) slots of window a station
        assert best == pytest.approx(248**0.5 * n_stations, rel=0.2)


def test_theory_is_of_the_same_count_down_and_of_the_locked_cycle():
    assert theory(Configuration(7, 15), 14)["throughput_ratio"] == pytest.approx(0.398, rel=0.02)
    assert theory(Configuration(7, 15, countdown="bianchi"), 14)["throughput_ratio"] == pytest.approx(0.343, rel=0.02)
    assert theory(Configuration(7, 15, load=0.5), 14) == {}
    locked = Configuration.of(CSMA_ECA)
    assert theory(locked, 16)["throughput_ratio"] == analytic.eca_throughput(16) and theory(locked, 17) == {}
    assert theory(Configuration.of(CSMA_ECA, "bianchi"), 17)["collision_rate"] == 0


def test_bounds_are_ordered_and_know_what_is_offered():
    at_10 = bounds(Configuration(), 10)
    S = [at_10[name]["throughput_ratio"] for name in ("optimum", "eca", "tdma")]
    assert S == sorted(S) and "eca" not in bounds(Configuration(), 20)
    for name in at_10:  # without drops the access delay is N L / S
        delay_ms = 10 * 120 / at_10[name]["throughput_ratio"] * 0.009
        assert at_10[name]["mean_access_delay_ms"] == pytest.approx(delay_ms)
    assert bounds(Configuration(load=0.3), 10)["offered"] == {"throughput_ratio": 0.3}


# ------------------------------------------------------------------------------------------------- the grid


@pytest.fixture(scope="module")
def small_grid() -> pd.DataFrame:
    return grid(
        (2, 10, 20),
        stations=(AC_VO, AC_BE, CSMA_CA, *windows((127, 127))),
        loads={"frozen": (None, 0.6), "bianchi": (None,)},
        n_slots=400_000,
        n_replications=10,
        seed=0,
    )


COMPARED = ["throughput_ratio", "collision_rate", "mean_access_delay_ms", "jain_100k", "capture_index"]


def test_the_grid_agrees_with_fresh_simulations_within_four_standard_errors(small_grid):
    """36 points and 5 metrics; the 1 in 16 000 of a normal law is widened by Student's t with 9 degrees of freedom."""
    kinds = {"saturated": None, "Poisson, G = 0.6": 0.6}
    keys = ["cw_min", "cw_max", "countdown", "load", "n_stations"]
    table = small_grid.set_index([*keys, "metric"])[["mean", "half_width"]]
    compared = 0
    for low, high, countdown, load, n in small_grid[keys].drop_duplicates().itertuples(index=False):
        configuration = Configuration(low, high, None, countdown, kinds[load])
        fresh = compute(n, configuration, n_slots=400_000, n_replications=10, seed=12345)
        for name in COMPARED:
            ours, half = table.loc[(low, high, countdown, load, n, name)]
            theirs, other_half = estimates(fresh, name)
            standard_error = math.hypot(half, other_half) / points.t_quantile(10)
            assert abs(ours - theirs) < 4 * standard_error, (configuration, n, name, ours, theirs)
            compared += 1
    assert compared == 36 * len(COMPARED)


def test_the_grid_feeds_the_rendered_explorer(small_grid):
    shown = explorer_grid(small_grid, bounds=channel_bounds((2, 10, 20)), metrics=METRICS)
    assert [c["id"] for c in shown["axes"]["config"]] == ["ac_vo", "ac_be", "csma_ca", "cw_127_127"]
    assert [c["label"] for c in shown["axes"]["config"]] == ["AC_VO", "AC_BE", "CSMA_CA", ""]
    assert shown["axes"]["load"] == ["saturated", "Poisson, G = 0.6"] and shown["axes"]["n"] == [2, 10, 20]
    assert [m["id"] for m in shown["metrics"]] == list(METRICS)
    for name in METRICS.keys() - {"jain_100k"}:  # one name and one label for one thing, live and rendered
        assert METRICS[name] == RENDERED[name]
    mean_delay = shown["values"][list(METRICS).index("mean_delay_ms")]
    assert mean_delay[0][0][0] == [] and all(mean_delay[0][0][1])  # undefined when saturated


def test_the_grid_carries_the_theory_of_each_point(small_grid):
    row = small_grid.query("config == 'ac_vo' and n_stations == 20 and countdown == 'bianchi'").set_index("metric")
    assert row.loc["throughput_ratio", "theory"] == analytic.bianchi(7, 15, 20, "bianchi").throughput_ratio
    assert small_grid.query("load != 'saturated'")["theory"].isna().all()


def test_threads_and_the_progress_bar_do_not_change_the_grid(capsys):
    few = {"stations": (AC_VO, CSMA_ECA), "loads": {"frozen": (None, 0.3)}, **SHORT}
    alone = grid((2, 5), workers=1, **few)
    pd.testing.assert_frame_equal(grid((2, 5), workers=4, progress=True, **few), alone)
    assert not grid((2, 5), seed=1, **few)["mean"].equals(alone["mean"])
    assert "points" in capsys.readouterr().err


def test_a_grid_under_an_unknown_count_down_is_refused_before_it_starts():
    with pytest.raises(ValueError, match="loads must be keyed by count-down, 'frozen' or 'bianchi'; got 'melted'"):
        grid((2,), loads={"melted": (None,)})


def test_a_computation_does_not_load_the_widgets():
    code = "import sys, fedmorl.explore; fedmorl.explore.grid; sys.exit('ipywidgets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --------------------------------------------------------------------------------------------- the live view


def shown_of(explorer: Explorer) -> dict[str, list[str]]:
    """The readout: metric label -> cells as text."""
    html = re.sub(r"<small>.*?</small>", "", explorer._table.value)
    rows = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', html)
    return {re.sub("<.*?>", "", head).strip(): re.findall(r"<t[dh].*?>(.*?)</t[dh]>", cells) for head, cells in rows}


@pytest.fixture(scope="module")
def live() -> Explorer:
    return Explorer(n_stations=3, preset="ac_vo", n_slots=200_000)


def test_a_move_of_the_slider_shows_the_simulator_s_numbers(live):
    live.n_stations.value = 4
    expected = compute(4, Configuration.of(AC_VO), n_slots=300_000, warmup_slots=100_000)
    mean, half = estimates(expected, "throughput_ratio")
    cells = shown_of(live)
    assert 'data-n="4"' in live._table.value and "N = 4" in cells
    assert number(mean, half).startswith(cells["Throughput ratio"][0].strip())
    assert cells["Mean delay [ms]"][0] == "–"  # packets of saturated stations never arrive
    assert live._chart.value.count("<circle") == 2  # the current point, in both charts


def test_a_preset_sets_the_window_and_a_window_names_its_preset(live):
    generation = live.generation
    live.preset.value = "ac_be"
    assert (live.cw_min.value, live.cw_max.value) == (31, 1023) and live.generation == generation + 1
    live.cw_min.value = 7
    assert live.preset.value == "csma_ca" and live.configuration == Configuration.of(CSMA_CA)
    assert live.generation == generation + 2
    live.cw_max.value = 63
    assert live.preset.value == view.OWN and live.configuration == Configuration(7, 63)
    live.preset.value = "csma_eca"
    assert live.configuration == Configuration.of(CSMA_ECA)


def test_windows_push_each_other(live):
    live.preset.value = "ac_vo"
    live.cw_min.value = 255
    assert (live.cw_min.value, live.cw_max.value) == (255, 255)
    live.cw_max.value = 3
    assert (live.cw_min.value, live.cw_max.value) == (3, 3)
    assert live.result.configuration == Configuration(3, 3)


def test_load_and_count_down_reach_the_simulation(live):
    assert live.load.disabled
    live.preset.value = "ac_be"
    live.load_kind.value = "Poisson"
    live.load.value = 0.3
    live.countdown.value = "bianchi"
    assert not live.load.disabled and live.configuration == Configuration.of(AC_BE, "bianchi", 0.3)
    cells = shown_of(live)
    assert abs(float(cells["Throughput ratio"][0]) - 0.3) < 0.01 and cells["Mean delay [ms]"][0] != "–"
    live.load_kind.value, live.countdown.value = "saturated", "frozen"


def test_a_pinned_configuration_stays_beside_the_current_one_and_follows_n(live):
    live.preset.value = "ac_vo"
    live.pin()
    live.preset.value = "ac_be"
    live.n_stations.value = 10
    cells = shown_of(live)["Throughput ratio"]
    for cell, station in zip(cells, (AC_BE, AC_VO), strict=False):
        expected = compute(10, Configuration.of(station), n_slots=300_000, warmup_slots=100_000)
        assert float(cell) == pytest.approx(expected.metrics["throughput_ratio"].mean, abs=1e-3)
    assert "B AC_BE" in live._table.value and "A AC_VO" in live._table.value
    assert live._chart.value.index('<g class="pinned">') < live._chart.value.index('<g class="now">')  # now on top
    live.pin()
    assert live.pinned is None and "AC_VO" not in live._table.value


def test_the_metric_of_the_charts_changes_without_a_new_simulation(live, monkeypatch):
    live.preset.value = "ac_vi"
    monkeypatch.setattr(view, "compute", lambda *_, **__: pytest.fail("nothing new was asked for"))
    live.metric.value = "capture_index"
    assert "Capture index over the number of stations" in live._chart.value
    live.metric.value = "throughput_ratio"


def long_work(*_, carry_on, **__):
    """Stands in for a run of minutes; gives up after 20 s if nobody tells it to."""
    end = time.monotonic() + 20
    while carry_on(0.5) and time.monotonic() < end:
        time.sleep(0.001)


def test_the_newest_move_wins_and_ends_the_work_before_it(monkeypatch):
    async def overtake() -> tuple[Explorer, float]:
        explorer = Explorer(n_stations=2, n_slots=200_000)
        await explorer.finished()
        monkeypatch.setattr(view, "compute", long_work)
        explorer.n_stations.value = 31
        await asyncio.sleep(0.1)  # it is under way
        monkeypatch.undo()
        moved = time.monotonic()
        explorer.n_stations.value = 32
        explorer.n_stations.value = 33
        await explorer.finished()
        return explorer, time.monotonic() - moved

    explorer, seconds = asyncio.run(overtake())
    assert seconds < 10 and explorer.result.n_stations == 33 and 'data-n="33"' in explorer._table.value
    assert not any(point.n_stations in (31, 32) for point in explorer._kept)


def test_a_point_that_is_known_is_drawn_before_the_curves_around_it(monkeypatch):
    async def go_back() -> str:
        explorer = Explorer(n_stations=2, n_slots=200_000)
        await explorer.finished()  # N = 5 is a point of its curve over N
        monkeypatch.setattr(view, "compute", long_work)
        explorer.n_stations.value = 5
        await asyncio.sleep(0.1)
        explorer.stop()
        await explorer.finished()
        return explorer._table.value

    assert 'data-n="5"' in asyncio.run(go_back())


def test_a_late_result_of_an_older_move_is_thrown_away(monkeypatch):
    """The worker may not hear in time that it is overtaken; here it never does."""

    def deaf(*args, carry_on, **kwargs):
        return compute(*args, **kwargs)

    async def overtake() -> Explorer:
        explorer = Explorer(n_stations=2, n_slots=200_000)
        await explorer.finished()
        monkeypatch.setattr(view, "compute", deaf)
        explorer.n_stations.value = 31
        await asyncio.sleep(0)  # the first point is under way
        explorer.n_stations.value = 33
        await explorer.finished()
        return explorer

    explorer = asyncio.run(overtake())
    assert 'data-n="33"' in explorer._table.value
    assert not any(point.n_stations == 31 for point in explorer._kept)


def test_the_kernel_stays_responsive_and_stop_stops():
    async def watch() -> tuple[Explorer, float, float]:
        explorer = Explorer(n_stations=2, n_slots=200_000)
        await explorer.finished()
        explorer.horizon.value = 100_000_000
        gaps, last = [], time.monotonic()
        while explorer._progress.value == 0 or len(gaps) < 20:
            await asyncio.sleep(0.01)
            gaps.append(time.monotonic() - last)
            last = time.monotonic()
        assert not explorer._stop_button.disabled and explorer._progress.layout.visibility == "visible"
        explorer.stop()
        before = explorer._table.value, explorer._chart.value, len(explorer._kept)
        await explorer.finished()
        assert (explorer._table.value, explorer._chart.value, len(explorer._kept)) == before
        assert "Stopped" in explorer._status.value
        return explorer, float(np.median(gaps)), time.monotonic() - last

    explorer, gap, seconds = asyncio.run(watch())
    assert gap < 0.1 and seconds < 10  # the event loop turned every 10 ms, but for a busy machine
    assert explorer._stop_button.disabled and explorer._progress.layout.visibility == "hidden"


def test_one_simulation_at_a_time_in_a_thread_of_its_own(monkeypatch):
    seen: set[str] = set()

    def spying(*args, **kwargs):
        seen.add(threading.current_thread().name)
        return compute(*args, **kwargs)

    monkeypatch.setattr(view, "compute", spying)
    Explorer(n_stations=2, n_slots=200_000)
    assert len(seen) == 1 and seen.pop().startswith("explorer")


def test_a_failure_is_said_where_the_reader_looks(live, monkeypatch):
    def failing(*_, **__):
        raise MemoryError("no room for the log")

    monkeypatch.setattr(view, "compute", failing)
    live.n_stations.value = 49
    assert "MemoryError: no room for the log" in live._status.value and 'data-n="49"' not in live._table.value
    monkeypatch.undo()
    live.n_stations.value = 5
    assert 'data-n="5"' in live._table.value and "Error" not in live._status.value


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ({"preset": "ac_bk"}, "preset must be one of 'ac_vo', 'ac_vi', 'ac_be', 'csma_ca', 'csma_eca'; got 'ac_bk'"),
        ({"n_stations": 51}, "n_stations must be an integer from 1 to 50; got 51"),
        ({"n_slots": 5}, "n_slots must be one of 200000, 1000000, 10000000, 100000000; got 5"),
    ],
)
def test_the_explorer_refuses_bad_arguments_in_one_sentence(arguments, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # outside of the project, whose learned policies would be named too
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        Explorer(**arguments)


# ------------------------------------------------------------------------------------------------ the chart


def test_a_curve_leaves_out_what_is_undefined_and_marks_where_we_are():
    curve = chart.Curve("now", [(1, 0.5, 0.1), (2, math.nan, math.nan), (4, 0.25, 0.0)], here=4)
    drawn = chart.panel("S", [curve], {}, x_label="N", x_ticks=(1, 2, 4), y_top=1.0)
    assert "nan" not in drawn and drawn.count("<circle") == 1
    (line,) = re.findall(r'class="curve" d="M(.*?)"', drawn)
    (x0, y0), (x1, y1) = ([float(v) for v in p.split()] for p in line.split("L"))
    assert (x0, x1) == (chart.LEFT, chart.WIDTH - chart.RIGHT)
    floor = chart.HEIGHT - chart.BOTTOM
    assert (floor - y0) / (floor - y1) == pytest.approx(2, abs=0.01)  # 0.5 is twice as high as 0.25


def test_ticks_are_round_and_end_within_the_axis():
    assert chart.y_ticks(1.0) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert chart.y_ticks(37.0) == pytest.approx([0, 10, 20, 30])
    assert chart.y_ticks(0.0123)[-1] <= 0.0123


def test_numbers_show_two_digits_of_their_interval():
    assert number(0.79234, 0.0052) == "0.7923 <small>± 0.0052</small>"
    assert number(27.71, 23.4) == "28 <small>± 23</small>" and number(0.96774) == "0.9677"
    assert number(math.nan, math.nan) == "–" and number(0.0, 0.0) == "0"


def test_a_window_moves_along_the_axis_as_fixed_or_doubling():
    assert view.at_window(Configuration(31, 31), 7) == Configuration(7, 7)
    assert view.at_window(Configuration(7, 15), 3) == Configuration(3, 15)
    assert view.at_window(Configuration(7, 15), 63) == Configuration(63, 63)
    assert view.CW_AXIS[0] == 1 and view.CW_AXIS[-1] == 1023
