"""The book's notebooks: their parameters in a profile, what their outputs depend on, and what is stale.

Outputs are cached in `_build/runs/PROFILE/`, one notebook a chapter. Its metadata keeps the *key* of the run:
one hash for each thing that the outputs depend on. A chapter is run again when its key differs, and the
difference says why.
"""

import json
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fedmorl import execute, identity
from fedmorl.closure import Closure, module_hash
from fedmorl.identity import Key
from fedmorl.notebook import Parameter, RunError, checked, command, parameters_of, reached_by, read_source
from fedmorl.strict_yaml import read_yaml


@dataclass(frozen=True)
class Chapter:
    """One notebook of the book in one profile; `name` is its path in `notebooks/`, no suffix."""

    root: Path
    name: str
    profile: str
    given: dict[str, Any]

    @property
    def path(self) -> Path:
        """The source, as a path relative to the project."""
        return Path("notebooks") / f"{self.name}.ipynb"

    @property
    def source(self) -> Path:
        return self.root / self.path

    @property
    def cached(self) -> Path:
        """The executed notebook, which may be missing or stale."""
        return self.root / "_build" / "runs" / self.profile / f"{self.name}.ipynb"

    @cached_property
    def parameters(self) -> dict[str, Parameter]:
        return parameters_of(read_source(self.source), self.path)

    @cached_property
    def values(self) -> dict[str, Any]:
        """The profile's parameters in the types of the notebook's defaults."""
        where = f"notebooks/profiles/{self.profile}.yml: {self.path.as_posix()}"
        return checked(self.given, self.parameters, where)

    @cached_property
    def closure(self) -> Closure:
        return reached_by(self.source)

    @cached_property
    def key(self) -> Key:
        """A hash for each thing that the outputs depend on; equal keys, equal outputs."""
        key = identity.key(self.closure, self.values, self.source.parent, self.root)
        key["module"] |= {name: module_hash(name) for name in ("fedmorl.provenance", "fedmorl.rows")}  # what it shows
        return key

    @property
    def metadata(self) -> dict[str, Any]:
        """What the cached run says about itself: `key` and `provenance`; empty if there is no usable run."""
        try:
            return json.loads(self.cached.read_text(encoding="utf-8"))["metadata"]["fedmorl"]
        except (OSError, ValueError, KeyError):
            return {}

    def stale(self) -> str:
        """Why the chapter must run, in a few words; empty if its cached outputs are current."""
        old = self.metadata.get("key")
        if old is None:
            return "never run"
        return "; ".join(identity.differences(old, self.key))

    def run(self, kernels: execute.Kernels, on_cell: Callable[[], None]) -> dict[str, Any]:
        """Execute the chapter into the cache."""
        try:
            return execute.run(
                self.source, self.cached, self.given, root=self.root, profile=self.profile,
                kernels=kernels, on_cell=on_cell, extra={"key": self.key},
            )  # fmt: skip
        except RunError as error:
            text = str(error).replace(f"{self.root}/", "")
            if kernels.stopped.is_set():
                raise RunError(text) from None
            raise RunError(f"{text}; repeat it alone: {command(self.path, self.values)}") from None


# --- profiles and the table of contents -----------------------------------------------------------------


def documents(root: Path) -> list[str]:
    """Pages that `_toc.yml` lists, without suffix, in order."""
    toc = read_yaml(root / "_toc.yml")
    if not isinstance(toc, dict) or "root" not in toc:
        raise RunError("_toc.yml must be a jb-book with a `root` page")
    found = [toc["root"], *_files(toc)]
    names = [str(name).removesuffix(".md").removesuffix(".ipynb") for name in found]
    for name in names:
        if source_of(root, name) is None:
            raise RunError(f"_toc.yml lists {name}, and there is no {name}.md or {name}.ipynb")
    return names


def _files(node: Any) -> list[str]:
    """Every `file:` entry below a node of the table of contents."""
    if isinstance(node, list):
        return [name for child in node for name in _files(child)]
    if not isinstance(node, dict):
        return []
    own = [node["file"]] if "file" in node else []
    return own + [name for child in node.values() for name in _files(child)]


