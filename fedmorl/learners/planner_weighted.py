"""FedMORL(plan): clone the log, each action weighted by what planning in the shared model says of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from fedmorl.learners.behaviour_cloning import BlindBehaviour
from fedmorl.learners.temperature import choose_beta, effective_stations
from fedmorl.learners.weighted_cloning import WeightedCloning, closed_form, weights
from fedmorl.planning.grid import PlanConfig, evaluate_on_grid, grid_observations, interpolate, q_values
from fedmorl.policies import LearnedPolicy
from fedmorl.world_models.transition import Log, TransitionModel, flat


@dataclass(frozen=True, kw_only=True)
class PlannerWeightedCloning:
    """Algorithm 2 by exact planning on the grid; for stations that always have a packet.

    beta : temperature of Eq. (2), or "offline": the choice of `learners.temperature`.
    plan : how action values are computed; `planning.grid.LITERAL` is Eq. (1) as printed.
    n_observations : how many observations of the logs the policy is fitted on.
    """

    beta: float | Literal["offline"] = 0.2
    plan: PlanConfig = field(default_factory=PlanConfig)
    actor: WeightedCloning = field(default_factory=WeightedCloning)
    n_observations: int = 4_096

    def __post_init__(self) -> None:
        if self.beta != "offline" and not (isinstance(self.beta, int | float) and self.beta > 0):
            raise ValueError(f'beta must be > 0 or "offline"; got {self.beta!r}')

    def fit(self, dataset: Log | Sequence[Log], *, model: TransitionModel, rng: np.random.Generator) -> LearnedPolicy:
        """Learn from one client's log, or from several whose behaviour counts and reward rates are pooled.

        The pool is Algorithm 1's light statistics sigma_k: 16 counts, the sum of rewards and that of slots. With it
        all clients find the same policy; with its own log alone each finds its own.

        Departs from source: the behaviour policy is blind to the delay (see `BlindBehaviour`), and its expectation
        takes the place of the logged action in Eq. (2).
        """
        logs = [flat(log) for log in (dataset if isinstance(dataset, Sequence) else [dataset])]
        behaviour = sum((BlindBehaviour.of(log) for log in logs[1:]), BlindBehaviour.of(logs[0]))
        rho = sum(float(log.rewards.sum()) for log in logs) / sum(float(log.durations.sum()) for log in logs)
        grid, points = evaluate_on_grid(model), grid_observations()
        q = q_values(grid, self.plan, behaviour=behaviour.probability(points), reward_rate=rho)
        seen = np.concatenate([log.observations for log in logs])
        seen = seen[rng.choice(len(seen), min(self.n_observations, len(seen)), replace=False)]
        pi_b, advantage = behaviour.probability(seen), interpolate(q[:, 1] - q[:, 0], seen)
        beta = self.beta
        if beta == "offline":
            n_stations = effective_stations(logs)
            beta = choose_beta(lambda b: closed_form(pi_b, weights(advantage, b)), seen, n_stations)
        return self.actor.fit(seen, pi_b, weights(advantage, beta), rng=rng)
