"""NetWorld learned where the logs are: every client keeps its agents' windows, and only weights travel.

The encoder is shared and frozen first, or the mean of messages would mix coordinate systems. Three arms: all windows in
one place (`NetWorld.fit`), each client for itself, and federated averaging by `fedmorl.federated`.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from fedmorl.data.network_logs import NetworkLog
from fedmorl.federated import FedAvg, FitConfig, History, ModelClient, load_into, run_federation, trainable
from fedmorl.nn.mlp import torch_generator
from fedmorl.world_models.network_windows import TaskRows, Windows
from fedmorl.world_models.networld import NetWorldModel, NetWorldNetworks, batch, losses, total


def window_loss(
    networks: nn.Module, x: Tensor, codes: Tensor, c: Tensor, g: Tensor, level: Tensor, eps: Tensor, step: Tensor
) -> Tensor:
    """NetWorld's loss with its random numbers given: a pure function, as a client's must be."""
    assert isinstance(networks, NetWorldNetworks)
    return total(losses(networks, Windows(x, codes, c, g), level, eps, step))


def federated_clients(
    model: NetWorldModel, logs: Sequence[NetworkLog], n_clients: int, n_windows: int, *, rng: np.random.Generator
) -> list[ModelClient]:
    """`n_clients` clients, each with the windows of its own agents: agent i of every network belongs to i mod K.

    Of each task a client keeps `n_windows`, each with one noise level and one noise drawn once.
    """
    least = min(log.n_agents for log in logs)
    if not 1 <= n_clients <= least:
        raise ValueError(f"n_clients must be from 1 to {least}, the fewest agents of a network; got {n_clients}")
    clients, rows = [], model.rows(logs)
    agents = [_agent_numbers(logs, r.task) for r in rows]
    for k, child in enumerate(rng.spawn(n_clients)):
        own = [_of_agents(r, agent % n_clients == k) for r, agent in zip(rows, agents, strict=True)]
        windows, *noise = batch(own, n_windows, torch_generator(child))
        tensors = [*windows, *noise]
        networks = copy.deepcopy(model.networks).requires_grad_(True)
        clients.append(ModelClient(k, networks, window_loss, tensors))
    return clients


def federate(
    model: NetWorldModel,
    clients: Sequence[ModelClient],
    rounds: int,
    config: FitConfig,
    *,
    seed: int,
    engine: Literal["loop", "batched"] = "loop",
) -> tuple[NetWorldModel, History]:
    """Federated averaging from the weights of `model`."""
    history = run_federation(
        clients,
        FedAvg(),
        engine=engine,
        rounds=rounds,
        fit_config=config,
        seed=seed,
        progress=False,
    )
    return _with(model, dict(history.state)), history


def isolated(model: NetWorldModel, client: ModelClient, config: FitConfig, *, seed: int) -> NetWorldModel:
    """What one client learns alone from the weights of `model`, in the steps that `config` has."""
    return _with(model, dict(client.fit(1, client.state(), replace(config, seed=seed)).state))


def _with(model: NetWorldModel, state: dict[str, np.ndarray]) -> NetWorldModel:
    networks = copy.deepcopy(model.networks).requires_grad_(True)
    load_into(trainable(networks), state)
    return NetWorldModel(networks.requires_grad_(False), model.codec, model.returns)


def _agent_numbers(logs: Sequence[NetworkLog], task: str) -> Tensor:
    """(R,): which agent of its network each row is."""
    return torch.cat([torch.arange(log.n_agents).repeat(len(log)) for log in logs if log.task == task])


def _of_agents(rows: TaskRows, kept: Tensor) -> TaskRows:
    part = copy.copy(rows)
    part.z, part.m, part.codes, part.g = (x[kept] for x in (rows.z, rows.m, rows.codes, rows.g))
    return part
