"""Learned policies in the explorer, and who sends when: by closed form, by the simulator's other path, on screen."""

import math
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from test_explore import no_event_loop, shown_of  # noqa: F401  (the fixture is used by its name)

import fedmorl.policies
from fedmorl import figures
from fedmorl.closure import closure
from fedmorl.dca import AC_BE, AC_VO, MLPPolicy, Station, replicate, simulate
from fedmorl.dca.policy import OBSERVATION
from fedmorl.embed import explorer_grid
from fedmorl.explore import METRICS, Configuration, Explorer, captures, chart, compute, grid, offered, strip, who_sends
from fedmorl.explore.learned import FILES
from fedmorl.explore.predictions import theory
from fedmorl.explore.readout import describe, name_of
from fedmorl.explore.sendings import Sending
from fedmorl.explore.view import at_window
from fedmorl.identity import files_read
from fedmorl.policies import load_policy, save_policies

ROOT = Path(__file__).resolve().parents[1]
P = 0.02


def lottery(probability: float, again: float = 0.0) -> MLPPolicy:
    """Sends with `probability` at every slot; `again` is added to the logit right after an own success."""
    weight = np.zeros((len(OBSERVATION), 2), np.float32)
    weight[OBSERVATION.index("ack"), 1] = again
    return MLPPolicy([(weight, np.array([0, math.log(probability / (1 - probability))], np.float32))])


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A project with two of the policies, a lottery and one that keeps the channel; we are in a folder of it."""
    (tmp_path / "_toc.yml").touch()
    (tmp_path / "notebooks").mkdir()
    save_policies(tmp_path / FILES["plan"][1], [lottery(P)] * 10)
    save_policies(tmp_path / FILES["self_play"][1], [lottery(P, again=20.0)])
    monkeypatch.chdir(tmp_path / "notebooks")
    return tmp_path


# ------------------------------------------------------------------------------------------ which are offered


def test_a_policy_is_offered_if_its_file_is_there(project):
    assert list(offered()) == ["plan", "self_play"]
    (project / FILES["plan"][1]).unlink()
    assert list(offered()) == ["self_play"]
    (project / "_toc.yml").unlink()
    assert offered() == {}  # outside of a project


def test_torch_is_not_loaded_before_a_policy_is_read(project):
    code = (
        "import sys; from fedmorl.explore import Explorer, compute, grid, offered, who_sends; found = offered();"
        "early = 'torch' in sys.modules; station = found['plan'].station;"
        "sys.exit(early or station.policy is None or found['plan'].station is not station)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=project).returncode == 0


def test_a_page_that_offers_policies_depends_on_their_files(project):
    reached = closure(ROOT / "notebooks" / "channel" / "trade_off.ipynb")
    found = files_read(reached.literals, project / "notebooks", project)
    assert [path.relative_to(project).as_posix() for path in found] == [FILES["plan"][1], FILES["self_play"][1]]


def test_a_file_of_policies_that_differ_is_refused_in_one_sentence(project):
    save_policies(project / FILES["plan"][1], [lottery(P), lottery(2 * P)])
    with pytest.raises(ValueError, match="holds 2 policies that differ"):
        _ = offered()["plan"].station


# -------------------------------------------------------------------------------------------- points and grid


def test_a_learned_lottery_has_the_throughput_of_its_closed_form(project):
    n, slots = 5, {"n_slots": 1_100_000, "warmup_slots": 100_000}
    configuration = Configuration.of(offered()["plan"].station)
    result = compute(n, configuration, **slots)
    runs = replicate(configuration.scenario(n), n_replications=5, **slots)
    estimate = result.metrics["throughput_ratio"]
    assert estimate.mean == runs.mean("throughput_ratio")
    idle, alone = (1 - P) ** n, n * P * (1 - P) ** (n - 1)
    expected = 120 * alone / (idle + (1 - idle) * 124)
    assert abs(estimate.mean - expected) < 4 * estimate.half_width / 2.776  # four standard errors, t(0.975, 4)
    assert result.theory == {} and theory(configuration, n) == {}


def test_a_policy_is_called_by_its_name_and_has_neither_window_nor_count_down(project):
    configuration = Configuration.of(offered()["self_play"].station, "bianchi", 0.6)
    assert name_of(configuration) == FILES["self_play"][0]
    assert describe(configuration) == "Poisson, G = 0.6"
    assert at_window(configuration, 63) == configuration
    assert Configuration.of(AC_BE) == Configuration()  # a preset is its window and nothing else


def test_the_grid_takes_policies_to_the_rendered_explorer(project):
    stations = [AC_VO, *(learned.station for learned in offered().values())]
    slots = {"n_slots": 300_000, "n_replications": 2}
    frame = grid((2, 5), stations=stations, loads={"frozen": (None,)}, **slots)
    shown = explorer_grid(frame, metrics=METRICS)
    assert shown["axes"]["config"] == [
        {"id": "ac_vo", "label": "AC_VO", "cw_min": 7, "cw_max": 15},
        {"id": "plan_learned_at_n_10", "label": FILES["plan"][0], "cw_min": None, "cw_max": None},
        {"id": "self_play_not_told_n", "label": FILES["self_play"][0], "cw_min": None, "cw_max": None},
    ]
    capture = shown["values"][list(METRICS).index("capture_index")]
    kept, drawn = capture[2][0][0][1], capture[1][0][0][1]
    assert abs(kept[0] - (1 - P) ** 4) < 0.02  # who has just sent sends again, unless one of four others draws to send
    assert abs(drawn[0] - 1 / 5) < 0.02
    with pytest.raises(ValueError, match=r"stations\[1\] follows a policy and needs a name"):
        grid((2,), stations=[AC_VO, Station(policy=lottery(P))])


# --------------------------------------------------------------------------------------------- who sends when


@pytest.mark.parametrize("rule", ["AC_VO", "plan"])
def test_the_sendings_are_those_of_the_measured_run(project, rule):
    """The untraced run takes the simulator's fast path and logs its successes in another form."""
    configuration = Configuration.of(AC_VO if rule == "AC_VO" else offered()[rule].station)
    sent = who_sends(10, configuration, n_slots=30_000, seed=3)
    run = simulate(configuration.scenario(10), n_slots=130_000, seed=3, warmup_slots=100_000)
    logged = [(int(entry) & 255, (int(entry) >> 8) - 100_000) for entry in run.log]
    ours = [(s.station, s.end_slot) for s in sent if s.outcome == "success" and s.end_slot < 30_000]
    assert ours == [entry for entry in logged if entry[1] < 30_000] and len(ours) > 50
    assert all(s.end_slot - s.slot == 120 for s in sent if s.slot > 0 and s.end_slot < 30_000)
    senders = [s.slot for s in sent if s.outcome == "collision"]
    assert senders and all(senders.count(slot) >= 2 for slot in senders)


