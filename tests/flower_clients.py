"""Clients that other processes make by name, for the tests of Flower: honest ones, and ones that misbehave on time."""

import os
import signal
import time
from collections.abc import Mapping

import numpy as np
import torch

from fedmorl.federated import ClientUpdate, FitConfig, ModelClient, Recipe, address

MODEL = "flower_clients:model"
DRIFT = "flower_clients:drift"


def loss(module: torch.nn.Module, x: torch.Tensor, outcome: torch.Tensor, reward: torch.Tensor) -> torch.Tensor:
    out = module(x)  # (B, 5)
    return torch.nn.functional.cross_entropy(out[:, :4], outcome) + ((out[:, 4] - reward) ** 2).mean()


def model(client_id: int, n: int = 40) -> ModelClient:
    """Gradient steps of torch, whose bits depend on threads and on the order of sums."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        module = torch.nn.Sequential(torch.nn.Linear(3, 32), torch.nn.ReLU(), torch.nn.Linear(32, 5))
    generator = torch.Generator().manual_seed(client_id)
    x = torch.randn(n, 3, generator=generator)
    outcome, reward = torch.randint(4, (n,), generator=generator), x.sum(1) + client_id
    return ModelClient(client_id, module, loss, (x, outcome, reward))


class Drift:
    """Adds noise of norm 1 that its address fixes; `faults` says in which rounds it does something else."""

    def __init__(self, client_id: int, faults: Mapping[str, str], here: bool) -> None:
        self.client_id, self.faults, self.here = client_id, faults, here

    def state(self) -> dict[str, np.ndarray]:
        return {"bias": np.float32([0.5]), "weight": np.ones((3, 2), np.float32)}

    def fit(self, round: int, state: dict, config: FitConfig) -> ClientUpdate:
        rng = np.random.default_rng(address(config.seed, self.client_id, round))
        noise = {name: rng.normal(size=value.shape) for name, value in state.items()}
        fault = self.faults.get(str(round), "")
        scale = (100 if fault == "100 x the norm" else 1) / np.sqrt(sum((x**2).sum() for x in noise.values()))
        moved = {name: (value + scale * noise[name]).astype(value.dtype) for name, value in state.items()}
        return ClientUpdate(client_id=self.client_id, round=round, n=10, state=self._spoilt(moved, fault))

    def _spoilt(self, state: dict[str, np.ndarray], fault: str) -> dict[str, np.ndarray]:
        if fault == "raises":
            raise OSError("the disk is gone\nand more lines")
        if fault == "killed":
            if self.here:  # in the process of the test: it only fails
                raise OSError("would be killed")
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "hangs":
            time.sleep(3600)
        if fault in ("NaN", "Inf"):
            state["weight"][1, 1] = np.nan if fault == "NaN" else np.inf
        return {**state, "weight": state["weight"].T} if fault == "shape" else state


def drift(client_id: int, faults: Mapping[str, str] | None = None, here: bool = False) -> Drift:
    """{round: fault} as JSON has it, rounds as text."""
    return Drift(client_id, faults or {}, here)


def models(k: int) -> tuple[Recipe, ...]:
    """K clients with logs of different lengths."""
    return tuple(Recipe(client_id=i, build=MODEL, options={"n": 40 + 7 * i}) for i in range(k))


def drifts(faults: Mapping[int, Mapping[int, str]], k: int, here: bool = False) -> tuple[Recipe, ...]:
    """K clients, of which `faults` says who misbehaves in which round."""
    told = [{str(round): fault for round, fault in faults.get(i, {}).items()} for i in range(k)]
    return tuple(Recipe(client_id=i, build=DRIFT, options={"faults": told[i], "here": here}) for i in range(k))
