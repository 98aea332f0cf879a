"""The claims ledger: each number, ordering or statement of the four papers, our value beside it, and a verdict.

`results/claims.csv` is a table of text, so that reading and writing it changes no digit of anyone's value. It begins
with every row open; a study settles rows with `settle` and writes them back with `write_claims`.
"""

from __future__ import annotations

import csv
import difflib
import math
import os
import re
from collections.abc import Mapping
from numbers import Integral
from pathlib import Path

import pandas as pd

PAPERS = {"fedmorl": "FedMORL", "logo": "LOGO", "mads4": "MADS4", "networld": "NetWorld"}  # in the ledger's order
KINDS = ("number", "ordering", "statement")
OPEN, UNTESTABLE = "open", "not testable here"
VERDICTS = (OPEN, "reproduced", "partly", "not reproduced", UNTESTABLE)
SETTLED_COLUMNS = ("our_value", "ci_low", "ci_high", "n_seeds", "scale", "verdict", "command")  # what a study fills in
COLUMNS = ("id", "paper", "where", "kind", "quantity", "unit", "paper_value", *SETTLED_COLUMNS)
MAX_QUANTITY = 160  # characters: one line that says what would confirm or refute the claim

_KNOWN = {"paper": tuple(PAPERS), "kind": KINDS, "verdict": VERDICTS}
_ID = re.compile(r"[a-z0-9][a-z0-9-]*")


def read_claims(path: Path | str) -> pd.DataFrame:
    """The ledger at `path`, every cell as text, an empty one as "".

    Raises
    ------
    ValueError
        If a column or row breaks the rules of `check_claims`; one sentence, which names the row.
    """
    with open(path, encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file, strict=True)
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise ValueError(f"row {number} of {Path(path).name} has {len(row)} cells for {len(header)} columns")
    claims = pd.DataFrame(rows, columns=header, dtype=str)
    check_claims(claims)
    return claims


