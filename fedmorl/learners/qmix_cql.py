"""Agents that choose among actions, valued together by a monotonic mixer and kept near the data: QMIX with CQL.

The discrete counterpart of `fedmorl.learners.central_critic`, for joint transitions, whose rows stand for themselves.
Called by its parts, for "MACQL" means several systems.

Source: Rashid et al. (2018), QMIX: Monotonic Value Function Factorisation for Deep Multi-Agent Reinforcement Learning,
section 4; Kumar et al. (2020), Conservative Q-Learning for Offline Reinforcement Learning, Eq. (4).

Letters: B batch, K sampled joint actions, N agents, O observation, A actions, S state.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedmorl.data.dataset import DatasetError
from fedmorl.data.joint_transitions import JointTransitions
from fedmorl.federated.clients import one_thread
from fedmorl.learners.central_critic import Rows, all_rows
from fedmorl.learners.team_policy import MemorylessTeam
from fedmorl.nn.banks import bank_mlp
from fedmorl.nn.mlp import mlp, torch_generator
from fedmorl.world_models.joint_dynamics import Scales
from fedmorl.world_models.joint_networks import Sizes

PENALTIES = ("logsumexp", "expected")

Mixer = Callable[[Rows, Any, Scales, np.random.Generator], Rows]  # real rows -> a batch that may hold others


@dataclass(frozen=True, kw_only=True)
class QMixCQL:
    """Offline learning of a team with choices; `fit` returns a `ChoicePolicy`.

    Parameters
    ----------
    n_updates, batch_size, learning_rate, hidden : LOGO's Table 8 has rate 0.001 and batch 128; the rest is ours.
    embedding : width of the mixer's hidden layer; QMIX has 32.
    gamma, tau : discount, and share by which targets follow.
    conservatism : alpha of LOGO's Eq. (10), the weight of CQL's term; ours is 5 for choices, as common for QMIX.
    penalty : the term itself: "logsumexp", the log of the mean of exp Q_tot over `n_sampled` uniform joint actions less
        Q_tot of the data's, or "expected", Q_tot of the greedy joint action less the data's: LOGO's Eq. (10) as it is
        printed, for a policy that is greedy.

    Departs from source: QMIX has recurrent agents that share weights and targets that are copied now and then; here
    each agent has a network of its own and sees one observation, and targets follow slowly. The joint action of a
    target is the present network's (double Q), as in QMIX's public code.
    """

    n_updates: int = 20_000
    batch_size: int = 128
    learning_rate: float = 1e-3
    hidden: int = 128
    embedding: int = 32
    gamma: float = 0.99
    tau: float = 0.005
    conservatism: float = 5.0
    penalty: str = "logsumexp"
    n_sampled: int = 20

    def __post_init__(self) -> None:
        for name in ("n_updates", "batch_size", "hidden", "embedding", "n_sampled"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be an integer >= 1; got {getattr(self, name)!r}")
        if self.penalty not in PENALTIES:
            raise ValueError(f"penalty must be one of {', '.join(PENALTIES)}; got {self.penalty!r}")
        if not 0 <= self.gamma < 1:
            raise ValueError(f"gamma must lie in [0, 1); got {self.gamma!r}")
        if not 0 <= self.conservatism < np.inf:
            raise ValueError(f"conservatism must be finite and >= 0; got {self.conservatism!r}")

    def fit(
        self, data: JointTransitions, *, rng: np.random.Generator, mix: Mixer | None = None, progress: bool = False
    ) -> "ChoicePolicy":
        """Learn from `data`, and from the rows that `mix` puts in the place of real ones.

        Raises
        ------
        DatasetError
            If actions are no choices.
        FloatingPointError
            If the loss is not finite.
        """
        from tqdm.auto import tqdm

        if not data.discrete:
            raise DatasetError("actions must be choices: these are numbers, over which no maximum can be taken")
        rng_network, rng_rows, rng_mix = rng.spawn(3)
        scales = Scales(data)
        learner = _Learner(self, Sizes(**data.sizes), torch_generator(rng_network))
        columns = all_rows(scales, data)
        with one_thread():
            for _ in tqdm(range(self.n_updates), desc="policy", unit="update", disable=not progress):
                chosen = torch.from_numpy(rng_rows.integers(len(data), size=self.batch_size))
                rows = Rows(*(column[chosen] for column in columns))
                if mix is not None:
                    rows = mix(rows, learner.team.agents, scales, rng_mix)
                learner.update(rows, rng_rows)
        return ChoicePolicy(learner.team.agents, scales, self, learner.team)


class Agents(nn.Module):
    """N networks, each from its own observation to a value of each of A actions; called, they choose greedily."""

    def __init__(self, sizes: Sizes, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        self.sizes = sizes
        widths = (sizes.observation_size, hidden, hidden, sizes.action_size)
        self.network = bank_mlp(sizes.n_agents, widths, generator)

    def values(self, o: Tensor) -> Tensor:
        """Q_i(o_i, .): standardised (B, N, O) -> (B, N, A)."""
        return self.network(o.transpose(0, 1)).transpose(0, 1)

    def forward(self, o: Tensor) -> Tensor:
        """Greedy actions, one-hot: (B, N, O) -> (B, N, A)."""
        return functional.one_hot(self.values(o).argmax(-1), self.sizes.action_size).float()


class MonotonicMixer(nn.Module):
    """Q_tot(s, Q_1..Q_N), which falls in none of the Q_i: QMIX, section 4.

    One hidden layer of `embedding` units whose weights are the absolute values of what linear maps make of the state;
    its first bias is linear in the state and its last one a perceptron of it. Each agent's own maximum is then the
    team's.
    """

    def __init__(self, sizes: Sizes, embedding: int, generator: torch.Generator) -> None:
        super().__init__()
        n, s = sizes.n_agents, sizes.state_size
        self.n_agents = n
        self.first = mlp((s, n * embedding), generator)
        self.first_bias = mlp((s, embedding), generator)
        self.last = mlp((s, embedding), generator)
        self.last_bias = mlp((s, embedding, 1), generator)

    def forward(self, values: Tensor, s: Tensor) -> Tensor:
        """(..., B, N), standardised (B, S) -> (..., B)."""
        first = self.first(s).abs().unflatten(-1, (self.n_agents, -1))  # (B, N, E)
        hidden = functional.elu(torch.einsum("...bn,bne->...be", values, first) + self.first_bias(s))
        return (hidden * self.last(s).abs()).sum(-1) + self.last_bias(s)[:, 0]


class Team(nn.Module):
    """Agents and their mixer."""

    def __init__(self, sizes: Sizes, hidden: int, embedding: int, generator: torch.Generator) -> None:
        super().__init__()
        self.agents = Agents(sizes, hidden, generator)
        self.mixer = MonotonicMixer(sizes, embedding, generator)

    def value(self, values: Tensor, a: Tensor, s: Tensor) -> Tensor:
        """Q_tot of one-hot joint actions (..., B, N, A), given `Agents.values` (B, N, A): (..., B)."""
        return self.mixer((values * a).sum(-1), s)


class _Learner:
    """Networks, targets and the optimiser of one fit."""

    def __init__(self, config: QMixCQL, sizes: Sizes, generator: torch.Generator) -> None:
        self.config, self.sizes = config, sizes
        self.team = Team(sizes, config.hidden, config.embedding, generator)
        self.target = copy.deepcopy(self.team)
        self.optimiser = torch.optim.Adam(self.team.parameters(), lr=config.learning_rate, fused=True)

    def update(self, rows: Rows, rng: np.random.Generator) -> None:
        """One step, LOGO's Eqs. (10) and (11), and the targets after it."""
        values = self.team.agents.values(rows.o)
        logged = self.team.value(values, rows.a, rows.s)
        loss = ((logged - self.goal(rows)) ** 2).mean() / 2
        if self.config.conservatism > 0:
            loss = loss + self.config.conservatism * (self.above(rows, values, rng) - logged).mean()
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {float(loss.detach())}; lower the learning rate or the conservatism")
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(self.target.parameters()), list(self.team.parameters()), self.config.tau)

    @torch.no_grad()
    def goal(self, rows: Rows) -> Tensor:
        """r + gamma Q_tot' of what the present team would choose next, (B,)."""
        following = self.target.agents.values(rows.next_o)
        value = self.target.value(following, self.team.agents(rows.next_o), rows.next_s)
        return rows.r + self.config.gamma * (1 - rows.ended) * value

    def above(self, rows: Rows, values: Tensor, rng: np.random.Generator) -> Tensor:
        """What CQL pushes down, (B,)."""
        if self.config.penalty == "expected":
            return self.team.mixer(values.amax(-1), rows.s)
        k, (b, n, a) = self.config.n_sampled, values.shape
        drawn = functional.one_hot(torch.from_numpy(rng.integers(a, size=(k, b, n))), a)  # (K, B, N, A)
        return self.team.value(values, drawn, rows.s).logsumexp(0) - np.log(k)


class ChoicePolicy(MemorylessTeam):
    """Plays what `QMixCQL` learned, greedily."""

    kind, learner, networks = "team of greedy choices", QMixCQL, Agents

    def chosen(self, o: Tensor) -> Tensor:
        """(B, N, O) -> (B, N) int64."""
        return self.actors.values(o).argmax(-1)
