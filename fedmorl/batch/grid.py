"""A sweep file: which notebook, which parameters, how often. Everything in it is checked before anything runs.

experiment: baselines_saturated       # notebooks/experiments/NAME.ipynb; by default the file's own name
parameters: {n_slots: 10_000_000}     # the same for every run
grid:                                 # every combination of these
  access: [ac_vo, ac_vi, ac_be]
  cw_min: [7, 15]
zip: {alpha: [0.1, 0.2], beta: [1, 2]}    # side by side: 0.1 with 1, 0.2 with 2
runs: [{access: csma_ca, cw_min: 7}]  # and these, written out (without `grid` and `zip`: these alone)
seeds: 10                             # 0 to 9, or a list; the parameter `seed`
profiles:                             # what differs; parameters and grid one by one, the rest as a whole
  quick: {parameters: {n_slots: 1_000_000}, seeds: 3}
  paper: {}
"""

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from fedmorl import identity
from fedmorl.closure import Closure, code_cells
from fedmorl.identity import Key
from fedmorl.notebook import Parameter, RunError, checked, parameters_of, reached_by, read_source
from fedmorl.strict_yaml import read_yaml

FOLDER = Path("notebooks/sweeps")
EXPERIMENTS = Path("notebooks/experiments")
MAX_UNASKED = 10_000  # more runs than this want a `--yes`

_SECTIONS = ("experiment", "parameters", "grid", "zip", "runs", "seeds", "profiles")
_OVERLAID = ("parameters", "grid", "zip", "runs", "seeds")


@dataclass(frozen=True)
class Run:
    """One run that a sweep asks for: the parameters given, and everything that its rows depend on."""

    given: dict[str, Any]
    key: Key = field(repr=False)

    @cached_property
    def id(self) -> str:
        """The run's name: a hash of `key`."""
        return identity.run_id(self.key)

    @property
    def seed(self) -> Any:
        return self.given.get("seed")


@dataclass(frozen=True)
class Sweep:
    """One sweep file in one profile."""

    root: Path
    path: Path
    profile: str
    experiment: str
    given: tuple[dict[str, Any], ...] = field(repr=False)

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def source(self) -> Path:
        """The experiment notebook."""
        return self.root / EXPERIMENTS / f"{self.experiment}.ipynb"

    @property
    def table(self) -> Path:
        """Where `fedmorl collect` writes: results/NAME.csv for the paper profile, else results/PROFILE/NAME.csv."""
        folder = self.root / "results"
        return (folder if self.profile in ("", "paper") else folder / self.profile) / f"{self.name}.csv"

    @property
    def store(self) -> Path:
        """Where executed notebooks go; sweeps over one experiment share it, and so their runs."""
        return self.root / "_build" / "runs" / "experiments" / self.experiment

    @cached_property
    def known(self) -> dict[str, Parameter]:
        return parameters_of(read_source(self.source), self.source.relative_to(self.root))

    @cached_property
    def reached(self) -> Closure:
        return reached_by(self.source)

    @cached_property
    def runs(self) -> list[Run]:
        """The runs in the order of the file, each with its key."""
        folder = self.source.parent
        shared = identity.key(self.reached, {}, folder, self.root)
        return [Run(given, identity.with_parameters(shared, given, folder, self.root)) for given in self.given]

    @cached_property
    def _varied(self) -> list[str]:
        """Parameters that are not the same in all runs."""
        first = self.given[0]
        return [name for given in self.given for name in given if given[name] != first.get(name, given)]

    def words(self, run: Run) -> str:
        """A run as a person says it, by what tells it from the others: `access=ac_vo, seed=3`."""
        varied = set(self._varied) or set(run.given)
        return words({name: value for name, value in run.given.items() if name in varied})


