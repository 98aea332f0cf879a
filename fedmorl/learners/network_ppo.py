"""IPPO and MAPPO on the wireless tasks: what playing, instead of logs, teaches agents that share one policy.

All agents share an actor, which sees what one agent sees. IPPO's critic sees the same; MAPPO's sees it beside the mean
of all agents' observations. That mean is as wide at any N, so what was trained at one size plays at every other.

Sources: Schulman et al. (2017), arXiv 1707.06347; de Witt et al. (2020), arXiv 2011.09533 (IPPO); Yu et al. (2022),
arXiv 2103.01955 (MAPPO).

Letters: E networks, T epochs, N agents, O observation, A levels, R rows (one agent of one network in one epoch each).
"""

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedmorl.federated.clients import one_thread
from fedmorl.learners.actor_critic import clipped_surrogate, entropies, generalised_advantages
from fedmorl.nn.mlp import mlp, torch_generator
from fedmorl.tasks.networks import NetworkTask, check_size
from fedmorl.world_models.network_windows import DEFAULT_RETURNS, RETURNS

KINDS = ("ippo", "mappo")


class Rollout(NamedTuple):
    """T epochs of E networks."""

    observations: Tensor  # (E, T + 1, N, O); entry t is what was seen before epoch t
    levels: Tensor  # (E, T, N)
    log_p: Tensor  # (E, T, N), of these levels when they were drawn
    rewards: Tensor  # (E, T, N)


