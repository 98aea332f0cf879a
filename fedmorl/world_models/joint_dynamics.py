"""Joint world models of a team: fitted to transitions, asked in numpy, in the units of the data.

Letters: T rows, M members, N agents, B batch, O observation, A action, S state.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fedmorl.data.dataset import DatasetError
from fedmorl.data.joint_transitions import JointTransitions
from fedmorl.federated.clients import one_thread
from fedmorl.nn.mlp import torch_generator
from fedmorl.world_models.joint_networks import Batch, Foreseen, JointNetwork, LocalNetwork, Sizes

STILL = 1e-6  # standard deviation below which a number is taken to be constant

Network = LocalNetwork | JointNetwork


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a joint world model is trained: Adam, the last update counts.

    Parameters
    ----------
    n_steps : updates, at most.
    batch_size, learning_rate : as usual; the rate falls to a twentieth by a cosine over `n_steps`.
    patience : training ends early once the held-out loss has not improved for so many passes; None: never.
    held_out : share of episodes kept aside, for the patience and for the level of doubt that counts as high.
    weight_decay : Adam's own form.

    Source: LOGO, Table 8: rate 0.001, batch 128. Its number of updates is not stated.
    """

    n_steps: int = 5_000
    batch_size: int = 128
    learning_rate: float = 1e-3
    patience: int | None = None
    held_out: float = 0.1
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        for name in ("n_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be an integer >= 1; got {getattr(self, name)!r}")
        if not 0 < self.learning_rate < np.inf:
            raise ValueError(f"learning_rate must be positive and finite; got {self.learning_rate!r}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out must lie between 0 and 1; got {self.held_out!r}")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience must be an integer >= 1 or None; got {self.patience!r}")


DEFAULT = Training()


class Forecast(NamedTuple):
    """What a model expects of B situations, in the units of the data; float32."""

    next_states: np.ndarray  # (B, S)
    rewards: np.ndarray  # (B,)
    next_observations: np.ndarray | None  # (B, N, O)
    uncertainty: dict[str, np.ndarray]  # measure -> (B,), in standardised units


class Scales(nn.Module):
    """Mean and standard deviation of states, observations and rewards; numbers that never vary are left as they are."""

    def __init__(self, data: JointTransitions) -> None:
        super().__init__()
        for name in ("states", "observations", "rewards"):
            mean, sd = _mean_sd(getattr(data, name))
            self.register_buffer(f"{name}_mean", mean)
            self.register_buffer(f"{name}_sd", sd)

    @classmethod
    def empty(cls, sizes: Sizes) -> "Scales":
        """Of the right shape, to be filled from a file."""
        shapes = {
            "states": (sizes.state_size,),
            "observations": (sizes.n_agents, sizes.observation_size),
            "rewards": (),
        }
        scales = cls.__new__(cls)
        nn.Module.__init__(scales)
        for name, shape in shapes.items():
            scales.register_buffer(f"{name}_mean", torch.zeros(shape))
            scales.register_buffer(f"{name}_sd", torch.ones(shape))
        return scales

    @property
    def reward_scale(self) -> Tensor:
        """Standard deviation of the rewards."""
        return self._get("rewards", "sd")

    def into(self, name: str, values: np.ndarray) -> Tensor:
        """Standardised."""
        return (torch.tensor(values, dtype=torch.float32) - self._get(name, "mean")) / self._get(name, "sd")

    def back(self, name: str, values: Tensor) -> np.ndarray:
        """In the units of the data."""
        return (values * self._get(name, "sd") + self._get(name, "mean")).numpy()

    def _get(self, name: str, what: str) -> Tensor:
        return getattr(self, f"{name}_{what}")


