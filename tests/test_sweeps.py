"""Sweeps that run: on processes that are killed, on clusters started by hand, twice at once, on a full disk."""

import contextlib
import csv
import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import dask
import pytest
from conftest import Toy

from fedmorl import identity, rows
from fedmorl.batch import engine, tables
from fedmorl.batch.grid import Sweep, read_sweep
from fedmorl.batch.store import Ledger, Store
from fedmorl.batch.sweep import Options, Summary, plan, run
from fedmorl.batch.worker import Job, Outcome, attempt, worker_name
from fedmorl.notebook import RunError
from fedmorl.rows import COST

EMIT = """from fedmorl.rows import emit
emit([{"seed": seed, "k": k, "value": seed / 3 + k} for k in range(2)])"""
KILLS = int(os.environ.get("FEDMORL_KILLS", "2"))  # `make test-all` kills 20 times in a row


TWO = Options(workers=2)


def quiet(text: str) -> None:
    """Say nothing."""


def swept(toy: Toy, name: str, options: Options = TWO, **rest: object) -> tuple[Sweep, Summary]:
    sweep = read_sweep(toy.root, toy.root / "notebooks" / "sweeps" / f"{name}.yml")
    return sweep, run(sweep, options, say=quiet, **rest)  # type: ignore[arg-type]


def attempts(toy: Toy) -> list[dict]:
    ledger = Ledger(toy.root)
    found = ledger.attempts()
    ledger.close()
    return found


def states(toy: Toy) -> dict[int, list[str]]:
    """States of the attempts by seed; of those cut off with the whole sweep, nobody knows it."""
    by_seed: dict[int, list[str]] = {}
    for entry in attempts(toy):
        if not entry["parameters"]:
            assert entry["state"] == "interrupted"
            continue
        by_seed.setdefault(json.loads(entry["parameters"])["seed"], []).append(entry["state"])
    return by_seed


def table(toy: Toy, name: str = "trial") -> list[dict]:
    with open(toy.root / "results" / f"{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


def timeless(lines: list[dict]) -> list[dict]:
    return [{name: value for name, value in line.items() if name not in (*COST, "commit")} for line in lines]


# --- one sweep with a run that fails, looked at from all sides ----------------------------------------------------


@pytest.fixture(scope="module")
def swept_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Toy, Summary]:
    """Four runs, of which seed 2 raises, on two workers."""
    toy = Toy.new(tmp_path_factory.mktemp("swept") / "project")
    toy.experiment("trial", "assert seed != 2, 'two is out'", EMIT)
    toy.sweep("trial", "seeds: 4")
    return toy, swept(toy, "trial")[1]


@pytest.fixture
def done(swept_once: tuple[Toy, Summary], tmp_path: Path) -> Toy:
    """The project of that sweep, to be spoilt."""
    root = tmp_path / "copy"
    shutil.copytree(swept_once[0].root, root)
    return Toy(root)


def of(toy: Toy) -> tuple[Sweep, Store]:
    sweep = read_sweep(toy.root, toy.root / "notebooks" / "sweeps" / "trial.yml")
    return sweep, Store(sweep.store)


def test_a_failure_is_told_with_its_parameters_its_traceback_and_the_command_that_repeats_it(
    swept_once: tuple[Toy, Summary],
) -> None:
    toy, summary = swept_once
    text = summary.text()
    assert text.startswith("4 runs: 3 done, 0 finished before, 1 failed")
    assert "1 failed: notebooks/experiments/trial.ipynb failed in the cell that starts" in text
    assert "AssertionError: two is out" in text and "\n  seed=2  (traceback in _build/runs/" in text
    kept = toy.root / re.search(r"traceback in (\S+)\)", text)[1]  # type: ignore[index]
    assert "two is out" in kept.read_text() and str(toy.root) not in text
    command = re.search(r"repeat it alone: fedmorl (run .+)", text)[1]  # type: ignore[index]
    again = toy.fedmorl(*command.split())
    assert again.returncode == 1 and "two is out" in again.stderr
    assert states(toy) == {0: ["ok"], 1: ["ok"], 2: ["failed"], 3: ["ok"]}


