"""What a federation leaves behind: its last server state, a record of each round, and both in the form of files."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedmorl.federated.checkpoint import Checkpoint, plain
from fedmorl.federated.records import ServerState, State, digest
from fedmorl.federated.runtime import FlowerError, Outcome


@dataclass(frozen=True, kw_only=True)
class RoundRecord:
    """What happened in one round."""

    round: int
    asked: tuple[int, ...]
    used: tuple[int, ...]  # whose updates made the model
    failures: Mapping[int, str]  # client -> reason, see `screening.REASONS`
    details: Mapping[int, str]  # client -> what happened, one line
    failed: str  # why the whole round failed and the model stayed; "" if it did not
    stats: Mapping[int, Mapping[str, float]]  # of the clients used
    median_norm: float | None  # of the updates used
    bytes_up: int
    bytes_down: int
    digest: str  # of the model after the round
    seconds: Mapping[str, float] = field(compare=False)  # wall time, no part of what is reproduced

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> "RoundRecord":
        """From a checkpoint's JSON, where keys are text and what was not finite is None."""
        by_client = {name: {int(k): v for k, v in entry[name].items()} for name in ("failures", "details")}
        stats = {int(k): {s: math.nan if x is None else x for s, x in v.items()} for k, v in entry["stats"].items()}
        ids = {name: tuple(entry[name]) for name in ("asked", "used")}
        return cls(**{**entry, **by_client, **ids, "stats": stats})


@dataclass(frozen=True, kw_only=True)
class History:
    """The end of a federation, and how it came about."""

    server: ServerState
    rounds: tuple[RoundRecord, ...]

    @property
    def state(self) -> State:
        """The shared model."""
        return self.server.state

    @property
    def digest(self) -> str:
        """SHA-256 of the shared model."""
        return digest(self.server.state)

    @property
    def bytes_up(self) -> int:
        """Bytes from clients to the server, all rounds."""
        return sum(record.bytes_up for record in self.rounds)

    @property
    def bytes_down(self) -> int:
        """Bytes from the server to clients, all rounds."""
        return sum(record.bytes_down for record in self.rounds)


class FederationStopped(RuntimeError):
    """A round failed and the run was to stop; `history` holds what came before, and that round's record."""

    def __init__(self, message: str, history: History) -> None:
        super().__init__(message)
        self.history = history


def checkpoint_of(history: History) -> Checkpoint:
    """A history in the form that goes to files."""
    entries = [plain(dataclasses.asdict(record)) for record in history.rounds]
    return Checkpoint(server=history.server, history=entries)


def history_of(outcome: Outcome) -> History:
    """What a driver in another process has done, as if it had been here: its history, or what it raised."""
    kept = outcome.kept
    records = tuple(RoundRecord.of(entry) for entry in kept.history) if kept else ()
    made = History(server=kept.server, rounds=records) if kept else None
    if outcome.status == "stopped" and made:
        raise FederationStopped(outcome.message, made)
    if outcome.status == "refused":
        raise ValueError(outcome.message)
    if outcome.status != "done" or made is None:
        raise FlowerError(f"the driver failed: {outcome.message}")
    return made
