"""Attacks on uploads: closed forms, second routes, and secrets that are known."""

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, norm

from fedmorl.dca.logs import OUTCOMES
from fedmorl.evaluation.privacy import (
    ProtectedEngine,
    RidgeAttack,
    _left_out_errors,
    agreement,
    as_arrays,
    auc,
    clipped,
    draw_groups,
    epsilon,
    mean_of_groups,
    membership_scores,
    protected,
    r_squared,
    total_variation,
    tpr_at_fpr,
    vector,
)
from fedmorl.evaluation.shadows import (
    Participants,
    balanced,
    counted_policies,
    draw_population,
    learned_policies,
    read_policies,
    record_uploads,
    visits,
)
from fedmorl.federated import FitConfig, InProcessLoop, run_federation
from fedmorl.learners.behaviour_cloning import BlindBehaviour, cells

FIT = FitConfig(local_steps=20, batch_size=64, lr=3e-3, seed=0)


@pytest.fixture(scope="module")
def population():
    return draw_population("attempt", 12, 400, seed=0)


# --- the attack ------------------------------------------------------------------------------------------


def test_the_attack_reads_a_linear_secret_to_the_noise_and_nothing_from_noise_alone():
    """Three secrets in forty numbers, noise of variance .01 on each secret's own coordinate: R2 is 1 / 1.01, to .02."""
    rng = np.random.default_rng(0)
    secrets = rng.standard_normal((400, 3))
    seen = rng.standard_normal((400, 40)) * 1e-3
    seen[:, :3] += secrets + 0.1 * rng.standard_normal((400, 3))
    attack = RidgeAttack.fit(seen[:300], secrets[:300])
    assert r_squared(secrets[300:], attack.predict(seen[300:]), attack.prior) == pytest.approx(1 / 1.01, abs=0.02)
    blind = RidgeAttack.fit(rng.standard_normal((300, 40)), secrets[:300])
    assert abs(r_squared(secrets[300:], blind.predict(rng.standard_normal((100, 40))), blind.prior)) < 0.1


def test_the_left_out_error_is_that_of_fits_without_the_row():
    rng = np.random.default_rng(1)
    x, y, penalty = rng.standard_normal((12, 5)), rng.standard_normal((12, 2)), 0.7
    x, y = x - x.mean(0), y - y.mean(0)
    squares, u = np.linalg.eigh(x @ x.T)
    errors = []
    for k in range(12):
        kept = np.arange(12) != k
        design = np.column_stack([np.ones(11), x[kept]])  # the mean is free of the penalty
        weights = np.linalg.solve(design.T @ design + penalty * np.diag([0, 1, 1, 1, 1, 1]), design.T @ y[kept])
        errors.append((y[k] - np.array([1, *x[k]]) @ weights) ** 2)
    np.testing.assert_allclose(_left_out_errors(u, np.maximum(squares, 0), y, penalty), np.mean(errors, 0), rtol=1e-9)


def test_the_attack_leaves_numbers_unscaled_where_noise_is_as_large_in_each():
    """One number of variance 1 holds the secret, 300 of variance .01 nothing; noise of variance .01 on all.

    Unscaled, the best is R2 = 1 / 1.01; made equally large, 300 numbers of noise drown it.
    """
    rng = np.random.default_rng(4)
    secrets = rng.standard_normal((300, 1))
    seen = 0.1 * rng.standard_normal((300, 301))
    seen[:, :1] += secrets
    attack = RidgeAttack.fit(seen[:200], secrets[:200])
    assert r_squared(secrets[200:], attack.predict(seen[200:]), attack.prior) > 0.9