@dataclass(frozen=True, kw_only=True)
class NetworkPPO:
    """How agents learn by playing; `fit` does it.

    Parameters
    ----------
    kind : "ippo" or "mappo", what the critic sees: see `situations`.
    n_interactions : agent-epochs of play, at most: one is one agent acting in one epoch. Logs of 162 networks of 10
        agents for 64 epochs hold 103,680.
    returns : "own", "mean_field" or "own_minus_externality", as for `NetWorld`, or "reward", the task's own; None: what
        NetWorld's planner is guided by in this task, `DEFAULT_RETURNS`, or "reward" in a task that has none there.
    n_epochs : after which new networks are drawn.
    rollout : epochs between updates.
    passes, minibatches : times that a rollout is gone over, and parts of it that are an update each.
    hidden : width of both layers, tanh, of actor and critic.
    learning_rate, max_norm : Adam's, and the norm to which the gradients of each network are clipped.
    clip : of the probability ratio, epsilon.
    gamma, lam : discount per epoch and lambda of the advantages, see `generalised_advantages`.
    entropy : weight of the policy's entropy [1 / nat].
    greedy : whether the policy, once trained, takes the likeliest level; else it draws, which is better where agents
        that see the same should not all do the same.

    Raises
    ------
    ValueError
        If a name is unknown, or a number out of its range.

    Notes
    -----
    Departs from sources: the state that MAPPO's critic sees is a mean of observations, as the tasks have no state of
    fixed size; rewards are z-scored by those of the first rollout, not returns by running moments; values are not
    clipped.
    """

    kind: str = "ippo"
    n_interactions: int = 103_680
    returns: str | None = None
    n_epochs: int = 64
    rollout: int = 16
    passes: int = 10
    minibatches: int = 4
    hidden: int = 64
    learning_rate: float = 5e-4
    max_norm: float = 0.5
    clip: float = 0.2
    gamma: float = 0.99
    lam: float = 0.95
    entropy: float = 0.01
    greedy: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {self.kind!r}")
        if self.returns is not None and self.returns not in (*RETURNS, "reward"):
            raise ValueError(f"returns must be one of {', '.join(RETURNS)}, reward, or None; got {self.returns!r}")
        for name in ("n_interactions", "n_epochs", "rollout", "passes", "minibatches", "hidden"):
            check_size(name, getattr(self, name), 1)
        for name in ("learning_rate", "max_norm", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0; got {getattr(self, name)!r}")
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1; got {getattr(self, name)!r}")
        if not self.entropy >= 0:
            raise ValueError(f"entropy must be >= 0; got {self.entropy!r}")

    def fit(self, task: NetworkTask, *, rng: np.random.Generator, progress: bool = False) -> "NetworkPPOPolicy":
        """The policy after `n_interactions` of play in the E networks of `task`; ValueError as `stages`."""
        from tqdm.auto import tqdm

        with tqdm(total=self.n_interactions, desc=self.kind, unit="act", disable=not progress, leave=False) as bar:
            for policy in self.stages(task, rng=rng):
                bar.update(policy.interactions - bar.n)
        return policy

    def stages(self, task: NetworkTask, *, rng: np.random.Generator) -> Iterator["NetworkPPOPolicy"]:
        """The policy before anything is learned and after every update; the last one is that of `fit`.

        Raises
        ------
        ValueError
            If `n_interactions` are too few for one epoch of all networks, or the task cannot tell `returns`.
        """
        each = task.n_networks * task.n_agents
        if self.n_interactions < each:
            raise ValueError(
                f"n_interactions is {self.n_interactions} and one epoch of {task.n_networks} networks of "
                f"{task.n_agents} agents takes {each}; ask for more, or play fewer networks"
            )
        rng_task, rng_fit = rng.spawn(2)
        training = _Training(self, task, torch_generator(rng_fit))
        yield training.policy()
        left = self.n_interactions // each  # epochs
        while left:
            seen = task.reset(rng_task.spawn(1)[0])
            for length in parts(min(left, self.n_epochs), self.rollout):
                seen = training.iterate(task, seen, length)
                left -= length
                yield training.policy()


class _Training:
    """Networks that are trained, their optimiser, and what they have cost so far."""

    def __init__(self, config: NetworkPPO, task: NetworkTask, generator: torch.Generator) -> None:
        self.config, self.generator = config, generator
        self.returns = config.returns or DEFAULT_RETURNS.get(task.name, "reward")
        o, h = task.observation_size, config.hidden
        self.actor = tanh_mlp((o, h, h, task.n_levels), generator)
        self.critic = tanh_mlp((o if config.kind == "ippo" else 2 * o, h, h, 1), generator)
        with torch.no_grad():
            for p in self.actor[-1].parameters():
                p.mul_(0.01)  # so that all levels are about as likely at first
        self.optimiser = torch.optim.Adam(
            [*self.actor.parameters(), *self.critic.parameters()], lr=config.learning_rate, eps=1e-5, fused=True
        )
        self.centre: tuple[float, float] | None = None  # mean and standard deviation of the first rewards
        self.interactions, self.cpu_seconds = 0, 0.0

    def policy(self) -> "NetworkPPOPolicy":
        """What has been learned so far; goes its own way from here."""
        actor = copy.deepcopy(self.actor).requires_grad_(False)
        return NetworkPPOPolicy(actor, self.interactions, self.cpu_seconds, self.config.greedy)

    def iterate(self, task: NetworkTask, seen: np.ndarray, n_epochs: int) -> np.ndarray:
        """Play from observations (E, N, O), learn from it -> the observations after it."""
        begin = time.process_time()
        with one_thread():
            rollout = self._play(task, seen, n_epochs)
            self._learn(rollout)
        self.interactions += rollout.levels.numel()
        self.cpu_seconds += time.process_time() - begin
        return rollout.observations[:, -1].numpy()

    def _play(self, task: NetworkTask, seen: np.ndarray, n_epochs: int) -> Rollout:
        observations, levels, log_ps, rewards = [torch.as_tensor(seen)], [], [], []
        for _ in range(n_epochs):
            with torch.no_grad():
                log_p = functional.log_softmax(self.actor(observations[-1]), -1)  # (E, N, A)
            levels.append(draw(log_p, self.generator))
            log_ps.append(chosen(log_p, levels[-1]))
            seen, reward = task.step(levels[-1].numpy())
            observations.append(torch.as_tensor(seen))
            rewards.append(torch.tensor(reward_for(task, reward, self.returns)))
        return Rollout(*(torch.stack(x, 1) for x in (observations, levels, log_ps, rewards)))

    def _learn(self, rollout: Rollout) -> None:
        c = self.config
        if self.centre is None:
            self.centre = float(rollout.rewards.mean()), max(float(rollout.rewards.std()), 1e-3)
        rewards = (rollout.rewards - self.centre[0]) / self.centre[1]
        views = situations(rollout.observations, c.kind)  # (E, T + 1, N, O or 2 O)
        with torch.no_grad():
            values = self.critic(views)[..., 0]
        never = torch.zeros_like(rewards, dtype=torch.bool)
        advantages = generalised_advantages(rewards, values, never, never, c.gamma, c.lam)  # (E, T, N)
        targets = advantages + values[:, :-1]
        now = rollout.observations[:, :-1], views[:, :-1], rollout.levels, rollout.log_p, advantages, targets
        rows = [x.flatten(0, 2) for x in now]
        for _ in range(c.passes):
            for part in torch.randperm(len(rows[2]), generator=self.generator).chunk(c.minibatches):
                self._update(*(x[part] for x in rows))

    def _update(
        self, seen: Tensor, views: Tensor, levels: Tensor, old: Tensor, advantages: Tensor, targets: Tensor
    ) -> None:
        c = self.config
        log_p = functional.log_softmax(self.actor(seen), -1)
        better = (advantages - advantages.mean()) / advantages.std(correction=0).clamp_min(1e-8)
        surrogate = clipped_surrogate((chosen(log_p, levels) - old).exp(), better, c.clip)
        value_loss = (self.critic(views)[..., 0] - targets) ** 2
        loss = (-surrogate - c.entropy * entropies(log_p) + 0.5 * value_loss).mean()
        self.optimiser.zero_grad()
        loss.backward()
        for network in (self.actor, self.critic):
            nn.utils.clip_grad_norm_(network.parameters(), c.max_norm)
        self.optimiser.step()


class NetworkPPOPolicy:
    """A `NetworkPolicy` of `fedmorl.evaluation.networks`: every agent by itself, on what it sees, at any N.

    Attributes
    ----------
    interactions, cpu_seconds : that it was trained with.
    greedy : whether the likeliest level is taken, instead of a draw.
    """

    def __init__(self, actor: nn.Sequential, interactions: int, cpu_seconds: float, greedy: bool) -> None:
        self.actor, self.interactions, self.cpu_seconds, self.greedy = actor, interactions, cpu_seconds, greedy

    def start(self, task: NetworkTask, rng: np.random.Generator) -> None:
        """ValueError if the task is not of the form that was trained on."""
        found, wanted = (task.observation_size, task.n_levels), (self.actor[0].in_features, self.actor[-1].out_features)
        if found != wanted:
            raise ValueError(
                f"the policy reads {wanted[0]} numbers and chooses among {wanted[1]} levels; "
                f"{task.name} has {found[0]} and {found[1]}"
            )
        self._generator = torch_generator(rng)

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Observations (E, N, O) -> levels (E, N)."""
        with torch.no_grad(), one_thread():
            log_p = functional.log_softmax(self.actor(torch.as_tensor(observations)), -1)
        return (log_p.argmax(-1) if self.greedy else draw(log_p, self._generator)).numpy()


def situations(observations: Tensor, kind: str) -> Tensor:
    """What the critic sees: (..., N, O) -> "ippo" the same; "mappo" (..., N, 2 O), beside the mean of all agents'."""
    if kind == "ippo":
        return observations
    return torch.cat([observations, observations.mean(-2, keepdim=True).expand_as(observations)], -1)


def reward_for(task: NetworkTask, reward: np.ndarray, returns: str) -> np.ndarray:
    """(E, N), of the epoch just played: as `rewards_for` has them of logs, but not z-scored.

    Raises
    ------
    ValueError
        If what an agent costs the others is asked for, and the task cannot tell.
    """
    if returns == "own_minus_externality":
        if task.credit is None:
            raise ValueError(
                f"returns is {returns} and {task.name} cannot tell what an agent costs the others; "
                "take mean_field or own"
            )
        return task.credit
    team = np.broadcast_to(reward.mean(1, keepdims=True), reward.shape)
    return {"reward": reward, "mean_field": team, "own": task.own}[returns]


def tanh_mlp(sizes: tuple[int, ...], generator: torch.Generator) -> nn.Sequential:
    """`mlp` with tanh between its layers."""
    return nn.Sequential(*(nn.Tanh() if isinstance(layer, nn.ReLU) else layer for layer in mlp(sizes, generator)))


def draw(log_p: Tensor, generator: torch.Generator) -> Tensor:
    """Levels (...) drawn from (..., A)."""
    flat = torch.multinomial(log_p.exp().flatten(0, -2), 1, generator=generator)
    return flat.view(log_p.shape[:-1])


def chosen(log_p: Tensor, levels: Tensor) -> Tensor:
    """The log-probability of each level: (..., A), (...) -> (...)."""
    return log_p.gather(-1, levels[..., None])[..., 0]


def parts(n: int, most: int) -> list[int]:
    """`n` in parts of `most`, the last one what is left."""
    return [most] * (n // most) + [n % most] * (n % most > 0)
