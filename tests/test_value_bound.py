"""Theorem 1 on a chain: the values themselves, the bound over many models, and the step that weights undo."""

import numpy as np
import pytest

from fedmorl.evaluation.value_bound import (
    MOVE,
    REWARD_SLOPE,
    Chain,
    chain,
    check,
    dependence,
    grid,
    optimal_values,
    perturbed,
    slope,
)

GAMMA = 0.9


def test_values_are_those_of_a_sum_by_hand():
    """One action that stays where it is and pays s: Q = s / (1 - gamma)."""
    s = grid()
    still = Chain(np.stack([s, s]), np.stack([s, s]))
    np.testing.assert_allclose(optimal_values(still, GAMMA)[0], s / (1 - GAMMA), atol=1e-8)
    assert slope(optimal_values(still, GAMMA)) == pytest.approx(10, rel=1e-6)
    with pytest.raises(ValueError, match=r"gamma must lie in \[0, 1\); got 1"):
        optimal_values(still, 1)


def test_the_best_is_to_walk_to_the_middle_of_the_reward():
    q = optimal_values(chain(), GAMMA)
    better = q.argmax(0)
    assert better[:200].all() and not better[340:].any()
    assert slope(chain().reward) == pytest.approx(REWARD_SLOPE, rel=1e-9) and MOVE == 0.05


def test_the_bound_holds_for_every_model_and_is_zero_for_the_truth():
    true, rng = chain(), np.random.default_rng(0)
    assert check(true, true, GAMMA)[:3] == (0, 0, 0)
    for state_error, reward_error in [(0.01, 0.0), (0.0, 0.1), (0.02, 0.05)] * 5:
        found = check(true, perturbed(true, state_error, reward_error, rng), GAMMA)
        assert 0 < found.error <= found.printed <= found.closed
        assert found.state_error <= state_error and found.reward_error <= reward_error
        assert found.closed == pytest.approx(found.printed + (found.closed - found.error) * GAMMA, rel=1e-9)


def test_weights_that_look_at_the_value_are_not_independent_of_it():
    x = np.random.default_rng(0).random(1000)
    assert dependence(np.ones(1000), x) == pytest.approx(0, abs=1e-12)
    assert dependence(np.exp(x), x) == pytest.approx(np.cov(np.exp(x), x, ddof=0)[0, 1] / np.exp(x).mean())
