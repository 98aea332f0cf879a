"""A federation over a network: one server, and a process or a machine for each client."""

import contextlib
import json
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from fedmorl.federated import keys as keyring
from fedmorl.federated.history import History, history_of
from fedmorl.federated.plan import Plan
from fedmorl.federated.runtime import POLL_S, Link, Order, free_port, process, superlink, write_order

RESTART_S = 3.0  # a client's process that ended is started again after so long
FREE_S = 15.0  # in which a server that was killed must have let go of its port


def serve(
    plan: Plan,
    folder: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    keys: Path | None = None,
    progress: bool | None = None,
) -> History:
    """Serve a federation until its last round; started again with the same folder, it resumes.

    Parameters
    ----------
    plan : Plan
        What the recipes hold travels to every client, but for `log`: each names its own.
    folder : path
        Gets checkpoints, Flower's log and its records.
    host, port : str, int
        Where to listen.
    keys : path, optional
        What `make_keys` wrote: TLS, and only clients whose keys are there may join. None: in clear text, with
        whoever comes, and on loopback alone.

    Raises
    ------
    ValueError, FederationStopped, FlowerError
        As `run_federation` does.
    """
    if keys is None and host not in keyring.LOOPBACK:
        raise ValueError(f"without keys the server listens on loopback only, and host is {host}; pass keys")
    own = [{k: v for k, v in recipe.options.items() if k != "log"} for recipe in plan.clients]
    plan = replace(plan, clients=tuple(replace(r, options=o) for r, o in zip(plan.clients, own, strict=True)))
    public = [] if keys is None else keyring.public_keys(keys, len(plan.clients))
    _refuse_taken(host, port)
    folder.mkdir(parents=True, exist_ok=True)
    flags = [] if keys is None else ["--enable-supernode-auth"]
    with superlink(folder, host, port, keys, *flags) as link:
        nodes = _registered(link, public)
        write_order(folder, Order(plan=plan, checkpoint=folder / "checkpoint", client_of_node=nodes))
        link.submit(plan)
        return history_of(link.wait(plan.rounds, folder / "checkpoint", progress))


def join(
    client_id: int,
    server: str,
    folder: Path,
    *,
    log: Path | None = None,
    keys: Path | None = None,
    stop: threading.Event | None = None,
) -> None:
    """Be client `client_id` of the server at HOST:PORT until `stop`; a process that ends is started again.

    So a client may come before its server, and stays while that is started anew.

    Parameters
    ----------
    folder : path
        Gets Flower's log and its records.
    log : path, optional
        The client's own log, where its recipe takes one. It stays here.
    keys : path, optional
        With ca.crt and client_ID of `make_keys`. None: in clear text, to a server on loopback.
    """
    stop = stop or threading.Event()
    while not stop.is_set():
        with client(client_id, server, folder, log=log, keys=keys) as started:
            while started.poll() is None and not stop.wait(POLL_S):
                pass
        stop.wait(RESTART_S)


@contextlib.contextmanager
def client(
    client_id: int, server: str, folder: Path, *, log: Path | None = None, keys: Path | None = None
) -> Iterator[subprocess.Popen]:
    """The process of one client, ended on leaving."""
    folder.mkdir(parents=True, exist_ok=True)
    node = f"partition-id={client_id}"
    if log is not None:
        if set(str(log)) & set("\"'\n"):
            raise ValueError(f"a log's path must hold no quotation mark; got {log}")
        node += f" log={json.dumps(str(log.absolute()), ensure_ascii=False)}"
    words = ["flower-supernode", "--superlink", server, "--port", str(free_port()), "--node-config", node]
    if keys is None:
        words += ["--insecure"]
    else:
        key, ca = keys / f"client_{client_id}", keys / "ca.crt"
        for path in (key, ca):
            if not path.is_file():
                raise FileNotFoundError(2, "no such key; it comes from whoever runs the server", str(path))
        words += ["--root-certificates", str(ca.absolute()), "--auth-supernode-private-key", str(key.absolute())]
    with process(f"client_{client_id}", words, folder) as started:
        yield started


def local(plan: Plan, folder: Path, progress: bool | None = None) -> History:
    """The whole deployment on this machine: a server and K clients, with TLS and keys, on loopback."""
    folder.mkdir(parents=True, exist_ok=True)
    keys, port = folder / "keys", free_port()
    if not (keys / "ca.crt").is_file():
        keyring.make_keys(keys, len(plan.clients))
    stop = threading.Event()
    threads = []
    for recipe in plan.clients:
        k, log = recipe.client_id, recipe.options.get("log")
        own = {"keys": keys, "stop": stop, "log": None if log is None else Path(log)}
        threads.append(threading.Thread(target=join, args=(k, f"127.0.0.1:{port}", folder / f"client_{k}"), kwargs=own))
    for thread in threads:
        thread.start()
    try:
        return serve(plan, folder / "server", port=port, keys=keys, progress=progress)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _registered(link: Link, public: Sequence[Path]) -> Mapping[int, int]:
    """Node -> client, as Flower numbers the keys that it is told."""
    with ThreadPoolExecutor(4) as pool:
        answers = pool.map(lambda path: link.flwr("supernode", "register", str(path), "here"), public)
    return {int(answer["node-id"]): k for k, answer in enumerate(answers)}


def _refuse_taken(host: str, port: int) -> None:
    """Wait for an earlier server of ours to be gone; refuse anybody else's."""
    deadline = time.monotonic() + FREE_S
    while True:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                return probe.bind((host, port))
            except OSError as error:
                if time.monotonic() > deadline:
                    raise ValueError(f"the server cannot listen on {host}:{port}: {error.strerror}") from None
        time.sleep(POLL_S)
