"""Planning in NetWorld: P1 pulls an imagined trajectory towards high returns, P2 asks what each action would return.

P1 `guide` is the abstract's method as we reconstruct it; P2 `score` is ours. Both act on an agent's own observation and
the mean field it received, in a batch of agents that do not hear of each other in any other way.

Letters: B agents, A levels, K draws, H epochs, D latent.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedmorl.federated.clients import one_thread
from fedmorl.nn.diffusion import ddim, implied_noise, trailing_levels
from fedmorl.nn.mlp import torch_generator
from fedmorl.world_models.latent_codec import D
from fedmorl.world_models.network_windows import H, conditions
from fedmorl.world_models.networld import ACTION_CODE, RETURN_CODE, NetWorldModel

METHODS = ("score", "guide")
LIMIT = 4.0  # of guided latents, in standard deviations


class Plan(NamedTuple):
    """What B agents do next."""

    actions: np.ndarray  # (B,) levels
    heard: bool  # the message was used
    note: str  # why it was not; "" if it was, or if none was wanted


@dataclass(frozen=True, kw_only=True)
class NetWorldPlanner:
    """Plans for agents of one task.

    Parameters
    ----------
    model : a trained `NetWorldModel`.
    method : "score" (P2) or "guide" (P1).
    ddim_steps : levels of noise that a plan visits, a divisor of 100; what is published has 4 for P2 and 5 for P1.
    n_draws : futures of each level (P2); P1 draws one trajectory an agent.
    prior : weight of log pi_BC (P2).
    scale, guide_from : strength of the guide, and the least alpha_bar at which it pulls (P1). 0: no guidance.
    messages : False plans without the mean field, on purpose.
    revise : probability that an agent reconsiders in an epoch; below 1 they do not all run to the same place at once.
    """

    model: NetWorldModel
    method: str = "score"
    ddim_steps: int = 5
    n_draws: int = 2
    prior: float = 0.1
    scale: float = 1.0
    guide_from: float = 0.01
    messages: bool = True
    revise: float = 1.0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}; got {self.method!r}")
        if self.method not in (parts := self.model.networks.parts):
            raise ValueError(
                f"method {self.method} needs a model trained for it; this one has {', '.join(parts)}: "
                f"fit NetWorld(parts=('{self.method}',))"
            )
        trailing_levels(self.ddim_steps)
        if not 0 < self.revise <= 1 or self.n_draws < 1:
            raise ValueError(f"revise must be in (0, 1] and n_draws >= 1; got {self.revise} and {self.n_draws}")

    def plan(
        self,
        task: str,
        observations: np.ndarray,
        received: np.ndarray | None,
        n_levels: int,
        *,
        rng: np.random.Generator,
        held: np.ndarray | None = None,
    ) -> Plan:
        """Observations (B, O) and mean fields (B, D) or None -> levels (B,).

        held : (B,) the levels in use, which those keep that do not reconsider; None: all plan, whatever `revise` is.

        Raises
        ------
        ValueError
            If the task has no stem, or an observation is not finite or of another width.
        """
        z0 = self.model.codec.encode(task, observations) / self.model.codec.latent_sd
        m, heard, note = listened(self.model, received, z0, wanted=self.messages)
        c = conditions(task, z0, m, torch.full((len(z0),), float(heard)))

        def levels(who: np.ndarray) -> np.ndarray:
            with torch.no_grad(), one_thread():
                return self._levels(z0[who], c[who], n_levels, torch_generator(rng)).numpy()

        return Plan(reconsidered(levels, len(z0), held, self.revise, rng), heard, note)

    def _levels(self, z0: Tensor, c: Tensor, n_levels: int, generator: torch.Generator) -> Tensor:
        if self.method == "score":
            return self.scores(z0, c, n_levels, generator).argmax(-1)
        bins = self._first_actions(self.trajectories(z0, c, generator), c)
        return ACTION_CODE.pick(bins, n_levels).argmax(-1)

    # --- P2 ---------------------------------------------------------------------------------------------

    def scores(self, z0: Tensor, c: Tensor, n_levels: int, generator: torch.Generator) -> Tensor:
        """(B, A): the mean return over draws of holding each level for H epochs, and a little of what logs would do.

        All levels see the same draws, so that their differences are not noise.
        """
        b, k, networks = len(z0), self.n_draws, self.model.networks
        noise = torch.randn(b, 1, k, H, D, generator=generator).expand(b, n_levels, k, H, D).reshape(-1, H, D)
        codes = torch.linspace(-1, 1, n_levels)[None, :, None].expand(b, n_levels, k).reshape(-1, 1).expand(-1, H)
        many = n_levels * k
        first, told = z0.repeat_interleave(many, 0), c.repeat_interleave(many, 0)

        def guess(x: Tensor, level: int) -> Tensor:
            return networks.guess_future(x, torch.full((len(x),), level), told, codes)

        x = ddim(noise, guess, self.ddim_steps, networks.alpha_bar, first)
        value = RETURN_CODE.mean(networks.value(x, told, codes)).view(b, n_levels, k).mean(-1)
        if not self.prior:
            return value
        return value + self.prior * ACTION_CODE.pick(networks.prior(c), n_levels)

    # --- P1 ---------------------------------------------------------------------------------------------

    def trajectories(self, z0: Tensor, c: Tensor, generator: torch.Generator) -> Tensor:
        """(B, H, D): one imagined trajectory an agent, pulled towards high returns."""
        networks = self.model.networks

        def guess(x: Tensor, level: int) -> Tensor:
            return networks.guess_trajectory(x, torch.full((len(x),), level), c)

        def guide(x: Tensor, x0: Tensor, level: int) -> tuple[Tensor, Tensor]:
            ab = networks.alpha_bar[level]
            eps = implied_noise(x, x0, ab)
            if self.scale == 0 or ab < self.guide_from:
                return x0, eps
            eps = eps - self.scale * H * (1 - ab).sqrt() * self.gradient(x, level, c)
            return ((x - (1 - ab).sqrt() * eps) / ab.sqrt()).clamp(-LIMIT, LIMIT), eps

        noise = 0.5 * torch.randn(len(z0), H, D, generator=generator)  # cooler than training, as in CDMP
        return ddim(noise, guess, self.ddim_steps, networks.alpha_bar, z0, guide)

    def gradient(self, x: Tensor, level: int, c: Tensor) -> Tensor:
        """Of the classifier's expected return by the noisy trajectory, (B, H, D)."""
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            bins = self.model.networks.classify(x, torch.full((len(x),), level), c)
            return torch.autograd.grad(RETURN_CODE.mean(bins).sum(), x)[0]

    def _first_actions(self, x: Tensor, c: Tensor) -> Tensor:
        return self.model.networks.inverted(x[:, 0], x[:, 1], c)


