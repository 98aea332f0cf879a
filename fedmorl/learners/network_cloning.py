"""What NetWorld has to beat, on the same latents: cloning of the logs, of their best part, and a one-step Q.

Letters: B agents, A levels.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedmorl.data.network_logs import NetworkLog
from fedmorl.federated.clients import one_thread
from fedmorl.learners.networld_planner import Plan, listened, reconsidered
from fedmorl.nn.mlp import torch_generator
from fedmorl.nn.residual import ResidualMLP
from fedmorl.world_models.network_windows import CONDITION, TaskRows, conditions
from fedmorl.world_models.networld import ACTION_CODE, RETURN_CODE, NetWorldModel

KINDS = ("clone", "clone_best", "q")


@dataclass(frozen=True, kw_only=True)
class NetworkCloning:
    """A perceptron on the condition that NetWorld's networks see; one for all tasks.

    Parameters
    ----------
    kind : "clone" does what the logs do; "clone_best" what the fifth of windows with the highest return does;
        "q" takes the level whose H-step mean return is highest, plus 0.1 log pi of the clone: no future is imagined.
    n_steps, batch_size, learning_rate : Adam; windows of each task in one update.
    """

    kind: str = "clone"
    n_steps: int = 1_500
    batch_size: int = 64
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {self.kind!r}")

    def fit(self, model: NetWorldModel, logs: list[NetworkLog], *, rng: np.random.Generator) -> "NetworkClone":
        """The policy of all tasks in `logs`; of `model` only the encoder and the choice of returns are used."""
        generator = torch_generator(rng)
        size: dict[str, Any] = {"width": 96, "n_blocks": 2, "generator": generator, "zero": True}
        prior = ResidualMLP(CONDITION, ACTION_CODE.n_bins, **size)
        q = ResidualMLP(CONDITION + 1, RETURN_CODE.n_bins, **size)
        rows = model.rows(logs)
        drawn_from = [_best(r) if self.kind == "clone_best" else torch.arange(len(r)) for r in rows]
        optimiser = torch.optim.Adam([*prior.parameters(), *q.parameters()], lr=self.learning_rate, fused=True)
        with one_thread():
            for _ in range(self.n_steps):
                loss = torch.zeros(())
                for r, index in zip(rows, drawn_from, strict=True):
                    some = index[torch.randint(len(index), (self.batch_size,), generator=generator)]
                    w = r.take(some, (torch.rand(len(some), generator=generator) >= 0.25).float())
                    loss = loss + ACTION_CODE.loss(prior(w.condition), w.actions[:, 0]).mean()
                    if self.kind == "q":
                        loss = loss + RETURN_CODE.loss(q(w.condition, w.actions[:, :1]), w.returns).mean()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        return NetworkClone(model, prior.requires_grad_(False), q.requires_grad_(False) if self.kind == "q" else None)


def _best(rows: TaskRows) -> Tensor:
    """Numbers of the windows whose return is in the highest fifth."""
    return torch.nonzero(rows.g.flatten() >= rows.g.quantile(0.8)).ravel()


@dataclass(frozen=True)
class NetworkClone:
    """A policy for `fedmorl.evaluation.networks.Planned`; without a Q it draws from what it cloned."""

    model: NetWorldModel
    prior: ResidualMLP
    q: ResidualMLP | None = None
    revise: float = 1.0
    messages: bool = True

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
        """As `NetWorldPlanner.plan`."""
        z0 = self.model.codec.encode(task, observations) / self.model.codec.latent_sd
        m, heard, note = listened(self.model, received, z0, wanted=self.messages)
        c = conditions(task, z0, m, torch.full((len(z0),), float(heard)))

        def levels(who: np.ndarray) -> np.ndarray:
            with torch.no_grad(), one_thread():
                return self._levels(c[who], n_levels, torch_generator(rng)).numpy()

        return Plan(reconsidered(levels, len(z0), held, self.revise, rng), heard, note)

    def _levels(self, c: Tensor, n_levels: int, generator: torch.Generator) -> Tensor:
        log_pi = ACTION_CODE.pick(self.prior(c), n_levels)
        if self.q is None:
            return torch.multinomial(log_pi.exp(), 1, generator=generator)[:, 0]
        return (self._values(c, n_levels) + 0.1 * log_pi).argmax(-1)

    def _values(self, c: Tensor, n_levels: int) -> Tensor:
        assert self.q is not None
        codes = torch.linspace(-1, 1, n_levels).repeat(len(c))[:, None]
        return RETURN_CODE.mean(self.q(c.repeat_interleave(n_levels, 0), codes)).view(len(c), n_levels)
