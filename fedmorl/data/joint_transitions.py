"""Transitions of a team whose global state is known: what LOGO and other joint world models learn from.

Letters: T transitions, N agents, O observation, A action, S state. Actions are numbers, or one-hot vectors where there
is a choice among A. Unlike `fedmorl.data.trajectories`, which keeps episodes whole for sequence models and knows
indices of actions only, every row here stands for itself; `episodes` says where it comes from.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fedmorl.data.dataset import DatasetError
from fedmorl.data.trajectories import Trajectories

SCHEMA = "fedmorl-joint/1"

# field -> (dtype on disk and in memory, shape)
ARRAYS = {
    "states": ("<f4", "TS"),
    "observations": ("<f4", "TNO"),
    "actions": ("<f4", "TNA"),
    "rewards": ("<f4", "T"),
    "next_states": ("<f4", "TS"),
    "next_observations": ("<f4", "TNO"),
    "terminated": ("|b1", "T"),
    "episodes": ("<i8", "T"),
}
ATTRIBUTES = ("env_id", "env_version", "env_kwargs", "discrete", "reward_def", "behaviour", "widths")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class JointTransitions:
    """T transitions of N agents that act at the same time.

    Parameters
    ----------
    states, next_states : (T, S) float32, before and after.
    observations, next_observations : (T, N, O) float32; agents that see fewer numbers are padded with zeros.
    actions : (T, N, A) float32, from -1 to 1, or one-hot.
    rewards : (T,) float32 of the team, in the unit `reward_def`.
    terminated : (T,) bool, the task ended: do not bootstrap. A time limit does not count.
    episodes : (T,) integers, the episode of each row; data are split by them.
    discrete : actions are one-hot choices.
    widths : how many numbers each agent sees; None: all O.
    env_id, env_version, env_kwargs : the task, as plain JSON values.
    behaviour : who acted, as plain JSON values.

    Raises
    ------
    DatasetError
        A ValueError of one sentence that names the field.
    """

    states: np.ndarray
    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    next_states: np.ndarray
    next_observations: np.ndarray
    terminated: np.ndarray
    episodes: np.ndarray
    discrete: bool
    env_id: str
    env_version: str
    env_kwargs: Mapping[str, Any]
    reward_def: str
    behaviour: Mapping[str, Any]
    widths: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name, (dtype, shape) in ARRAYS.items():
            object.__setattr__(self, name, _read_only(name, getattr(self, name), dtype, shape))
        widths = (self.observations.shape[2],) * self.n_agents if self.widths is None else self.widths
        object.__setattr__(self, "widths", tuple(int(w) for w in widths))
        _check_shapes(self)
        _check_values(self)

    def __len__(self) -> int:
        return len(self.rewards)

    def __repr__(self) -> str:
        t, n, o = self.observations.shape
        return f"JointTransitions({self.env_id}: {t} transitions x {n} agents, {o} observed, {self.content_hash[:12]})"

    @property
    def n_agents(self) -> int:
        """N."""
        return self.actions.shape[1]

    @property
    def sizes(self) -> dict[str, int]:
        """N, O, A and S by name, as networks are given them."""
        n, o = self.observations.shape[1:]
        return {
            "n_agents": n,
            "observation_size": o,
            "action_size": self.actions.shape[2],
            "state_size": self.states.shape[1],
        }

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over arrays and meaning (64 hexadecimal digits): the same for any compression or time of writing."""
        digest = hashlib.sha256()
        for name, array in sorted(self.arrays().items()):
            digest.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
            digest.update(array.tobytes())
        digest.update(json.dumps(self.attributes(), sort_keys=True, separators=(",", ":"), allow_nan=False).encode())
        return digest.hexdigest()

    def arrays(self) -> dict[str, np.ndarray]:
        """Every array by its name."""
        return {name: getattr(self, name) for name in ARRAYS}

    def attributes(self) -> dict[str, Any]:
        """What the arrays mean, as plain JSON values."""
        assert self.widths is not None
        return {"schema": SCHEMA} | {name: getattr(self, name) for name in ATTRIBUTES} | {"widths": list(self.widths)}

    def take(self, rows: np.ndarray | slice) -> "JointTransitions":
        """The transitions at `rows`: indices, a mask (T,) or a slice."""
        taken: dict[str, Any] = {name: array[rows] for name, array in self.arrays().items()}
        return replace(self, **taken)

    def split(self, share: float, rng: np.random.Generator) -> tuple["JointTransitions", "JointTransitions"]:
        """Whole episodes at random into two: about `share` of them in the second, at least one in each."""
        names = rng.permutation(np.unique(self.episodes))
        if len(names) < 2:
            raise DatasetError(f"episodes must be two or more to be split; got {len(names)}")
        n_second = int(np.clip(round(share * len(names)), 1, len(names) - 1))
        second = np.isin(self.episodes, names[:n_second])
        return self.take(~second), self.take(second)

    def check_task(self, env_id: str, env_version: str) -> None:
        """DatasetError if these are transitions of another task, or of another version of it."""
        for name, value in (("env_id", env_id), ("env_version", env_version)):
            if getattr(self, name) != value:
                raise DatasetError(
                    f"{name} of the data is {getattr(self, name)!r} and the task's is {value!r}; "
                    "collect data on the task, or play the task of the data"
                )

    def save(self, path: Path | str) -> None:
        """Write one HDF5 file: whole or not at all, whatever interrupts."""
        from fedmorl.data.joint_files import write

        write(self, Path(path))

    @classmethod
    def load(cls, path: Path | str) -> "JointTransitions":
        """Read a file that `save` wrote; DatasetError names the file and the field of what is wrong."""
        from fedmorl.data.joint_files import read

        return read(Path(path))


