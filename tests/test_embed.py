"""The HTML blocks: a trace replayed by hand and against the simulator, the explorer's grid, refusals."""

import json
import math
import re
from collections import Counter
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from fedmorl.dca import (
    AC_BE,
    AC_VO,
    CSMA_ECA,
    ConstantRate,
    MLPPolicy,
    Poisson,
    Saturated,
    Scenario,
    Station,
    analytic,
    simulate,
)
from fedmorl.embed import channel_bounds, explorer, explorer_grid, timeline, timeline_steps

COLUMNS = ["slot", "end_slot", "station", "event", "cw", "counter", "retries", "dropped"]
PNG = b"\x89PNG\r\n\x1a\n"


def hand_trace(*rows):
    """Rows of (slot, end_slot, station, event, cw, counter)."""
    return pd.DataFrame([(*row, 0, False) for row in rows], columns=COLUMNS)


COLLISION = hand_trace(
    (0, 0, 0, "draw", 7, 2), (0, 0, 1, "draw", 7, 5), (0, 0, 2, "draw", 7, 2),
    (2, 122, 0, "collision", 15, 9), (2, 122, 2, "collision", 15, 4),
    (129, 249, 1, "success", 7, 0),
)  # fmt: skip


# --------------------------------------------------------------------------------------- replay, by hand


def test_a_collision_is_told_phase_by_phase():
    steps = timeline_steps(COLLISION, 3)
    assert [step["kind"] for step in steps] == ["idle", "idle", "collision", "difs", *["idle"] * 3, "success", "difs"]
    assert [step["counters"] for step in steps] == [
        [2, 5, 2], [1, 4, 1], [0, 3, 0], [9, 3, 4], [9, 3, 4], [8, 2, 3], [7, 1, 2], [6, 0, 1], [6, 0, 1]
    ]  # fmt: skip
    assert [step["cw"] for step in steps[2:4]] == [[7, 7, 7], [15, 7, 15]]
    assert steps[2]["after"] == {"counters": [9, 3, 4], "cw": [15, 7, 15]}
    assert [step["text"] for step in steps[1:4]] == [
        "Slot 1: idle; the counters fall from 1, 4 and 1 to 0, 3 and 0.",
        "Slots 2–121: stations 1 and 3 send together: collision; both double CW to 15 and draw 9 and 4.",
        "Slots 122–125: DIFS; nobody counts until slot 126.",
    ]
    assert steps[7]["text"] == "Slots 129–248: station 2 sends alone: success; it keeps CW 7 and draws 0."


def test_under_bianchi_a_busy_period_lowers_the_others_once():
    trace = hand_trace((0, 0, 0, "draw", 7, 1), (0, 0, 1, "draw", 7, 3), (1, 121, 0, "success", 7, 5),
                       (126, 246, 1, "success", 7, 1))  # fmt: skip
    steps = timeline_steps(trace, 2, countdown="bianchi")
    assert [step["counters"] for step in steps] == [[1, 3], [0, 2], [5, 1], [5, 1], [4, 0], [3, 1]]
    with pytest.raises(ValueError, match="breaks the rules at slot 126"):
        timeline_steps(trace, 2, countdown="frozen")


def test_aifs_and_eifs_hold_a_counter_back():
    trace = hand_trace((0, 0, 0, "draw", 7, 0), (0, 0, 1, "draw", 7, 0), (0, 0, 2, "draw", 7, 5),
                       (0, 120, 0, "collision", 15, 4), (0, 120, 1, "collision", 15, 3),
                       (128, 248, 0, "success", 7, 7))  # fmt: skip
    steps = timeline_steps(trace, 3, aifs_slots=[4, 6, 4], eifs_extra_slots=1)
    idle = [step for step in steps if step["kind"] == "idle"]
    assert [step["counters"] for step in idle] == [[4, 3, 5], [3, 3, 5], [2, 3, 4], [1, 2, 3]]
    assert [step.get("wait") for step in idle] == [[0, 2, 1], [0, 1, 0], None, None]


