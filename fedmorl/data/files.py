"""A log as one HDF5 file: written whole or not at all, refused in one sentence if it is not whole.

One dataset an array, `extras/` for the additional ones, each with its unit; what they mean as root attributes,
JSON text. Nothing is unpickled, and no link that leads out of the file is followed.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

import fedmorl
from fedmorl.data.dataset import ARRAYS, ATTRIBUTES, SCHEMA, DatasetError, OfflineDataset

CHUNK_ROWS = 4096
GZIP_LEVEL = 4
EXTRA_UNITS = {
    "slots": "contention slot of the row",
    "winners": "station whose packet got through; -1 none",
    "outcomes": "0 idle, 1 another's success, 2 collision, 3 own success (ACK)",
    "global_rewards": "packets, less collisions",
    "local_rewards": "- d~ b~",
}


def write(log: OfflineDataset, path: Path, gzip_level: int = GZIP_LEVEL) -> None:
    """Write `log` beside `path`, make sure that it is on the disk, and only then give it its name."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with h5py.File(temporary, "w") as file:
            for name, value in (log.attributes() | {"content_sha256": log.content_hash}).items():
                file.attrs[name] = json.dumps(value, sort_keys=True)
            file.attrs["versions"] = json.dumps({"fedmorl": fedmorl.__version__, "h5py": h5py.__version__})
            for name, array in log.arrays().items():
                chunks = (1, *(min(n, CHUNK_ROWS) for n in array.shape[1:]))
                packed: dict[str, Any] = {"compression": "gzip", "compression_opts": gzip_level, "shuffle": True}
                made = file.create_dataset(name, data=array, chunks=chunks, **packed)
                made.attrs["unit"] = ARRAYS[name][2] if name in ARRAYS else EXTRA_UNITS.get(name[len("extras/") :], "")
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path) -> OfflineDataset:
    """The log in `path`, checked in full, its content hash included."""
    with open(path, "rb"):  # the file system's own words for a file that is missing or may not be read
        pass
    try:
        with _opened(path) as file:
            attributes = _attributes(file)
            log = OfflineDataset(**_arrays(file), **attributes)
            _check_hash(file, log)
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from None
    return log


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        why = "is cut short" if "truncated" in str(error) else "is no HDF5 file, or a damaged one"
        raise DatasetError(f"the file {why}; copy or collect it again") from None
    with file:
        yield file


def _attributes(file: h5py.File) -> dict[str, Any]:
    values = {}
    for name in ("schema", *ATTRIBUTES):
        if name not in file.attrs:
            raise DatasetError(f"the attribute {name} is missing, so this is not a log, or not a whole one")
        try:
            values[name] = json.loads(file.attrs[name])
        except (TypeError, ValueError):
            raise DatasetError(f"the attribute {name} is not JSON text") from None
    schema = values.pop("schema")
    if schema != SCHEMA:
        raise DatasetError(f"schema is {schema!r} where {SCHEMA!r} is read; collect the log again with this version")
    for name, kind in (("scenario", dict), ("stations", list), ("observation_names", list), ("alpha", float)):
        if not isinstance(values[name], kind):
            raise DatasetError(f"the attribute {name} must be a {kind.__name__}; got {values[name]!r}")
    return values


def _arrays(file: h5py.File) -> dict[str, Any]:
    missing = [name for name in ARRAYS if name not in file]
    if missing:
        raise DatasetError(f"{', '.join(missing)} missing")
    unknown = sorted(set(file) - set(ARRAYS) - {"extras"})
    if unknown:
        raise DatasetError(f"{', '.join(unknown)} unknown; additional arrays belong into extras/")
    arrays = {name: _array(file, name, np.dtype(dtype)) for name, (dtype, _, _) in ARRAYS.items()}
    extras = {}
    if "extras" in file:
        if not isinstance(file.get("extras", getlink=True), h5py.HardLink) or not isinstance(
            file["extras"], h5py.Group
        ):
            raise DatasetError("extras must be a group inside the file")
        extras = {name: _array(file, f"extras/{name}") for name in file["extras"]}
    return arrays | {"extras": extras}


def _array(file: h5py.File, name: str, dtype: np.dtype | None = None) -> np.ndarray:
    stored = file[name] if isinstance(file.get(name, getlink=True), h5py.HardLink) else None
    if not isinstance(stored, h5py.Dataset) or stored.external or stored.is_virtual:
        raise DatasetError(f"{name} must be an array inside the file")
    if stored.dtype.kind not in "biuf" or (dtype is not None and stored.dtype != dtype):
        raise DatasetError(f"{name} must have dtype {dtype or 'of a number'}; got {stored.dtype}")
    try:
        return stored[()]
    except OSError:
        raise DatasetError(f"{name} is damaged and cannot be read; copy or collect the file again") from None


def _check_hash(file: h5py.File, log: OfflineDataset) -> None:
    try:
        written = json.loads(file.attrs["content_sha256"])
    except (KeyError, TypeError, ValueError):
        raise DatasetError("the attribute content_sha256 is missing") from None
    if written != log.content_hash:
        raise DatasetError(
            f"content_sha256 is {str(written)[:12]} and the content's is {log.content_hash[:12]}: the file was changed"
        )


def _sync(path: Path) -> None:
    """Have the system write a file or folder through to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
