"""A joint world model that is told which numbers of a state never change: what LOGO's detour forgets.

Ours. A deduced state (LOGO, Eq. 4) is pieced together anew at every step, also where nothing can have happened: a
landmark that no agent sees must be recalled by the networks. This gives such numbers back.
"""

import numpy as np

from fedmorl.data.joint_transitions import JointTransitions
from fedmorl.world_models.joint_dynamics import Forecast, JointDynamics


def still(data: JointTransitions) -> np.ndarray:
    """(S,): which numbers of the state are the same before and after every transition."""
    return (data.states == data.next_states).all(0)


class KeptDynamics(JointDynamics):
    """A fitted model whose answers keep the numbers that are `still` in `data`; all else is the model's own."""

    kept: np.ndarray  # (S,) bool

    @classmethod
    def of(cls, model: JointDynamics, data: JointTransitions) -> "KeptDynamics":
        """The same network, shared with `model`; ValueError if every number of the state changes."""
        told = cls.__new__(cls)
        vars(told).update(vars(model), kept=still(data))
        if not told.kept.any():
            raise ValueError("every number of the state changes somewhere in the data: there is nothing to keep")
        return told

    def predict(self, states: np.ndarray, observations: np.ndarray, actions: np.ndarray) -> Forecast:
        """(B, S), (B, N, O), (B, N, A) -> what follows, by the model, but for the numbers that are kept."""
        return self._keep(states, super().predict(states, observations, actions))

    def draw(
        self, states: np.ndarray, observations: np.ndarray, actions: np.ndarray, rng: np.random.Generator
    ) -> Forecast:
        """As `predict`, each row answered by one elite member, drawn at random."""
        return self._keep(states, super().draw(states, observations, actions, rng))

    def _keep(self, states: np.ndarray, found: Forecast) -> Forecast:
        return found._replace(next_states=np.where(self.kept, states, found.next_states).astype(np.float32))
