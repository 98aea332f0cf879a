"""The commands `fedmorl sweep` and `fedmorl collect`: a notebook run many times, and its rows in one table."""

import argparse
import math
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from fedmorl.notebook import RunError
from fedmorl.provenance import project_root, wall_text

if TYPE_CHECKING:
    from fedmorl.batch.grid import Sweep

SWEEP = "run an experiment notebook over a grid of parameters; finished runs are skipped"
SWEEP_EXAMPLES = """\
A sweep file lies in notebooks/sweeps and names an experiment notebook and its parameters:

  parameters: {n_slots: 10_000_000}        the same for every run
  grid: {access: [ac_vo, ac_be]}           every combination; also `zip` (side by side) and `runs` (written out)
  seeds: 10                                0 to 9, or a list
  profiles: {quick: {seeds: 2}, paper: {}} what differs

Kill it, start it again: it goes on. Start it twice: the second waits and finds the runs done.

  fedmorl sweep notebooks/sweeps/baselines_saturated.yml --dry-run
  fedmorl sweep baselines_saturated --profile paper --workers 2
  fedmorl sweep baselines_saturated --scheduler tcp://127.0.0.1:8786
  fedmorl sweep baselines_saturated --status
"""
COLLECT = "merge the rows of finished runs into results/NAME.csv"
COLLECT_EXAMPLES = """\
Rows of the profile `paper` go to results/NAME.csv, of any other to results/PROFILE/NAME.csv.
Without a sweep file: every sweep and profile with finished runs.

  fedmorl collect baselines_saturated --profile paper
"""


def add_sweep_options(parser: argparse.ArgumentParser) -> None:
    """The options of `fedmorl sweep`."""
    _add_common(parser)
    where = parser.add_argument_group("where it runs").add_mutually_exclusive_group()
    where.add_argument(
        "--workers", type=_count, metavar="K", help="processes, or Slurm jobs (default: the cores at hand)"
    )
    where.add_argument("--scheduler", metavar="tcp://HOST:PORT", help="a running Dask scheduler with its workers")
    parser.add_argument("--slurm", action="store_true", help="Slurm jobs, set up by dask-jobqueue's configuration file")
    how = parser.add_argument_group("what happens when a run fails")
    how.add_argument(
        "--retries",
        type=_count_or_none,
        metavar="K",
        help="try a failed run K times more (default: 0; 2 where its process was killed)",
    )
    how.add_argument("--timeout", type=_seconds, metavar="SECONDS", help="the limit of one run (default: none)")
    stop = how.add_mutually_exclusive_group()
    stop.add_argument("--keep-going", action="store_true", help="go on with the other runs (the default)")
    stop.add_argument("--fail-fast", action="store_true", help="stop at the first run that fails")
    what = parser.add_argument_group("what is done")
    what.add_argument("--dry-run", action="store_true", help="show what would run and what is finished; run nothing")
    what.add_argument(
        "--status", action="store_true", help="show how far the sweep is (without FILE: all sweeps) and what failed"
    )
    what.add_argument("--again", action="store_true", help="run the finished runs again, too")
    what.add_argument("--yes", action="store_true", help="really run more than 10,000 runs")


def add_collect_options(parser: argparse.ArgumentParser) -> None:
    """The options of `fedmorl collect`."""
    _add_common(parser)
    parser.add_argument("--prune", action="store_true", help="drop rows of runs that the sweep no longer asks for")


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sweep", metavar="FILE.yml", nargs="?", help="a sweep file, or its name in notebooks/sweeps")
    parser.add_argument("--profile", help="one of the file's profiles (default: quick, where the file has it)")


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, got {text}")
    return int(text)


