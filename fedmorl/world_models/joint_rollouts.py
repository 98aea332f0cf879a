"""A team imagined in a joint world model: what is drawn, how doubtful it is, and where it stopped being finite.

Letters: B rollouts, T steps, N agents, O observation, A action, S state.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np

from fedmorl.world_models.joint_dynamics import Forecast, JointDynamics

Act = Callable[[np.ndarray, np.random.Generator], np.ndarray]  # observations (B, N, O) -> actions (B, N, A)


class Predicts(Protocol):
    """A joint world model, or something that answers like one."""

    def predict(self, states: np.ndarray, observations: np.ndarray, actions: np.ndarray) -> Forecast:
        """What follows (B, S), (B, N, O), (B, N, A)."""


class Imagined(NamedTuple):
    """Steps of imagined rollouts, each for itself, in the order of time."""

    states: np.ndarray  # (rows, S)
    observations: np.ndarray  # (rows, N, O)
    actions: np.ndarray  # (rows, N, A)
    rewards: np.ndarray  # (rows,)
    next_states: np.ndarray  # (rows, S)
    next_observations: np.ndarray  # (rows, N, O)
    doubt: np.ndarray  # (rows,) of each step, in the measure asked for; 0 if none was
    depth: np.ndarray  # (rows,) 0 for the first step of a rollout
    n_stopped: int  # rollouts that ended early because a prediction was not finite


def imagine_team(
    model: JointDynamics,
    act: Act,
    states: np.ndarray,
    observations: np.ndarray,
    horizon: int,
    *,
    rng: np.random.Generator,
    measure: str | None = None,
) -> Imagined:
    """Roll a team out for `horizon` steps from B real situations; LOGO, Algorithm 1, lines 10 to 21.

    Each step of a row is answered by one elite member of the model. A rollout whose prediction is not finite ends
    before that step; how many did is told. Nothing is clipped.
    """
    if horizon < 1:
        raise ValueError(f"horizon must be an integer >= 1; got {horizon!r}")
    parts: list[tuple[np.ndarray, ...]] = []
    n_stopped = 0
    for t in range(horizon):
        actions = act(observations, rng)
        found = model.draw(states, observations, actions, rng)
        if found.next_observations is None:
            raise ValueError("the model predicts no observations, which policies act on: fit it with observations=True")
        doubt = doubt_of(found, measure)
        finite = _finite_rows(found) & np.isfinite(doubt)
        n_stopped += int((~finite).sum())
        kept = (states, observations, actions, found.rewards, found.next_states, found.next_observations, doubt)
        parts.append((*(x[finite] for x in kept), np.full(finite.sum(), t)))
        states, observations = found.next_states[finite], found.next_observations[finite]
        if not len(states):
            break
    rows: list[np.ndarray] = [np.concatenate(some) for some in zip(*parts, strict=True)]
    s, o, a, r, next_s, next_o, doubt, depth = rows
    return Imagined(s, o, a, r, next_s, next_o, doubt, depth, n_stopped)


def open_loop(
    model: Predicts, states: np.ndarray, observations: np.ndarray, actions: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """States (T, B, S) and rewards (T, B) that follow B situations under given actions (T, B, N, A), fed back T times.

    For a model without observations those of the start are kept; it does not look at them. A number that is not
    finite stays so, and is for whoever measures to count.
    """
    found_states, found_rewards = [], []
    for taken in actions:
        found = model.predict(states, observations, taken)
        states = found.next_states
        observations = observations if found.next_observations is None else found.next_observations
        found_states.append(states)
        found_rewards.append(found.rewards)
    return np.stack(found_states), np.stack(found_rewards)


def doubt_of(found: Forecast, measure: str | None) -> np.ndarray:
    """(B,) of one measure; 0 if none is asked for; ValueError names those that the model has."""
    if measure is None:
        return np.zeros(len(found.rewards), np.float32)
    if measure not in found.uncertainty:
        known = ", ".join(found.uncertainty) or "none: it is a single model without variances"
        raise ValueError(f"measure must be one that the model has ({known}); got {measure!r}")
    return found.uncertainty[measure]


def _finite_rows(found: Forecast) -> np.ndarray:
    assert found.next_observations is not None
    arrays = (found.next_states, found.rewards[:, None], found.next_observations)
    return np.all([np.isfinite(x).all(tuple(range(1, x.ndim))) for x in arrays], axis=0)
