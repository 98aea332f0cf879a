"""MADT, MADTKD and cloning of a team: a task of recall, games with known answers, play against whole-log likelihood."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedmorl.data.trajectories import Trajectories
from fedmorl.federated.clients import one_thread
from fedmorl.learners import madt, team_cloning
from fedmorl.learners.madt import MADT, MADTPolicy, windows_of
from fedmorl.learners.madtkd import MADTKD, policy_divergence, relation_distance
from fedmorl.learners.team_cloning import AgentView, TeamCloning, TeamCloningPolicy

QUICK = MADT(context=3, width=8, epochs=1, batch_size=32, learning_rate=3e-3)
MEMORY = MADT(context=3, n_layers=1, n_heads=4, epochs=8, batch_size=32, learning_rate=1e-2, weight_decay=0.0, clip=1.0)
MLP = TeamCloning(hidden=(16,), epochs=1, batch_size=32)
GRU = TeamCloning(form="gru", width=8, epochs=1)


@pytest.fixture(autouse=True)
def quiet():
    with one_thread():
        yield


def trajectories(observations, actions, rewards=None, lengths=None, **more) -> Trajectories:
    """A log of (E, T + 1, N, O) and (E, T, N); every episode is truncated at its length."""
    e, t, _ = actions.shape
    lengths = np.full(e, t) if lengths is None else np.asarray(lengths)
    played = np.arange(t) < lengths[:, None]
    seen = np.arange(t + 1) <= lengths[:, None]
    return Trajectories(**{
        "observations": np.asarray(observations, np.float32) * seen[..., None, None],
        "actions": actions * played[..., None],
        "rewards": (np.ones((e, t)) if rewards is None else rewards) * played,
        "terminated": np.zeros((e, t), bool), "truncated": np.arange(t) == lengths[:, None] - 1, "lengths": lengths,
        "episode_seeds": np.arange(e), "behaviour_ids": np.zeros(e, int), "behaviours": ({"name": "made up"},),
        "env_id": "toy", "env_version": "1", "env_kwargs": {}, "n_actions": 4, "reward_def": "toy", "time_limit": t,
    } | more)  # fmt: skip


def recall(k: int, n_episodes: int = 128, n_steps: int = 5, n: int = 2, seed: int = 0) -> Trajectories:
    """a_t = o_(t-k) of four symbols, uniform before that."""
    rng = np.random.default_rng(seed)
    symbols = rng.integers(4, size=(n_episodes, n_steps + 1, n))
    actions = rng.integers(4, size=(n_episodes, n_steps, n))
    actions[:, k:] = symbols[:, : n_steps - k]
    return trajectories(np.eye(4)[symbols], actions, rng.random((n_episodes, n_steps)))


def uneven() -> Trajectories:
    """Random episodes of 5, 9 and 2 steps, three agents."""
    rng = np.random.default_rng(0)
    observations, actions = rng.normal(3, 2, (3, 10, 3, 5)), rng.integers(4, size=(3, 9, 3))
    return trajectories(observations, actions, rng.random((3, 9)), [5, 9, 2])


def fitted(learner, dataset, seed: int = 0):
    return learner.fit(dataset, rng=np.random.default_rng(seed))


def moved(policy, by: float = 0.2):
    """With every weight far from its start, so that all that is given counts."""
    draws = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for p in policy.network.parameters():
            p += by * torch.randn(p.shape, generator=draws)
    return policy


def recalled(learner, k: int) -> float:
    """Nats a decision on new episodes, where there is something to recall."""
    return float(fitted(learner, recall(k)).negative_log_likelihood(recall(k, seed=1))[:, k:].mean())


# --- recall -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("learner", "k"),
    [(replace(MEMORY, context=2, epochs=2), 2), (TeamCloning(epochs=2), 1)],
    ids=["context", "mlp"],
)
def test_what_was_seen_too_long_ago_costs_ln_4(learner, k):
    """Nothing in reach tells of the action: no predictor does better, and one that is nearly even no worse."""
    assert recalled(learner, k) == pytest.approx(np.log(4), abs=0.05)


@pytest.mark.parametrize(
    ("learner", "k"),
    [
        (MEMORY, 2),
        (TeamCloning(form="gru", epochs=8, learning_rate=1e-2), 2),
        (TeamCloning(epochs=4, learning_rate=2e-3), 0),
    ],
    ids=["context", "gru", "mlp"],
)
def test_what_is_in_reach_is_recalled(learner, k):
    """Near 0: less than a tenth of ln 4."""
    assert recalled(learner, k) < 0.1 * np.log(4)


# --- known answers ----------------------------------------------------------------------------------------

PAYOFF = np.array([[0, 1], [1, -2]])


@pytest.mark.parametrize(
    ("logged", "expected"), [([(0, 1)], 1.0), ([(0, 1), (1, 0)], 0.0), ([(0, 0), (0, 1), (1, 0)], 2 / 9)]
)
def test_independent_cloning_in_the_xor_game_is_worth_what_the_product_of_the_marginals_is(logged, expected):
    """AlberDICE's game, pairs logged evenly; AB alone needs the agents told apart. To 1 % of the payoffs' span."""
    actions = np.array(logged * (360 // len(logged)))[:, None]
    log = trajectories(np.zeros((len(actions), 2, 2, 1)), actions, n_actions=2)
    policy = fitted(TeamCloning(hidden=(32,), epochs=20, learning_rate=1e-2), log)
    nats = policy.negative_log_likelihood(log)[:, 0]  # (E, 2)
    p = [np.exp(-nats[actions[:, 0, i] == 0, i].mean()) if (actions[:, 0, i] == 0).any() else 0.0 for i in range(2)]
    worth = np.array([p[0], 1 - p[0]]) @ PAYOFF @ np.array([p[1], 1 - p[1]])
    assert worth == pytest.approx(expected, abs=0.03)


def test_the_teacher_knows_what_the_others_see():
    """Each agent does what the next one sees: ln 4 for itself, near 0 for who sees all."""
    rng = np.random.default_rng(0)
    symbols = rng.integers(4, size=(128, 6, 3))
    log = trajectories(np.eye(4)[symbols], np.roll(symbols, -1, axis=2)[:, :-1])
    kd = MADTKD(teacher=MADT(epochs=5, batch_size=64, learning_rate=1e-2))
    assert fitted(MADT(epochs=1), log).negative_log_likelihood(log).mean() == pytest.approx(np.log(4), abs=0.05)
    assert kd.teach(log, rng=np.random.default_rng(0)).negative_log_likelihood(log).mean() < 0.1 * np.log(4)


def test_an_action_that_alone_is_available_costs_nothing_and_is_taken():
    log = uneven()
    only = np.zeros((3, 10, 3, 4), bool)
    e, t, n = np.nonzero(np.broadcast_to(log.mask[..., None], log.actions.shape))
    only[e, t, n, log.actions[e, t, n]] = True
    log = replace(log, available=only)
    for learner in (QUICK, MLP, GRU):
        policy = fitted(learner, log)
        assert policy.history[0] == 0 and policy.negative_log_likelihood(log).max() == 0
        rng = np.random.default_rng(0)
        actions, _ = policy.act(log.observations[:, 0], policy.start(3, rng), rng, available=log.available[:, 0])
        assert (actions == log.actions[:, 0]).all()


# --- windows ----------------------------------------------------------------------------------------------


def test_a_window_is_the_past_of_a_decision():
    log = uneven()
    windows = windows_of(log, np.array([[0, 1], [1, 6]]), context=4, scale=2.0)
    assert windows.mask.tolist() == [[True, True, False, False], [True] * 4]
    for row, (episode, steps) in enumerate([(0, [0, 1]), (1, [3, 4, 5, 6])]):
        kept = windows.mask[row]
        assert windows.at[1][row][kept.numpy()].tolist() == steps
        np.testing.assert_array_equal(windows.observations[row][kept], log.observations[episode, steps])
        np.testing.assert_array_equal(windows.actions[row][kept], log.actions[episode, steps])
        to_go = [log.rewards[episode, t:].sum() / 2 for t in steps]
        np.testing.assert_allclose(windows.returns_to_go[row][kept], to_go, rtol=1e-6)


@pytest.mark.parametrize("learner", [QUICK, MLP, GRU], ids=["madt", "mlp", "gru"])
def test_padding_and_other_episodes_leave_a_likelihood_alone(learner):
    log = uneven()
    policy = moved(fitted(learner, log))
    whole = policy.negative_log_likelihood(log)
    assert not whole[~log.mask].any()
    for e, length in enumerate(log.lengths):
        alone = trajectories(
            log.observations[e : e + 1, : length + 1], log.actions[e : e + 1, :length], log.rewards[e : e + 1, :length],
            time_limit=9,
        )  # fmt: skip
        np.testing.assert_allclose(policy.negative_log_likelihood(alone)[0], whole[e, :length], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("learner", [replace(QUICK, context=9), MLP, GRU], ids=["madt", "mlp", "gru"])
def test_a_loss_is_the_mean_over_decisions_that_were_made(learner):
    """Of weights that do not move; with windows as long as an episode, step t lies in those of the steps from t on."""
    log = uneven()
    policy = fitted(replace(learner, learning_rate=1e-12), log)
    times = np.maximum(log.lengths[:, None] - np.arange(9), 0) if isinstance(learner, MADT) else log.mask
    nats = policy.negative_log_likelihood(log).mean(-1)
    assert policy.history[0] == pytest.approx((nats * times).sum() / times.sum(), rel=1e-5)


def test_an_epoch_takes_each_item_once_or_one_in_stride_and_the_rate_ends_at_a_twentieth():
    weight = torch.nn.Parameter(torch.zeros(1))
    for stride, taken in ((1, 10), (3, 4)):
        seen: list[int] = []

        def loss(rows, seen=seen):
            seen.extend(rows)
            return weight.square().sum(), len(rows)

        optimiser = torch.optim.AdamW([weight], lr=0.1)
        how = {"stride": stride, "clip": 1.0, "rng": np.random.default_rng(0), "progress": False}
        team_cloning.train(loss, 10, 3, 2, optimiser, **how)
        assert len(seen) == 2 * taken and all(len({*part}) == taken for part in (seen[:taken], seen[taken:]))
        assert optimiser.param_groups[0]["lr"] == pytest.approx(0.005)


# --- play -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("learner", "steps"),
    [
        (QUICK, 9),
        (replace(QUICK, inference="cache"), 3),
        (replace(QUICK, n_layers=1, inference="cache"), 9),
        (MLP, 9),
        (GRU, 9),
        (replace(GRU, previous_action=not GRU.previous_action), 9),
    ],
    ids=["window", "cache-within-context", "cache-one-layer", "mlp", "gru", "gru-other"],
)
def test_play_gives_logged_actions_the_probability_that_the_log_does(learner, steps, monkeypatch):
    """The policy is led along episode 1, asked for its return: step by step and all at once agree."""
    log = uneven()
    policy = moved(fitted(learner, log))
    policy.target = float(log.returns[1])
    nats: list[np.ndarray] = []
    logged = iter(log.actions[1].astype(np.int64))

    def taken(logits, *_):
        actions = next(logged)[None]
        nats.append(-logits.log_softmax(-1).numpy()[0, np.arange(3), actions[0]])
        return actions

    for module in (madt, team_cloning):
        monkeypatch.setattr(module, "joint_actions", taken)
    rng = np.random.default_rng(0)
    memory = policy.start(1, rng)
    for t in range(steps):
        _, memory = policy.act(log.observations[1:2, t], memory, rng)
        memory = policy.rewarded(memory, log.rewards[1:2, t])
    np.testing.assert_allclose(nats, policy.negative_log_likelihood(log)[1, :steps], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("learner", [QUICK, replace(QUICK, inference="cache"), MLP, GRU])
def test_a_memory_handed_in_is_left_as_it_is(learner):
    log = uneven()
    policy = moved(fitted(learner, log))
    memory = policy.start(3, np.random.default_rng(0))
    _, memory = policy.act(log.observations[:, 0], memory, np.random.default_rng(0))
    first, _ = policy.act(log.observations[:, 1], memory, np.random.default_rng(1))
    policy.act(log.observations[:, 2], policy.rewarded(memory, np.full(3, 5.0)), np.random.default_rng(2))
    again, _ = policy.act(log.observations[:, 1], memory, np.random.default_rng(1))
    assert first.shape == (3, 3) and first.dtype == np.int64
    np.testing.assert_array_equal(first, again)


def test_actions_are_drawn_from_the_policy_or_are_its_mode():
    log = uneven()
    policy = fitted(MLP, log)
    observations = np.repeat(log.observations[:1, 0], 4000, axis=0)
    with torch.no_grad():
        seen, none = torch.from_numpy(observations[:1, None]), torch.full((1, 1, 3), -1)
        p = policy.network(seen, none)[0][0, 0].softmax(-1).numpy()  # (3, 4)
    rng = np.random.default_rng(0)
    drawn, _ = policy.act(observations, policy.start(4000, rng), rng)
    shares = np.stack([(drawn == a).mean(0) for a in range(4)], -1)
    assert (np.abs(shares - p) < 4 * np.sqrt(p * (1 - p) / 4000)).all()
    policy.config = replace(MLP, act="argmax")
    assert (policy.act(observations, policy.start(4000, rng), rng)[0] == p.argmax(-1)).all()


def test_the_return_asked_for_is_a_tenth_above_the_best_and_falls_by_what_is_received():
    log = uneven()
    policy = fitted(QUICK, log)
    best = log.returns.max()
    assert policy.target == pytest.approx(1.1 * best)
    memory = policy.rewarded(policy.start(2, np.random.default_rng(0)), np.array([0.0, 0.3]))
    np.testing.assert_allclose(memory.return_to_go * policy.scale, [1.1 * best, 1.1 * best - 0.3], rtol=1e-6)


# --- MADTKD -----------------------------------------------------------------------------------------------


def test_terms_of_the_teacher_are_their_formulas():
    rng = np.random.default_rng(0)
    t, s = rng.normal(size=(2, 2, 3, 4, 5))  # (B, L, N, A) or (B, L, N, W)
    mask = np.array([[True, True, False], [True, False, False]])

    def soft(x):
        return np.exp(x) / np.exp(x).sum(-1, keepdims=True)

    kl = (soft(t) * np.log(soft(t) / soft(s))).sum(-1)[mask].mean()
    total = []
    for b, step in np.argwhere(mask):
        cos = [
            [[u @ v / np.linalg.norm(u) / np.linalg.norm(v) for v in x[b, step]] for u in x[b, step]] for x in (t, s)
        ]
        d = np.abs(np.subtract(*cos))
        total.append(np.where(d < 1, d**2 / 2, d - 0.5)[~np.eye(4, dtype=bool)].sum())
    t, s, mask = (torch.from_numpy(x) for x in (t, s, mask))
    assert policy_divergence(t, s, mask).item() == pytest.approx(kl)
    assert relation_distance(t, s, mask).item() == pytest.approx(np.mean(total))


def test_without_its_terms_madtkd_is_madt():
    """Bit for bit; and training a teacher draws nothing from the students' stream."""
    log = recall(1, n_episodes=8)
    plain = fitted(QUICK, log)
    for weight, tolerance in ((0.0, 0.0), (1e-9, 1e-4)):
        kd = MADTKD(student=QUICK, teacher=QUICK, policy_weight=weight, relation_weight=weight)
        taught = fitted(kd, log)
        for name, p in plain.network.state_dict().items():
            assert (p - taught.network.state_dict()[name]).abs().max() <= tolerance


