"""Rows of finished runs into `results/NAME.csv`, and what in such a table is stale, missing or of no run.

A row names the run that made it, and the hashes of its parameters, code, data and pins. A row is *current* if
its run is one that the sweep asks for now; *stale* if the sweep asks for its parameters, but code, data or pins
have changed since; *left over* if the sweep asks for its parameters no longer.
"""

import csv
import io
import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedmorl import identity, provenance
from fedmorl.batch.grid import FOLDER, Run, Sweep, read_sweep
from fedmorl.batch.store import Record, Store
from fedmorl.batch.words import counted
from fedmorl.notebook import RunError
from fedmorl.rows import COST, MADE_BY, field, rows_of
from fedmorl.strict_yaml import read_yaml

Line = dict[str, str]  # a row of a table, as text

_HASHED = ("code", "data", "pins")


def read_lines(path: Path) -> list[Line]:
    """The rows of a table as text; none if there is no table yet."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            lines = [dict(line) for line in reader]
            columns = reader.fieldnames or []
    except FileNotFoundError:
        return []
    except (csv.Error, UnicodeDecodeError) as error:
        raise RunError(f"{path} is not a table: {error}; restore it from version control") from None
    missing = [name for name in ("run", *_HASHED) if name not in columns]
    if missing:
        raise RunError(
            f"{path} has no column {missing[0]}; it was not made by `fedmorl collect`, so name the sweep otherwise"
        )
    if any(None in line or None in line.values() for line in lines):
        raise RunError(f"{path} has a row with too many or too few fields; restore it from version control")
    return lines


def runs_in(path: Path) -> set[str]:
    """Runs whose rows are all in the table."""
    rows: dict[str, set[str]] = {}
    for line in read_lines(path):
        rows.setdefault(line["run"], set()).add(line["row"])
    return {run for run, found in rows.items() if found == _complete(next(iter(found)))}


def _complete(row: str) -> set[str]:
    """The rows of a run of which `row` is one, such as 2/13."""
    count = int(row.partition("/")[2] or 0)
    return {f"{k}/{count}" for k in range(1, count + 1)}


# --- collecting ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Collected:
    """What a collection did to a table."""

    path: Path
    rows: int
    fresh: int
    state: "TableState"


def collect(sweep: Sweep, prune: bool = False) -> Collected:
    """Merge the rows of finished runs into the sweep's table, in the order of the sweep file.

    Rows of runs that are not finished here stay as they are, stale ones too, until new rows replace them. Left-over
    rows stay at the end, or go with `prune`. The table appears whole, by a rename, and only if it changed.
    """
    store, old = Store(sweep.store), read_lines(sweep.table)
    by_run, by_given = _grouped(old, "run"), _grouped(old, "given")
    lines: list[Line] = []
    fresh = 0
    for run in sweep.runs:
        record = store.record(run.id)
        if record:
            made = lines_of(run, record)
            fresh += by_run.get(run.id) != made
            lines += made
        else:
            lines += by_run.get(run.id) or by_given.get(parameters_hash(run), [])
    asked = {parameters_hash(run) for run in sweep.runs}
    lines += [] if prune else [line for line in old if line["given"] not in asked]
    if not lines:
        name, profile = sweep.path.relative_to(sweep.root), f", profile {sweep.profile}," if sweep.profile else ""
        raise RunError(f"no run of {name}{profile} is finished; run it with `fedmorl sweep`, or name another --profile")
    _write(sweep.table, lines)
    return Collected(sweep.table, len(lines), fresh, state_of(sweep))


def _grouped(lines: list[Line], column: str) -> dict[str, list[Line]]:
    groups: dict[str, list[Line]] = {}
    for line in lines:
        groups.setdefault(line[column], []).append(line)
    return groups


def parameters_hash(run: Run) -> str:
    return identity.part_hash(run.key, "parameters")


def lines_of(run: Run, record: Record) -> list[Line]:
    """A finished run's rows as text: what it emitted, its parameters, what made it, what it cost."""
    made, cost = record["provenance"], record["cost"]
    emitted = rows_of(record)
    given = {name: _text(value) for name, value in run.given.items() if name not in emitted[0]}
    by = {
        "run": run.id,
        "given": parameters_hash(run),
        "code": identity.code_hash(run.key),
        "data": identity.part_hash(run.key, "data file"),
        "pins": identity.part_hash(run.key, "pins"),
        "commit": provenance.commit_text(made["commit"], made["dirty"]).removeprefix("commit "),
    }
    spent = {
        "wall_s": field(made["seconds"]),
        **{name: field(cost[name]) for name in ("cpu_s", "peak_mb")},
        "machine": made["machine"],
        "device": cost["device"],
        "date": made["date"],
    }
    return [
        {name: field(value) for name, value in row.items()} | given | {"row": f"{k}/{len(emitted)}"} | by | spent
        for k, row in enumerate(emitted, start=1)
    ]


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, list | dict | tuple) else field(value)