def test_a_number_that_varies_by_rounding_alone_among_shadows_is_not_blown_up():
    """Three numbers: one holds the secret, one larger noise, one varies by 1e-10 and in a victim by .03.

    That is what a dead unit looks like that comes alive. Best is R2 = 1 / 1.01.
    """
    rng = np.random.default_rng(5)
    secrets = rng.standard_normal((150, 1))
    seen = rng.standard_normal((150, 3)) * [0.005, 1.0, 1e-10]
    seen[:, :1] += 0.05 * secrets
    seen[120, 2] = 0.03
    attack = RidgeAttack.fit(seen[:100], secrets[:100])
    assert r_squared(secrets[100:], attack.predict(seen[100:]), attack.prior) == pytest.approx(1 / 1.01, abs=0.02)


def test_averaging_over_m_like_clients_leaves_one_part_in_m():
    """Of uploads that are the secrets themselves the mean of m explains 1/m of one; 1,000 groups, 4 standard errors."""
    rng = np.random.default_rng(2)
    secrets = rng.standard_normal((2_000, 1))
    for m in (1, 2, 4, 8):
        groups = draw_groups(1_000, m, 1_000, rng)
        attack = RidgeAttack.fit(mean_of_groups(secrets[:1_000], groups), secrets[:1_000][groups].mean(1))
        guess = attack.predict(mean_of_groups(secrets[1_000:], groups))
        found = r_squared(secrets[1_000:], guess, attack.prior)
        assert found == pytest.approx(1 / m, abs=4 * 2 * np.sqrt((1 - 1 / m) / m / 1_000) + 0.01)
        assert (np.sort(groups, 1)[:, 1:] != np.sort(groups, 1)[:, :-1]).all() and (groups[:, 0] == range(1_000)).all()


def test_an_attack_without_matching_rows_or_with_nan_is_refused():
    with pytest.raises(ValueError, match="equally many rows"):
        RidgeAttack.fit(np.zeros((4, 2)), np.zeros((5, 1)))
    with pytest.raises(ValueError, match="seen must be a finite matrix"):
        RidgeAttack.fit(np.full((4, 2), np.nan), np.zeros((4, 1)))
    with pytest.raises(ValueError, match="size must be from 1 to 3"):
        draw_groups(3, 4, 3, np.random.default_rng(0))


# --- measures --------------------------------------------------------------------------------------------


def test_measures_of_policies_by_hand():
    truth, guess = np.array([[0.2, 0.9]]), np.array([[0.6, 0.8]])
    assert total_variation(truth, guess, np.array([[3.0, 1.0]])) == pytest.approx((3 * 0.4 + 0.1) / 4)
    assert agreement(truth, guess, np.array([[3.0, 1.0]])) == pytest.approx(1 / 4)
    prior = np.array([1.0])
    assert r_squared(np.array([[0.0], [3.0]]), np.array([[0.0], [2.0]]), prior) == pytest.approx(1 - 1 / 5)


def test_the_auc_is_mann_whitneys_u_and_the_rate_at_one_percent_is_the_normals():
    rng = np.random.default_rng(3)
    members, others = np.round(rng.standard_normal(300) + 0.5, 1), np.round(rng.standard_normal(400), 1)
    u = mannwhitneyu(members, others).statistic
    assert auc(members, others) == pytest.approx(u / (300 * 400))
    members, others = rng.standard_normal(50_000) + 1, rng.standard_normal(50_000)
    expected = norm.sf(norm.isf(0.01) - 1)
    # the threshold is a quantile of 50,000 (sd of its rank sqrt(.01 * .99 / 50,000)), times the members' density there
    assert tpr_at_fpr(members, others) == pytest.approx(expected, abs=4 * 0.0045)


def test_membership_scores_are_gains_over_the_reference_a_segment():
    own = np.array([1.0, 2.0, 3.0, 4.0, 9.0])
    reference = np.array([[2.0, 2, 2, 2, 2], [4.0, 4, 4, 4, 4]])
    np.testing.assert_allclose(membership_scores(own, reference, 2), [1.5, -0.5])


# --- protection ------------------------------------------------------------------------------------------


