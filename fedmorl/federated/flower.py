"""The Flower engine: our driver runs inside Flower's ServerApp, and each client answers from a process of its own.

`run_federation` is the same as in one process, so sampling, screening, aggregation and resume are; only the way to a
client and back is Flower's. Its node ids are random, so an engine first asks every node which client it is and from
which parameters it starts: the server needs neither a model nor a log. A node that joins or comes back is asked when
the next round starts. Importing this module imports flwr, and nothing else in `fedmorl` does.

Source: flwr 1.41 (Apache-2.0), its documented classes alone.
"""

import dataclasses
import json
import os
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedmorl.federated.core import run_federation
from fedmorl.federated.history import FederationStopped, History, checkpoint_of
from fedmorl.federated.loop import answer
from fedmorl.federated.plan import Plan, Recipe, refuse_carry
from fedmorl.federated.records import Client, ClientUpdate, FitConfig, RoundResult, State
from fedmorl.federated.runtime import FOLDER_VARIABLE, read_order, write_outcome

POLL_S = 0.25
GREETING_SHARE = 0.5  # of a round's timeout, at the most, to meet nodes that are new
CRASHED, NODE_GONE = 8, 5  # flwr's codes of an error reply: the client's process is gone, or its node
REASONS = {CRASHED: "died", NODE_GONE: "died", 3: "timeout", 4: "timeout"}  # 3, 4: a message expired


# --- the server's side -----------------------------------------------------------------------------------


class Remote:
    """What the server knows of a client elsewhere; `state` and `content_hash` once it has answered."""

    def __init__(self, client_id: int) -> None:
        self.client_id = client_id

    def fit(self, round: int, state: State, config: FitConfig) -> ClientUpdate:
        """Not here: the engine asks it."""
        raise TypeError(f"client {self.client_id} is elsewhere; the engine asks it")


class Greeted(Remote):
    """A client that has said from where it starts."""

    def __init__(self, client_id: int, state: State, content_hash: str) -> None:
        super().__init__(client_id)
        self._state, self.content_hash = state, content_hash

    def state(self) -> State:
        """The client's own initial parameters."""
        return self._state


