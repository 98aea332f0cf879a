"""A team policy without a memory, as `fedmorl.evaluation.team` has it: networks on standardised observations.

Letters: B batch, N agents, O observation, A action.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from fedmorl.checkpoints import load_into_module, read_config, save_module
from fedmorl.federated.clients import one_thread
from fedmorl.world_models.joint_dynamics import Scales
from fedmorl.world_models.joint_networks import Sizes


class MemorylessTeam:
    """What a learner of joint transitions returns: it plays, and is kept in one file.

    Subclasses name what a file calls them, their learner's configuration and their networks, and say what they choose.
    """

    kind: ClassVar[str]
    learner: ClassVar[type]
    networks: ClassVar[type]  # (sizes, hidden, generator) -> the agents' module, which keeps `sizes`

    def __init__(self, actors: Any, scales: Scales, config: Any, critics: Any = None) -> None:
        self.actors, self.scales, self.config, self.critics = actors, scales, config, critics

    def chosen(self, o: Tensor) -> Tensor:
        """Joint actions of standardised observations (B, N, O)."""
        raise NotImplementedError

    def start(self, batch: int, rng: np.random.Generator) -> None:
        """It remembers nothing."""

    def act(self, observations: np.ndarray, memory: None, rng: np.random.Generator) -> tuple[np.ndarray, None]:
        """Observations (B, N, O) in the units of the data -> joint actions, numbers (B, N, A) or choices (B, N)."""
        sizes: Sizes = self.actors.sizes
        if observations.shape[1:] != (wanted := (sizes.n_agents, sizes.observation_size)):
            raise ValueError(f"observations must have shape (B, {wanted[0]}, {wanted[1]}); got {observations.shape}")
        with torch.inference_mode(), one_thread():
            return self.chosen(self.scales.into("observations", observations)).numpy(), None

    def rewarded(self, memory: None, rewards: np.ndarray) -> None:
        """Rewards are not looked at."""

    def save(self, path: Path | str, provenance: Mapping[str, Any] | None = None) -> None:
        """Write actors and scales to one safetensors file, whole or not at all."""
        kept = {"kind": self.kind, "learner": asdict(self.config), "sizes": asdict(self.actors.sizes)}
        save_module(path, nn.ModuleDict({"actors": self.actors, "scales": self.scales}), kept, provenance or {})

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """The policy that `save` wrote; ValueError, one sentence, if the file holds none or one of another size."""
        if (kept := read_config(path)).get("kind") != cls.kind:
            raise ValueError(f"{path} does not hold a {cls.kind}")
        config, sizes = cls.learner(**kept["learner"]), Sizes(**kept["sizes"])
        actors, scales = cls.networks(sizes, config.hidden, torch.Generator()), Scales.empty(sizes)
        load_into_module(path, nn.ModuleDict({"actors": actors, "scales": scales}))
        return cls(actors, scales, config)
