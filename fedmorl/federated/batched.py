"""The batched engine: the parameters of all clients stacked as (K, ...), one Adam step for all.

`vmap` turns the loss of one client into the losses of K; the gradient of that is traced once into plain tensor
operations, so that a step runs neither vmap nor autograd again. Each client's loss is the mean over its own batch
and clients never mix, so one client's NaN stays its own. The result agrees with the loop's to rounding, not
bitwise: a batched matrix product sums in another order.
"""

import time
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.func import functional_call, grad_and_value, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from fedmorl.federated.clients import (
    MOMENTS,
    Loss,
    ModelClient,
    one_thread,
    trainable,
)
from fedmorl.federated.loop import InProcessLoop
from fedmorl.federated.records import Client, ClientUpdate, FitConfig, RoundResult, State

STACK = 64  # clients fitted at once: more are no faster, and memory grows

Gradient = Callable[[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]], tuple[list[torch.Tensor], Any]]


class InProcessBatched:
    """Fits `ModelClient`s of one loss and one architecture together, at most `stack` at once.

    Clients of any other class are asked one by one. Should a joint step raise, say for a label out of range in one
    log, the clients of that stack are asked one by one in that round, with a warning, so that the culprit alone fails.

    Raises
    ------
    ValueError
        If no two of several clients can be stacked, or (in the first round) `vmap` cannot batch the loss.
    """

    def __init__(self, clients: Iterable[Client], stack: int = STACK) -> None:
        if stack < 1:
            raise ValueError(f"stack must be >= 1; got {stack}")
        self.clients = {client.client_id: client for client in clients}
        self.stack = stack
        self._loop = InProcessLoop(self.clients.values())
        self._gradients: dict[Hashable, Gradient] = {}
        self._kinds = {c.client_id: _kind(c) for c in self.clients.values() if type(c) is ModelClient}
        if len(self._kinds) > 1 and len(set(self._kinds.values())) == len(self._kinds):
            raise ValueError(
                "engine='batched' stacks clients that share one loss object, one architecture and one form of log, "
                "and here no two do; give them the same, or use engine='loop'"
            )

    def run_round(self, round: int, state: State, config: FitConfig, ids: Sequence[int]) -> RoundResult:
        """Ask `ids`, stack by stack."""
        start = time.perf_counter()
        updates: list[ClientUpdate] = []
        alone = [client_id for client_id in ids if client_id not in self._kinds]
        for stacked in self._stacks(ids, config):
            gradient = self._gradient(stacked, config)
            try:
                with one_thread():
                    updates += _fit(stacked, round, state, config, gradient)
            except Exception as error:  # a fault of one client's log, which the loop will name
                members = [client.client_id for client in stacked]
                warnings.warn(f"round {round}: clients {members} are asked one by one ({error})", stacklevel=2)
                alone += members
        rest = self._loop.run_round(round, state, config, sorted(alone))
        return RoundResult(
            updates=(*updates, *rest.updates),
            failures=rest.failures,
            details=rest.details,
            seconds={"fit": time.perf_counter() - start},
        )

    def _stacks(self, ids: Sequence[int], config: FitConfig) -> Iterator[list[ModelClient]]:
        """Clients of one kind, and of one count of Adam steps so far, since the bias correction depends on it."""
        groups: dict[Hashable, list[ModelClient]] = {}
        for client_id in sorted(set(ids) & self._kinds.keys()):
            client = self.clients[client_id]
            assert isinstance(client, ModelClient)
            steps = _steps_so_far(client) if config.client_optimiser == "carry" else 0
            groups.setdefault((self._kinds[client_id], steps), []).append(client)
        for group in groups.values():
            for begin in range(0, len(group), self.stack):
                yield group[begin : begin + self.stack]

    def _gradient(self, clients: list[ModelClient], config: FitConfig) -> Gradient:
        key = (self._kinds[clients[0].client_id], len(clients), config.batch_size)
        if key not in self._gradients:
            self._gradients[key] = _trace(clients, config.batch_size)
        return self._gradients[key]


def _kind(client: ModelClient) -> Hashable:
    """Equal for clients that can be stacked."""
    named = {**dict(client.module.named_parameters()), **dict(client.module.named_buffers())}
    shapes = tuple((name, p.shape, p.dtype, p.requires_grad, p.device) for name, p in sorted(named.items()))
    log = tuple((tensor.shape[1:], tensor.dtype, tensor.device) for tensor in client.tensors)
    return client.loss, repr(client.module), client.module.training, shapes, log


def _steps_so_far(client: ModelClient) -> int:
    return max((int(value) for name, value in client.carried().items() if name.startswith("step/")), default=0)


# --- the traced gradient ---------------------------------------------------------------------------------


class _LossOf(torch.nn.Module):
    """loss(module, *batch) as a module, so that `functional_call` swaps the parameters inside whatever it calls."""

    def __init__(self, module: torch.nn.Module, loss: Loss) -> None:
        super().__init__()
        self.module, self.loss = module, loss

    def forward(self, *batch: torch.Tensor) -> torch.Tensor:
        return self.loss(self.module, *batch)


def _constants(client: ModelClient) -> dict[str, torch.Tensor]:
    """Buffers and frozen parameters."""
    learned = trainable(client.module)
    named = {**dict(client.module.named_parameters()), **dict(client.module.named_buffers())}
    return {name: tensor.detach() for name, tensor in sorted(named.items()) if name not in learned}


