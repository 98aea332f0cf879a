"""NetWorld: logs and their refusals, messages, the encoder, gradients, plans, baselines, federation."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedmorl.checkpoints import save_module
from fedmorl.data.dataset import DatasetError
from fedmorl.data.network_logs import NetworkLog, collect_network_log
from fedmorl.evaluation.networks import Always, Informed, Logged, Planned, merit, play, score
from fedmorl.federated import FitConfig
from fedmorl.learners.network_cloning import NetworkCloning
from fedmorl.learners.networld_planner import NetWorldPlanner, reconsidered
from fedmorl.tasks.cw_selection import CWSelection
from fedmorl.tasks.power_control import PowerControl
from fedmorl.tasks.user_association import UserAssociation
from fedmorl.world_models import latent_codec
from fedmorl.world_models.latent_codec import CodecTraining, fit_codec, from_bytes, mean_field, to_bytes, with_messages
from fedmorl.world_models.network_windows import CONDITION, H, TaskRows, rewards_for
from fedmorl.world_models.networld import RETURN_CODE, NetWorld, NetWorldModel, batch, losses
from fedmorl.world_models.networld_federated import federate, federated_clients, isolated

SMALL = NetWorld(width=16, n_steps=10, batch_size=4)


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def raw():
    tasks = CWSelection(6, 4, "rounds"), UserAssociation(6, 4), PowerControl(6, 4)
    return [collect_network_log(task, 24, rng=rng(k)) for k, task in enumerate(tasks)]


@pytest.fixture(scope="module")
def codec(raw):
    return fit_codec(raw, CodecTraining(n_steps=30), rng=rng())


@pytest.fixture(scope="module")
def logs(raw, codec):
    return [with_messages(log, codec) for log in raw]


@pytest.fixture(scope="module")
def model(logs, codec):
    return SMALL.fit(logs, codec, rng=rng())


@pytest.fixture(scope="module")
def seen():
    tasks = CWSelection(60, 4, "rounds"), UserAssociation(200, 8), PowerControl(60, 6)
    return [collect_network_log(task, 32, rng=rng(k)) for k, task in enumerate(tasks)]


@pytest.fixture(scope="module")
def good_codec(seen):
    return fit_codec(seen, CodecTraining(n_steps=1_000), rng=rng())


# --- logs -----------------------------------------------------------------------------------------------


def test_a_log_comes_back_from_its_file(logs, raw, tmp_path):
    for k, log in enumerate([*logs, *raw]):
        log.save(tmp_path / f"{k}.h5")
        again = NetworkLog.load(tmp_path / f"{k}.h5")
        assert again.content_hash == log.content_hash and again.attributes() == log.attributes()


def test_a_changed_file_is_refused(raw, tmp_path):
    import h5py

    raw[0].save(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["rewards"][0, 0, 0] += 1
    with pytest.raises(DatasetError, match=r"a\.h5: the content hash is not the content's"):
        NetworkLog.load(tmp_path / "a.h5")


@pytest.mark.parametrize(
    "change, words",
    [
        ({"actions": np.full((6, 24, 4), 8)}, "actions must be from 0 to 7; got up to 8"),
        ({"rewards": np.zeros((6, 23, 4))}, "rewards has T = 23 where the arrays before it have T = 24"),
        ({"own": np.full((6, 24, 4), np.nan)}, "own must be finite"),
        ({"encoder_hash": "abc"}, "must be given together"),
    ],
)
def test_a_bad_log_is_refused_in_a_sentence(raw, change, words):
    with pytest.raises(DatasetError, match=words):
        replace(raw[0], **change)


def test_logged_levels_wander_as_documented():
    log = collect_network_log(CWSelection(40, 10, "rounds"), 100, rng=rng())
    changed = (np.diff(log.actions, axis=1) != 0).mean()
    expected = 0.05 * 7 / 8 + 0.95 * 0.1 * (2 / 3) * (1 - 1 / 8)  # a new level, or a jitter that is not clipped away
    assert abs(changed - expected) < 0.01
    assert abs(np.bincount(log.actions[:, 0].ravel(), minlength=8) / 400 - 1 / 8).max() < 0.06


# --- messages -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [4, 8])
def test_a_message_is_seventeen_bytes_and_within_half_a_step(bits):
    z, reward = rng().uniform(-1, 1, (50, 16)), rng(1).uniform(-4, 4, 50)
    message = to_bytes(z, reward, bits)
    assert message.shape == (50, 17) and message.dtype == np.uint8 and message[0].nbytes * 8 == 136
    back, scored = from_bytes(message, bits)
    assert abs(back - z).max() <= 1 / (2**bits - 1) + 1e-6
    assert abs(scored - reward).max() <= 4 / 255 + 1e-6


def test_a_message_of_another_width_is_refused():
    with pytest.raises(ValueError, match="a message must be 17 bytes; got 16"):
        from_bytes(np.zeros((3, 16), np.uint8))


def test_the_mean_field_does_not_depend_on_the_order_of_neighbours():
    message = to_bytes(rng().uniform(-1, 1, (5, 16)), np.zeros(5))
    w = rng(1).random((5, 5)) * (1 - np.eye(5))
    order = rng(2).permutation(5)
    there = mean_field(message[order], w[np.ix_(order, order)])
    np.testing.assert_allclose(there, mean_field(message, w)[order], atol=1e-6)


def test_late_messages_are_those_of_earlier_epochs(raw, codec):
    now, late = (with_messages(raw[0], codec, age=age) for age in (0, 3))
    assert np.array_equal(late.received[:, 3:], now.received[:, :-3]) and late.message_age == 3 and late.bits == 136


# --- encoder --------------------------------------------------------------------------------------------


def test_every_feature_is_told_from_the_latent(good_codec):
    """The gate on worst features, on logs the encoder has not seen."""
    for k, task in enumerate((CWSelection(24, 4, "rounds"), UserAssociation(24, 8), PowerControl(24, 6))):
        unseen = collect_network_log(task, 30, rng=rng(10 + k))
        assert good_codec.reconstruction_nmse(unseen).max() <= 0.02, task.name


def test_an_unknown_task_needs_a_stem(codec):
    with pytest.raises(ValueError, match=r"task must be one that has a stem \(cw, ua, pc\); got 'v2x'"):
        codec.encode("v2x", np.zeros((1, 5)))


def test_observations_that_are_not_finite_or_too_wide_are_refused(codec):
    with pytest.raises(ValueError, match="must be finite"):
        codec.encode("cw", np.full((1, 5), np.nan))
    with pytest.raises(ValueError, match="observations of cw must hold 5 numbers; got 6"):
        codec.encode("cw", np.zeros((1, 6)))


def test_messages_of_another_encoder_are_refused(raw, codec, logs):
    other = fit_codec(raw, CodecTraining(n_steps=1), rng=rng(1))
    with pytest.raises(DatasetError, match="encoder_hash of a log of cw"):
        SMALL.fit(logs, other, rng=rng())
    with pytest.raises(DatasetError, match="holds no messages"):
        SMALL.fit(raw, codec, rng=rng())


# --- windows and losses ---------------------------------------------------------------------------------


def test_a_window_is_cut_where_it_says(logs, codec):
    log = logs[0]
    rows = TaskRows([log], codec, "mean_field")
    e, n, t = 2, 3, 5
    index = torch.tensor([(e * log.n_agents + n) * rows.n_starts + t])
    w = rows.take(index, torch.ones(1))
    z = codec.encode("cw", log.observations) / codec.latent_sd
    assert torch.allclose(w.x[0], z[e, t : t + H, n], atol=1e-6)
    np.testing.assert_allclose(w.actions[0], log.actions[e, t : t + H, n] / 3.5 - 1, atol=1e-6)
    np.testing.assert_allclose(w.condition[0, 3:19], log.received[e, t, n] / codec.latent_sd.numpy(), rtol=1e-5)
    assert w.condition.shape == (1, CONDITION) and w.condition[0, :3].tolist() == [1, 0, 0]
    g = rewards_for(log, "mean_field").astype(float)
    every = np.stack([g[:, k : k + H].mean(1) for k in range(rows.n_starts)], 1)
    assert w.returns.item() == pytest.approx((every[e, t, n] - every.mean()) / every.std(), abs=1e-4)


def test_a_message_left_out_is_nothing_and_says_so(logs, codec):
    rows = TaskRows([logs[0]], codec, "own")
    w = rows.take(torch.arange(4), torch.zeros(4))
    assert (w.condition[:, 3:20] == 0).all()


def test_the_team_return_is_the_same_for_all_and_the_own_is_not(logs):
    team, own = rewards_for(logs[1], "mean_field"), rewards_for(logs[1], "own")
    assert np.ptp(team, axis=-1).max() < 1e-6 < np.ptp(own, axis=-1).max()


def test_what_an_agent_costs_the_others_must_be_logged(logs):
    with pytest.raises(ValueError, match="cw does not log what an agent costs the others; take mean_field or own"):
        rewards_for(logs[0], "own_minus_externality")


def test_the_first_row_is_known_and_costs_nothing(model, logs):
    windows, level, eps, step = batch(model.rows(logs), 4, torch.Generator().manual_seed(0))
    found = losses(model.networks, windows, level, eps, step)
    moved = eps.clone()
    moved[:, 0] += 100
    again = losses(model.networks, windows, level, moved, step)
    assert found["futures"] == again["futures"] and found["classifier"] == again["classifier"]


def test_training_lowers_every_term(logs, codec):
    trained = NetWorld(width=32, n_steps=201, batch_size=8).fit(logs, codec, rng=rng())
    for name, first in trained.history[0].items():
        assert trained.history[-1][name] < first, name


# --- plans ----------------------------------------------------------------------------------------------


@pytest.fixture(params=["score", "guide"])
def planner(request, model):
    return NetWorldPlanner(model=model, method=request.param)


def observed(n=5):
    task = PowerControl(1, n)
    obs = task.reset(rng(3))[0]
    return obs, 0.1 * rng(4).standard_normal((n, 16)).astype(np.float32)


def test_the_guide_is_the_gradient_of_the_expected_return(model):
    planner = NetWorldPlanner(model=model, method="guide")
    networks = planner.model.networks.double()
    x, c = torch.randn(2, H, 16).double(), torch.randn(2, CONDITION).double()
    try:
        g = planner.gradient(x, 40, c)
        level = torch.full((2,), 40)
        for k in range(5):
            step = torch.zeros_like(x)
            step[:, k, 2 * k] = 1e-5
            up, down = (RETURN_CODE.mean(networks.classify(x + s, level, c)) for s in (step, -step))
            assert torch.allclose(g[:, k, 2 * k], (up - down) / 2e-5, atol=1e-6)
    finally:
        networks.float()


def test_guidance_raises_what_the_classifier_expects(logs, codec):
    trained = NetWorld(parts=("guide",), width=32, n_steps=300, batch_size=16).fit(logs, codec, rng=rng())
    obs, _ = observed()
    z0 = codec.encode("pc", obs) / codec.latent_sd
    c = latent_conditions(z0)
    expected = []
    for scale in (0.0, 1.0):
        planner = NetWorldPlanner(model=trained, method="guide", scale=scale)
        x = planner.trajectories(z0, c, torch.Generator().manual_seed(0))
        bins = trained.networks.classify(x, torch.zeros(len(x), dtype=torch.long), c)
        expected.append(float(RETURN_CODE.mean(bins).detach().mean()))
    assert expected[1] > expected[0] + 0.05


def latent_conditions(z0):
    from fedmorl.world_models.network_windows import conditions

    return conditions("pc", z0, torch.zeros_like(z0), torch.zeros(len(z0)))


def test_a_plan_repeats_with_its_seed(planner):
    obs, received = observed()
    a, b = (planner.plan("pc", obs, received, 10, rng=rng(1)).actions for _ in range(2))
    assert np.array_equal(a, b) and a.min() >= 0 and a.max() < 10


@pytest.mark.parametrize(
    "received, words",
    [
        (None, "received is missing: planned without the mean field"),
        (np.zeros((5, 15)), r"received must have shape \(5, 16\); got \(5, 15\): planned without"),
        (np.full((5, 16), np.inf), "received is not finite: planned without"),
    ],
)
def test_without_a_message_it_plans_and_says_so(planner, received, words):
    obs, _ = observed()
    with pytest.warns(UserWarning, match=words):
        plan = planner.plan("pc", obs, received, 10, rng=rng(1))
    silent = replace(planner, messages=False).plan("pc", obs, None, 10, rng=rng(1))
    assert not plan.heard and plan.note and np.array_equal(plan.actions, silent.actions) and not silent.note


def test_the_message_is_heard(model):
    """Scores move with the mean field, and are those of silence where the flag is 0."""
    planner = NetWorldPlanner(model=model)
    obs, received = observed()
    z0 = model.codec.encode("pc", obs) / model.codec.latent_sd
    from fedmorl.world_models.network_windows import conditions

    m = torch.tensor(received)
    found = [
        planner.scores(z0, conditions("pc", z0, x, torch.full((5,), f)), 10, torch.Generator().manual_seed(0))
        for x, f in ((m, 1.0), (5 * m, 1.0), (m, 0.0), (5 * m, 0.0))
    ]
    assert not torch.equal(found[0], found[1]) and torch.equal(found[2], found[3])


def test_those_who_do_not_revise_hold_their_level(model):
    obs, received = observed()
    planner = NetWorldPlanner(model=model, revise=1e-9)
    held = np.array([1, 2, 3, 4, 5])
    assert np.array_equal(planner.plan("pc", obs, received, 10, rng=rng(), held=held).actions, held)


def test_only_those_who_reconsider_are_planned_for():
    asked = []
    held = np.arange(1000)
    found = reconsidered(lambda who: asked.extend(who) or -who, 1000, held, 0.2, rng())
    assert 150 < len(asked) < 250 and np.array_equal(np.flatnonzero(found != held), [i for i in asked if i])
    assert reconsidered(lambda who: who + 1, 3, None, 0.2, rng()).tolist() == [1, 2, 3]


def test_a_planner_without_its_networks_is_refused(logs, codec):
    only = replace(SMALL, parts=("score",), n_steps=1).fit(logs, codec, rng=rng())
    with pytest.raises(ValueError, match="method guide needs a model trained for it; this one has score"):
        NetWorldPlanner(model=only, method="guide")
    with pytest.raises(ValueError, match="ddim_steps must divide"):
        NetWorldPlanner(model=only, ddim_steps=3)


def test_a_model_comes_back_from_its_file_and_plans_alike(model, planner, tmp_path):
    model.save(tmp_path / "m.safetensors")
    again = NetWorldModel.load(tmp_path / "m.safetensors")
    obs, received = observed()
    a, b = (replace(planner, model=m).plan("pc", obs, received, 10, rng=rng(1)).actions for m in (model, again))
    assert np.array_equal(a, b) and again.codec.content_hash == model.codec.content_hash
    assert again.returns == model.returns


def test_a_file_of_something_else_is_refused(tmp_path):
    save_module(tmp_path / "x.safetensors", torch.nn.Linear(2, 2), {"parts": ["score"]}, {})
    with pytest.raises(ValueError, match="does not hold a NetWorld: width, sizes, returns missing"):
        NetWorldModel.load(tmp_path / "x.safetensors")


def test_inverse_dynamics_learns_to_read_the_level(seen, good_codec):
    logs = [with_messages(seen[0], good_codec)]
    trained = NetWorld(parts=("guide",), width=64, n_steps=500, batch_size=64).fit(logs, good_codec, rng=rng())
    unseen = with_messages(collect_network_log(CWSelection(6, 4, "rounds"), 24, rng=rng(50)), good_codec)
    assert trained.inverse_accuracy(unseen, 500, rng()) >= 0.95


# --- play -----------------------------------------------------------------------------------------------


def test_everybody_plays_the_same_networks_and_the_score_runs_from_logs_to_reference():
    found = {p: merit(play(PowerControl(8, 5), p(), 12, seed=3)) for p in (Logged, Informed)}
    full = merit(play(PowerControl(8, 5), Always(-1), 12, seed=3))
    assert score(found[Logged], found[Logged], found[Informed]) == 0
    assert score(found[Informed], found[Logged], found[Informed]) == 1
    assert score(full, found[Logged], found[Informed]) < 0.7
    assert np.isnan(score(full, found[Logged], found[Logged] + 1e-9 * rng().standard_normal(8)))


def test_rules_of_a_task_play_and_only_some_reconsider():
    found = {r: merit(play(PowerControl(8, 5), Informed(r), 12, seed=3)) for r in ("reference", "fractional_reference")}
    assert 0.95 < found["fractional_reference"].mean() / found["reference"].mean() < 1.03
    hurried, calm = (
        play(UserAssociation(16, 12), Informed("greedy_reference", revise=p), 12, seed=3) for p in (1, 0.3)
    )
    assert calm["handovers"].mean() < 0.5 * hurried["handovers"].mean()
    assert calm["log_utility"].mean() > hurried["log_utility"].mean()


@pytest.mark.parametrize("kind", ["clone", "clone_best", "q"])
def test_baselines_play(kind, model, logs):
    policy = NetworkCloning(kind=kind, n_steps=5).fit(model, logs, rng=rng())
    a, b = (play(UserAssociation(2, 4), Planned(policy), 7, seed=1)["log_utility"] for _ in range(2))
    assert np.array_equal(a, b)


def test_a_clone_does_what_the_logs_do(seen, good_codec):
    logs = [with_messages(seen[0], good_codec)]
    model = replace(SMALL, n_steps=1).fit(logs, good_codec, rng=rng())
    policy = NetworkCloning(n_steps=400).fit(model, logs, rng=rng())
    obs, held = logs[0].observations[:, 3], logs[0].actions[:, 2]
    with pytest.warns(UserWarning, match="received is missing: planned without the mean field"):
        plan = policy.plan("cw", obs.reshape(-1, 5), None, 8, rng=rng())
    assert (plan.actions == held.reshape(-1)).mean() > 0.6  # the logs hold nine levels in ten


# --- arms -----------------------------------------------------------------------------------------------


def test_one_client_federated_is_plain_training(model, logs):
    (client,) = federated_clients(model, logs, 1, 20, rng=rng())
    config = FitConfig(local_steps=3, batch_size=8)
    shared, history = federate(model, [client], 1, config, seed=0)
    alone = isolated(model, client, config, seed=0)
    for name, value in shared.networks.state_dict().items():
        assert torch.allclose(value, alone.networks.state_dict()[name], atol=1e-6), name
    assert len(history.rounds) == 1


def test_engines_agree_and_clients_differ(model, logs):
    clients = federated_clients(model, logs, 2, 20, rng=rng())
    assert clients[0].content_hash != clients[1].content_hash
    config = FitConfig(local_steps=2, batch_size=4)
    loop, batched = (federate(model, clients, 2, config, seed=0, engine=e)[0] for e in ("loop", "batched"))
    for name, value in loop.networks.state_dict().items():
        assert torch.allclose(value, batched.networks.state_dict()[name], atol=1e-4), name


def test_more_clients_than_agents_are_refused(model, logs):
    with pytest.raises(ValueError, match="n_clients must be from 1 to 4"):
        federated_clients(model, logs, 5, 20, rng=rng())


def test_a_new_task_gets_a_stem_and_the_rest_of_the_encoder_stays(raw):
    two = raw[:2]
    codec = fit_codec(two, CodecTraining(n_steps=20), rng=rng())
    known = SMALL.fit([with_messages(log, codec) for log in two], codec, rng=rng())
    adapted = SMALL.adapt(known, raw[2].take(slice(3)), rng=rng(), codec_training=CodecTraining(n_steps=20))
    assert set(adapted.codec.sizes) == {"cw", "ua", "pc"} and set(known.codec.sizes) == {"cw", "ua"}
    before, after = known.codec.state_dict(), adapted.codec.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    obs, _ = observed()
    NetWorldPlanner(model=adapted, messages=False).plan("pc", obs, None, 10, rng=rng())


def test_what_is_frozen_does_not_move(model, logs, raw):
    tuned = SMALL.adapt(model, raw[0], rng=rng(), frozen=("futures", "trajectory"))
    before, after = model.networks.state_dict(), tuned.networks.state_dict()
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"value", "prior", "classifier", "inverse"}
    assert tuned.codec.content_hash == model.codec.content_hash


def test_the_code_is_one_byte_a_number():
    assert latent_codec.BYTES * 8 == 136
