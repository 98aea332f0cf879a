"""One attempt at one run, wherever Dask puts it. What comes back is an outcome, never an exception."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from fedmorl import execute, identity
from fedmorl.batch.store import Store
from fedmorl.batch.words import counted
from fedmorl.closure import SourceError, module_hash, short_hash
from fedmorl.notebook import RunError, reached_by

Outcome = dict[str, Any]

# What a worker itself runs. The rest of the package is loaded by kernels, fresh for each run.
MACHINERY = (
    "batch.store", "batch.words", "batch.worker", "closure", "execute", "identity", "notebook", "provenance", "rows",
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """What a worker needs to know of a run."""

    run: str
    root: Path
    source: Path
    store: Store
    given: dict[str, Any]
    profile: str = ""
    deaths_allowed: int = 2
    limit_s: float | None = None


def attempt(job: Job) -> Outcome:
    """Execute the run, unless too many processes have died of it; idempotent, as Dask may call it again."""
    died = job.store.tries(job.run)
    started = time.time()
    outcome: Outcome = {"run": job.run, "died": died, "started": started, "worker": worker_name()}
    if len(died) > job.deaths_allowed:
        job.store.forget_tries(job.run)
        return outcome | {"state": "gave up", "why": death_text(len(died)), "seconds": 0.0}
    try:
        job.store.note_try(job.run, {"started": started, "worker": outcome["worker"]})
        state, why = _executed(job)
        job.store.forget_tries(job.run)
    except OSError as error:
        state, why = "failed", f"cannot write {error.filename or job.store.folder}: {error.strerror or error}"
    return outcome | {"state": state, "why": why, "seconds": round(time.time() - started, 3)}


def _executed(job: Job) -> tuple[str, str]:
    """(state, why) of running the notebook; its output stays only if it is what was asked for."""
    if job.store.record(job.run):
        return "ok", "found"  # a process that was given up for dead had finished it
    try:
        key = identify(job)
        if identity.run_id(key) != job.run:
            return "changed", "its code, data or pins differ here from where the sweep was started"
        output = job.store.output(job.run)
        execute.run_interruptible(
            job.source, output, job.given, limit_s=job.limit_s, unwanted=_nobody_waits(), root=job.root,
            profile=job.profile, extra={"key": key}, ignoring="results",
        )  # fmt: skip
        if identity.run_id(identify(job)) != job.run:
            output.unlink(missing_ok=True)
            return "changed", "its code or data changed while it ran"
        if job.store.record(job.run) is None:
            output.unlink(missing_ok=True)
            return "failed", "it emitted no rows; end the notebook with emit(...) from fedmorl.rows"
    except execute.KernelDied as error:
        return "died", str(error)
    except (RunError, SourceError) as error:
        return "failed", str(error)
    return "ok", ""


def identify(job: Job) -> identity.Key:
    """The key of the run as this process sees code, data and pins."""
    return identity.key(reached_by(job.source), job.given, job.source.parent, job.root)


def seen_from_here(job: Job) -> tuple[str, str]:
    """The run's id and the machinery as this process sees them; compared on every worker before the first run."""
    return identity.run_id(identify(job)), machinery()


@lru_cache
def machinery() -> str:
    """Hash of the code that this process executes runs with, as it was when first asked: later edits are not loaded."""
    return short_hash("".join(module_hash(f"fedmorl.{name}") for name in MACHINERY))


def _nobody_waits() -> Callable[[], bool]:
    """A question: has the sweep that asked for this task gone, by Ctrl-C or worse? Then Dask has taken it back."""
    try:
        from distributed import get_worker

        worker = get_worker()
        key = worker.get_current_task()
    except (ImportError, ValueError):
        return lambda: False

    def asked() -> bool:
        task = worker.state.tasks.get(key)
        return task is None or task.state == "cancelled"

    return asked


def worker_name() -> str:
    """A name for the worker within its cluster, without host or path."""
    try:
        from distributed import get_worker

        name = get_worker().name
        return f"worker {name}" if isinstance(name, int) else f"worker process {os.getpid()}"
    except (ImportError, ValueError):
        return f"process {os.getpid()}"


def death_text(count: int) -> str:
    """What to say of a run that took its processes with it."""
    return f"its process died {counted(count, 'time')}, as it does when memory runs out or something kills it"