def test_what_is_under_way_at_an_end_is_cut_there(project):
    whole = who_sends(3, Configuration(), n_slots=3_000, warmup_slots=0)
    busy = next(s for s in whole if s.slot > 1_000)
    before, after = (
        who_sends(3, Configuration(), n_slots=busy.slot + 50, warmup_slots=0),
        who_sends(3, Configuration(), warmup_slots=busy.slot + 50),
    )
    assert before[-1] == busy._replace(end_slot=busy.slot + 50)
    assert after[0] == busy._replace(slot=0, end_slot=busy.end_slot - busy.slot - 50)


HAND = [
    Sending(0, 10, 130, "success"),
    Sending(0, 150, 270, "success"),
    Sending(1, 300, 420, "collision"),
    Sending(3, 300, 420, "collision"),
    Sending(0, 450, 570, "success"),
    Sending(2, 600, 720, "success"),
]


def test_captures_counts_successes_that_follow_an_own_one():
    assert captures(HAND) == (2, 3)
    assert captures(HAND[2:4]) == (0, 0)


def test_a_strip_draws_every_sending_in_its_row_and_crosses_collisions_out():
    drawn = strip.strip("Who sends when. <A>, N = 4", HAND, 4, 1_000)
    paths = dict(re.findall(r'<path class="(success|collision|cross)" d="(.*?)"', drawn))
    assert [path.count("M") for path in paths.values()] == [4, 2, 2]
    boxes = [tuple(map(float, box)) for box in re.findall(r"M([\d.]+) ([\d.]+)h([\d.]+)v", paths["success"])]
    wide = (chart.WIDTH - chart.LEFT - chart.RIGHT) / 1_000
    assert [x for x, _, _ in boxes] == pytest.approx(
        [chart.LEFT + s.slot * wide for s in (*HAND[:2], *HAND[4:])], abs=0.06
    )
    assert [y for _, y, _ in boxes] == pytest.approx(
        [boxes[0][1]] * 3 + [boxes[0][1] + 2 * (290 - 12 - 42) / 4], abs=0.2
    )
    assert all(w == pytest.approx(120 * wide - 0.5, abs=0.06) for _, _, w in boxes)
    said = "4 packets of 2 stations, 1 collision. 2 of 3 successes follow one of the same station."
    assert f'aria-label="Who sends when. &lt;A&gt;, N = 4. {said}"' in drawn and f"<small>{said}</small>" in drawn


