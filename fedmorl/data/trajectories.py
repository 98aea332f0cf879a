"""Trajectories of a team: what N agents saw, did and got together, episode by episode.

Letters: E episodes, T steps of the longest, N agents, O observation, A actions, S state. Episodes are padded with zeros
on the right. Unlike the channel's logs (`fedmorl.data.dataset`), where each station decides in its own time, all agents
act at every step.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fedmorl.data.dataset import DatasetError

SCHEMA = "fedmorl-trajectories/1"

# field -> (dtype on disk and in memory, shape, unit); T+ is T + 1: the last observation belongs to no action
ARRAYS = {
    "observations": ("<f4", ("E", "T+", "N", "O"), "the task's"),
    "actions": ("<i2", ("E", "T", "N"), "index of the action"),
    "rewards": ("<f4", ("E", "T"), "see reward_def"),
    "terminated": ("|b1", ("E", "T"), "the task ended: do not bootstrap"),
    "truncated": ("|b1", ("E", "T"), "the time limit: bootstrap from the next observation"),
    "lengths": ("<i4", ("E",), "steps"),
    "episode_seeds": ("<i8", ("E",), "of the environment"),
    "behaviour_ids": ("<i2", ("E",), "index into behaviours"),
}
OPTIONAL = {
    "available": ("|b1", ("E", "T+", "N", "A"), "the action may be taken"),
    "states": ("<f4", ("E", "T+", "S"), "the task's"),
}
ATTRIBUTES = ("env_id", "env_version", "env_kwargs", "n_actions", "reward_def", "time_limit", "behaviours")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Trajectories:
    """E episodes of a team of N agents that act at the same time.

    Parameters
    ----------
    observations : (E, T + 1, N, O) float32; row `lengths[e]` is what the agents saw at the end.
    actions : (E, T, N) integers from 0 to `n_actions` - 1.
    rewards : (E, T) float32, what the learner is to raise, in the unit `reward_def`.
    terminated, truncated : (E, T) bool, kept apart; one of them is set at the last step of each episode.
    lengths : (E,) integers >= 1 [steps].
    episode_seeds, behaviour_ids : (E,) integers; which episode it is, and which of `behaviours` acted.
    available : (E, T + 1, N, A) bool, which actions may be taken; None: all of them.
    states : (E, T + 1, S) float32, the global state, if the task shows one.
    env_id, env_version, env_kwargs : the task, as plain JSON values.
    reward_def : the unit of `rewards`, such as "agent0+shaping"; units are never mixed.
    time_limit : steps after which an episode is truncated.
    behaviours : one dict each of who acted: name and parameters.
    extras : more arrays by name, (E, T, ...), such as `team_deliveries`.

    Raises
    ------
    DatasetError
        A ValueError of one sentence that names the field.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    lengths: np.ndarray
    episode_seeds: np.ndarray
    behaviour_ids: np.ndarray
    available: np.ndarray | None = None
    states: np.ndarray | None = None
    env_id: str
    env_version: str
    env_kwargs: Mapping[str, Any]
    n_actions: int
    reward_def: str
    time_limit: int
    behaviours: tuple[Mapping[str, Any], ...]
    extras: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, (dtype, _, _) in ARRAYS.items():
            object.__setattr__(self, name, _read_only(name, getattr(self, name), dtype))
        for name, (dtype, _, _) in OPTIONAL.items():
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _read_only(name, getattr(self, name), dtype))
        extras = {name: _read_only(f"extras/{name}", array) for name, array in sorted(self.extras.items())}
        object.__setattr__(self, "extras", extras)
        object.__setattr__(self, "behaviours", tuple(self.behaviours))
        _check_shapes(self)
        _check_ends(self)
        _check_values(self)

    def __len__(self) -> int:
        return len(self.lengths)

    def __repr__(self) -> str:
        e, t, n = self.actions.shape
        return f"Trajectories({self.env_id}: {e} episodes x {t} steps x {n} agents, {self.content_hash[:12]})"

    @property
    def n_agents(self) -> int:
        """N."""
        return self.actions.shape[2]

    @property
    def n_transitions(self) -> int:
        """Joint steps in all episodes."""
        return int(self.lengths.sum())

    @cached_property
    def mask(self) -> np.ndarray:
        """(E, T) bool: the step was played."""
        return np.arange(self.actions.shape[1]) < self.lengths[:, None]

    @cached_property
    def returns(self) -> np.ndarray:
        """(E,) float64: undiscounted sum of rewards."""
        return self.rewards.sum(1, dtype=np.float64)

    @cached_property
    def returns_to_go(self) -> np.ndarray:
        """(E, T) float32: R_t = r_t + r_(t+1) + ..., undiscounted; 0 in the padding."""
        return self.rewards[:, ::-1].cumsum(1, dtype=np.float64)[:, ::-1].astype(np.float32)

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
        """Every array by its name in a file."""
        own = {name: getattr(self, name) for name in (*ARRAYS, *OPTIONAL) if getattr(self, name) is not None}
        return own | {f"extras/{name}": array for name, array in self.extras.items()}

    def attributes(self) -> dict[str, Any]:
        """What the arrays mean, as plain JSON values."""
        return {"schema": SCHEMA} | {name: getattr(self, name) for name in ATTRIBUTES}

    def take(self, chosen: np.ndarray | Sequence[int]) -> "Trajectories":
        """The episodes at `chosen`, indices (E',) or a mask (E,)."""
        arrays: dict[str, Any] = {name: array[chosen] for name, array in self.arrays().items() if "/" not in name}
        return replace(self, **arrays, extras={name: array[chosen] for name, array in self.extras.items()})

    def check_task(self, env_id: str, env_version: str, reward_def: str) -> None:
        """DatasetError if these are episodes of another task, another version of it, or in another unit of reward."""
        wanted = {"env_id": env_id, "env_version": env_version, "reward_def": reward_def}
        for name, value in wanted.items():
            if getattr(self, name) != value:
                raise DatasetError(
                    f"{name} of the data is {getattr(self, name)!r} and the task's is {value!r}; "
                    "collect data on the task, or play the task of the data"
                )

    def save(self, path: Path | str) -> None:
        """Write one HDF5 file: whole or not at all, whatever interrupts."""
        from fedmorl.data.trajectory_files import write

        write(self, Path(path))

    @classmethod
    def load(cls, path: Path | str) -> "Trajectories":
        """Read a file that `save` wrote; DatasetError names the file and the field of what is wrong."""
        from fedmorl.data.trajectory_files import read

        return read(Path(path))


