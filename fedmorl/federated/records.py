"""What travels in a federation: states, the records that carry them, and the protocols of those who exchange them.

Numpy alone: a server that only averages needs no network library.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

State = Mapping[str, np.ndarray]  # sorted names; floating dtypes only
MAX_WORD = 2**32  # a seed, a client id or a round at or above this spills into the next word of a SeedSequence
SAMPLING = 1  # the purposes of streams that are not a client's own


# --- states ----------------------------------------------------------------------------------------------


def as_state(arrays: Mapping[str, np.ndarray], name: str = "state") -> State:
    """The arrays under sorted names, C-ordered.

    Raises
    ------
    ValueError
        If there is none, one is not floating (a counter cannot be averaged), or one holds NaN or infinity.
    """
    if not arrays:
        raise ValueError(f"{name} must hold at least one array; got none")
    made = {key: np.array(arrays[key], order="C") for key in sorted(arrays)}  # order="C" keeps 0-d arrays 0-d
    for key, value in made.items():
        if not np.issubdtype(value.dtype, np.floating):
            raise ValueError(f"{name}[{key!r}] must be floating (a counter cannot be averaged); it is {value.dtype}")
        if not np.isfinite(value).all():
            raise ValueError(f"{name}[{key!r}] must be finite; it holds NaN or infinity")
    return made


def digest(state: State) -> str:
    """SHA-256 over sorted (name, dtype, shape, C-order little-endian bytes)."""
    found = hashlib.sha256()
    for name in sorted(state):
        value = np.asarray(state[name])
        value = value.astype(value.dtype.newbyteorder("<"), copy=False)
        head = f"{len(name)}:{name}|{value.dtype.str}|{value.shape}|"
        found.update(head.encode() + value.tobytes(order="C"))
    return found.hexdigest()


def payload_bytes(state: State) -> int:
    """Bytes of the arrays: what a transport must at least carry."""
    return sum(value.nbytes for value in state.values() if isinstance(value, np.ndarray))


def distance(state: State, other: State) -> float:
    """Euclidean distance of two states of equal shapes, in float64."""
    with np.errstate(over="ignore"):
        squares = (((state[k].astype(np.float64) - other[k]) ** 2).sum() for k in sorted(state))
        return math.sqrt(sum(map(float, squares)))


# --- randomness ------------------------------------------------------------------------------------------


def address(seed: int, client_id: int, round: int) -> int:
    """Seed of what client `client_id` draws in `round`: the same in every engine, on every machine.

    Rounds count from 1, because a SeedSequence pads with zeros: [7, 2] and [7, 2, 0] are one address.
    """
    if round < 1:
        raise ValueError(f"rounds count from 1; got round {round}")
    for name, value in (("seed", seed), ("client_id", client_id), ("round", round)):
        if not 0 <= value < MAX_WORD:
            raise ValueError(f"{name} must be from 0 to 2**32 - 1, one word of the address; got {value}")
    words = np.random.SeedSequence([seed, client_id, round]).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


def sample_ids(ids: Sequence[int], fraction: float, seed: int, round: int) -> tuple[int, ...]:
    """The clients that `round` asks, sorted; at least one. Depends on nothing but its arguments."""
    ordered = np.array(sorted(ids))
    size = max(1, math.ceil(fraction * len(ordered) - 1e-9))  # 0.7 * 10 is 7 clients, not 8
    if size >= len(ordered):
        return tuple(ordered.tolist())
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(SAMPLING, round)))
    return tuple(sorted(rng.choice(ordered, size, replace=False).tolist()))


# --- records ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """What the server asks of every client in every round.

    Attributes
    ----------
    local_steps, batch_size : int
        Adam steps a round, and transitions a step, drawn with replacement.
    lr, lr_final, lr_rounds : float, float or None, int
        Learning rate of round 1; with `lr_final`, the rate of round `lr_rounds` and after, a cosine between them.
    prox_mu : float
        FedProx: weight of the proximal term; 0 is FedAvg.
    client_optimiser : "reset" or "carry"
        Adam starts anew each round, or a client keeps its moments (in one process only).
    seed : int or None
        First word of every client's address; `run_federation` sets it.
    """

    local_steps: int = 50  # FedMORL states none of these: ours
    batch_size: int = 256
    lr: float = 3e-3
    lr_final: float | None = None
    lr_rounds: int = 1
    prox_mu: float = 0.0
    client_optimiser: Literal["reset", "carry"] = "reset"
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("local_steps", "batch_size", "lr_rounds"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer >= 1; got {value!r}")
        for name in ("lr", "lr_final"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be > 0 and finite; got {value}")
        if not 0 <= self.prox_mu < math.inf:
            raise ValueError(f"prox_mu must be >= 0 and finite; got {self.prox_mu}")
        if self.client_optimiser not in ("reset", "carry"):
            raise ValueError(f"client_optimiser must be 'reset' or 'carry'; got {self.client_optimiser!r}")

    def lr_at(self, round: int) -> float:
        """Learning rate of a round; constant within it."""
        if self.lr_final is None:
            return self.lr
        share = min(round - 1, self.lr_rounds - 1) / max(self.lr_rounds - 1, 1)
        return self.lr_final + (self.lr - self.lr_final) * (1 + math.cos(math.pi * share)) / 2


@dataclass(frozen=True, kw_only=True)
class ClientUpdate:
    """Everything that goes up, and nothing else."""

    client_id: int
    round: int
    n: int  # transitions in the client's log
    state: State  # full parameters, not deltas
    stats: Mapping[str, float] = field(default_factory=dict)  # the paper's sigma_k: loss, coverage, ...

    def __post_init__(self) -> None:
        if not isinstance(self.state, Mapping) or not isinstance(self.stats, Mapping):
            raise TypeError("state and stats of an update must be mappings from names")


@dataclass(frozen=True, kw_only=True)
class ServerState:
    """What the server knows after a round."""

    round: int  # the last finished one; 0 is the initial state
    state: State
    opt: Mapping[str, State] = field(default_factory=dict)  # {"m": ..., "v": ...} for FedAdam


@dataclass(frozen=True, kw_only=True)
class RoundResult:
    """What an engine brings back from a round."""

    updates: tuple[ClientUpdate, ...]  # any order
    failures: Mapping[int, str] = field(default_factory=dict)  # client -> "error", "died" or "timeout"
    details: Mapping[int, str] = field(default_factory=dict)  # client -> what happened, one line
    seconds: Mapping[str, float] = field(default_factory=dict)  # never part of a digest


# --- protocols -------------------------------------------------------------------------------------------


class Client(Protocol):
    """A participant; the same object in every engine."""

    client_id: int

    def fit(self, round: int, state: State, config: FitConfig) -> ClientUpdate:
        """Start from `state`, learn from the own log, return the result."""
        ...


class Aggregator(Protocol):
    """A pure function: no clock, no random numbers, no file. It orders the updates by client id itself."""

    def __call__(self, server: ServerState, updates: Sequence[ClientUpdate]) -> ServerState:
        """The server after one more round."""
        ...


class Engine(Protocol):
    """Takes a state to clients and brings their updates back."""

    def run_round(self, round: int, state: State, config: FitConfig, ids: Sequence[int]) -> RoundResult:
        """Ask `ids`; a client that fails is a failure in the result, never an exception."""
        ...
