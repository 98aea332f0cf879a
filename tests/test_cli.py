"""The command line: strict notebook runs, the simulator as a table and as JSON, one sentence for each refusal."""

import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from conftest import FOOTER, Toy, notebook

from fedmorl.cli import main
from fedmorl.provenance import code_hash


def fedmorl(*arguments: str, **options: object) -> subprocess.CompletedProcess:
    """The command in a process of its own, as a person has it."""
    command = [sys.executable, "-m", "fedmorl.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def one_sentence(done: subprocess.CompletedProcess) -> str:
    """The sentence on stderr of a command that refused; no traceback, nothing on stdout."""
    assert done.returncode != 0 and done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The sentence with which the command refuses its arguments, in this process, since that is quick."""
    monkeypatch.setattr("signal.signal", lambda *_: None)

    def run(*arguments: str) -> str:
        status = main(list(arguments))
        out, err = capsys.readouterr()
        return one_sentence(subprocess.CompletedProcess(arguments, status, out, err))

    return run


@pytest.fixture
def said(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """What the command prints, in this process."""
    monkeypatch.setattr("signal.signal", lambda *_: None)

    def run(*arguments: str) -> str:
        assert main(list(arguments)) == 0
        return capsys.readouterr().out

    return run


# --- fedmorl run ----------------------------------------------------------------------------------------


def test_a_run_takes_parameters_and_its_footer_shows_the_hash_of_the_source(toy: Toy, tmp_path: Path, refused) -> None:
    """On this interpreter too, though a kernelspec `python3` that cannot start comes first on the path."""
    source = toy.add(
        "a", "import sys\nprint(seed, sys.executable, rate)", FOOTER, parameters="seed: int = 0\nrate: float = 0.5"
    )
    spec = tmp_path / "share" / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"argv": ["/bin/false"], "display_name": "broken", "language": "python"}))
    output = tmp_path / "deep" / "out.ipynb"
    options = ["-p", "seed", "1e1", "-p", "rate", "2", "-o", str(output)]
    done = fedmorl("run", str(source), *options, env=os.environ | {"JUPYTER_PATH": str(tmp_path / "share")})
    assert done.returncode == 0, done.stderr
    made = nbformat.read(output, as_version=4)
    text = json.dumps(made)
    assert f"10 {sys.executable} 2.0" in text
    assert f"code {code_hash(source)} · commit unknown · seed 10 · " in json.dumps(made, ensure_ascii=False)
    assert made.metadata.fedmorl.provenance.seed == 10
    assert str(tmp_path) not in text and [path.name for path in output.parent.iterdir()] == ["out.ipynb"]

    again = refused("run", str(output), "-o", str(tmp_path / "second.ipynb"))
    assert "is the output of a run and keeps its old parameters; run its source notebook" in again
    assert "exists; name another output, or pass --force" in refused("run", str(source), "-o", str(output))


@pytest.mark.parametrize(
    "options,message",
    [
        (["-p", "sed", "1"], "has no parameter sed; it has seed"),
        (["-p", "seed", "1.5"], "parameter seed must be int, got 1.5 (float)"),
        (["-p", "seed", "true"], "parameter seed must be int, got True (bool)"),
        (["-p", "seed", "[1]"], "parameter seed must be int, got [1] (list)"),
    ],
)
def test_a_wrong_parameter_is_refused_before_a_kernel_starts(
    toy: Toy, refused, options: list[str], message: str
) -> None:
    source = toy.add("a", "open('ran', 'w')")
    assert message in refused("run", str(source), *options, "-o", str(toy.root / "out.ipynb"))
    assert not (toy.root / "out.ipynb").exists() and not (source.parent / "ran").exists()


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda made: made["cells"].pop(1), "needs exactly one code cell tagged `parameters`, and has 0"),
        (lambda made: made["cells"].append({**made["cells"][1], "id": "b"}), "tagged `parameters`, and has 2"),
        (lambda made: made["cells"][1].update(source="seed = f()"), "must have a plain literal as its default"),
        (lambda made: made["cells"][1].update(source="seed = ="), "the `parameters` cell is not Python"),
        (lambda made: made["cells"][2].update(source="x = = 1"), "the cell that starts 'x = = 1' is not Python"),
        (lambda made: made.pop("cells"), "is not a notebook: KeyError 'cells'"),
        (lambda made: made.update(nbformat=3), "has notebook format 3"),
        (lambda made: made["metadata"].update(papermill={}), "is the output of a run and keeps its old parameters"),
    ],
)
def test_a_malformed_notebook_is_refused(tmp_path: Path, refused, change, message: str) -> None:
    made = notebook("x = 1")
    change(made)
    source = tmp_path / "a.ipynb"
    source.write_text(json.dumps(made))
    assert message in refused("run", str(source), "-o", str(tmp_path / "out.ipynb"))


def test_a_missing_notebook_text_that_is_no_notebook_and_the_source_as_output_are_refused(
    tmp_path: Path, refused
) -> None:
    output = str(tmp_path / "out.ipynb")
    assert "there is no notebook" in refused("run", str(tmp_path / "a.ipynb"), "-o", output)
    (tmp_path / "b.ipynb").write_text("not JSON")
    assert "is not a notebook" in refused("run", str(tmp_path / "b.ipynb"), "-o", output)
    source = str(tmp_path / "b.ipynb")
    assert "is the source itself" in refused("run", source, "-o", source, "--force")


def test_a_failing_run_keeps_its_notebook_apart_and_writes_no_output(toy: Toy) -> None:
    source = toy.add("a", "# think\nx = 0\n1 / x")
    output = toy.root / "out.ipynb"
    sentence = one_sentence(fedmorl("run", str(source), "-o", str(output)))
    assert re.search(r"failed in the cell that starts 'x = 0': ZeroDivisionError: division by zero", sentence)
    assert not output.exists()
    assert "ZeroDivisionError" in (toy.root / "out.failed.ipynb").read_text()


def test_a_kernel_that_dies_is_one_sentence(toy: Toy) -> None:
    source = toy.add("a", "import os\nos._exit(1)")
    assert "the kernel died" in one_sentence(fedmorl("run", str(source), "-o", str(toy.root / "out.ipynb")))


def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(toy: Toy) -> None:
    """A limit on the size of files stands for the full disk: the write fails in the middle."""
    source = toy.add("a", "print('x' * 100_000)")
    output = toy.root / "out.ipynb"
    output.write_text("the old output")

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = fedmorl("run", str(source), "-o", str(output), "--force", preexec_fn=small_files)
    last_line = done.stderr.strip().splitlines()[
        -1
    ]  # a kernel stopped in the middle may log its own farewell before it
    assert done.returncode != 0 and done.stdout == ""
    assert re.search(r"^fedmorl run: cannot write \S*out.*ipynb: File too large; out.ipynb was not changed", last_line)
    assert output.read_text() == "the old output"
    assert sorted(path.name for path in toy.root.glob("*out*") if path != output) == []


def test_an_unwritable_place_is_one_sentence(toy: Toy, refused) -> None:
    source = toy.add("a", "x = 1")
    (toy.root / "file").write_text("")
    sentence = refused("run", str(source), "-o", str(toy.root / "file" / "out.ipynb"))
    assert re.search(r"cannot write .*file.*: (Not a directory|File exists); out.ipynb was not changed", sentence)
    (toy.root / "_build").write_text("")
    assert "fedmorl book: cannot write or read" in one_sentence(toy.fedmorl("book"))


def test_the_book_is_looked_for_at_or_above_the_working_folder(toy: Toy, tmp_path: Path) -> None:
    assert "there is no _toc.yml in" in one_sentence(fedmorl("book", cwd=tmp_path))
    assert fedmorl("status", cwd=toy.root / "notebooks").returncode == 0


def test_a_misspelt_sweep_is_told_the_nearest_name() -> None:
    root = Path(__file__).resolve().parent.parent
    assert "did you mean networld?" in one_sentence(fedmorl("sweep", "networdl", "--dry-run", cwd=root))
    assert "alone lists those there are" in one_sentence(fedmorl("sweep", "zzz", "--dry-run", cwd=root))


# --- fedmorl simulate -----------------------------------------------------------------------------------


def test_json_is_strict_and_equals_the_simulator(said) -> None:
    from fedmorl import dca

    text = said("simulate", "--access", "ac_vi", "--stations", "3", "--slots", "2e5", "--seed", "4", "--json")
    values = json.loads(text, parse_constant=pytest.fail)
    scenario = dca.Scenario.uniform(dca.AC_VI, n_stations=3)
    expected = dca.simulate(scenario, n_slots=200_000, seed=4, warmup_slots=20_000)
    assert values["throughput_ratio"] == expected.throughput_ratio
    assert values["collision_rate"] == expected.collision_rate
    assert values["mean_delay_slots"] is None  # saturated packets have no arrival
    assert values["run"]["warmup"] == 20_000 and values["scenario"]["stations"][0]["name"] == "AC_VI"


def test_replications_come_with_intervals_from_five_on(said) -> None:
    run = ("simulate", "--stations", "4", "--slots", "1e5", "--json", "--replications")
    few, enough = (json.loads(said(*run, count)) for count in ("2", "5"))
    assert few["intervals_95"] == {}
    low, high = enough["intervals_95"]["throughput_ratio"]
    assert low < enough["throughput_ratio"] < high


def test_the_table_is_aligned_and_carries_units(said) -> None:
    text = said("simulate", "--traffic", "poisson", "--rate", "1e-4", "--slots", "1e6", "--replications", "5")
    lines = text.splitlines()
    assert lines[0].startswith("ac_be, 10 stations, poisson, 1,000,000 slots, the first 100,000 not measured, seed 0")
    rows = [re.split(r"\s{2,}", line.strip()) for line in lines[1:]]
    assert ["mean access delay", "slots"] in [[row[0], row[-1]] for row in rows]
    assert all(re.fullmatch(r"\[\S+, \S+\]", row[2]) for row in rows if row[1] != "undefined")
    brackets = {line.index("[") for line in lines[1:] if "[" in line}
    assert len(brackets) == 1


@pytest.mark.parametrize(
    "options,message",
    [
        (["--stations", "0"], "n_stations must be from 1 to 256; got 0"),
        (["--stations", "-3"], "n_stations must be from 1 to 256; got -3"),
        (["--traffic", "poisson", "--rate", "nan"], "rate_per_slot must be a finite number"),
        (["--traffic", "constant", "--rate", "inf"], "rate_per_slot must be a finite number"),
        (["--rate", "0.1"], "--rate is for --traffic poisson or constant"),
        (["--replications", "0"], "--replications must be at least 1, got 0"),
        (["--slots", "1000", "--warmup", "1000"], "n_slots must exceed warmup_slots"),
        (["--seed", "-1"], "seed must be an integer from 0"),
    ],
)
def test_a_wrong_option_is_one_sentence(refused, options: list[str], message: str) -> None:
    assert message in refused("simulate", "--json", *options)


def test_help_loads_nothing_heavy_and_shows_examples() -> None:
    code = (
        "import sys; from fedmorl.cli import main\ntry: main(['--help'])\n"
        "except SystemExit: print([m for m in ('numpy', 'papermill', 'nbformat', 'yaml') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "examples:" in done.stdout and done.stdout.rstrip().endswith("[]")
