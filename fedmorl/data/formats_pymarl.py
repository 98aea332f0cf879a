"""Public offline data in the layout of PyMARL's buffer, of StarCraft, the warehouse and grid games, as trajectories.

Letters: E episodes, T steps of the longest, N agents, O observation, A actions, S state. The files know no seeds of
episodes; `episode_seeds` is the episode's place in the file. Nothing is guessed: what a file does not tell is an
argument without a default.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedmorl.data.dataset import DatasetError
from fedmorl.data.foreign_files import (
    check_shapes,
    check_time_limit,
    converted_from,
    flags,
    folder_of,
    hdf5_arrays,
    npy_array,
    refusals_of,
    step_ends,
)
from fedmorl.data.trajectories import Trajectories

# PyMARL's arrays; X is one more than the steps of the longest
PYMARL = {
    "actions": "EXN1",
    "avail_actions": "EXNA",
    "state": "EXS",
    "obs": "EXNO",
    "filled": "EX1",
    "reward": "EX1",
    "terminated": "EX1",
}


def from_cfcql(
    path: Path | str,
    *,
    time_limit: int,
    env_id: str,
    env_version: str,
    reward_def: str = "team",
    env_kwargs: Mapping[str, Any] | None = None,
    behaviour: str | None = None,
) -> Trajectories:
    """CFCQL's file of StarCraft: one HDF5 file with the arrays of PyMARL's buffer.

    `state` (E, X, S), `obs` (E, X, N, O), `actions` (E, X, N, 1), `avail_actions` (E, X, N, A), `reward`, `terminated`
    and `filled` (E, X, 1). The last filled row of an episode is what was seen at its end, so it has filled.sum() - 1
    steps. `terminated` is set where the battle ended; an episode without it met the time limit. The probabilities of
    actions, and what else is in the file, are not taken over.

    Parameters
    ----------
    path : the file.
    time_limit : steps after which the environment cut an episode.
    env_id, env_version, env_kwargs, reward_def : the task and the unit of reward, which the file does not tell.
    behaviour : who acted; None: the file's name without its suffix.

    Raises
    ------
    DatasetError
        Naming file and field: an array missing or of another shape, rows that are not filled from the first on, a
        reward or an end behind the end, an episode that stops before both its end and the limit.
    """
    path = Path(path)
    with refusals_of(path):
        check_time_limit(time_limit)
        found = hdf5_arrays(path, PYMARL)
        check_shapes(found, PYMARL)
        lengths, ended = _ends(found)
        short = np.flatnonzero(~ended & (lengths != time_limit))
        if len(short):
            e = short[0]
            raise DatasetError(
                f"terminated is never 1 in episode {e} of {lengths[e]} steps, and time_limit is {time_limit}; "
                "an episode ends by itself or at the limit"
            )
        return _trajectories(
            found, lengths, ended, time_limit=time_limit, env_id=env_id, env_version=env_version, reward_def=reward_def,
            env_kwargs=dict(env_kwargs or {}), behaviour=converted_from("cfcql", path.stem, behaviour),
        )  # fmt: skip


def from_alberdice(
    folder: Path | str,
    *,
    time_limit: int,
    env_id: str,
    env_version: str,
    reward_def: str = "team",
    finished: Callable[[np.ndarray], np.ndarray] | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    behaviour: str | None = None,
) -> Trajectories:
    """AlberDICE's folder of the warehouse, Bridge or matrix games: PyMARL's arrays as .npy files, and meta.json.

    As `from_cfcql`, but `terminated` is set at the last step of every episode, at the time limit too. So an episode of
    `time_limit` steps is truncated and a shorter one terminated. Without obs.npy all agents see the state.

    Parameters
    ----------
    folder : where state.npy and meta.json are; the first `episodes_in_buffer` episodes are taken.
    time_limit : steps after which the environment cut an episode.
    env_id, env_version, env_kwargs, reward_def : the task and the unit of reward, which the files do not tell.
    finished : final states (E', S) of the episodes that are as long as the limit -> (E',) bool, the task was done just
        there (Bridge: both on their goals), so that the episode is terminated. None: none of them was.
    behaviour : who acted; None: the folder's name.

    Raises
    ------
    DatasetError
        Naming folder and file: one missing, damaged, pickled or of another shape; rows that are not filled from the
        first on; a reward behind the end; an episode without its end.
    """
    folder = folder_of(folder)
    with refusals_of(folder):
        check_time_limit(time_limit)
        n_episodes = _episodes_in_buffer(folder)
        names = [name for name in PYMARL if name != "obs" or (folder / "obs.npy").exists()]
        found = {name: npy_array(folder / f"{name}.npy") for name in names}
        if "obs" not in found and found["state"].ndim == 3 and found["actions"].ndim == 4:
            e, x, s = found["state"].shape
            found["obs"] = np.broadcast_to(found["state"][:, :, None], (e, x, found["actions"].shape[2], s))
        check_shapes(found, PYMARL)
        if n_episodes > len(found["filled"]):
            raise DatasetError(
                f"meta.json has {n_episodes} episodes_in_buffer and filled.npy only {len(found['filled'])}; copy again"
            )
        found = {name: array[:n_episodes] for name, array in found.items()}
        lengths, ended = _ends(found)
        if not ended.all():
            raise DatasetError(f"terminated is never 1 in episode {ended.argmin()}, which has no end")
        at_limit = np.flatnonzero(lengths == time_limit)
        ended[at_limit] = False if finished is None else finished(found["state"][at_limit, time_limit])
        return _trajectories(
            found, lengths, ended, time_limit=time_limit, env_id=env_id, env_version=env_version, reward_def=reward_def,
            env_kwargs=dict(env_kwargs or {}), behaviour=converted_from("alberdice", folder.resolve().name, behaviour),
        )  # fmt: skip


# --- PyMARL's arrays ------------------------------------------------------------------------------------


def _episodes_in_buffer(folder: Path) -> int:
    try:
        told = json.loads((folder / "meta.json").read_text(encoding="utf-8"))["episodes_in_buffer"]
    except FileNotFoundError:
        raise DatasetError("meta.json missing, so this is no folder of that format, or not a whole one") from None
    except (ValueError, KeyError, TypeError):  # no JSON, no such key, no object
        told = None
    if not isinstance(told, int) or told < 1:
        raise DatasetError("meta.json must name the number of episodes_in_buffer, 1 or more")
    return told


def _ends(found: Mapping[str, np.ndarray]) -> tuple[Any, Any]:
    """(E,) steps of each episode, and (E,) bool: `terminated` is set at its last step."""
    filled, terminated = (flags(found[name][..., 0], name) for name in ("filled", "terminated"))
    lengths = filled.sum(1) - 1
    rows = np.arange(filled.shape[1])
    gaps = (filled != (rows <= lengths[:, None])).any(1)
    if gaps.any():
        raise DatasetError(f"filled must be 1 from the first row on, without a gap; episode {gaps.argmax()} has one")
    if lengths.min() < 1:
        raise DatasetError(f"filled leaves episode {lengths.argmin()} without a step; it needs two rows or more")
    for name, wrong in (
        ("terminated", terminated & (rows != lengths[:, None] - 1)),
        ("reward", (found["reward"][..., 0] != 0) & (rows >= lengths[:, None])),
    ):
        if wrong.any():
            e, t = (int(k) for k in np.argwhere(wrong)[0])
            raise DatasetError(f"{name} is set in row {t} of episode {e}, whose last step is row {lengths[e] - 1}")
    return lengths, terminated.any(1)


def _trajectories(
    found: Mapping[str, np.ndarray], lengths: np.ndarray, ended: np.ndarray, behaviour: dict[str, Any], **task: Any
) -> Trajectories:
    """Episodes of PyMARL's arrays, no longer than the longest; the action of the last row was never taken."""
    t = int(lengths.max())
    played = np.arange(t) < lengths[:, None]
    return Trajectories(
        **step_ends(lengths, ended),
        observations=found["obs"][:, : t + 1],
        actions=np.where(played[..., None], found["actions"][:, :t, :, 0], 0),
        rewards=found["reward"][:, :t, 0],
        available=found["avail_actions"][:, : t + 1] != 0,
        states=found["state"][:, : t + 1],
        n_actions=found["avail_actions"].shape[-1],
        behaviours=(behaviour,),
        **task,
    )
