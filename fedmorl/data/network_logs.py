"""Logs of wireless networks: what agents that nobody optimised saw, did and got, epoch by epoch.

Letters: E networks, T epochs, N agents, O observation. One log is of one task and one number of agents. Unlike
`fedmorl.data.trajectories` every agent has a reward of its own, and the messages that agents sent are kept: an agent
cannot rebuild from its own observations what the others told it.
"""

import hashlib
import json
import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

import fedmorl
from fedmorl.data.dataset import DatasetError
from fedmorl.data.files import _array, _opened, _sync
from fedmorl.data.trajectory_files import _attribute
from fedmorl.tasks.networks import NetworkTask, check_size

SCHEMA = "fedmorl-networks/1"
JITTER = 0.1  # the chance of a step to a neighbouring level

# field -> (dtype, shape); T+ is T + 1: the last observation belongs to no action
ARRAYS = {
    "observations": ("<f4", ("E", "T+", "N", "O")),
    "actions": ("<i2", ("E", "T", "N")),
    "rewards": ("<f4", ("E", "T", "N")),
    "own": ("<f4", ("E", "T", "N")),
    "merit": ("<f8", ("E", "T", "2")),
    "weights": ("<f4", ("E", "T+", "N", "N")),
}
CREDIT = {"credit": ("<f4", ("E", "T", "N"))}
MESSAGES = {"sent": ("|u1", ("E", "T+", "N", "Y")), "received": ("<f4", ("E", "T+", "N", "D"))}
ATTRIBUTES = ("task", "n_levels", "behaviour", "encoder_hash", "message_age", "bits")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class NetworkLog:
    """E networks of N agents for T epochs.

    Parameters
    ----------
    observations : (E, T + 1, N, O) float32; entry t is what was seen before epoch t.
    actions : (E, T, N) levels from 0 to `n_levels` - 1.
    rewards, own : (E, T, N) float32; the task's reward, and what each agent alone got.
    credit : (E, T, N) float32, `own` minus the externality; None where the task cannot tell it.
    merit : (E, T, 2), what the task is judged by: divide the sum of the first by the sum of the second.
    weights : (E, T + 1, N, N), how much each agent hears of each other one.
    task, n_levels : the task's name and A.
    behaviour : who acted, as plain JSON values.
    sent : (E, T + 1, N, Y) bytes that each agent sent before epoch t; None: nobody sent.
    received : (E, T + 1, N, D) float32, the mean field as it was received.
    encoder_hash : of the encoder that the messages are in terms of; "" without messages.
    message_age : epochs by which messages are late.
    bits : of one message.

    Raises
    ------
    DatasetError
        A ValueError of one sentence that names the field.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    own: np.ndarray
    merit: np.ndarray
    weights: np.ndarray
    task: str
    n_levels: int
    behaviour: dict[str, Any]
    credit: np.ndarray | None = None
    sent: np.ndarray | None = None
    received: np.ndarray | None = None
    encoder_hash: str = ""
    message_age: int = 0
    bits: int = 0

    def __post_init__(self) -> None:
        if (self.sent is None) != (self.received is None) or (self.sent is None) != (self.encoder_hash == ""):
            raise DatasetError("sent, received and encoder_hash must be given together, or none of them")
        sizes: dict[str, int] = {"2": 2}
        for name, (dtype, letters) in self._fields().items():
            array = np.ascontiguousarray(getattr(self, name), dtype=np.dtype(dtype)).view()
            array.flags.writeable = False
            object.__setattr__(self, name, array)
            _check_shape(name, array, letters, sizes)
        if self.actions.min() < 0 or self.actions.max() >= self.n_levels:
            raise DatasetError(f"actions must be from 0 to {self.n_levels - 1}; got up to {self.actions.max()}")

    def __len__(self) -> int:
        return len(self.actions)

    def __repr__(self) -> str:
        e, t, n = self.actions.shape
        return f"NetworkLog({self.task}: {e} networks x {t} epochs x {n} agents, {self.content_hash[:12]})"

    @property
    def n_agents(self) -> int:
        """N."""
        return self.actions.shape[2]

    @property
    def score(self) -> float:
        """What the task is judged by: mean over networks of sums over sums."""
        sums = self.merit.sum(1)
        return float((sums[:, 0] / sums[:, 1]).mean())

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over arrays and meaning (64 hexadecimal digits)."""
        digest = hashlib.sha256(json.dumps(self.attributes(), sort_keys=True).encode())
        for name, array in sorted(self.arrays().items()):
            digest.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode() + array.tobytes())
        return digest.hexdigest()

    def arrays(self) -> dict[str, np.ndarray]:
        """Every array there is, by its name."""
        return {name: getattr(self, name) for name in self._fields()}

    def _fields(self) -> dict[str, tuple[str, tuple[str, ...]]]:
        optional = CREDIT | MESSAGES
        return ARRAYS | {name: optional[name] for name in optional if getattr(self, name) is not None}

    def attributes(self) -> dict[str, Any]:
        """What the arrays mean, as plain JSON values."""
        return {name: getattr(self, name) for name in ATTRIBUTES}

    def take(self, networks: np.ndarray | slice) -> "NetworkLog":
        """Some of the networks."""
        taken: dict[str, Any] = {name: array[networks] for name, array in self.arrays().items()}
        return replace(self, **taken)

    def save(self, path: Path | str) -> None:
        """Write one HDF5 file, whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with h5py.File(temporary, "w") as file:
                about = self.attributes() | {"schema": SCHEMA, "content_sha256": self.content_hash}
                for name, value in (about | {"versions": {"fedmorl": fedmorl.__version__}}).items():
                    file.attrs[name] = json.dumps(value, sort_keys=True)
                for name, array in self.arrays().items():
                    file.create_dataset(name, data=array, compression="gzip", shuffle=True)
            _sync(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path | str) -> "NetworkLog":
        """Read a file that `save` wrote; DatasetError names the file and what is wrong."""
        with open(path, "rb"):  # the file system's own words for a file that is missing or may not be read
            pass
        try:
            with _opened(Path(path)) as file:
                if (schema := _attribute(file, "schema")) != SCHEMA:
                    raise DatasetError(f"schema is {schema!r} where {SCHEMA!r} is read")
                fields = ARRAYS | {name: field for name, field in (CREDIT | MESSAGES).items() if name in file}
                if missing := [name for name in fields if name not in file]:
                    raise DatasetError(f"{', '.join(missing)} missing")
                found: dict[str, Any] = {name: _array(file, name, np.dtype(d)) for name, (d, _) in fields.items()}
                log = cls(**found, **{name: _attribute(file, name) for name in ATTRIBUTES})
                if _attribute(file, "content_sha256") != log.content_hash:
                    raise DatasetError("the content hash is not the content's: the file was changed")
        except DatasetError as error:
            raise DatasetError(f"{path}: {error}") from None
        return log


def _check_shape(name: str, array: np.ndarray, letters: tuple[str, ...], sizes: dict[str, int]) -> None:
    """The first array that has a letter fixes its size."""
    if array.ndim != len(letters) or 0 in array.shape:
        raise DatasetError(f"{name} must have shape ({', '.join(letters)}), none of them 0; got {array.shape}")
    for letter, size in zip(letters, array.shape, strict=True):
        known = size - 1 if letter == "T+" else size
        if sizes.setdefault(letter.rstrip("+"), known) != known:
            raise DatasetError(
                f"{name} has {letter} = {size} where the arrays before it have {letter.rstrip('+')} = "
                f"{sizes[letter.rstrip('+')]}; log every array of the same epochs and agents"
            )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        where = tuple(int(k) for k in np.argwhere(~np.isfinite(array))[0])
        raise DatasetError(f"{name} must be finite; it holds {array[where]} at {where}")


class Wandering:
    """Agents that nobody optimised: a level drawn evenly at first, seldom a new one, now and then one step aside.

    With the task's `change_probability` an epoch brings a new level, then with 0.1 a jitter of -1, 0 or 1, clipped.
    """

    def __init__(self, task: NetworkTask, rng: np.random.Generator) -> None:
        self.task, self.rng, self.shape = task, rng, (task.n_networks, task.n_agents)
        self.level = rng.integers(task.n_levels, size=self.shape)

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Levels (E, N); observations are not looked at."""
        changes = self.rng.random(self.shape) < self.task.change_probability
        level = np.where(changes, self.task.new_level(self.shape, self.rng), self.level)
        jitter = self.rng.integers(-1, 2, self.shape) * (self.rng.random(self.shape) < JITTER)
        self.level = np.clip(level + jitter, 0, self.task.n_levels - 1)
        return self.level


def collect_network_log(task: NetworkTask, n_epochs: int, *, rng: np.random.Generator) -> NetworkLog:
    """`n_epochs` epochs of the task's E networks under `Wandering`; no messages yet."""
    check_size("n_epochs", n_epochs, 1)
    rng_task, rng_act = rng.spawn(2)
    observation, behaviour = task.reset(rng_task), Wandering(task, rng_act)
    found: dict[str, list[np.ndarray]] = {name: [] for name in ARRAYS}
    for _ in range(n_epochs):
        found["observations"].append(observation)
        found["weights"].append(task.weights())
        found["actions"].append(behaviour.act(observation))
        observation, reward = task.step(found["actions"][-1])
        found["rewards"].append(reward)
        found["own"].append(task.own)
        if task.credit is not None:
            found.setdefault("credit", []).append(task.credit)
        found["merit"].append(np.stack(next(iter(task.tally().values())), -1))
    found["observations"].append(observation)
    found["weights"].append(task.weights())
    arrays: dict[str, Any] = {name: np.stack(some, 1) for name, some in found.items()}
    about = {"name": "wandering", "change_probability": task.change_probability, "jitter": JITTER}
    return NetworkLog(**arrays, task=task.name, n_levels=task.n_levels, behaviour=about)
