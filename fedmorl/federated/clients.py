"""A client that fits any torch module to its own tensors by Adam."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from fedmorl.federated.records import ClientUpdate, FitConfig, State, address, as_state, digest

Loss = Callable[..., torch.Tensor]  # loss(module, *batch) -> scalar
STEPS_DRAWN = 16  # whose batches are gathered at once

# Adam's own state under the names of ours; `step` is one number a parameter.
MOMENTS = {"step": "step", "m": "exp_avg", "v": "exp_avg_sq"}


class ModelClient:
    """Learns `module` on the log `tensors`, from the server's parameters, for `config.local_steps` Adam steps.

    Parameters
    ----------
    client_id : int
        Its name in every engine, from 0 to 2**32 - 1.
    module : torch.nn.Module
        The architecture; clients may share one object, as it is copied before it is trained. Its parameters that
        require a gradient are what is federated. Buffers and frozen parameters stay with the client and must not
        change in training (batch norm does: refused).
    loss : callable
        `loss(module, *batch)` -> scalar, the mean over the batch: a pure function of its arguments, the same object
        for all clients. It draws no random numbers (dropout does: refused) and, for the batched engine, has no
        branch on a tensor's values.
    tensors : sequence of torch.Tensor
        The log, each with its n transitions first. A batch has the same tensors with `batch_size` rows.

    Raises
    ------
    ValueError
        If there is no transition, the tensors differ in length, or a floating one is not finite.
    """

    def __init__(self, client_id: int, module: torch.nn.Module, loss: Loss, tensors: Sequence[torch.Tensor]) -> None:
        address(0, client_id, 1)  # refuses an id that does not fit
        self.client_id = client_id
        self.module, self.loss, self.tensors = module, loss, tuple(tensors)
        self.n = _check_log(client_id, self.tensors)
        self._carried: dict[str, np.ndarray] = {}

    def state(self) -> State:
        """The module's own trainable parameters; of the lowest client id, where a federation starts."""
        return as_state(numpy_of(trainable(self.module)), f"client {self.client_id}'s module")

    @property
    def content_hash(self) -> str:
        """SHA-256 of the log."""
        arrays = {f"{k:04d}": tensor.detach().cpu().numpy() for k, tensor in enumerate(self.tensors)}
        return digest(arrays)

    def fit(self, round: int, state: State, config: FitConfig) -> ClientUpdate:
        """Start from `state`, take the steps, return all parameters."""
        with one_thread():
            return self._fit(round, state, config)

    def _fit(self, round: int, state: State, config: FitConfig) -> ClientUpdate:
        module = copy.deepcopy(self.module)
        parameters = trainable(module)
        load_into(parameters, state)
        anchor = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        optimiser = torch.optim.Adam(parameters.values(), lr=config.lr_at(round), fused=True)
        if config.client_optimiser == "carry":
            restore_moments(optimiser, parameters, self._carried)
        total_loss = torch.zeros((), dtype=torch.float64)
        with no_global_randomness(), constant_buffers(module):
            for batch in self.batches(round, config):
                optimiser.zero_grad()
                loss = self.loss(module, *batch)
                total_loss += loss.detach().cpu()
                if config.prox_mu:
                    loss = loss + proximal_term(parameters, anchor, config.prox_mu)
                loss.backward()
                optimiser.step()
        if config.client_optimiser == "carry":
            self.carry(moments_of(optimiser, parameters))
        return self.update(round, numpy_of(parameters), float(total_loss) / config.local_steps)

    def update(self, round: int, state: State, mean_loss: float) -> ClientUpdate:
        """What goes up after a fit."""
        return ClientUpdate(client_id=self.client_id, round=round, n=self.n, state=state, stats={"loss": mean_loss})

    def batches(self, round: int, config: FitConfig) -> Iterator[tuple[torch.Tensor, ...]]:
        """The batches of a round, one tuple a step."""
        for rows in self.rows(round, config):
            drawn = self.gather(rows)
            for step in range(len(rows)):
                yield tuple(tensor[step] for tensor in drawn)

    def rows(self, round: int, config: FitConfig) -> Iterator[torch.Tensor]:
        """Indices into the log (steps, B), some steps at a time; the same in every engine."""
        if config.seed is None:
            raise ValueError("config.seed must be set to fit outside run_federation, which sets it")
        generator = torch.Generator().manual_seed(address(config.seed, self.client_id, round))
        for begin in range(0, config.local_steps, STEPS_DRAWN):
            steps = min(STEPS_DRAWN, config.local_steps - begin)
            yield torch.randint(self.n, (steps, config.batch_size), generator=generator)

    def gather(self, rows: torch.Tensor) -> list[torch.Tensor]:
        """(S, B) indices -> each tensor's rows (S, B, ...)."""
        flat = ((tensor, rows.flatten().to(tensor.device)) for tensor in self.tensors)
        return [tensor.index_select(0, index).unflatten(0, rows.shape) for tensor, index in flat]

    def carried(self) -> State:
        """Adam's moments that the client keeps between rounds (`client_optimiser="carry"`); {} if none."""
        return self._carried

    def carry(self, moments: State) -> None:
        """Keep these moments; ones that are not finite would spoil every later round, and Adam starts anew."""
        finite = all(np.isfinite(value).all() for value in moments.values())
        self._carried = dict(moments) if finite else {}


