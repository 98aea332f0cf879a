"""A Dask client on an embedded cluster, on the scheduler at an address, or on Slurm; the same from there on."""

import contextlib
import logging
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmorl import provenance
from fedmorl.execute import ONE_THREAD
from fedmorl.notebook import RunError

if TYPE_CHECKING:
    from distributed import Client

ANSWER_S = 10  # how long a scheduler may take to answer
LOOK_S = 5  # how often to look whether jobs that wait in the queue are still there
NO_PAGE = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}  # its usual port may be taken, and would say so

Say = Callable[[str], None]


@contextlib.contextmanager
def connect(
    root: Path, workers: int | None = None, scheduler: str | None = None, slurm: bool = False, say: Say = print
) -> "Iterator[Client]":
    """A client with at least one worker, closed on exit.

    Raises RunError if the scheduler does not answer or has no worker, or if Slurm does not take our jobs.
    """
    import dask
    from distributed.utils import silence_logging_cmgr

    # A death is our business, not the scheduler's: it retries nothing. No worker holds a run that another could start.
    ours = {"allowed-failures": 0, "worker-saturation": 1.0}
    dask.config.set({f"distributed.scheduler.{name}": value for name, value in ours.items()})
    dask.config.set({"distributed.comm.timeouts.connect": ANSWER_S})
    stack = contextlib.ExitStack()
    with silence_logging_cmgr(logging.CRITICAL):
        try:
            with _interrupts_held():
                if scheduler:
                    client = stack.enter_context(_at(scheduler))
                else:
                    cluster = _slurm(root, workers or 2) if slurm else _embedded(root, workers or provenance.cores())
                    client = stack.enter_context(_of(cluster))
            if slurm:
                _wait_for_the_first_job(client, root, say)
            yield client
        finally:
            with _interrupts_held():
                stack.close()


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until the block is over, so that no cluster is left half open or half closed.

    What starts within the block never gets a Ctrl-C at all: a terminal sends it to every process of a command, but
    only this one answers, and ends the others.
    """
    resource_tracker.ensure_running()  # else it starts with the first worker, and lets Ctrl-C through again
    came: list[int] = []
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if callable(signal.getsignal(number)):  # not where it is ignored, or simply ends us
                before[number] = signal.signal(number, lambda number, frame: came.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            raise KeyboardInterrupt


@contextlib.contextmanager
def _of(cluster: Any) -> "Iterator[Client]":
    from distributed import Client

    with cluster, Client(cluster, timeout=ANSWER_S, set_as_default=False) as client:
        yield client


def _embedded(root: Path, workers: int) -> Any:
    """One single-threaded process a worker."""
    from distributed import LocalCluster

    return LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        processes=True,
        scheduler_kwargs=NO_PAGE,
        memory_limit=0,  # it would watch the worker, and the memory is the kernel's
        local_directory=str(root / "_build" / "dask"),
        silence_logs=logging.CRITICAL,
        env=ONE_THREAD,
    )


def restore(client: "Client") -> None:
    """Start what an embedded cluster has lost for good; Dask does not restart a worker that dies while it starts."""
    from distributed import LocalCluster

    cluster = client.cluster
    if isinstance(cluster, LocalCluster):
        cluster.scale(len(cluster.worker_spec))


# --- Slurm ---------------------------------------------------------------------------------------------------


def _slurm(root: Path, workers: int) -> Any:
    """One job a worker, replaced when it ends; queue, memory and time come from dask-jobqueue's configuration."""
    cluster_of_jobs = _jobqueue()
    try:
        cluster = cluster_of_jobs(
            cores=1, processes=1, scheduler_options=NO_PAGE, log_directory=_logs(root), silence_logs=logging.CRITICAL
        )
    except (ValueError, RuntimeError, OSError) as error:
        first = str(error).partition(", for example")[0]
        raise RunError(f"Slurm: {first}; set it in dask-jobqueue's configuration file") from None
    refused = _refusal(cluster.job_script())
    if refused:
        cluster.close()
        raise RunError(f"Slurm does not take our jobs: {refused}")
    cluster.adapt(minimum_jobs=workers, maximum_jobs=workers)
    return cluster


def _jobqueue() -> Any:
    """dask-jobqueue's class for Slurm; importing it takes Ctrl-C over, which we take back."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError:
        raise RunError("--slurm needs the extra `cluster`: pip install -c constraints.txt -e '.[cluster]'") from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, handler)
    return SLURMCluster


def _logs(root: Path) -> str:
    """Where the jobs write what they print."""
    import dask

    return dask.config.get("jobqueue.slurm.log-directory", None) or str(root / "_build" / "slurm")


def _refusal(script: str) -> str:
    """What Slurm has against a job script; empty if it would take it."""
    try:
        tried = subprocess.run(["sbatch", "--test-only"], input=script, capture_output=True, text=True)
    except FileNotFoundError:
        return "there is no command sbatch here"
    lines = [line.removeprefix("sbatch: error: ") for line in tried.stderr.splitlines()]
    return "; ".join(lines) if tried.returncode else ""


def _wait_for_the_first_job(client: "Client", root: Path, say: Say) -> None:
    """Wait as long as Slurm has our jobs: a queue may take hours, but a job that ended will never answer."""
    say("waiting for Slurm to start a job")
    while True:
        with contextlib.suppress(TimeoutError):
            client.wait_for_workers(1, timeout=LOOK_S)
            return
        jobs = [job.job_id for job in list(client.cluster.workers.values()) if job.job_id]
        listed = subprocess.run(["squeue", "--noheader", f"--jobs={','.join(jobs)}"], capture_output=True, text=True)
        if jobs and not listed.stdout.strip():
            raise RunError(f"the Slurm jobs ended before they reached us; their logs are in {_logs(root)}")


# --- a scheduler that somebody started -----------------------------------------------------------------------


@contextlib.contextmanager
def _at(address: str) -> "Iterator[Client]":
    from distributed import Client

    host, port = _host_and_port(address)
    nobody = f"the scheduler {address} does not answer; start one with `dask scheduler --port {port}`"
    try:
        socket.create_connection((host, port), timeout=ANSWER_S).close()
    except OSError as error:
        raise RunError(f"{nobody} ({error.strerror or error})") from None
    try:
        client = Client(address, timeout=ANSWER_S, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise RunError(f"{nobody} ({type(error).__name__})") from None
    with client:
        if not client.scheduler_info(n_workers=-1)["workers"]:
            raise RunError(
                f"the scheduler {address} has no worker; start some with `dask worker {address} --nthreads 1`"
            )
        yield client


def _host_and_port(address: str) -> tuple[str, int]:
    found = re.fullmatch(r"(?:tcp|tls)://(\[[^\]]+\]|[^:/\s]+):(\d{1,5})", address)
    if not found or int(found[2]) > 65535:
        raise RunError(f"--scheduler must be like tcp://127.0.0.1:8786, got {address}")
    return found[1].strip("[]"), int(found[2])
