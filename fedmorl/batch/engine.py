"""A Dask client on an embedded cluster, on the scheduler at an address, or on Slurm; the same from there on."""

import contextlib
import logging
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fedmorl import provenance
from fedmorl.execute import ONE_THREAD
from fedmorl.notebook import RunError

if TYPE_CHECKING:
    from distributed import Client

ANSWER_S = 10  # how long a scheduler may take to answer
QUEUE_S = 600  # how long Slurm may take to start the first job


@contextlib.contextmanager
def connect(
    root: Path, workers: int | None = None, scheduler: str | None = None, slurm: bool = False
) -> "Iterator[Client]":
    """A client with at least one worker, closed on exit.

    Raises RunError if the scheduler does not answer, has no worker, or dask-jobqueue is not installed.
    """
    if scheduler:
        with _at(scheduler) as client:
            yield client
        return
    from distributed import Client

    with _slurm(workers) if slurm else _embedded(root, workers or provenance.cores()) as cluster:
        with Client(cluster, timeout=ANSWER_S, set_as_default=False) as client:
            if slurm:
                client.wait_for_workers(1, timeout=QUEUE_S)
            yield client


def _embedded(root: Path, workers: int):  # type: ignore[no-untyped-def]
    """One single-threaded process a worker. A death is our business, not the scheduler's: it retries nothing."""
    import dask
    from distributed import LocalCluster

    dask.config.set({"distributed.scheduler.allowed-failures": 0, "distributed.comm.timeouts.connect": ANSWER_S})
    return LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        processes=True,
        dashboard_address=None,
        memory_limit=0,  # it would watch the worker, and the memory is the kernel's
        local_directory=str(root / "_build" / "dask"),
        silence_logs=logging.CRITICAL,
        env=ONE_THREAD,
    )


def _slurm(workers: int | None):  # type: ignore[no-untyped-def]
    """One job a worker; queue, memory and time come from dask-jobqueue's own configuration."""
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError:
        raise RunError("--slurm needs the extra `cluster`: pip install -c constraints.txt -e '.[cluster]'") from None
    try:
        cluster = SLURMCluster(cores=1, processes=1, scheduler_options={"dashboard_address": None})
    except (ValueError, RuntimeError, OSError) as error:
        raise RunError(f"Slurm: {error}; set the missing option in dask-jobqueue's configuration file") from None
    cluster.scale(jobs=workers or 2)
    return cluster


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