class JointDynamics:
    """A fitted joint world model: a network, its scales, and how it came about.

    Attributes
    ----------
    history : held-out loss after each pass over the data, all terms of the loss with it.
    cpu_seconds : of the training.
    elite : the members that predictions are the mean of, by held-out loss.
    ceiling : C of LOGO's section 4.3, by measure of uncertainty: its 95th percentile on held-out data.
    """

    def __init__(self, network: Network, scales: Scales, widths: Sequence[int]) -> None:
        self.network, self.scales, self.widths = network, scales, tuple(widths)
        self.history: list[dict[str, float]] = []
        self.cpu_seconds = 0.0
        self.elite: np.ndarray = np.arange(network.members)
        self.ceiling: dict[str, float] = {}

    @property
    def n_parameters(self) -> int:
        """Of all members, with what only training needs."""
        return sum(p.numel() for p in self.network.parameters())

    def predict(self, states: np.ndarray, observations: np.ndarray, actions: np.ndarray) -> Forecast:
        """(B, S), (B, N, O), (B, N, A) -> what follows, the mean of the elite members."""
        found = self._foresee(states, observations, actions)
        chosen = torch.as_tensor(self.elite)
        next_o = None if found.next_o is None else found.next_o[chosen].mean(0)
        return self._forecast(found, found.next_s[chosen].mean(0), found.r[chosen].mean(0), next_o)

    def draw(
        self, states: np.ndarray, observations: np.ndarray, actions: np.ndarray, rng: np.random.Generator
    ) -> Forecast:
        """As `predict`, but each row is answered by one elite member, drawn at random (MOPO)."""
        found = self._foresee(states, observations, actions)
        member = torch.as_tensor(rng.choice(self.elite, len(states)))
        row = torch.arange(len(states))
        next_o = None if found.next_o is None else found.next_o[member, :, row].transpose(0, 1)
        return self._forecast(found, found.next_s[member, row], found.r[member, row], next_o)

    def _foresee(self, states: np.ndarray, observations: np.ndarray, actions: np.ndarray) -> Foreseen:
        m = self.network.members
        s = self.scales.into("states", states).expand(m, -1, -1)
        o = self.scales.into("observations", observations).transpose(0, 1).expand(m, -1, -1, -1)
        a = torch.tensor(actions, dtype=torch.float32).transpose(0, 1).expand(m, -1, -1, -1)
        with torch.inference_mode(), one_thread():
            return self.network(s, o, a)

    def _forecast(self, found: Foreseen, s: Tensor, r: Tensor, o: Tensor | None) -> Forecast:
        return Forecast(
            next_states=self.scales.back("states", s),
            rewards=self.scales.back("rewards", r[..., 0]),
            next_observations=None if o is None else self.scales.back("observations", o.transpose(0, 1)),
            uncertainty={name: value.numpy() for name, value in doubts(found).items()},
        )


def doubts(found: Foreseen) -> dict[str, Tensor]:
    """Measures of uncertainty, (B,) each, by name; which of them there are depends on the network.

    paths : LOGO's u (Eq. 5), the distance of its two ways over the square root of S, mean over members.
    disagreement : root mean square over numbers of the members' standard deviation.
    aleatoric : the largest norm over members of the predicted standard deviation, over the same root (MOPO).
    """
    size = found.next_s.shape[-1] ** 0.5
    measures = {}
    if found.aside is not None:
        measures["paths"] = ((found.aside - found.next_s).norm(dim=-1) / size).mean(0)
    if len(found.next_s) > 1:
        measures["disagreement"] = found.next_s.std(0).norm(dim=-1) / size
    if found.log_variance is not None:
        sd = (found.log_variance[..., :-1] / 2).exp()
        measures["aleatoric"] = (sd.norm(dim=-1) / size).amax(0)
    return measures


def fit(
    build: Any,
    data: JointTransitions,
    training: Training,
    weights: dict[str, float],
    n_elite: int,
    *,
    rng: np.random.Generator,
    progress: bool = False,
) -> JointDynamics:
    """Train what `build(sizes, generator)` makes; `weights` of the loss's terms by name, 1 where none is given."""
    rng_split, rng_network, rng_rows = rng.spawn(3)
    own, aside = data.split(training.held_out, rng_split)
    network: Network = build(torch_generator(rng_network))
    model = JointDynamics(network, Scales(own), data.widths or ())
    columns, checks = _columns(model, own), _columns(model, aside)
    began = time.process_time()
    with one_thread():
        _train(model, columns, checks, training, weights, torch_generator(rng_rows), progress)
    model.cpu_seconds = time.process_time() - began
    level = held_out_loss(model, checks, weights)
    model.elite = np.sort(np.argsort(level, kind="stable")[:n_elite])
    answers = model.predict(aside.states, aside.observations, aside.actions).uncertainty
    model.ceiling = {name: float(np.quantile(values, 0.95)) for name, values in answers.items()}
    return model


