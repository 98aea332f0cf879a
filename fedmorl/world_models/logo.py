"""LOGO: predict what each agent will see, then piece the state together; doubt is where two ways part.

Source: Li, Li, Chen and Zhang (2026), Puzzle it Out: Local-to-Global World Model for Offline Multi-Agent Reinforcement
Learning, section 4. The networks and the terms of the loss are in `fedmorl.world_models.joint_networks`.
"""

from dataclasses import dataclass, field

import numpy as np
import torch

from fedmorl.data.joint_transitions import JointTransitions
from fedmorl.world_models.joint_dynamics import DEFAULT, JointDynamics, Training, fit
from fedmorl.world_models.joint_networks import LocalNetwork, Sizes

SEES = ("own", "joint")
LIKELIHOODS = ("gaussian", "mse")
REWARD_FROM = ("observations", "all")
TERMS = ("pe", "pd", "de", "dd", "rd", "ps")  # of the loss: Eqs. (2), (2), (3), (3), (4), (6)
WEIGHTINGS = ("softmax", "uniform", "truncate")


@dataclass(frozen=True, kw_only=True)
class LOGO:
    """A local-to-global world model, fitted by `fit`.

    Parameters
    ----------
    hidden : width of every layer; the paper prints 256 for its policies and nothing for its model.
    deduce : False: the same local networks, with state and reward read off directly, as in the paper's Fig. 3 (d).
    sees : which action a local model is given: its "own" (Eq. 2), or the "joint" one.
    likelihood : "gaussian" learns variances, "mse" has them at 1.
    delta : local models predict changes instead of what comes next.
    share_agents : the agents share their local weights and are told who they are.
    reward_from : what reward and next state are deduced from: "observations" (Eqs. 3, 4), or "all", the present
        state and the actions too.
    detach : Eq. (4) trains the decoder alone.
    weights : of terms of the loss, by name (`TERMS`); 1 where none is given, as in the paper.
    members : copies of the whole, trained side by side on draws of their own; above 1 their disagreement is known.
    training : see `Training`.
    """

    hidden: int = 128
    deduce: bool = True
    sees: str = "own"
    likelihood: str = "mse"
    delta: bool = False
    share_agents: bool = False
    reward_from: str = "observations"
    detach: bool = False
    weights: dict[str, float] = field(default_factory=dict)
    members: int = 1
    training: Training = DEFAULT

    def __post_init__(self) -> None:
        for name, allowed in (("sees", SEES), ("likelihood", LIKELIHOODS), ("reward_from", REWARD_FROM)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {getattr(self, name)!r}")
        for name in ("hidden", "members"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be an integer >= 1; got {getattr(self, name)!r}")
        unknown = sorted(set(self.weights) - set(TERMS))
        if unknown or not all(0 <= w < np.inf for w in self.weights.values()):
            raise ValueError(f"weights must be numbers >= 0 of {', '.join(TERMS)}; got {self.weights}")

    def network(self, sizes: Sizes, generator: torch.Generator) -> LocalNetwork:
        """The network, not trained."""
        return LocalNetwork(
            sizes,
            hidden=self.hidden,
            deduce=self.deduce,
            sees=self.sees,
            share_agents=self.share_agents,
            gaussian=self.likelihood == "gaussian",
            delta=self.delta,
            reward_from=self.reward_from,
            detach=self.detach,
            members=self.members,
            generator=generator,
        )

    def fit(self, data: JointTransitions, *, rng: np.random.Generator, progress: bool = False) -> JointDynamics:
        """The model of `data`; Algorithm 1, lines 1 to 5."""
        sizes = Sizes(**data.sizes)
        return fit(
            lambda generator: self.network(sizes, generator),
            data,
            self.training,
            self.weights,
            self.members,
            rng=rng,
            progress=progress,
        )


def priorities(doubt: np.ndarray, ceiling: float) -> np.ndarray:
    """P_u = clip(C - u, 0, C): what is stored with an imagined transition (section 4.3)."""
    return np.clip(ceiling - doubt, 0.0, ceiling)


def sampling_weights(doubt: np.ndarray, ceiling: float, tau: float = 1.0, weighting: str = "softmax") -> np.ndarray:
    """Eq. (7): with which probability each imagined transition is drawn, (rows,), adding up to 1.

    Parameters
    ----------
    doubt : u >= 0 of each transition (Eq. 5).
    ceiling : C; larger doubts count as C.
    tau : temperature. The paper has none, which is 1: the largest ratio of two weights is then exp(C), close to even
        where u is far below 1. `ceiling / 5` makes that ratio 148.
    weighting : "softmax" is Eq. (7); "uniform" ignores the doubt; "truncate" draws evenly where u <= C.
    """
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting must be one of {', '.join(WEIGHTINGS)}; got {weighting!r}")
    if not tau > 0:
        raise ValueError(f"tau must be > 0; got {tau!r}")
    if weighting == "uniform":
        return np.full(len(doubt), 1 / len(doubt))
    if weighting == "truncate":
        kept = doubt <= ceiling
        kept = kept if kept.any() else np.ones_like(kept)
        return kept / kept.sum()
    score = priorities(doubt, ceiling) / tau
    weight = np.exp(score - score.max())
    return weight / weight.sum()


def effective_share(weights: np.ndarray) -> float:
    """Effective sample size over the number of rows: 1 if all weights are equal, near 0 if few rows have them all."""
    return float(weights.sum() ** 2 / (weights**2).sum() / len(weights))
