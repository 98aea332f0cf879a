"""Checkpoints: `round_00012.safetensors` holds the arrays, `round_00012.json` all else, and nothing is unpickled.

Both are written under a temporary name in the same folder, flushed to the disk and renamed; the JSON comes last, so
its presence means that the round is complete. A run resumes from the newest complete round and ends bitwise where
an uninterrupted run ends. The last two rounds are kept.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedmorl.federated.records import ServerState, State, digest

FORMAT = 1
KEPT_ROUNDS = 2
LOG = "the log of client "  # of the identity: followed by the id


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Everything that the next round depends on, and the story so far."""

    server: ServerState
    carried: Mapping[int, State] = field(default_factory=dict)  # what clients keep between rounds
    history: list[dict[str, Any]] = field(default_factory=list)  # one plain mapping a round


def write(folder: Path, checkpoint: Checkpoint, identity: Mapping[str, Any]) -> None:
    """Write the checkpoint of a round; an interruption at any instant leaves the last complete one valid."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = _flat(checkpoint)
    stem = folder / f"round_{checkpoint.server.round:05d}"
    record = {
        "round": checkpoint.server.round,
        "digest": digest(arrays),
        "identity": dict(identity),
        "history": checkpoint.history,
    }
    text = json.dumps(record | {"seal": _seal(record)}, indent=1)
    write_whole(stem.with_suffix(".safetensors"), save({k: np.array(v, order="C") for k, v in arrays.items()}))
    write_whole(stem.with_suffix(".json"), text.encode())
    for old in _complete(folder)[:-KEPT_ROUNDS]:
        old.unlink()
        old.with_suffix(".safetensors").unlink(missing_ok=True)


def read(folder: Path, identity: Mapping[str, Any]) -> Checkpoint | None:
    """The newest complete checkpoint in the folder; None if there is none.

    A log is compared where both sides know it: a client elsewhere may have been silent.

    Raises
    ------
    ValueError
        In one sentence that names the file: if it is torn or edited, or was written by other settings, other
        clients or other code.
    """
    complete = _complete(folder)
    if not complete:
        return None
    path = complete[-1]
    record = _read_json(path)
    _compare(path, record["identity"], identity)
    arrays = _read_arrays(path.with_suffix(".safetensors"), record["digest"])
    return _unflat(arrays, record)


def last_round(folder: Path) -> int:
    """The newest complete round in the folder; 0 if there is none."""
    complete = _complete(folder)
    return int(complete[-1].stem.removeprefix("round_")) if complete else 0


def plain(value: Any) -> Any:
    """As JSON gives it back: text keys, lists, and None for a number that is not finite."""
    if isinstance(value, Mapping):
        return {str(key): plain(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [plain(child) for child in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


# --- files -----------------------------------------------------------------------------------------------


def _complete(folder: Path) -> list[Path]:
    """The JSON files of the complete rounds, oldest first."""
    names = sorted(folder.glob("round_*.json")) if folder.is_dir() else []
    return sorted(path for path in names if re.fullmatch(r"round_\d{5,}", path.stem))


def write_whole(path: Path, content: bytes) -> None:
    """The file, flushed and renamed into place: nobody ever sees a part of it."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        _refuse(path, "is not JSON")
    if not isinstance(record, dict) or record.pop("seal", None) != _seal(record):
        _refuse(path, "was torn or edited: its seal does not fit")
    return record


def _seal(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _read_arrays(path: Path, expected: str) -> State:
    try:
        arrays: State = load(path.read_bytes())
    except FileNotFoundError:
        _refuse(path, "is missing")
    except SafetensorError as error:
        _refuse(path, f"is torn ({error})")
    if digest(arrays) != expected:
        _refuse(path, "does not have the digest that its JSON file states")
    return arrays


def _compare(path: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    for name in sorted({*theirs, *ours}):
        unknown = name.startswith(LOG) and not (name in theirs and name in ours)
        if not unknown and theirs.get(name) != ours.get(name):
            raise ValueError(
                f"{path} was written with {name} = {theirs.get(name)} and this run has {ours.get(name)}; "
                "resume with the same settings and code, or choose another folder"
            )


def _refuse(path: Path, what: str) -> NoReturn:
    raise ValueError(f"checkpoint {path} {what}; delete the files of that round to resume from the one before")


# --- arrays under one flat set of names ------------------------------------------------------------------


def _flat(checkpoint: Checkpoint) -> State:
    """state/NAME, opt/KIND/NAME, client/ID/NAME."""
    server = checkpoint.server
    flat = {f"state/{k}": v for k, v in server.state.items()}
    flat |= {f"opt/{kind}/{k}": v for kind, state in server.opt.items() for k, v in state.items()}
    return flat | {f"client/{i}/{k}": v for i, state in checkpoint.carried.items() for k, v in state.items()}


def _unflat(arrays: State, record: Mapping[str, Any]) -> Checkpoint:
    state: dict[str, np.ndarray] = {}
    opt: dict[str, dict[str, np.ndarray]] = {}
    carried: dict[int, dict[str, np.ndarray]] = {}
    for flat_name in sorted(arrays):
        kind, _, name = flat_name.partition("/")
        if kind == "state":
            state[name] = arrays[flat_name]
            continue
        owner, _, name = name.partition("/")
        group = opt.setdefault(owner, {}) if kind == "opt" else carried.setdefault(int(owner), {})
        group[name] = arrays[flat_name]
    server = ServerState(round=record["round"], state=state, opt=opt)
    return Checkpoint(server=server, carried=carried, history=record["history"])
