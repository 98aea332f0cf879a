"""Results are rows: how an experiment notebook hands them over, and how tables of them are read.

An experiment ends with

    from fedmorl.rows import emit
    emit(rows)

The rows travel inside the executed notebook, so a run has one output, which is whole or not there.
`fedmorl sweep` runs many, `fedmorl collect` merges their rows into `results/NAME.csv`.
"""

import json
import math
import resource
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmorl.closure import short_hash

if TYPE_CHECKING:
    import pandas as pd

MIME = "application/vnd.fedmorl.rows+json"

# Columns that the collection adds to every row: what made it, and what it cost.
MADE_BY = ("run", "given", "code", "data", "pins", "commit")
COST = ("wall_s", "cpu_s", "peak_mb", "machine", "device", "date")

Row = dict[str, Any]


def emit(rows: "Mapping[str, Any] | Iterable[Mapping[str, Any]] | pd.DataFrame", *, device: str = "cpu") -> None:
    """Hand over the result rows of this run, and show them as a table; once, in the last cell.

    Parameters
    ----------
    rows : one mapping, several, or a DataFrame
        Column name to number, text, bool or None. All rows have the same columns, in the order in which the
        table will have them. NaN means "undefined" and becomes an empty field.
    device : str
        Where the numbers were computed, such as "cpu" or "cuda".

    Raises
    ------
    ValueError
        If there is no row, the columns differ, a name is one of `MADE_BY` or `COST`, or a value is not a
        finite plain scalar.
    """
    plain = _plain(rows)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    cost = {
        "cpu_s": round(usage.ru_utime + usage.ru_stime + children.ru_utime + children.ru_stime, 2),
        "peak_mb": round(max(usage.ru_maxrss, children.ru_maxrss) / 1024),
        "device": device,
    }
    table = {"columns": list(plain[0]), "values": [list(row.values()) for row in plain]}  # writers sort mappings
    data = {MIME: {"rows": table, "cost": cost}, "text/plain": _text(plain), "text/html": _html(plain)}
    if "IPython" in sys.modules:
        from IPython import get_ipython
        from IPython.display import display

        if get_ipython() is not None:
            display(data, raw=True)
            return
    print(data["text/plain"])


def _plain(rows: Any) -> list[Row]:
    """The rows as plain dicts, checked."""
    if hasattr(rows, "to_dict"):
        rows = rows.to_dict("records")
    given = [rows] if isinstance(rows, Mapping) else list(rows)
    if not given:
        raise ValueError("emit needs at least one row, got none")
    columns = list(given[0])
    reserved = sorted(set(columns) & {*MADE_BY, *COST})
    if reserved:
        raise ValueError(f"the column {reserved[0]} is added by the collection; give yours another name")
    for number, row in enumerate(given):
        if list(row) != columns:
            raise ValueError(f"row {number} has the columns {list(row)} and row 0 has {columns}; they must be the same")
    return [
        {str(name): _scalar(value, name, number) for name, value in row.items()} for number, row in enumerate(given)
    ]


def _scalar(value: Any, name: str, number: int) -> Any:
    value = value.item() if hasattr(value, "item") and getattr(value, "size", 1) == 1 else value
    if isinstance(value, float) and math.isnan(value):
        return None
    if value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise ValueError(f"{name} of row {number} must be a finite number, text, bool or None; got {value!r}")


def _text(rows: list[Row]) -> str:
    columns = list(rows[0])
    lines = [columns, *([field(row[name]) for name in columns] for row in rows)]
    widths = [max(len(line[k]) for line in lines) for k in range(len(columns))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def _html(rows: list[Row]) -> str:
    import html

    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(field(value))}</td>" for value in row.values()) + "</tr>" for row in rows
    )
    return f'<table class="table"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


# --- rows in an executed notebook ------------------------------------------------------------------------


def taken_from(notebook: Mapping[str, Any]) -> dict[str, Any]:
    """`rows` and `cost` that the outputs of an executed notebook carry; empty if it emitted none."""
    found = [
        output["data"][MIME]
        for cell in notebook["cells"]
        for output in cell.get("outputs", [])
        if MIME in output.get("data", {})
    ]
    if len(found) > 1:
        raise ValueError(f"{len(found)} cells emit rows; gather them and call emit once")
    return {name: found[0][name] for name in ("rows", "cost")} if found else {}


def rows_of(record: Mapping[str, Any]) -> list[Row]:
    """The rows in a run's record, as mappings in the order of their columns."""
    table = record["rows"]
    return [dict(zip(table["columns"], values, strict=True)) for values in table["values"]]


def digest(record: Mapping[str, Any]) -> str:
    """Hash of all that a run's record says, its own digest aside; tells a torn or edited record."""
    return short_hash(json.dumps({k: v for k, v in record.items() if k != "digest"}, sort_keys=True))


# --- tables ----------------------------------------------------------------------------------------------


def field(value: Any) -> str:
    """How a value is written in a table: ten significant digits, an empty field for what is undefined."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.10g}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def read_table(name: str, root: Path | None = None) -> "pd.DataFrame":
    """The table `results/NAME`, such as `read_table("baselines_saturated.csv")`; empty fields are NaN.

    Hashes keep their text (`007e12` is no number). `root` is the project; by default the one around the
    working directory. Raises FileNotFoundError with the way out if no such table is there.
    """
    import pandas as pd

    from fedmorl.provenance import project_root

    root = root or project_root(Path.cwd())
    path = (root or Path()) / "results" / name
    if not path.is_file():
        raise FileNotFoundError(f"there is no results/{name}; make it with `fedmorl sweep` and `fedmorl collect`")
    return pd.read_csv(path, dtype=dict.fromkeys(MADE_BY, str))