def concatenate_joint(parts: Sequence[JointTransitions], behaviour: Mapping[str, Any]) -> JointTransitions:
    """Rows of several logs of one task in one, their episodes numbered anew."""
    if not parts:
        raise DatasetError("parts must hold at least one log; got none")
    first, base = parts[0], 0
    arrays: dict[str, list[np.ndarray]] = {name: [] for name in ARRAYS}
    for k, part in enumerate(parts):
        for name in ("sizes", *(name for name in ATTRIBUTES if name != "behaviour")):
            if getattr(part, name) != getattr(first, name):
                raise DatasetError(
                    f"{name} differs: {getattr(part, name)!r} in log {k}, {getattr(first, name)!r} in the first; "
                    "they cannot be joined"
                )
        _, numbered = np.unique(part.episodes, return_inverse=True)
        for name, array in (part.arrays() | {"episodes": base + numbered}).items():
            arrays[name].append(array)
        base += int(numbered.max()) + 1
    joined: dict[str, Any] = {name: np.concatenate(some) for name, some in arrays.items()}
    return replace(first, **joined, behaviour=behaviour)


def from_trajectories(log: Trajectories) -> JointTransitions:
    """The steps of whole episodes, each for itself; actions one-hot. DatasetError if the log has no global states."""
    if log.states is None:
        raise DatasetError("states must be in the log: a joint world model predicts them; collect it with states")
    e, t = np.nonzero(log.mask)
    return JointTransitions(
        states=log.states[e, t],
        observations=log.observations[e, t],
        actions=np.eye(log.n_actions, dtype=np.float32)[log.actions[e, t]],
        rewards=log.rewards[e, t],
        next_states=log.states[e, t + 1],
        next_observations=log.observations[e, t + 1],
        terminated=log.terminated[e, t],
        episodes=e,
        discrete=True,
        env_id=log.env_id,
        env_version=log.env_version,
        env_kwargs=log.env_kwargs,
        reward_def=log.reward_def,
        behaviour={"behaviours": [dict(one) for one in log.behaviours]},
    )


# --- checks ---------------------------------------------------------------------------------------------


def _read_only(name: str, value: Any, dtype: str, shape: str) -> np.ndarray:
    """`value` in its dtype and C order, as a view that cannot be written."""
    try:
        array = np.asarray(value)
    except ValueError:  # numpy's word for rows of unequal length
        array = np.array(None)
    if array.dtype.kind not in "biuf" or array.ndim != len(shape) or 0 in array.shape:
        letters = ", ".join(shape)
        hint = "; pad agents that see fewer numbers with zeros and give widths" if "O" in shape else ""
        got = array.shape if array.dtype.kind in "biuf" else "rows of unequal width"
        raise DatasetError(f"{name} must hold numbers of shape ({letters}), none of them 0; got {got}{hint}")
    wanted = np.dtype(dtype)
    if array.dtype.kind == "f" and wanted.kind != "f":
        raise DatasetError(f"{name} must have dtype {wanted}; got {array.dtype}")
    with np.errstate(over="ignore"):  # a number too large is not finite, and refused as such
        view = np.ascontiguousarray(array, wanted).view()
    view.flags.writeable = False
    return view


def _check_shapes(log: JointTransitions) -> None:
    (t, n, o), a, s = log.observations.shape, log.actions.shape[2], log.states.shape[1]
    sizes = {"T": t, "N": n, "O": o, "A": a, "S": s}
    for name, (_, letters) in ARRAYS.items():
        if (shape := getattr(log, name).shape) != (wanted := tuple(sizes[letter] for letter in letters)):
            raise DatasetError(f"{name} must have shape {wanted}, as observations {(t, n, o)}; got {shape}")
    assert log.widths is not None
    if len(log.widths) != n or not 1 <= min(log.widths) <= max(log.widths) <= o:
        raise DatasetError(f"widths must be {n} integers from 1 to {o}, one an agent; got {log.widths}")


def _check_values(log: JointTransitions) -> None:
    for name, array in log.arrays().items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            where = tuple(int(k) for k in np.argwhere(~np.isfinite(array))[0])
            raise DatasetError(f"{name} must be finite; it holds {array[where]} at {where}")
    assert log.widths is not None
    for i, width in enumerate(log.widths):
        for name in ("observations", "next_observations"):
            if getattr(log, name)[:, i, width:].any():
                raise DatasetError(f"{name} of agent {i} must be 0 behind its {width} numbers")
    if log.discrete:
        if not (((log.actions == 0) | (log.actions == 1)).all() and (log.actions.sum(-1) == 1).all()):
            raise DatasetError("actions must be one-hot where discrete is set")
    elif abs(log.actions).max() > 1:
        where = tuple(int(k) for k in np.unravel_index(abs(log.actions).argmax(), log.actions.shape))
        raise DatasetError(f"actions must be from -1 to 1; got {log.actions[where]:g} at {where}")
