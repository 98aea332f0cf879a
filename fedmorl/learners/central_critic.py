"""Deterministic actors under twin central critics, kept near the data: MADDPG's form with CQL's term and cloning.

LOGO calls its backbone "MACQL", a name that means several systems; this one is named by its parts.

Letters: B batch, N agents, O observation, A action, S state.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fedmorl.data.dataset import DatasetError
from fedmorl.data.joint_transitions import JointTransitions
from fedmorl.federated.clients import one_thread
from fedmorl.learners.team_policy import MemorylessTeam
from fedmorl.nn.banks import bank_mlp
from fedmorl.nn.mlp import torch_generator
from fedmorl.world_models.joint_dynamics import Scales
from fedmorl.world_models.joint_networks import Sizes

PENALTIES = ("expected", "logsumexp")


class Rows(NamedTuple):
    """A batch of transitions; states, observations and rewards standardised (rewards by their scale alone)."""

    s: Tensor  # (B, S)
    o: Tensor  # (B, N, O)
    a: Tensor  # (B, N, A)
    r: Tensor  # (B,)
    next_s: Tensor  # (B, S)
    next_o: Tensor  # (B, N, O)
    ended: Tensor  # (B,) 1 where the task terminated


Mixer = Callable[[Rows, "Actors", Scales, np.random.Generator], Rows]  # real rows -> a batch that may hold others
Planner = Callable[[Rows, "Actors", nn.Module, Scales, np.random.Generator], Tensor]  # -> actions to imitate (B, N, A)


@dataclass(frozen=True, kw_only=True)
class CentralCritic:
    """Offline learning of a team with continuous actions; `fit` returns a `TeamPolicy`.

    Parameters
    ----------
    n_updates, batch_size, learning_rate, hidden : LOGO's Table 8 has rate 0.001, batch 128 and width 256; its ten
        million steps cannot be updates in the one to four hours that it states.
    gamma, tau : discount, and share by which targets follow.
    conservatism : alpha of Eq. (10).
    penalty : what it weighs: "expected", Q of the policy's actions less Q of the data's, as printed, or "logsumexp",
        over `n_sampled` uniform actions and the policy's.
    cloning : lambda of Eq. (12).
    scaled : the gradient of Q is divided by the batch's mean |Q| (TD3+BC).
    policy_gradient : False leaves cloning alone, and no critic is trained.

    Departs from source: Eq. (12) adds Q as it is; with returns of hundreds the cloning would then vanish, so `scaled`
    is the default. The maximum in Eq. (11) is the target actors' action, by the lower of two target critics.
    """

    n_updates: int = 20_000
    batch_size: int = 128
    learning_rate: float = 1e-3
    hidden: int = 256
    gamma: float = 0.99
    tau: float = 0.005
    conservatism: float = 1.0
    penalty: str = "expected"
    n_sampled: int = 10
    cloning: float = 1.0
    scaled: bool = True
    policy_gradient: bool = True

    def __post_init__(self) -> None:
        for name in ("n_updates", "batch_size", "hidden", "n_sampled"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be an integer >= 1; got {getattr(self, name)!r}")
        if self.penalty not in PENALTIES:
            raise ValueError(f"penalty must be one of {', '.join(PENALTIES)}; got {self.penalty!r}")
        if not 0 <= self.gamma < 1:
            raise ValueError(f"gamma must lie in [0, 1); got {self.gamma!r}")
        for name in ("conservatism", "cloning"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ValueError(f"{name} must be finite and >= 0; got {getattr(self, name)!r}")

    def fit(
        self,
        data: JointTransitions,
        *,
        rng: np.random.Generator,
        mix: Mixer | None = None,
        plan: Planner | None = None,
        plan_every: int = 10,
        progress: bool = False,
    ) -> "TeamPolicy":
        """Learn from `data`, and from the rows that `mix` puts in the place of real ones.

        Every `plan_every` updates the actors are also drawn to what `plan` says for the batch, with as much weight as
        to the data's actions (LOGO, section 5.2, whose printed sign would drive them away).
        """
        from tqdm.auto import tqdm

        if data.discrete:
            raise DatasetError("actions must be numbers: these are choices, which deterministic actors cannot take")
        rng_network, rng_rows, rng_mix, rng_plan = rng.spawn(4)
        scales, sizes = Scales(data), Sizes(**data.sizes)
        learner = _Learner(self, sizes, torch_generator(rng_network))
        columns = all_rows(scales, data)
        with one_thread():
            for update in tqdm(range(self.n_updates), desc="policy", unit="update", disable=not progress):
                chosen = torch.from_numpy(rng_rows.integers(len(data), size=self.batch_size))
                rows = Rows(*(column[chosen] for column in columns))
                if mix is not None:
                    rows = mix(rows, learner.actors, scales, rng_mix)
                planned = None
                if plan is not None and update % plan_every == 0:
                    planned = plan(rows, learner.actors, learner.critics, scales, rng_plan)
                learner.update(rows, rng_rows, planned)
        return TeamPolicy(learner.actors, scales, self, learner.critics)


class Actors(nn.Module):
    """N deterministic policies, each on its own observation: standardised (B, N, O) -> (B, N, A) in [-1, 1]."""

    def __init__(self, sizes: Sizes, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        self.sizes = sizes
        widths = (sizes.observation_size, hidden, hidden, sizes.action_size)
        self.network = bank_mlp(sizes.n_agents, widths, generator)

    def forward(self, o: Tensor) -> Tensor:
        """(B, N, O) -> (B, N, A)."""
        return self.network(o.transpose(0, 1)).tanh().transpose(0, 1)


class _Learner:
    """Networks, targets and optimisers of one fit."""

    def __init__(self, config: CentralCritic, sizes: Sizes, generator: torch.Generator) -> None:
        self.config = config
        self.actors = Actors(sizes, config.hidden, generator)
        n_in = sizes.state_size + sizes.n_agents * sizes.action_size
        self.critics = bank_mlp(2, (n_in, config.hidden, config.hidden, 1), generator)
        self.target_actors, self.target_critics = copy.deepcopy(self.actors), copy.deepcopy(self.critics)
        self.of_actors, self.of_critics = (
            torch.optim.Adam(network.parameters(), lr=config.learning_rate, fused=True)
            for network in (self.actors, self.critics)
        )

    def update(self, rows: Rows, rng: np.random.Generator, planned: Tensor | None = None) -> None:
        """One step of the critics, Eqs. (10) and (11), one of the actors, Eq. (12), and the targets after them."""
        config = self.config
        if config.policy_gradient:
            _step(self.of_critics, self._critic_loss(rows, rng))
        action = self.actors(rows.o)
        loss = config.cloning * ((action - rows.a) ** 2).sum(-1).mean()
        if planned is not None:
            loss = loss + config.cloning * ((action - planned) ** 2).sum(-1).mean()
        if config.policy_gradient:
            value = judged(self.critics, rows.s, action)[0]
            loss = loss - value.mean() / (value.detach().abs().mean().clamp_min(1e-6) if config.scaled else 1.0)
        _step(self.of_actors, loss)
        if config.policy_gradient:
            with torch.no_grad():
                for network, target in ((self.actors, self.target_actors), (self.critics, self.target_critics)):
                    torch._foreach_lerp_(list(target.parameters()), list(network.parameters()), config.tau)

    def _critic_loss(self, rows: Rows, rng: np.random.Generator) -> Tensor:
        config = self.config
        with torch.no_grad():
            following = judged(self.target_critics, rows.next_s, self.target_actors(rows.next_o)).amin(0)
            target = rows.r + config.gamma * (1 - rows.ended) * following
            taken = self.actors(rows.o)
        logged = judged(self.critics, rows.s, rows.a)  # (2, B)
        loss = ((logged - target) ** 2).mean(1).sum() / 2
        if config.conservatism == 0:
            return loss
        if config.penalty == "expected":
            above = judged(self.critics, rows.s, taken)
        else:
            above = self._log_sum(rows, taken, rng)
        return loss + config.conservatism * (above - logged).mean(1).sum()

    def _log_sum(self, rows: Rows, taken: Tensor, rng: np.random.Generator) -> Tensor:
        """log of the mean of exp Q over uniform joint actions and the policy's own, (2, B)."""
        uniform = rng.uniform(-1, 1, (self.config.n_sampled, *taken.shape)).astype(np.float32)
        actions = torch.cat([torch.from_numpy(uniform), taken[None]])  # (K, B, N, A)
        states = rows.s.expand(len(actions), -1, -1)
        values = judged(self.critics, states.flatten(0, 1), actions.flatten(0, 1)).unflatten(1, (len(actions), -1))
        return values.logsumexp(1) - np.log(len(actions))


