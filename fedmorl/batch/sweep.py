"""Run what a sweep misses, on whatever cluster, and tell what happened.

Never lose: an output appears whole or not at all, and a run that is finished stays so whatever happens to this
process, its workers or the machine. Never repeat: finished runs are skipped, those in the committed table too.
"""

import contextlib
import difflib
import json
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fedmorl.batch import engine
from fedmorl.batch.grid import Run, Sweep
from fedmorl.batch.store import Ledger, Store, Try
from fedmorl.batch.tables import runs_in
from fedmorl.batch.words import counted
from fedmorl.batch.worker import Job, Outcome, attempt, death_text, machinery, seen_from_here
from fedmorl.execute import remove_leftovers
from fedmorl.notebook import RunError, command

if TYPE_CHECKING:
    from distributed import Client, Future

Say = Callable[[str], None]

DEATHS_RETRIED = 2  # a run that took its process with it is tried again so often, unless told otherwise
STRANDED = 20  # a run that never started since its workers died before: so often, and we give up
IN_FLIGHT = 1_000  # runs handed to the scheduler at a time
LOOK_S = 5  # how often to look whether a worker is left


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to run a sweep; None leaves the choice to the defaults."""

    workers: int | None = None  # embedded processes, or Slurm jobs; default: one a core, or two jobs
    scheduler: str | None = None  # tcp://HOST:PORT
    slurm: bool = False
    retries: int | None = None  # for every kind of failure; default: none, but two after a death
    timeout_s: float | None = None  # for one run
    fail_fast: bool = False
    again: bool = False  # run also what is finished

    @property
    def deaths_allowed(self) -> int:
        return DEATHS_RETRIED if self.retries is None else self.retries


@dataclass
class Summary:
    """What a sweep did: outcomes of the runs that ran, and how many were finished before."""

    sweep: Sweep
    finished_before: int
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def failed(self) -> list[Run]:
        """Runs without rows, in the order of the file."""
        return [run for run in self.sweep.runs if run.id in self.outcomes and self.outcomes[run.id]["state"] != "ok"]

    def text(self) -> str:
        """The last words of a sweep: counts, each failure with the command that repeats it, what to do next."""
        done = len(self.outcomes) - len(self.failed)
        counts = [f"{done} done", f"{self.finished_before} finished before", f"{len(self.failed)} failed"]
        not_tried = len(self.sweep.runs) - self.finished_before - len(self.outcomes)
        counts += [f"{not_tried} not tried"] if not_tried else []
        lines = [f"{counted(len(self.sweep.runs), 'run')}: {', '.join(counts)} ({self.seconds:.1f} s)"]
        lines += failures_text(self.sweep, [(run, self.outcomes[run.id]["why"]) for run in self.failed])
        path = self.sweep.path.relative_to(self.sweep.root)
        table = self.sweep.table.relative_to(self.sweep.root)
        profile = f" --profile {self.sweep.profile}" if self.sweep.profile else ""
        if done and not self.failed:
            lines.append(f"the rows go to {table} by: fedmorl collect {path}{profile}")
        return "\n".join(lines)


def failures_text(sweep: Sweep, failures: list[tuple[Run, str]], shown: int = 20) -> list[str]:
    """Lines on failed runs, by reason: the parameters of each, and the command that repeats it alone."""
    by_reason: dict[str, list[Run]] = {}
    for run, why in failures:
        by_reason.setdefault(_reason(sweep, why), []).append(run)
    lines = []
    for reason, runs in by_reason.items():
        lines.append(f"{len(runs)} failed: {reason}")
        for run in runs[:shown]:
            notebook = Store(sweep.store).failed(run.id)
            kept = f"  (traceback in {notebook.relative_to(sweep.root)})" if notebook.exists() else ""
            lines.append(f"  {sweep.words(run)}{kept}")
            lines.append(f"    repeat it alone: {command(sweep.source.relative_to(sweep.root), run.given)}")
        lines += [f"  and {len(runs) - shown} more"] if len(runs) > shown else []
    return lines


def _reason(sweep: Sweep, why: str) -> str:
    """Why a run failed, without what differs from run to run."""
    return why.replace(f"{sweep.root}/", "").partition(" (traceback in ")[0]


# --- what is there, and what is to do ------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """The runs of a sweep by where they stand."""

    sweep: Sweep
    states: dict[str, str]  # run -> "cached", "in the table", "failed before" or "to run"

    @property
    def missing(self) -> list[Run]:
        return [run for run in self.sweep.runs if self.states[run.id] in ("to run", "failed before")]

    def text(self, shown: int = 10) -> str:
        """What `--dry-run` prints."""
        counts = Counter(self.states.values())
        lines = [f"{counted(len(self.sweep.runs), 'run')}: " + ", ".join(f"{n} {state}" for state, n in counts.items())]
        lines += [f"  {self.sweep.words(run)}: {self.states[run.id]}" for run in self.missing[:shown]]
        lines += [f"  and {len(self.missing) - shown} more"] if len(self.missing) > shown else []
        return "\n".join(lines)


def plan(sweep: Sweep, again: bool = False) -> Plan:
    """Where each run stands: executed notebooks are opened and checked, and so is the committed table."""
    store = Store(sweep.store)
    committed = set() if again else runs_in(sweep.table)
    states = {run.id: _state(run.id, store, committed, again) for run in sweep.runs}
    return Plan(sweep, states)


def _state(run: str, store: Store, committed: set[str], again: bool) -> str:
    if not again and store.record(run):
        return "cached"
    if run in committed:
        return "in the table"
    return "failed before" if store.failed(run).exists() else "to run"


# --- running ---------------------------------------------------------------------------------------------------


def run(
    sweep: Sweep, options: Options = Options(), say: Say = print, task: Callable[[Job], Outcome] = attempt
) -> Summary:
    """Execute what is missing and return what happened; raises RunError if nothing can be run.

    `task` is what a worker does with a job; benchmarks and tests of the engine alone pass a smaller one.
    """
    started = time.time()
    store = Store(sweep.store)
    with _for_a_person(sweep), store.lock(say):
        ledger = Ledger(sweep.root)
        _bury_the_dead(sweep, store, ledger)
        todo = plan(sweep, options.again).missing
        if options.again:
            for one in todo:
                store.output(one.id).unlink(missing_ok=True)
        summary = Summary(sweep, finished_before=len(sweep.runs) - len(todo))
        if todo:
            say(f"{counted(len(sweep.runs), 'run')}: {len(todo)} to run, {summary.finished_before} finished before")
            with engine.connect(sweep.root, options.workers, options.scheduler, options.slurm, say) as client:
                _Master(sweep, options, store, ledger, client, task, summary, say).run(todo)
        ledger.close()
    summary.seconds = time.time() - started
    return summary


class _for_a_person:
    """Turn what a full or read-only disk says into a sentence."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, OSError) and error.strerror and not isinstance(error, ConnectionError | TimeoutError):
            place = error.filename or self.sweep.store
            raise RunError(f"cannot write {place}: {error.strerror}; finished runs are kept") from None