def test_a_station_without_a_packet_has_no_counter():
    trace = hand_trace((3, 3, 0, "draw", 7, 1), (4, 124, 0, "success", 7, 0), (120, 120, 1, "draw", 7, 1),
                       (129, 249, 1, "success", 7, 0), (300, 300, 0, "draw", 7, 0),
                       (300, 420, 0, "success", 7, 0))  # fmt: skip
    steps = timeline_steps(trace, 2)
    assert [(step["kind"], step["slot"], step["end"]) for step in steps] == [
        ("idle", 0, 3), ("idle", 3, 4), ("success", 4, 124), ("difs", 124, 128), ("idle", 128, 129),
        ("success", 129, 249), ("difs", 249, 253), ("idle", 253, 300), ("success", 300, 420), ("difs", 420, 424),
    ]  # fmt: skip
    assert steps[0]["counters"] == steps[7]["counters"] == [None, None]
    assert steps[0]["text"] == "Slots 0–2: idle; no station has a packet."
    assert steps[2]["after"] == {"counters": [None, None], "cw": [None, None]}
    assert steps[2]["text"].endswith("success; it has no packet left.")
    assert steps[3]["text"] == "Slots 124–127: station 2 gets a packet and draws 1; DIFS; nobody counts until slot 128."


def test_words_for_a_drop_a_fixed_counter_and_unequal_windows():
    trace = hand_trace((0, 0, 0, "draw", 15, 0), (0, 0, 1, "draw", 7, 0), (0, 120, 0, "collision", 23, 0),
                       (0, 120, 1, "collision", 7, 1), (124, 244, 0, "success", 15, 16),
                       (249, 369, 1, "error", 15, 3))  # fmt: skip
    trace.loc[3, "dropped"] = True
    texts = [step["text"] for step in timeline_steps(trace, 2, eca=[True, False]) if "send" in step["text"]]
    assert [text.split(": ", 1)[1] for text in texts] == [
        "stations 1 and 2 send together: collision; station 1 raises CW to 23 and draws 0; "
        "station 2 gives the packet up, keeps CW 7 and draws 1.",
        "station 1 sends alone: success; it returns to CW 15 and counts again from 16.",
        "station 2 sends alone: frame error; it doubles CW to 15 and draws 3.",
    ]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.drop(columns="cw"), "no column"),
        (lambda t: t.assign(counter=t["counter"].where(t.index != 3)), "the trace holds NaN"),
        (lambda t: t.assign(station=t["station"] + 1), "names station 3"),
        (lambda t: t.assign(event="sent"), "event 'sent'"),
        (lambda t: t[t["station"] != 2], "breaks the rules|names station"),
        (lambda t: t.assign(counter=t["counter"].where(t.index != 1, 6)), "breaks the rules at slot 129"),
    ],
)
def test_a_damaged_trace_is_refused_in_one_sentence(change, message):
    n_stations = 3
    damaged = change(COLLISION)
    if len(damaged) < len(COLLISION):  # half of a collision: a lone sender where the rules want none
        damaged = pd.concat([damaged, COLLISION.iloc[[2]]])
    with pytest.raises(ValueError, match=message) as caught:
        timeline_steps(damaged, n_stations)
    assert "\n" not in str(caught.value)


# --------------------------------------------------------------------------- replay, against the simulator

MIXED = (AC_VO, AC_BE, CSMA_ECA, Station(retry_limit=2, cw_max=15, frame_error_rate=0.1))


@pytest.mark.parametrize("countdown", ["frozen", "bianchi"])
@pytest.mark.parametrize("traffic", [Saturated(), Poisson(rate_per_slot=0.001), ConstantRate(rate_per_slot=0.002)])
def test_replay_of_a_real_trace_accounts_for_every_slot(countdown, traffic):
    scenario = Scenario(stations=MIXED, countdown=countdown, traffic=traffic)
    _check_replay(scenario)


def test_replay_follows_aifs_and_eifs_of_a_real_trace():
    slow = Station(cw_min=15, aifs_slots=7)
    traffic = Poisson(rate_per_slot=0.004)
    _check_replay(Scenario(stations=[AC_VO, slow, AC_BE, slow], eifs_extra_slots=2, traffic=traffic))


def _check_replay(scenario):
    trace = simulate(scenario, n_slots=30_000, seed=5, warmup_slots=0, trace=True).trace
    steps = timeline_steps(
        trace.to_frame(),
        scenario.n_stations,
        countdown=scenario.countdown,
        aifs_slots=[station.aifs_slots for station in scenario.stations],
        eifs_extra_slots=scenario.eifs_extra_slots,
    )
    assert steps[0]["slot"] == 0
    assert all(a["end"] == b["slot"] for a, b in pairwise(steps))
    end = steps[-1]["end"]
    same = simulate(scenario, n_slots=end, seed=5, warmup_slots=0)  # the same run, cut where the replay ends
    slots = Counter()
    for step in steps:
        slots[step["kind"]] += step["end"] - step["slot"]
    assert slots["idle"] == round(same.idle_fraction * end)
    assert slots["success"] == round(same.throughput_ratio * end)
    assert slots["difs"] == round(same.difs_fraction * end)
    assert sum(s["kind"] == "success" for s in steps) == same.delivered > 50


