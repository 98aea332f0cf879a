"""The driver of a federation: sample, ask, screen, aggregate, checkpoint, record.

The contract between a model and the federation
-----------------------------------------------
This package knows states and clients, never what a model means. Whoever federates a model brings

* a `torch.nn.Module` of one architecture for all clients; only its parameters that require a gradient travel,
  under their names in `named_parameters()`, as floating numpy arrays (a `State`);
* a loss `loss(module, *batch) -> scalar`, the *mean* over the batch's rows, a pure function without random numbers,
  written for one client, and one object for all clients (a function of a module, not a lambda for each client):

      def loss(module, inputs, outcome):                     # (B, O), (B,)
          return cross_entropy(module(inputs), outcome)

* each client's log as tensors with its n transitions first, in the order in which the loss takes them.

      clients = [ModelClient(k, module, loss, tensors_of[k]) for k in range(K)]
      history = run_federation(clients, rounds=20, fit_config=FitConfig(local_steps=50), seed=0)
      load_into(trainable(module), history.state)            # the shared model

What differs between clients but must not be averaged (a normaliser) is a buffer or a frozen parameter: it stays at
home. What all must agree on (the initial parameters) is the state of the client with the lowest id, or `initial`.
A client of any other kind is an object with `client_id` and `fit(round, state, config) -> ClientUpdate`.
`ModelClient.fit(1, state, replace(config, seed=0))` alone is plain local training: the arm without federation.
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from fedmorl.federated import checkpoint as checkpoints
from fedmorl.federated.aggregators import FedAvg, TooFewUpdates
from fedmorl.federated.checkpoint import Checkpoint
from fedmorl.federated.history import FederationStopped, History, RoundRecord, checkpoint_of, history_of
from fedmorl.federated.loop import InProcessLoop
from fedmorl.federated.plan import Plan, Recipe
from fedmorl.federated.records import (
    MAX_WORD,
    Aggregator,
    Client,
    ClientUpdate,
    Engine,
    FitConfig,
    RoundResult,
    ServerState,
    State,
    as_state,
    digest,
    payload_bytes,
    sample_ids,
)
from fedmorl.federated.runtime import simulate
from fedmorl.federated.screening import MaxNorm, Screened, screen

FEDAVG = FedAvg()  # frozen, so fit for a default
SCALAR_BYTES = 8  # n, and each number of the statistics


def run_federation(
    clients: Sequence[Client],
    aggregator: Aggregator = FEDAVG,
    *,
    engine: Literal["loop", "batched", "flower"] | Engine = "batched",
    rounds: int,
    fit_config: FitConfig,
    seed: int,
    fraction: float = 1.0,
    min_updates: int = 1,
    on_failed_round: Literal["stop", "continue"] = "stop",
    max_norm: MaxNorm = "auto",
    initial: State | None = None,
    checkpoint: Path | str | None = None,
    progress: bool | None = None,
) -> History:
    """Federate: the rounds of FedMORL's Algorithm 1, lines 2 to 8.

    Parameters
    ----------
    clients : sequence of Client or Recipe
        With ids that differ; a recipe is made into its client here. For an engine of your own only `client_id` is
        read, and for "flower" all must be recipes.
    aggregator : Aggregator
        How updates become one state, see `fedmorl.federated.aggregators`.
    engine : "loop", "batched", "flower" or an Engine
        The reference; all clients stacked; Flower's simulation runtime (extra `federated`); or your own.
    rounds : int
        Rounds in all, those of a checkpoint included.
    fit_config : FitConfig
        What clients do in a round; its `seed` is set here.
    seed : int
        From 0 to 2**32 - 1. Equal arguments give equal models, whatever the order of arrival.
    fraction : float
        Share of the clients that a round asks, rounded up.
    min_updates : int
        A round with fewer valid updates fails: the model stays.
    on_failed_round : "stop" or "continue"
        Raise `FederationStopped`, or go on with the old model.
    max_norm : float, "auto" or None
        Bound on |x_k - w|; "auto" is 10 times the median of the last round with updates (in round 1, of this one).
    initial : State, optional
        Where round 1 starts; by default the `state()` of the client with the lowest id.
    checkpoint : path, optional
        Folder to write after each round and to resume from. A run of other settings, clients or code is refused.
    progress : bool, optional
        A progress bar; by default if standard error is a terminal.

    Raises
    ------
    ValueError
        If an argument is out of range, models differ in shape, or the checkpoint does not fit.
    FederationStopped
        If a round failed and `on_failed_round` is "stop".
    FlowerError
        If Flower's processes end without an outcome.

    Notes
    -----
    Bytes on the air are those of the arrays, and 8 for n and for each statistic; framing is the transport's.

    Source: FedMORL, Algorithm 1.
    Departs from source: a fixed number of rounds, not "until convergence", which the paper does not define.
    """
    clients = _checked_clients(clients)
    ids = tuple(client.client_id for client in clients)
    _check(ids, rounds, fit_config, seed, fraction, min_updates, on_failed_round, max_norm)
    if engine == "flower":
        rest: dict[str, Any] = {"fraction": fraction, "min_updates": min_updates, "on_failed_round": on_failed_round}
        rest |= {"aggregator": aggregator, "max_norm": max_norm, "seed": seed}
        plan = Plan(clients=_recipes(clients), rounds=rounds, fit=fit_config, **rest)
        return history_of(simulate(plan, initial, None if checkpoint is None else Path(checkpoint), progress))
    clients = tuple(client.make() if isinstance(client, Recipe) else client for client in clients)
    config = replace(fit_config, seed=seed)
    start = _initial(clients, initial)
    identity = {
        **_identity(aggregator, engine, config, start, clients),
        **{"fraction": fraction, "min_updates": min_updates, "max_norm": max_norm},
    }
    runner = _engine(engine, clients)
    server, records = _resume(clients, start, checkpoint, identity, rounds)
    bar = tqdm(total=rounds, initial=server.round, desc="federation", unit="round", disable=_disable(progress))
    with bar:
        for round in range(server.round + 1, rounds + 1):
            asked = sample_ids(ids, fraction, seed, round)
            begin = time.perf_counter()
            result = runner.run_round(round, server.state, config, asked)
            last_median = next((r.median_norm for r in reversed(records) if r.median_norm is not None), None)
            screened = screen(result.updates, server, asked, round, max_norm, last_median)
            after, failed = _aggregated(server, screened, aggregator, min_updates)
            seconds = {**result.seconds, "round": time.perf_counter() - begin}
            records.append(_record(server, after, asked, result, screened, failed, seconds))
            if failed and on_failed_round == "stop":
                raise FederationStopped(_story(records[-1]), History(server=server, rounds=tuple(records)))
            server = after
            if checkpoint is not None:
                _save(Path(checkpoint), server, clients, records, identity)
            bar.update()
    return History(server=server, rounds=tuple(records))


# --- one round -------------------------------------------------------------------------------------------


def _aggregated(
    server: ServerState, screened: Screened, aggregator: Aggregator, min_updates: int
) -> tuple[ServerState, str]:
    """(server after the round, why the round failed). A failed round leaves the model as it is."""
    stays = replace(server, round=server.round + 1)
    if len(screened.updates) < min_updates:
        return stays, f"{len(screened.updates)} valid updates, {min_updates} needed"
    try:
        after = aggregator(server, screened.updates)
    except TooFewUpdates as error:
        return stays, str(error)
    if not all(np.isfinite(value).all() for value in after.state.values()):
        return stays, "the aggregate is not finite"
    return replace(after, round=server.round + 1), ""


def _record(
    before: ServerState,
    after: ServerState,
    asked: tuple[int, ...],
    result: RoundResult,
    screened: Screened,
    failed: str,
    seconds: Mapping[str, float],
) -> RoundRecord:
    answered = {update.client_id for update in result.updates}
    silent = [i for i in asked if i not in answered and i not in result.failures]
    failures = {**dict.fromkeys(silent, "timeout"), **result.failures, **screened.failures}
    details = {**dict.fromkeys(silent, "no answer"), **result.details, **screened.details}
    used = () if failed else screened.updates
    return RoundRecord(
        round=after.round,
        asked=asked,
        used=tuple(update.client_id for update in used),
        failures=dict(sorted(failures.items())),
        details=dict(sorted(details.items())),
        failed=failed,
        stats={update.client_id: {k: float(v) for k, v in update.stats.items()} for update in used},
        median_norm=None if failed else screened.median_norm,
        bytes_up=sum(_upload_bytes(update) for update in result.updates),
        bytes_down=len(asked) * payload_bytes(before.state),
        digest=digest(after.state),
        seconds=seconds,
    )


def _upload_bytes(update: ClientUpdate) -> int:
    return payload_bytes(update.state) + SCALAR_BYTES * (1 + len(update.stats))


def _story(record: RoundRecord) -> str:
    who = "; ".join(f"client {i}: {reason}, {record.details[i]}" for i, reason in record.failures.items())
    return f"round {record.round} failed: {record.failed}" + (f" ({who})" if who else "")


# --- arguments -------------------------------------------------------------------------------------------


def _checked_clients(clients: Sequence[Client]) -> tuple[Client, ...]:
    """Sorted by id."""
    ordered = tuple(sorted(clients, key=lambda client: client.client_id))
    ids = [client.client_id for client in ordered]
    if not ids:
        raise ValueError("clients must hold at least one client; got none")
    if not 0 <= ids[0] <= ids[-1] < MAX_WORD:
        raise ValueError(f"client ids must be from 0 to 2**32 - 1; got {ids[0]} to {ids[-1]}")
    twice = sorted({i for i, j in pairwise(ids) if i == j})
    if twice:
        raise ValueError(f"client ids must differ; {twice[0]} occurs twice")
    return ordered


def _check(
    ids: Sequence[int],
    rounds: int,
    fit_config: FitConfig,
    seed: int,
    fraction: float,
    min_updates: int,
    on_failed_round: str,
    max_norm: MaxNorm,
) -> None:
    if rounds < 1:
        raise ValueError(f"rounds must be >= 1; got {rounds}")
    if not 0 <= seed < MAX_WORD:
        raise ValueError(f"seed must be from 0 to 2**32 - 1, one word of every client's address; got {seed}")
    if fit_config.seed not in (None, seed):
        raise ValueError(f"fit_config.seed is {fit_config.seed} and seed is {seed}; leave the first out")
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be above 0 and at most 1; got {fraction}")
    n_asked = len(sample_ids(ids, fraction, seed, 1))
    if not 1 <= min_updates <= n_asked:
        raise ValueError(f"min_updates must be from 1 to {n_asked}, the clients a round asks; got {min_updates}")
    if on_failed_round not in ("stop", "continue"):
        raise ValueError(f"on_failed_round must be 'stop' or 'continue'; got {on_failed_round!r}")
    if max_norm is not None and max_norm != "auto" and not (isinstance(max_norm, float | int) and max_norm > 0):
        raise ValueError(f"max_norm must be > 0, 'auto' or None; got {max_norm!r}")


def _initial(clients: Sequence[Client], initial: State | None) -> State:
    """The state of round 0, which every client's model must fit."""
    states = {client.client_id: client.state() for client in clients if hasattr(client, "state")}
    if initial is None and clients[0].client_id not in states:
        raise ValueError(f"initial must be given, since client {clients[0].client_id} has no state() to start from")
    start = as_state(initial if initial is not None else states[clients[0].client_id], "initial")
    source = "initial" if initial is not None else f"client {clients[0].client_id}"
    for client_id, state in states.items():
        ours, theirs = _form(start), _form(state)
        for name in sorted({*ours, *theirs}):
            if ours.get(name) != theirs.get(name):
                raise ValueError(
                    f"all models must have one shape: {name} is {theirs.get(name, 'missing')} in client {client_id} "
                    f"and {ours.get(name, 'missing')} in {source}"
                )
    return start


