"""The backbone of LOGO on problems with known answers, and what imagined rows do to its batches."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedmorl.data.dataset import DatasetError
from fedmorl.data.joint_transitions import JointTransitions
from fedmorl.learners import central_critic as module
from fedmorl.learners.central_critic import CentralCritic, TeamPolicy, judged
from fedmorl.learners.team_augmentation import Augmentation, ImaginedRows
from fedmorl.world_models.joint_dynamics import Scales, Training
from fedmorl.world_models.joint_networks import Sizes
from fedmorl.world_models.logo import LOGO, sampling_weights

SMALL = CentralCritic(n_updates=400, batch_size=64, hidden=16, learning_rate=5e-3, conservatism=0.0, tau=0.05)


def bandit(n_rows=800, reward=lambda a: -((a - 0.3) ** 2).sum((1, 2)), terminated=True, seed=0):
    """Two agents, one number each, uniform; by default the episode ends at once."""
    rng = np.random.default_rng(seed)
    a = rng.uniform(-1, 1, (n_rows, 2, 1))
    seen = rng.standard_normal((n_rows, 2, 1)).astype(np.float32)
    return JointTransitions(
        states=seen[..., 0],
        observations=seen,
        actions=a,
        rewards=reward(a),
        next_states=seen[..., 0],
        next_observations=seen,
        terminated=np.full(n_rows, terminated),
        episodes=np.arange(n_rows) // 10,
        discrete=False,
        env_id="bandit",
        env_version="1",
        env_kwargs={},
        reward_def="quadratic",
        behaviour={"name": "uniform"},
    )


def acts(policy, log, n=64):
    return policy.act(log.observations[:n], None, np.random.default_rng(0))[0]


def values(policy, log):
    s = policy.scales.into("states", log.states)
    with torch.no_grad():
        return judged(policy.critics, s, torch.from_numpy(log.actions.copy())).mean(0).numpy()


def started(config, log):
    """A learner that has not learned yet, and all rows of the log."""
    rows = module.all_rows(Scales(log), log)
    return module._Learner(config, Sizes(**log.sizes), torch.Generator().manual_seed(0)), rows


def test_the_best_action_is_found_between_those_logged():
    log = bandit()
    policy = replace(SMALL, cloning=0.0, hidden=64, learning_rate=2e-3, n_updates=600).fit(
        log, rng=np.random.default_rng(0)
    )
    np.testing.assert_allclose(acts(policy, log, 800).mean(0), 0.3, atol=0.1)  # whatever it happens to see


def test_cloning_alone_takes_what_was_done():
    log = bandit()
    done = np.tanh(log.observations)
    told = replace(log, actions=done)
    policy = replace(SMALL, policy_gradient=False).fit(told, rng=np.random.default_rng(0))
    np.testing.assert_allclose(acts(policy, told), done[:64], atol=0.1)


def test_cloning_holds_a_policy_back():
    log = bandit(reward=lambda a: a.sum((1, 2)))
    free, held = (replace(SMALL, cloning=c).fit(log, rng=np.random.default_rng(0)) for c in (0.0, 20.0))
    assert acts(free, log).mean() > 0.9 and abs(acts(held, log).mean()) < 0.4


@pytest.mark.parametrize("terminated,expected", [(True, 1.0), (False, 10.0)])
def test_only_a_terminal_step_ends_the_sum(terminated, expected):
    """A reward of 1 at every step with gamma 0.9: 10 in all, unless the task ended at once."""
    log = bandit(reward=lambda a: np.ones(len(a)), terminated=terminated)
    policy = replace(SMALL, gamma=0.9, tau=0.2, n_updates=800).fit(log, rng=np.random.default_rng(0))
    assert values(policy, log).mean() == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("penalty", ["expected", "logsumexp"])
def test_conservatism_lowers_what_was_not_done(penalty):
    """Every reward is 0 and every logged action near -0.5: of a policy that does otherwise, Q falls below the logs'."""
    log = bandit()
    near = replace(log, actions=(log.actions * 0.1 - 0.5).astype(np.float32), rewards=np.zeros(len(log)))
    gaps = []
    for alpha in (0.0, 1.0):
        config = replace(SMALL, conservatism=alpha, penalty=penalty)
        learner, rows = started(config, near)
        for _ in range(50):
            module._step(learner.of_critics, learner._critic_loss(rows, np.random.default_rng(0)))
        with torch.no_grad():
            taken = judged(learner.critics, rows.s, learner.actors(rows.o))
            gaps.append(float((judged(learner.critics, rows.s, rows.a) - taken).mean()))
    assert gaps[1] > gaps[0] + 0.2