def test_epsilon_solves_the_two_hypothesis_tests_it_stands_for():
    """At the optimal threshold between N(0, 1) and N(mu, 1): power - e^eps x level = delta, from their tails alone."""
    for z, rounds in ((1.0, 1), (4.0, 5), (0.5, 2)):
        eps, mu = epsilon(z, rounds, delta=1e-5), 2 * np.sqrt(rounds) / z
        cut = eps / mu + mu / 2
        assert norm.sf(cut - mu) - np.exp(eps + norm.logsf(cut)) == pytest.approx(1e-5, rel=1e-5)
    assert epsilon(0.0) == np.inf and epsilon(1e9) == 0.0
    assert epsilon(2.0, 4) == pytest.approx(epsilon(1.0, 1), rel=1e-9)  # four releases at twice the noise
    with pytest.raises(ValueError, match="noise_multiplier must be >= 0"):
        epsilon(-1.0)


def test_clipping_keeps_directions_and_the_noise_has_the_stated_size():
    changes = np.array([[3.0, 4.0], [0.3, 0.4]])
    np.testing.assert_allclose(clipped(changes, 1.0), [[0.6, 0.8], [0.3, 0.4]])
    noisy = protected(np.zeros((200, 500)), 2.0, 0.5, np.random.default_rng(0))
    assert noisy.std() == pytest.approx(1.0, abs=4 / np.sqrt(2 * noisy.size))


def test_a_protected_engine_without_noise_and_a_wide_bound_changes_nothing(population):
    participants = Participants.of("model", population.logs[:3], (8,), 0)

    def final(bound: float, z: float):
        engine = ProtectedEngine(InProcessLoop(participants.clients), bound, z, 0)
        return run_federation(
            participants.clients, engine=engine, rounds=2, fit_config=FIT, seed=0, max_norm=None, progress=False
        ).state

    plain = run_federation(participants.clients, engine="loop", rounds=2, fit_config=FIT, seed=0, progress=False).state
    np.testing.assert_allclose(vector(final(1e9, 0.0)), vector(plain), atol=1e-6)
    start = vector(participants.clients[0].state())
    assert np.linalg.norm(vector(final(0.1, 0.0)) - start) <= 0.2 + 1e-6  # two rounds of at most .1
    assert not np.allclose(vector(final(1e9, 1e-9)), vector(plain))  # noise of 1


def test_states_survive_the_way_through_a_vector(population):
    state = Participants.of("model", population.logs[:1], (8,), 0).clients[0].state()
    back = as_arrays(vector(state), state)
    assert list(back) == sorted(state)
    assert all((back[name] == state[name]).all() and back[name].dtype == state[name].dtype for name in state)


# --- clients with secrets --------------------------------------------------------------------------------


def test_private_policies_act_in_the_logs_as_their_logits_say(population):
    """Transmissions counted by last outcome against the secret, 4 standard errors and the half count of smoothing."""
    truth, seen = 1 / (1 + np.exp(-population.secrets)), visits(population.logs)
    counted = counted_policies(population.logs)
    allowed = 4 * np.sqrt(truth * (1 - truth) / np.maximum(seen, 1)) + 1 / (seen + 1)
    assert (np.abs(counted - truth) < allowed)[seen > 0].all()
    assert not np.shares_memory(population.logs[0].actions, population.held_out[0].actions)


@pytest.mark.parametrize("family", ["window", "load"])
def test_windows_and_loads_are_drawn_in_range_and_repeat(family):
    one, two = draw_population(family, 5, 60, seed=3), draw_population(family, 5, 60, seed=3)
    np.testing.assert_array_equal(one.secrets, two.secrets)
    np.testing.assert_array_equal(one.logs[4].observations, two.logs[4].observations)
    if family == "window":
        assert (one.secrets[:, 0] <= one.secrets[:, 1]).all() and one.secrets.min() >= 2 and one.secrets.max() <= 10


