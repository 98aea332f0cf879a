"""Joint perceptrons, alone or as an ensemble, and the doubts that other methods draw from them.

Source: Yu et al. (2020), MOPO; Kidambi et al. (2020), MOReL; Qiao et al. (2025), SUMO.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree

from fedmorl.data.joint_transitions import JointTransitions
from fedmorl.world_models.joint_dynamics import DEFAULT, Forecast, JointDynamics, Training, fit
from fedmorl.world_models.joint_networks import JointNetwork, Sizes
from fedmorl.world_models.logo import LIKELIHOODS


@dataclass(frozen=True, kw_only=True)
class JointMLP:
    """One perceptron from state and joint action to next state and reward, or an ensemble of them; see `fit`.

    Parameters
    ----------
    hidden : widths.
    from_observations : the observations are an input as well.
    observations : the next observations are predicted as well, which an imagined rollout of policies needs.
    likelihood, delta : as in `fedmorl.world_models.logo.LOGO`.
    members, elites : how many are trained, on draws of their own, and how many of them answer: those with the lowest
        loss on held-out data. MOPO has 7 and 5.
    training : see `Training`.
    """

    hidden: tuple[int, ...] = (256, 256, 256)
    from_observations: bool = False
    observations: bool = False
    likelihood: str = "mse"
    delta: bool = False
    members: int = 1
    elites: int | None = None
    training: Training = DEFAULT

    def __post_init__(self) -> None:
        if self.likelihood not in LIKELIHOODS:
            raise ValueError(f"likelihood must be one of {', '.join(LIKELIHOODS)}; got {self.likelihood!r}")
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"hidden must be widths >= 1; got {self.hidden}")
        if self.members < 1 or not 1 <= (self.elites or self.members) <= self.members:
            raise ValueError(f"elites must be from 1 to members; got {self.elites} of {self.members}")

    def network(self, sizes: Sizes, generator: torch.Generator) -> JointNetwork:
        """The network, not trained."""
        return JointNetwork(
            sizes,
            hidden=self.hidden,
            from_observations=self.from_observations,
            observations=self.observations,
            gaussian=self.likelihood == "gaussian",
            delta=self.delta,
            members=self.members,
            generator=generator,
        )

    def fit(self, data: JointTransitions, *, rng: np.random.Generator, progress: bool = False) -> JointDynamics:
        """The model of `data`."""
        sizes = Sizes(**data.sizes)
        return fit(
            lambda generator: self.network(sizes, generator),
            data,
            self.training,
            {},
            self.elites or self.members,
            rng=rng,
            progress=progress,
        )


class Neighbours:
    """SUMO's doubt: how far a transition is from the nearest one in the data.

    A transition is (s, a, s'), each number standardised by the data, each of the three parts divided by the square
    root of its size, so that none outweighs the others. The doubt is log(1 + distance to the k-th nearest).
    """

    def __init__(self, data: JointTransitions, k: int = 1) -> None:
        if k < 1 or k > len(data):
            raise ValueError(f"k must be from 1 to the {len(data)} transitions; got {k!r}")
        self.k = k
        parts = (data.states, data.actions.reshape(len(data), -1), data.next_states)
        self._scales = [(x.mean(0), np.where(x.std(0) > 0, x.std(0), 1) * x.shape[1] ** 0.5) for x in parts]
        self._tree = cKDTree(self._row(*parts))

    def doubt(self, states: np.ndarray, actions: np.ndarray, next_states: np.ndarray) -> np.ndarray:
        """(B, S), (B, N, A), (B, S) -> (B,); 0 for a transition of the data."""
        rows = self._row(states, actions.reshape(len(actions), -1), next_states)
        distance, _ = self._tree.query(rows, k=[self.k])
        return np.log1p(distance[:, 0])

    def _row(self, *parts: np.ndarray) -> np.ndarray:
        return np.concatenate([(x - m) / d for x, (m, d) in zip(parts, self._scales, strict=True)], 1)


def halt_level(model: JointDynamics, data: JointTransitions) -> float:
    """MOReL's threshold: mean plus three standard deviations of the members' disagreement on the data."""
    doubt = disagreement(model.predict(data.states, data.observations, data.actions))
    return float(doubt.mean() + 3 * doubt.std())


def disagreement(forecast: Forecast) -> np.ndarray:
    """(B,) of an ensemble; ValueError for a single model, which cannot disagree."""
    if "disagreement" not in forecast.uncertainty:
        raise ValueError("disagreement needs two or more members; fit with members=5, for one")
    return forecast.uncertainty["disagreement"]
