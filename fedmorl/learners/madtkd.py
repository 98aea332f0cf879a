"""MADTKD: a team of decision transformers, each taught by one that sees what all of them see.

Letters: B windows, L steps, N agents, A actions, W width.
"""

from dataclasses import dataclass, field

import numpy as np
from torch import Tensor
from torch.nn import functional

from fedmorl.data.trajectories import Trajectories
from fedmorl.learners.madt import MADT, Extra, MADTPolicy, Windows
from fedmorl.learners.team_cloning import among_available


@dataclass(frozen=True, kw_only=True)
class MADTKD:
    """MADT, taught: a transformer that sees all agents' observations is trained first, then imitated by the agents.

        -log pi(a) + policy_weight KL(teacher || student) + relation_weight sum_(i != j) Huber(cos_ij - cos^T_ij)

    cos_ij compares what the heads of agents i and j read at a step. The teacher is frozen while it teaches.

    Parameters
    ----------
    student, teacher : MADT
        Their sizes and training.
    policy_weight, relation_weight : float
        Of the two terms that the teacher adds; 0 and 0 make it MADT.
    teacher_sees : "all", or "own", which leaves nothing to teach.

    Notes
    -----
    Source: Tseng et al. (2022), MADTKD.
    Departs from source: the teacher is a decision transformer for one agent at a time that is given the observations
    of all; a student of the paper's 1.8 M parameters is `MADT(width=192, n_layers=4, n_heads=4, context=20)`.
    """

    student: MADT = field(default_factory=MADT)
    teacher: MADT = field(default_factory=MADT)
    policy_weight: float = 0.5
    relation_weight: float = 0.5
    teacher_sees: str = "all"

    def __post_init__(self) -> None:
        if self.policy_weight < 0 or self.relation_weight < 0:
            raise ValueError(f"weights must be >= 0; got {self.policy_weight} and {self.relation_weight}")
        if self.teacher.context != self.student.context:
            raise ValueError(
                "teacher and student must have one context, as they are compared step by step; "
                f"got {self.teacher.context} and {self.student.context}"
            )

    def fit(self, dataset: Trajectories, *, rng: np.random.Generator, progress: bool = False) -> MADTPolicy:
        """Train the teacher, then the team; the students' policy. Its `history` is their whole loss."""
        taught = self.policy_weight > 0 or self.relation_weight > 0
        extra = self._lesson(self.teach(dataset, rng=rng.spawn(1)[0], progress=progress), dataset) if taught else None
        return self.student.fit_with(dataset, rng=rng, progress=progress, extra=extra)

    def teach(self, dataset: Trajectories, *, rng: np.random.Generator, progress: bool = False) -> MADTPolicy:
        """The teacher alone."""
        policy = self.teacher.fit_with(dataset, rng=rng, progress=progress, sees=self.teacher_sees)
        policy.network.requires_grad_(False)
        return policy

    def _lesson(self, teacher: MADTPolicy, dataset: Trajectories) -> Extra:
        def lesson(windows: Windows, logits: Tensor, features: Tensor) -> Tensor:
            known = teacher.network.features(windows)
            advice = among_available(teacher.network.transformer.head(known), dataset, windows.at)
            kl = policy_divergence(advice, logits, windows.mask)
            return self.policy_weight * kl + self.relation_weight * relation_distance(known, features, windows.mask)

        return lesson


def policy_divergence(teacher: Tensor, student: Tensor, mask: Tensor) -> Tensor:
    """KL(teacher || student) [nats a decision] of logits (B, L, N, A), mean over agents and steps in mask (B, L)."""
    p, q = (functional.log_softmax(logits[mask], dim=-1) for logits in (teacher, student))
    return functional.kl_div(q, p, reduction="none", log_target=True).sum(-1).mean()


def relation_distance(teacher: Tensor, student: Tensor, mask: Tensor) -> Tensor:
    """sum_(i != j) Huber(cos_ij - cos^T_ij) of features (B, L, N, W), mean over steps in mask (B, L)."""
    own, known = (unit @ unit.mT for unit in (functional.normalize(x[mask], dim=-1) for x in (student, teacher)))
    return functional.huber_loss(own, known, reduction="none").sum((-2, -1)).mean()  # cos_ii is 1 in both
