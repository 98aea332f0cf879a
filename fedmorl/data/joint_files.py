"""Joint transitions as one HDF5 file: written whole or not at all, refused in one sentence if it is not whole."""

import json
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np

import fedmorl
from fedmorl.data.dataset import DatasetError
from fedmorl.data.files import CHUNK_ROWS, GZIP_LEVEL, _array, _opened, _sync
from fedmorl.data.joint_transitions import ARRAYS, ATTRIBUTES, SCHEMA, JointTransitions
from fedmorl.data.trajectory_files import _attribute


def write(log: JointTransitions, path: Path, gzip_level: int = GZIP_LEVEL) -> None:
    """Write `log` beside `path`, make sure that it is on the disk, and only then give it its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with h5py.File(temporary, "w") as file:
            for name, value in (log.attributes() | {"content_sha256": log.content_hash}).items():
                file.attrs[name] = json.dumps(value, sort_keys=True)
            file.attrs["versions"] = json.dumps({"fedmorl": fedmorl.__version__, "h5py": h5py.__version__})
            for name, array in log.arrays().items():
                chunks = (min(len(array), CHUNK_ROWS), *array.shape[1:])
                packed: dict[str, Any] = {"compression": "gzip", "compression_opts": gzip_level, "shuffle": True}
                file.create_dataset(name, data=array, chunks=chunks, **packed)
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path) -> JointTransitions:
    """The transitions in `path`, checked in full, their content hash included."""
    with open(path, "rb"):  # the file system's own words for a file that is missing or may not be read
        pass
    try:
        with _opened(path) as file:
            if (schema := _attribute(file, "schema")) != SCHEMA:
                raise DatasetError(f"schema is {schema!r} where {SCHEMA!r} is read")
            missing = [name for name in ARRAYS if name not in file]
            if missing:
                raise DatasetError(f"{', '.join(missing)} missing")
            found: dict[str, Any] = {name: _array(file, name, np.dtype(dtype)) for name, (dtype, _) in ARRAYS.items()}
            log = JointTransitions(**found, **{name: _attribute(file, name) for name in ATTRIBUTES})
            if _attribute(file, "content_sha256") != log.content_hash:
                raise DatasetError("the content hash is not the content's: the file was changed")
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from None
    return log