def test_a_teacher_that_sees_no_more_is_imitated_wholly():
    """Both terms go to 0: below a hundredth of what they are at the start."""
    log = recall(1, n_episodes=48, n_steps=4)
    own = MADT(width=16, n_layers=1, epochs=20, batch_size=64, learning_rate=1e-2, weight_decay=0.0)
    kd = MADTKD(
        student=own, teacher=replace(own, epochs=2), policy_weight=50.0, relation_weight=50.0, teacher_sees="own"
    )
    teacher = kd.teach(log, rng=np.random.default_rng(0).spawn(1)[0])
    windows = windows_of(log, np.argwhere(log.mask), own.context, teacher.scale)

    def terms(policy: MADTPolicy) -> np.ndarray:
        with torch.no_grad():
            t, s = teacher.network.features(windows), policy.network.features(windows)
            heads = teacher.network.transformer.head(t), policy.network.transformer.head(s)
            distances = policy_divergence(*heads, windows.mask), relation_distance(t, s, windows.mask)
        return np.array([float(x) for x in distances])

    assert (terms(teacher) < 1e-10).all()
    before, after = terms(fitted(replace(own, epochs=1, learning_rate=1e-9), log)), terms(fitted(kd, log))
    assert (after < 0.01 * before).all(), f"{before} -> {after}"


