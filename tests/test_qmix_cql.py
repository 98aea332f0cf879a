"""QMIX with CQL: monotonic mixing, its terms by hand, and a team game whose best play is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedmorl.data.dataset import DatasetError
from fedmorl.data.joint_transitions import JointTransitions
from fedmorl.learners.central_critic import rows_of
from fedmorl.learners.qmix_cql import ChoicePolicy, MonotonicMixer, QMixCQL, Team, _Learner
from fedmorl.learners.team_augmentation import Augmentation, ImaginedRows
from fedmorl.world_models.joint_dynamics import Scales, Training
from fedmorl.world_models.joint_networks import Sizes
from fedmorl.world_models.logo import LOGO

SMALL = QMixCQL(n_updates=400, batch_size=64, hidden=32, embedding=8, learning_rate=5e-3, tau=0.05, conservatism=0.5)
SIZES = Sizes(n_agents=3, observation_size=2, action_size=4, state_size=5)
SIDES = np.array([[1, 0, 0], [0, 0, 1]])  # side that an agent is shown -> what pays there, of left, stay, right


def game(n_rows=1500, share=0.3, rewards=None, terminated=True, seed=0):
    """Two agents are each shown a side, and paid together for going there: 1 for one, 3 for both.

    A `share` of the log goes where it is shown; the others mostly stay, so that each action is logged in each situation
    and staying is the commonest.
    """
    rng = np.random.default_rng(seed)
    side = rng.integers(2, size=(n_rows, 2))
    careless = rng.choice(3, p=[0.15, 0.7, 0.15], size=(n_rows, 2))
    action = np.where(rng.random((n_rows, 1)) < share, 2 * side, careless)
    seen = (2.0 * side - 1)[..., None]
    return JointTransitions(
        states=seen[..., 0],
        observations=seen,
        actions=np.eye(3)[action],
        rewards=pay(side, action) if rewards is None else rewards(side, action),
        next_states=seen[..., 0],
        next_observations=seen,
        terminated=np.full(n_rows, terminated),
        episodes=np.arange(n_rows) // 10,
        discrete=True,
        env_id="sides",
        env_version="1",
        env_kwargs={},
        reward_def="1 for one, 3 for both",
        behaviour={"share": share},
    )


def pay(side, action):
    right = SIDES[side, action].sum(1)
    return right * (right + 1) / 2


def acts(policy, log, n=200):
    return policy.act(log.observations[:n], None, np.random.default_rng(0))[0]


def return_of(policy, log):
    return pay((log.observations[:200, :, 0] > 0).astype(int), acts(policy, log)).mean()


def started(config, log):
    """A learner that has not learned yet, and all rows of the log."""
    columns = (log.states, log.observations, log.actions, log.rewards, log.next_states, log.next_observations)
    rows = rows_of(Scales(log), *columns, log.terminated)
    return _Learner(config, Sizes(**log.sizes), torch.Generator().manual_seed(0)), rows


def values(policy, log):
    with torch.no_grad():
        seen = policy.actors.values(policy.scales.into("observations", log.observations))
        return policy.critics.value(seen, torch.tensor(log.actions), policy.scales.into("states", log.states)).numpy()


# --- networks --------------------------------------------------------------------------------------------


def test_the_mixer_falls_in_no_agents_value():
    """By differences, at states far from usual, where units may be flat: then a slope is 0 up to rounding."""
    generator = torch.Generator().manual_seed(0)
    mixer = MonotonicMixer(SIZES, 8, generator).double()
    q = 5 * torch.randn(200, 3, generator=generator).double()
    s = 10 * torch.randn(200, 5, generator=generator).double()
    base, step = mixer(q, s), 1e-4
    slopes = torch.stack([(mixer(q + step * torch.eye(3)[i], s) - base) / step for i in range(3)], -1).detach()
    assert (slopes > -1e-7).all() and (slopes > 1e-3).double().mean() > 0.5
    assert (mixer(q, s + 1) - base).detach().abs().median() > 0.1  # while in the state it may do as it likes


def test_each_agents_own_best_is_the_teams():
    config, log = replace(SMALL, hidden=8), game(60)
    learner, rows = started(config, log)
    with torch.no_grad():
        seen = learner.team.agents.values(rows.o)
        every = torch.stack([torch.eye(3)[[i, j]] for i in range(3) for j in range(3)])  # (9, N, A)
        of_all = learner.team.value(seen, every[:, None].expand(-1, 60, -1, -1), rows.s)
        assert torch.equal(every[of_all.argmax(0)], learner.team.agents(rows.o))
        one = learner.team.mixer(seen[:, [0, 1], [2, 0]], rows.s)  # agent 0 right, agent 1 left
    assert torch.allclose(of_all[6], one, atol=1e-6)


# --- terms -----------------------------------------------------------------------------------------------


def test_the_goal_is_the_targets_value_of_what_the_team_would_choose():
    learner, rows = started(SMALL, game(50, terminated=False))
    learner.target = Team(learner.sizes, 32, 8, torch.Generator().manual_seed(9))
    rows = rows._replace(ended=(torch.arange(50) % 2).float())
    goal = learner.goal(rows)
    with torch.no_grad():
        chosen = learner.team.agents.values(rows.next_o).argmax(-1)
        theirs = learner.target.agents.values(rows.next_o).gather(-1, chosen[..., None])[..., 0]
        following = learner.target.mixer(theirs, rows.next_s)
    expected = torch.where(rows.ended > 0, rows.r, rows.r + 0.99 * following)
    assert torch.allclose(goal, expected, atol=1e-6) and not torch.allclose(goal, rows.r)


def test_what_is_pushed_down_is_the_log_of_a_mean_or_the_best():
    log = game(40)
    learner, rows = started(replace(SMALL, n_sampled=6), log)
    with torch.no_grad():
        seen = learner.team.agents.values(rows.o)
        found = learner.above(rows, seen, np.random.default_rng(3))
        drawn = np.random.default_rng(3).integers(3, size=(6, 40, 2))
        each = [learner.team.value(seen, torch.eye(3)[torch.from_numpy(a)], rows.s) for a in drawn]
        assert torch.allclose(found, torch.stack(each).exp().mean(0).log(), atol=1e-5)
        learner.config = replace(SMALL, penalty="expected")
        best = learner.team.value(seen, learner.team.agents(rows.o), rows.s)
        assert torch.allclose(learner.above(rows, seen, np.random.default_rng(3)), best, atol=1e-6)


@pytest.mark.parametrize("terminated,expected", [(True, 1.0), (False, 10.0)])
def test_only_a_terminal_step_ends_the_sum(terminated, expected):
    """A reward of 1 at every step with gamma 0.9: 10 in all, unless the task ended at once."""
    log = game(400, rewards=lambda *_: np.ones(400), terminated=terminated)
    config = replace(SMALL, gamma=0.9, tau=0.2, conservatism=0.0, n_updates=600)
    assert values(config.fit(log, rng=np.random.default_rng(0)), log).mean() == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("penalty", ["logsumexp", "expected"])
def test_conservatism_keeps_to_what_was_done(penalty):
    """Nothing pays and nobody ever went right: without the term that is as good as anything."""
    log = game(600, rewards=lambda side, _: np.zeros(len(side)))
    left = replace(log, actions=np.eye(3)[np.minimum(log.actions.argmax(-1), 1)])
    rights = []
    for alpha in (0.0, 1.0):
        config = replace(SMALL, conservatism=alpha, penalty=penalty, n_updates=100)
        learner, rows = started(config, left)
        with torch.no_grad():
            learner.team.agents.network[-1].bias[:, :, 2] += 1  # at first everybody would
        for _ in range(100):
            learner.update(rows, np.random.default_rng(0))
        rights.append(float(learner.team.agents(rows.o)[..., 2].mean().detach()))
    assert rights[0] > 0.9 and rights[1] < 0.1


# --- play ------------------------------------------------------------------------------------------------


def test_it_beats_cloning_of_a_log_of_mixed_quality():
    log = game()
    side, action = (log.observations[..., 0] > 0).astype(int), log.actions.argmax(-1)
    commonest = np.array([[np.bincount(action[:, i][side[:, i] == k]).argmax() for k in (0, 1)] for i in (0, 1)])
    cloned = pay(side, np.stack([commonest[i][side[:, i]] for i in (0, 1)], 1)).mean()
    learned = return_of(SMALL.fit(log, rng=np.random.default_rng(0)), log)
    assert cloned < 0.1 and log.rewards.mean() < 1.5 and learned == 3  # the commonest, drawn as logged, ours


def test_a_fit_is_the_same_from_the_same_seed_and_is_kept_in_a_file(tmp_path):
    log = game(100)
    short = replace(SMALL, n_updates=5)
    first, again, other = (short.fit(log, rng=np.random.default_rng(k)) for k in (0, 0, 1))
    np.testing.assert_array_equal(values(first, log), values(again, log))
    assert (values(first, log) != values(other, log)).any()
    first.save(tmp_path / "team.safetensors")
    kept = ChoicePolicy.load(tmp_path / "team.safetensors")
    np.testing.assert_array_equal(acts(kept, log), acts(first, log))
    assert kept.config == first.config and acts(kept, log).dtype == np.int64
    seen = [p.actors.values(p.scales.into("observations", log.observations)).detach() for p in (first, kept)]
    assert torch.equal(*seen)


def test_imagined_rows_are_those_of_the_teams_own_choices():
    log = game(300, terminated=False)
    model = LOGO(hidden=8, training=Training(n_steps=50)).fit(log, rng=np.random.default_rng(0))
    imagined = ImaginedRows(Augmentation(n_rollouts=20, horizon=3, interval=20), model, log)
    batches = []

    def mix(real, agents, scales, rng):
        batch = imagined(real, agents, scales, rng)
        batches.append((real, batch, agents(batch.o)))
        return batch

    policy = replace(SMALL, n_updates=50).fit(log, rng=np.random.default_rng(0), mix=mix)
    real, batch, chosen = batches[0]
    assert len(imagined.log) == 3 and torch.equal(batch.a[:32], real.a[:32])
    assert torch.equal(batch.a[32:], chosen[32:]) and not torch.equal(batch.a[:32], chosen[:32])
    assert acts(policy, log).shape == (200, 2)


def test_what_is_mixed_in_is_what_is_learned_from():
    """Rows whose rewards are turned round teach to go to the side that is not shown, or to stay."""
    log = game()
    turned = SMALL.fit(log, rng=np.random.default_rng(0), mix=lambda rows, *_: rows._replace(r=-rows.r))
    assert return_of(turned, log) == 0


@pytest.mark.parametrize(
    "make,said",
    [
        (lambda: QMixCQL(n_updates=0), "n_updates must be an integer >= 1; got 0"),
        (lambda: QMixCQL(gamma=1.0), r"gamma must lie in \[0, 1\); got 1.0"),
        (lambda: QMixCQL(penalty="max"), "penalty must be one of logsumexp, expected; got 'max'"),
        (lambda: QMixCQL(conservatism=-1.0), "conservatism must be finite and >= 0; got -1.0"),
    ],
)
def test_arguments_out_of_range_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_what_cannot_be_learned_from_is_refused(tmp_path):
    log = game(100)
    numbers = replace(log, actions=log.actions / 2, discrete=False)
    with pytest.raises(DatasetError, match="actions must be choices: these are numbers"):
        SMALL.fit(numbers, rng=np.random.default_rng(0))
    policy = replace(SMALL, n_updates=1).fit(log, rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"observations must have shape \(B, 2, 1\); got \(5, 2, 3\)"):
        policy.act(np.zeros((5, 2, 3)), None, np.random.default_rng(0))
    (tmp_path / "other").write_bytes(b"no network")
    with pytest.raises(ValueError, match="does not hold a network"):
        ChoicePolicy.load(tmp_path / "other")
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        replace(SMALL, learning_rate=1e20).fit(log, rng=np.random.default_rng(0))