def test_rows_are_collected_in_the_order_of_the_file_with_what_made_them(done: Toy) -> None:
    said = done.fedmorl("collect", "trial")
    assert said.returncode == 0 and "results/trial.csv: 6 rows, 3 runs new or changed; 1 run missing" in said.stdout
    lines = table(done)
    assert list(lines[0])[:3] == ["seed", "k", "value"] and list(lines[0])[-len(COST) :] == list(COST)
    assert [(line["seed"], line["k"], line["row"]) for line in lines] == [
        (seed, k, row) for seed in "013" for k, row in (("0", "1/2"), ("1", "2/2"))
    ]
    assert lines[2]["value"] == "0.3333333333" and len({line["run"] for line in lines}) == 3
    assert all(float(line["cpu_s"]) > 0 and float(line["peak_mb"]) > 10 for line in lines)
    before = (done.root / "results" / "trial.csv").stat().st_mtime_ns
    assert "0 runs new" in done.fedmorl("collect").stdout
    assert (done.root / "results" / "trial.csv").stat().st_mtime_ns == before


def test_the_status_of_one_sweep_and_of_all(done: Toy) -> None:
    done.sweep("other", "experiment: trial\nseeds: [7]")
    said = done.fedmorl("sweep", "trial", "--status").stdout
    assert said.startswith("4 runs: 3 cached, 1 failed before\nattempts: 3 ok, 1 failed; ")
    assert "AssertionError: two is out" in said and "results/trial.csv: no table yet" in said
    everything = done.fedmorl("sweep", "--status").stdout
    assert "notebooks/sweeps/other.yml\n  1 run: 1 to run" in everything and "3 cached" in everything
    assert "name a sweep of notebooks/sweeps; there is other, trial" in done.fedmorl("sweep").stderr


def test_finished_runs_are_skipped_and_the_failed_one_is_tried_again(done: Toy) -> None:
    sweep, _ = of(done)
    assert Counter(plan(sweep).states.values()) == {"cached": 3, "failed before": 1}
    _, summary = swept(done, "trial")
    assert summary.finished_before == 3 and [run.seed for run in summary.failed] == [2]
    assert states(done)[2] == ["failed", "failed"] and states(done)[0] == ["ok"]