def _bury_the_dead(sweep: Sweep, store: Store, ledger: Ledger) -> None:
    """Write down what an earlier sweep was doing when it was killed, and clear it away; needs the lock."""
    remove_leftovers(store.folder)
    for name, tries in store.under_way().items():
        ledger.add([_entry(sweep, name, "interrupted", "the sweep was killed", one) for one in tries])
        store.forget_tries(name)


def _entry(sweep: Sweep, run: str, state: str, why: str, one: Try, given: str = "") -> dict[str, Any]:
    """An attempt as the ledger has it."""
    return {
        "run": run, "state": state, "why": why, "experiment": sweep.experiment, "sweep": sweep.name,
        "parameters": given, "started": one["started"], "seconds": one.get("seconds"), "worker": one["worker"],
    }  # fmt: skip


@dataclass
class _Master:
    """Hands runs to the cluster, takes outcomes back, tries again what may be tried again."""

    sweep: Sweep
    options: Options
    store: Store
    ledger: Ledger
    client: "Client"
    task: Callable[[Job], Outcome]
    summary: Summary
    say: Say
    submitted: Counter = field(default_factory=Counter)  # run -> how often handed to the cluster
    raised: Counter = field(default_factory=Counter)  # run -> how often it failed by itself
    runs: dict[str, Run] = field(default_factory=dict)

    def run(self, todo: list[Run]) -> None:
        from distributed import as_completed
        from tqdm import tqdm

        self.runs = {run.id: run for run in todo}
        self._refuse_other_code(todo[0])
        waiting = deque(todo)
        shown = tqdm(total=len(todo), unit="run", disable=not sys.stderr.isatty(), smoothing=0.1)
        with shown as bar, self._watched(bar):
            flying = as_completed(self._submit_some(waiting, IN_FLIGHT), loop=self.client.loop)
            for batch in flying.batches():
                again = list(self._settle(batch, bar))
                for future in self._submit_some(again, len(again)):
                    flying.add(future)
                if self.options.fail_fast and self.summary.failed:
                    return
                for future in self._submit_some(waiting, min(len(batch), len(waiting))):
                    flying.add(future)

    def _submit_some(self, waiting: "deque[Run] | list[Run]", count: int) -> "list[Future]":
        """Hand the next runs over. The key says which run and which time, so one id never runs twice at once.

        Its first part is the same for all: of a group that large Dask gives a worker no run before it can start it.
        With a group for each run it would deal all of them out at the start, and leave workers idle beside full ones.
        """
        taken = [
            waiting.popleft() if isinstance(waiting, deque) else waiting.pop(0) for _ in range(min(count, len(waiting)))
        ]
        keys: list[tuple[str, str, int]] = []
        for one in taken:
            self.submitted[one.id] += 1
            keys.append((f"{self.summary.sweep.name}-{id(self)}", one.id, self.submitted[one.id]))
        jobs = [self._job(one) for one in taken]
        return self.client.map(self.task, jobs, key=keys, pure=False, retries=0) if jobs else []

    def _job(self, one: Run) -> Job:
        return Job(
            one.id, self.sweep.root, self.sweep.source, self.store, one.given, self.sweep.profile,
            self.options.deaths_allowed, self.options.timeout_s,
        )  # fmt: skip

    def _refuse_other_code(self, one: Run) -> None:
        """Every worker must see the same project and the same package."""
        job = self._job(one)
        here = one.id, machinery()
        for worker, seen in self.client.run(seen_from_here, job, on_error="return").items():
            if seen != here:
                raise RunError(
                    f"the worker at {worker} {_difference(seen, one.id)}; all workers must see the folder "
                    f"{self.sweep.root}, with the same version of fedmorl: start that worker again"
                )

    @contextlib.contextmanager
    def _watched(self, bar: Any) -> Iterator[None]:
        """Bring back workers that were lost; say so when none is left, for then the sweep waits for another one."""
        over = threading.Event()

        def watch() -> None:
            looks = 0  # in a row, without a worker: one that died is back sooner
            while not over.wait(LOOK_S):
                try:
                    engine.restore(self.client)
                    looks = 0 if self.client.scheduler_info(n_workers=-1)["workers"] else looks + 1
                except Exception:  # the scheduler has gone, and the sweep ends
                    return
                if looks == 2:
                    self._tell(bar, "no worker is left; the sweep waits for one, and Ctrl-C ends it")

        threading.Thread(target=watch, daemon=True).start()
        try:
            yield
        finally:
            over.set()

    def _settle(self, batch: "Iterable[Future]", bar: Any) -> Iterator[Run]:
        """Write down what came back; yields the runs to try again."""
        entries: list[dict[str, Any]] = []
        for future in batch:
            run = self.runs[cast("tuple[str, str, int]", future.key)[1]]
            outcome = self._outcome(future, run)
            if outcome is None:
                yield run
                continue
            entries += self._entries(run, outcome)
            if self._may_try_again(run, outcome):
                self._tell(bar, f"again: {self.sweep.words(run)}: {_reason(self.sweep, outcome['why'])}")
                yield run
                continue
            self.summary.outcomes[run.id] = outcome
            bar.update(1)
            bar.set_postfix(failed=len(self.summary.failed), refresh=False) if self.summary.failed else None
            if outcome["state"] != "ok":
                self._tell(bar, f"failed: {self.sweep.words(run)}: {_reason(self.sweep, outcome['why'])}")
        self.ledger.add(entries)

    def _outcome(self, future: "Future", run: Run) -> Outcome | None:
        """What the worker said, or what its death says; None if the run never started and can go again."""
        from distributed import KilledWorker

        if future.status == "finished":
            try:
                return future.result()
            except (OSError, KilledWorker):  # the worker died with the answer; what it wrote is there
                return self._found(run)
        if future.status in ("cancelled", "lost"):
            if self.client.status != "running":
                raise RunError("the scheduler went away; finished runs are kept, so start the sweep again to go on")
            return self._found(run)
        error = future.exception()
        if not isinstance(error, KilledWorker):
            raise RunError(f"a worker could not do {self.sweep.words(run)}: {type(error).__name__}: {error}")
        tries = self.store.tries(run.id)
        if not tries and self.submitted[run.id] <= STRANDED:
            return None
        self.store.forget_tries(run.id)
        base = {"run": run.id, "died": tries, "started": time.time(), "worker": "", "seconds": 0.0}
        if not tries:
            return base | {"state": "gave up", "why": "its workers died before they could start it"}
        if len(tries) > self.options.deaths_allowed:
            return base | {"state": "gave up", "why": death_text(len(tries))}
        for one in tries:  # the next worker counts them
            self.store.note_try(run.id, one)
        return None

    def _found(self, run: Run) -> Outcome | None:
        """The outcome of a run whose notebook is there."""
        if self.store.record(run.id) is None:
            return None
        base = {"run": run.id, "died": [], "started": time.time(), "worker": "", "seconds": None}
        return base | {"state": "ok", "why": "its worker died after it"}

    def _entries(self, run: Run, outcome: Outcome) -> list[dict[str, Any]]:
        given = json.dumps(run.given, sort_keys=True)
        dead = [_entry(self.sweep, run.id, "died", "its worker was killed", one, given) for one in outcome["died"]]
        if outcome["state"] == "gave up":
            return dead
        return [*dead, _entry(self.sweep, run.id, outcome["state"], outcome["why"], outcome, given)]

    def _may_try_again(self, run: Run, outcome: Outcome) -> bool:
        if outcome["state"] not in ("failed", "died"):
            return False
        self.raised[run.id] += 1
        allowed = self.options.deaths_allowed if outcome["state"] == "died" else self.options.retries or 0
        return self.raised[run.id] <= allowed

    def _tell(self, bar: Any, text: str) -> None:
        with bar.external_write_mode():
            self.say(text)


def _difference(seen: Any, run: str) -> str:
    """What is wrong with a worker that sees other things than we do, or fails at looking."""
    if isinstance(seen, Exception):
        return f"says: {str(seen) or type(seen).__name__}"
    return "has another version of fedmorl" if seen[0] == run else "has other code, data or pins"


def find(root: Path, name: str) -> Path:
    """The sweep file that a person named: a path, or the bare name of one in `notebooks/sweeps`."""
    from fedmorl.batch.grid import FOLDER

    path = Path(name)
    if path.exists() or path.suffix in (".yml", ".yaml"):
        return path
    found = root / FOLDER / f"{name}.yml"
    if not found.exists():
        near = difflib.get_close_matches(name, [one.stem for one in (root / FOLDER).glob("*.yml")], n=1)
        hint = f"did you mean {near[0]}?" if near else "`fedmorl sweep` alone lists those there are"
        raise RunError(f"there is no sweep {name} in {FOLDER}; {hint}")
    return found
