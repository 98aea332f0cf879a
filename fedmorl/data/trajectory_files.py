"""Trajectories as one HDF5 file: written whole or not at all, refused in one sentence if it is not whole.

One dataset an array with its unit, `extras/` for the additional ones; what they mean as root attributes, JSON text.
Files of the channel's logs (`fedmorl.data.files`) look alike and are read by the same few functions.
"""

import json
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np

import fedmorl
from fedmorl.data.dataset import DatasetError
from fedmorl.data.files import GZIP_LEVEL, _array, _opened, _sync
from fedmorl.data.trajectories import ARRAYS, ATTRIBUTES, OPTIONAL, SCHEMA, Trajectories


def write(log: Trajectories, path: Path, gzip_level: int = GZIP_LEVEL) -> None:
    """Write `log` beside `path`, make sure that it is on the disk, and only then give it its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    units = {name: unit for name, (_, _, unit) in (ARRAYS | OPTIONAL).items()}
    try:
        with h5py.File(temporary, "w") as file:
            for name, value in (log.attributes() | {"content_sha256": log.content_hash}).items():
                file.attrs[name] = json.dumps(value, sort_keys=True)
            file.attrs["versions"] = json.dumps({"fedmorl": fedmorl.__version__, "h5py": h5py.__version__})
            for name, array in log.arrays().items():
                packed: dict[str, Any] = {"compression": "gzip", "compression_opts": gzip_level, "shuffle": True}
                made = file.create_dataset(name, data=array, chunks=(1, *array.shape[1:]), **packed)
                made.attrs["unit"] = units.get(name, "")
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path) -> Trajectories:
    """The trajectories in `path`, checked in full, their content hash included."""
    with open(path, "rb"):  # the file system's own words for a file that is missing or may not be read
        pass
    try:
        with _opened(path) as file:
            attributes = _attributes(file)
            log = Trajectories(**_arrays(file), **attributes)
            if _attribute(file, "content_sha256") != log.content_hash:
                raise DatasetError("the content hash is not the content's: the file was changed")
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from None
    return log


def schema_of(path: Path) -> str:
    """The schema that a file names itself by, to choose its reader; DatasetError if it is no log at all."""
    try:
        with _opened(path) as file:
            return str(_attribute(file, "schema"))
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from None


def _attributes(file: h5py.File) -> dict[str, Any]:
    schema = _attribute(file, "schema")
    if schema != SCHEMA:
        raise DatasetError(f"schema is {schema!r} where {SCHEMA!r} is read")
    return {name: _attribute(file, name) for name in ATTRIBUTES}


def _attribute(file: h5py.File, name: str) -> Any:
    if name not in file.attrs:
        raise DatasetError(f"the attribute {name} is missing, so this is not a log, or not a whole one")
    try:
        return json.loads(file.attrs[name])
    except (TypeError, ValueError):
        raise DatasetError(f"the attribute {name} is not JSON text") from None


def _arrays(file: h5py.File) -> dict[str, Any]:
    missing = [name for name in ARRAYS if name not in file]
    if missing:
        raise DatasetError(f"{', '.join(missing)} missing")
    unknown = sorted(set(file) - set(ARRAYS) - set(OPTIONAL) - {"extras"})
    if unknown:
        raise DatasetError(f"{', '.join(unknown)} unknown; additional arrays belong into extras/")
    known = [name for name in (*ARRAYS, *OPTIONAL) if name in file]
    arrays: dict[str, Any] = {n: _array(file, n, np.dtype((ARRAYS | OPTIONAL)[n][0])) for n in known}
    extras = file.get("extras", getlink=True)
    if extras is not None and not isinstance(extras, h5py.HardLink):
        raise DatasetError("extras must be a group inside the file")
    return arrays | {"extras": {name: _array(file, f"extras/{name}") for name in file.get("extras", {})}}
