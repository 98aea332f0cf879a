"""Channel logs as sequences, what predicting them costs at least, and sequence policies as stations."""

from dataclasses import replace

import numpy as np
import pytest

from fedmorl.data import OfflineDataset, collect_dca_logs
from fedmorl.data.channel_sequences import channel_sequences, duration_feature
from fedmorl.dca import AC_BE, CSMA_CA, CSMA_ECA, Poisson, Scenario, Simulation
from fedmorl.dca.draw_entropy import (
    DrawRule,
    draw_nats,
    excess_nats,
    expected_draw_entropy,
    least_nats,
    progress,
    transmit_hazard,
)
from fedmorl.evaluation.sequence_stations import play_stations


def stations_of(logs: OfflineDataset) -> tuple[np.ndarray, np.ndarray]:
    """Actions and outcomes, (N, T), of the first episode of a saturated log."""
    return logs.actions[0].T, logs.extras["outcomes"][0].T


@pytest.fixture(scope="module")
def csma_ca() -> OfflineDataset:
    return collect_dca_logs(Scenario.uniform(CSMA_CA, 5), 20_000, seed=3, warmup_slots=0)


# --- sequences -------------------------------------------------------------------------------------------


def test_a_window_holds_successive_decisions_of_one_station_in_one_replication():
    logs = collect_dca_logs(Scenario.uniform(CSMA_CA, 3), 100, n_replications=2, warmup_slots=1000)
    windows = channel_sequences(logs, 40)
    assert windows.actions.shape == (2 * 3 * 2, 40, 1)
    for k, (episode, station, first) in enumerate(np.ndindex(2, 3, 2)):
        own = (episode, slice(40 * first, 40 * first + 40), station)
        np.testing.assert_array_equal(windows.actions[k, :, 0], logs.actions[own])
        np.testing.assert_array_equal(windows.rewards[k], logs.rewards[own])
        np.testing.assert_array_equal(windows.extras["outcomes"][k], logs.extras["outcomes"][own])
        np.testing.assert_array_equal(windows.observations[k, :40, 0, :7], logs.observations[own])
        np.testing.assert_array_equal(windows.observations[k, 1:, 0, :7], logs.next_observations[own])
        np.testing.assert_array_equal(windows.observations[k, 1:, 0, 7], duration_feature(logs.durations[own], 124))
    assert windows.observations[0, 0, 0, 7] == 0  # nothing went before
    assert windows.observations[1, 0, 0, 7] == duration_feature(logs.durations[0, 39, 0], 124)
    assert windows.truncated.sum() == len(windows) and not windows.terminated.any()


def test_a_busy_period_is_one_and_an_idle_slot_a_seventh_in_the_last_observation():
    np.testing.assert_allclose(duration_feature(np.array([0, 1, 124]), 124), [0, np.log(2) / np.log(125), 1])


def test_a_station_that_does_not_always_decide_leaves_no_gap_in_its_sequence():
    logs = collect_dca_logs(Scenario.uniform(CSMA_CA, 2, traffic=Poisson(0.001)), 60, warmup_slots=1000)
    assert not logs.mask.all()
    windows = channel_sequences(logs, 60)
    for station in range(2):
        np.testing.assert_array_equal(windows.rewards[station], logs.rewards[0, logs.mask[0, :, station], station])


@pytest.mark.parametrize("length", [0, 101, 2.0, True])
def test_a_window_longer_than_the_log_or_of_no_length_is_refused(length):
    logs = collect_dca_logs(Scenario.uniform(CSMA_CA, 2), 100, warmup_slots=0)
    with pytest.raises(ValueError, match="length must be an integer from 1 to 100"):
        channel_sequences(logs, length)


# --- the least that a prediction costs ------------------------------------------------------------------------------


@pytest.mark.parametrize("station", [CSMA_CA, replace(CSMA_ECA, eca_backoff_slots=3)], ids=["csma_ca", "csma_eca"])
def test_stage_and_counter_follow_from_what_a_station_did_and_heard(station):
    """The simulator's own trace holds the window and the counter of each draw; the log shows neither."""
    scenario, n_decisions = Scenario.uniform(station, 5), 4_000
    actions, outcomes = stations_of(collect_dca_logs(scenario, n_decisions, seed=3, warmup_slots=0))
    trace = Simulation(scenario, seed=3, trace=True).run(1_000_000).metrics().trace.to_frame()
    rule = DrawRule.of(scenario)
    known, _, counted, _ = progress(actions, outcomes)
    nats = draw_nats(actions, outcomes, rule)
    for k, events in trace.groupby("station"):
        sent = np.flatnonzero(actions[k])
        draws = events.iloc[: sent.size]  # the j-th event set the counter of the j-th attempt
        np.testing.assert_array_equal(counted[k, sent], draws["counter"])
        in_step = (draws["event"] == "success").to_numpy() & (rule.eca_backoff_slots is not None)
        wanted = np.where(in_step, 0.0, np.log(draws["cw"] + 1.0))
        np.testing.assert_allclose(nats[k, sent], np.where(known[k, sent], wanted, np.nan), rtol=1e-12)


