"""FedMORL(rollout): imagined decisions of the shared model join the log, and a model-free learner learns from both."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from fedmorl.dca.policy import OBSERVATION
from fedmorl.federated import FitConfig, ModelClient, load_into, run_federation, trainable
from fedmorl.federated.clients import one_thread
from fedmorl.learners.behaviour_cloning import BlindBehaviour
from fedmorl.learners.weighted_cloning import WeightedCloning, weights
from fedmorl.nn.mlp import mlp, torch_generator
from fedmorl.policies import LearnedPolicy
from fedmorl.world_models.transition import Log, Rollout, TransitionModel, flat

Critic = Literal["iql", "cql"]
Driver = Literal["behaviour", "current"]
EXPECTILE = 0.7  # Kostrikov et al. (2021), arXiv 2110.06169, for locomotion
CQL_WEIGHT = 0.1  # ours
RATES = FitConfig(local_steps=60, batch_size=256, lr=3e-3, lr_final=3e-4)  # ours; lr_rounds is that of the rounds


class QV(nn.Module):
    """Q(o, .) and V(o), two networks of the same widths; the delay also comes as its root."""

    def __init__(self, hidden: Sequence[int], generator: torch.Generator) -> None:
        super().__init__()
        self.q = mlp((len(OBSERVATION) + 1, *hidden, 2), generator)
        self.v = mlp((len(OBSERVATION) + 1, *hidden, 1), generator)

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 7) -> Q (B, 2) and V (B,)."""
        x = torch.cat([observations, observations[..., 5:6].sqrt()], dim=-1)
        return self.q(x), self.v(x)[..., 0]


def iql_loss(module: QV, observations: Tensor, actions: Tensor, gains: Tensor, nexts: Tensor) -> Tensor:
    """Implicit Q-learning on average reward: the mean over a batch of B; `gains` are r - rho x duration.

    L_V = E |tau - 1[u < 0]| u^2 with u = Q - V;  L_Q = E (gain + V(o') - mean V(o) - Q)^2. Only differences of
    values matter under an average reward, so the batch's mean value is taken off, and they cannot drift.

    Source: Kostrikov et al. (2021), arXiv 2110.06169, eqs. (5) and (6).
    Departs from source: no discount, no target network (V is its own).
    """
    q, v = module(observations)
    chosen = q.gather(-1, actions[:, None])[:, 0]
    u = chosen.detach() - v
    value_loss = (torch.where(u < 0, 1 - EXPECTILE, EXPECTILE) * u.square()).mean()
    return value_loss + (td_target(module, gains, nexts, v) - chosen).square().mean()


def cql_loss(module: QV, observations: Tensor, actions: Tensor, gains: Tensor, nexts: Tensor) -> Tensor:
    """Discrete conservative Q-learning on average reward, the backup under the data's own actions as in SARSA.

    V follows the mean of Q over the log's actions, L = L_Q + L_V + weight x E[logsumexp_a Q(o, a) - Q(o, a)].

    Source: Kumar et al. (2020), arXiv 2006.04779, eq. (4).
    Departs from source: the maximum of the backup is left out. The model's others are the logging policy, and a
    maximum exploits that they keep silent (see `fedmorl.planning.grid`).
    """
    q, v = module(observations)
    chosen = q.gather(-1, actions[:, None])[:, 0]
    penalty = (q.logsumexp(-1) - chosen).mean()
    bellman = (td_target(module, gains, nexts, v) - chosen).square().mean()
    return bellman + (chosen.detach() - v).square().mean() + CQL_WEIGHT * penalty


def td_target(module: QV, gains: Tensor, nexts: Tensor, v: Tensor) -> Tensor:
    """gain + V(o') - mean V(o), without gradient, (B,)."""
    return (gains + module(nexts)[1] - v.mean()).detach()


LOSSES: dict[str, Callable[..., Tensor]] = {"iql": iql_loss, "cql": cql_loss}