def source_of(root: Path, name: str) -> Path | None:
    """The source file of a page, or None."""
    paths = (root / f"{name}{suffix}" for suffix in (".ipynb", ".md"))
    return next((path for path in paths if path.is_file()), None)


def chapters(root: Path, profile: str) -> list[Chapter]:
    """The notebooks of the book with the profile's parameters; a misspelt chapter or parameter is refused."""
    pages = [name for name in documents(root) if (root / f"{name}.ipynb").is_file()]
    outside = [name for name in pages if not name.startswith("notebooks/")]
    if outside:
        raise RunError(f"_toc.yml: the notebook {outside[0]}.ipynb must lie in notebooks/")
    names = [name.removeprefix("notebooks/") for name in pages]
    given = read_profiles(root, names, profile)
    found = [Chapter(root, name, profile, given.get(name) or {}) for name in names]
    for chapter in found:
        _ = chapter.values  # refuse a misspelt parameter before anything runs
    return found


def read_profiles(root: Path, names: list[str], profile: str) -> dict[str, dict[str, Any]]:
    """Parameters by chapter in `profile`; all profiles must speak of the same chapters and parameters.

    The same keys mean that the quick run proves that the paper run will start.
    """
    folder = root / "notebooks" / "profiles"
    files = {path.stem: path for path in sorted(folder.glob("*.yml"))}
    if profile not in files:
        raise RunError(f"there is no profile {profile!r} in notebooks/profiles; there is {', '.join(files) or 'none'}")
    parameters = {name: _profile(path, names) for name, path in files.items()}
    keys = {name: {(c, p) for c, given in table.items() for p in given} for name, table in parameters.items()}
    for name in files:
        for chapter, parameter in sorted(keys[profile] ^ keys[name]):
            has, lacks = (profile, name) if (chapter, parameter) in keys[profile] else (name, profile)
            raise RunError(f"profile {has} sets {parameter} of {chapter} and profile {lacks} does not; set it in both")
    return parameters[profile]


def _profile(path: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """One profile file as chapter -> parameters, its shape and its chapters' names checked."""
    table = read_yaml(path) or {}
    where = f"notebooks/profiles/{path.name}"
    if not isinstance(table, dict) or not all(given is None or isinstance(given, dict) for given in table.values()):
        raise RunError(f"{where} must map each chapter to its parameters")
    unknown = sorted(set(table) - set(names))
    if unknown:
        raise RunError(f"{where} names the chapter {unknown[0]}, which _toc.yml does not list")
    return {chapter: given or {} for chapter, given in table.items()}


# --- running ------------------------------------------------------------------------------------------------


def run_all(waiting: list[Chapter], jobs: int, on_cell: Callable[[], None], on_done: Callable[[Chapter], None]) -> None:
    """Run chapters side by side; all are tried, and the failures come in one RunError.

    Threads drive papermill, since each run has a process of its own anyway: the kernel. Worker processes of a
    Dask `LocalCluster` were measured beside them, four small notebooks on two cores: 7.0 s against 4.6 s. For
    a handful of chapters on one machine Dask buys nothing; sweeps, and runs on many machines, are Dask's.
    """
    kernels = execute.Kernels()
    slowest_first = sorted(waiting, key=lambda c: -(c.metadata.get("provenance", {}).get("seconds") or 1e9))
    failures: list[str] = []
    pool = ThreadPoolExecutor(max_workers=max(1, jobs))
    futures = {pool.submit(chapter.run, kernels, on_cell): chapter for chapter in slowest_first}
    pending: set[Future] = set(futures)
    try:
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                error = future.exception()
                if error is not None and not isinstance(error, RunError):
                    raise error
                failures += [str(error)] if error else []
                if error is None:
                    on_done(futures[future])
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        while pending:  # interrupted: a kernel that is just starting has no process to end yet
            kernels.stop()
            pending = wait(pending, timeout=0.2).not_done
    if failures:
        raise RunError("\n".join(failures))
