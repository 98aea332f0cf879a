"""Imagined transitions beside real ones, drawn the more often the less doubtful they are: LOGO's Algorithm 1.

Letters: B batch, N agents, O observation, A action, S state.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fedmorl.data.joint_transitions import JointTransitions
from fedmorl.learners.central_critic import Actors, Rows, act_with, rows_of
from fedmorl.world_models.joint_dynamics import JointDynamics, Scales
from fedmorl.world_models.joint_rollouts import Imagined, imagine_team
from fedmorl.world_models.logo import effective_share, sampling_weights

MIXES = ("half", "coin")
HANDLINGS = ("softmax", "uniform", "truncate", "penalty", "halt")
HALT_MARGIN = 1.0  # below the smallest logged reward, MOReL


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How a learner's batches get imagined rows.

    Parameters
    ----------
    interval, n_rollouts, horizon : every `interval` updates `n_rollouts` rollouts of `horizon` steps begin in states
        of the data, with the policy of that moment (Algorithm 1, lines 8 to 22; the horizon is the paper's 15).
    capacity : imagined rows that are kept; the oldest go first.
    mix : "half" of each batch is imagined; "coin": the whole of it, with probability one half (lines 25 to 29).
    doubt : what is done about it: "softmax" (Eq. 7), "uniform" (nothing), "truncate" (above C never drawn), "penalty"
        (Eq. 1: the reward less `penalty` times the doubt, drawn evenly), "halt" (MOReL: above C a step is terminal and
        pays one less than the smallest reward of the data).
    measure : of the doubt, one that the model has (`fedmorl.world_models.joint_dynamics.doubts`).
    tau : temperature of Eq. (7); None is C / 5. The paper has none, which is 1.
    penalty : lambda of Eq. (1), in standard deviations of the reward.
    ceiling : C; None is the model's, the 95th percentile of the doubt on data that it was not fitted to.
    """

    interval: int = 1_000
    n_rollouts: int = 1_000
    horizon: int = 15
    capacity: int = 50_000
    mix: str = "half"
    doubt: str = "softmax"
    measure: str | None = "paths"
    tau: float | None = 1.0
    penalty: float = 1.0
    ceiling: float | None = None

    def __post_init__(self) -> None:
        for name in ("interval", "n_rollouts", "horizon", "capacity"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be an integer >= 1; got {getattr(self, name)!r}")
        for name, allowed in (("mix", MIXES), ("doubt", HANDLINGS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {getattr(self, name)!r}")
        if self.measure is None and self.doubt != "uniform":
            raise ValueError(f"measure must name a doubt where doubt={self.doubt!r} looks at it; got None")


class ImaginedRows:
    """The data set D_m of Algorithm 1, which grows as it is asked: a `fedmorl.learners.central_critic.Mixer`.

    `log` holds, for each time that rollouts were made, the ceiling C, tau, the effective share of rows, the mass drawn
    from the surest and the most doubtful tenth, the mean doubt and how many rollouts ended in a number that is not
    finite.
    """

    def __init__(self, config: Augmentation, model: JointDynamics, data: JointTransitions) -> None:
        self.config, self.model, self.data = config, model, data
        self.ceiling = 0.0
        if config.measure is not None:
            if config.measure not in model.ceiling:
                known = ", ".join(model.ceiling) or "none"
                raise ValueError(f"measure must be one that the model has ({known}); got {config.measure!r}")
            self.ceiling = model.ceiling[config.measure] if config.ceiling is None else config.ceiling
        self.log: list[dict[str, Any]] = []
        self._kept: list[Imagined] = []
        self._asked = 0

    def __call__(self, real: Rows, actors: Actors, scales: Scales, rng: np.random.Generator) -> Rows:
        """A batch of as many rows, half of them imagined; or all or none of them, as a fair coin falls."""
        if self._asked % self.config.interval == 0:
            self._imagine(actors, scales, rng)
        self._asked += 1
        n = len(real.r)
        if self.config.mix == "coin":
            return real if rng.random() < 0.5 else self._draw(n, rng)
        return Rows(*(torch.cat([x[: n // 2], y]) for x, y in zip(real, self._draw(n - n // 2, rng), strict=True)))

    def _imagine(self, actors: Actors, scales: Scales, rng: np.random.Generator) -> None:
        config = self.config
        start = rng.integers(len(self.data), size=config.n_rollouts)
        found = imagine_team(
            self.model,
            lambda observations, _: act_with(actors, scales, observations),
            self.data.states[start],
            self.data.observations[start],
            config.horizon,
            rng=rng,
            measure=config.measure,
        )
        self._kept.append(found)
        while sum(len(one.rewards) for one in self._kept) > config.capacity and len(self._kept) > 1:
            self._kept.pop(0)
        self._rows, self._doubt = self._prepared(scales)
        weights = self._weights()
        self._cumulative = np.cumsum(weights)
        self.log.append({"stopped": found.n_stopped, "doubt": float(found.doubt.mean())} | self._described(weights))

    def _prepared(self, scales: Scales) -> tuple[Rows, np.ndarray]:
        config = self.config
        parts = zip(*(one[:7] for one in self._kept), strict=True)
        s, o, a, r, next_s, next_o, doubt = (np.concatenate(some) for some in parts)
        ended = np.zeros(len(r), bool)
        if config.doubt == "penalty":
            r = r - config.penalty * float(scales.reward_scale) * doubt
        elif config.doubt == "halt":
            ended = doubt > self.ceiling
            r = np.where(ended, self.data.rewards.min() - HALT_MARGIN, r)
        return rows_of(scales, s, o, a, r, next_s, next_o, ended), doubt

    def _weights(self) -> np.ndarray:
        form = self.config.doubt if self.config.doubt in ("softmax", "truncate") else "uniform"
        return sampling_weights(self._doubt, self.ceiling, self.tau, form)

    @property
    def tau(self) -> float:
        """Temperature of Eq. (7)."""
        return max(self.ceiling / 5, 1e-9) if self.config.tau is None else self.config.tau

    def _described(self, weights: np.ndarray) -> dict[str, float]:
        order = np.argsort(self._doubt, kind="stable")
        tenth = max(len(order) // 10, 1)
        return {
            "ceiling": self.ceiling,
            "tau": self.tau,
            "effective_share": effective_share(weights),
            "mass_surest_tenth": float(weights[order[:tenth]].sum()),
            "mass_most_doubtful_tenth": float(weights[order[-tenth:]].sum()),
        }

    def _draw(self, size: int, rng: np.random.Generator) -> Rows:
        chosen = np.searchsorted(self._cumulative, rng.random(size) * self._cumulative[-1], side="right")
        rows = torch.from_numpy(np.minimum(chosen, len(self._cumulative) - 1))
        return Rows(*(column[rows] for column in self._rows))
