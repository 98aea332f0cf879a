"""Sweep files: which runs they ask for, what makes a run another run, and what is refused before anything runs."""

from pathlib import Path

import pytest
from conftest import Toy

from fedmorl.batch.grid import read_sweep
from fedmorl.batch.sweep import Plan, plan
from fedmorl.notebook import RunError
from fedmorl.strict_yaml import read_yaml

PARAMETERS = 'seed: int = 0\naccess: str = "a"\nrate: float = 0.5\nstations: list[int] = [2]\nname: str = ""'
EMIT = "from fedmorl.rows import emit\nemit({'seed': seed, 'double': 2 * seed})"


@pytest.fixture
def lab(toy: Toy) -> Toy:
    toy.experiment("trial", EMIT, parameters=PARAMETERS)
    return toy


def runs(lab: Toy, text: str, profile: str | None = None) -> list[dict]:
    return [run.given for run in read_sweep(lab.root, lab.sweep("trial", text), profile).runs]


# --- what a file asks for -------------------------------------------------------------------------------------


def test_grid_is_every_combination_zip_goes_side_by_side_and_seeds_are_innermost(lab: Toy) -> None:
    text = "parameters: {rate: 1}\ngrid: {access: [a, b]}\nzip: {stations: [[2], [3, 4]], name: [x, y]}\nseeds: 2"
    assert runs(lab, text) == [
        {"rate": 1.0, "access": access, "stations": stations, "name": name, "seed": seed}
        for access in ("a", "b")
        for stations, name in (([2], "x"), ([3, 4], "y"))
        for seed in (0, 1)
    ]


def test_written_out_runs_come_after_the_grid_or_stand_alone(lab: Toy) -> None:
    assert runs(lab, "runs: [{access: z}]\nseeds: [7, 5]") == [{"access": "z", "seed": 7}, {"access": "z", "seed": 5}]
    assert [run["access"] for run in runs(lab, "grid: {access: [a]}\nruns: [{access: z}]")] == ["a", "z"]
    assert runs(lab, "{}") == [{}]


def test_a_profile_changes_parameters_and_grid_one_by_one_and_the_rest_as_a_whole(lab: Toy) -> None:
    text = """
parameters: {rate: 1, name: long}
grid: {access: [a, b]}
seeds: 3
profiles:
  quick: {parameters: {name: short}, grid: {access: [a]}, seeds: 1}
  paper: {}
"""
    assert runs(lab, text) == runs(lab, text, "quick") == [{"rate": 1.0, "name": "short", "access": "a", "seed": 0}]
    assert len(runs(lab, text, "paper")) == 6 and runs(lab, text, "paper")[0]["name"] == "long"
    with pytest.raises(RunError, match="has no profile 'fast'; it has quick, paper"):
        runs(lab, text, "fast")


def test_numbers_are_read_as_the_defaults_have_them(lab: Toy) -> None:
    assert runs(lab, "parameters: {rate: 2}\ngrid: {seed: [1e3, 2_000]}") == [
        {"rate": 2.0, "seed": 1000},
        {"rate": 2.0, "seed": 2000},
    ]


# --- what makes a run another run -------------------------------------------------------------------------------


def ids(lab: Toy, text: str = "seeds: 2") -> list[str]:
    return [run.id for run in read_sweep(lab.root, lab.sweep("trial", text)).runs]


def test_prose_and_comments_change_no_run_and_code_pins_and_data_change_all(lab: Toy) -> None:
    source = lab.root / "notebooks" / "experiments" / "trial.ipynb"
    lab.experiment("trial", "import numpy\nopen('../../results/in.csv').read()", EMIT, parameters=PARAMETERS)
    (lab.root / "results" / "in.csv").write_text("a\n1\n")
    before = ids(lab)
    source.write_text(
        source.read_text().replace("# A chapter", "# Other words").replace("seed: int = 0", "seed: int = 0  # x")
    )
    assert ids(lab) == before
    (lab.root / "constraints.txt").write_text("numpy==2.4.6\nrware==2.0.0\n")
    assert ids(lab) == before  # a pin that the run does not reach
    (lab.root / "constraints.txt").write_text("numpy==2.4.7\n")
    pinned = ids(lab)
    assert not set(pinned) & set(before)
    (lab.root / "results" / "in.csv").write_text("a\n2\n")
    fed = ids(lab)
    assert not set(fed) & set(pinned)
    source.write_text(source.read_text().replace("2 * seed", "3 * seed"))
    assert not set(ids(lab)) & set(fed)


def test_a_data_file_that_a_parameter_names_counts_for_that_run_alone(lab: Toy) -> None:
    for name in ("a.csv", "b.csv"):
        (lab.root / "results" / name).write_text("1\n")
    text = "grid: {name: [results/a.csv, results/b.csv]}"
    before = ids(lab, text)
    (lab.root / "results" / "b.csv").write_text("2\n")
    after = ids(lab, text)
    assert after[0] == before[0] and after[1] != before[1]


