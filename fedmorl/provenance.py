"""Where a number comes from: code, commit, seed, versions, machine, time.

A notebook ends with a cell of its own,

    from fedmorl.provenance import footer
    footer(seed=seed)

which prints one line from live variables. The code hash in it is that of the source notebook and of the
`fedmorl` modules it reaches (see `fedmorl.closure`). A kernel does not know which notebook it runs, so
`fedmorl run` and `fedmorl book` tell it through the environment variable `FEDMORL_RUN`; in JupyterLab the
server names the file; anywhere else the line says that the code hash is not known.

Nothing here records a host name, a user or a path.
"""

import html
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedmorl.closure import PACKAGE_DIR, Closure, closure, short_hash

RUN_VARIABLE = "FEDMORL_RUN"
FOOTER_START = '<p class="provenance">'  # the style sheet and the checks know it
VERSIONED = ("numpy", "numba", "torch")


def code_hash(notebook: str | Path, package_dir: Path = PACKAGE_DIR) -> str:
    """Hash (12 hexadecimal digits) of a notebook's code cells and of each `fedmorl` module they reach.

    Docstrings, comments, prose, outputs and modules that no import leads to do not count.
    """
    return closure(Path(notebook), package_dir).code_hash


def project_root(start: Path) -> Path | None:
    """The nearest folder at or above `start` that holds `_toc.yml`, or None."""
    start = start.resolve()
    return next((folder for folder in (start, *start.parents) if (folder / "_toc.yml").is_file()), None)


def commit(root: Path, ignoring: str = "") -> tuple[str, bool | None]:
    """Short commit of the checkout at `root`, and whether files differ from it (None: no commit known).

    Untracked files count as a difference, since a module that is not in the commit can be imported too. Differences
    in the folder `ignoring` do not count: a sweep's tables are no part of what made its rows, and the files among
    them that it reads have hashes of their own.
    """
    name = _git(root, "rev-parse", "--short=7", "HEAD")
    if name is None:
        return "unknown", None
    changes = _git(root, "status", "--porcelain", "--", ".", *([f":(exclude){ignoring}"] if ignoring else []))
    return name, None if changes is None else bool(changes)


def _git(root: Path, *arguments: str) -> str | None:
    command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def commit_text(name: str, dirty: bool | None) -> str:
    """`commit ab12cd3 (clean)`, `commit ab12cd3 (dirty)` or `commit unknown`."""
    return f"commit {name}" + ("" if dirty is None else " (dirty)" if dirty else " (clean)")


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> str:
    """The machine in general words: cores and architecture, never its name."""
    count = cores()
    return f"{count} CPU core{'' if count == 1 else 's'} {platform.machine()}"


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Version of Python, and of each installed distribution among `packages`."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def constraints_hash(root: Path) -> str | None:
    """Hash of `constraints.txt`, the pins of the whole environment."""
    pins = root / "constraints.txt"
    return short_hash(pins.read_bytes()) if pins.is_file() else None


def record(
    reached: Closure, root: Path, *, seed: int | None = None, seconds: float | None = None, ignoring: str = ""
) -> dict[str, Any]:
    """Everything known about a run outside its kernel, as JSON-able values; goes into notebooks and rows."""
    name, dirty = commit(root, ignoring)
    return {
        "code": reached.code_hash,
        "commit": name,
        "dirty": dirty,
        "constraints": constraints_hash(root),
        "versions": versions(package for package in VERSIONED if uses(reached, package)),
        "seed": seed,
        "seconds": None if seconds is None else round(seconds, 1),
        "machine": machine(),
        "date": today(),
    }


def uses(reached: Closure, package: str) -> bool:
    """Whether the reached code imports `package` (numpy always counts)."""
    return package == "numpy" or package in reached.external


def today() -> str:
    """Date in UTC, as 2026-11-21."""
    return datetime.now(UTC).date().isoformat()


def footer(*, seed: int | None = None, **live: Any) -> None:
    """Show the provenance line of the running notebook, as the last cell's output.

    Parameters
    ----------
    seed : int, optional
        The live variable, not what some metadata says.
    **live
        Further live values worth showing, such as `data=logs.content_hash`.
    """
    show(footer_items(seed=seed, **live))


def footer_items(*, seed: int | None = None, **live: Any) -> list[str]:
    """The parts of the provenance line, from live variables and what the runner told this kernel."""
    run = _run_context()
    loaded = versions(package for package in VERSIONED if package in sys.modules)
    return [
        _code_text(run),
        commit_text(run["commit"], run["dirty"]) if run else commit_text(*commit(Path.cwd())),
        *([] if seed is None else [f"seed {seed}"]),
        *(f"{name.replace('_', ' ')} {value}" for name, value in live.items()),
        *(f"{package} {version}" for package, version in loaded.items()),
        machine(),
        *([wall_text(time.time() - run["started"])] if run else []),
        *([f"profile {run['profile']}"] if run.get("profile") else []),
        today(),
    ]


def _run_context() -> dict[str, Any]:
    """What `fedmorl run` or `fedmorl book` told this kernel; empty anywhere else."""
    return json.loads(os.environ.get(RUN_VARIABLE, "{}"))


def _code_text(run: dict[str, Any]) -> str:
    if run:
        return f"code {run['code']}"
    notebook = Path(os.environ.get("JPY_SESSION_NAME", ""))
    if notebook.suffix == ".ipynb" and notebook.is_file():
        return f"code {code_hash(notebook)} as last saved"
    return "code hash not known in this session"


def wall_text(seconds: float) -> str:
    """`24 s` up to two minutes, then `25 min`, then `3.2 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def show(items: list[str]) -> None:
    """Display the line as HTML in a notebook, print it elsewhere."""
    text = " · ".join(items)
    if "IPython" in sys.modules:
        from IPython import get_ipython
        from IPython.display import display

        if get_ipython() is not None:
            display({"text/plain": text, "text/html": footer_html(items)}, raw=True)
            return
    print(text)


def footer_html(items: list[str]) -> str:
    """The line as a paragraph of HTML."""
    return f"{FOOTER_START}{html.escape(' · '.join(items))}</p>"
