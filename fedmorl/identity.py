"""What the outputs of a run depend on, one hash a thing, and the run's name that follows from them.

A *key* has five kinds of entries: the code cells, each module they reach, the parameters, the pinned versions
of the packages they import, and the data files they read. Equal keys, equal outputs. Where two keys differ,
`differences` says in what; a run's *id* is one hash of the whole key.
"""

import json
import os
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from fedmorl.closure import Closure, short_hash

Key = dict[str, dict[str, Any]]

DATA_FOLDERS = ("results", "_build/data")  # what a run may read; anything else is not tracked
_FILE_NAME = re.compile(r"(?=.*\w)[\w./ ~+=,@-]{1,200}")
_DISTRIBUTIONS = {"yaml": "pyyaml", "bs4": "beautifulsoup4", "mpl_toolkits": "matplotlib", "skimage": "scikit-image"}


def key(reached: Closure, values: dict[str, Any], folder: Path, root: Path) -> Key:
    """The key of a run of the code in `reached` with the parameters `values`.

    `folder` is the notebook's, from which the file names written in it are seen; `root` is the project's.
    """
    return {
        "cells": {"code cells": reached.cells},
        "parameters": {name: json.dumps(value, sort_keys=True) for name, value in sorted(values.items())},
        "module": dict(reached.modules),
        "pins": pins(reached.external, root),
        "data file": data_hashes([*reached.literals, *strings(values)], folder, root),
    }


def with_parameters(shared: Key, values: dict[str, Any], folder: Path, root: Path) -> Key:
    """`shared`, the key of a run with its defaults, as the key of a run with the parameters `values`."""
    texts = {name: json.dumps(value, sort_keys=True) for name, value in sorted(values.items())}
    data = shared["data file"] | data_hashes(strings(values), folder, root)
    return shared | {"parameters": texts, "data file": data}


def code_hash(key: Key) -> str:
    """Hash of code cells and modules: `Closure.code_hash`."""
    return short_hash(json.dumps([key["cells"]["code cells"], key["module"]], sort_keys=True))


def part_hash(key: Key, kind: str) -> str:
    """Hash of one kind of entries; empty if there are none."""
    return short_hash(json.dumps(key[kind], sort_keys=True)) if key[kind] else ""


def run_id(key: Key) -> str:
    """The name of a run, 12 hexadecimal digits."""
    parts = [part_hash(key, "parameters"), code_hash(key), part_hash(key, "data file"), part_hash(key, "pins")]
    return short_hash(json.dumps(parts))


def differences(old: Key, new: Key) -> list[str]:
    """What changed between two keys, in a few words each: `module fedmorl.dca.ring changed`."""
    words = []
    for kind in new:
        before, after = old.get(kind, {}), new[kind]
        for name in sorted(before.keys() | after.keys()):
            what = name if kind == "cells" else f"{kind} {name}"
            if name not in before:
                words.append(f"{what} is new")
            elif name not in after:
                words.append(f"{what} is gone")
            elif before[name] != after[name]:
                words.append(f"{what} changed")
    return words


# --- pinned versions -------------------------------------------------------------------------------------


def pins(imported: Iterable[str], root: Path) -> dict[str, str]:
    """Pinned version of each imported package; what `constraints.txt` does not name is left out.

    Only direct imports count, so the answer needs no installed package and is the same on every machine, and a
    new pin for something that a run never imports does not make its rows stale.
    """
    versions = _pinned(root / "constraints.txt")
    names = {_canonical(_DISTRIBUTIONS.get(name, name)) for name in imported}
    return {name: versions[name] for name in sorted(names & versions.keys())}


def _pinned(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    pairs = (line.partition("==") for line in lines if "==" in line)
    return {_canonical(name): version.strip() for name, _, version in pairs}


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


# --- data files ------------------------------------------------------------------------------------------


def data_hashes(texts: Iterable[str], folder: Path, root: Path) -> dict[str, str]:
    """Hash of each data file that the strings name, by its path in the project."""
    return {path.relative_to(root).as_posix(): file_hash(path) for path in files_read(texts, folder, root)}


def files_read(texts: Iterable[str], folder: Path, root: Path) -> list[Path]:
    """Files in `DATA_FOLDERS` that the strings of a run name.

    A string counts as seen from `folder`, from the project and from `results/`. A folder, which a string names with
    a slash, stands for all its files, unless a string names some of them.
    """
    named: set[Path] = set()
    bases = (folder, root, root / "results")
    for text in texts:
        if _FILE_NAME.fullmatch(text):
            spots = (os.path.join(base, text) for base in bases)
            is_there = os.path.exists if "/" in text else os.path.isfile  # a plain word is no folder
            named.update(Path(spot).resolve() for spot in spots if is_there(spot))
    found = (path for base in DATA_FOLDERS for path in _inside(named, root / base))
    return sorted(root / path.relative_to(root.resolve()) for path in found)


def _inside(named: set[Path], base: Path) -> set[Path]:
    inside = {path for path in named if path.is_relative_to(base.resolve()) and path.exists()}
    files = {path for path in inside if path.is_file()}
    for path in inside - files:
        if not any(file.is_relative_to(path) for file in files):
            files.update(file for file in path.rglob("*") if file.is_file())
    return files


def file_hash(path: Path) -> str:
    """Hash of a file's bytes, 12 hexadecimal digits; read once as long as size and time stay the same."""
    stat = path.stat()
    return _file_hash(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4096)
def _file_hash(path: Path, size: int, mtime_ns: int) -> str:
    import hashlib

    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def strings(value: Any) -> list[str]:
    """Every string in a parameter's value, or in a mapping of parameters."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for child in value.values() for text in strings(child)]
    return [text for child in value for text in strings(child)] if isinstance(value, list | tuple) else []