def _write(path: Path, lines: list[Line]) -> None:
    columns = _columns(lines)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    if path.is_file() and path.read_text(encoding="utf-8") == text.getvalue():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text.getvalue(), encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _columns(lines: list[Line]) -> list[str]:
    """Every column once: what runs emitted and were given first, then what made them and what they cost."""
    last = ("row", *MADE_BY, *COST)
    found = dict.fromkeys(name for line in lines for name in line)
    return [name for name in found if name not in last] + [name for name in last if name in found]


# --- the state of a table -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TableState:
    """Rows of a table by whether they are current, and runs that it misses."""

    path: Path
    rows: int
    stale: dict[str, int]  # why -> rows, such as {"code changed": 65}
    left_over: int
    missing_runs: int
    failed_runs: int

    @property
    def is_current(self) -> bool:
        return not (self.stale or self.missing_runs or self.left_over)

    def text(self) -> str:
        """The state in a few words."""
        if not self.rows:
            return f"no table yet: {counted(self.missing_runs, 'run')} to run" + self._failed()
        parts = [f"{n} of {counted(self.rows, 'row')} stale: {why}" for why, n in self.stale.items()]
        unasked = f"{counted(self.left_over, 'row')} of runs that the sweep no longer asks for"
        parts += [unasked] if self.left_over else []
        parts += [f"{counted(self.missing_runs, 'run')} missing"] if self.missing_runs else []
        return ("; ".join(parts) or f"{counted(self.rows, 'row')}, all current") + self._failed()

    def _failed(self) -> str:
        return f"; {counted(self.failed_runs, 'run')} failed when last tried" if self.failed_runs else ""


def state_of(sweep: Sweep) -> TableState:
    """Compare a sweep's table with what the sweep asks for now."""
    lines, store = read_lines(sweep.table), Store(sweep.store)
    wanted = {parameters_hash(run): run for run in sweep.runs}
    stale: Counter = Counter()
    left_over = 0
    present = set()
    for line in lines:
        run = wanted.get(line["given"])
        if run is None:
            left_over += 1
            continue
        present.add(run.id)
        why = _why_stale(line, run)
        if why:
            stale[why] += 1
    missing = [run for run in sweep.runs if run.id not in present]
    failed = sum(store.failed(run.id).exists() for run in sweep.runs)
    return TableState(sweep.table, len(lines), dict(stale), left_over, len(missing), failed)


def _why_stale(line: Line, run: Run) -> str:
    if line["run"] == run.id:
        return ""
    now = {
        "code": identity.code_hash(run.key),
        "data": identity.part_hash(run.key, "data file"),
        "pins": identity.part_hash(run.key, "pins"),
    }
    return ", ".join(f"{name} changed" for name in _HASHED if line[name] != now[name]) or "its run has another name"


def sweeps(root: Path) -> list[Sweep]:
    """Every sweep file in `notebooks/sweeps`, in each of its profiles."""
    found = []
    for path in sorted((root / FOLDER).glob("*.yml")):
        text = read_yaml(path)
        names = list(text.get("profiles") or {}) if isinstance(text, dict) else []
        found += [read_sweep(root, path, name, yes=True) for name in names or [None]]
    return found


def states(root: Path) -> list[tuple[Sweep, TableState]]:
    """The state of each sweep's table, in every profile that has one, or has none yet."""
    return [(sweep, state_of(sweep)) for sweep in sweeps(root)]
