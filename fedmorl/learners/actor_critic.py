"""The parts of an actor-critic that do not ask how the actor works: a value, advantages, the clipped objective.

Letters: B episodes, T steps, n agents, A actions, R any rows, S global state, D message.
"""

import torch
from torch import Tensor, nn

from fedmorl.nn.mlp import mlp

FAR = 5.0


class Critic(nn.Module):
    """V(s^t, m_1^(t-1) .. m_n^(t-1)): two layers of ReLU; inputs are centred and scaled by what was first seen.

    What was nearly constant then may be far away later: inputs beyond `FAR` standard deviations count as that far.
    """

    mean: Tensor
    sd: Tensor

    def __init__(self, situations: Tensor, hidden: int, generator: torch.Generator) -> None:
        """`situations` (R, S + n D) are those first seen; numbers that never vary are only centred."""
        super().__init__()
        sd = situations.std(0)
        self.register_buffer("mean", situations.mean(0))
        self.register_buffer("sd", torch.where(sd > 1e-6, sd, torch.ones_like(sd)))
        self.layers = mlp((situations.shape[-1], hidden, hidden, 1), generator).to(situations.device)

    def forward(self, situations: Tensor) -> Tensor:
        """(..., S + n D) -> (...), in the unit of reward."""
        return self.layers(((situations - self.mean) / self.sd).clamp(-FAR, FAR))[..., 0]


def bellman_targets(rewards: Tensor, following: Tensor, terminated: Tensor, gamma: float) -> Tensor:
    """r + gamma V(s', m), with nothing to come where the task ended; all (...). MADS4, Algorithm 2, line 20.

    Departs from source: V(s', m) of a step that terminated is printed with the others.
    """
    return rewards + gamma * torch.where(terminated, 0.0, following)


def generalised_advantages(
    rewards: Tensor, values: Tensor, terminated: Tensor, truncated: Tensor, gamma: float, lam: float
) -> Tensor:
    """GAE: A_t = d_t + gamma lambda A_(t+1), d_t = r_t + gamma V_(t+1) - V_t.

    Rewards and ends are (B, T), values (B, T + 1). At a step that terminates V_(t+1) is 0; one that truncates keeps it,
    the episode would have gone on. Behind either no advantage flows back.

    Source: Schulman et al. (2016), eqs. (11), (12) and (16), with ends of both kinds; MADS4, Algorithm 2, line 16.
    """
    deltas = bellman_targets(rewards, values[:, 1:], terminated, gamma) - values[:, :-1]
    goes_on = ~(terminated | truncated)
    advantages, following = torch.zeros_like(rewards), torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        following = deltas[:, t] + gamma * lam * goes_on[:, t] * following
        advantages[:, t] = following
    return advantages


def clipped_surrogate(ratio: Tensor, advantages: Tensor, clip: float, kind: str = "min") -> Tensor:
    """min(w A, clip(w, 1 - c, 1 + c) A), PPO's eq. (7), or without the min ("clip_only"; MADS4, Algorithm 2, line 23).

    Without it a ratio that has gone the wrong way out of the interval has no gradient and is not brought back.
    """
    clipped = ratio.clamp(1 - clip, 1 + clip) * advantages
    return torch.minimum(ratio * advantages, clipped) if kind == "min" else clipped


def entropies(log_p: Tensor) -> Tensor:
    """(..., A) -> (...) [nats]."""
    return -(log_p.exp() * log_p).sum(-1)


def standardised(x: Tensor, mask: Tensor) -> Tensor:
    """x less its mean, over its standard deviation, both where `mask`."""
    seen = x[mask]
    return (x - seen.mean()) / seen.std().clamp_min(1e-8)
