"""Errors of world models: windows, what is compared with what, and whether doubt tells the worst."""

from dataclasses import replace

import numpy as np
import pytest
from test_logo import linear_log

from fedmorl.evaluation.model_errors import Persistence, knows, open_loop_errors, step_errors, windows
from fedmorl.world_models.joint_dynamics import Forecast


def walk(n_episodes=4, steps=6, seed=0):
    """Episodes in which the state is the sum of what was done, and the last number never moves."""
    rng = np.random.default_rng(seed)
    a = rng.uniform(-1, 1, (n_episodes, steps, 3, 1))
    before = np.concatenate([np.zeros((n_episodes, 1, 3)), a[..., 0].cumsum(1)[:, :-1]], 1)
    log = linear_log(n_episodes * steps)
    s, next_s = (x.reshape(-1, 3).copy() for x in (before, before + a[..., 0]))
    s[:, 2] = next_s[:, 2] = np.repeat(rng.standard_normal(n_episodes), steps)
    return replace(
        log,
        states=s,
        next_states=next_s,
        observations=s[..., None],
        next_observations=next_s[..., None],
        actions=a.reshape(-1, 3, 1),
        rewards=s.sum(1),
        episodes=np.repeat(np.arange(n_episodes), steps),
    )


class Drifts:
    """Right but for 0.1 a step on the first number, and for the reward."""

    def predict(self, states, observations, actions):
        off = np.array([0.1, 0, 0], np.float32)
        moves = actions[..., 0] * np.array([1, 1, 0], np.float32)
        return Forecast(states + moves + off, states.sum(1) + 0.5, observations, {})


def test_windows_stay_within_an_episode_and_do_not_overlap():
    log = walk(3, 7)
    rows = windows(log, 3)
    assert rows.tolist() == [[0, 1, 2], [3, 4, 5], [7, 8, 9], [10, 11, 12], [14, 15, 16], [17, 18, 19]]
    with pytest.raises(ValueError, match="horizon must be at most the longest episode, 7 steps; got 8"):
        windows(log, 8)


def test_errors_grow_with_the_steps_that_a_model_is_fed_its_own_answers():
    log = walk()
    sd = log.states.std(0)
    found = open_loop_errors(Drifts(), log, (1, 3), log)
    for horizon in (1, 3):
        assert found[horizon].state == pytest.approx((horizon * 0.1 / sd[0]) ** 2 / 2, rel=1e-3)  # of two that move
        off = 0.5 + (horizon - 1) * 0.1
        assert found[horizon].reward == pytest.approx((off / log.rewards.std()) ** 2, rel=1e-3)
    assert found[3].n_windows == 8 and found[3].n_not_finite == 0
    one = step_errors(Drifts().predict(log.states, log.observations, log.actions), log, log)
    np.testing.assert_allclose(one, 0.1 / sd[0] / 2**0.5, rtol=1e-3)


def test_what_is_not_finite_is_counted_and_left_out():
    class Breaks(Drifts):
        def predict(self, states, observations, actions):
            found = super().predict(states, observations, actions)
            found.next_states[0] = np.inf
            return found

    log = walk()
    found = open_loop_errors(Breaks(), log, (1,), log)[1]
    assert found.n_not_finite == 1 and np.isfinite(found.state)


def test_persistence_is_off_by_what_was_done():
    log = walk()
    found = open_loop_errors(Persistence(log), log, (1,), log)[1]
    moved = ((log.next_states - log.states) / log.states.std(0))[:, :2]
    assert found.state == pytest.approx(float((moved**2).mean()), rel=1e-5) and found.reward == pytest.approx(
        1, rel=1e-5
    )


def test_doubt_that_orders_errors_is_worth_1_and_chance_a_half():
    error = np.random.default_rng(0).random(2000)
    assert knows(error**3, error) == (pytest.approx(1), pytest.approx(1))
    assert knows(-error, error) == (pytest.approx(-1), pytest.approx(0))
    rank, area = knows(np.random.default_rng(1).random(2000), error)
    assert abs(rank) < 0.1 and abs(area - 0.5) < 0.1
    assert knows(np.r_[np.zeros(1800), np.ones(200)], np.sort(error))[1] == pytest.approx(1)