def _trace(clients: list[ModelClient], batch_size: int) -> Gradient:
    """(parameters, constants, batch), each a list of (K, ...) -> (gradients (K, ...), losses (K,))."""
    first, K = clients[0], len(clients)
    learned, constants = trainable(first.module), _constants(first)
    names, constant_names = list(learned), list(constants)
    wrapped = _LossOf(first.module, first.loss)

    def loss_of_one(parameters: dict, fixed: dict, batch: list[torch.Tensor]) -> torch.Tensor:
        swapped = {f"module.{name}": value for name, value in {**parameters, **fixed}.items()}
        return functional_call(wrapped, swapped, tuple(batch))

    def joint(ps: list[torch.Tensor], cs: list[torch.Tensor], batch: list[torch.Tensor]) -> tuple[list, torch.Tensor]:
        parameters, fixed = dict(zip(names, ps, strict=True)), dict(zip(constant_names, cs, strict=True))
        gradients, losses = vmap(grad_and_value(loss_of_one))(parameters, fixed, batch)
        return [gradients[name] for name in names], losses

    ps = [p.detach().expand(K, *p.shape).clone() for p in learned.values()]
    cs = [c.expand(K, *c.shape).clone() for c in constants.values()]
    blank = [tensor.new_zeros(K, batch_size, *tensor.shape[1:]) for tensor in first.tensors]  # no data, no surprise
    before = [c._version for c in cs]
    try:
        with one_thread():
            traced: Gradient = make_fx(joint)(ps, cs, blank)
        if before != [c._version for c in cs]:
            raise ValueError("a buffer changes in training (batch norm?); buffers must be constants")
        return traced
    except Exception as error:
        what = str(error).strip().partition("\n")[0]
        raise ValueError(f"engine='batched' cannot stack this loss ({what}); use engine='loop'") from error


# --- one round of one stack ------------------------------------------------------------------------------


def _fit(
    clients: list[ModelClient], round: int, state: State, config: FitConfig, gradient: Gradient
) -> list[ClientUpdate]:
    """All local steps of a round for the clients of a stack."""
    names = list(trainable(clients[0].module))
    device = next(clients[0].module.parameters()).device
    start = {name: torch.from_numpy(np.array(state[name], order="C")).to(device) for name in names}
    stacked = [start[name].expand(len(clients), *start[name].shape).clone() for name in names]
    constants = [torch.stack(values) for values in zip(*(_constants(c).values() for c in clients), strict=True)]
    optimiser = torch.optim.Adam(stacked, lr=config.lr_at(round), fused=True)
    if config.client_optimiser == "carry":
        _restore(optimiser, stacked, names, clients)
    total_loss = torch.zeros(len(clients), dtype=torch.float64, device=device)
    with torch.no_grad():
        for batch in _batches(clients, round, config):
            gradients, losses = gradient(stacked, constants, batch)
            total_loss += losses
            for p, g, name in zip(stacked, gradients, names, strict=True):
                p.grad = g.add(p - start[name], alpha=config.prox_mu) if config.prox_mu else g
            optimiser.step()
    if config.client_optimiser == "carry":
        _keep(optimiser, stacked, names, clients)
    arrays = {name: p.cpu().numpy() for name, p in zip(names, stacked, strict=True)}
    mean_loss = (total_loss / config.local_steps).tolist()
    return [
        client.update(round, {name: value[k].copy() for name, value in arrays.items()}, mean_loss[k])
        for k, client in enumerate(clients)
    ]


def _batches(clients: list[ModelClient], round: int, config: FitConfig) -> Iterator[list[torch.Tensor]]:
    """One list a step, each tensor (K, B, ...): the batches that the loop would draw."""
    for rows in zip(*(client.rows(round, config) for client in clients), strict=True):
        drawn = [client.gather(own) for client, own in zip(clients, rows, strict=True)]
        tensors = [torch.stack(parts, dim=1) for parts in zip(*drawn, strict=True)]  # (S, K, B, ...)
        for step in range(len(rows[0])):
            yield [tensor[step] for tensor in tensors]


def _restore(
    optimiser: torch.optim.Adam, stacked: list[torch.Tensor], names: list[str], clients: list[ModelClient]
) -> None:
    """Adam's moments (K, ...) from what the clients keep; all of them have taken equally many steps."""
    if not clients[0].carried():
        return
    for p, name in zip(stacked, names, strict=True):
        kept = {short: np.stack([c.carried()[f"{short}/{name}"] for c in clients]) for short in MOMENTS}
        kept["step"] = np.array(kept["step"][0])
        optimiser.state[p] = {long: torch.from_numpy(kept[short]).to(p.device) for short, long in MOMENTS.items()}


def _keep(
    optimiser: torch.optim.Adam, stacked: list[torch.Tensor], names: list[str], clients: list[ModelClient]
) -> None:
    moments: list[dict[str, np.ndarray]] = [{} for _ in clients]
    for p, name in zip(stacked, names, strict=True):
        state = {short: optimiser.state[p][long].cpu().numpy() for short, long in MOMENTS.items()}
        for k, own in enumerate(moments):
            own[f"step/{name}"] = state["step"].copy()
            own |= {f"{short}/{name}": state[short][k].copy() for short in ("m", "v")}
    for client, own in zip(clients, moments, strict=True):
        client.carry(own)