def write_claims(claims: pd.DataFrame, path: Path | str) -> None:
    """Write a valid ledger to `path`, or leave the file there as it is.

    One line a claim and quotes only where needed, so that a diff shows the claims that changed and nothing else.
    """
    check_claims(claims)
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        claims.to_csv(temporary, index=False, lineterminator="\n", quoting=csv.QUOTE_MINIMAL, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def settle(
    claims: pd.DataFrame,
    id: str,
    *,
    verdict: str,
    our_value: str | float = "",
    ci_low: str | float = "",
    ci_high: str | float = "",
    n_seeds: str | int = "",
    scale: str = "",
    command: str = "",
) -> pd.DataFrame:
    """A new ledger in which one claim has our value, its 95 % interval and a verdict.

    Parameters
    ----------
    verdict : str
        One of `VERDICTS`; "open" takes an earlier verdict back.
    our_value, ci_low, ci_high
        A number (kept to six figures) or text, such as "above"; the interval is optional and numeric.
    n_seeds : int
        Training seeds behind the value.
    scale : str
        What our run was, where it is smaller than the paper's; for "not testable here" the reason.
    command : str
        What remakes the value.

    Raises
    ------
    ValueError
        If there is no such claim, or the row would break the rules of `check_claims`.
    """
    found = claims["id"] == id
    if not found.any():
        near = difflib.get_close_matches(id, claims["id"], n=1)
        raise ValueError(f"there is no claim {id!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    given = (our_value, ci_low, ci_high, n_seeds, scale, verdict, command)
    settled = claims.copy()
    settled.loc[found, list(SETTLED_COLUMNS)] = [_text(value) for value in given]
    check_claims(settled)
    return settled


def count(claims: pd.DataFrame) -> pd.DataFrame:
    """How many claims each paper has of each verdict; papers as rows, all of `VERDICTS` as columns."""
    table = pd.crosstab(claims["paper"], claims["verdict"])
    papers = [paper for paper in PAPERS if paper in table.index]
    return table.reindex(index=papers, columns=list(VERDICTS), fill_value=0)


def check_claims(claims: pd.DataFrame) -> None:
    """Refuse a ledger that breaks a rule, with one sentence that names the row.

    Columns are `COLUMNS`; ids are unique slugs that begin with their paper; papers stand together, in the order of
    `PAPERS`; paper, kind and verdict are known ones. An open claim has nothing of ours. A settled one has our value and
    the command that makes it, or, if it is not testable here, the reason as its scale. An interval has two ends, and
    holds our value.
    """
    if list(claims.columns) != list(COLUMNS):
        raise ValueError(f"the columns of the ledger must be {', '.join(COLUMNS)}; got {', '.join(claims.columns)}")
    for number, row in enumerate(claims.to_dict("records"), start=1):
        problem = _problem_of_text(row) or _problem_of_verdict(row) or _problem_of_numbers(row)
        if problem:
            raise ValueError(f"claim {row['id'] or f'in row {number}'!r}: {problem}")
    twice = claims.loc[claims["id"].duplicated(), "id"]
    if len(twice):
        raise ValueError(f"claim {twice.iloc[0]!r} is in the ledger twice; ids are unique")
    order = claims["paper"].map(list(PAPERS).index)
    if not order.is_monotonic_increasing:
        late = claims.loc[order.diff() < 0, "id"].iloc[0]
        raise ValueError(f"claim {late!r} stands below a later paper; the order is {', '.join(PAPERS)}")


def _problem_of_text(row: Mapping[str, str]) -> str:
    """What is wrong with the cells that come from the paper, or an empty string."""
    for name, text in row.items():
        if not isinstance(text, str) or " ".join(text.split()) != text:
            return f"{name} must be one line of text without spaces at its ends, got {text!r}"
    for name, allowed in _KNOWN.items():
        if row[name] not in allowed:
            return f"{name} must be one of {', '.join(allowed)}, got {row[name]!r}"
    if not _ID.fullmatch(row["id"]) or not row["id"].startswith(f"{row['paper']}-"):
        return f"an id is small letters, digits and dashes, and begins with {row['paper']}-"
    missing = [name for name in ("where", "quantity", "paper_value") if not row[name]]
    if missing:
        return f"{missing[0]} is empty; say what the paper has"
    if len(row["quantity"]) > MAX_QUANTITY:
        return f"quantity has {len(row['quantity'])} characters; the limit is {MAX_QUANTITY}"
    return ""


def _problem_of_verdict(row: Mapping[str, str]) -> str:
    """What a verdict lacks, or an empty string."""
    verdict = row["verdict"]
    if verdict == OPEN:
        filled = [name for name in SETTLED_COLUMNS if row[name] and name != "verdict"]
        return f"it is open and has {filled[0]}; give it a verdict" if filled else ""
    if verdict == UNTESTABLE:
        return "" if row["scale"] else "not testable here needs a reason, as its scale"
    missing = [name for name in ("our_value", "command") if not row[name]]
    return f"verdict {verdict!r} needs {missing[0]}" if missing else ""


def _problem_of_numbers(row: Mapping[str, str]) -> str:
    """What is wrong with the interval or the seeds, or an empty string."""
    if row["n_seeds"] and not (row["n_seeds"].isdecimal() and int(row["n_seeds"]) > 0):
        return f"n_seeds must be a whole number above 0, got {row['n_seeds']!r}"
    ends = row["ci_low"], row["ci_high"]
    if ends == ("", ""):
        return ""
    low, high = (_number(end) for end in ends)
    if low is None or high is None:
        return f"the interval needs two numbers, ci_low and ci_high, got {ends[0]!r} and {ends[1]!r}"
    ours = _number(row["our_value"])
    if low > high or (ours is not None and not low <= ours <= high):
        return f"ci_low <= our_value <= ci_high does not hold for {low:g}, {row['our_value']}, {high:g}"
    return ""


def _number(text: str) -> float | None:
    """The finite number that a cell holds, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _text(value: str | float | None) -> str:
    """A cell: text and whole numbers as they are, other numbers to six figures."""
    if value is None:
        return ""
    return str(value) if isinstance(value, str | Integral) else f"{value:.6g}"
