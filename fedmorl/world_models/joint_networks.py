"""The networks of joint world models: LOGO's, the same without its detour, and one perceptron for everything.

All of them are banks (`fedmorl.nn.banks`): a network of M members is M networks in one, each with its own batch.

Letters: M members, N agents, B batch, O observation, A action, S state, H hidden. All numbers are standardised; LOGO is
Li, Li, Chen and Zhang (2026), and its equations are meant where a number stands.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedmorl.nn.banks import bank_mlp, gaussian_nats, soft_bounded

LOG_VARIANCE = (-6.0, 2.0)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """N, O, A and S."""

    n_agents: int
    observation_size: int
    action_size: int
    state_size: int


class Batch(NamedTuple):
    """Transitions for each of M members."""

    s: Tensor  # (M, B, S)
    o: Tensor  # (M, N, B, O)
    a: Tensor  # (M, N, B, A)
    r: Tensor  # (M, B, 1)
    next_s: Tensor  # (M, B, S)
    next_o: Tensor  # (M, N, B, O)
    seen: Tensor  # (N, 1, O) 1 where agent i has that number, 0 in the padding


class Foreseen(NamedTuple):
    """What a network expects of (s, o, a)."""

    next_s: Tensor  # (M, B, S)
    r: Tensor  # (M, B, 1)
    next_o: Tensor | None  # (M, N, B, O)
    aside: Tensor | None  # (M, B, S) the state on LOGO's second way
    log_variance: Tensor | None  # (M, B, S + 1) of state and reward


class LocalNetwork(nn.Module):
    """LOGO (Eqs. 2 to 6) if `deduce`, else the same local networks with state and reward read off directly.

    Parameters
    ----------
    hidden : H of every layer.
    sees : "own" action, as Eq. (2) has it, or the "joint" action, own first.
    share_agents : one set of local weights for all agents, who are then told their index.
    gaussian : a variance is learned with every likelihood; else it is 1.
    delta : the local networks, and the second way, predict changes; what is deduced is never a change.
    reward_from : "observations" as in Eqs. (3) and (4), or "all": reward and state are deduced from s and a too.
    detach : the loss of Eq. (4) does not reach the local networks.
    members : M.

    Departs from source: Eq. (4) prints E_p(o_(t+1), s_t), which cannot be meant: here E_p(o_t, a_t, s_t). The mean of a
    predicted observation is passed on, where the paper may mean a sample.
    """

    def __init__(
        self,
        sizes: Sizes,
        *,
        hidden: int,
        deduce: bool,
        sees: str,
        share_agents: bool,
        gaussian: bool,
        delta: bool,
        reward_from: str,
        detach: bool,
        members: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        n, o, a, s = sizes.n_agents, sizes.observation_size, sizes.action_size, sizes.state_size
        self.sizes, self.members, self.sees, self.share_agents = sizes, members, sees, share_agents
        self.gaussian, self.delta, self.deduce, self.detach = gaussian, delta, deduce, detach
        self.reward_from = reward_from
        local = members if share_agents else members * n
        told = o + (a if sees == "own" else n * a) + n * share_agents
        outcomes = 1 + gaussian
        self.state_encoder = bank_mlp(members, (s, hidden, hidden), generator, end=True)  # E_s
        self.local_encoder = bank_mlp(local, (told, hidden), generator, end=True)  # E_o
        self.local_head = bank_mlp(local, (2 * hidden, hidden, outcomes * o), generator)  # P
        self.second_way = bank_mlp(members, (2 * hidden, hidden, outcomes * (s + 1)), generator)  # E_ps
        if deduce:
            self.local_decoder = bank_mlp(local, (o, hidden, o + a), generator)  # R_p
            self.deductive_encoder = bank_mlp(members, (s + 1, hidden, hidden, outcomes * n * o), generator)  # E_d
            more = s + n * a if reward_from == "all" else 0
            self.deductive_decoder = bank_mlp(members, (n * o + more, hidden, hidden, s + 1), generator)  # R_d

    def forward(self, s: Tensor, o: Tensor, a: Tensor) -> Foreseen:
        """The inference path: E_p, then R_d; beside it E_ps."""
        h_o, h_s = self._encode(s, o, a)
        mean, _ = self._observations(h_o, h_s, o)
        aside, log_variance = self._second_way(h_o, h_s, s)
        if not self.deduce:
            return Foreseen(aside[..., :-1], aside[..., -1:], mean, None, log_variance)
        deduced = self._deduce(mean, s, a)
        return Foreseen(deduced[..., :-1], deduced[..., -1:], mean, aside[..., :-1], log_variance)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Every term of the loss, (M,) each: sums over numbers, means over the batch and, in Eq. (2), over agents.

        pe, pd : Eq. (2), likelihood and reconstruction; de, dd : Eq. (3); rd : Eq. (4); ps : Eq. (6).
        """
        s, o, a, r, next_s, next_o, seen = batch
        h_o, h_s = self._encode(s, o, a)
        mean, log_variance = self._observations(h_o, h_s, o)
        target = torch.cat([next_s, r], -1)
        aside, doubt = self._second_way(h_o, h_s, s)
        found = {
            "pe": (gaussian_nats(mean, log_variance, next_o) * seen).sum(-1).mean((1, 2)),
            "ps": gaussian_nats(aside, doubt, target).sum(-1).mean(1),
        }
        if not self.deduce:
            return found
        back = self._per_agent(self.local_decoder, mean)
        weight = torch.cat([seen, torch.ones_like(seen[..., :1]).expand(-1, -1, a.shape[-1])], -1)
        found["pd"] = ((back - torch.cat([o, a], -1)) ** 2 * weight).sum(-1).mean((1, 2))
        flat, flat_variance = self._split(self.deductive_encoder(target))
        imagined = self._apart(flat)
        variance = None if flat_variance is None else self._apart(flat_variance)
        found["de"] = (gaussian_nats(imagined, variance, next_o) * seen).sum(-1).sum(1).mean(1)
        found["dd"] = ((self._deduce(imagined, s, a) - target) ** 2).sum(-1).mean(1)
        passed = mean.detach() if self.detach else mean
        found["rd"] = ((self._deduce(passed, s, a) - target) ** 2).sum(-1).mean(1)
        return found

    def _encode(self, s: Tensor, o: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """h_o (M, N, B, H) and h_s (M, B, H)."""
        n = self.sizes.n_agents
        acts = a if self.sees == "own" else torch.cat([a.roll(-k, dims=1) for k in range(n)], -1)
        told = [o, acts]
        if self.share_agents:
            told.append(torch.eye(n, device=o.device)[:, None].expand(len(o), n, o.shape[2], n))
        return self._per_agent(self.local_encoder, torch.cat(told, -1)), self.state_encoder(s)

    def _observations(self, h_o: Tensor, h_s: Tensor, o: Tensor) -> tuple[Tensor, Tensor | None]:
        mean, log_variance = self._split(self._per_agent(self.local_head, _beside(h_o, h_s)))
        return (mean + o if self.delta else mean), log_variance

    def _second_way(self, h_o: Tensor, h_s: Tensor, s: Tensor) -> tuple[Tensor, Tensor | None]:
        mean, log_variance = self._split(self.second_way(torch.cat([h_o.mean(1), h_s], -1)))
        return (mean + nn.functional.pad(s, (0, 1)) if self.delta else mean), log_variance

    def _deduce(self, next_o: Tensor, s: Tensor, a: Tensor) -> Tensor:
        """R_d: all next observations (M, N, B, O) -> state and reward (M, B, S + 1)."""
        told = [_joined(next_o)] + ([s, _joined(a)] if self.reward_from == "all" else [])
        return self.deductive_decoder(torch.cat(told, -1))

    def _per_agent(self, network: nn.Sequential, x: Tensor) -> Tensor:
        """(M, N, B, I) -> (M, N, B, ...) by the agents' own weights, or by those that they share."""
        rows = x.flatten(1, 2) if self.share_agents else x.flatten(0, 1)
        return network(rows).view(*x.shape[:3], -1)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        if not self.gaussian:
            return x, None
        mean, log_variance = x.chunk(2, -1)
        return mean, soft_bounded(log_variance, *LOG_VARIANCE)

    def _apart(self, x: Tensor) -> Tensor:
        """(M, B, N O) -> (M, N, B, O)."""
        return x.unflatten(-1, (self.sizes.n_agents, -1)).transpose(1, 2)


class JointNetwork(nn.Module):
    """One perceptron from state and joint action, and observations if `from_observations`, to state and reward.

    With `observations` it predicts the next observations as well, which a policy needs that is to act on them. Layers,
    `gaussian`, `delta` and `members` as in `LocalNetwork`; the change of an observation counts from the present one.
    """

    def __init__(
        self,
        sizes: Sizes,
        *,
        hidden: tuple[int, ...],
        from_observations: bool,
        observations: bool,
        gaussian: bool,
        delta: bool,
        members: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        n, o, a, s = sizes.n_agents, sizes.observation_size, sizes.action_size, sizes.state_size
        self.sizes, self.members, self.gaussian, self.delta = sizes, members, gaussian, delta
        self.from_observations, self.observations = from_observations, observations
        n_in, n_out = s + n * (a + o * from_observations), s + 1 + n * o * observations
        self.network = bank_mlp(members, (n_in, *hidden, (1 + gaussian) * n_out), generator)

    def forward(self, s: Tensor, o: Tensor, a: Tensor) -> Foreseen:
        """State, reward and observations in one pass."""
        mean, log_variance = self._predict(s, o, a)
        n_s = self.sizes.state_size
        next_o = None
        if self.observations:
            next_o = mean[..., n_s + 1 :].unflatten(-1, (self.sizes.n_agents, -1)).transpose(1, 2)
        doubt = None if log_variance is None else log_variance[..., : n_s + 1]
        return Foreseen(mean[..., :n_s], mean[..., n_s : n_s + 1], next_o, None, doubt)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The likelihood alone, (M,)."""
        mean, log_variance = self._predict(batch.s, batch.o, batch.a)
        target = torch.cat([batch.next_s, batch.r], -1)
        weight = torch.ones_like(target[0, 0])
        if self.observations:
            target = torch.cat([target, _joined(batch.next_o)], -1)
            weight = torch.cat([weight, batch.seen.flatten()])
        return {"nats": (gaussian_nats(mean, log_variance, target) * weight).sum(-1).mean(1)}

    def _predict(self, s: Tensor, o: Tensor, a: Tensor) -> tuple[Tensor, Tensor | None]:
        told = [s, _joined(a)] + ([_joined(o)] if self.from_observations else [])
        out, log_variance = self.network(torch.cat(told, -1)), None
        if self.gaussian:
            out, log_variance = out.chunk(2, -1)
            log_variance = soft_bounded(log_variance, *LOG_VARIANCE)
        if self.delta:
            base = nn.functional.pad(s, (0, 1))
            out = out + (torch.cat([base, _joined(o)], -1) if self.observations else base)
        return out, log_variance


def _beside(h_o: Tensor, h_s: Tensor) -> Tensor:
    """(M, N, B, H), (M, B, H) -> (M, N, B, 2 H)."""
    return torch.cat([h_o, h_s[:, None].expand(-1, h_o.shape[1], -1, -1)], -1)


def _joined(x: Tensor) -> Tensor:
    """(M, N, B, I) -> (M, B, N I)."""
    return x.transpose(1, 2).flatten(2)
