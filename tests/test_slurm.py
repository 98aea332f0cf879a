"""Sweeps through a Slurm of two cores on the loopback address, which these tests start and end themselves."""

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Toy
from test_sweeps import EMIT, of, states, swept, table, timeless

from fedmorl.batch import tables

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue")
MISSING = [name for name in PROGRAMS if not shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin")]
MISSING += [] if importlib.util.find_spec("dask_jobqueue") else ["dask-jobqueue"]
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(
        bool(MISSING), reason=f"without {', '.join(MISSING)} (Debian: slurm-wlm, munge; the extra cluster)"
    ),
]

CONF = """\
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmdPort={d_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/d.pid
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
KillWait=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=60 State=UP
"""
JOBS = """\
jobqueue:
  slurm:
    queue: {queue}
    memory: 1GB
    walltime: "00:10:00"
    interface: lo
    job-script-prologue: {prologue}
"""

Fedmorl = Callable[..., subprocess.Popen]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(is_so: Callable[[], object], what: str, limit_s: float = 60) -> None:
    deadline = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < deadline, f"no {what} within {limit_s} s"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which the commands of Slurm speak to ours."""
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    ports = {"ctld_port": free_port(), "d_port": free_port()}
    user, host = subprocess.getoutput("id -un"), socket.gethostname().partition(".")[0]
    (folder / "slurm.conf").write_text(CONF.format(folder=folder, user=user, host=host, **ports))
    path = f"{os.environ['PATH']}:/usr/sbin"
    environment = {**os.environ, "PATH": path, "SLURM_CONF": str(folder / "slurm.conf")}
    names = ("socket", "pid-file", "log-file", "seed-file")
    munged = ["munged", "-F", "--force", f"--key-file={key}"]
    munged += [f"--{name}={folder}/munge.{name.removesuffix('-file')}" for name in names]
    processes = []
    with open(folder / "log", "w") as log:
        for command in (munged, ["slurmctld", "-D"], ["slurmd", "-D"]):
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
            if command is munged:
                until((folder / "munge.socket").exists, f"munged ({folder / 'log'})")
    try:
        until(lambda: "idle" in printed(environment, "sinfo", "--noheader"), f"idle node ({folder / 'log'})")
        yield environment
    finally:
        for job in printed(environment, "squeue", "--noheader", "--format=%i").split():
            printed(environment, "scancel", "--signal=KILL", job)
        for process in reversed(processes):
            process.terminate()
            process.wait(timeout=30)


def printed(environment: dict[str, str], *command: str) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30).stdout


@pytest.fixture
def fedmorl(toy: Toy, slurm: dict[str, str], tmp_path: Path) -> Iterator[Fedmorl]:
    """Start `fedmorl` in the project, with a configuration of dask-jobqueue; no job outlives the test."""
    processes = []

    def started(*arguments: str, queue: str = "main", prologue: str = "[]") -> subprocess.Popen:
        (tmp_path / "dask").mkdir()
        (tmp_path / "dask" / "jobqueue.yaml").write_text(JOBS.format(queue=queue, prologue=prologue))
        command = [sys.executable, "-m", "fedmorl.cli", *arguments]
        pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        environment = {**slurm, "DASK_CONFIG": str(tmp_path / "dask")}
        processes.append(subprocess.Popen(command, cwd=toy.root, env=environment, **pipe))  # type: ignore[call-overload]
        return processes[-1]

    yield started
    for process in processes:
        process.kill()
        process.wait()
    until(lambda: not printed(slurm, "squeue", "--noheader"), "empty queue")


def test_the_rows_are_those_of_the_embedded_cluster_and_the_queue_is_empty_afterwards(
    toy: Toy, fedmorl: Fedmorl
) -> None:
    toy.experiment("trial", EMIT)
    toy.sweep("trial", "seeds: 4")
    process = fedmorl("sweep", "trial", "--slurm", "--workers", "2")
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 0 and "4 runs: 4 done" in said and "Traceback" not in said, said
    sweep, store = of(toy)
    tables.collect(sweep)
    by_slurm = timeless(table(toy))
    shutil.rmtree(store.folder)
    (toy.root / "results" / "trial.csv").unlink()
    swept(toy, "trial")
    tables.collect(sweep)
    assert timeless(table(toy)) == by_slurm and len(by_slurm) == 8


def test_a_job_that_is_killed_loses_no_run(toy: Toy, fedmorl: Fedmorl, slurm: dict[str, str]) -> None:
    toy.experiment("trial", "import time; time.sleep(2)", EMIT)
    toy.sweep("trial", "seeds: 5")
    process = fedmorl("sweep", "trial", "--slurm", "--workers", "2")
    _, store = of(toy)
    until(lambda: len(store.under_way()) == 2, "two runs under way")
    job = printed(slurm, "squeue", "--noheader", "--format=%i").split()[0]
    printed(slurm, "scancel", "--signal=KILL", "--full", job)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 0, said
    flat = [state for found in states(toy).values() for state in found]
    assert Counter(flat) == {"ok": 5, "died": 1}


@pytest.mark.parametrize(
    "wrong,message",
    [
        ({"queue": "nowhere"}, "Slurm does not take our jobs: .*invalid partition specified: nowhere"),
        ({"prologue": '["exit 1"]'}, "the Slurm jobs ended before they reached us; their logs are in .*_build/slurm"),
    ],
)
def test_jobs_that_never_come_are_one_sentence(toy: Toy, fedmorl: Fedmorl, wrong: dict, message: str) -> None:
    toy.experiment("trial", EMIT)
    toy.sweep("trial", "seeds: 1")
    process = fedmorl("sweep", "trial", "--slurm", **wrong)
    said = process.communicate(timeout=60)[0].strip().splitlines()
    assert process.returncode == 1 and len(said) <= 3, said
    assert re.search(message, said[-1]), said