def read_sweep(root: Path, path: Path, profile: str | None = None, yes: bool = False) -> Sweep:
    """Read and check a sweep file.

    `profile` is one of the file's; None takes `quick` where there is one, and is the only choice where the file
    has none. Raises RunError, one sentence, for anything that a person can put right.
    """
    path = _inside(root, path, "the sweep file")
    text = read_yaml(path)
    where = path.relative_to(root).as_posix()
    if not isinstance(text, dict):
        raise RunError(f"{where} must map {', '.join(_SECTIONS)} to values")
    _refuse_unknown(text, _SECTIONS, where)
    chosen, profile = _overlaid(text, profile, where)
    experiment = _experiment(root, text.get("experiment", path.stem), where)
    count = _count(chosen, where)
    if count > MAX_UNASKED and not yes:
        raise RunError(f"{where} asks for {count:,} runs; pass --yes if you mean it")
    sweep = Sweep(root, path, profile, experiment, tuple(_expand(chosen)))
    return _checked(sweep, where)


def _checked(sweep: Sweep, where: str) -> Sweep:
    """The sweep with every run's parameters in their types; unknown ones, wrong types and repeats are refused."""
    fitted = tuple(checked(given, sweep.known, where) for given in sweep.given)
    seen: dict[str, dict[str, Any]] = {}
    for given in fitted:
        _refuse_outside(given, sweep.root, where)
        name = repr(sorted(given.items()))
        if name in seen:
            raise RunError(f"{where} asks twice for the run {words(given)}")
        seen[name] = given
    if not any("emit(" in cell for cell in code_cells(sweep.source)):
        raise RunError(f"{EXPERIMENTS}/{sweep.experiment}.ipynb emits no rows; end it with emit(...) from fedmorl.rows")
    return Sweep(sweep.root, sweep.path, sweep.profile, sweep.experiment, fitted)


def words(given: dict[str, Any]) -> str:
    """A run's parameters as a person says them: `access=ac_vo, seed=3`."""
    return ", ".join(f"{name}={value}" for name, value in given.items()) or "(defaults)"


# --- sections and profiles ---------------------------------------------------------------------------------


def _overlaid(text: dict[str, Any], profile: str | None, where: str) -> tuple[dict[str, Any], str]:
    """The sections with the profile's differences, and the profile's name ("" where the file has none)."""
    profiles = _mapping(text, "profiles", where)
    if profile is None:
        profile = "quick" if "quick" in profiles else next(iter(profiles), "")
    elif profile not in profiles:
        has = f"it has {', '.join(map(str, profiles))}" if profiles else "it has no profiles"
        raise RunError(f"{where} has no profile {profile!r}; {has}")
    for name, overlay in profiles.items():
        if overlay is not None and not isinstance(overlay, dict):
            raise RunError(f"{where}: profile {name} must map sections to values, got {overlay!r}")
        _refuse_unknown(overlay or {}, _OVERLAID, f"{where}: profile {name}")
    sections = {name: text[name] for name in _OVERLAID if text.get(name) is not None}
    for name, value in (profiles.get(profile) or {}).items():
        merged = name in ("parameters", "grid") and isinstance(value, dict)
        sections[name] = _mapping(sections, name, where) | value if merged else value
    return sections, profile


def _experiment(root: Path, name: Any, where: str) -> str:
    if not isinstance(name, str):
        raise RunError(f"{where}: experiment must be the name of a notebook in {EXPERIMENTS}, got {name!r}")
    name = name.removeprefix(f"{EXPERIMENTS}/").removesuffix(".ipynb")
    path = _inside(root, root / EXPERIMENTS / f"{name}.ipynb", f"{where}: experiment")
    if not path.is_relative_to(root / EXPERIMENTS):
        raise RunError(f"{where}: the experiment {name} must lie in {EXPERIMENTS}")
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in (root / EXPERIMENTS).glob("*.ipynb"))) or "none"
        raise RunError(f"{where}: there is no notebook {EXPERIMENTS}/{name}.ipynb; there is {there}")
    return name


def _mapping(text: dict[str, Any], section: str, where: str) -> dict[str, Any]:
    value = text.get(section) or {}
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise RunError(f"{where}: {section} must map names to values, got {value!r}")
    return value


def _lists(sections: dict[str, Any], section: str, where: str) -> dict[str, list[Any]]:
    """A section that maps parameters to non-empty lists."""
    found = _mapping(sections, section, where)
    for name, values in found.items():
        if not isinstance(values, list) or not values:
            raise RunError(f"{where}: {section}.{name} must be a list of values, got {values!r}")
    return found