# --- what is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text,message",
    [
        ("grid: {acess: [a]}", "has no parameter acess; it has seed, access, rate, stations, name"),
        ("grid: {seed: [one]}", r"parameter seed must be int, got 'one' \(str\)"),
        ("grid: {seed: [1.5]}", "parameter seed must be int, got 1.5"),
        ("seeds: 2\nseeds: 3", "line 2: the key 'seeds' stands twice"),
        ("grid: {access: [a], access: [b]}", "the key 'access' stands twice"),
        ("grid: {access: [a, a]}", "asks twice for the run access=a"),
        ("grid: {access: a}", "grid.access must be a list of values, got 'a'"),
        ("grid: {access: []}", r"grid.access must be a list of values, got \[\]"),
        ("grid: [access]", "grid must map names to values"),
        ("zip: {seed: [1, 2], rate: [1]}", "the lists of zip must be of one length, got {'seed': 2, 'rate': 1}"),
        ("grid: {rate: [1]}\nzip: {rate: [2]}", "rate is in grid and in zip; keep one"),
        ("grid: {seed: [1]}\nseeds: 2", "seeds are given twice"),
        ("seeds: 0", "seeds must be a number of seeds or a list of them, got 0"),
        ("seeds: [0, -1]", "seeds must be a number of seeds or a list"),
        ("seeds: true", "seeds must be a number of seeds or a list of them, got True"),
        ("runs: {seed: 1}", "runs must be a list of parameters"),
        ("runs: [3]", "runs must be a list of parameters"),
        ("seed: 3", "has the unknown section seed; it may have experiment, parameters, grid"),
        ("profiles: {quick: {experiment: other}}", "profile quick has the unknown section experiment"),
        ("profiles: {quick: 3}", "profile quick must map sections to values, got 3"),
        ("- a\n- b", "must map experiment, parameters"),
        ("grid: {access: [a", "is not YAML"),
        ("x: !!python/object/apply:os.system [ls]", "line 1: this tag is not allowed: 'tag:yaml.org,2002:python"),
        ("x: !secret 1", "line 1: this tag is not allowed: '!secret'"),
        ("experiment: gone", "there is no notebook notebooks/experiments/gone.ipynb; there is trial"),
        ("experiment: ../../../secret", "experiment .* lies outside the project"),
        ("experiment: ../channel/x", "the experiment ../channel/x must lie in notebooks/experiments"),
        ("experiment: [a]", "experiment must be the name of a notebook"),
        ("parameters: {name: /etc/passwd}", "parameter name leads outside the project: /etc/passwd"),
        ("parameters: {name: ../../../../x.h5}", "parameter name leads outside the project"),
        ("grid: {seed: [" + ", ".join(map(str, range(101))) + "], rate: [" + ", ".join(map(str, range(100))) + "]}",
         "asks for 10,100 runs; pass --yes if you mean it"),
        ("seeds: 1000000", "asks for 1,000,000 runs; pass --yes"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_in_one_sentence(lab: Toy, text: str, message: str) -> None:
    with pytest.raises(RunError, match=message) as caught:
        runs(lab, text)
    assert "\n" not in str(caught.value)


def test_a_million_runs_can_be_meant(lab: Toy) -> None:
    sweep = read_sweep(lab.root, lab.sweep("trial", "seeds: 20000"), yes=True)
    assert len(sweep.given) == 20_000


def test_a_sweep_file_outside_the_project_is_refused(lab: Toy, tmp_path: Path) -> None:
    (tmp_path / "trial.yml").write_text("{}")
    with pytest.raises(RunError, match=r"the sweep file .*trial.yml lies outside the project"):
        read_sweep(lab.root, tmp_path / "trial.yml")


def test_an_experiment_that_emits_nothing_is_refused_before_it_runs_for_hours(lab: Toy) -> None:
    lab.experiment("mute", "print(seed)")
    with pytest.raises(RunError, match=r"mute.ipynb emits no rows; end it with emit"):
        read_sweep(lab.root, lab.sweep("mute", "seeds: 1"))


@pytest.mark.parametrize("text", ["a: {b: 1, c: {d: 1, d: 2}}", "- {x: 1, x: 2}"])
def test_a_key_that_stands_twice_is_refused_at_any_depth(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.yml").write_text(text)
    with pytest.raises(RunError, match="stands twice"):
        read_yaml(tmp_path / "x.yml")


def test_merge_keys_of_yaml_still_work(tmp_path: Path) -> None:
    (tmp_path / "x.yml").write_text("base: &b {a: 1, c: 2}\nother: {<<: *b, a: 3}\n")
    assert read_yaml(tmp_path / "x.yml")["other"] == {"a": 3, "c": 2}


# --- the plan --------------------------------------------------------------------------------------------------


def test_a_run_is_told_from_the_others_by_what_varies(lab: Toy) -> None:
    sweep = read_sweep(lab.root, lab.sweep("trial", "parameters: {rate: 3}\ngrid: {access: [a, b]}\nseeds: 1"))
    assert [sweep.words(run) for run in sweep.runs] == ["access=a", "access=b"]
    made: Plan = plan(sweep)
    assert made.text() == "2 runs: 2 to run\n  access=a: to run\n  access=b: to run"