class TeamPolicy(MemorylessTeam):
    """Plays what `CentralCritic` learned."""

    kind, learner, networks = "team of deterministic actors", CentralCritic, Actors

    def chosen(self, o: Tensor) -> Tensor:
        """(B, N, O) -> (B, N, A) in [-1, 1]."""
        return self.actors(o)


def act_with(actors: Actors, scales: Scales, observations: np.ndarray) -> np.ndarray:
    """(B, N, O) in the units of the data -> actions (B, N, A)."""
    with torch.inference_mode(), one_thread():
        return actors(scales.into("observations", observations)).numpy()


def judged(critics: nn.Module, s: Tensor, a: Tensor) -> Tensor:
    """Q of both critics, (2, B), of states (B, S) and joint actions (B, N, A)."""
    told = torch.cat([s, a.flatten(1)], -1)
    return critics(told.expand(2, -1, -1))[..., 0]


def rows_of(
    scales: Scales,
    states: np.ndarray,
    observations: np.ndarray,
    actions: np.ndarray,
    rewards: np.ndarray,
    next_states: np.ndarray,
    next_observations: np.ndarray,
    ended: np.ndarray,
) -> Rows:
    """Rows in the units of the data, standardised."""
    return Rows(
        scales.into("states", states),
        scales.into("observations", observations),
        torch.tensor(actions, dtype=torch.float32),
        torch.tensor(rewards, dtype=torch.float32) / scales.reward_scale,
        scales.into("states", next_states),
        scales.into("observations", next_observations),
        torch.tensor(ended, dtype=torch.float32),
    )


def all_rows(scales: Scales, data: JointTransitions) -> Rows:
    """Every row of the data."""
    d = data
    return rows_of(
        scales, d.states, d.observations, d.actions, d.rewards, d.next_states, d.next_observations, d.terminated
    )


def _step(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    if not torch.isfinite(loss):
        raise FloatingPointError(f"the loss is {float(loss.detach())}; lower the learning rate, or the conservatism")
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()
