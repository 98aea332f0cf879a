"""Model predictive control for a team: of a few joint actions, the one whose imagined future is worth most.

Letters: B situations, C candidates, N agents, A action.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fedmorl.learners.central_critic import Actors, Rows, act_with, judged
from fedmorl.world_models.joint_dynamics import JointDynamics, Scales


@dataclass(frozen=True, kw_only=True)
class MPC:
    """Chooses among candidates near the policy, by rollouts in a joint world model; LOGO, section 5.2.

    Parameters
    ----------
    model : it must predict observations, on which the policy acts after the first step.
    n_candidates : joint actions compared: the policy's own, and others with normal noise of `noise` on each number,
        cut to [-1, 1]. The paper has three.
    horizon : steps imagined; after them the lower of the critics says what is left.
    gamma : discount.

    A candidate is worth sum_k gamma^k r_k + gamma^horizon Q, rewards in standard deviations, as the critics have them.

    Departs from source: the paper does not say what it compares candidates by, nor how many steps it rolls out.
    """

    model: JointDynamics
    n_candidates: int = 3
    noise: float = 0.1
    horizon: int = 5
    gamma: float = 0.99

    def __post_init__(self) -> None:
        for name, least in (("n_candidates", 2), ("horizon", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be an integer >= {least}; got {getattr(self, name)!r}")
        if not 0 <= self.noise < np.inf:
            raise ValueError(f"noise must be finite and >= 0; got {self.noise!r}")

    def best(
        self,
        actors: Actors,
        critics: nn.Module,
        scales: Scales,
        states: np.ndarray,
        observations: np.ndarray,
        rng: np.random.Generator,
    ) -> np.ndarray:
        """(B, S), (B, N, O) in the units of the data -> the best of the candidates, (B, N, A)."""
        own = act_with(actors, scales, observations)
        noise = self.noise * rng.standard_normal((self.n_candidates - 1, *own.shape))
        candidates = np.concatenate([own[None], np.clip(own + noise, -1, 1)]).astype(np.float32)  # (C, B, N, A)
        worth = self.worth(actors, critics, scales, states, observations, candidates)
        return candidates[worth.argmax(0), np.arange(len(own))]

    def worth(
        self,
        actors: Actors,
        critics: nn.Module,
        scales: Scales,
        states: np.ndarray,
        observations: np.ndarray,
        candidates: np.ndarray,
    ) -> np.ndarray:
        """(C, B) of first joint actions (C, B, N, A), the policy acting after them."""
        n, actions = len(candidates), candidates.reshape(-1, *candidates.shape[2:])
        states, observations = np.tile(states, (n, 1)), np.tile(observations, (n, 1, 1))
        worth, discount = np.zeros(len(actions)), 1.0
        for _ in range(self.horizon):
            found = self.model.predict(states, observations, actions)
            if found.next_observations is None:
                raise ValueError("model must predict observations, which the policy acts on; fit it with them")
            worth += discount * found.rewards / float(scales.reward_scale)
            discount *= self.gamma
            states, observations = found.next_states, found.next_observations
            actions = act_with(actors, scales, observations)
        with torch.inference_mode():
            left = judged(critics, scales.into("states", states), torch.from_numpy(actions)).amin(0).numpy()
        return (worth + discount * left).reshape(n, -1)

    def target(
        self, rows: Rows, actors: Actors, critics: nn.Module, scales: Scales, rng: np.random.Generator
    ) -> Tensor:
        """a_max of section 5.2 for the rows of a batch, (B, N, A): what the policy is to imitate."""
        states, observations = scales.back("states", rows.s), scales.back("observations", rows.o)
        return torch.from_numpy(self.best(actors, critics, scales, states, observations, rng))
