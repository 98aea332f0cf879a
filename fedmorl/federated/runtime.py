"""Flower's processes: one SuperLink, its SuperNodes or its simulation, started and ended from here.

Nothing leaves the machines that take part: telemetry, update checks and installs at run time are off. A run's
verdict is the outcome that our ServerApp wrote, never an exit status (Flower's is 0 even where the app failed).
"""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file
from tqdm import tqdm

from fedmorl.federated import checkpoint as checkpoints
from fedmorl.federated.checkpoint import Checkpoint
from fedmorl.federated.plan import Plan, refuse_carry
from fedmorl.federated.records import State

FOLDER_VARIABLE = "FEDMORL_FEDERATION_FOLDER"
START_S = 300.0  # within which Flower must have started our driver; a busy machine takes minutes
POLL_S = 0.2
ANY = ("0.0.0.0", "localhost")  # where whoever listens is reached at 127.0.0.1
APP = """\
[project]
name = "federation"
version = "1.0.0"
[tool.flwr.app]
publisher = "fedmorl"
[tool.flwr.app.components]
serverapp = "federation_app:server"
clientapp = "federation_app:client"
"""
APP_MODULE = """\
import json
from pathlib import Path

from fedmorl.federated.flower import client_app, server_app
from fedmorl.federated.plan import Recipe

recipes = json.loads(Path(__file__).with_name("recipes.json").read_text())
client = client_app([Recipe(**recipe) for recipe in recipes])
server = server_app()
"""


class FlowerError(RuntimeError):
    """Flower could not run the federation; one sentence, and the end of its log."""


# --- what our driver in Flower's process is told, and what it leaves ------------------------------------


@dataclass(frozen=True, kw_only=True)
class Order:
    """A plan, and what is the server's alone."""

    plan: Plan
    checkpoint: Path
    initial: State | None = None
    client_of_node: Mapping[int, int] = field(default_factory=dict)  # of registered keys


def write_order(folder: Path, order: Order) -> None:
    """Into `folder`, whence `read_order` takes it; an earlier outcome goes."""
    refuse_carry(order.plan.fit)
    (folder / "outcome.json").unlink(missing_ok=True)
    shutil.rmtree(folder / "outcome", ignore_errors=True)
    (folder / "started").unlink(missing_ok=True)
    if order.initial is not None:
        save_file({k: np.array(v, order="C") for k, v in order.initial.items()}, folder / "initial.safetensors")
    nodes = {str(node): client_id for node, client_id in order.client_of_node.items()}
    told = {"plan": order.plan.to_plain(), "checkpoint": str(order.checkpoint.absolute()), "client_of_node": nodes}
    (folder / "order.json").write_text(json.dumps(told | {"initial": order.initial is not None}, indent=1))


def read_order(folder: Path) -> Order:
    """The order in a folder; a mark there says that somebody has begun with it."""
    told = json.loads((folder / "order.json").read_text())
    checkpoints.write_whole(folder / "started", str(os.getpid()).encode())  # somebody waits to read it
    return Order(
        plan=Plan.of_plain(told["plan"]),
        checkpoint=Path(told["checkpoint"]),
        initial=load_file(folder / "initial.safetensors") if told["initial"] else None,
        client_of_node={int(node): client_id for node, client_id in told["client_of_node"].items()},
    )


def write_outcome(folder: Path, status: str, message: str, kept: Checkpoint | None = None) -> None:
    """`outcome.json`, whole and last; how far the federation came, if at all, beside it."""
    if kept is not None:
        checkpoints.write(folder / "outcome", kept, {})
    told = {"status": status, "message": message, "history": kept is not None}
    checkpoints.write_whole(folder / "outcome.json", json.dumps(told).encode())


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a federation in Flower's process ended."""

    status: str  # "done", "stopped", "refused" or "failed"
    message: str
    kept: Checkpoint | None


