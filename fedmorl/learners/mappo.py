"""MADS4 goes on learning by playing: MAPPO with the S4 actor in its recurrent view (MADS4, section 4.2, Algorithm 2).

The critic sees the global state and what every agent told a step ago, and is there in training only. Letters as in
`fedmorl.learners.rollouts`; R rows are pairs of an episode b and a step t.
"""

import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedmorl.evaluation.team import EVALUATION_SEED, TeamTask
from fedmorl.federated.clients import one_thread
from fedmorl.learners.actor_critic import (
    Critic,
    bellman_targets,
    clipped_surrogate,
    entropies,
    generalised_advantages,
    standardised,
)
from fedmorl.learners.mads4 import MADS4Policy
from fedmorl.learners.rollouts import (
    Rollout,
    collect,
    parts,
    played_log_probabilities,
    sequence_log_probabilities,
    step_log_probabilities,
)
from fedmorl.nn.mlp import torch_generator

SURROGATES = ("min", "clip_only")
VALUE_TARGETS = ("bellman", "lambda")
FROZEN = ("log_re", "im", "P", "log_dt")  # A, and dt: what takes one state to the next depends on both
ROUTES = {"tuple": step_log_probabilities, "conv": sequence_log_probabilities}


@dataclass(frozen=True, kw_only=True)
class MAPPO:
    """How a MADS4 team is tuned by playing; `fit` does it. MADS4 prints no constant: all are ours or MAPPO's.

    Parameters
    ----------
    iterations : of playing and learning, in all.
    warmup : the first so many train the critic alone (section 4.2: "the actor network is kept frozen initially").
    episodes, epochs : an iteration plays `episodes` side by side, and critic and actor go over them `epochs` times.
    minibatches, critic_minibatches : parts of a pass, an update each; a critic wants more than an actor bears.
    actor_rate, critic_rate, max_norm : Adam's rates, and the norm to which each gradient is clipped.
    clip : of the probability ratio, epsilon.
    gamma, lam : discount and lambda of the advantages, see `generalised_advantages`.
    entropy : weight of the policy's entropy [1 / nat].
    surrogate : "min" (PPO), or "clip_only" (what line 23 prints).
    gradient : "tuple", through one step from the recorded state ("individual tuples", section 1), or "conv", through
        whole episodes by convolution.
    value_target : "bellman" (line 20) or "lambda" (advantage + value, as in MAPPO).
    freeze_A : keep Lambda, P and dt as they are (section 5.3), tune B, C, D and the rest.
    target_gain : the return asked for is the best one so far and this share of its absolute value (section 4.2).
    hidden : width of the critic's two layers.

    Notes
    -----
    Batch norm keeps the statistics of offline training, and nothing is dropped out. Advantages are centred and scaled
    over the steps of an iteration.

    Departs from source: dt is frozen with A, of which the paper does not speak; the first iteration asks for the
    policy's own target, since there is no best return yet.
    """

    iterations: int = 100
    warmup: int = 20
    episodes: int = 8
    epochs: int = 10
    minibatches: int = 4
    critic_minibatches: int = 16
    actor_rate: float = 1e-4
    critic_rate: float = 5e-4
    max_norm: float = 10.0
    clip: float = 0.2
    gamma: float = 0.99
    lam: float = 0.95
    entropy: float = 0.01
    surrogate: str = "min"
    gradient: str = "tuple"
    value_target: str = "bellman"
    freeze_A: bool = True
    target_gain: float = 0.1
    hidden: int = 128

    def __post_init__(self) -> None:
        for name, allowed in (("surrogate", SURROGATES), ("gradient", tuple(ROUTES)), ("value_target", VALUE_TARGETS)):
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")
        for name in ("iterations", "episodes", "epochs", "minibatches", "critic_minibatches", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1; got {getattr(self, name)}")
        for name in ("actor_rate", "critic_rate", "max_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0; got {getattr(self, name)}")
        for name in ("clip", "gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1; got {getattr(self, name)}")
        if not 0 <= self.warmup <= self.iterations:
            raise ValueError(f"warmup must be from 0 to iterations, {self.iterations}; got {self.warmup}")
        if self.gradient == "conv" and self.minibatches > self.episodes:
            raise ValueError(
                f"minibatches must be <= episodes, {self.episodes}, for gradient='conv', which takes whole episodes; "
                f"got {self.minibatches}"
            )

    def fit(
        self, policy: MADS4Policy, task: TeamTask, *, rng: np.random.Generator, progress: bool = False
    ) -> tuple[MADS4Policy, list[dict[str, Any]]]:
        """Tune a copy of `policy`, trained or not, on `task`; the copy, and one row of history an iteration.

        A row holds `iteration`, `frozen` (the actor stood still), `env_steps` (joint steps so far), `target` (the
        return asked for), `return_mean` and `return_sd` over the episodes played before the update, the mean of each
        number that the task tells besides (such as `team_deliveries`), `explained` (share of the variance of what came,
        the lambda returns, that the critic had foreseen), `entropy` [nats a decision], and of the last epoch
        `value_loss`, `clip_share` (decisions whose ratio left 1 +- clip) and `kl` (from the policy that played, in nats
        a decision).

        Raises
        ------
        ValueError
            If the task's agents, actions or observations are not the policy's, or a reward is not finite.
        """
        from tqdm.auto import tqdm

        _check_team(policy, task)
        with one_thread():
            tuning, history = _Tuning(self, policy, task, rng), []
            bar = tqdm(range(self.iterations), desc="MAPPO", unit="iteration", disable=not progress)
            for _ in bar:
                history.append(tuning.iterate())
                bar.set_postfix({"return": f"{history[-1]['return_mean']:.2f}"})
            return tuning.tuned(), history


class _Tuning:
    """Where the tuning stands: the actor, its critic, their optimisers, and the best return so far."""

    critic: Critic  # made when a first rollout shows what it is to see
    critic_optimiser: torch.optim.Optimizer

    def __init__(self, config: MAPPO, policy: MADS4Policy, task: TeamTask, rng: np.random.Generator) -> None:
        self.config, self.given, self.task = config, policy, task
        self.rng_play, rng_learn = rng.spawn(2)
        self.generator = torch_generator(rng_learn)
        self.actor = copy.deepcopy(policy.actor).eval()
        self.layers = [block.s4 for block in self.actor.blocks]
        self.length = int(self.layers[0].length)
        for name, parameter in self.actor.named_parameters():
            parameter.requires_grad_(not (config.freeze_A and name.rpartition(".")[2] in FROZEN))
        free = [p for p in self.actor.parameters() if p.requires_grad]
        self.actor_optimiser = torch.optim.Adam(free, lr=config.actor_rate, eps=1e-5)
        self.best, self.env_steps, self.iteration = -np.inf, 0, 0

    @property
    def target(self) -> float:
        if self.best == -np.inf:
            return self.given.target
        return self.best + self.config.target_gain * abs(self.best)

    @property
    def frozen(self) -> bool:
        return self.iteration < self.config.warmup

    def policy(self, act: str) -> MADS4Policy:
        """The actor as it is now."""
        config = replace(self.given.config, act=act)
        return MADS4Policy(self.actor, config, scale=self.given.scale, target=self.target)

    def tuned(self) -> MADS4Policy:
        """The actor as the one handed in was: its C in the same form, all of it open to training."""
        for layer in self.layers:
            if int(layer.length) != self.length:
                layer.set_length(self.length)
        policy = self.policy(self.given.config.act)
        policy.actor.requires_grad_(True)
        policy.history = list(self.given.history)
        return policy

    def iterate(self) -> dict[str, Any]:
        """Play, then learn from it; Algorithm 2, lines 3 to 25."""
        if self.iteration == self.config.warmup:
            for layer in self.layers:  # steps train C itself, the convolution what a kernel of T steps is made of
                layer.set_length(self.task.time_limit if self.config.gradient == "conv" else 0)
        seeds = self.rng_play.integers(EVALUATION_SEED, size=self.config.episodes).tolist()
        asked, frozen = self.target, self.frozen
        rollout = collect(self.task, policy := self.policy("sample"), seeds, self.rng_play)
        if self.iteration == 0:
            self.critic = Critic(rollout.situations[:, :-1][rollout.mask], self.config.hidden, self.generator)
            self.critic_optimiser = torch.optim.Adam(self.critic.parameters(), lr=self.config.critic_rate, eps=1e-5)
        learned = self._learn(policy, rollout)
        self.best = max(self.best, float(rollout.returns.max()))
        self.env_steps, self.iteration = self.env_steps + rollout.n_steps, self.iteration + 1
        return {
            "iteration": self.iteration,
            "frozen": frozen,
            "env_steps": self.env_steps,
            "target": asked,
            "return_mean": float(rollout.returns.mean()),
            "return_sd": float(rollout.returns.std()),
            **{name: float(values.mean()) for name, values in rollout.sums.items()},
            **learned,
        }

    def _learn(self, policy: MADS4Policy, rollout: Rollout) -> dict[str, float]:
        config = self.config
        with torch.no_grad():
            old = played_log_probabilities(policy, rollout)  # (B, T, n, A)
            values = self.critic(rollout.situations)  # (B, T + 1)
        advantages = generalised_advantages(
            rollout.rewards, values, rollout.terminated, rollout.truncated, config.gamma, config.lam
        )
        came = values[:, :-1] + advantages  # the lambda returns
        told = {
            "explained": 1 - float(advantages[rollout.mask].var() / came[rollout.mask].var().clamp_min(1e-12)),
            "entropy": float(entropies(old)[rollout.mask].mean()),
            "value_loss": self._improve_critic(rollout, came),
        }
        clip_share, kl = 0.0, 0.0
        if not self.frozen:
            clip_share, kl = self._improve_actor(policy, rollout, old, standardised(advantages, rollout.mask))
        return told | {"clip_share": clip_share, "kl": kl}

    def _improve_critic(self, rollout: Rollout, lambda_returns: Tensor) -> float:
        """Algorithm 2, lines 20 and 21; the mean loss of the last epoch."""
        for _ in range(self.config.epochs):
            total = 0.0
            for b, t in parts(rollout, self.config.critic_minibatches, self.generator, whole=False):
                target = self._value_targets(rollout, lambda_returns, b, t)
                loss = functional.mse_loss(self.critic(rollout.situations[b, t]), target)
                _step(self.critic_optimiser, loss, self.config.max_norm)
                total += len(b) * float(loss.detach())
        return total / rollout.n_steps

    def _value_targets(self, rollout: Rollout, lambda_returns: Tensor, b: Tensor, t: Tensor) -> Tensor:
        if self.config.value_target == "lambda":
            return lambda_returns[b, t]
        with torch.no_grad():
            following = self.critic(rollout.situations[b, t + 1])
        return bellman_targets(rollout.rewards[b, t], following, rollout.terminated[b, t], self.config.gamma)

    def _improve_actor(
        self, policy: MADS4Policy, rollout: Rollout, old: Tensor, advantages: Tensor
    ) -> tuple[float, float]:
        """Algorithm 2, line 23; share of clipped decisions and KL divergence in the last epoch."""
        config, route = self.config, ROUTES[self.config.gradient]
        for _ in range(config.epochs):
            clipped = kl = 0.0
            for b, t in parts(rollout, config.minibatches, self.generator, whole=config.gradient == "conv"):
                new, before = route(policy, rollout, b, t), old[b, t]  # (R, n, A)
                taken = rollout.taken[b, t][..., None]
                ratio = (new.gather(-1, taken) - before.gather(-1, taken)).exp()[..., 0]  # (R, n)
                gain = clipped_surrogate(ratio, advantages[b, t, None], config.clip, config.surrogate)
                _step(self.actor_optimiser, -(gain + config.entropy * entropies(new)).mean(), config.max_norm)
                clipped += len(b) * float(((ratio.detach() - 1).abs() > config.clip).float().mean())
                kl += len(b) * float((before.exp() * (before - new.detach())).sum(-1).mean())
        return clipped / rollout.n_steps, kl / rollout.n_steps


def _step(optimiser: torch.optim.Optimizer, loss: Tensor, max_norm: float) -> None:
    if not torch.isfinite(loss):
        raise FloatingPointError(f"the loss must stay finite; it is {float(loss)}; try a lower rate")
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(optimiser.param_groups[0]["params"], max_norm)
    optimiser.step()


def _check_team(policy: MADS4Policy, task: TeamTask) -> None:
    for name in ("n_agents", "n_actions", "observation_size"):
        own, other = getattr(policy.actor, name), getattr(task, name)
        if own != other:
            raise ValueError(f"{name} of the task is {other} and of the policy {own}; tune a policy made for this task")
