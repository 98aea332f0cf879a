"""One strict papermill run of one notebook.

The output appears only when it is complete, and the kernel is the interpreter that runs this code, whatever
kernelspecs the machine has. A run that fails leaves `NAME.failed.ipynb`, with its traceback, beside the
output that it did not write. What is refused before a kernel starts is in `fedmorl.notebook`.
"""

import json
import logging
import math
import os
import re
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmorl import provenance, rows
from fedmorl.notebook import (
    Notebook,
    RunError,
    checked,
    parameters_of,
    reached_by,
    read_notebook,
    read_source,
    write_notebook,
)

if TYPE_CHECKING:
    from jupyter_client.manager import AsyncKernelManager

# Two busy cores make threaded maths slower, not faster: one thread a kernel, parallel over kernels.
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")}
# glibc hands freed megabytes back to the kernel at once, and an update of a network asks for them again: more than half
# of its time went into page faults. Tensors of up to 32 MB stay with the process, as long as they are 1 GB at most.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(32 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(2**30)}
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


class KernelDied(RunError):
    """The kernel's process ended by itself, or something ended it: the same run may well work another time."""


@dataclass
class Kernels:
    """The kernels of one build, all on this interpreter; `stop` ends them when a build is interrupted."""

    stopped: threading.Event = field(default_factory=threading.Event)
    why: str = ""  # a failure to report, such as a limit of time; empty where a person interrupted
    _managers: list[Any] = field(default_factory=list)

    def manager_class(self, environment: dict[str, str]) -> "type[AsyncKernelManager]":
        """A kernel manager for papermill that starts `sys.executable` and looks up no kernelspec."""
        from jupyter_client.kernelspec import KernelSpec
        from jupyter_client.manager import AsyncKernelManager

        spec = KernelSpec(
            argv=[sys.executable, "-Xfrozen_modules=off", "-m", "ipykernel_launcher", "--log-level=50",
                  "-f", "{connection_file}"],
            display_name="Python 3",
            language="python",
            env=environment,
        )  # fmt: skip
        kernels = self

        class SameInterpreter(AsyncKernelManager):
            kernel_spec = spec

            def __init__(self, **options: Any) -> None:
                if kernels.stopped.is_set():
                    raise RuntimeError("interrupted")
                super().__init__(**options, **_sockets())
                kernels._managers.append(self)

        return SameInterpreter

    def stop(self) -> None:
        """End every kernel now, with the processes it started."""
        self.stopped.set()
        for manager in self._managers:
            pid = getattr(manager.provisioner, "pid", None)
            if pid and manager.has_kernel:
                try:
                    os.killpg(pid, signal.SIGKILL)  # a kernel leads a process group of its own
                except (ProcessLookupError, PermissionError):
                    continue


def _sockets() -> dict[str, str]:
    """How a kernel is spoken to: where there are sockets without a file or a port, by those.

    A port that was free when the manager looked may be another kernel's by the time that ours binds it; so died one
    kernel in about a hundred where two start side by side.
    """
    return {"transport": "ipc", "ip": f"@fedmorl-{uuid.uuid4().hex}"} if sys.platform == "linux" else {}


def run(
    source: Path,
    output: Path,
    given: dict[str, Any],
    *,
    root: Path | None = None,
    profile: str = "",
    kernels: Kernels | None = None,
    on_cell: Callable[[], None] = lambda: None,
    extra: dict[str, Any] | None = None,
    ignoring: str = "",
) -> dict[str, Any]:
    """Run `source` with the parameters `given`, write `output` when it is complete, return its provenance.

    `extra` is kept in the output's metadata beside the provenance; `on_cell` is called after each code cell; changes in
    the folder `ignoring` do not make the commit dirty.
    Raises RunError, in one sentence, for anything that a person can put right.
    """
    notebook = read_source(source)
    known = parameters_of(notebook, source)
    values = checked(given, known, str(source))
    reached = reached_by(source)
    root = root or provenance.project_root(source.parent) or source.parent
    started = time.time()
    context = provenance.record(reached, root, ignoring=ignoring) | {"started": started, "profile": profile}
    task = _Task(source, output.resolve(), notebook, values, context, kernels or Kernels(), on_cell)
    try:
        task.output.parent.mkdir(parents=True, exist_ok=True)
        task.execute()
        seed = values.get("seed", known["seed"].default if "seed" in known else None)
        made = provenance.record(reached, root, seed=seed, seconds=time.time() - started, ignoring=ignoring)
        task.finish({"provenance": made, **(extra or {})})
    except OSError as error:
        place, why = error.filename or output, error.strerror or error
        raise RunError(f"cannot write {place}: {why}; {output.name} was not changed") from None
    finally:
        _remove(task.temporary)
    _remove(failed_path(task.output))
    return made