@pytest.mark.parametrize("n_stations", [1, 14, 50, 256])
def test_a_strip_numbers_as_many_rows_as_there_is_room_for(n_stations):
    drawn = strip.strip("", [], n_stations, 3_000)
    rows = [float(y) for y in re.findall(r'<text x="40" y="([\d.]+)"', drawn)]
    assert 1 <= len(rows) <= 20 and (np.diff(rows) > 10).all()


def test_the_figure_draws_what_it_is_given():
    figure = figures.who_sends({"AC_BE": HAND, "plan": HAND[:1]}, n_stations=4, n_slots=1_000)
    first, second = figure.axes[:2]
    boxes = {(bar.get_x(), bar.get_y() + bar.get_height() / 2, bar.get_width()) for bar in first.patches}
    assert boxes == {(s.slot, s.station, 120) for s in HAND} and len(second.patches) == 1
    assert sum(bool(bar.get_hatch()) for bar in first.patches) == 2  # collisions, told apart by more than colour
    assert first.get_ylim()[0] > first.get_ylim()[1]  # station 1 on top, as in the player
    assert [label.get_text() for label in second.get_yticklabels()] == ["1", "2", "3", "4"]
    assert len(figure.png()) < 60_000


# ---------------------------------------------------------------------------------------------- the live view


def test_the_live_explorer_draws_a_learned_policy_with_its_windows_at_rest(project):
    live = Explorer(n_stations=4, preset="ac_vo", n_slots=200_000)
    assert [value for _, value in live.preset.options][-3:] == ["plan", "self_play", "own window"]
    live.preset.value = "plan"
    assert live.cw_min.disabled and live.cw_max.disabled and live.countdown.disabled
    expected = compute(4, Configuration.of(offered()["plan"].station), n_slots=300_000, warmup_slots=100_000)
    cells = shown_of(live)["Throughput ratio"]
    assert float(cells[0]) == pytest.approx(expected.metrics["throughput_ratio"].mean, abs=1e-3) and cells[1] == ""
    assert FILES["plan"][0] in live._table.value
    over_n, over_cw = re.findall(r'class="curve" d="(M.*?)"', live._chart.value)[:2]
    assert over_n.count("L") >= 8  # ten station counts, and the one asked for
    level = re.findall(r"[\d.]+ ([\d.]+)", over_cw)
    assert len(level) == 2 and level[0] == level[1]  # no window: the same at both ends
    live.preset.value = "ac_be"
    assert not (live.cw_min.disabled or live.cw_max.disabled or live.countdown.disabled)
    assert live.configuration == Configuration.of(AC_BE)


def test_the_live_explorer_shows_who_sends_when_of_the_current_and_of_the_pinned(project):
    live = Explorer(n_stations=3, preset="self_play", n_slots=200_000)
    assert live._chart.value.count('class="strip"') == 1
    live.pin()
    live.preset.value = "ac_be"
    strips = re.findall(r'class="strip">(.*?)</div>', live._chart.value)
    assert len(strips) == 2 and "B: AC_BE" in strips[0] and f"A: {FILES['self_play'][0]}, N = 3" in strips[1]
    sent = who_sends(3, Configuration.of(AC_BE))
    (path,) = re.findall(r'<path class="success" d="(.*?)"', strips[0])
    assert path.count("M") == sum(s.outcome == "success" for s in sent) > 10
    kept = re.search(r"(\d+) of (\d+) successes follow", strips[1])
    assert int(kept[1]) > 0.8 * int(kept[2]) > 10  # it keeps the channel, and the strip says so
    live.n_stations.value = 5
    assert live._chart.value.count("N = 5</p>") == 3  # both strips, and the cut over the window


def test_a_policy_that_cannot_be_read_is_said_where_the_reader_looks(project):
    (project / FILES["plan"][1]).write_bytes(b"not a policy")
    live = Explorer(n_stations=2, preset="ac_be", n_slots=200_000)
    live.preset.value = "plan"
    assert "does not hold policies" in live._status.value and "AC_BE" in live._table.value
    live.preset.value = "self_play"
    assert FILES["self_play"][0] in live._table.value


def test_the_explorer_names_the_learned_policies_it_knows(project):
    with pytest.raises(ValueError, match="'csma_eca', 'plan', 'self_play'; got 'roll'"):
        Explorer(preset="roll")


def test_a_policy_is_read_in_the_worker_and_once(project, monkeypatch):
    """Reading loads torch, which takes a second or two: the event loop stays free meanwhile."""
    seen: list[str] = []

    def spying(path):
        seen.append(threading.current_thread().name)
        return load_policy(path)

    monkeypatch.setattr(fedmorl.policies, "load_policy", spying)
    live = Explorer(n_stations=2, preset="ac_be", n_slots=200_000)
    for preset in ("plan", "ac_be", "plan"):
        live.preset.value = preset
    assert len(seen) == 1 and seen[0].startswith("explorer")
