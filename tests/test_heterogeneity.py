"""Arms of a federation: the same training whoever learns, stopping by what was held out, and the gap that closes."""

import numpy as np
import pytest
import torch

from fedmorl.data import Transitions, collect_dca_logs
from fedmorl.data.partition import count_cells, dirichlet_mixtures, draw_clients, dynamics_regimes, skews
from fedmorl.dca import CSMA_CA, Scenario
from fedmorl.evaluation.federation import (
    Split,
    Training,
    federate_policies,
    gap_closed,
    hold_out,
    mixture_skews,
    policy_loss,
    regime_nats,
)
from fedmorl.federated import FitConfig
from fedmorl.policies import LearnedPolicy
from fedmorl.world_models import TransitionConfig, TransitionModel

FEW = FitConfig(local_steps=5, batch_size=32, lr=3e-3)
SMALL = TransitionConfig(hidden=(8,))


@pytest.fixture(scope="module")
def logs() -> list[Transitions]:
    regimes = dynamics_regimes(Scenario.uniform(CSMA_CA, n_stations=2, alpha=0.0), [2, 10])
    return [collect_dca_logs(s, n_decisions=6_000, seed=1).client(0).transitions() for s in regimes]


def new_model() -> TransitionModel:
    return TransitionModel(SMALL, rng=np.random.default_rng(0))


def test_training_side_by_side_is_training_alone_to_rounding(logs):
    """Two copies for 3 rounds of 5 Adam steps of 3e-3: no parameter moves by more than .05; they agree to 1e-5."""
    splits = [Split(log.take(np.arange(500)), None) for log in logs]
    training = Training(rounds=3, fit_config=FEW)
    together = training.apart(new_model(), splits, seed=4)
    for split, found in zip(splits, together, strict=True):
        alone = training.shared(new_model(), [split], seed=4)
        assert set(found) == set(alone)
        for name, value in alone.items():
            np.testing.assert_allclose(found[name], value, atol=1e-5)
    assert any((together[0][name] != together[1][name]).any() for name in together[0])


def test_what_is_held_out_picks_the_round(logs):
    """A held-out log of the other regime rises as training goes on, so an early round is taken; else the last."""
    log = logs[0].take(np.arange(200))
    training = Training(rounds=12, fit_config=FitConfig(local_steps=40, batch_size=32, lr=1e-2))
    states = training._states(new_model().clients([log]), _loop(log), 0)
    judged = [float(regime_nats(new_model(), state, [logs[1]])[0]) for state in states]
    picked = training.shared(new_model(), [Split(log, logs[1])], seed=0)
    last = training.shared(new_model(), [Split(log, None)], seed=0)
    assert regime_nats(new_model(), picked, [logs[1]])[0] == pytest.approx(min(judged), abs=1e-6)
    assert regime_nats(new_model(), last, [logs[1]])[0] == pytest.approx(judged[-1], abs=1e-6)
    assert min(judged) < judged[-1]


def _loop(log):
    from fedmorl.federated import InProcessLoop

    return InProcessLoop(new_model().clients([log]))


def test_holding_out_parts_the_log(logs):
    log = logs[0].take(np.arange(100))
    fitted, held = hold_out(log, 0.2, np.random.default_rng(0))
    assert (len(fitted), len(held)) == (80, 20)
    slots = np.concatenate([fitted.extras["slots"], held.extras["slots"]])
    np.testing.assert_array_equal(np.sort(slots), np.sort(log.extras["slots"]))
    assert hold_out(log, 0.0, np.random.default_rng(0)).held_out is None
    with pytest.raises(ValueError, match="share must be from 0 to below 1; got 1"):
        hold_out(log, 1, np.random.default_rng(0))


def test_the_clients_divergence_is_that_of_long_logs_of_their_mixtures(logs):
    """Two pure clients: the two regimes' own skews; one mixture for all: none. Chain rule kept."""
    pure = mixture_skews(np.eye(2), logs)
    direct = skews(np.stack([count_cells(log) for log in logs]))
    assert pure.joint == pytest.approx(direct.joint) and pure.dynamics == pytest.approx(direct.dynamics)
    assert pure.joint == pytest.approx(pure.covariate + pure.behaviour + pure.dynamics)
    assert mixture_skews(np.full((3, 2), 0.5), logs).joint == pytest.approx(0, abs=1e-12)
    rng = np.random.default_rng(0)
    mixtures = dirichlet_mixtures(6, 2, 0.5, rng)
    drawn = draw_clients(logs, mixtures, 800, rng)
    measured = skews(np.stack([count_cells(log) for log in drawn])).joint
    assert measured == pytest.approx(mixture_skews(mixtures, logs).joint, abs=0.05)  # 5 x 40 / (2 x 4800 x ln 2) = .03


def test_the_gap_is_closed_by_the_ratio_of_means_and_not_where_it_is_noise():
    rng = np.random.default_rng(0)
    local = 0.7 + 0.01 * rng.standard_normal(8)
    central = local - 0.1 - 0.002 * rng.standard_normal(8)
    closed = gap_closed(local, local - 0.9 * (local - central), central)
    assert closed.value == pytest.approx(0.9) and closed.low == pytest.approx(0.9) == closed.high
    assert gap_closed(local, local, local + 0.01 * rng.standard_normal(8)) is None
    assert gap_closed(local, central, local + 0.1) is None  # a central model that is worse closes nothing


def test_fieller_s_interval_covers_the_true_ratio_95_times_in_100():
    """Standard error of the share: .5 points over 2000 tries."""
    rng, hits, n = np.random.default_rng(1), 0, 2_000
    for _ in range(n):
        whole = 1 + 0.5 * rng.standard_normal(6)
        part = 0.8 * whole + 0.2 * rng.standard_normal(6)
        q = gap_closed(whole, whole - part, np.zeros(6))
        hits += q is None or q.low <= 0.8 <= q.high
    assert hits / n == pytest.approx(0.95, abs=0.02)


def test_federating_policies_that_agree_gives_that_policy(logs):
    def constant(p):
        return LearnedPolicy([(np.zeros((7, 2)), np.array([0.0, np.log(p / (1 - p))]))])

    some = [log.take(np.arange(400)) for log in logs]
    found = federate_policies([constant(0.2)] * 2, some, rng=np.random.default_rng(0))
    assert np.abs(found.probability(some[0].observations) - 0.2).mean() < 0.01
    between = federate_policies([constant(0.1), constant(0.3)], some, rng=np.random.default_rng(0))
    assert 0.12 < between.probability(some[0].observations).mean() < 0.28


def test_the_policy_loss_is_the_cross_entropy_of_two_actions():
    network = torch.nn.Linear(7, 2)
    torch.nn.init.zeros_(network.weight)
    torch.nn.init.zeros_(network.bias)
    assert policy_loss(network, torch.zeros(3, 7), torch.tensor([0.0, 0.5, 1.0])).item() == pytest.approx(np.log(2))