def run_interruptible(
    source: Path,
    output: Path,
    given: dict[str, Any],
    *,
    limit_s: float | None = None,
    unwanted: Callable[[], bool] = lambda: False,
    **options: Any,
) -> dict[str, Any]:
    """`run` in a thread, so that Ctrl-C, or a limit of time, reaches the caller at once; the kernel is ended then.

    So it is as soon as `unwanted`, which is asked every second, says that nobody waits for the run any more.
    """
    kernels = Kernels()
    deadline = time.monotonic() + (math.inf if limit_s is None else limit_s)
    with ThreadPoolExecutor(max_workers=1) as pool:
        future = pool.submit(run, source, output, given, kernels=kernels, **options)
        try:
            while not wait([future], timeout=max(0, min(1, deadline - time.monotonic()))).done:
                if unwanted():
                    break
                if time.monotonic() >= deadline:
                    kernels.why = f"it ran past its limit of {limit_s:g} s"
                    break
        finally:
            while not future.done():  # a kernel that is just starting has no process to end yet
                kernels.stop()
                wait([future], timeout=0.2)
    return future.result()


def failed_path(output: Path) -> Path:
    """Where a run that failed leaves its notebook."""
    return output.with_name(f"{output.stem}.failed.ipynb")


@dataclass
class _Task:
    """One run: papermill writes `temporary`, which becomes `output`, or the failed notebook."""

    source: Path
    output: Path
    notebook: Notebook
    values: dict[str, Any]
    context: dict[str, Any]
    kernels: Kernels
    on_cell: Callable[[], None]
    cell: str = ""  # the code cell that runs

    @property
    def temporary(self) -> Path:
        return self.output.with_name(f".{self.output.stem}.{os.getpid()}.tmp.ipynb")

    def execute(self) -> None:
        """Let papermill run the notebook, and tell a failure in one sentence."""
        import papermill
        from nbclient.exceptions import CellTimeoutError, DeadKernelError

        try:
            self._papermill()
        except papermill.PapermillExecutionError as error:
            self.cell = error.source
            self._fail(f"{error.ename}: {_first_line(error.evalue)}")
        except DeadKernelError:
            self._fail("the kernel died, as it does when memory runs out", KernelDied)
        except (CellTimeoutError, RuntimeError) as error:
            self._fail(_first_line(str(error)), RunError if self.cell else KernelDied)

    def _papermill(self) -> None:
        import nbformat
        import papermill

        logging.getLogger("papermill").setLevel(logging.CRITICAL)  # we say it ourselves, once
        environment = ONE_THREAD | KEEP_MEMORY | {provenance.RUN_VARIABLE: json.dumps(self.context)}
        papermill.execute_notebook(
            nbformat.from_dict(self.notebook),
            str(self.temporary).replace("{", "{{").replace("}", "}}"),  # papermill formats the path
            self.values,
            kernel_name="python3",
            language="python",
            progress_bar=False,
            kernel_manager_class=self.kernels.manager_class(environment),
            # papermill's own `cwd` changes that of the whole process, and runs share a process
            resources={"metadata": {"path": str(self.source.resolve().parent)}},
            on_cell_execute=self._starting,
            on_cell_executed=self._done,
        )

    def _starting(self, cell: dict[str, Any], cell_index: int) -> None:
        self.cell = cell["source"]

    def _done(self, cell: dict[str, Any], cell_index: int, execute_reply: dict[str, Any]) -> None:
        self.on_cell()

    def _fail(self, reason: str, kind: type[RunError] = RunError) -> None:
        if self.kernels.stopped.is_set() and not self.kernels.why:
            raise RunError(f"{self.source} was interrupted") from None
        reason, kind = (self.kernels.why, RunError) if self.kernels.why else (reason, kind)
        kept = failed_path(self.output)
        if self.temporary.exists():
            os.replace(self.temporary, kept)
        start = f"in the cell that starts {_telling_line(self.cell)!r}" if self.cell else "before its first cell"
        raise kind(f"{self.source} failed {start}: {reason} (traceback in {kept})") from None

    def finish(self, ours: dict[str, Any]) -> None:
        """Take machine paths out of the run's metadata, add our provenance, put the notebook in place."""
        notebook = read_notebook(self.temporary)
        notebook["metadata"]["papermill"].update(input_path=self.source.name, output_path=self.output.name)
        record = ours | self._emitted(notebook)
        notebook["metadata"]["fedmorl"] = record | {"digest": rows.digest(record)}
        write_notebook(notebook, self.temporary)
        os.replace(self.temporary, self.output)

    def _emitted(self, notebook: Notebook) -> dict[str, Any]:
        """The rows that the run emitted, if any, where a sweep finds them without reading the cells."""
        try:
            return rows.taken_from(notebook)
        except ValueError as error:
            raise RunError(f"{self.source}: {error}") from None


def _telling_line(source: str) -> str:
    """The first line of a cell that is not a comment, shortened."""
    lines = [line.strip() for line in source.splitlines()]
    line = next((line for line in lines if line and not line.startswith("#")), "")
    return line if len(line) <= 60 else line[:57] + "..."


def _first_line(text: str) -> str:
    lines = _ANSI.sub("", text).strip().splitlines()
    return lines[0] if lines else "no message"


def remove_leftovers(folder: Path) -> None:
    """Remove what runs that were cut off have left in `folder`; only for who holds the folder's lock."""
    for path in folder.rglob(".*.tmp.ipynb"):
        _remove(path)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return  # a read-only disk has been reported already