def test_the_log_of_a_mean_is_torchs():
    learner, rows = started(replace(SMALL, n_sampled=7), bandit(50))
    taken = learner.actors(rows.o).detach()
    found = learner._log_sum(rows, taken, np.random.default_rng(3))
    uniform = np.random.default_rng(3).uniform(-1, 1, (7, 50, 2, 1)).astype(np.float32)
    each = [judged(learner.critics, rows.s, torch.from_numpy(a)) for a in uniform] + [
        judged(learner.critics, rows.s, taken)
    ]
    assert torch.allclose(found, torch.stack(each).exp().mean(0).log(), atol=1e-5)


def test_a_fit_is_the_same_from_the_same_seed(tmp_path):
    log = bandit(100)
    short = replace(SMALL, n_updates=20)
    first, again, other = (short.fit(log, rng=np.random.default_rng(k)) for k in (0, 0, 1))
    np.testing.assert_array_equal(acts(first, log), acts(again, log))
    assert (acts(first, log) != acts(other, log)).any()
    first.save(tmp_path / "team.safetensors")
    np.testing.assert_array_equal(acts(TeamPolicy.load(tmp_path / "team.safetensors"), log), acts(first, log))


def test_what_cannot_be_learned_from_is_refused(tmp_path):
    log = bandit(100)
    choices = replace(log, actions=np.ones_like(log.actions), discrete=True)
    with pytest.raises(DatasetError, match="actions must be numbers: these are choices"):
        SMALL.fit(choices, rng=np.random.default_rng(0))
    policy = replace(SMALL, n_updates=1).fit(log, rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"observations must have shape \(B, 2, 1\); got \(5, 2, 3\)"):
        policy.act(np.zeros((5, 2, 3)), None, np.random.default_rng(0))
    (tmp_path / "other").write_bytes(b"no network")
    with pytest.raises(ValueError, match="does not hold a network"):
        TeamPolicy.load(tmp_path / "other")
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        replace(SMALL, learning_rate=1e20).fit(log, rng=np.random.default_rng(0))


@pytest.mark.parametrize(
    "make,said",
    [
        (lambda: CentralCritic(n_updates=0), "n_updates must be an integer >= 1; got 0"),
        (lambda: CentralCritic(gamma=1.0), r"gamma must lie in \[0, 1\); got 1.0"),
        (lambda: CentralCritic(penalty="max"), "penalty must be one of expected, logsumexp; got 'max'"),
        (lambda: CentralCritic(cloning=-1.0), "cloning must be finite and >= 0; got -1.0"),
        (lambda: Augmentation(horizon=0), "horizon must be an integer >= 1; got 0"),
        (lambda: Augmentation(mix="third"), "mix must be one of half, coin; got 'third'"),
        (lambda: Augmentation(measure=None), "measure must name a doubt where doubt='softmax' looks at it"),
    ],
)
def test_arguments_out_of_range_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


# --- imagined rows --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world():
    log = bandit(300, terminated=False)
    return log, LOGO(hidden=8, training=Training(n_steps=50)).fit(log, rng=np.random.default_rng(0))


def prepared(world, asked=1, **options):
    """A mixer that has been asked a few times, the batch it gave last, and the policy it played."""
    log, model = world
    policy = replace(SMALL, n_updates=1).fit(log, rng=np.random.default_rng(0))
    mixer = ImaginedRows(Augmentation(**{"n_rollouts": 20, "horizon": 3, "interval": 2} | options), model, log)
    real = module.Rows(*(x[:64] for x in module.all_rows(policy.scales, log)))
    rng = np.random.default_rng(1)
    batches = [mixer(real, policy.actors, policy.scales, rng) for _ in range(asked)]
    return mixer, batches, real, policy