def test_a_draw_costs_ln_cw_plus_1_however_it_is_spread_over_decisions(csma_ca):
    """Exact, so to rounding: a few thousand attempts of about 20 logarithms each."""
    actions, outcomes = stations_of(csma_ca)
    rule = DrawRule.of(Scenario.uniform(CSMA_CA, 5))
    least, draws = least_nats(actions, outcomes, rule), draw_nats(actions, outcomes, rule)
    assert not np.isinf(least).any()  # nothing happened that the rule excludes, such as sending just after another
    spread = sum(np.nansum(row[: 1 + np.flatnonzero(a)[-1]]) for row, a in zip(least, actions, strict=True))
    assert spread / np.isfinite(draws).sum() == pytest.approx(np.nanmean(draws), abs=1e-9)


def test_a_window_tells_the_hazard_from_its_first_success_on_and_not_before(csma_ca):
    actions, outcomes = stations_of(csma_ca)
    rule, window = DrawRule.of(Scenario.uniform(CSMA_CA, 5)), np.s_[:, 5_000:5_500]
    inside = transmit_hazard(actions[window], outcomes[window], rule)
    after_success = np.cumsum(outcomes[window] == 3, axis=1) - (outcomes[window] == 3) > 0
    np.testing.assert_array_equal(np.isfinite(inside), after_success)
    np.testing.assert_array_equal(
        inside[after_success], transmit_hazard(actions, outcomes, rule)[window][after_success]
    )


def test_hazard_is_the_share_of_those_who_send(csma_ca):
    """Among decisions of equal hazard h, a share h sends: 4.5 standard errors at each of the hazards met often."""
    actions, outcomes = stations_of(csma_ca)
    hazard = transmit_hazard(actions, outcomes, DrawRule.of(Scenario.uniform(CSMA_CA, 5)))
    values, counts = np.unique(hazard[np.isfinite(hazard)], return_counts=True)
    often = values[counts >= 300]
    assert often.size > 10 and often[0] == 0
    for h in often:
        sent = actions[hazard == h]
        assert abs(sent.mean() - h) <= 4.5 * np.sqrt(h * (1 - h) / sent.size)


@pytest.mark.parametrize(("station", "n"), [(CSMA_CA, 5), (AC_BE, 10)])
def test_closed_form_of_the_entropy_is_within_one_percent(station, n):
    """Stages are taken as independent, which costs .8 % here for 7-1023, .01 % for 31-1023; noise is .2 %."""
    logs = collect_dca_logs(Scenario.uniform(station, n), 200_000, seed=4)
    actions, outcomes = stations_of(logs)
    collision_rate = (outcomes[actions == 1] == 2).mean()
    exact = np.nanmean(draw_nats(actions, outcomes, DrawRule.of(Scenario.uniform(station, n))))
    assert expected_draw_entropy(station.cw_min, station.cw_max, collision_rate) == pytest.approx(exact, rel=0.01)


def test_nothing_is_random_in_csma_eca_once_it_is_in_step():
    scenario = Scenario.uniform(CSMA_ECA, 5)
    actions, outcomes = stations_of(collect_dca_logs(scenario, 2_000, warmup_slots=2_000_000))
    least = least_nats(actions, outcomes, DrawRule.of(scenario))
    assert np.nanmax(least) == 0 and np.isfinite(least).mean() > 0.95


def test_excess_is_0_for_the_rule_itself_and_what_it_costs_more_for_a_constant_rate(csma_ca):
    actions, outcomes = stations_of(csma_ca)
    rule, rate = DrawRule.of(Scenario.uniform(CSMA_CA, 5)), actions.mean()
    least = least_nats(actions, outcomes, rule)
    oracle = excess_nats(np.nan_to_num(least), actions, outcomes, rule)
    assert oracle.settled == 0
    after_success = np.isfinite(least)
    dearer = excess_nats(np.nan_to_num(least) + 0.01, actions, outcomes, rule).settled
    assert dearer == pytest.approx(0.01 * after_success.sum() / actions[after_success].sum(), rel=1e-9)
    constant = excess_nats(-np.log(np.where(actions == 1, rate, 1 - rate)), actions, outcomes, rule)
    per_attempt = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate)) / rate
    assert constant.overall == pytest.approx(per_attempt - constant.least, rel=1e-9)


@pytest.mark.parametrize(
    ("scenario", "named"),
    [
        (Scenario.uniform(AC_BE, 2, countdown="bianchi"), "bianchi"),
        (Scenario.uniform(replace(AC_BE, retry_limit=7), 2), "retry_limit=7"),
        (Scenario.uniform(replace(AC_BE, aifs_slots=5), 2), "aifs_slots=5"),
        (Scenario.uniform(AC_BE, 2, traffic=Poisson(0.01)), "Poisson"),
        (Scenario.uniform(AC_BE, 2, eifs_extra_slots=2), "eifs_extra_slots=2"),
    ],
)
def test_where_the_least_cost_is_not_known_the_scenario_is_refused(scenario, named):
    with pytest.raises(ValueError, match=f"counts down by a rule.*{named}"):
        DrawRule.of(scenario)


