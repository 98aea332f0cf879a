"""LOGO's Theorem 1 on a task where everything in it is known: a chain on [0, 1] with two actions.

Letters: A actions, G points of a grid on [0, 1]; between them values are interpolated, which keeps every slope.
"""

from typing import NamedTuple

import numpy as np

GRID = 401
ACTIONS = 2  # go left or right
MOVE, SWAY = 0.05, 0.02  # f(s, a) = s +- 0.05 + 0.02 sin(2 pi s), kept within [0, 1]
REWARD_SLOPE = 2.0  # L_r of r(s, a) = -2 |s - 0.7| - 0.1 [right]
TOLERANCE = 1e-10


class Chain(NamedTuple):
    """Where each action leads, and what it pays, at each point of the grid."""

    following: np.ndarray  # (A, G) in [0, 1]
    reward: np.ndarray  # (A, G)


class Bound(NamedTuple):
    """Both sides of the theorem, for one pair of chains."""

    error: float  # largest |Qm* - Q*|, which is the theorem's eps_Q
    state_error: float  # eps_s
    reward_error: float  # eps_r
    value_slope: float  # L_Q, of the model's Qm*, as the proof uses it
    printed: float  # (L_r + gamma L_Q) eps_s + eps_r + gamma eps_Q
    closed: float  # the same with eps_Q solved for: ((L_r + gamma L_Q) eps_s + eps_r) / (1 - gamma)


def grid() -> np.ndarray:
    """(G,) points."""
    return np.linspace(0, 1, GRID)


def chain() -> Chain:
    """The task itself."""
    s = grid()
    sway = SWAY * np.sin(2 * np.pi * s)
    following = np.clip(np.stack([s - MOVE + sway, s + MOVE + sway]), 0, 1)
    reward = -REWARD_SLOPE * abs(s - 0.7) - np.array([[0.0], [0.1]])
    return Chain(following, reward)


def perturbed(true: Chain, state_error: float, reward_error: float, rng: np.random.Generator) -> Chain:
    """A model of it: each step off by at most `state_error`, each reward by at most `reward_error`, evenly drawn."""
    off, off_reward = rng.uniform(-1, 1, (2, ACTIONS, GRID))
    following = np.clip(true.following + state_error * off, 0, 1)
    return Chain(following, true.reward + reward_error * off_reward)


def optimal_values(model: Chain, gamma: float) -> np.ndarray:
    """Q* (A, G) by value iteration, to within 1e-10."""
    if not 0 <= gamma < 1:
        raise ValueError(f"gamma must lie in [0, 1); got {gamma!r}")
    s, q = grid(), np.zeros((ACTIONS, GRID))
    while True:
        after = model.reward + gamma * np.interp(model.following, s, q.max(0))
        if abs(after - q).max() < TOLERANCE * (1 - gamma):
            return after
        q = after


def slope(values: np.ndarray) -> float:
    """Lipschitz constant of (A, G) values in the state: the steepest piece."""
    return float(abs(np.diff(values, axis=-1)).max() * (GRID - 1))


def check(true: Chain, model: Chain, gamma: float) -> Bound:
    """Theorem 1, its errors measured: what it bounds, and by what.

    The printed bound has eps_Q, a bound of the very left side, on its right; solved for it, it is `closed`.
    """
    own, learned = (optimal_values(one, gamma) for one in (true, model))
    error = float(abs(learned - own).max())
    state_error = float(abs(model.following - true.following).max())
    reward_error = float(abs(model.reward - true.reward).max())
    value_slope, reward_slope = slope(learned), slope(model.reward)
    once = (reward_slope + gamma * value_slope) * state_error + reward_error
    return Bound(error, state_error, reward_error, value_slope, once + gamma * error, once / (1 - gamma))


def dependence(weights: np.ndarray, values: np.ndarray) -> float:
    """Cov(w, X) for weights scaled to a mean of 1: what E[w X] = E[w] E[X] in the proof leaves out."""
    w = weights / weights.mean()
    return float((w * values).mean() - values.mean())