def concatenate_trajectories(parts: Sequence[Trajectories]) -> Trajectories:
    """Episodes of several logs of one task in one; behaviours that are equal become one.

    Raises
    ------
    DatasetError
        Naming the field in which a log differs from the first one, such as the number of agents.
    """
    if not parts:
        raise DatasetError("parts must hold at least one log; got none")
    first, length = parts[0], max(one.actions.shape[1] for one in parts)
    for k, other in enumerate(parts[1:], start=1):
        for name in ("n_agents", *(name for name in ATTRIBUTES if name != "behaviours")):
            if getattr(other, name) != getattr(first, name):
                raise DatasetError(
                    f"{name} differs: {getattr(other, name)!r} in log {k}, {getattr(first, name)!r} in the first; "
                    "they cannot be joined"
                )
        if other.arrays().keys() != first.arrays().keys():
            raise DatasetError(f"log {k} holds other arrays than the first; they cannot be joined")
    arrays = {name: np.concatenate([_stretched(one, name, length) for one in parts]) for name in first.arrays()}
    behaviours: list[Mapping[str, Any]] = []
    for one in parts:
        behaviours += [b for b in one.behaviours if b not in behaviours]
    arrays["behaviour_ids"] = np.concatenate(
        [np.array([behaviours.index(b) for b in one.behaviours])[one.behaviour_ids] for one in parts]
    )
    own: dict[str, Any] = {name: array for name, array in arrays.items() if "/" not in name}
    extras = {name.removeprefix("extras/"): array for name, array in arrays.items() if "/" in name}
    return replace(first, **own, extras=extras, behaviours=tuple(behaviours))


def _stretched(log: Trajectories, name: str, length: int) -> np.ndarray:
    array, short = log.arrays()[name], length - log.actions.shape[1]
    return array if array.ndim == 1 else np.pad(array, [(0, 0), (0, short), *[(0, 0)] * (array.ndim - 2)])


# --- checks ---------------------------------------------------------------------------------------------