def _train(
    model: JointDynamics,
    columns: tuple[Tensor, ...],
    checks: tuple[Tensor, ...],
    training: Training,
    weights: dict[str, float],
    generator: torch.Generator,
    progress: bool,
) -> None:
    from tqdm.auto import tqdm

    network, n_rows = model.network, len(columns[0])
    optimiser = torch.optim.Adam(
        network.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay, fused=True
    )
    floor = training.learning_rate / 20
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, training.n_steps, eta_min=floor)
    each, best, stale = max(n_rows // training.batch_size, 1), np.inf, 0
    for step in tqdm(range(training.n_steps), desc="world model", unit="step", disable=not progress, leave=False):
        rows = torch.randint(n_rows, (network.members, training.batch_size), generator=generator)
        optimiser.zero_grad(set_to_none=True)
        loss = total(network.losses(_batch(model, columns, rows)), weights).sum()
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss of update {step} is {float(loss.detach())}; lower the learning rate")
        loss.backward()
        optimiser.step()
        schedule.step()
        if (step + 1) % each == 0 and training.patience is not None:
            level = float(held_out_loss(model, checks, weights).mean())
            model.history.append({"step": step + 1, "held_out": level})
            best, stale = (level, 0) if level < best else (best, stale + 1)
            if stale >= training.patience:
                break


def total(losses: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """(M,) the weighted sum."""
    return torch.stack([weights.get(name, 1.0) * value for name, value in losses.items()]).sum(0)


def held_out_loss(model: JointDynamics, checks: tuple[Tensor, ...], weights: dict[str, float]) -> np.ndarray:
    """(M,) the loss on rows that were not trained on, at most 5,000 of them."""
    rows = torch.arange(min(len(checks[0]), 5_000)).expand(model.network.members, -1)
    with torch.inference_mode():
        return total(model.network.losses(_batch(model, checks, rows)), weights).numpy()


def _columns(model: JointDynamics, data: JointTransitions) -> tuple[Tensor, ...]:
    """States, observations, actions, rewards, next states and observations, standardised."""
    into = model.scales.into
    return (
        into("states", data.states),
        into("observations", data.observations),
        torch.from_numpy(data.actions.copy()),
        into("rewards", data.rewards),
        into("states", data.next_states),
        into("observations", data.next_observations),
    )


def _batch(model: JointDynamics, columns: tuple[Tensor, ...], rows: Tensor) -> Batch:
    """rows (M, B) of the columns."""
    s, o, a, r, next_s, next_o = (column[rows] for column in columns)
    widths = torch.tensor(model.widths)[:, None]
    seen = (torch.arange(o.shape[-1]) < widths).float()[:, None]  # (N, 1, O)
    return Batch(s, o.transpose(1, 2), a.transpose(1, 2), r[..., None], next_s, next_o.transpose(1, 2), seen)


def check_like(model: JointDynamics, data: JointTransitions) -> None:
    """DatasetError if the data are of another size than the model."""
    wanted, got = vars(model.network.sizes), data.sizes
    if wanted != got:
        name = next(name for name in wanted if wanted[name] != got[name])
        raise DatasetError(f"{name} is {got[name]} in the data and {wanted[name]} in the model")


def _mean_sd(values: np.ndarray) -> tuple[Tensor, Tensor]:
    mean, sd = values.mean(0, dtype=np.float64), values.std(0, dtype=np.float64)
    still = sd < STILL
    return (torch.tensor(np.where(still, x, y), dtype=torch.float32) for x, y in ((0.0, mean), (1.0, sd)))  # type: ignore[return-value]
