"""What is finished and what was tried: executed notebooks on disk, and a ledger of every attempt.

A finished run is one notebook, `ID.ipynb`, which appears by a rename and carries its key, its rows and a digest of
both. A notebook that does not match its name or its digest counts as never written. While a run is under way,
`ID.tries.jsonl` has one line for each process that started it; whoever ends it, well or not, removes the file, so
a line that is left tells of a process that died.
"""

import contextlib
import fcntl
import json
import os
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedmorl import execute, identity, rows
from fedmorl.notebook import RunError

Record = dict[str, Any]
Try = dict[str, Any]


@dataclass(frozen=True)
class Store:
    """The runs of one experiment."""

    folder: Path

    def output(self, run: str) -> Path:
        return self.folder / f"{run}.ipynb"

    def failed(self, run: str) -> Path:
        """The notebook of a run that failed, with its traceback."""
        return execute.failed_path(self.output(run))

    def record(self, run: str) -> Record | None:
        """Key, provenance, rows and cost of a finished run; None if there is none, or it is torn or edited."""
        try:
            record = json.loads(self.output(run).read_text(encoding="utf-8"))["metadata"]["fedmorl"]
            sound = record["digest"] == rows.digest(record) and identity.run_id(record["key"]) == run
            return record if sound and record["rows"] else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    # --- tries -----------------------------------------------------------------------------------------

    def _tries(self, run: str) -> Path:
        return self.folder / f"{run}.tries.jsonl"

    def note_try(self, run: str, attempt: Try) -> None:
        """Say that a process starts the run."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self._tries(run), "a", encoding="utf-8") as file:
            file.write(json.dumps(attempt) + "\n")

    def tries(self, run: str) -> list[Try]:
        """Processes that started the run and did not end it: one is at work, or all have died."""
        try:
            lines = self._tries(run).read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        return [attempt for line in lines if (attempt := _parsed(line))]

    def forget_tries(self, run: str) -> None:
        self._tries(run).unlink(missing_ok=True)

    def under_way(self) -> dict[str, list[Try]]:
        """The tries of every run that has some."""
        names = [path.name.removesuffix(".tries.jsonl") for path in sorted(self.folder.glob("*.tries.jsonl"))]
        return {name: self.tries(name) for name in names}

    @contextlib.contextmanager
    def lock(self, say: Any) -> Iterator[None]:
        """Hold the store: one sweep at a time works on it, a second one waits and then finds the runs done."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / ".lock", "a+", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                say(f"another sweep of this experiment is at work (process {lock.read().strip()}); waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
            lock.seek(0)
            lock.truncate()
            lock.write(str(os.getpid()))
            lock.flush()
            yield


def _parsed(line: str) -> Try | None:
    try:
        return json.loads(line)
    except ValueError:
        return None  # the process died while it wrote the line


# --- the ledger --------------------------------------------------------------------------------------------

_SCHEMA = """
CREATE TABLE IF NOT EXISTS attempts (
    run TEXT NOT NULL, number INTEGER NOT NULL, state TEXT NOT NULL, why TEXT, experiment TEXT, sweep TEXT,
    parameters TEXT, started REAL, seconds REAL, worker TEXT, PRIMARY KEY (run, number)
)"""
_COLUMNS = ("run", "number", "state", "why", "experiment", "sweep", "parameters", "started", "seconds", "worker")


class Ledger:
    """Every attempt at every run, in `_build/runs/ledger.sqlite`: history, not the truth, which is the notebooks.

    States: `ok`; `failed` (the notebook raised, or ran past its limit); `died` (its worker or kernel was killed);
    `interrupted` (the whole sweep was); `changed` (the code or data changed under it).
    """

    def __init__(self, root: Path) -> None:
        self.path = root / "_build" / "runs" / "ledger.sqlite"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise RunError(f"cannot use the ledger {self.path}: {error}") from None
            os.replace(self.path, self.path.with_name(f"ledger.damaged-{int(time.time())}.sqlite"))
            self._open()

    def _open(self) -> None:
        self._database = sqlite3.connect(self.path, timeout=60)
        self._database.execute(_SCHEMA)
        # A journal protects a transaction against a killed process; the power supply is not our subject.
        self._database.execute("PRAGMA synchronous = OFF")

    def add(self, attempts: list[dict[str, Any]]) -> None:
        """Record attempts, all or none; each gets the next number of its run."""
        try:
            with self._database:
                for attempt in attempts:
                    self._database.execute(
                        f"INSERT INTO attempts ({', '.join(_COLUMNS)}) VALUES (:run, "
                        "(SELECT COALESCE(MAX(number), 0) + 1 FROM attempts WHERE run = :run), "
                        ":state, :why, :experiment, :sweep, :parameters, :started, :seconds, :worker)",
                        dict.fromkeys(_COLUMNS) | attempt,
                    )
        except sqlite3.Error as error:
            raise RunError(f"cannot write the ledger {self.path}: {error}; finished runs are kept") from None

    def attempts(self, runs: list[str] | None = None) -> list[dict[str, Any]]:
        """Attempts in the order of their start, of the given runs or of all."""
        cursor = self._database.execute(f"SELECT {', '.join(_COLUMNS)} FROM attempts ORDER BY started, number")
        found = [dict(zip(_COLUMNS, line, strict=True)) for line in cursor]
        wanted = None if runs is None else set(runs)
        return [attempt for attempt in found if wanted is None or attempt["run"] in wanted]

    def close(self) -> None:
        self._database.close()