@pytest.mark.parametrize("how", ["torn", "edited", "renamed", "gone", "empty"])
def test_a_corrupt_output_counts_as_never_run(done: Toy, how: str) -> None:
    sweep, store = of(done)
    victim, other = sweep.runs[1], sweep.runs[0]
    path = store.output(victim.id)
    text = path.read_text()
    if how == "torn":
        path.write_text(text[: len(text) // 2])
    elif how == "edited":
        assert text.count("0.3333333333333333") > 1
        path.write_text(text.replace("0.3333333333333333", "0.9333333333333333"))
    elif how == "renamed":
        shutil.copyfile(store.output(other.id), path)
    elif how == "gone":
        path.unlink()
    else:
        path.write_text("")
    assert [run.seed for run in plan(sweep).missing] == [1, 2]
    tables.collect(sweep)
    assert "1" not in {line["seed"] for line in table(done)}  # never a wrong row


def test_rows_in_the_committed_table_are_not_made_again_where_no_output_is(done: Toy) -> None:
    sweep, _ = of(done)
    tables.collect(sweep)
    shutil.rmtree(done.root / "_build")
    assert Counter(plan(sweep).states.values()) == {"in the table": 3, "to run": 1}
    assert len(plan(sweep, again=True).missing) == 4
    kept = table(done)
    assert tables.collect(sweep).fresh == 0 and table(done) == kept
    path = done.root / "results" / "trial.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))  # half of the rows of seed 3
    assert Counter(plan(sweep).states.values()) == {"in the table": 2, "to run": 2}


def test_stale_rows_stay_are_named_and_give_way_to_new_ones(done: Toy) -> None:
    sweep, _ = of(done)
    tables.collect(sweep)
    source = done.root / "notebooks" / "experiments" / "trial.ipynb"
    source.write_text(source.read_text().replace("seed / 3", "seed / 4"))
    stale = of(done)[0]
    state = tables.state_of(stale)
    assert state.stale == {"code changed": 6} and not state.is_current
    assert "6 of 6 rows stale: code changed; 1 run missing" in done.fedmorl("status").stdout
    job = Job(stale.runs[1].id, done.root, stale.source, Store(stale.store), stale.runs[1].given)
    assert attempt(job)["state"] == "ok"
    assert tables.collect(stale).state.stale == {"code changed": 4}
    assert [line["value"] for line in table(done) if line["seed"] == "1"] == ["0.25", "1.25"]


def test_again_runs_what_is_finished_and_what_is_in_the_table_too(done: Toy) -> None:
    tables.collect(of(done)[0])
    _, summary = swept(done, "trial", Options(workers=2, again=True))
    assert summary.finished_before == 0 and [run.seed for run in summary.failed] == [2]
    assert states(done) == {0: ["ok"] * 2, 1: ["ok"] * 2, 2: ["failed"] * 2, 3: ["ok"] * 2}


def test_two_sweep_files_on_one_experiment_share_their_runs_and_have_a_table_each(done: Toy) -> None:
    done.sweep("other", "experiment: trial\nseeds: [3, 5]")
    sweep, summary = swept(done, "other")
    assert summary.finished_before == 1 and [outcome["why"] for outcome in summary.outcomes.values()] == [""]
    assert states(done)[3] == ["ok"] and states(done)[5] == ["ok"]
    assert tables.collect(sweep).fresh == 2 and {line["seed"] for line in table(done, "other")} == {"3", "5"}
    assert tables.collect(of(done)[0]).fresh == 3 and {line["seed"] for line in table(done)} == {"0", "1", "3"}


def test_rows_that_the_sweep_no_longer_asks_for_stay_until_they_are_pruned(done: Toy) -> None:
    tables.collect(of(done)[0])
    done.sweep("trial", "seeds: [1]")
    sweep = of(done)[0]
    assert tables.collect(sweep).state.left_over == 4 and len(table(done)) == 6
    assert tables.collect(sweep, prune=True).state.is_current and len(table(done)) == 2


@pytest.mark.parametrize("spoil", ["a,b\n1,2\n", 'run,code,data,pins,given,row\n"x', "\xff\xfe\n"])
def test_a_table_that_is_not_ours_is_never_overwritten(done: Toy, spoil: str) -> None:
    path = done.root / "results" / "trial.csv"
    path.write_bytes(spoil.encode("latin-1"))
    with pytest.raises(RunError, match=r"results/trial.csv (is not a table|has no column|has a row)"):
        tables.collect(of(done)[0])
    assert path.read_bytes() == spoil.encode("latin-1")


# --- rows as a notebook emits them -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given,message",
    [
        ([], "at least one row"),
        ([{"a": 1}, {"b": 1}], "row 1 has the columns"),
        ({"run": 1}, "the column run is added by the collection"),
        ({"a": float("inf")}, "a of row 0 must be a finite number"),
        ({"a": [1]}, "a of row 0 must be a finite number"),
    ],
)
def test_rows_that_no_table_can_hold_are_refused(given: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rows.emit(given)  # type: ignore[arg-type]


def test_emitting_twice_is_refused_and_leaves_no_output(toy: Toy) -> None:
    toy.experiment("trial", EMIT, EMIT)
    toy.sweep("trial", "seeds: 1")
    sweep, store = of(toy)
    outcome = attempt(Job(sweep.runs[0].id, toy.root, sweep.source, store, sweep.runs[0].given))
    assert outcome["state"] == "failed" and "2 cells emit rows" in outcome["why"]
    assert not list(store.folder.glob("*.ipynb"))


def test_a_run_past_its_limit_is_ended_with_what_it_had(toy: Toy) -> None:
    toy.experiment("trial", "print('so far')", "import time; time.sleep(60)", EMIT)
    toy.sweep("trial", "seeds: 1")
    sweep, store = of(toy)
    one = sweep.runs[0]
    started = time.monotonic()
    outcome = attempt(Job(one.id, toy.root, sweep.source, store, one.given, limit_s=5))
    assert time.monotonic() - started < 20
    assert outcome["state"] == "failed" and "it ran past its limit of 5 s" in outcome["why"]
    assert "so far" in store.failed(one.id).read_text() and not store.tries(one.id)


def test_code_that_changes_while_a_run_is_under_way_gives_no_row(toy: Toy) -> None:
    edit = (
        "import pathlib\np = pathlib.Path('trial.ipynb')\np.write_text(p.read_text().replace('seed / 3', 'seed / 4'))"
    )
    toy.experiment("trial", edit, EMIT)
    toy.sweep("trial", "seeds: 1")
    sweep, store = of(toy)
    outcome = attempt(Job(sweep.runs[0].id, toy.root, sweep.source, store, sweep.runs[0].given))
    assert (outcome["state"], outcome["why"]) == ("changed", "its code or data changed while it ran")
    assert not list(store.folder.glob("*.ipynb"))


def test_a_kernel_that_dies_before_its_first_cell_may_be_tried_again(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    engine_toy(toy, 1)
    sweep, store = of(toy)
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    outcome = attempt(Job(sweep.runs[0].id, toy.root, sweep.source, store, sweep.runs[0].given))
    assert outcome["state"] == "died" and "trial.ipynb failed before its first cell: Kernel died" in outcome["why"]
    assert store.failed(sweep.runs[0].id).exists()


@pytest.mark.skipif(sys.platform != "linux", reason="sockets without a file are Linux's")
def test_no_two_kernels_ever_want_the_same_port(toy: Toy) -> None:
    tell = "import json\nfrom ipykernel.connect import get_connection_info\nat = json.loads(get_connection_info())"
    toy.experiment("trial", tell, "from fedmorl.rows import emit\nemit({'by': at['transport'], 'at': at['ip']})")
    toy.sweep("trial", "seeds: 1")
    sweep, store = of(toy)
    one = sweep.runs[0]
    assert attempt(Job(one.id, toy.root, sweep.source, store, one.given))["state"] == "ok"
    (row,) = rows.rows_of(store.record(one.id))  # type: ignore[arg-type]
    assert row["by"] == "ipc" and re.fullmatch("@fedmorl-[0-9a-f]{32}", row["at"])


# --- the engine alone: tasks that die, fail, do nothing ------------------------------------------------------------


def moody(job: Job) -> Outcome:
    """Seed 1 always takes its worker along, seed 2 the first time; seed 3 fails once, seed 4 always."""
    seed, died = job.given["seed"], job.store.tries(job.run)
    outcome = {"run": job.run, "died": died, "started": time.time(), "worker": worker_name(), "seconds": 0.0, "why": ""}
    job.store.note_try(job.run, {"started": outcome["started"], "worker": outcome["worker"]})
    if seed == 1 or (seed == 2 and not died):
        os.kill(os.getpid(), signal.SIGKILL)
    job.store.forget_tries(job.run)
    marker = job.store.folder / f"{seed}.seen"
    failed = seed == 4 or (seed == 3 and not marker.exists())
    marker.touch()
    return outcome | {"state": "failed" if failed else "ok", "why": "moody" if failed else ""}


def engine_toy(toy: Toy, seeds: int) -> None:
    toy.experiment("trial", EMIT)
    toy.sweep("trial", f"seeds: {seeds}")


def test_what_always_dies_is_reported_after_its_retries_and_all_others_complete(toy: Toy) -> None:
    engine_toy(toy, 12)
    _, summary = swept(toy, "trial", Options(workers=2, retries=1), task=moody)
    assert [one.seed for one in summary.failed] == [1, 4]
    assert "its process died 2 times" in summary.text()
    by_seed = states(toy)
    assert by_seed[1] == ["died", "died"] and by_seed[2] == ["died", "ok"]
    assert by_seed[3] in (["failed", "ok"], ["ok"])  # a neighbour may take the answer "failed" with it
    assert by_seed[4] == ["failed", "failed"]
    assert all(by_seed[seed] == ["ok"] for seed in (0, 5, 6, 7, 8, 9, 10, 11))


def test_a_worker_that_dies_while_it_starts_comes_back(toy: Toy) -> None:
    from distributed.core import Status

    with dask.config.set({"distributed.deploy.lost-worker-timeout": "1s"}), engine.connect(toy.root, 1) as client:
        (nanny,) = client.cluster.workers.values()
        nanny.status = Status.starting  # it has not heard yet that its worker is up
        os.kill(nanny.pid, signal.SIGKILL)
        until(lambda: not client.cluster.workers)
        engine.restore(client)
        client.wait_for_workers(1, timeout=60)
        assert len(client.scheduler_info(n_workers=-1)["workers"]) == 1


def test_fail_fast_stops_at_the_first_failure(toy: Toy) -> None:
    toy.experiment("trial", EMIT)
    toy.sweep("trial", "seeds: " + str([4, *range(100, 160)]))
    _, summary = swept(toy, "trial", Options(workers=1, fail_fast=True), task=slow_or_failing)
    assert [one.seed for one in summary.failed] == [4] and len(summary.outcomes) < 61
    assert "not tried" in summary.text()


def slow_or_failing(job: Job) -> Outcome:
    time.sleep(0.1)
    return moody(job)


def test_a_finished_sweep_of_a_thousand_runs_returns_at_once(toy: Toy) -> None:
    engine_toy(toy, 1000)
    sweep, store = of(toy)
    store.folder.mkdir(parents=True)
    for one in sweep.runs:
        table = {"columns": ["seed"], "values": [[one.seed]]}
        record = {"key": one.key, "rows": table, "cost": {}, "provenance": {}}
        made = {"metadata": {"fedmorl": record | {"digest": rows.digest(record)}}, "cells": [{"source": "x" * 5000}]}
        store.output(one.id).write_text(json.dumps(made))
    started = time.monotonic()
    said = toy.fedmorl("sweep", "trial")
    assert said.returncode == 0 and said.stdout.startswith("1000 runs: 0 done, 1000 finished before")
    assert time.monotonic() - started < 4  # asked: 2 s on an idle machine; benchmarks/batch.py measures it


# --- processes that are killed -----------------------------------------------------------------------------------


def started(toy: Toy, *arguments: str, env: dict[str, str] | None = None) -> subprocess.Popen:
    """A sweep as a terminal starts it: a process group of its own."""
    command = [sys.executable, "-m", "fedmorl.cli", "sweep", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, cwd=toy.root, env=env, process_group=0, **pipes)  # type: ignore[call-overload]
    STARTED.append(process)
    return process


STARTED: list[subprocess.Popen] = []


@pytest.fixture(autouse=True)
def nothing_outlives_a_test() -> Iterator[None]:
    """A test that fails leaves no sweep behind."""
    yield
    while STARTED:
        process = STARTED.pop()
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def test_a_sweep_that_is_killed_goes_on_where_it_was(toy: Toy) -> None:
    toy.experiment("trial", EMIT)
    toy.sweep("trial", f"seeds: {3 * KILLS}")
    moment = random.Random(KILLS)
    for _ in range(KILLS):
        process = started(toy, "trial", "--workers", "2")
        time.sleep(moment.uniform(1, 5))  # the first run starts after two or three
        process.kill()
        process.communicate()
    last = started(toy, "trial", "--workers", "2")
    assert last.wait(timeout=300) == 0, last.stdout.read()  # type: ignore[union-attr]
    assert toy.fedmorl("collect", "trial").returncode == 0
    assert [(line["seed"], line["k"]) for line in table(toy)] == [
        (str(seed), k) for seed in range(3 * KILLS) for k in "01"
    ]
    sweep, store = of(toy)
    interrupted = [entry for entry in attempts(toy) if entry["state"] == "interrupted"]
    assert len(interrupted) <= 2 * KILLS  # at most the notebooks that were running
    assert not list(store.folder.glob("*.tmp.ipynb")) and not store.under_way()
    assert tables.state_of(sweep).is_current


def test_two_sweeps_at_once_do_no_run_twice(toy: Toy) -> None:
    toy.experiment("trial", EMIT)
    toy.sweep("trial", "seeds: 3")
    both = [started(toy, "trial", "--workers", "2") for _ in range(2)]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sum("waiting for it" in text for text in said) == 1
    assert states(toy) == {0: ["ok"], 1: ["ok"], 2: ["ok"]}


Clusters = Callable[..., tuple[str, list[subprocess.Popen]]]


@pytest.fixture
def by_hand(tmp_path: Path) -> Iterator[Clusters]:
    """Start a scheduler and workers on the loopback address, as a person does; all are gone after the test."""
    processes: list[subprocess.Popen] = []

    def begin(workers: int, path: Path | None = None) -> tuple[str, list[subprocess.Popen]]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        address, dask = f"tcp://127.0.0.1:{port}", [sys.executable, "-m", "dask"]
        scheduler = [*dask, "scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard"]
        worker = [*dask, "worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": tmp_path}
        environment = os.environ | ({"PYTHONPATH": str(path)} if path else {})
        for command in (scheduler, *[worker] * workers):
            processes.append(subprocess.Popen(command, env=environment, **quiet))  # type: ignore[call-overload]
        wait_for_workers(address, workers)
        return address, processes

    yield begin
    for process in reversed(processes):
        process.kill()
        process.wait()


def wait_for_workers(address: str, count: int) -> None:
    from distributed import Client

    with Client(address, timeout=30, set_as_default=False) as client:
        client.wait_for_workers(count, timeout=60)


def until(is_so: Callable[[], object], limit_s: float = 60) -> None:
    deadline = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < deadline, f"it did not come within {limit_s} s"
        time.sleep(0.05)


def test_a_worker_that_is_killed_loses_no_run_and_everywhere_the_rows_are_the_same(toy: Toy, by_hand: Clusters) -> None:
    toy.experiment("trial", EMIT)
    toy.sweep("trial", "seeds: 3")
    address, processes = by_hand(2)
    process = started(toy, "trial", "--scheduler", address)
    sweep, store = of(toy)
    until(lambda: len(store.under_way()) == 2)
    processes[1].kill()
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 0, said
    flat = [state for found in states(toy).values() for state in found]
    assert Counter(flat) == {"ok": 3, "died": 1}
    tables.collect(sweep)
    killed = timeless(table(toy))
    for options in (Options(workers=1), Options(workers=2)):
        shutil.rmtree(store.folder)
        (toy.root / "results" / "trial.csv").unlink()
        swept(toy, "trial", options)
        tables.collect(sweep)
        assert timeless(table(toy)) == killed


def test_a_scheduler_that_is_killed_is_one_sentence_and_the_next_sweep_goes_on(toy: Toy, by_hand: Clusters) -> None:
    toy.experiment("trial", EMIT)
    toy.sweep("trial", "seeds: 4")
    address, (scheduler, *_) = by_hand(1)
    process = started(toy, "trial", "--scheduler", address)
    _, store = of(toy)
    until(lambda: list(store.folder.glob("[0-9a-f]*.ipynb")) and store.under_way())
    scheduler.kill()
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 1 and "Traceback" not in said
    last = "the scheduler went away; finished runs are kept, so start the sweep again to go on"
    assert said.splitlines()[-1] == f"fedmorl sweep: {last}"
    before = {seed for seed, found in states(toy).items() if "ok" in found}
    _, summary = swept(toy, "trial")
    assert not summary.failed and summary.finished_before >= len(before)
    assert all(found.count("ok") <= 1 for found in states(toy).values())


def test_a_worker_with_another_version_of_the_package_is_refused(toy: Toy, by_hand: Clusters, tmp_path: Path) -> None:
    engine_toy(toy, 1)
    package = Path(identity.__file__).parent
    shutil.copytree(package, tmp_path / "other" / "fedmorl", ignore=shutil.ignore_patterns("__pycache__"))
    with open(tmp_path / "other" / "fedmorl" / "execute.py", "a") as file:
        file.write("\nNEW = 1\n")
    address, _ = by_hand(1, path=tmp_path / "other")
    said = toy.fedmorl("sweep", "trial", "--scheduler", address)
    assert said.returncode == 1 and "has another version of fedmorl; all workers must see the folder" in said.stderr
    assert "Traceback" not in said.stderr and not attempts(toy)


@pytest.mark.parametrize("moment,number", [("opening", "INT"), ("running", "INT"), ("running", "TERM")])
def test_an_interrupted_sweep_ends_with_130_and_leaves_no_process(toy: Toy, moment: str, number: str) -> None:
    """A terminal sends Ctrl-C to every process of a command, `kill` and a batch system SIGTERM to one."""
    toy.experiment("trial", "import time; time.sleep(60)", EMIT)
    toy.sweep("trial", "seeds: 2")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would inherit "ignore it"
    mark = f"FEDMORL_MARK={toy.root}"
    process = started(toy, "trial", "--workers", "2", env={**os.environ, "FEDMORL_MARK": str(toy.root)})
    assert process.stdout and process.stdout.readline() == "2 runs: 2 to run, 0 finished before\n"
    _, store = of(toy)
    if moment == "running":
        until(lambda: len(store.under_way()) == 2 and len(marked(mark)) >= 5)  # the sweep, workers, kernels
    else:
        until(lambda: len(marked(mark)) >= 3)
        time.sleep(0.4)  # the workers import Dask now, where Ctrl-C would show as a traceback of theirs
    end = os.killpg if number == "INT" else os.kill
    end(process.pid, signal.Signals[f"SIG{number}"])
    said = process.communicate(timeout=30)[0]
    assert process.returncode == 130 and said == "fedmorl sweep: interrupted; run it again to go on\n"
    until(lambda: not marked(mark), limit_s=5)
    assert not list(store.folder.glob(".*.tmp.ipynb"))


def marked(mark: str) -> list[int]:
    """Processes, other than zombies, with this in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark.encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def test_a_terminal_sees_counts_rate_and_time_left_and_a_file_does_not(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    toy.experiment("trial", EMIT)
    toy.sweep("trial", "seeds: " + str([4, *range(100, 112)]))
    swept(toy, "trial", Options(workers=2), task=slow_or_failing)
    assert capsys.readouterr().err == ""
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.extend(iter(lambda: _read(ours), b"")))
    reader.start()
    with open(theirs, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        swept(toy, "trial", Options(workers=2), task=slow_or_failing)
    reader.join()
    os.close(ours)
    shown = b"".join(read).decode()
    assert re.search(r"\d+%\|.*\| [1-9]\d*/13 \[\d\d:\d\d<\d\d:\d\d, .*(run/s|s/run), failed=1\]", shown), shown
    assert "13/13" in shown


def _read(terminal: int) -> bytes:
    """What is there to be read; nothing once the other side has closed."""
    try:
        return os.read(terminal, 4096)
    except OSError:
        return b""


# --- what is refused, and what a disk says ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options,message",
    [
        (["--scheduler", "tcp://127.0.0.1:9"], "the scheduler tcp://127.0.0.1:9 does not answer; start one with `dask"),
        (["--scheduler", "here"], "--scheduler must be like tcp://127.0.0.1:8786, got here"),
        (["--profile", "fast"], "has no profile 'fast'; it has no profiles"),
        (["--workers", "0"], "must be a whole number from 1 on, got 0"),
        (["--timeout", "nan"], "must be a positive number of seconds, got nan"),
        (["--slurm", "--scheduler", "tcp://127.0.0.1:9"], "--slurm starts its own scheduler"),
    ],
)
def test_an_impossible_wish_is_one_sentence(toy: Toy, options: list[str], message: str) -> None:
    engine_toy(toy, 1)
    said = toy.fedmorl("sweep", "trial", *options)
    assert said.returncode != 0 and message in said.stderr and "Traceback" not in said.stderr
    assert not list(toy.root.rglob("*.failed.ipynb"))


def test_a_folder_that_cannot_be_written_is_one_sentence(toy: Toy) -> None:
    engine_toy(toy, 1)
    (toy.root / "_build").write_text("a file where the folder should be")
    said = toy.fedmorl("sweep", "trial")
    assert said.returncode == 1 and "cannot write" in said.stderr and "Traceback" not in said.stderr


def test_a_full_disk_fails_the_run_and_never_gives_a_wrong_row(toy: Toy) -> None:
    """A limit on the size of files stands for the full disk: the write of the notebook fails in the middle."""
    toy.experiment("trial", "print('x' * 3_000_000)", EMIT)
    toy.sweep("trial", "seeds: 1")
    command = [sys.executable, "-m", "fedmorl.cli", "sweep", "trial", "--workers", "1"]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))

    full = subprocess.run(command, cwd=toy.root, capture_output=True, text=True, timeout=120, preexec_fn=limit)
    assert full.returncode == 1 and "cannot write" in full.stdout and "Traceback" not in full.stderr + full.stdout
    sweep, store = of(toy)
    assert not store.output(sweep.runs[0].id).exists()
    assert toy.fedmorl("sweep", "trial", "--workers", "1").returncode == 0


def test_a_damaged_ledger_is_put_aside_and_the_runs_are_kept(done: Toy) -> None:
    path = done.root / "_build" / "runs" / "ledger.sqlite"
    path.write_bytes(b"not a database, " * 500)
    assert Counter(plan(of(done)[0]).states.values())["cached"] == 3
    assert done.fedmorl("sweep", "trial", "--status").returncode == 0
    assert list(path.parent.glob("ledger.damaged-*.sqlite"))


# --- what an edit makes stale -------------------------------------------------------------------------------------


def test_a_docstring_makes_nothing_stale_and_a_line_of_the_kernels_exactly_what_reaches_it(tmp_path: Path) -> None:
    """In a copy of the package: an experiment on the channel, and one that never touches it."""
    source = Path(identity.__file__).parent
    shutil.copytree(source, tmp_path / "fedmorl", ignore=shutil.ignore_patterns("__pycache__"))
    toy = Toy.new(tmp_path / "project")
    toy.experiment("channel", "from fedmorl.dca import simulate", EMIT)
    toy.experiment("other", EMIT)
    for name in ("channel", "other"):
        toy.sweep(name, "seeds: 2")
    code = """
import json, sys
from pathlib import Path
from fedmorl.batch import tables
root = Path(sys.argv[1])
print(json.dumps({sweep.name: [run.id for run in sweep.runs] for sweep in tables.sweeps(root)}))
"""

    def names() -> dict:
        command = [sys.executable, "-c", code, str(toy.root)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    before = names()
    kernels = tmp_path / "fedmorl" / "dca" / "kernels.py"
    text = kernels.read_text()
    kernels.write_text(text.replace('"""', '"""Other words. ', 1) + "\n# a comment\n")
    assert names() == before
    kernels.write_text(text + "\nNEW_CONSTANT = 1\n")
    after = names()
    assert after["other"] == before["other"] and not set(after["channel"]) & set(before["channel"])