def test_recorded_uploads_are_those_of_a_federation_of_the_members(population):
    participants = Participants.of("model", population.logs, (8,), 0)
    members = np.array([0, 1, 2])
    uploads = record_uploads(participants.clients, members, 2, FIT)
    assert uploads.changes.shape == (2, 12, len(vector(participants.clients[0].state())))
    history = run_federation(participants.clients[:3], rounds=2, fit_config=FIT, seed=0, progress=False)
    np.testing.assert_allclose(uploads.starts[-1], vector(history.state), atol=1e-5)


def test_an_uploaded_policy_reads_as_its_owner_acts(population):
    """A network cloned for 300 steps on 400 decisions: within .1 of the counted shares, weighted by visits."""
    participants = Participants.of("policy", population.logs, (8,), 0)
    fit = FitConfig(local_steps=300, batch_size=64, lr=1e-2, seed=0)
    uploads = record_uploads(participants.clients, np.arange(12), 1, fit)
    read = read_policies(participants, uploads.starts[0] + uploads.changes[0], population.logs)
    assert total_variation(counted_policies(population.logs), read, visits(population.logs)) < 0.1


def test_asking_for_nats_moves_no_participant(population):
    """A federation starts where its clients' networks stand, so measuring must happen on another copy."""
    for shared in ("model", "policy"):
        participants = Participants.of(shared, population.logs, (8,), 0)
        start = vector(participants.clients[0].state())
        participants.nats(start + 1.0, population.logs[0])
        read_policies(participants, (start + 1.0)[None], population.logs[:1]) if shared == "policy" else None
        np.testing.assert_array_equal(vector(participants.clients[0].state()), start)


def test_nats_are_the_models_own_and_sum_to_its_mean(population):
    participants = Participants.of("model", population.logs, (8,), 0)
    start = vector(participants.clients[0].state())
    log = population.logs[0]
    assert participants.model is not None
    expected = participants.model.negative_log_likelihood(log)
    assert participants.nats(start, log).mean() == pytest.approx(expected, rel=1e-5)
    assert participants.nats(start + 1.0, log).mean() != pytest.approx(expected, rel=1e-3)


def test_a_learned_policy_is_the_closed_form_of_its_owners_behaviour(population):
    """Its log odds differ from the behaviour's by the advantage over beta, clipped to 3."""
    participants = Participants.of("model", population.logs, (8,), 0)
    assert participants.model is not None
    learned = learned_policies(participants.model, population.logs)
    assert learned.shape == (12, 4) and ((learned > 0) & (learned < 1)).all()
    tables = np.stack([BlindBehaviour.of(log).table[np.arange(4), (0, 0, 1, 1)] for log in population.logs])
    shift = np.log(learned / (1 - learned)) - np.log(tables / (1 - tables))
    assert (np.abs(shift) <= 3 + 1e-6).all() and np.abs(shift).max() > 0.1


def test_a_learned_policy_of_a_log_without_a_transmission_stays_a_policy(population):
    participants = Participants.of("model", population.logs[:1], (8,), 0)
    log = population.logs[0]
    silent = log.take(np.flatnonzero((log.actions == 0) & (log.observations[:, 4] < 0.5)))
    assert participants.model is not None
    learned = learned_policies(participants.model, [silent])
    assert ((learned > 0) & (learned < 1)).all()


def test_a_balanced_log_holds_each_cell_equally_often(population):
    log = population.logs[1]
    even = balanced(log, np.random.default_rng(0))
    cell, was = (cells(x.observations) * 2 + x.actions for x in (even, log))
    counts, n_cells = np.bincount(cell), len(np.unique(was))
    share = counts[np.unique(was)] / len(log)
    assert (np.abs(share - 1 / n_cells) < 4 * np.sqrt(1 / n_cells / len(log))).all()
    assert len(OUTCOMES) <= n_cells <= 2 * len(OUTCOMES) * 2
