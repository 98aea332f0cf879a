"""Flower: its simulation and its deployment end where the loop ends, whatever fails on the way, and call nobody."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import flower_clients
import numpy as np
import pytest

flwr = pytest.importorskip("flwr", reason="the extra `federated` is not installed here; `make test-all` has it")

from flwr.app import ArrayRecord, Context, Error, Message, MessageType, MetricRecord, RecordDict  # noqa: E402
from flwr.serverapp import strategy  # noqa: E402
from flwr.supercore.task_identity import TaskIdentity  # noqa: E402

from fedmorl.federated import (  # noqa: E402
    ClientUpdate,
    FedAdam,
    FedAvg,
    FitConfig,
    History,
    Krum,
    Median,
    Plan,
    Recipe,
    ServerState,
    TrimmedMean,
    digest,
    run_federation,
)
from fedmorl.federated import checkpoint as checkpoints  # noqa: E402
from fedmorl.federated.deployment import client, join, serve  # noqa: E402
from fedmorl.federated.flower import FlowerEngine, client_app, record_of  # noqa: E402
from fedmorl.federated.keys import make_keys  # noqa: E402
from fedmorl.federated.runtime import free_port  # noqa: E402

pytestmark = pytest.mark.flower

TESTS = Path(__file__).resolve().parent
TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1  # messages are made only within a run
FIT = FitConfig(local_steps=3, batch_size=8, lr=0.01)
BUSY = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))  # others on this machine: time goes so much slower


def looped(clients: Sequence[Recipe], rounds: int, **options: object) -> History:
    return run_federation(clients, engine="loop", rounds=rounds, fit_config=FIT, seed=7, **options)


# --- the three engines, with no network but loopback -----------------------------------------------------

ALL_ENGINES = """
import json, sys, time
from pathlib import Path
from dataclasses import asdict
import flower_clients
from fedmorl.federated import FedAdam, FitConfig, Plan, run_federation
from fedmorl.federated.deployment import local

fit = FitConfig(local_steps=3, batch_size=8, lr=0.01)
options = {"rounds": 2, "fit_config": fit, "seed": 7, "aggregator": FedAdam(), "fraction": 0.6}
clients = flower_clients.models(3)
plan = Plan(clients=clients, rounds=2, fit=fit, seed=7, aggregator=FedAdam(), fraction=0.6, round_timeout_s=400)
told = {}
for name in ("loop", "flower", "local"):
    begin = time.monotonic()
    if name == "local":
        history = local(plan, Path("deployment"), progress=False)
    else:
        history = run_federation(clients, engine=name, **options)
    rounds = [{k: v for k, v in asdict(r).items() if k != "seconds"} for r in history.rounds]
    told[name] = {"digest": history.digest, "rounds": rounds, "seconds": time.monotonic() - begin}
    told[name]["round seconds"] = [r.seconds["round"] for r in history.rounds]
json.dump(told, open("told.json", "w"), default=str)
"""

LOOPBACK_UP = """
import fcntl, os, socket, struct, sys
with socket.socket() as s:  # SIOCSIFFLAGS: up and running
    fcntl.ioctl(s, 0x8914, struct.pack("16sH14x", b"lo", 0x41))
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""

# every Python process of the run writes down which names it resolves
LISTENER = """
import os, socket
_real = socket.getaddrinfo
def getaddrinfo(host, *rest, **named):
    name = host.decode() if isinstance(host, bytes) else host
    if name not in (None, "", "localhost", "127.0.0.1", "::1", "0.0.0.0", socket.gethostname()):
        with open(os.environ["NAMES"], "a") as file:
            file.write(f"{name}\\n")
    return _real(host, *rest, **named)
socket.getaddrinfo = getaddrinfo
"""


