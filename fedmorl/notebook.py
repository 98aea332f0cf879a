"""A source notebook and its parameters: what is refused before anything runs.

papermill takes a misspelt parameter with a log line and runs the defaults, and applies old parameters when an
output notebook is run again. Here both are refused, and so is a value of another type than the default's.
"""

import ast
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedmorl.closure import Closure, SourceError, closure

Notebook = dict[str, Any]

_TYPES = {"int": int, "float": float, "str": str, "bool": bool, "list": list, "tuple": tuple, "dict": dict}


class RunError(RuntimeError):
    """What a person did or met, in one sentence; the command line prints it and exits with 1."""


@dataclass(frozen=True)
class Parameter:
    """One assignment of a notebook's `parameters` cell; `types` is empty where anything goes."""

    name: str
    default: Any
    types: frozenset[type]
    comment: str = ""


def read_notebook(path: Path) -> Notebook:
    """The notebook at `path`, nbformat 4, each cell's source as one string.

    Plain JSON, since importing nbformat takes over a second and all that is asked here is a shape.
    """
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        if notebook["nbformat"] != 4:
            raise RunError(f"{path} has notebook format {notebook['nbformat']}; save it as format 4 in JupyterLab")
        _ = notebook["metadata"].keys()
        for cell in notebook["cells"]:
            cell["source"] = "".join(cell["source"])
            _ = cell["cell_type"], cell["metadata"].keys()
    except FileNotFoundError:
        raise RunError(f"there is no notebook {path}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path} is not a notebook: {type(error).__name__} {error}") from None
    return notebook


def write_notebook(notebook: Notebook, path: Path) -> None:
    """Write JSON as Jupyter does, one space deep."""
    path.write_text(json.dumps(notebook, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def read_source(path: Path) -> Notebook:
    """A source notebook: exactly one `parameters` cell, and not the output of an earlier run."""
    notebook = read_notebook(path)
    if tagged(notebook, "injected-parameters") or "papermill" in notebook["metadata"]:
        raise RunError(f"{path} is the output of a run and keeps its old parameters; run its source notebook")
    count = len(tagged(notebook, "parameters"))
    if count != 1:
        raise RunError(f"{path} needs exactly one code cell tagged `parameters`, and has {count}")
    return notebook


def tagged(notebook: Notebook, tag: str) -> list[dict[str, Any]]:
    """The cells that carry `tag`."""
    return [cell for cell in notebook["cells"] if tag in cell["metadata"].get("tags", [])]


def parameters_of(notebook: Notebook, path: Path) -> dict[str, Parameter]:
    """Names, defaults, types and comments of the `parameters` cell; a default must be a literal."""
    source = tagged(notebook, "parameters")[0]["source"]
    lines = source.splitlines()
    try:
        statements = ast.parse(source).body
    except SyntaxError as error:
        raise RunError(f"{path}: the `parameters` cell is not Python: {error.msg}") from None
    found = [_parameter(node, lines, path) for node in statements if isinstance(node, ast.Assign | ast.AnnAssign)]
    return {parameter.name: parameter for parameter in found}


def _parameter(node: ast.Assign | ast.AnnAssign, lines: list[str], path: Path) -> Parameter:
    target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
    name = ast.unparse(target)
    try:
        default = ast.literal_eval(node.value)  # type: ignore[arg-type]
    except (ValueError, TypeError):
        raise RunError(
            f"{path}: parameter {name} must have a plain literal as its default, not `{ast.unparse(node)}`"
        ) from None
    annotation = ast.unparse(node.annotation) if isinstance(node, ast.AnnAssign) else ""
    comment = lines[node.end_lineno - 1][node.end_col_offset :].strip() if node.end_lineno else ""
    return Parameter(name, default, _types(default, annotation), comment.lstrip("# ").rstrip())


def _types(default: Any, annotation: str) -> frozenset[type]:
    """The default's type and those that a plain annotation names; empty where neither says anything."""
    named = set() if "[" in annotation else {_TYPES[w] for w in re.findall(r"\w+", annotation) if w in _TYPES}
    if default is not None:
        named.add(type(default))
    if "None" in annotation and named:
        named.add(type(None))
    return frozenset(named)


def checked(given: dict[str, Any], known: dict[str, Parameter], where: str) -> dict[str, Any]:
    """`given` with each value fitted to its parameter's type; unknown names and wrong types are refused."""
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise RunError(f"{where} has no parameter {', '.join(unknown)}; it has {', '.join(known) or 'none'}")
    return {name: _fitted(value, known[name], where) for name, value in given.items()}


def _fitted(value: Any, parameter: Parameter, where: str) -> Any:
    """`value` in the parameter's type: 1e7 is an int where an int is wanted, 3 a float where a float is."""
    types = parameter.types
    if not types or type(value) in types:
        return value
    if value is None and parameter.default is None:
        return value
    number = _number(value)
    if number is not None and int in types and float(number).is_integer():
        return int(number)
    if number is not None and float in types:
        return float(number)
    if isinstance(value, list) and tuple in types:
        return value  # YAML has no tuple
    wanted = " or ".join(sorted(kind.__name__ for kind in types))
    raise RunError(f"{where}: parameter {parameter.name} must be {wanted}, got {value!r} ({type(value).__name__})")


def _number(value: Any) -> int | float | None:
    """A number, also from the text that YAML makes of `1e7`; None for everything else, booleans included."""
    if isinstance(value, str) and re.fullmatch(r"[-+]?[0-9_.]+[eE][-+]?[0-9]+", value):
        return float(value)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def reached_by(source: Path) -> Closure:
    """The closure of a source notebook, its problems as RunError."""
    try:
        return closure(source)
    except SourceError as error:
        raise RunError(str(error)) from None


def command(path: Path, values: dict[str, Any]) -> str:
    """The command that repeats one notebook's run alone."""
    texts = {name: "null" if value is None else str(value) for name, value in values.items()}  # YAML's null
    options = [f"-p {name} {shlex.quote(text)}" for name, text in texts.items()]
    return " ".join(["fedmorl run", shlex.quote(path.as_posix()), *options, "-o", f"{path.stem}.out.ipynb"])