# --- what repeats, what is kept, what is refused ----------------------------------------------------------

LEARNERS = (QUICK, MLP, GRU, MADTKD(student=QUICK, teacher=replace(QUICK, n_layers=1)))


@pytest.mark.parametrize("learner", LEARNERS, ids=["madt", "mlp", "gru", "madtkd"])
def test_a_seed_gives_one_policy_whatever_the_global_state_and_a_file_keeps_it(learner, tmp_path):
    log = uneven()
    torch.manual_seed(1)
    policy = fitted(learner, log)
    torch.manual_seed(2)
    again, other = fitted(learner, log), fitted(learner, log, seed=1)
    policy.save(tmp_path / "policy.safetensors", {"seed": 0})
    kept = type(policy).load(tmp_path / "policy.safetensors")
    nats = policy.negative_log_likelihood(log)
    np.testing.assert_array_equal(nats, again.negative_log_likelihood(log))
    np.testing.assert_array_equal(nats, kept.negative_log_likelihood(log))
    assert (nats != other.negative_log_likelihood(log)).any() and kept.config == policy.config
    if isinstance(policy, MADTPolicy):
        assert (kept.target, kept.scale) == (policy.target, policy.scale)


def test_views_are_standardised_and_numbers_that_never_vary_are_left_alone():
    log = uneven()
    constant = np.concatenate([log.observations, np.full((3, 10, 3, 1), 7.0)], -1)
    log = trajectories(constant, log.actions, lengths=log.lengths)
    view = AgentView(6, 3, "all")
    view.standardise(log)
    seen = view(torch.from_numpy(log.observations[:, :-1][log.mask])).numpy()  # (steps, 3, 18 + 3)
    np.testing.assert_allclose(seen[..., :5].mean((0, 1)), 0, atol=1e-5)
    np.testing.assert_allclose(seen[..., :5].std((0, 1)), 1, atol=1e-5)
    assert (seen[..., 5] == 7).all() and (seen[..., 18:] == np.eye(3)).all()
    np.testing.assert_array_equal(seen[:, 1, 6:12], seen[:, 2, :6])  # agent 1 sees agent 2 next
    np.testing.assert_array_equal(seen[:, 2, 6:12], seen[:, 0, :6])