def namespace_permitted() -> bool:
    try:
        return subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """One run of all engines; cut off from every network but loopback where that is permitted."""
    folder = tmp_path_factory.mktemp("engines")
    (folder / "run.py").write_text(ALL_ENGINES)
    (folder / "listener").mkdir()
    (folder / "listener" / "sitecustomize.py").write_text(LISTENER)
    (folder / "names").touch()
    command, cut_off = [sys.executable, "run.py"], namespace_permitted()
    if cut_off:
        command = ["unshare", "-n", sys.executable, "-c", LOOPBACK_UP, "run.py"]
    path = os.pathsep.join([str(folder / "listener"), str(TESTS)])
    environment = {**os.environ, "PYTHONPATH": path, "NAMES": str(folder / "names"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads((folder / "told.json").read_text())
    return {**told, "cut off": cut_off, "names": (folder / "names").read_text().split()}


def test_loop_simulation_and_deployment_end_bitwise_alike(engines):
    """The model, the sampling, the failures and the statistics; with TLS and keys in the deployment."""
    assert engines["loop"]["digest"] == engines["flower"]["digest"] == engines["local"]["digest"]
    assert engines["loop"]["rounds"] == engines["flower"]["rounds"] == engines["local"]["rounds"]
    assert [len(r["asked"]) for r in engines["loop"]["rounds"]] == [2, 2], "nobody was left out: sampling is untested"


def test_two_deployed_rounds_take_less_than_two_minutes(engines):
    assert engines["local"]["seconds"] < 120 * BUSY, engines["local"]["round seconds"]


def test_nobody_outside_is_called(engines):
    assert engines["names"] == [], "these names were resolved"


def test_everything_runs_with_the_network_cut_off(engines):
    if not engines["cut off"]:
        pytest.skip("`unshare -n` is not permitted here: it needs root, or user namespaces")
    assert engines["local"]["digest"] == engines["loop"]["digest"]


# --- faults over the wire --------------------------------------------------------------------------------

FAULTS = {
    1: {1: "raises", 2: "100 x the norm", 3: "shape"},
    2: {1: "NaN", 2: "gone"},
    3: {1: "Inf", 2: "killed"},
}
NAMED = [
    {1: {"error"}, 2: {"non_finite"}, 3: {"non_finite"}},
    {1: {"norm"}, 2: {"timeout", "died"}, 3: {"timeout", "died"}},
    {1: {"bad_shape"}, 2: {"timeout", "died"}},
]


def when_round(checkpoint: Path, round: int, act: Callable[[], None]) -> threading.Thread:
    """Act as soon as the round's checkpoint is there."""

    def wait() -> None:
        while checkpoints.last_round(checkpoint) < round:
            time.sleep(0.1)
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def test_faulty_dead_and_unreachable_clients_are_named_and_never_poison_the_model(tmp_path):
    """Four clients on a wire with TLS: one is honest; another's process dies in mid-round, and a node is killed."""
    timeout_s = 60.0 * BUSY
    wire = {k: {r: f for r, f in faults.items() if f != "gone"} for k, faults in FAULTS.items()}
    clients = flower_clients.drifts(wire, 4)
    plan = Plan(clients=clients, rounds=3, fit=FIT, seed=7, round_timeout_s=timeout_s)
    keys, port, stop = tmp_path / "keys", free_port(), threading.Event()
    make_keys(keys, 4)
    address = f"127.0.0.1:{port}"
    others = [
        threading.Thread(target=join, args=(k, address, tmp_path / str(k)), kwargs={"keys": keys, "stop": stop})
        for k in (0, 1, 3)
    ]
    for thread in others:
        thread.start()
    gone = threading.Event()

    def fragile() -> None:
        """Client 2: joins as the others do, and after round 1 its node is killed for good."""
        while not gone.is_set():
            with client(2, address, tmp_path / "2", keys=keys) as started:
                while started.poll() is None and not gone.wait(0.05):
                    pass
                if gone.is_set():
                    os.killpg(started.pid, signal.SIGKILL)
            gone.wait(1)

    others.append(threading.Thread(target=fragile))
    others[-1].start()
    when_round(tmp_path / "server" / "checkpoint", 1, gone.set)
    try:
        history = serve(plan, tmp_path / "server", port=port, keys=keys, progress=False)
    finally:
        stop.set()
        gone.set()
        for thread in others:
            thread.join()
    for record, named in zip(history.rounds, NAMED, strict=True):
        assert record.failures.keys() == named.keys(), (record.failures, record.details)
        assert all(record.failures[k] in named[k] for k in named), record.failures
        assert record.seconds["round"] < 1.6 * timeout_s + 10, "the round did not end within its timeout"
    assert history.rounds[0].details[1] == "OSError: the disk is gone"
    assert [r.used for r in history.rounds] == [(0,), (0,), (0, 3)] and not any(r.failed for r in history.rounds)
    silent = {**FAULTS, 2: {1: "NaN", 2: "raises", 3: "raises"}, 3: {1: "Inf", 2: "raises"}}
    without = looped(flower_clients.drifts(silent, 4, here=True), 3)
    assert [r.digest for r in history.rounds] == [r.digest for r in without.rounds]
    assert all(np.isfinite(value).all() for value in history.state.values())


def test_faults_in_the_simulation_are_those_of_the_loop():
    """All that a process can do without dying; Ray loses its workers where one is killed."""
    faults = {1: {1: "raises", 2: "NaN"}, 2: {1: "shape", 2: "100 x the norm"}, 3: {2: "Inf"}}
    options = {"rounds": 2, "fit_config": FIT, "seed": 7, "progress": False}
    flower = run_federation(flower_clients.drifts(faults, 5), engine="flower", **options)
    loop = run_federation(flower_clients.drifts(faults, 5), engine="loop", **options)
    assert flower.rounds == loop.rounds and flower.digest == loop.digest
    assert [r.failures for r in flower.rounds] == [
        {1: "error", 2: "bad_shape"},
        {1: "non_finite", 2: "norm", 3: "non_finite"},
    ]


# --- the server dies -------------------------------------------------------------------------------------


def write_plan(folder: Path, k: int, rounds: int) -> Path:
    """A file of a federation whose clients are of this test."""
    lines = [f"client: {flower_clients.MODEL}", f"n_clients: {k}", f"rounds: {rounds}", "seed: 7"]
    lines += ["fit: {local_steps: 3, batch_size: 8, lr: 0.01}", f"round_timeout_s: {180 * BUSY:g}"]
    path = folder / "federation.yml"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_server_that_is_killed_resumes_bitwise_with_the_clients_that_waited(tmp_path):
    """By the commands that a person types: SIGKILL in mid-round 2, then the same command again."""
    plan, port = write_plan(tmp_path, 2, 3), free_port()
    fedmorl = [sys.executable, "-m", "fedmorl.cli", "federate"]
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    run = {"cwd": tmp_path, "env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    subprocess.run([*fedmorl, "keys", "keys", "--clients", "2"], check=True, cwd=tmp_path, env=environment)
    serving = [*fedmorl, "server", str(plan), "--keys", "keys", "--port", str(port), "--out", "server"]
    joined = [
        subprocess.Popen(
            [*fedmorl, "client", "--id", str(k), "--server", f"127.0.0.1:{port}", "--keys", "keys", "--out", f"c{k}"],
            **run,
        )
        for k in range(2)
    ]
    try:
        first = subprocess.Popen(serving, **run)
        checkpoint = tmp_path / "server" / "checkpoint"
        when_round(checkpoint, 1, lambda: time.sleep(2.0)).join(timeout=600)
        first.kill()
        first.wait()
        assert checkpoints.last_round(checkpoint) == 1, "it was killed too late"
        again = subprocess.run(serving, **run, timeout=900)
        assert again.returncode == 0, again.stderr.decode()
    finally:
        for process in joined:
            process.terminate()
        for process in joined:
            process.wait(60)
    told = json.loads((tmp_path / "server" / "history.json").read_text())
    whole = looped(tuple(Recipe(client_id=k, build=flower_clients.MODEL) for k in range(2)), 3)
    assert told["digest"] == whole.digest
    assert [entry["digest"] for entry in told["rounds"]] == [record.digest for record in whole.rounds]


# --- the engine alone, on a grid of this test ------------------------------------------------------------


class Wire:
    """A grid without a network: node 100 + k is client k, unless told otherwise. `spoil` changes replies."""

    def __init__(self, recipes: Sequence[Recipe], nodes: Sequence[int]) -> None:
        self.app, self.nodes, self.partition = client_app(recipes), list(nodes), {n: n - 100 for n in nodes}
        self.spoil: Callable[[int, Message], Message | None] = lambda node, reply: reply
        self.replies: list[Message] = []
        self.asked: list[tuple[int, str]] = []

    def get_node_ids(self) -> list[int]:
        return self.nodes

    def push_messages(self, messages: Sequence[Message]) -> list[str | None]:
        return [self._push(message) for message in messages]

    def _push(self, message: Message) -> str | None:
        node = message.metadata.dst_node_id
        self.asked.append((node, message.metadata.message_type))
        if node not in self.nodes:
            return None
        name = f"message {len(self.asked)}"
        message.metadata.__dict__["_message_id"] = name
        where = {"partition-id": self.partition[node]}
        context = Context(run_id=1, node_id=node, node_config=where, state=RecordDict(), run_config={})
        reply = self.spoil(node, self.app(message, context))
        if reply is not None:
            self.replies.append(reply)
        return name

    def pull_messages(self, names: Sequence[str]) -> Iterator[Message]:
        here, self.replies = self.replies, []
        return iter(here)


def wired(k: int = 3, **options: object) -> tuple[Wire, FlowerEngine]:
    recipes = flower_clients.drifts({}, k)
    wire = Wire(recipes, range(100, 100 + k))
    return wire, FlowerEngine(wire, range(k), options.pop("timeout_s", 2.0), **options)


def federate(engine: FlowerEngine, rounds: int = 1) -> History:
    initial = flower_clients.drift(0).state()
    options = {"rounds": rounds, "fit_config": FIT, "seed": 7, "initial": initial, "on_failed_round": "continue"}
    return run_federation(engine.clients(), engine=engine, **options)


def test_on_a_perfect_wire_the_engine_is_the_loop():
    _, engine = wired()
    assert federate(engine, 3).rounds == looped(flower_clients.drifts({}, 3), 3).rounds


def only(node: int, change: Callable[[Message], Message | None]) -> Callable[[int, Message], Message | None]:
    return lambda at, reply: change(reply) if at == node else reply


def without(name: str) -> Callable[[Message], Message]:
    def change(reply: Message) -> Message:
        del reply.content[name]
        return reply

    return change


def facts(**values: object) -> Callable[[Message], Message]:
    def change(reply: Message) -> Message:
        reply.content["facts"] = MetricRecord({**dict(reply.content["facts"]), **values})
        return reply

    return change


def torn(reply: Message) -> Message:
    array = next(iter(reply.content["state"].values()))
    array.data = array.data[:-3]
    return reply


def pickled(reply: Message) -> Message:
    import io

    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    next(iter(reply.content["state"].values())).data = buffer.getvalue()
    return reply


def error(code: int) -> Callable[[Message], Message]:
    def change(reply: Message) -> Message:
        failed = Message(RecordDict(), reply.metadata.dst_node_id, MessageType.TRAIN)
        failed.metadata.__dict__["_message_id"] = reply.metadata.reply_to_message_id
        return Message(Error(code, "something\n  went wrong"), reply_to=failed)

    return change


WIRE_FAULTS = {
    "silent": (lambda reply: None, "timeout", "no answer within 1 s"),
    "no facts": (without("facts"), "error", "its answer is no update"),
    "no state": (without("state"), "error", "its answer is no update"),
    "torn array": (torn, "error", "its answer is no update"),
    "pickled array": (pickled, "error", "its answer is no update .*allow_pickle"),
    "another's id": (facts(**{"client-id": 0}), "error", "answered under the id 0"),
    "stale": (facts(round=0), "stale_round", "of round 0"),
    "n is no integer": (facts(n=2.5), "bad_n", "got 2.5"),
    "crashed": (error(8), "died", "something went wrong"),
    "expired": (error(3), "timeout", "something went wrong"),
    "raised": (error(2), "error", "something went wrong"),
}


@pytest.mark.parametrize("fault", WIRE_FAULTS)
def test_whatever_a_client_answers_the_round_goes_on_without_it(fault):
    change, reason, detail = WIRE_FAULTS[fault]
    wire, engine = wired(timeout_s=1.0)
    wire.spoil = only(101, change)
    (record,) = federate(engine).rounds
    assert record.failures == {1: reason} and record.used == (0, 2)
    assert re.search(detail, record.details[1]), record.details
    faulty = looped(flower_clients.drifts({1: {1: "raises"}}, 3), 1)
    assert record.digest == faulty.rounds[0].digest


def test_a_node_that_leaves_is_not_waited_for_and_one_that_comes_back_is_asked():
    wire, engine = wired(timeout_s=5.0)
    options = {"state": flower_clients.drift(0).state(), "config": replace(FIT, seed=7), "ids": range(3)}
    wire.nodes.remove(101)
    begin = time.monotonic()
    found = engine.run_round(1, **options)
    assert found.failures == {1: "timeout"} and found.details == {1: "no node of it is connected"}
    assert time.monotonic() - begin < 2.0, "it waited for a node that is not there"
    wire.nodes.append(107)
    wire.partition[107] = 1
    assert not engine.run_round(2, **options).failures
    assert wire.asked.count((107, "query")) == 1


def test_a_node_is_believed_only_what_its_key_says():
    wire = Wire(flower_clients.drifts({}, 3), [100, 101, 102])
    wire.partition[102] = 0  # its key is client 2's
    engine = FlowerEngine(wire, range(3), 1.0, client_of_node={100: 0, 101: 1, 102: 2})
    (record,) = federate(engine).rounds
    assert record.used == (0, 1) and record.failures == {2: "timeout"}
    assert record.details == {2: "its node says that it is client 0"}


def test_nobody_there_is_refused_and_says_why():
    with pytest.raises(ValueError, match=r"^no client answered within 0.2 s$"):
        FlowerEngine(Wire([], []), range(2), 0.2)
    broken = (Recipe(client_id=0, build="fedmorl.federated.logs:transition_client"),)
    begin = time.monotonic()
    with pytest.raises(ValueError, match=r"client 0: ValueError: client 0 has no log"):
        FlowerEngine(Wire(broken, [100]), range(1), 200.0)
    assert time.monotonic() - begin < 100, "it asks again and again who has said no"


def test_moments_cannot_be_carried():
    _, engine = wired()
    with pytest.raises(ValueError, match="must be 'reset' with Flower"):
        engine.run_round(1, {}, replace(FIT, client_optimiser="carry"), [0])
    with pytest.raises(ValueError, match="must be 'reset' with Flower"):
        run_federation(
            flower_clients.models(2),
            engine="flower",
            rounds=1,
            fit_config=replace(FIT, client_optimiser="carry"),
            seed=7,
        )


# --- keys ------------------------------------------------------------------------------------------------


def test_keys_are_private_and_name_the_server(tmp_path):
    from cryptography import x509

    make_keys(tmp_path / "keys", 2, ["federation.example.org", "192.0.2.7"])
    certificate = x509.load_pem_x509_certificate((tmp_path / "keys" / "server.crt").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "federation.example.org"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "192.0.2.7"]
    authority = x509.load_pem_x509_certificate((tmp_path / "keys" / "ca.crt").read_bytes())
    certificate.verify_directly_issued_by(authority)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "keys").iterdir()}
    private = {"server.key", "client_0", "client_1"}
    assert {name for name, mode in modes.items() if mode == 0o600} == private and len(modes) == 7
    with pytest.raises(FileExistsError):
        make_keys(tmp_path / "keys", 2)


def test_beyond_loopback_keys_are_needed(tmp_path):
    plan = Plan(clients=flower_clients.models(2), rounds=1)
    with pytest.raises(ValueError, match=r"without keys the server listens on loopback only, and host is 0\.0\.0\.0"):
        serve(plan, tmp_path, host="0.0.0.0")
    with pytest.raises(FileNotFoundError, match="make them with `fedmorl federate keys`"):
        serve(plan, tmp_path, keys=tmp_path / "none")


# --- Flower's own rules as oracles -----------------------------------------------------------------------


def replies_of(updates: Sequence[ClientUpdate]) -> list[Message]:
    asked = Message(RecordDict(), 1, MessageType.TRAIN)
    asked.metadata.__dict__["_message_id"] = "asked"
    return [
        Message(
            RecordDict({"arrays": record_of(u.state), "metrics": MetricRecord({"num-examples": u.n})}), reply_to=asked
        )
        for u in updates
    ]


ORACLES = {
    "FedAvg": (FedAvg(), lambda: strategy.FedAvg()),
    "FedAdam": (FedAdam(bias_correction=True), lambda: strategy.FedAdam()),
    "Median": (Median(), lambda: strategy.FedMedian()),
    "TrimmedMean": (TrimmedMean(beta=0.2), lambda: strategy.FedTrimmedAvg(beta=0.2)),
    "Krum": (Krum(f=1), lambda: strategy.Krum(num_malicious_nodes=1)),
    "Multi-Krum": (Krum(f=1, m=3), lambda: strategy.MultiKrum(num_malicious_nodes=1, num_nodes_to_select=3)),
}


@pytest.mark.parametrize("name", ORACLES)
def test_our_rules_agree_with_flower_s(name):
    """Three rounds on states of order 1: float32 sums in another order differ by a few 1e-7, so 1e-6."""
    ours, make = ORACLES[name]
    theirs, rng = make(), np.random.default_rng(0)
    state = {"bias": rng.normal(size=5).astype("f4"), "weight": rng.normal(size=(5, 3)).astype("f4")}
    server = ServerState(round=0, state=state)
    for round in (1, 2, 3):
        equal = name.endswith("Krum") and name != "Krum"  # Flower's Multi-Krum weighs by log size, the paper's does not
        updates = [
            ClientUpdate(
                client_id=k,
                round=round,
                n=10 if equal else 10 + k,
                state={key: (v + 0.3 * rng.normal(size=v.shape)).astype("f4") for key, v in server.state.items()},
            )
            for k in range(5)
        ]
        if hasattr(theirs, "current_arrays"):
            theirs.current_arrays = {key: np.array(value) for key, value in server.state.items()}
        found, _ = theirs.aggregate_train(round, replies_of(updates))
        assert isinstance(found, ArrayRecord)
        server = ours(server, updates)
        for key, value in server.state.items():
            np.testing.assert_allclose(value, found[key].numpy(), rtol=0, atol=1e-6)
        assert digest(server.state) != digest(state) and math.isfinite(float(server.state["bias"][0]))