@dataclass(frozen=True, kw_only=True)
class RolloutAugmentation:
    """Algorithm 3 for K clients: imagine, learn Q and V on real and imagined decisions, fit the policy; repeat.

    critic : "iql" or "cql".
    horizon : H, imagined decisions from each real next observation; 0 learns from the log alone.
    n_iterations : outer iterations i.
    driver : who acts in the rollouts: "behaviour", the blind behaviour policy, or "current", the policy of the
        iteration before, as the paper has it.
    beta : temperature of the policy's weights.
    fit_config, rounds : training of Q and V, averaged over the clients after each round; one client: no averaging.
    n_observations : how many observations of the logs the policy is fitted on.
    """

    critic: Critic = "iql"
    horizon: int = 1
    n_iterations: int = 2
    driver: Driver = "behaviour"
    beta: float = 0.3
    hidden: tuple[int, ...] = (32, 32)
    rounds: int = 10
    fit_config: FitConfig = RATES
    actor: WeightedCloning = field(default_factory=WeightedCloning)
    n_observations: int = 4_096

    def __post_init__(self) -> None:
        if self.critic not in LOSSES:
            raise ValueError(f"critic must be one of {', '.join(LOSSES)}; got {self.critic!r}")
        if self.horizon < 0 or self.n_iterations < 1:
            raise ValueError(f"horizon must be >= 0 and n_iterations >= 1; got {self.horizon}, {self.n_iterations}")
        if not self.beta > 0:
            raise ValueError(f"beta must be > 0; got {self.beta}")

    def fit(self, dataset: Log | Sequence[Log], *, model: TransitionModel, rng: np.random.Generator) -> LearnedPolicy:
        """Learn from one client's log, or from several whose Q and V are averaged; returns the last policy.

        Departs from source: behaviour policy, rho, Q and V are pooled over the clients given; with one client
        nothing is. By default the blind behaviour policy acts in the rollouts: the model's others are the logging
        policy for ever, so values under an improved policy count on them to keep silent, and sending looks ever
        better. With driver="current" the rollouts start under the behaviour policy, not under random weights.
        """
        logs = [flat(log) for log in (dataset if isinstance(dataset, Sequence) else [dataset])]
        behaviour = sum((BlindBehaviour.of(log) for log in logs[1:]), BlindBehaviour.of(logs[0]))
        rho = sum(float(log.rewards.sum()) for log in logs) / sum(float(log.durations.sum()) for log in logs)
        real = [_columns(**{name: getattr(log, name) for name in Rollout._fields}, rho=rho) for log in logs]
        seen = np.concatenate([log.observations for log in logs])
        seen = seen[rng.choice(len(seen), min(self.n_observations, len(seen)), replace=False)]
        pi_b = behaviour.probability(seen)
        policy = cloned = self.actor.fit(seen, pi_b, np.ones_like(pi_b), rng=rng)
        module = QV(self.hidden, torch_generator(rng))
        for _ in range(self.n_iterations):
            driver = policy if self.driver == "current" else cloned
            merged = [
                self._with_imagined(columns, log.next_observations, driver, model, rho, rng)
                for columns, log in zip(real, logs, strict=True)
            ]
            self._fit_critic(module, merged, rng)
            policy = self.actor.fit(seen, pi_b, weights(self._advantage(module, seen), self.beta), rng=rng)
        return policy

    def _with_imagined(
        self,
        real: list[Tensor],
        starts: np.ndarray,
        policy: LearnedPolicy,
        model: TransitionModel,
        rho: float,
        rng: np.random.Generator,
    ) -> list[Tensor]:
        """Lines 3 to 11: the log and what the model imagines from each of its next observations."""
        if self.horizon == 0:
            return real
        dreamt = model.rollout(starts, policy, self.horizon, rng)
        flattened = {name: x.reshape(-1, *x.shape[2:]) for name, x in dreamt._asdict().items()}  # (B H, ...)
        imagined = _columns(**flattened, rho=rho)
        return [torch.cat(pair) for pair in zip(real, imagined, strict=True)]

    def _fit_critic(self, module: QV, logs: Sequence[list[Tensor]], rng: np.random.Generator) -> None:
        clients = [ModelClient(k, module, LOSSES[self.critic], columns) for k, columns in enumerate(logs)]
        config = replace(self.fit_config, lr_rounds=self.rounds)
        history = run_federation(
            clients, rounds=self.rounds, fit_config=config, seed=int(rng.integers(2**32)), progress=False
        )
        load_into(trainable(module), history.state)

    @staticmethod
    def _advantage(module: QV, observations: np.ndarray) -> np.ndarray:
        with torch.no_grad(), one_thread():
            q = module(torch.from_numpy(observations))[0]
        return (q[:, 1] - q[:, 0]).numpy().astype(np.float64)


def _columns(
    observations: np.ndarray,
    actions: np.ndarray,
    rewards: np.ndarray,
    next_observations: np.ndarray,
    durations: np.ndarray,
    rho: float,
) -> list[Tensor]:
    """What the losses take: observations, actions, gains r - rho x duration, next observations."""
    gains = rewards.astype(np.float64) - rho * durations
    return [
        torch.from_numpy(np.array(observations, np.float32)),
        torch.from_numpy(actions.astype(np.int64)),
        torch.from_numpy(gains.astype(np.float32)),
        torch.from_numpy(np.array(next_observations, np.float32)),
    ]