def _read_only(name: str, value: Any, dtype: str | None = None) -> np.ndarray:
    """`value` in its dtype, C order and little-endian, as a view that cannot be written."""
    try:
        array = np.asarray(value)
    except ValueError:  # numpy's word for rows of unequal length
        raise DatasetError(f"{name} must have equally many steps and numbers for each agent and episode") from None
    if array.dtype.kind not in "biuf":
        raise DatasetError(f"{name} must hold numbers; got dtype {array.dtype}")
    wanted = np.dtype(dtype) if dtype else array.dtype.newbyteorder("<")
    if wanted.kind in "iu" and array.dtype.kind in "iub":
        if array.size and not np.iinfo(wanted).min <= array.min() <= array.max() <= np.iinfo(wanted).max:
            raise DatasetError(f"{name} must fit {wanted}; got {array.min()} to {array.max()}")
    elif not np.can_cast(array.dtype, wanted, "same_kind"):
        raise DatasetError(f"{name} must have dtype {wanted}; got {array.dtype}")
    view = np.ascontiguousarray(array, wanted).view()
    view.flags.writeable = False
    return view


def _check_shapes(log: Trajectories) -> None:
    for name in ("observations", "actions"):
        if (shape := getattr(log, name).shape) == () or 0 in shape or len(shape) != len(ARRAYS[name][1]):
            letters = ", ".join(ARRAYS[name][1])
            raise DatasetError(f"{name} must have shape ({letters}), none of them 0; got {shape}")
    e, t, n = log.actions.shape
    states = log.states.shape[-1] if log.states is not None else 0
    sizes = {"E": e, "T": t, "T+": t + 1, "N": n, "O": log.observations.shape[-1], "A": log.n_actions, "S": states}
    for name, array in log.arrays().items():
        if name.startswith("extras/"):
            wanted = (*(e, t), *array.shape[2:])
        else:
            wanted = tuple(sizes[letter] for letter in (ARRAYS | OPTIONAL)[name][1])
        if array.shape != wanted:
            raise DatasetError(f"{name} must have shape {wanted}, as actions {log.actions.shape}; got {array.shape}")


def _check_ends(log: Trajectories) -> None:
    e, t, _ = log.actions.shape
    if log.lengths.min() < 1 or log.lengths.max() > min(t, log.time_limit):
        raise DatasetError(
            f"lengths must be from 1 to {min(t, log.time_limit)} steps, the shorter of array and time_limit; "
            f"got {log.lengths.min()} to {log.lengths.max()}"
        )
    last = np.arange(t) == log.lengths[:, None] - 1
    if (log.terminated & log.truncated).any() or ((log.terminated | log.truncated) != last).any():
        raise DatasetError("exactly one of terminated and truncated must be set at an episode's last step, no other")
    pairs = np.stack([log.episode_seeds, log.behaviour_ids], 1)
    if len(np.unique(pairs, axis=0)) < e:
        raise DatasetError("episode_seeds must differ within a behaviour; an episode is there twice")
    if log.behaviour_ids.min() < 0 or log.behaviour_ids.max() >= len(log.behaviours):
        raise DatasetError(f"behaviour_ids must be indices into the {len(log.behaviours)} behaviours")


def _check_values(log: Trajectories) -> None:
    for name, array in log.arrays().items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            where = tuple(int(k) for k in np.argwhere(~np.isfinite(array))[0])
            raise DatasetError(f"{name} must be finite; it holds {array[where]} at {where}")
        if array.ndim > 1 and log.lengths.min() < log.actions.shape[1]:
            played = np.arange(array.shape[1]) < log.lengths[:, None] + (array.shape[1] > log.actions.shape[1])
            if array[~played].any():
                raise DatasetError(f"{name} must be 0 behind the end of an episode")
    if log.actions.min() < 0 or log.actions.max() >= log.n_actions:
        raise DatasetError(
            f"actions must be from 0 to {log.n_actions - 1}; got {log.actions.min()} to {log.actions.max()}"
        )
    if log.available is not None:
        taken = np.take_along_axis(log.available[:, :-1], log.actions[..., None].astype(np.int64), -1)[..., 0]
        if not taken[log.mask].all():
            e, t, n = (int(k) for k in np.argwhere(~taken & log.mask[..., None])[0])
            raise DatasetError(
                f"action {log.actions[e, t, n]} of agent {n} at step {t} of episode {e} is not available"
            )
