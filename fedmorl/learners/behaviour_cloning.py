"""Behaviour policies learned from logs: the table that is blind to the delay, and plain cloning by a network."""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from fedmorl.dca.logs import OUTCOMES
from fedmorl.dca.policy import OBSERVATION
from fedmorl.federated.clients import one_thread
from fedmorl.nn.mlp import mlp, torch_generator
from fedmorl.policies import LearnedPolicy
from fedmorl.world_models.transition import Log, flat

PREVIOUS = OBSERVATION.index("previous_action")


@dataclass(frozen=True)
class BlindBehaviour:
    """pi_b(transmit | last outcome, previous action) as counts: what one log adds to a pool, and a policy.

    The source of the logs never reads the delay, yet a network cloned from them depends on it, because the hidden
    window drives both: a station that has waited long is taught to wait on. So the behaviour policy must not see it.
    """

    counts: np.ndarray  # (4, 2, 2): outcome, previous action, action

    @classmethod
    def of(cls, log: Log) -> "BlindBehaviour":
        """Counted on a log."""
        batch = flat(log)
        cell = cells(batch.observations)
        counts = np.bincount(cell * 2 + batch.actions, minlength=4 * len(OUTCOMES))
        return cls(counts.reshape(len(OUTCOMES), 2, 2))

    def __add__(self, other: "BlindBehaviour") -> "BlindBehaviour":
        return BlindBehaviour(self.counts + other.counts)

    @property
    def table(self) -> np.ndarray:
        """(4, 2) probability of transmitting; a cell never seen takes the mean rate."""
        rate = self.counts[..., 1].sum() / max(self.counts.sum(), 1)
        return (self.counts[..., 1] + rate) / (self.counts.sum(-1) + 1.0)

    def probability(self, observations: np.ndarray) -> np.ndarray:
        """(B, 7) -> (B,) probability of transmitting."""
        return self.table.ravel()[cells(observations)]


def cells(observations: np.ndarray) -> np.ndarray:
    """(B, 7) -> (B,) index of (last outcome, previous action), 0 to 7; saturated stations reach five of them."""
    return observations[:, : len(OUTCOMES)].argmax(1) * 2 + (observations[:, PREVIOUS] > 0.5)


@dataclass(frozen=True, kw_only=True)
class BehaviourCloning:
    """min E[-log pi(a | o)] by a network that sees all of the observation.

    The comparison that the paper lacks. It is worse than its source: the observation hides counter and window.
    """

    hidden: tuple[int, ...] = (32,)
    n_steps: int = 800
    batch_size: int = 512
    learning_rate: float = 3e-3

    def fit(self, dataset: Log, *, rng: np.random.Generator) -> LearnedPolicy:
        """Clone the actions of a log (one client's, or several's pooled)."""
        batch, generator = flat(dataset), torch_generator(rng)
        network = mlp((len(OBSERVATION), *self.hidden, 2), generator)
        seen, actions = torch.from_numpy(np.array(batch.observations)), torch.from_numpy(batch.actions.astype(np.int64))
        optimiser = torch.optim.Adam(network.parameters(), lr=self.learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, self.n_steps, eta_min=self.learning_rate / 20)
        with one_thread():
            for _ in range(self.n_steps):
                rows = torch.randint(len(seen), (self.batch_size,), generator=generator)
                optimiser.zero_grad()
                functional.cross_entropy(network(seen[rows]), actions[rows]).backward()
                optimiser.step()
                schedule.step()
        return LearnedPolicy.of(network)
