"""How wrong a joint world model is, at once and when it is fed its own answers, and whether it knows.

Letters: T rows, B windows, N agents, S state. Errors are mean squares in standard deviations of the training data, over
those numbers of the state that ever change.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata, spearmanr

from fedmorl.data.joint_transitions import JointTransitions
from fedmorl.world_models.joint_dynamics import Forecast
from fedmorl.world_models.joint_rollouts import Predicts, open_loop

WORST_SHARE = 0.1  # of the errors, which doubt should tell from the others


class Persistence:
    """Nothing changes, and the reward is the mean: what a model must beat."""

    def __init__(self, data: JointTransitions) -> None:
        self.reward = float(data.rewards.mean())

    def predict(self, states: np.ndarray, observations: np.ndarray, actions: np.ndarray) -> Forecast:
        """(B, S) unchanged."""
        return Forecast(states, np.full(len(states), self.reward, np.float32), observations, {})


class Errors(NamedTuple):
    """Normalised mean squared errors after a number of steps."""

    state: float
    reward: float
    n_windows: int
    n_not_finite: int  # windows that are left out of the means


def windows(log: JointTransitions, horizon: int) -> np.ndarray:
    """(B, horizon) rows of the log that follow each other within an episode, every one of them once where possible."""
    first = np.flatnonzero(np.r_[True, log.episodes[1:] != log.episodes[:-1]])
    lengths = np.diff(np.r_[first, len(log)])
    starts = [f + np.arange(0, n - horizon + 1, horizon) for f, n in zip(first, lengths, strict=True)]
    found = np.concatenate(starts)
    if not len(found):
        raise ValueError(f"horizon must be at most the longest episode, {lengths.max()} steps; got {horizon}")
    return found[:, None] + np.arange(horizon)


def open_loop_errors(
    model: Predicts, log: JointTransitions, horizons: Sequence[int], train: JointTransitions
) -> dict[int, Errors]:
    """Errors at the last step of windows of each length, under the actions that were logged.

    `train` sets the scale. A window in which a prediction is not finite is counted and left out.
    """
    change, scale = moving(log), _sd(train.states)
    reward_scale = float(_sd(train.rewards))
    found = {}
    for horizon in horizons:
        rows = windows(log, horizon)
        with np.errstate(over="ignore", invalid="ignore"):
            states, rewards = open_loop(
                model, log.states[rows[:, 0]], log.observations[rows[:, 0]], log.actions[rows].transpose(1, 0, 2, 3)
            )
            off = ((states[-1] - log.next_states[rows[:, -1]]) / scale)[:, change].astype(np.float64) ** 2
            off_reward = ((rewards[-1] - log.rewards[rows[:, -1]]) / reward_scale).astype(np.float64) ** 2
        finite = np.isfinite(off).all(1) & np.isfinite(off_reward)
        state, reward = (float(x[finite].mean()) if finite.any() else float("nan") for x in (off, off_reward))
        found[horizon] = Errors(state, reward, len(rows), int((~finite).sum()))
    return found


def step_errors(forecast: Forecast, log: JointTransitions, train: JointTransitions) -> np.ndarray:
    """(T,) root mean squared error of each row's next state, of one step."""
    off = ((forecast.next_states - log.next_states) / _sd(train.states))[:, moving(log)]
    return np.sqrt((off**2).mean(1))


def moving(log: JointTransitions) -> np.ndarray:
    """(S,) bool: the number ever changes in the log."""
    return (log.next_states != log.states).any(0)


def knows(doubt: np.ndarray, error: np.ndarray) -> tuple[float, float]:
    """Spearman's correlation of doubt and error, and the area under the curve that tells the worst tenth by doubt."""
    worst = error >= np.quantile(error, 1 - WORST_SHARE)
    n, ranks = int(worst.sum()), rankdata(doubt)
    area = (ranks[worst].sum() - n * (n + 1) / 2) / (n * (len(error) - n)) if n < len(error) else float("nan")
    return float(spearmanr(doubt, error)[0]), float(area)


def _sd(values: np.ndarray) -> np.ndarray:
    sd = values.std(0, dtype=np.float64)
    return np.where(sd > 1e-6, sd, 1.0)
