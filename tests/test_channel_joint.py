"""Joint transitions of the channel: the state by two routes, and what a model can know of the next outcome."""

from dataclasses import replace

import numpy as np
import pytest

from fedmorl.data.dataset import DatasetError
from fedmorl.data.dca_joint import EPISODE, collect_dca_joint, p_persistent, with_counters
from fedmorl.dca import AC_BE, AC_VO, CSMA_CA, CSMA_ECA, Poisson, Saturated, Scenario
from fedmorl.evaluation.channel_outcomes import accuracy, foreseen, had_they, outcomes, own_action_accuracy
from fedmorl.evaluation.model_errors import Persistence
from fedmorl.world_models.joint_dynamics import Forecast, Training
from fedmorl.world_models.logo import LOGO

N, P = 3, 0.2
LIGHT = Scenario.uniform(CSMA_CA, N, traffic=Poisson(0.002))


@pytest.fixture(scope="module")
def saturated():
    return collect_dca_joint(["csma_ca"] * N, 3000, seed=1)


@pytest.fixture(scope="module")
def light():
    return collect_dca_joint(LIGHT, 3000, seed=1)


@pytest.fixture(scope="module")
def lossy():
    """Several rules, packets that are lost, collisions that are over sooner."""
    stations = [replace(AC_VO, frame_error_rate=0.3), AC_BE, CSMA_ECA]
    return collect_dca_joint(Scenario(stations=stations, collision_slots=60), 3000, seed=1)


@pytest.fixture(scope="module")
def persistent():
    return [collect_dca_joint([p_persistent(P)] * N, t, seed=s).transitions for s, t in enumerate((4000, 5000))]


def per_station(log):
    return log.states.reshape(len(log), log.n_agents, -1)


# --- the log ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["saturated", "light", "lossy"])
def test_the_state_is_what_stations_observe_where_they_do(name, request):
    """Outcome, previous action and delay come from slots and winners; observations are the simulator's own."""
    log = request.getfixturevalue(name).transitions
    state, seen = per_station(log), log.observations
    active = state[..., 7] > 0
    assert active.all() == (name != "light")
    np.testing.assert_array_equal(state[active][:, :5], seen[active][:, :5])
    delay = np.expm1(state[..., 5].astype(np.float64))
    np.testing.assert_allclose((delay / delay.sum(1, keepdims=True))[active], seen[active][:, 5], atol=1e-6)
    np.testing.assert_array_equal(state[..., 6], seen[..., 6])
    assert not seen[~active].any() and not log.actions[~active][:, 1].any()


@pytest.mark.parametrize("name", ["saturated", "light"])
def test_rows_follow_each_other(name, request):
    log, durations = request.getfixturevalue(name)
    np.testing.assert_array_equal(log.next_states[:-1], log.states[1:])
    np.testing.assert_array_equal(log.next_observations[:-1], log.observations[1:])
    sent = log.actions[..., 1].any(1)
    assert (durations[sent] >= 124).all() and (durations[~sent] >= 1).all()
    assert (set(durations.tolist()) == {1, 124}) == (name == "saturated")
    assert len(log) == 3000 and log.discrete and np.bincount(log.episodes).max() == EPISODE
    ack = (per_station(log)[1:, :, 3] > 0).any(1)
    gone = durations[:-1] > 124  # an idle slot came in between, and is what is remembered
    np.testing.assert_array_equal(ack, (log.rewards[:-1] == 1) & ~gone)


def test_a_station_that_persists_transmits_as_often_as_it_is_told(persistent):
    rate = persistent[1].actions[..., 1].mean()
    assert abs(rate - P) < 4 * np.sqrt(P * (1 - P) / (5000 * N))


def test_the_rules_of_the_channel_turn_situations_and_actions_into_what_was_logged(saturated):
    log = saturated.transitions
    again = had_they(log, log.actions[..., 1] > 0)
    np.testing.assert_allclose(again.next_states, log.next_states, atol=1e-5)
    np.testing.assert_allclose(again.next_observations, log.next_observations, atol=1e-5)
    np.testing.assert_array_equal(again.rewards, log.rewards)
    none = had_they(log, np.zeros((len(log), N), bool))
    assert not outcomes(none.next_states, N).any() and not none.rewards.any()