def test_start_slot_and_max_steps_cut_the_replay():
    whole = timeline_steps(COLLISION, 3)
    assert timeline_steps(COLLISION, 3, start_slot=2, max_steps=3) == whole[2:5]


# ------------------------------------------------------------------------------------- the player's block


def _data(block):
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', block.html, re.S)[1])


def _trace(scenario, n_slots=5_000):
    return simulate(scenario, n_slots=n_slots, seed=1, warmup_slots=0, trace=True).trace


def test_timeline_holds_its_steps_a_still_picture_and_the_way_to_its_script():
    scenario = Scenario.uniform(AC_VO, n_stations=3)
    trace = _trace(scenario)
    block = timeline(trace, scenario, max_steps=30, title="</script><b>")
    data = _data(block)
    assert data["steps"] == timeline_steps(trace.to_frame(), 3, max_steps=30)
    assert data["title"] == "</script><b>"
    assert block.html.count("</script>") == 2  # the data's own did not end the element early
    alt = re.search(r'role="img" aria-label="([^"]+)"', block.html)[1]
    assert data["steps"][0]["text"] in alt and "<" not in alt
    assert "content_root" in block.html and "http" not in block.html
    assert block == timeline(trace, scenario, max_steps=30, title="</script><b>")
    assert block._repr_html_() == block.html and len(repr(block)) < 100


def test_timeline_names_stations_only_where_they_differ():
    same, mixed = Scenario.uniform(AC_BE, n_stations=2), Scenario(stations=[AC_BE, AC_VO])
    assert _data(timeline(_trace(same), same))["kinds"] == ["", ""]
    assert _data(timeline(_trace(mixed), mixed))["kinds"] == ["AC_BE", "AC_VO"]


def test_timeline_refuses_what_it_cannot_draw():
    for n in (1, 7):
        scenario = Scenario.uniform(AC_BE, n_stations=n)
        with pytest.raises(ValueError, match=f"2 to 6 stations, got {n}"):
            timeline(_trace(scenario), scenario)
    scenario = Scenario.uniform(AC_BE, n_stations=2)
    with pytest.raises(ValueError, match="no busy period"):
        timeline(_trace(scenario), scenario, start_slot=1_000_000)
    weights = [(np.zeros((7, 2), np.float32), np.zeros(2, np.float32))]
    learned = Scenario(stations=[AC_BE, Station(policy=MLPPolicy(weights))])
    with pytest.raises(ValueError, match=r"stations \[2\] follow a policy"):
        timeline(_trace(scenario), learned)


# --------------------------------------------------------------------------------------- explorer: the grid


def tidy(seed=0, n_values=(2, 5, 10), metrics=("throughput_ratio", "mean_access_delay_ms")):
    """A small full grid with values drawn at random."""
    rng = np.random.default_rng(seed)
    rows = [
        (name, label, low, high, countdown, load, n, metric, rng.uniform(0.1, 40), 10 ** rng.uniform(-5, 0))
        for name, label, low, high in (("vo", "AC_VO", 7, 15), ("be", "AC_BE", 31, 1023), ("7-63", "", 7, 63))
        for countdown in ("frozen", "bianchi")
        for load in ("saturated", "Poisson")
        for n in n_values
        for metric in metrics
    ]
    names = "config label cw_min cw_max countdown load n_stations metric mean half_width"
    return pd.DataFrame(rows, columns=names.split())


def grid_point(grid, row):
    axes = grid["axes"]
    index = (
        [m["id"] for m in grid["metrics"]].index(row.metric),
        [c["id"] for c in axes["config"]].index(row.config),
        [c["id"] for c in axes["countdown"]].index(row.countdown),
        axes["load"].index(row.load),
        axes["n"].index(row.n_stations),
    )
    value = grid["values"]
    for k in index:
        value = value[k]
    return value


def test_every_point_lies_where_its_row_says_to_a_tenth_of_its_interval():
    frame = tidy()
    grid = json.loads(json.dumps(explorer_grid(frame.sample(frac=1, random_state=3))))
    assert grid["axes"]["n"] == [2, 5, 10]
    for row in frame.itertuples():
        mean, half = grid_point(grid, row)
        assert abs(mean - row.mean) <= 0.05 * row.half_width + 1e-9  # rounded to the interval's second digit
        assert half == pytest.approx(row.half_width, rel=0.051)