def proximal_term(
    parameters: Mapping[str, torch.Tensor], anchor: Mapping[str, torch.Tensor], prox_mu: float
) -> torch.Tensor:
    """FedProx's prox_mu / 2 * sum((x - w)**2), of parameters x around the round's start w.

    Source: Li et al. (2020), arXiv 1812.06127, eq. (2).
    """
    squares = [((parameters[name] - anchor[name]) ** 2).sum() for name in parameters]
    return prox_mu / 2 * torch.stack(squares).sum()


# --- parameters as arrays --------------------------------------------------------------------------------


def trainable(module: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that are federated, by sorted name."""
    return {name: p for name, p in sorted(module.named_parameters()) if p.requires_grad}


def numpy_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Tensors as arrays of their own memory."""
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in tensors.items()}


def load_into(parameters: dict[str, torch.nn.Parameter], state: State) -> None:
    """Copy a state into parameters of the same names, shapes and dtypes."""
    if set(parameters) != set(state):
        raise ValueError(f"the state's names {sorted(state)} must be the module's {sorted(parameters)}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            value = torch.from_numpy(np.array(state[name], order="C"))
            if value.shape != parameter.shape or value.dtype != parameter.dtype:
                raise ValueError(
                    f"{name} is {tuple(value.shape)} {value.dtype} in the state and "
                    f"{tuple(parameter.shape)} {parameter.dtype} in the module"
                )
            parameter.copy_(value)


def moments_of(optimiser: torch.optim.Adam, parameters: dict[str, torch.nn.Parameter]) -> dict[str, np.ndarray]:
    """Adam's state as arrays: step/NAME, m/NAME, v/NAME."""
    return {
        f"{short}/{name}": optimiser.state[parameter][long].detach().cpu().numpy().copy()
        for name, parameter in parameters.items()
        for short, long in MOMENTS.items()
        if parameter in optimiser.state
    }


def restore_moments(optimiser: torch.optim.Adam, parameters: dict[str, torch.nn.Parameter], moments: State) -> None:
    """The inverse of `moments_of`; {} leaves a fresh optimiser."""
    for name, parameter in parameters.items():
        if f"m/{name}" in moments:
            optimiser.state[parameter] = {
                long: torch.from_numpy(moments[f"{short}/{name}"].copy()).to(parameter.device)
                for short, long in MOMENTS.items()
            }


# --- what a fit must not do ------------------------------------------------------------------------------


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread: two threads on two busy cores are ten times slower, and sums come in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def no_global_randomness() -> Iterator[None]:
    """Refuse a loss that draws from torch's global generator, which no address steers."""
    before = torch.get_rng_state()
    yield
    if not torch.equal(before, torch.get_rng_state()):
        raise ValueError("the loss drew from torch's global generator (dropout?), so that no seed repeats it")


@contextmanager
def constant_buffers(module: torch.nn.Module) -> Iterator[None]:
    """Refuse a module whose buffers change in training: they are not federated, so the change would be lost."""
    before = {name: buffer._version for name, buffer in module.named_buffers()}
    yield
    changed = [name for name, buffer in module.named_buffers() if buffer._version != before.get(name)]
    if changed:
        raise ValueError(f"the buffer {changed[0]} changed in training (batch norm?); buffers must be constants")


def _check_log(client_id: int, tensors: tuple[torch.Tensor, ...]) -> int:
    """Number of transitions."""
    lengths = [len(tensor) for tensor in tensors]
    if not lengths or lengths[0] < 1:
        raise ValueError(f"client {client_id} has no transitions; leave it out")
    if len(set(lengths)) > 1:
        raise ValueError(f"client {client_id}'s tensors must have equally many rows; they have {lengths}")
    for k, tensor in enumerate(tensors):
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"client {client_id}'s tensor {k} must be finite; it holds NaN or infinity")
    return lengths[0]