def read_outcome(folder: Path) -> Outcome | None:
    """What `write_outcome` left; None before."""
    if not (folder / "outcome.json").is_file():
        return None
    told = json.loads((folder / "outcome.json").read_text())
    kept = checkpoints.read(folder / "outcome", {}) if told["history"] else None
    return Outcome(status=told["status"], message=told["message"], kept=kept)


# --- processes -------------------------------------------------------------------------------------------


def environment(folder: Path) -> dict[str, str]:
    """Of every process of Flower's: `folder` is its home, nobody is called, nothing is installed."""
    scripts = str(Path(sys.executable).parent)  # Flower starts its own helpers by name
    return {
        **os.environ,
        "FLWR_HOME": str(folder.absolute() / "flower"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_worker_niceness": "0",  # at Ray's 15 a worker starves on a busy machine
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
        "OMP_NUM_THREADS": "1",
        "PATH": os.pathsep.join([scripts, os.environ.get("PATH", os.defpath)]),
        "PYTHONPATH": os.pathsep.join([*filter(None, sys.path), os.getcwd()]),
        FOLDER_VARIABLE: str(folder.absolute()),
    }


@contextlib.contextmanager
def process(name: str, words: Sequence[str], folder: Path, **variables: str) -> Iterator[subprocess.Popen]:
    """A process of Flower's with its log at `folder`/NAME.log, ended on leaving, and by the kernel if we are killed."""
    log = folder / f"{name}.log"
    with log.open("ab") as output:
        started = subprocess.Popen(
            [_program(words[0]), *words[1:]],
            env=environment(folder) | variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )
    try:
        yield started
    finally:
        end(started)


def end(started: subprocess.Popen, patience_s: float = 10.0) -> None:
    """SIGTERM, then SIGKILL, to the process and those that it started."""
    _signal(started, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        started.wait(patience_s)
    _signal(started, signal.SIGKILL)
    started.wait()


def _signal(started: subprocess.Popen, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(started.pid, number)  # it leads a session of its own


_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # looked up before the fork


def _end_with_parent() -> None:
    assert _LIBC is not None
    _LIBC.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _program(name: str) -> str:
    path = Path(sys.executable).parent / name
    if not path.is_file():
        raise FlowerError(f"{name} is not installed beside {sys.executable}: pip install 'fedmorl[federated]'")
    return str(path)


def free_port() -> int:
    """A TCP port on loopback that nobody listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def tail(log: Path, lines: int = 12) -> str:
    """The last lines of a log."""
    text = log.read_text(errors="replace") if log.is_file() else ""
    return "\n".join(text.splitlines()[-lines:])


# --- the SuperLink ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Link:
    """A running SuperLink as its own machine reaches it."""

    folder: Path
    address: str  # HOST:PORT
    started: subprocess.Popen
    ca: Path | None  # None: no TLS

    @property
    def log(self) -> Path:
        """What Flower and our driver say."""
        return self.folder / "superlink.log"

    def flwr(self, *words: str) -> dict[str, Any]:
        """What the command `flwr` answers, as JSON."""
        command = [_program("flwr"), *words, "--format", "json"]
        done = subprocess.run(command, env=environment(self.folder), capture_output=True, text=True, timeout=START_S)
        try:
            answer = json.loads(done.stdout[done.stdout.index("{") :])
        except ValueError:
            answer = {}
        if not answer.get("success"):
            said = " ".join((done.stderr or done.stdout).split())[-500:]
            raise FlowerError(f"Flower refused `flwr {' '.join(words[:2])}`: {answer.get('error-message') or said}")
        return answer

    def submit(self, plan: Plan, *more: str) -> None:
        """Start our driver: an app of one module, with the recipes of the clients and nothing else."""
        app = self.folder / "federation"
        app.mkdir(exist_ok=True)
        (app / "pyproject.toml").write_text(APP)
        (app / "federation_app.py").write_text(APP_MODULE)
        (app / "recipes.json").write_text(json.dumps(plan.to_plain()["clients"]))
        self.flwr("run", str(app), "here", *more)

    def wait(self, rounds: int, checkpoint: Path, progress: bool | None) -> Outcome:
        """Until our driver has left its outcome; FlowerError if it is gone without one."""
        begin, disable = time.monotonic(), None if progress is None else not progress
        with tqdm(total=rounds, desc="federation", unit="round", disable=disable) as bar:
            while (outcome := read_outcome(self.folder)) is None:
                _show(bar, checkpoint)
                started = self.folder / "started"
                if not started.is_file() and time.monotonic() - begin > START_S:
                    raise FlowerError(f"Flower did not start the driver within {START_S:g} s:\n{tail(self.log)}")
                if self.started.poll() is not None:
                    raise FlowerError(f"the SuperLink ended:\n{tail(self.log)}")
                if started.is_file() and not _alive(int(started.read_text())) and read_outcome(self.folder) is None:
                    raise FlowerError(f"the driver ended without an outcome:\n{tail(self.log)}")
                time.sleep(POLL_S)
            _show(bar, checkpoint)
        return outcome


def _show(bar: tqdm, checkpoint: Path) -> None:
    done = checkpoints.last_round(checkpoint)
    if done > bar.n:
        bar.update(done - bar.n)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@contextlib.contextmanager
def superlink(folder: Path, host: str, port: int, keys: Path | None, *flags: str, **variables: str) -> Iterator[Link]:
    """A SuperLink that listens; with `keys`, TLS and nothing else is spoken. `variables` join its environment."""
    words = ["flower-superlink", "--host", host, "--port", str(port), "--disable-runtime-dependency-installation"]
    tls = ["--insecure"]
    if keys is not None:
        names = {"--ssl-certfile": "server.crt", "--ssl-keyfile": "server.key", "--ssl-ca-certfile": "ca.crt"}
        tls = [word for flag, name in names.items() for word in (flag, str((keys / name).absolute()))]
    ca = None if keys is None else (keys / "ca.crt").absolute()
    home = folder / "flower"
    home.mkdir(parents=True, exist_ok=True)
    secured = "insecure = true" if ca is None else f"root-certificates = {json.dumps(str(ca))}"
    address = f"{'127.0.0.1' if host in ANY else host}:{port}"
    here = f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "{address}"\n{secured}\n'
    (home / "config.toml").write_text(here)
    with process("superlink", [*words, *tls, *flags], folder, **variables) as started:
        link = Link(folder=folder, address=address, started=started, ca=ca)
        _wait_for(link)
        yield link


def _wait_for(link: Link) -> None:
    """Until the SuperLink answers."""
    scheme, context = ("http", None) if link.ca is None else ("https", ssl.create_default_context(cafile=str(link.ca)))
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if link.started.poll() is not None:
            break
        with contextlib.suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(f"{scheme}://{link.address}/health", timeout=5, context=context).close()
            return
        time.sleep(POLL_S)
    raise FlowerError(f"the SuperLink did not start:\n{tail(link.log)}")


# --- Flower's simulation ---------------------------------------------------------------------------------


def simulate(
    plan: Plan, initial: State | None = None, checkpoint: Path | None = None, progress: bool | None = None
) -> Outcome:
    """The plan in Flower's simulation runtime, on this machine: SuperLink, driver and Ray's workers."""
    with tempfile.TemporaryDirectory(prefix="fedmorl-flower-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        kept = checkpoint if checkpoint is not None else folder / "checkpoint"
        write_order(folder, Order(plan=plan, initial=initial, checkpoint=kept))
        (folder / "ray_bootstrap_config.yaml").write_text("provider: {type: none}\n")
        # without that file in its HOME, Ray asks the metadata services of three clouds where it is
        with superlink(folder, "127.0.0.1", free_port(), None, "--simulation", HOME=name) as link:
            size = f"num-supernodes={len(plan.clients)} client-resources-num-cpus=1 init-args-log-to-driver=false"
            link.submit(plan, "--federation-config", size)
            return link.wait(plan.rounds, kept, progress)
