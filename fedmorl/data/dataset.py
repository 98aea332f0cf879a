"""What an offline log holds: checked once, then read-only.

Letters: E episodes, T decisions, N stations, O observation, B batch. A row of an episode is one instant at which
somebody decides; `mask` says who. Where a station does not decide, every array holds 0 and nothing is to be learned.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

SCHEMA = "fedmorl-log/1"

# field -> (dtype on disk and in memory, shape, unit)
ARRAYS = {
    "observations": ("<f4", "ETNO", "each 0 to 1"),
    "actions": ("|u1", "ETN", "0 defer, 1 transmit"),
    "rewards": ("<f4", "ETN", "packets, less collisions and alpha x delay"),
    "next_observations": ("<f4", "ETNO", "each 0 to 1"),
    "terminated": ("|b1", "ETN", "the task ended: do not bootstrap"),
    "truncated": ("|b1", "ETN", "the log ended: bootstrap from next_observations"),
    "durations": ("<i8", "ETN", "slots to the same station's next decision"),
    "mask": ("|b1", "ETN", "the station decides"),
    "seeds": ("<i8", "E", "of the random streams"),
    "replications": ("<i8", "E", "of the seed"),
}
STEP_ARRAYS = tuple(name for name, (_, shape, _) in ARRAYS.items() if shape.startswith("ETN"))
TRANSITION_ARRAYS = tuple(name for name in STEP_ARRAYS if name != "mask")
ATTRIBUTES = ("scenario", "stations", "observation_names", "alpha")


class DatasetError(ValueError):
    """A log that cannot be used; one sentence that names the field, and the file where there is one."""


def flatten_agents(x: np.ndarray) -> np.ndarray:
    """(B, N, ...) -> (B * N, ...), agent index fastest."""
    return x.reshape(-1, *x.shape[2:])


def unflatten_agents(x: np.ndarray, n_agents: int) -> np.ndarray:
    """Inverse of `flatten_agents`: (B * N, ...) -> (B, N, ...)."""
    return x.reshape(-1, n_agents, *x.shape[1:])


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class OfflineDataset:
    """Decisions of N stations in E episodes of up to T rows each.

    Parameters
    ----------
    observations, next_observations : (E, T, N, O) float32, at a decision and at the same station's next one.
    actions : (E, T, N), 0 defer or 1 transmit.
    rewards : (E, T, N) float32, FedMORL Eq. (3) over the decision's duration: r_glob + alpha r_local.
    terminated, truncated : (E, T, N) bool, kept apart; one of them ends each station's last decision. Channel
        access never terminates.
    durations : (E, T, N) integers >= 1 [slots], to the same station's next decision.
    mask : (E, T, N) bool, True where the station decides, i.e. may transmit.
    seeds, replications : (E,) integers; together they tell the episodes apart.
    extras : more arrays by name, (E, T) or (E, T, N, ...). Logs of the channel have `slots` (E, T), the slot of
        the row; `winners` (E, T), the station whose packet got through, -1 for none; and per station `outcomes`,
        what the decision led to (index into fedmorl.dca.logs.OUTCOMES), `global_rewards` and `local_rewards`.
    scenario : what was logged, as plain JSON values (`Scenario.to_dict()`).
    stations : which stations of the scenario the axis N holds.
    observation_names : what each of the O numbers is.
    alpha : weight of the local reward in `rewards`.

    Raises
    ------
    DatasetError
        A ValueError of one sentence that names the field.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    next_observations: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    durations: np.ndarray
    mask: np.ndarray
    seeds: np.ndarray
    replications: np.ndarray
    scenario: Mapping[str, Any]
    stations: tuple[int, ...]
    observation_names: tuple[str, ...]
    alpha: float
    extras: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_actions(self.actions)  # before the cast, which could hide a 257
        for name, (dtype, _, _) in ARRAYS.items():
            object.__setattr__(self, name, _read_only(name, getattr(self, name), dtype))
        extras = {name: _read_only(f"extras/{name}", array) for name, array in sorted(self.extras.items())}
        object.__setattr__(self, "extras", extras)
        object.__setattr__(self, "stations", tuple(self.stations))
        object.__setattr__(self, "observation_names", tuple(self.observation_names))
        _check_attributes(self)
        _check_shapes(self)
        _check_values(self)
        _check_ends(self)

    def __repr__(self) -> str:
        e, t, n, o = self.observations.shape
        return (
            f"OfflineDataset({e} episodes x {t} decisions x {n} stations, {o} observations: "
            f"{self.n_transitions} transitions, {self.content_hash[:12]})"
        )

    @property
    def n_stations(self) -> int:
        """N, the stations held; of a client's own log 1."""
        return self.observations.shape[2]

    @property
    def n_transitions(self) -> int:
        """Decisions of all stations in all episodes."""
        return int(self.mask.sum())

    @property
    def d2lt(self) -> str | None:
        """How the delay since the last success is normalised, "global" or "local"; None where there is none."""
        return self.scenario.get("d2lt")

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over arrays and meaning (64 hexadecimal digits): the same for any compression or time of writing."""
        digest = hashlib.sha256()
        for name, array in sorted(self.arrays().items()):
            digest.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
            digest.update(array.data if array.size else b"")
        return _add(digest, self.attributes())

    def arrays(self) -> dict[str, np.ndarray]:
        """Every array by its name in a file."""
        extras = {f"extras/{name}": array for name, array in self.extras.items()}
        return {name: getattr(self, name) for name in ARRAYS} | extras

    def attributes(self) -> dict[str, Any]:
        """What the arrays mean, as plain JSON values."""
        return {"schema": SCHEMA} | {name: getattr(self, name) for name in ATTRIBUTES}

    def client(self, k: int) -> "OfflineDataset":
        """The own log of the k-th station held: the same rows, N = 1."""
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 0 <= k < self.n_stations:
            raise ValueError(f"client must be an index from 0 to {self.n_stations - 1}; got {k!r}")
        own: dict[str, Any] = {name: getattr(self, name)[:, :, k : k + 1] for name in STEP_ARRAYS}
        extras = {name: array if array.ndim == 2 else array[:, :, k : k + 1] for name, array in self.extras.items()}
        return replace(self, **own, extras=extras, stations=(self.stations[k],))

    def clients(self) -> list["OfflineDataset"]:
        """One log a station."""
        return [self.client(k) for k in range(self.n_stations)]

    def transitions(self) -> "Transitions":
        """Every decision as one flat batch: episode by episode, row by row, station index fastest."""
        chosen = np.flatnonzero(flatten_agents(flatten_agents(self.mask)))
        flat = {name: flatten_agents(flatten_agents(getattr(self, name)))[chosen] for name in TRANSITION_ARRAYS}
        extras = {}
        for name, array in {**self.extras, "stations": np.array(self.stations)[None, None, :]}.items():
            per_station = array if array.ndim > 2 else array[:, :, None]
            full = np.broadcast_to(per_station, (*self.mask.shape, *per_station.shape[3:]))
            extras[name] = flatten_agents(flatten_agents(full))[chosen]
        return Transitions(**flat, extras=extras, observation_names=self.observation_names, d2lt=self.d2lt)

    def with_alpha(self, alpha: float) -> "OfflineDataset":
        """The same log with rewards r_glob + alpha r_local for another alpha; needs both parts in `extras`."""
        missing = [name for name in ("global_rewards", "local_rewards") if name not in self.extras]
        if missing:
            raise DatasetError(f"extras/{missing[0]} is missing, without which the rewards cannot take another alpha")
        rewards = add_rewards(self.extras["global_rewards"], self.extras["local_rewards"], alpha)
        return replace(self, rewards=rewards, alpha=float(alpha))

    def save(self, path: Path | str) -> None:
        """Write one HDF5 file: whole or not at all, whatever interrupts."""
        from fedmorl.data.files import write

        write(self, Path(path))

    @classmethod
    def load(cls, path: Path | str) -> "OfflineDataset":
        """Read a file that `save` wrote; DatasetError names the file and the field of what is wrong."""
        from fedmorl.data.files import read

        return read(Path(path))


@dataclass(frozen=True, kw_only=True, eq=False)
class Transitions:
    """A flat batch of B transitions, of one station or many; order carries no meaning.

    Shapes (B, O) for observations, (B,) otherwise; `extras` are (B, ...). Fields mean what they mean in
    `OfflineDataset`.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    next_observations: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    durations: np.ndarray
    observation_names: tuple[str, ...]
    d2lt: str | None = None
    extras: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.observations)
        for name, array in self._arrays().items():
            if len(array) != n:
                raise DatasetError(f"{name} has {len(array)} transitions where observations has {n}")

    def __len__(self) -> int:
        return len(self.observations)

    def take(self, chosen: np.ndarray) -> "Transitions":
        """The transitions at `chosen`: indices (B',) or a mask (B,)."""
        extras = {name: array[chosen] for name, array in self.extras.items()}
        return replace(self, **{name: getattr(self, name)[chosen] for name in TRANSITION_ARRAYS}, extras=extras)

    def _arrays(self) -> dict[str, np.ndarray]:
        return {name: getattr(self, name) for name in TRANSITION_ARRAYS} | dict(self.extras)