# --- sequence policies as stations ---------------------------------------------------------------------------


class Hashing:
    """Sends where the digits of what it sees say so, each station its own: one answer, alone or in a batch of three."""

    target = 5.0

    def __init__(self, station=0):
        self.station, self.seen, self.received, self.n_started = station, [], [], 0

    def start(self, batch, rng):
        self.n_started += 1
        return np.zeros(batch)

    def act(self, observations, memory, rng=None):
        if np.ndim(observations) == 1:  # as a single station of the simulator
            return int(self._sends(observations, self.station)), memory
        self.seen.append(observations[:, 0])
        self.received.append(memory.copy())
        return self._sends(observations[:, 0], np.arange(len(observations)) % 3).astype(np.int64)[:, None], memory

    def rewarded(self, memory, rewards):
        return memory - rewards

    @staticmethod
    def _sends(o, station):
        return (np.float64(o[..., 5]) * 7919 + 0.35 * station + 0.4) % 1 < 0.1 + 0.2 * o[..., 1]


def play(policy, scenario, targets, **given):
    common = dict(horizon=10**6, n_decisions=1_000, seed=4, rng=np.random.default_rng(0))
    return play_stations(policy, scenario, targets, **common | given)


def test_a_station_sees_and_gets_what_its_log_would_hold():
    scenario, policy, n_decisions = Scenario.uniform(CSMA_CA, 3), Hashing(), 2_000
    play(policy, scenario, [0.0], n_decisions=n_decisions + 1)
    alone = scenario.with_policies({k: Hashing(k) for k in range(3)})
    logs = channel_sequences(collect_dca_logs(alone, n_decisions, seed=4, warmup_slots=0), n_decisions)
    np.testing.assert_array_equal(np.stack(policy.seen, 1), logs.observations[:, :, 0])
    to_go = np.stack(policy.received, 1)  # what remains of a target of 0 [float64; the log's rewards are float32]
    np.testing.assert_allclose(-np.diff(to_go), logs.rewards, rtol=1e-6)
    assert {0, 1} < set(logs.extras["outcomes"].ravel())


def test_measures_are_those_of_the_same_policies_asked_one_by_one():
    scenario = Scenario.uniform(CSMA_CA, 3)
    (metrics,) = play(Hashing(), scenario, [0.0], n_decisions=2_000, warmup_decisions=500)
    alone = scenario.with_policies({k: Hashing(k) for k in range(3)})
    slots = collect_dca_logs(alone, 2_001, seed=4, warmup_slots=0).extras["slots"][0]
    assert (metrics.warmup_slots, metrics.window_slots) == (slots[500], slots[2_000] - slots[500])
    same = Simulation(alone, seed=4).run(int(slots[500])).open_window().run(int(slots[2_000])).metrics()
    assert metrics.to_dict() == pytest.approx(same.to_dict(), nan_ok=True) and metrics.delivered > 50


def test_each_channel_asks_for_its_own_target_and_again_after_the_horizon():
    policy = Hashing()
    play(policy, Scenario.uniform(CSMA_CA, 3), [5.0, -3.0], horizon=4, n_decisions=41)
    asked = np.stack(policy.received)[::4]  # `Hashing` starts at 0 where its own target, 5, is asked for
    np.testing.assert_allclose(asked, np.tile([0.0] * 3 + [-8.0] * 3, (11, 1)), atol=1e-9)
    assert not np.allclose(policy.received[3], asked[0])


def test_memory_begins_anew_after_the_horizon_only_if_it_is_to_be_forgotten():
    for forget, started in ((True, 11), (False, 1)):
        policy = Hashing()
        play(policy, Scenario.uniform(CSMA_CA, 3), [5.0], horizon=4, n_decisions=41, forget=forget)
        assert policy.n_started == started
        np.testing.assert_allclose(np.stack(policy.received)[::4], 0, atol=1e-9)  # asked for 5 again, either way


def test_channels_do_not_depend_on_who_else_is_played():
    scenario = Scenario.uniform(CSMA_CA, 3)
    first, other = (play(Hashing(), scenario, targets)[0].to_dict() for targets in ([1.0], [1.0, 2.0, 3.0]))
    assert first == pytest.approx(other, nan_ok=True)


@pytest.mark.parametrize(
    "scenario",
    [
        Scenario.uniform(CSMA_CA, 2, traffic=Poisson(0.01)),
        Scenario.uniform(CSMA_CA, 2, delay_term="raw"),
        Scenario.uniform(CSMA_CA, 2, eifs_extra_slots=1),
    ],
)
def test_stations_that_do_not_decide_together_are_refused(scenario):
    with pytest.raises(ValueError, match="scenario must have saturated stations"):
        play(Hashing(), scenario, [0.0])