def test_counters_tell_who_sends_and_fall_in_idle_slots(saturated):
    log = with_counters(saturated.transitions)
    before, after = (np.expm1(x.reshape(-1, N, 9)[..., 8].astype(float)) for x in (log.states, log.next_states))
    sends = log.actions[..., 1] > 0
    idle = ~sends.any(1)
    np.testing.assert_array_equal(before == 0, sends)
    np.testing.assert_array_equal(after[:-1], before[1:])
    fall = before - after
    np.testing.assert_allclose(fall[idle], 1, rtol=1e-3)
    waiting = ~sends & ~idle[:, None]
    np.testing.assert_allclose(fall[waiting], 0, atol=1e-9)
    assert len(log) > 2000


def test_what_cannot_be_joined_is_refused(saturated):
    slow = Scenario(stations=[CSMA_CA, AC_BE], traffic=Saturated(), eifs_extra_slots=3)
    for wrong, said in (
        (lambda: collect_dca_joint(slow, 10, 0), "a deferring station logs nothing"),
        (lambda: collect_dca_joint(["wifi"], 10, 0), "behaviour must name ac_vo, "),
        (lambda: collect_dca_joint(["ac_be"], 0, 0), "n_transitions must be >= 1"),
        (lambda: p_persistent(1.0), "tx_prob must lie between 0 and 1; got 1.0"),
        (lambda: with_counters(saturated.transitions.take(slice(0, 1))), "never to transmit"),
    ):
        with pytest.raises((ValueError, DatasetError), match=said):
            wrong()


# --- what can be known -----------------------------------------------------------------------------------


def test_the_most_that_can_be_known_from_the_own_action_is_what_counting_gives():
    rng = np.random.default_rng(0)
    for n, p in ((2, 0.1), (3, 0.2), (6, 0.4), (10, 0.1)):
        sends = rng.random((100_000, n)) < p
        others = sends[:, 1:].sum(1)
        kinds = np.where(sends[:, 0], 3 + (others > 0), np.minimum(others, 2))  # told apart by the own action
        best = np.bincount(kinds[~sends[:, 0]]).max() + np.bincount(kinds[sends[:, 0]]).max()
        assert best / 100_000 == pytest.approx(own_action_accuracy(p, n), abs=4 * 0.5 / 100_000**0.5)


class Oracle:
    """Knows the log, and errs by one standard deviation of the first station's delay and of the reward."""

    def __init__(self, log):
        self.log, self.sd = log, log.states.std(0)

    def predict(self, states, observations, actions):
        off = np.zeros_like(self.sd)
        off[5] = self.sd[5]
        return Forecast(self.log.next_states + off, self.log.rewards + self.log.rewards.std(), None, {})


def test_errors_are_means_over_what_varies_and_leave_counters_out(saturated):
    log = with_counters(saturated.transitions)
    found = foreseen(Oracle(log), log, log)
    assert found["state_error"] == pytest.approx(1 / (6 * N), rel=1e-4)  # buffer and active never vary
    assert found["reward_error"] == pytest.approx(1, rel=1e-4) and found["outcome_in_state"] == 1
    assert np.isnan(found["outcome_observed"])
    still = foreseen(Persistence(log), log, log)
    assert still["outcome_in_state"] == still["outcome_observed"] == accuracy(log.states, log.next_states, N) < 1
    astray = log.next_states.copy()
    astray[:, 8::9] += 7
    assert foreseen(Oracle(replace(log, next_states=astray)), log, log) == pytest.approx(found, nan_ok=True)


@pytest.mark.parametrize("sees", ["own", "joint"])
def test_joint_action_decides_the_outcome_and_the_own_one_does_not(persistent, sees):
    """The state is deduced from what all agents will see, their own actions among it, and is known either way."""
    train, test = persistent
    kind = LOGO(hidden=32, sees=sees, weights={"pd": 0.0}, training=Training(n_steps=1500, learning_rate=3e-3))
    found = kind.fit(train, rng=np.random.default_rng(0)).predict(test.states, test.observations, test.actions)
    seen = accuracy(found.next_observations, test.next_observations, N)
    if sees == "joint":
        assert seen >= 0.999 and accuracy(found.next_states, test.next_states, N) >= 0.999
    else:  # four standard errors of a share of slots, whose stations are not independent
        rate = own_action_accuracy(P, N)
        assert seen == pytest.approx(rate, abs=4 * np.sqrt(rate * (1 - rate) / len(test)))
        assert accuracy(found.next_states, test.next_states, N) >= 0.99