def test_bad_input_is_refused_in_a_sentence(tmp_path):
    log, rng = uneven(), np.random.default_rng(0)
    with pytest.raises(ValueError, match="context must be at most 9, the longest trajectory in the data; got 10"):
        fitted(replace(QUICK, context=10), log)
    for wrong, said in (
        ({"act": "greedy"}, "act must be one of sample, argmax; got 'greedy'"),
        ({"inference": "kv"}, "inference must be one of window, cache; got 'kv'"),
        ({"stride": 0}, "stride must be >= 1; got 0"),
    ):
        with pytest.raises(ValueError, match=said):
            replace(QUICK, **wrong)
    with pytest.raises(ValueError, match="form must be one of mlp, gru; got 'lstm'"):
        TeamCloning(form="lstm")
    with pytest.raises(ValueError, match="teacher and student must have one context"):
        MADTKD(student=QUICK, teacher=MADT(context=2))
    with pytest.raises(ValueError, match="weights must be >= 0; got -1 and 0"):
        MADTKD(policy_weight=-1, relation_weight=0)

    policy = fitted(QUICK, log)
    with pytest.raises(
        ValueError, match=r"observations must have shape \(..., 3, 5\), as in the data; got \(1, 3, 6\)"
    ):
        policy.act(np.zeros((1, 3, 6)), policy.start(1, rng), rng)
    memory = policy.start(1, rng)
    for _ in range(9):
        _, memory = policy.act(np.zeros((1, 3, 5)), memory, rng)
    with pytest.raises(ValueError, match="an episode must end after 9 steps, the data's time limit"):
        policy.act(np.zeros((1, 3, 5)), memory, rng)
    policy.target = float("nan")
    with pytest.raises(ValueError, match="target must be a finite return; got nan"):
        policy.start(1, rng)

    path = tmp_path / "policy.safetensors"
    (tmp_path / "none.safetensors").write_bytes(b"no network")
    for cls in (MADTPolicy, TeamCloningPolicy):
        with pytest.raises(ValueError, match="does not hold a network of this project"):
            cls.load(tmp_path / "none.safetensors")
    policy.save(path)
    with pytest.raises(ValueError, match="does not hold a cloned team"):
        TeamCloningPolicy.load(path)
    fitted(MLP, log).save(path)
    with pytest.raises(ValueError, match="does not hold a decision transformer"):
        MADTPolicy.load(path)