def add_rewards(global_rewards: np.ndarray, local_rewards: np.ndarray, alpha: float) -> np.ndarray:
    """FedMORL Eq. (3): r = r_glob + alpha r_local, float32."""
    return (global_rewards + np.float64(alpha) * local_rewards).astype(np.float32)


def concatenate(datasets: Sequence[OfflineDataset]) -> OfflineDataset:
    """Episodes of several logs in one: of the same scenario, stations, observations and alpha, other seeds.

    Shorter episodes are padded with rows in which nobody decides. To mix logs that differ, mix their
    transitions (`concatenate_transitions`, or `fedmorl.data.partition`).

    Raises
    ------
    DatasetError
        Naming the field in which a log differs from the first one.
    """
    if not datasets:
        raise DatasetError("datasets must hold at least one log; got none")
    first, length = datasets[0], max(one.mask.shape[1] for one in datasets)
    for k, other in enumerate(datasets[1:], start=1):
        _check_alike(first, other, k)

    def joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate([_padded(array, length) if array.ndim > 1 else array for array in arrays])

    arrays: dict[str, Any] = {name: joined([getattr(one, name) for one in datasets]) for name in ARRAYS}
    extras = {name: joined([one.extras[name] for one in datasets]) for name in first.extras}
    return replace(first, **arrays, extras=extras)