def _seeds(sections: dict[str, Any], where: str) -> list[int] | None:
    """The seeds, or None where the file names none."""
    seeds = sections.get("seeds")
    if seeds is None:
        return None
    if isinstance(seeds, int) and not isinstance(seeds, bool) and seeds >= 1:
        return list(range(seeds))
    whole = isinstance(seeds, list) and seeds and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not whole:
        raise RunError(f"{where}: seeds must be a number of seeds or a list of them, got {seeds!r}")
    return seeds


def _rows_of_runs(sections: dict[str, Any], where: str) -> list[dict[str, Any]]:
    runs = sections.get("runs") or []
    if not isinstance(runs, list) or not all(isinstance(run, dict) for run in runs):
        raise RunError(f"{where}: runs must be a list of parameters, such as [{{seed: 3}}], got {runs!r}")
    return runs


def _zipped(sections: dict[str, Any], where: str) -> list[dict[str, Any]]:
    lists = _lists(sections, "zip", where)
    lengths = {name: len(values) for name, values in lists.items()}
    if len(set(lengths.values())) > 1:
        raise RunError(f"{where}: the lists of zip must be of one length, got {lengths}")
    return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]


def _count(sections: dict[str, Any], where: str) -> int:
    """How many runs the sections ask for, without writing them out; also where their shapes are checked."""
    _mapping(sections, "parameters", where)
    grid, zipped, runs = _lists(sections, "grid", where), _zipped(sections, where), _rows_of_runs(sections, where)
    seeds = _seeds(sections, where)
    _refuse_overlap(grid, zipped, seeds, where)
    combined = math.prod(len(values) for values in grid.values()) * (len(zipped) or 1)
    points = (combined if grid or zipped or not runs else 0) + len(runs)
    return points * len(seeds or [0])


def _refuse_overlap(grid: dict[str, Any], zipped: list[dict[str, Any]], seeds: Any, where: str) -> None:
    twice = sorted(set(grid) & set(zipped[0] if zipped else {}))
    if twice:
        raise RunError(f"{where}: {twice[0]} is in grid and in zip; keep one")
    if seeds is not None and ("seed" in grid or (zipped and "seed" in zipped[0])):
        raise RunError(f"{where}: seeds are given twice, as `seeds` and as the parameter `seed`; keep one")


def _expand(sections: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The parameters of each run, seeds innermost."""
    grid = sections.get("grid") or {}
    zipped, runs = _zipped(sections, ""), sections.get("runs") or []
    fixed = sections.get("parameters") or {}
    seeds = _seeds(sections, "")
    points: Iterator[dict[str, Any]] = iter(())
    if grid or zipped or not runs:
        products = (dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values()))
        points = (product | row for product in products for row in (zipped or [{}]))
    for point in itertools.chain(points, runs):
        for seed in seeds if seeds is not None else [None]:
            yield fixed | point | ({} if seed is None else {"seed": seed})


# --- refusals ------------------------------------------------------------------------------------------------


def _refuse_unknown(given: dict[Any, Any], known: tuple[str, ...], where: str) -> None:
    unknown = [str(name) for name in given if name not in known]
    if unknown:
        raise RunError(f"{where} has the unknown section {', '.join(unknown)}; it may have {', '.join(known)}")


def _inside(root: Path, path: Path, what: str) -> Path:
    """The absolute path, if it lies in the project."""
    found = path.resolve()
    if not found.is_relative_to(root.resolve()):
        raise RunError(f"{what} {path} lies outside the project {root}; copy it into the project")
    return root / found.relative_to(root.resolve())


def _refuse_outside(given: dict[str, Any], root: Path, where: str) -> None:
    """Refuse a parameter that is a path which leaves the project: its content would not be tracked."""
    for name, value in given.items():
        if isinstance(value, str) and re.match(r"(/|~|[A-Za-z]:\\)|.*(^|/)\.\.(/|$)", value):
            target = Path(value).expanduser()
            spots = [target] if target.is_absolute() else [root / value, root / EXPERIMENTS / value]
            if not any(spot.resolve().is_relative_to(root.resolve()) for spot in spots):
                raise RunError(f"{where}: parameter {name} leads outside the project: {value}")
