"""Files that other projects wrote: read as plain numbers, never unpickled, and refused by file and field.

The converters `formats_pymarl`, `formats_madt` and `formats_continuous` know what the numbers mean.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fedmorl.data.dataset import DatasetError
from fedmorl.data.files import _array, _opened


@contextmanager
def refusals_of(path: Path) -> Iterator[None]:
    """Put the file's name before the sentence of every DatasetError inside."""
    try:
        yield
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from None


def folder_of(path: Path | str) -> Path:
    """`path` as a folder; DatasetError if it is none."""
    folder = Path(path)
    if not folder.is_dir():
        raise DatasetError(f"{folder} is no folder; name the one that the files of the log are in")
    return folder


def hdf5_arrays(path: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """The root arrays `names` of an HDF5 file; others in it are left alone."""
    with open(path, "rb"):  # the file system's own words for a file that is missing or may not be read
        pass
    with _opened(path) as file:
        missing = [name for name in names if name not in file]
        if missing:
            raise DatasetError(f"{', '.join(missing)} missing, so this is no file of that format, or not a whole one")
        return {name: _array(file, name) for name in names}


def npy_array(path: Path) -> np.ndarray:
    """The numbers in a .npy file; DatasetError if it is missing, damaged, or would have to be unpickled."""
    if not path.is_file():
        raise DatasetError(f"{path.name} missing, so this is no folder of that format, or not a whole one")
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError):  # numpy's words for pickled objects, a damaged header and too few bytes
        raise DatasetError(f"{path.name} is damaged, or holds pickled objects, which are not read") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
        raise DatasetError(f"{path.name} must hold one array of numbers")
    return array


def check_shapes(
    arrays: Mapping[str, np.ndarray], letters: Mapping[str, str], known: Mapping[str, int] | None = None
) -> dict[str, int]:
    """The size behind each letter of {"obs": "ETNO", ...}; a digit stands for itself, `known` letters are given.

    DatasetError names the first array whose number of axes, or whose size of one, is not that of those before it.
    """
    sizes = dict(known or {})
    for name, word in letters.items():
        shape = arrays[name].shape
        wanted = [int(letter) if letter.isdigit() else sizes.get(letter) for letter in word]
        if len(shape) != len(word) or any(w not in (None, got) for w, got in zip(wanted, shape, strict=True)):
            told = ", ".join(letter if w is None else str(w) for letter, w in zip(word, wanted, strict=True))
            raise DatasetError(f"{name} must have shape ({told}); got {shape}")
        if 0 in shape:
            raise DatasetError(f"{name} is empty: its shape is {shape}")
        sizes |= dict(zip(word, shape, strict=True))
    return sizes


def check_time_limit(time_limit: int) -> None:
    """DatasetError unless it is a number of steps."""
    if not isinstance(time_limit, int | np.integer) or time_limit < 1:
        raise DatasetError(f"time_limit must be 1 step or more; got {time_limit!r}")


def column(array: np.ndarray, name: str) -> np.ndarray:
    """(T,) from (T,) or (T, 1), for files that may have been written either way."""
    if array.ndim not in (1, 2) or array.shape[1:] not in ((), (1,)):
        raise DatasetError(f"{name} must have shape (T,) or (T, 1); got {array.shape}")
    return array.reshape(len(array))


def flags(array: np.ndarray, name: str) -> np.ndarray:
    """`array` as bool; DatasetError if it holds anything but 0 and 1."""
    if not ((array == 0) | (array == 1)).all():
        raise DatasetError(f"{name} must hold 0 and 1 only")
    return array == 1


def one_state(states: np.ndarray) -> tuple[np.ndarray, str]:
    """(..., N, S) states, one an agent -> (..., S) the first agent's if all are equal, else (..., N S) joined.

    The second value says which, in a word for the log's `behaviour`.
    """
    if (states == states[..., :1, :]).all():
        return states[..., 0, :], "shared"
    return states.reshape(*states.shape[:-2], -1), "joined"


def step_ends(lengths: np.ndarray, ended: np.ndarray) -> dict[str, Any]:
    """The fields of trajectories that follow from how long episodes are and which ended by themselves."""
    last = np.arange(lengths.max()) == lengths[:, None] - 1
    return {
        "terminated": last & ended[:, None],
        "truncated": last & ~ended[:, None],
        "lengths": lengths,
        "episode_seeds": np.arange(len(lengths)),
        "behaviour_ids": np.zeros(len(lengths), int),
    }


def converted_from(source: str, name: str, behaviour: str | None) -> dict[str, Any]:
    """Who acted, for the log's `behaviours`; by default who the file or folder is named after."""
    return {"name": name if behaviour is None else behaviour, "source": f"converted:{source}"}