def concatenate_transitions(batches: Sequence[Transitions]) -> Transitions:
    """One batch of several, whatever scenarios they come from; DatasetError if an observation means another thing."""
    if not batches:
        raise DatasetError("batches must hold at least one batch of transitions; got none")
    first = batches[0]
    for k, other in enumerate(batches[1:], start=1):
        for name in ("observation_names", "d2lt"):
            _check_same(name, getattr(first, name), getattr(other, name), f"batch {k}")
        _check_same("extras", sorted(first.extras), sorted(other.extras), f"batch {k}")
    arrays: dict[str, Any] = {
        name: np.concatenate([getattr(one, name) for one in batches]) for name in TRANSITION_ARRAYS
    }
    extras = {name: np.concatenate([one.extras[name] for one in batches]) for name in first.extras}
    return replace(first, **arrays, extras=extras)


# --- checks ---------------------------------------------------------------------------------------------


def check_actions(actions: Any) -> None:
    """DatasetError unless every action is 0 or 1."""
    values = np.asarray(actions)
    if values.dtype.kind not in "iub":
        raise DatasetError(f"actions must be integers; got dtype {values.dtype}")
    if values.size and (values.min() < 0 or values.max() > 1):
        wrong = values[(values != 0) & (values != 1)][0]
        raise DatasetError(f"actions must be 0 (defer) or 1 (transmit); got {wrong}")


def _read_only(name: str, value: Any, dtype: str | None = None) -> np.ndarray:
    """`value` in its dtype, C order and little-endian, as a view that cannot be written."""
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise DatasetError(f"{name} must hold numbers; got dtype {array.dtype}")
    wanted = np.dtype(dtype) if dtype else array.dtype.newbyteorder("<")
    if not np.can_cast(array.dtype, wanted, "same_kind"):
        if not (name == "actions" and array.dtype.kind in "ib"):  # every value is known to be 0 or 1
            raise DatasetError(f"{name} must have dtype {wanted}; got {array.dtype}")
    view = np.ascontiguousarray(array, wanted).view()
    view.flags.writeable = False
    return view


def _check_attributes(log: OfflineDataset) -> None:
    try:
        plain = json.loads(_json(dict(log.scenario)))
    except (TypeError, ValueError) as error:
        raise DatasetError(f"scenario must be plain JSON values: {error}") from None
    object.__setattr__(log, "scenario", plain)
    names = log.observation_names
    if not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
        raise DatasetError(f"observation_names must be different names; got {names}")
    if not all(isinstance(k, int) and k >= 0 for k in log.stations) or len(set(log.stations)) != len(log.stations):
        raise DatasetError(f"stations must be different indices from 0 on; got {log.stations}")
    if isinstance(log.alpha, bool) or not isinstance(log.alpha, int | float) or not 0 <= log.alpha < np.inf:
        raise DatasetError(f"alpha must be a finite number >= 0; got {log.alpha!r}")
    object.__setattr__(log, "alpha", float(log.alpha))