def listened(
    model: NetWorldModel, received: np.ndarray | None, z0: Tensor, *, wanted: bool = True
) -> tuple[Tensor, bool, str]:
    """(mean field (B, D) in standard deviations, whether it is used, why not); a warning where it was wanted."""
    nothing = torch.zeros_like(z0)
    if not wanted:
        return nothing, False, ""
    if received is None:
        note = "received is missing: planned without the mean field"
    elif received.shape != tuple(z0.shape):
        note = f"received must have shape {tuple(z0.shape)}; got {received.shape}: planned without the mean field"
    elif not np.isfinite(received).all():
        note = "received is not finite: planned without the mean field"
    else:
        return torch.tensor(received, dtype=torch.float32) / model.codec.latent_sd, True, ""
    warnings.warn(note, stacklevel=3)
    return nothing, False, note


def reconsidered(
    levels: Callable[[np.ndarray], np.ndarray],
    n_agents: int,
    held: np.ndarray | None,
    revise: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """(B,): each agent keeps the level it holds, if any, but for those that reconsider, with probability `revise`.

    levels : numbers of agents (B',) -> their new levels (B',); nobody else's are asked for.
    """
    if held is None or revise >= 1:
        return levels(np.arange(n_agents))
    chosen, who = held.copy(), np.flatnonzero(rng.random(n_agents) < revise)
    if len(who):
        chosen[who] = levels(who)
    return chosen
