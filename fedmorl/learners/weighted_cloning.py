"""The last step of both FedMORL learners: a network fitted to the behaviour policy, weighted by action values."""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from fedmorl.dca.policy import OBSERVATION
from fedmorl.federated.clients import one_thread
from fedmorl.nn.mlp import mlp, torch_generator
from fedmorl.policies import LearnedPolicy

MAX_LOG_WEIGHT = 3.0  # weights are clipped at e^3


def weights(advantage: np.ndarray, beta: float) -> np.ndarray:
    """w = exp((Q(o, transmit) - Q(o, defer)) / beta), clipped to e^-3 and e^3: (B,) -> (B,).

    Eq. (2) weighs action a by exp(Q(o, a) / beta). Dividing both weights of an observation by that of deferring
    leaves its minimiser and cannot overflow.
    """
    if not beta > 0:
        raise ValueError(f"beta must be > 0; got {beta}")
    return np.exp(np.clip(advantage / beta, -MAX_LOG_WEIGHT, MAX_LOG_WEIGHT))


def closed_form(behaviour: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The minimiser of Eq. (2): pi(transmit | o) = pi_b w / (pi_b w + 1 - pi_b), all (B,)."""
    return behaviour * weight / (behaviour * weight + 1 - behaviour)


@dataclass(frozen=True, kw_only=True)
class WeightedCloning:
    """Fit of a small network to Eq. (2), in full batches, with L-BFGS; deterministic but for its first weights."""

    hidden: tuple[int, ...] = (16,)
    n_steps: int = 150

    def fit(
        self, observations: np.ndarray, behaviour: np.ndarray, weight: np.ndarray, *, rng: np.random.Generator
    ) -> LearnedPolicy:
        """min over pi of E_o sum_a pi_b(a | o) w(o, a) (-log pi(a | o)); observations (B, 7), the others (B,).

        Departs from source: Eq. (2) draws a from the log; here its behaviour policy, which is known in closed form,
        takes the mean over a. The same minimiser, without the noise of the draw.
        """
        generator = torch_generator(rng)
        network = mlp((len(OBSERVATION), *self.hidden, 2), generator)
        seen = torch.from_numpy(np.ascontiguousarray(observations, dtype=np.float32))
        masses = np.stack([1 - behaviour, behaviour * weight], axis=-1)  # (B, A)
        target = torch.from_numpy((masses / masses.sum(-1, keepdims=True)).astype(np.float32))
        optimiser = torch.optim.LBFGS(
            network.parameters(), max_iter=self.n_steps, history_size=20, line_search_fn="strong_wolfe"
        )

        def closure() -> torch.Tensor:
            optimiser.zero_grad()
            loss = functional.cross_entropy(network(seen), target)
            loss.backward()
            return loss

        with one_thread():
            optimiser.step(closure)
        return LearnedPolicy.of(network)