def _check_shapes(log: OfflineDataset) -> None:
    if log.observations.ndim != 4 or 0 in log.observations.shape:
        raise DatasetError(
            f"observations must have shape (E, T, N, O), none of them 0; got {log.observations.shape}; "
            "an empty log cannot be used"
        )
    sizes = dict(zip("ETNO", log.observations.shape, strict=True))
    for name, (_, letters, _) in ARRAYS.items():
        wanted = tuple(sizes[letter] for letter in letters)
        if getattr(log, name).shape != wanted:
            raise DatasetError(
                f"{name} must have shape ({', '.join(letters)}) = {wanted}; got {getattr(log, name).shape}"
            )
    for name, array in log.extras.items():
        if array.shape[:2] != log.mask.shape[:2] or (array.ndim > 2 and array.shape[2] != sizes["N"]):
            raise DatasetError(
                f"extras/{name} must begin with shape (E, T) or (E, T, N) = {log.mask.shape}; got {array.shape}"
            )
    for name, letter in (("observation_names", "O"), ("stations", "N")):
        if len(getattr(log, name)) != sizes[letter]:
            raise DatasetError(f"{name} must name {letter} = {sizes[letter]}; it has {len(getattr(log, name))}")


def _check_values(log: OfflineDataset) -> None:
    for name, array in log.arrays().items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            where = tuple(int(k) for k in np.argwhere(~np.isfinite(array))[0])
            raise DatasetError(f"{name} must be finite; it holds {array[where]} at {where}")
    if (log.durations[log.mask] < 1).any():
        raise DatasetError(f"durations must be at least 1 slot; got {log.durations[log.mask].min()}")
    off = ~log.mask
    for name in STEP_ARRAYS if off.any() else ():
        array = getattr(log, name)
        if (off & (array.any(-1) if array.ndim == 4 else array != 0)).any():
            raise DatasetError(f"{name} must be 0 where mask is False, since nobody decides there")
    without = np.argwhere(~log.mask.any(1))
    if without.size:
        raise DatasetError(
            f"mask leaves station {log.stations[without[0, 1]]} without a decision in episode {without[0, 0]}"
        )
    episodes = np.stack([log.seeds, log.replications], 1)
    if (episodes < 0).any() or len(np.unique(episodes, axis=0)) < len(episodes):
        raise DatasetError("seeds and replications must be >= 0 and tell the episodes apart; an episode is there twice")


def _check_ends(log: OfflineDataset) -> None:
    """Each station's last decision of an episode, and no other, ends it: terminated or truncated, not both."""
    if (log.terminated & log.truncated).any():
        raise DatasetError("terminated and truncated are both set at one decision; an end is one or the other")
    last = log.mask.shape[1] - 1 - log.mask[:, ::-1].argmax(1)  # (E, N)
    is_last = np.arange(log.mask.shape[1])[None, :, None] == last[:, None, :]
    if ((log.terminated | log.truncated) != is_last).any():
        e, t, n = (int(k) for k in np.argwhere((log.terminated | log.truncated) != is_last)[0])
        raise DatasetError(
            "terminated or truncated must be set at each station's last decision of an episode and nowhere else; "
            f"see row {t} of station {log.stations[n]} in episode {e}"
        )


def _check_alike(first: OfflineDataset, other: OfflineDataset, k: int) -> None:
    for name in ("observation_names", "stations", "alpha"):
        _check_same(name, getattr(first, name), getattr(other, name), f"log {k}")
    for name in sorted(first.scenario.keys() | other.scenario.keys()):
        _check_same(f"scenario.{name}", first.scenario.get(name), other.scenario.get(name), f"log {k}")
    _check_same("extras", sorted(first.extras), sorted(other.extras), f"log {k}")


def _check_same(name: str, here: Any, there: Any, who: str) -> None:
    if here != there:
        raise DatasetError(
            f"{name} differs: {_short(there)} in {who}, {_short(here)} in the first; they cannot be joined"
        )


def _short(value: Any) -> str:
    text = _json(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def _add(digest: Any, attributes: Mapping[str, Any]) -> str:
    digest.update(_json(attributes).encode())
    return digest.hexdigest()


def _padded(array: np.ndarray, length: int) -> np.ndarray:
    """(E, T, ...) -> (E, length, ...), zeros behind."""
    return np.pad(array, [(0, 0), (0, length - array.shape[1]), *[(0, 0)] * (array.ndim - 2)])
