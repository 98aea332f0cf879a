"""The learned policies that the explorer offers beside the access categories, as far as their files are there.

In each, one policy serves every station, so it runs with any number of them; the label says what it was trained for.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fedmorl.dca import Station
from fedmorl.provenance import project_root

FILES = {  # key -> label, file seen from the project's root
    "plan": ("plan (learned at N = 10)", "results/policies/plan_n10_seed0.safetensors"),
    "plan_capture_free": (
        "plan without capture (learned at N = 10)",
        "results/policies/plan_capture_free_n10_seed0.safetensors",
    ),
    "roll": ("roll (learned at N = 10)", "results/policies/roll_n10_seed0.safetensors"),
    "self_play": ("self-play (not told N)", "results/policies/self_play_seed0.safetensors"),
}


@dataclass(frozen=True)
class Learned:
    """A policy in a file, read when it is first asked for."""

    label: str
    path: Path

    @property
    def is_read(self) -> bool:
        """Whether the file was read."""
        return "station" in self.__dict__

    @cached_property
    def station(self) -> Station:
        """A station that follows the policy; ValueError if the file does not hold one."""
        from fedmorl.policies import load_policy  # loads torch, which nothing else here needs

        return Station(policy=load_policy(self.path), name=self.label)


def offered(root: Path | None = None) -> dict[str, Learned]:
    """The policies whose files are in the project, by key; none outside of a project.

    `root` is the project's folder; None: the one around the current folder.
    """
    root = root or project_root(Path.cwd())
    found = {} if root is None else {key: Learned(label, root / file) for key, (label, file) in FILES.items()}
    return {key: learned for key, learned in found.items() if learned.path.is_file()}