def _form(state: State) -> dict[str, str]:
    return {name: f"{value.dtype} {value.shape}" for name, value in state.items()}


def _recipes(clients: Sequence[Client]) -> tuple[Recipe, ...]:
    """Clients that another process can make."""
    others = [client.client_id for client in clients if not isinstance(client, Recipe)]
    if others:
        raise ValueError(
            f"engine='flower' makes clients in processes of their own: each must be a Recipe, and client {others[0]} "
            "is an object of this process; write Recipe(client_id=..., build='module:function', options={...})"
        )
    return tuple(client for client in clients if isinstance(client, Recipe))


def _engine(engine: str | Engine, clients: Sequence[Client]) -> Engine:
    if engine == "loop":
        return InProcessLoop(clients)
    if engine == "batched":
        from fedmorl.federated.batched import InProcessBatched

        return InProcessBatched(clients)
    if isinstance(engine, str):
        raise ValueError(f"engine must be 'loop', 'batched', 'flower' or an Engine; got {engine!r}")
    return engine


def _disable(progress: bool | None) -> bool | None:
    return None if progress is None else not progress  # tqdm's None: only on a terminal


# --- checkpoints -----------------------------------------------------------------------------------------


def _identity(
    aggregator: Aggregator, engine: str | Engine, config: FitConfig, start: State, clients: Sequence[Client]
) -> dict[str, Any]:
    """All that a run's result depends on; a checkpoint of another is refused."""
    logs = {client.client_id: getattr(client, "content_hash", "") for client in clients}
    packages = ("fedmorl", "numpy", "torch")
    return {
        **{f"fit_config.{name}": value for name, value in dataclasses.asdict(config).items()},
        **{f"the version of {name}": version(name) for name in packages},
        **{f"{checkpoints.LOG}{client_id}": value for client_id, value in logs.items() if value},
        "clients": list(logs),
        "format": checkpoints.FORMAT,
        "aggregator": repr(aggregator) if dataclasses.is_dataclass(aggregator) else type(aggregator).__qualname__,
        "engine": engine if isinstance(engine, str) else type(engine).__qualname__,
        "initial": digest(start),
    }


def _resume(
    clients: Sequence[Client], start: State, folder: Path | str | None, identity: Mapping[str, Any], rounds: int
) -> tuple[ServerState, list[RoundRecord]]:
    """The server and the records to go on from; clients keep what they kept then, and nothing of an earlier run."""
    found = checkpoints.read(Path(folder), identity) if folder is not None else None
    if found is None:
        found = Checkpoint(server=ServerState(round=0, state=start))
    if found.server.round > rounds:
        raise ValueError(f"{folder} holds {found.server.round} rounds and rounds = {rounds}; choose another folder")
    for client in clients:
        if hasattr(client, "carry"):
            client.carry(found.carried.get(client.client_id, {}))
    return found.server, [RoundRecord.of(entry) for entry in found.history]


def _save(
    folder: Path,
    server: ServerState,
    clients: Sequence[Client],
    records: Sequence[RoundRecord],
    identity: Mapping[str, Any],
) -> None:
    carried = {client.client_id: client.carried() for client in clients if hasattr(client, "carried")}
    kept = replace(checkpoint_of(History(server=server, rounds=tuple(records))), carried=carried)
    checkpoints.write(folder, kept, identity)