class FlowerEngine:
    """Takes a state to the nodes of a Flower grid and brings updates back, by a deadline.

    Parameters
    ----------
    grid : flwr.serverapp.Grid
        As the ServerApp gets it, of a simulation or of a deployment.
    ids : sequence of int
        The clients that belong to the federation.
    timeout_s : float
        Wall time of a round [s], and of the wait for the first clients: who is silent so long is a `timeout`.
    client_of_node : mapping, optional
        Node -> client, as the nodes' keys were registered; a node that states another client's id is not believed.

    Raises
    ------
    ValueError
        If no client answers within `timeout_s`.
    """

    def __init__(
        self, grid: Grid, ids: Sequence[int], timeout_s: float, client_of_node: Mapping[int, int] | None = None
    ) -> None:
        self.grid, self.timeout_s = grid, timeout_s
        self._client_of_node = dict(client_of_node or {})
        self._node_of: dict[int, int] = {}
        self._remotes = {client_id: Remote(client_id) for client_id in ids}
        self._complaints: dict[int, str] = {}
        deadline = time.monotonic() + timeout_s
        while len(self._strangers()) < len(ids) and time.monotonic() < deadline - timeout_s / 2:
            time.sleep(POLL_S)
        answered: set[int] = set()
        while len(answered) < len(ids) and time.monotonic() < deadline:
            answered |= self._meet([node for node in self._strangers() if node not in answered], deadline)
            time.sleep(POLL_S)
        if not self._node_of:
            told = "; ".join(f"client {i}: {text}" for i, text in sorted(self._complaints.items()))
            raise ValueError(f"no client answered within {timeout_s:g} s" + (f" ({told})" if told else ""))

    def clients(self) -> list[Client]:
        """Stand-ins for `run_federation`, in the order of their ids."""
        return [self._remotes[client_id] for client_id in sorted(self._remotes)]

    def run_round(self, round: int, state: State, config: FitConfig, ids: Sequence[int]) -> RoundResult:
        """Ask `ids`; who has no node, does not answer, or answers something else fails, and the rest goes on."""
        refuse_carry(config)
        start = time.perf_counter()
        deadline = time.monotonic() + self.timeout_s
        if any(client_id not in self._connected() for client_id in ids):
            self._meet(self._strangers(), time.monotonic() + GREETING_SHARE * self.timeout_s)
        connected = self._connected()
        content = RecordDict({"state": record_of(state), "fit": ConfigRecord(_fit_order(round, config))})
        nodes = {connected[client_id]: client_id for client_id in ids if client_id in connected}
        updates: list[ClientUpdate] = []
        failed = {i: ("timeout", self._complaints.get(i, "no node of it is connected")) for i in ids}
        failed |= {i: ("timeout", f"no answer within {self.timeout_s:g} s") for i in nodes.values()}
        for node, reply in self._replies(nodes, content, MessageType.TRAIN, deadline):
            try:
                updates.append(_update_of(reply, nodes[node]))
                del failed[nodes[node]]
            except _Failure as failure:
                failed[nodes[node]] = failure.reason, failure.detail
        return RoundResult(
            updates=tuple(updates),
            failures={i: reason for i, (reason, _) in failed.items()},
            details={i: detail for i, (_, detail) in failed.items()},
            seconds={"fit": time.perf_counter() - start},
        )

    def _connected(self) -> dict[int, int]:
        """Client -> its node, for those that Flower hears of."""
        alive = set(self.grid.get_node_ids())
        return {client_id: node for client_id, node in self._node_of.items() if node in alive}

    def _strangers(self) -> list[int]:
        """Nodes that have not said who they are."""
        return sorted(set(self.grid.get_node_ids()) - set(self._node_of.values()))

    def _meet(self, nodes: Sequence[int], deadline: float) -> set[int]:
        """Ask nodes for their client id, initial parameters and the hash of their log; who has answered, if badly."""
        answered = set()
        for node, reply in self._replies(nodes, RecordDict(), MessageType.QUERY, deadline):
            answered.add(node)
            expected = self._client_of_node.get(node)
            try:
                greeted = _greeting_of(reply)
            except _Failure as failure:
                self._complain(failure.client_id if expected is None else expected, failure.detail)
                continue
            client_id = greeted.client_id
            if expected is not None and client_id != expected:
                self._complain(expected, f"its node says that it is client {client_id}")
            elif client_id in self._remotes and client_id not in self._connected():
                self._node_of[client_id] = node
                self._remotes[client_id] = greeted
        return answered

    def _complain(self, client_id: int | None, text: str) -> None:
        if client_id is not None:
            self._complaints[client_id] = text

    def _replies(
        self, nodes: Iterable[int], content: RecordDict, kind: str, deadline: float
    ) -> Iterator[tuple[int, Message]]:
        """(node, its reply) as they come, until all have answered or the deadline has passed."""
        ttl = max(deadline - time.monotonic(), POLL_S)  # who is late need not begin
        awaited: dict[str, int] = {}
        for node in nodes:  # one by one: a node that is gone spoils no other's message
            awaited |= {name: node for name in self.grid.push_messages([Message(content, node, kind, ttl=ttl)]) if name}
        while awaited:
            late = time.monotonic() > deadline
            for reply in self.grid.pull_messages(list(awaited)):
                node_of_reply = awaited.pop(reply.metadata.reply_to_message_id, None)
                if node_of_reply is not None:
                    yield node_of_reply, reply
            if late:
                return
            time.sleep(POLL_S if awaited else 0)


# --- what travels ----------------------------------------------------------------------------------------


class _Failure(Exception):
    """A reply that is no update."""

    def __init__(self, reason: str, detail: str, client_id: int | None = None) -> None:
        super().__init__(detail)
        self.reason, self.detail, self.client_id = reason, detail, client_id


def record_of(state: State) -> ArrayRecord:
    """A state as Flower carries it: numpy's own format, without pickle."""
    return ArrayRecord({name: Array(state[name]) for name in sorted(state)})


def state_of(record: ArrayRecord) -> dict[str, Any]:
    """The inverse of `record_of`; whatever arrays came, unchecked."""
    return {name: array.numpy() for name, array in record.items()}


def _fit_order(round: int, config: FitConfig) -> dict[str, Any]:
    return {"round": round, "config": json.dumps(dataclasses.asdict(config))}


def _content(reply: Message) -> RecordDict:
    if reply.has_error():
        text = " ".join(str(reply.error.reason).split())
        raise _Failure(REASONS.get(reply.error.code, "error"), text[-300:] or "an error without a reason")
    if "failure" in reply.content:
        told = reply.content["failure"]
        raise _Failure("error", str(told["what"])[:1000], int(told["client-id"]))
    return reply.content


def _update_of(reply: Message, client_id: int) -> ClientUpdate:
    """The update in a reply; what it holds is for the driver to check."""
    content = _content(reply)
    try:
        facts, stats = dict(content["facts"]), dict(content["stats"])
        if facts["client-id"] != client_id:
            raise _Failure("error", f"it answered under the id {facts['client-id']}")
        return ClientUpdate(
            client_id=client_id,
            round=facts["round"],
            n=facts["n"],
            state=state_of(content["state"]),
            stats={name: float(value) for name, value in stats.items()},
        )
    except _Failure:
        raise
    except Exception as error:  # whatever came over the wire, the round goes on
        raise _Failure("error", f"its answer is no update ({type(error).__name__}: {error})") from None


