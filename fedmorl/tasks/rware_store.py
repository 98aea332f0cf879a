"""Data of the warehouse, collected once and kept in `_build/data/rware`; a run that finds them there reads them."""

import fcntl
import os
from pathlib import Path

from fedmorl.closure import module_hash, short_hash
from fedmorl.data.trajectories import Trajectories
from fedmorl.provenance import project_root
from fedmorl.tasks.rware_data import collect_rware

MADE_BY = ("rware", "rware_data", "rware_expert", "rware_floor", "rware_traffic")  # modules that decide what is logged


def load_or_collect(
    task: str,
    n_episodes: int,
    *,
    grade: str = "expert",
    seed: int = 0,
    episode_limit: int = 500,
    workers: int | None = None,
    folder: Path | None = None,
) -> Trajectories:
    """`collect_rware`, or the file that an earlier call with the same arguments and the same code has left.

    Of two processes that ask at once, one collects and the other waits and reads.
    """
    folder = folder or (project_root(Path.cwd()) or Path.cwd()) / "_build" / "data" / "rware"
    folder.mkdir(parents=True, exist_ok=True)
    code = short_hash("".join(module_hash(f"fedmorl.tasks.{name}") for name in MADE_BY))
    path = folder / f"{task}_{grade}_{n_episodes}x{episode_limit}_seed{seed}_{code}.h5"
    with _locked(path.with_suffix(".lock")):
        if path.exists():
            return Trajectories.load(path)
        data = collect_rware(
            task, n_episodes, grade=grade, seed=seed, episode_limit=episode_limit, workers=workers, progress=False
        )
        data.save(path)
    return data


class _locked:
    """Hold a lock file; it stays behind, empty, so that no one holds a lock that another has removed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        self.handle = os.open(self.path, os.O_CREAT | os.O_RDWR)
        fcntl.flock(self.handle, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        os.close(self.handle)
