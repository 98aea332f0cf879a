"""Measure what a sweep costs beside the runs themselves, by wall time; `run.py --only batch` writes the rows.

Each measurement is a process of its own, in a project of its own below the system's temporary folder. The peer is
what one would write without `fedmorl sweep`: two Python processes, each with half of the runs, that call papermill
in a loop and keep neither a name for a run, nor a check, nor a ledger. Both sides import only once, use one thread a
kernel and have the same two cores; they take turns, and the best of the repeats counts.
"""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENT = "baselines_saturated"
GIVEN = {"n_slots": 1_000_000, "warmup_slots": 100_000, "stations": [2, 6]}  # a run of two seconds, mostly start-up
RUNS = 20
AT_MOST = 3  # repeats of what takes half a minute; the best counts
SWEEP = [sys.executable, "-m", "fedmorl.cli", "sweep", EXPERIMENT]

UP = """
import sys, time
from pathlib import Path
start = time.perf_counter()
from fedmorl.batch import engine
with engine.connect(Path(sys.argv[1]), workers=2) as client:
    client.wait_for_workers(2)
    print(time.perf_counter() - start)
"""
NOTHING = """
import sys, time
from pathlib import Path
start = time.perf_counter()
from batch import nothing
from fedmorl.batch import sweep
from fedmorl.batch.grid import read_sweep
asked = read_sweep(Path(sys.argv[1]), Path(sys.argv[2]))
summary = sweep.run(asked, sweep.Options(workers=2), say=lambda text: None, task=nothing)
assert len(summary.outcomes) == 1000 and not summary.failed
print(time.perf_counter() - start)
"""
BARE = """
import json, sys, time
import papermill
notebook, out, given = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
started = time.time()
for seed in sys.argv[4:]:
    parameters = {**given, "seed": int(seed)}
    options = {"kernel_name": "python3", "progress_bar": False}
    try:
        papermill.execute_notebook(notebook, f"{out}/{seed}.ipynb", parameters, **options)
    except RuntimeError:  # one kernel in a hundred finds its port taken by the other loop's
        papermill.execute_notebook(notebook, f"{out}/{seed}.ipynb", parameters, **options)
print(started, time.time())
"""


def measure(repeats: int) -> Iterator[dict[str, Any]]:
    """Cases with `ours`, and `peer_value` where there is a peer, in wall seconds or runs a wall second."""
    few = min(repeats, AT_MOST)
    common = {"quantity": "wall seconds", "repeats": few}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        up = min(_printed(UP, _project(root / f"up{k}", 1)) for k in range(few))
        yield {"case": "import Dask and start 2 workers", "ours": up, "asked": "<= 5", **common}
        idle = min(_printed(NOTHING, _project(root / f"idle{k}", 1000), _file()) for k in range(few))
        yield {"case": "1000 runs that do nothing, with the start", "ours": idle, "asked": "<= 10", **common}
        finished = _project(root / "finished", 1000)
        _finish(finished)
        again = min(_seconds(SWEEP, finished) for _ in range(repeats))
        case = "fedmorl sweep, all of 1000 runs finished before"
        yield {"case": case, "ours": again, "asked": "<= 2", "quantity": "wall seconds", "repeats": repeats}
        yield from _beside_papermill(root, few)


def _beside_papermill(root: Path, repeats: int) -> Iterator[dict[str, Any]]:
    """The same runs by a sweep on two workers and by two bare processes, by turns."""
    ours, bare = [], []
    for k in range(repeats):
        ours.append(_swept(_project(root / f"ours{k}", RUNS)))
        bare.append(_bare(_project(root / f"bare{k}", RUNS)))
    peer = {"peer": "two papermill loops", "quantity": "runs per wall second", "repeats": repeats}
    of = f"{RUNS} runs of a small notebook on 2 workers"
    for place, case in enumerate((f"{of}, whole command", f"{of}, first run's start to last run's end")):
        a, b = (RUNS / min(pair[place] for pair in side) for side in (ours, bare))
        yield {"case": case, "ours": a, "peer_value": b, "asked": ">= 0.9", **peer}