def _greeting_of(reply: Message) -> Greeted:
    content = _content(reply)
    try:
        facts = content["facts"]
        return Greeted(int(facts["client-id"]), state_of(content["state"]), str(facts["content-hash"]))
    except Exception as error:
        raise _Failure("error", f"its greeting cannot be read ({type(error).__name__}: {error})") from None


# --- the client's side -----------------------------------------------------------------------------------


def client_app(recipes: Sequence[Recipe]) -> ClientApp:
    """A Flower ClientApp that is the client at the node's `partition-id`; its own `log`, if it names one, counts."""
    app = ClientApp()

    @app.query()
    def greet(message: Message, context: Context) -> Message:
        recipe = _own(recipes, context)
        return _reply(message, recipe, lambda: _greeting(recipe))

    @app.train()
    def fit(message: Message, context: Context) -> Message:
        recipe = _own(recipes, context)
        return _reply(message, recipe, lambda: _fitted(recipe, message.content))

    return app


def _own(recipes: Sequence[Recipe], context: Context) -> Recipe:
    recipe = recipes[int(context.node_config["partition-id"])]
    own = {name: context.node_config[name] for name in ("log",) if name in context.node_config}
    return dataclasses.replace(recipe, options={**recipe.options, **own})


def _reply(message: Message, recipe: Recipe, make: Any) -> Message:
    """What `make` gives, or the exception as one line, as the loop reports it."""
    try:
        content = make()
    except Exception as error:
        what = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        content = RecordDict({"failure": ConfigRecord({"client-id": recipe.client_id, "what": what})})
    return Message(content, reply_to=message)


def _greeting(recipe: Recipe) -> RecordDict:
    client: Any = _made(json.dumps(dataclasses.asdict(recipe)))
    facts = {"client-id": recipe.client_id, "content-hash": getattr(client, "content_hash", "")}
    return RecordDict({"state": record_of(client.state()), "facts": ConfigRecord(facts)})


def _fitted(recipe: Recipe, content: RecordDict) -> RecordDict:
    client, order = _made(json.dumps(dataclasses.asdict(recipe))), content["fit"]
    config = FitConfig(**json.loads(str(order["config"])))
    update = answer(client, int(order["round"]), state_of(content["state"]), config)
    n = int(update.n) if isinstance(update.n, np.integer) else update.n
    facts = {"client-id": update.client_id, "round": update.round, "n": n}
    stats = {name: float(value) for name, value in update.stats.items()}
    return RecordDict({"state": record_of(update.state), "facts": MetricRecord(facts), "stats": MetricRecord(stats)})


@lru_cache(maxsize=16)  # a simulation's worker answers for many clients, many times
def _made(recipe: str) -> Client:
    return Recipe(**json.loads(recipe)).make()


# --- the driver in Flower's process ----------------------------------------------------------------------


def server_app() -> ServerApp:
    """A Flower ServerApp that runs the order in the folder that the environment names, and leaves the outcome there."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        serve(grid, Path(os.environ[FOLDER_VARIABLE]))

    return app


def serve(grid: Grid, folder: Path) -> None:
    """Run `order.json` of the folder; whatever happens, `outcome.json` says what."""
    try:
        order = read_order(folder)
        history = _federate(grid, order.plan, order.initial, order.checkpoint, order.client_of_node)
        write_outcome(folder, "done", "", checkpoint_of(history))
    except FederationStopped as stopped:
        write_outcome(folder, "stopped", str(stopped), checkpoint_of(stopped.history))
    except (ValueError, OSError) as error:
        traceback.print_exc()  # to the log
        write_outcome(folder, "refused", str(error))
    except BaseException as error:
        write_outcome(folder, "failed", "".join(traceback.format_exception(error))[-4000:])
        raise


def _federate(
    grid: Grid, plan: Plan, initial: State | None, checkpoint: Path, client_of_node: Mapping[int, int]
) -> History:
    engine = FlowerEngine(grid, [r.client_id for r in plan.clients], plan.round_timeout_s, client_of_node)
    clients = engine.clients()
    if initial is None:  # of the lowest id among those that have answered; all must have one form
        initial = next(client.state() for client in clients if isinstance(client, Greeted))
    return run_federation(
        clients, engine=engine, initial=initial, checkpoint=checkpoint, progress=False, **plan.arguments()
    )