def test_half_of_a_batch_is_imagined(world):
    mixer, (batch,), real, policy = prepared(world)
    assert len(batch.r) == 64 and torch.equal(batch.s[:32], real.s[:32])
    imagined = mixer._rows
    rows = {tuple(row) for row in imagined.s.tolist()}
    assert len(imagined.r) == 60 and all(tuple(row) in rows for row in batch.s[32:].tolist())
    with torch.no_grad():
        assert torch.allclose(batch.a[32:], policy.actors(batch.o[32:]), atol=1e-5)  # the policy's own actions


def test_rollouts_are_made_at_intervals_and_the_oldest_go_first(world):
    mixer, *_ = prepared(world, asked=5, capacity=120)
    assert len(mixer.log) == 3 and len(mixer._kept) == 2 and len(mixer._rows.r) == 120
    assert [one.doubt.mean() for one in mixer._kept] == [told["doubt"] for told in mixer.log[1:]]


def test_a_coin_decides_for_the_whole_batch(world):
    _, batches, real, _ = prepared(world, asked=40, mix="coin", interval=100)
    whole = [torch.equal(batch.s, real.s) for batch in batches]
    assert 8 < sum(whole) < 32  # 20 of 40 expected; beyond it with probability 1e-4
    assert not any(torch.equal(b.s[:8], real.s[:8]) for b, w in zip(batches, whole, strict=True) if not w)


def test_rows_are_drawn_as_often_as_equation_7_says(world):
    mixer, *_ = prepared(world, tau=0.05, interval=10_000)
    weights = sampling_weights(mixer._doubt, mixer.ceiling, 0.05)
    batch = mixer._draw(60_000, np.random.default_rng(0))
    where = {tuple(row): k for k, row in enumerate(mixer._rows.s.tolist())}
    counts = np.bincount([where[tuple(row)] for row in batch.s.tolist()], minlength=60)
    np.testing.assert_allclose(counts / 60_000, weights, atol=5 * np.sqrt(weights.max() / 60_000))
    assert weights.max() > 2 * weights.min()
    told = mixer.log[-1]
    assert told["ceiling"] == mixer.ceiling > 0 and told["tau"] == 0.05 and told["stopped"] == 0
    assert told["mass_surest_tenth"] > 0.1 > told["mass_most_doubtful_tenth"] and told["effective_share"] < 1
    assert prepared(world, tau=None)[0].tau == pytest.approx(mixer.ceiling / 5)


def test_doubt_may_be_paid_for_or_end_a_rollout(world):
    plain, paid = (prepared(world, doubt=d)[0] for d in ("uniform", "penalty"))
    np.testing.assert_allclose(paid._rows.r, plain._rows.r.numpy() - paid._doubt, atol=1e-5)
    log, model = world
    halted, *_ = prepared(world, doubt="halt", ceiling=float(np.median(plain._doubt)))
    ended = halted._rows.ended.numpy() > 0
    np.testing.assert_array_equal(ended, halted._doubt > halted.ceiling)
    assert 0 < ended.sum() < 60
    least = (log.rewards.min() - 1) / log.rewards.std()
    np.testing.assert_allclose(halted._rows.r.numpy()[ended], least, rtol=1e-4)
    with pytest.raises(ValueError, match=r"measure must be one that the model has \(paths\); got 'disagreement'"):
        ImaginedRows(Augmentation(measure="disagreement"), model, log)


def test_a_policy_is_fitted_with_imagined_rows(world):
    log, model = world
    mixer = ImaginedRows(Augmentation(n_rollouts=50, horizon=2, interval=20), model, log)
    policy = replace(SMALL, n_updates=50).fit(log, rng=np.random.default_rng(0), mix=mixer)
    assert len(mixer.log) == 3 and np.isfinite(acts(policy, log)).all()