def nothing(job: Any) -> dict[str, Any]:
    """A run that is done at once."""
    said = {"run": job.run, "state": "ok", "why": "", "died": [], "worker": "nobody"}
    return said | {"started": time.time(), "seconds": 0.0}


# --- projects -------------------------------------------------------------------------------------------------


def _file() -> str:
    return f"notebooks/sweeps/{EXPERIMENT}.yml"


def _project(root: Path, seeds: int) -> Path:
    """A project under version control with the experiment and a sweep of so many runs."""
    source = Path("notebooks/experiments") / f"{EXPERIMENT}.ipynb"
    for path in (source, Path(_file())):
        (root / path).parent.mkdir(parents=True)
    (root / "_toc.yml").write_text("format: jb-book\nroot: book/intro\n")
    (root / ".gitignore").write_text("_build/\n")
    for path in (source, Path("constraints.txt")):
        shutil.copyfile(ROOT / path, root / path)
    (root / _file()).write_text(json.dumps({"parameters": GIVEN, "seeds": seeds}))  # JSON is YAML
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "a project"]):
        who = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
        subprocess.run(["git", *who, *words], cwd=root, check=True, capture_output=True)
    return root


def _finish(root: Path) -> None:
    """Put the output of every run there, as `fedmorl sweep` would: one run's output, under each run's name."""
    from fedmorl import rows
    from fedmorl.batch.grid import read_sweep
    from fedmorl.batch.store import Store
    from fedmorl.batch.worker import Job, attempt

    sweep = read_sweep(root, root / _file())
    store, first = Store(sweep.store), sweep.runs[0]
    assert attempt(Job(first.id, root, sweep.source, store, first.given))["state"] == "ok"
    made = json.loads(store.output(first.id).read_text())
    for run in sweep.runs[1:]:
        record = {**made["metadata"]["fedmorl"], "key": run.key}
        made["metadata"]["fedmorl"] = record | {"digest": rows.digest(record)}
        store.output(run.id).write_text(json.dumps(made, indent=1))


# --- processes ------------------------------------------------------------------------------------------------


def _printed(program: str, root: Path, *arguments: str) -> float:
    """The number that a fresh interpreter prints, which finds `nothing` here."""
    command = [sys.executable, "-c", program, str(root), *(str(root / name) for name in arguments)]
    path = os.pathsep.join(filter(None, [str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=True, capture_output=True, text=True)
    return float(done.stdout)


def _seconds(command: list[str], root: Path) -> float:
    start = time.perf_counter()
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    return time.perf_counter() - start


def _swept(root: Path) -> tuple[float, float]:
    """Seconds of the whole command, and from the first run's start to the last one's end as the ledger has them."""
    whole = _seconds([*SWEEP, "--workers", "2"], root)
    with sqlite3.connect(root / "_build" / "runs" / "ledger.sqlite") as ledger:
        question = "SELECT COUNT(*), MIN(started), MAX(started + seconds) FROM attempts WHERE state = 'ok'"
        count, first, last = ledger.execute(question).fetchone()
    assert count == RUNS
    return whole, last - first


def _bare(root: Path) -> tuple[float, float]:
    """The same of two processes that share the runs out."""
    from fedmorl.execute import ONE_THREAD

    notebook, out = root / "notebooks" / "experiments" / f"{EXPERIMENT}.ipynb", root / "_build"
    out.mkdir()
    start = time.perf_counter()
    processes = []
    for half in (range(0, RUNS, 2), range(1, RUNS, 2)):
        command = [sys.executable, "-c", BARE, str(notebook), str(out), json.dumps(GIVEN), *map(str, half)]
        environment = {**os.environ, **ONE_THREAD}
        caught = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, cwd=notebook.parent, env=environment, **caught))
    said = [process.communicate() for process in processes]
    whole = time.perf_counter() - start
    assert not any(process.returncode for process in processes), "".join(errors for _, errors in said)
    spans = [tuple(map(float, printed.split())) for printed, _ in said]
    return whole, max(last for _, last in spans) - min(first for first, _ in spans)
