"""The benchmark of LOGO's cost: its programs answer alike, and a group that is measured leaves the others' rows."""

import csv
from pathlib import Path

import pytest
import torch

from fedmorl.world_models.joint_networks import Sizes

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
SIZES = Sizes(n_agents=3, observation_size=4, action_size=2, state_size=5)


@pytest.fixture
def benchmark(monkeypatch):
    """The script as a module, imported as its folder's scripts import each other."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import logo

    return logo


@pytest.mark.parametrize("peer", ["five copies", "five joint perceptrons"])
def test_a_loop_over_members_answers_as_their_batched_product(benchmark, peer):
    kind = benchmark.PEERS[peer]
    asked, together = benchmark.situations(SIZES, 6), benchmark.network(kind, SIZES)
    members = benchmark.apart(together, benchmark.replace(kind, members=1), SIZES)
    at_once, in_turn = benchmark.batched(together, asked), benchmark.looped(members, asked)
    assert len(in_turn) == 5 and not torch.allclose(at_once.next_s[0], at_once.next_s[1])
    for name in ("next_s", "r", "next_o", "log_variance"):
        one_by_one = torch.cat([getattr(found, name) for found in in_turn])
        assert torch.allclose(getattr(at_once, name), one_by_one, atol=1e-5), name


def test_one_network_is_compared_with_five(benchmark):
    programs = benchmark.programs(SIZES, 6)
    rows = {name: work() for name, (work, _) in programs.items()}
    assert len(rows["LOGO"].next_s) == 1 and all(amount == 6 for _, amount in programs.values())
    for peer in benchmark.PEERS:
        assert len(rows[f"{peer}, batched"].next_s) == len(rows[f"{peer}, looped"]) == 5
    assert {found[0] for found in benchmark.ASKED} == {"five copies"}


def test_a_group_that_is_measured_leaves_the_rows_of_others(benchmark, monkeypatch, tmp_path):
    import run

    monkeypatch.setattr(run, "OUTPUT", tmp_path / "benchmarks.csv")
    run.write([{"group": "logo", "case": "old"}, {"group": "kernels", "case": "kept"}])
    run.write([{"group": "logo", "case": "new"}])
    with run.OUTPUT.open(newline="") as file:
        assert [(row["group"], row["case"]) for row in csv.DictReader(file)] == [("kernels", "kept"), ("logo", "new")]


def test_a_ratio_above_one_means_that_logo_is_faster(benchmark):
    row = benchmark.compared("case", 100.0, "five copies, looped", 20.0, 64)
    assert row["ratio"] == "5" and row["asked"] == ">= 4"
    assert benchmark.compared("case", 100.0, "five copies, looped", 20.0, 1)["asked"] == ""
