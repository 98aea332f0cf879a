"""The command `fedmorl federate`: a federation in one process, in Flower's simulation, or over a network."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from fedmorl.notebook import RunError

if TYPE_CHECKING:
    from fedmorl.federated import History

SUMMARY = "learn one model from logs that stay where they are"
EXAMPLES = """\
run    FILE [--engine loop|batched|flower|local] [--out FOLDER]
       everything on this machine: in one process, in Flower's simulation, or as a server and its clients, each a
       process of its own, with TLS and keys, on loopback (local)
keys   FOLDER --clients K [--host NAME ...]
       a certificate for the server, known under NAME, and a key for each client
server FILE --keys FOLDER [--host ADDRESS] [--port PORT] [--out FOLDER]
       wait for the clients, federate, leave model.safetensors and history.json in the folder
client --id K --server HOST:PORT --keys FOLDER [--log FILE.h5] [--out FOLDER]
       be client K, until interrupted

FILE.yml names the rounds and each client's log:  {rounds: 20, logs: [a.h5, b.h5], fit: {local_steps: 50}}
Started again with the same folder, `run` and `server` go on where they were.

  fedmorl federate run federation.yml --engine local
  fedmorl federate keys keys --clients 3 --host federation.example.org
  fedmorl federate server federation.yml --keys keys --host 0.0.0.0
  fedmorl federate client --id 0 --server federation.example.org:8000 --keys keys --log mine.h5
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `fedmorl federate`."""
    what = parser.add_subparsers(dest="what", metavar="run|keys|server|client", required=True)
    run = _add(what, "run", _run, "federate on this machine")
    _add_plan(run)
    run.add_argument("--engine", choices=("loop", "batched", "flower", "local"), default="batched", help=_ENGINES)
    keys = _add(what, "keys", _keys, "make a server's certificate and the clients' keys")
    keys.add_argument("folder", type=Path, metavar="FOLDER", help="where they go; must hold none")
    keys.add_argument("--clients", type=int, required=True, metavar="K", help="how many; their ids are 0 to K - 1")
    keys.add_argument("--host", action="append", default=[], metavar="NAME", help="a name or address of the server")
    server = _add(what, "server", _server, "serve a federation over a network")
    _add_plan(server)
    server.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="to listen on (default: %(default)s)")
    server.add_argument("--port", type=int, default=8000, help="to listen on (default: %(default)s)")
    _add_keys(server)
    client = _add(what, "client", _client, "be one client of a federation")
    client.add_argument("--id", type=int, required=True, dest="client_id", metavar="K", help="which client, from 0")
    client.add_argument("--server", required=True, metavar="HOST:PORT", help="where the server listens")
    client.add_argument("--log", type=Path, metavar="FILE.h5", help="this client's log; it never leaves the machine")
    client.add_argument("--out", type=Path, metavar="FOLDER", help="for Flower's log (default: _build/federation)")
    _add_keys(client)


_ENGINES = "batched (the default), loop, flower (its simulation), or local (its deployment on loopback)"


def _add(what: argparse._SubParsersAction, name: str, command: object, summary: str) -> argparse.ArgumentParser:
    parser = what.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".", allow_abbrev=False)
    parser.set_defaults(federate=command)
    return parser


def _add_plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("plan", type=Path, metavar="FILE.yml", help="what to federate")
    default = "_build/federation/FILE"
    parser.add_argument("--out", type=Path, metavar="FOLDER", help=f"model, history, checkpoints (default: {default})")
    parser.add_argument("--round-timeout", type=float, metavar="SECONDS", help="in place of the file's round_timeout_s")


def _add_keys(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--keys", type=Path, metavar="FOLDER", help="what `fedmorl federate keys` made; needed beyond loopback"
    )


def command(options: argparse.Namespace) -> int:
    """`fedmorl federate`."""
    from fedmorl.federated import FederationStopped, FlowerError

    try:
        return options.federate(options)
    except (FederationStopped, FlowerError, ValueError) as error:
        raise RunError(str(error)) from None
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("cryptography", "flwr"):
            raise
        extra = "pip install -c constraints.txt -e '.[federated]'"
        raise RunError(f"`federate` needs {error.name} for this, an extra: {extra}") from None


def _run(options: argparse.Namespace) -> int:
    from fedmorl.federated import deployment, run_federation

    plan, out = _plan(options), _out(options)
    if options.engine == "local":
        return _leave(deployment.local(plan, out), out)
    if options.engine == "flower":
        from fedmorl.federated.history import history_of
        from fedmorl.federated.runtime import simulate

        return _leave(history_of(simulate(plan, checkpoint=out / "checkpoint")), out)
    history = run_federation(plan.clients, engine=options.engine, checkpoint=out / "checkpoint", **plan.arguments())
    return _leave(history, out)


def _keys(options: argparse.Namespace) -> int:
    from fedmorl.federated.keys import make_keys

    make_keys(options.folder, options.clients, options.host)
    print(f"{options.folder}: give client K its client_K and ca.crt, and nobody anything else")
    return 0


def _server(options: argparse.Namespace) -> int:
    from fedmorl.federated import deployment

    plan, out = _plan(options), _out(options)
    history = deployment.serve(plan, out, host=options.host, port=options.port, keys=options.keys)
    return _leave(history, out)


def _client(options: argparse.Namespace) -> int:
    from fedmorl.federated import deployment

    out = options.out or Path("_build/federation") / f"client_{options.client_id}"
    print(f"client {options.client_id} of {options.server}; Flower's log is {out}/client_{options.client_id}.log")
    deployment.join(options.client_id, options.server, out, log=options.log, keys=options.keys)
    return 0


def _plan(options: argparse.Namespace):  # type: ignore[no-untyped-def]
    from dataclasses import replace

    from fedmorl.federated import read_plan

    plan = read_plan(options.plan)
    return plan if options.round_timeout is None else replace(plan, round_timeout_s=options.round_timeout)


def _out(options: argparse.Namespace) -> Path:
    return options.out or Path("_build/federation") / options.plan.stem


def _leave(history: "History", out: Path) -> int:
    """The model and its history as files, and on standard output what a person wants to know."""
    import numpy as np
    from safetensors.numpy import save

    from fedmorl.federated.checkpoint import write_whole
    from fedmorl.federated.history import checkpoint_of

    out.mkdir(parents=True, exist_ok=True)
    state = {name: np.array(value, order="C") for name, value in history.state.items()}
    write_whole(out / "model.safetensors", save(state, metadata={"digest": history.digest}))
    told = {"digest": history.digest, "rounds": checkpoint_of(history).history}
    write_whole(out / "history.json", json.dumps(told, indent=1).encode())
    for record in history.rounds:
        for client_id, reason in record.failures.items():
            print(f"round {record.round}: client {client_id} left out, {reason}: {record.details[client_id]}")
    mib = history.bytes_up / 2**20, history.bytes_down / 2**20
    print(
        f"{out}: {len(history.rounds)} rounds, {mib[0]:.3g} MiB up, {mib[1]:.3g} MiB down, model {history.digest[:12]}"
    )
    return 0