def test_missing_points_are_none_and_an_unknown_interval_stays_unknown():
    frame = tidy()
    gone = frame.iloc[7]
    frame.loc[11, "mean"], frame.loc[13, "half_width"], frame.loc[17, "half_width"] = math.nan, math.nan, 0.0
    grid = explorer_grid(frame.drop(index=7))
    assert grid_point(grid, gone) is None
    assert grid_point(grid, frame.iloc[11]) is None
    assert grid_point(grid, frame.iloc[13])[1] is None
    assert grid_point(grid, frame.iloc[17]) == [pytest.approx(frame["mean"][17], rel=1e-5), 0.0]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda f: f.drop(columns="half_width"), "no column"),
        (lambda f: f.iloc[:0], "at least one row"),
        (lambda f: f.assign(metric=f["metric"].where(f.index != 4)), "at least one row, and metric"),
        (lambda f: pd.concat([f, f.iloc[[3]]]), "two rows for"),
        (lambda f: f.assign(cw_max=f["cw_max"].where(f.index != 0, 99)), "more than one label"),
    ],
)
def test_a_frame_that_is_no_grid_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        explorer_grid(change(tidy()))


def test_a_grid_over_300_kb_and_a_bound_of_the_wrong_length_are_refused():
    with pytest.raises(ValueError, match=r"over 300 kB"):
        explorer_grid(tidy(n_values=range(1, 1400)))
    with pytest.raises(ValueError, match="2 values for 3 station counts"):
        explorer_grid(tidy(), bounds=[{"id": "b", "label": "b", "metric": "throughput_ratio", "values": [1, 2]}])


def test_bounds_are_the_closed_forms():
    curves = {(b["metric"], b["id"]): b for b in channel_bounds([20, 4])}
    best = analytic.p_persistent_optimum(4)
    assert curves["throughput_ratio", "optimum"]["values"][0] == best.throughput_ratio
    assert curves["collision_rate", "optimum"]["values"][0] == best.collision_probability
    assert curves["throughput_ratio", "eca"]["values"] == [analytic.eca_throughput(4, 16), None]
    assert curves["throughput_ratio", "tdma"]["values"] == [pytest.approx(120 / 124)] * 2
    # in saturation each of N stations succeeds once per N L / S slots; TDMA: N turns of 124 slots of 9 us
    assert curves["mean_access_delay_ms", "optimum"]["values"][0] == pytest.approx(
        4 * 120 / best.throughput_ratio * 0.009
    )
    assert curves["mean_access_delay_ms", "tdma"]["values"] == pytest.approx([4 * 124 * 0.009, 20 * 124 * 0.009])
    assert all(("load" in b) == (metric != "throughput_ratio") for (metric, _), b in curves.items())


# ------------------------------------------------------------------------------------ explorer: the block


def test_explorer_holds_the_grid_and_a_described_picture():
    grid = explorer_grid(tidy(), provenance="3 runs")
    block = explorer(grid, figure=PNG, alt='Throughput "falls" <with> N.', compare=["be", "vo"], n_stations=2)
    data = _data(block)
    assert data.pop("start") == {"n": 2, "compare": ["be", "vo"]}
    assert data == json.loads(json.dumps(grid))
    assert 'alt="Throughput &quot;falls&quot; &lt;with&gt; N."' in block.html
    assert 'src="data:image/png;base64,' in block.html


def test_a_matplotlib_figure_becomes_a_png_that_is_the_same_every_time():
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([1, 2])
    grid = explorer_grid(tidy())
    blocks = [explorer(grid, figure=figure, alt="A line.") for _ in range(2)]
    assert blocks[0] == blocks[1] and "base64,iVBORw0KGgo" in blocks[0].html


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"alt": " "}, "needs alt"),
        ({"compare": ["vo", "vx"]}, "compare takes up to 4"),
        ({"compare": ["vo"] * 5}, "compare takes up to 4"),
        ({"n_stations": 3}, r"one of \[2, 5, 10\], got 3"),
    ],
)
def test_explorer_refuses_a_start_that_is_not_in_the_grid(arguments, message):
    with pytest.raises(ValueError, match=message):
        explorer(explorer_grid(tidy()), figure=PNG, **({"alt": "A picture."} | arguments))