def _count_or_none(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 on, got {text}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise argparse.ArgumentTypeError(f"must be a positive number of seconds, got {text}")
    return seconds


def root_of(folder: Path) -> Path:
    """The project around a folder, or RunError."""
    root = project_root(folder)
    if root is None:
        raise RunError(f"there is no _toc.yml in {folder} or above it; go to the checkout of the book")
    return root


def sweep_command(options: argparse.Namespace) -> int:
    """`fedmorl sweep`; status 1 if a run failed."""
    from fedmorl.batch import sweep as batch
    from fedmorl.batch.grid import read_sweep

    root = root_of(Path.cwd())
    if options.slurm and options.scheduler:
        raise RunError("--slurm starts its own scheduler; leave --scheduler out")
    if options.sweep is None:
        return _status_of_all(root, options)
    sweep = read_sweep(root, batch.find(root, options.sweep), options.profile, yes=options.yes)
    if options.dry_run or options.status:
        print(_status(sweep) if options.status else batch.plan(sweep, options.again).text())
        return 0
    chosen = batch.Options(
        workers=options.workers, scheduler=options.scheduler, slurm=options.slurm, retries=options.retries,
        timeout_s=options.timeout, fail_fast=options.fail_fast, again=options.again,
    )  # fmt: skip
    summary = batch.run(sweep, chosen, say=lambda text: print(text, file=sys.stderr, flush=True))
    print(summary.text())
    return 1 if summary.failed else 0


def _status_of_all(root: Path, options: argparse.Namespace) -> int:
    """The status of every sweep of the project, which is all that can be asked without naming one."""
    from fedmorl.batch.grid import FOLDER
    from fedmorl.batch.tables import sweeps

    if not options.status:
        there = ", ".join(path.stem for path in sorted((root / FOLDER).glob("*.yml"))) or "none"
        raise RunError(f"name a sweep of {FOLDER}; there is {there}")
    for sweep in sweeps(root):
        if options.profile in (None, sweep.profile):
            print(f"{sweep.path.relative_to(root)}{f' ({sweep.profile})' if sweep.profile else ''}")
            print("  " + _status(sweep).replace("\n", "\n  "))
    return 0


def _status(sweep: "Sweep") -> str:
    """How far a sweep is: its runs, those under way, its attempts, the failures that stand, its table."""
    from collections import Counter

    from fedmorl.batch import sweep as batch
    from fedmorl.batch.store import Ledger, Store
    from fedmorl.batch.tables import state_of

    plan, store = batch.plan(sweep), Store(sweep.store)
    by_id = {run.id: run for run in sweep.runs}
    ledger = Ledger(sweep.root)
    attempts = ledger.attempts(list(by_id))
    ledger.close()
    last = {attempt["run"]: attempt for attempt in attempts}
    lines = [plan.text(shown=0).splitlines()[0]]
    for name, tries in store.under_way().items():
        if name in by_id and tries:
            since = datetime.fromtimestamp(tries[-1]["started"]).strftime("%H:%M:%S")
            lines.append(f"under way since {since} on {tries[-1]['worker']}: {sweep.words(by_id[name])}")
    counts = Counter(attempt["state"] for attempt in attempts)
    seconds = sum(attempt["seconds"] or 0 for attempt in attempts)
    if attempts:
        lines.append(
            f"attempts: {', '.join(f'{n} {state}' for state, n in counts.items())}; {wall_text(seconds)} in all"
        )
    failed = [run for run in plan.missing if plan.states[run.id] == "failed before" and run.id in last]
    lines += batch.failures_text(sweep, [(run, last[run.id]["why"] or "") for run in failed])
    lines.append(f"{sweep.table.relative_to(sweep.root)}: {state_of(sweep).text()}")
    return "\n".join(lines)


def collect_command(options: argparse.Namespace) -> int:
    """`fedmorl collect`."""
    from fedmorl.batch import sweep as batch
    from fedmorl.batch import tables
    from fedmorl.batch.grid import read_sweep
    from fedmorl.batch.words import counted

    root = root_of(Path.cwd())
    if options.sweep is None:
        chosen = [one for one in tables.sweeps(root) if options.profile in (None, one.profile)]
        chosen = [one for one in chosen if any(batch.plan(one).states[run.id] == "cached" for run in one.runs)]
        if not chosen:
            raise RunError("no sweep has finished runs; start one with `fedmorl sweep FILE.yml`")
    else:
        chosen = [read_sweep(root, batch.find(root, options.sweep), options.profile, yes=True)]
    for sweep in chosen:
        done = tables.collect(sweep, options.prune)
        table, made = counted(done.rows, "row"), counted(done.fresh, "run")
        print(f"{done.path.relative_to(root)}: {table}, {made} new or changed; {done.state.text()}")
    return 0
