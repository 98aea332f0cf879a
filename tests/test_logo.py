"""LOGO and its rivals: networks against loops over plain layers, the loss, doubt, weights, known answers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fedmorl.data.dataset import DatasetError
from fedmorl.nn.banks import Bank, gaussian_nats, soft_bounded
from fedmorl.tasks.linear_agents import linear_agents
from fedmorl.world_models import joint_dynamics
from fedmorl.world_models.ensemble import JointMLP, Neighbours, disagreement, halt_level
from fedmorl.world_models.joint_dynamics import Training, check_like, doubts
from fedmorl.world_models.joint_networks import Batch, Foreseen, Sizes
from fedmorl.world_models.joint_rollouts import imagine_team, open_loop
from fedmorl.world_models.logo import LOGO, effective_share, priorities, sampling_weights
from fedmorl.world_models.matching import count, with_parameters

SIZES = Sizes(n_agents=3, observation_size=4, action_size=2, state_size=5)
B = 6


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed))


def batch_of(m=1, seen=None):
    seen = torch.ones(3, 1, 4) if seen is None else seen
    return Batch(
        drawn(m, B, 5, seed=1),
        drawn(m, 3, B, 4, seed=2) * seen,
        drawn(m, 3, B, 2, seed=3),
        drawn(m, B, 1, seed=4),
        drawn(m, B, 5, seed=5),
        drawn(m, 3, B, 4, seed=6) * seen,
        seen,
    )


def layer(bank, k):
    """Map k of a bank as torch's own layer."""
    linear = nn.Linear(bank.weight.shape[1], bank.weight.shape[2])
    linear.weight.data, linear.bias.data = bank.weight[k].T, bank.bias[k, 0]
    return linear


def plain(network, k):
    """Network k of a bank as torch's own layers."""
    return nn.Sequential(*(layer(x, k) if isinstance(x, Bank) else x for x in network))


# --- networks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("sees", ["own", "joint"])
def test_batched_agents_are_a_loop_over_agents(share, sees):
    network = LOGO(hidden=8, share_agents=share, sees=sees).network(SIZES, generator())
    s, o, a, *_ = batch_of()
    found = network(s, o, a)
    h_s, h_o, seen = plain(network.state_encoder, 0)(s[0]), [], []
    for i in range(3):
        k = 0 if share else i
        acts = [a[0, i]] if sees == "own" else [a[0, (i + j) % 3] for j in range(3)]
        told = torch.cat([o[0, i], *acts, *([torch.eye(3)[i].expand(B, 3)] if share else [])], -1)
        h_o.append(plain(network.local_encoder, k)(told))
        seen.append(plain(network.local_head, k)(torch.cat([h_o[-1], h_s], -1)))
    deduced = plain(network.deductive_decoder, 0)(torch.cat(seen, -1))
    aside = plain(network.second_way, 0)(torch.cat([torch.stack(h_o).mean(0), h_s], -1))
    assert torch.allclose(found.next_o[0], torch.stack(seen), atol=1e-5)
    assert torch.allclose(found.next_s[0], deduced[:, :-1], atol=1e-5)
    assert torch.allclose(found.r[0], deduced[:, -1:], atol=1e-5)
    assert torch.allclose(found.aside[0], aside[:, :-1], atol=1e-5)


@pytest.mark.parametrize("make", [LOGO(hidden=8, members=2), JointMLP(hidden=(8,), members=2, observations=True)])
def test_each_member_is_a_network_of_its_own(make):
    two, one = make.network(SIZES, generator()), replace(make, members=1).network(SIZES, generator(1))
    s, o, a, *_ = batch_of(2)
    found = two(s, o, a)
    assert not torch.allclose(found.next_s[0], found.next_s[1])
    for k in range(2):
        state = {}
        for name, mine in one.state_dict().items():
            theirs = two.state_dict()[name]
            state[name] = theirs.view(2, *mine.shape)[k]
        one.load_state_dict(state)
        alone = one(*(x[k : k + 1] for x in (s, o, a)))
        assert torch.allclose(alone.next_s[0], found.next_s[k], atol=1e-6)
        assert torch.allclose(alone.next_o[0], found.next_o[k], atol=1e-6)


def test_inference_needs_neither_the_local_decoder_nor_the_deductive_encoder():
    network = LOGO(hidden=8).network(SIZES, generator())
    s, o, a, *_ = batch_of()
    before = network(s, o, a)
    for part in (network.local_decoder, network.deductive_encoder):
        for p in part.parameters():
            p.data.zero_()
    after = network(s, o, a)
    assert torch.equal(before.next_s, after.next_s) and torch.equal(before.aside, after.aside)


def test_without_its_detour_the_second_way_answers():
    network = LOGO(hidden=8, deduce=False).network(SIZES, generator())
    whole = LOGO(hidden=8).network(SIZES, generator())
    network.load_state_dict({name: whole.state_dict()[name] for name in network.state_dict()})
    s, o, a, *_ = batch = batch_of()
    assert torch.equal(network(s, o, a).next_s, whole(s, o, a).aside)
    assert set(network.losses(batch)) == {"pe", "ps"}


def test_changes_are_added_to_what_is():
    whole, change = (LOGO(hidden=8, delta=d).network(SIZES, generator()) for d in (False, True))
    s, o, a, *_ = batch_of()
    plainly, changed = whole(s, o, a), change(s, o, a)
    assert torch.allclose(changed.next_o, plainly.next_o + o, atol=1e-6)
    assert torch.allclose(changed.aside, plainly.aside + s, atol=1e-6)
    mlp = JointMLP(hidden=(8,), observations=True)
    plainly, changed = (replace(mlp, delta=d).network(SIZES, generator())(s, o, a) for d in (False, True))
    assert torch.allclose(changed.next_s, plainly.next_s + s, atol=1e-6)
    assert torch.allclose(changed.next_o, plainly.next_o + o, atol=1e-6)
    assert torch.allclose(changed.r, plainly.r)


def test_kinds_are_made_equally_large():
    for kind in (LOGO(), LOGO(deduce=False, members=3), JointMLP(), JointMLP(members=5, likelihood="gaussian")):
        sized = with_parameters(kind, SIZES, 30_000)
        assert count(sized, SIZES) == sum(p.numel() for p in sized.network(SIZES, generator()).parameters())
        assert count(sized, SIZES) == pytest.approx(30_000, rel=0.06) and replace(sized, hidden=kind.hidden) == kind
    with pytest.raises(ValueError, match=r"n_parameters must be at least .* for this kind; got 10"):
        with_parameters(LOGO(), SIZES, 10)


# --- the loss -------------------------------------------------------------------------------------------


def test_every_term_of_the_loss_is_the_printed_one():
    network = LOGO(hidden=8).network(SIZES, generator())
    s, o, a, r, next_s, next_o, _ = batch = batch_of()
    found, losses = network(s, o, a), network.losses(batch)
    target = torch.cat([next_s, r], -1)
    nats = torch.stack([((found.next_o[0, i] - next_o[0, i]) ** 2).sum(-1) / 2 for i in range(3)])
    back = [plain(network.local_decoder, i)(found.next_o[0, i]) for i in range(3)]
    again = torch.stack([((torch.cat([o[0, i], a[0, i]], -1) - back[i]) ** 2).sum(-1) for i in range(3)])
    imagined = plain(network.deductive_encoder, 0)(target[0])  # (B, N O), agent by agent
    decoder = plain(network.deductive_decoder, 0)
    expected = {
        "pe": nats.mean(),
        "pd": again.mean(),
        "de": ((imagined - torch.cat(list(next_o[0]), -1)) ** 2).sum(-1).mean() / 2,
        "dd": ((decoder(imagined) - target[0]) ** 2).sum(-1).mean(),
        "rd": ((decoder(torch.cat(list(found.next_o[0]), -1)) - target[0]) ** 2).sum(-1).mean(),
        "ps": ((found.aside - next_s) ** 2).sum(-1).mean() / 2,
    }
    for name, value in expected.items():
        if name == "ps":  # the reward is in it as well
            h_o = torch.stack([plain(network.local_encoder, i)(torch.cat([o[0, i], a[0, i]], -1)) for i in range(3)])
            h = torch.cat([h_o.mean(0), plain(network.state_encoder, 0)(s[0])], -1)
            value = ((plain(network.second_way, 0)(h) - target[0]) ** 2).sum(-1).mean() / 2
        assert float(losses[name].detach()) == pytest.approx(float(value.detach()), rel=1e-5), name


def test_padding_is_no_part_of_the_loss():
    seen = torch.ones(3, 1, 4)
    seen[1, :, 2:] = 0
    batch = batch_of(seen=seen)
    network = LOGO(hidden=8).network(SIZES, generator())
    wide = batch.next_o.clone()
    wide[:, 1, :, 2:] = 9.0
    before, after = network.losses(batch), network.losses(batch._replace(next_o=wide))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not torch.equal(before["pe"], network.losses(batch._replace(seen=torch.ones(3, 1, 4)))["pe"])


def test_the_loss_of_equation_4_reaches_the_local_networks_unless_it_is_told_not_to():
    for detach in (False, True):
        network = LOGO(hidden=8, detach=detach).network(SIZES, generator())
        network.losses(batch_of())["rd"].sum().backward()
        assert (network.local_head[0].weight.grad is None) == detach
        assert network.deductive_decoder[0].weight.grad is not None


def test_likelihoods_are_torchs():
    mean, log_variance, x = drawn(50, seed=1), drawn(50, seed=2), drawn(50, seed=3)
    expected = nn.functional.gaussian_nll_loss(mean, x, log_variance.exp(), reduction="none")
    assert torch.allclose(gaussian_nats(mean, log_variance, x), expected, atol=1e-6)
    bounded = soft_bounded(torch.tensor([-100.0, -1.0, 100.0]), -6, 2)
    assert bounded[0] == pytest.approx(-6, abs=1e-3) and bounded[2] == pytest.approx(2, abs=1e-3)
    assert bounded[1] == pytest.approx(-1, abs=0.06)
    network = LOGO(hidden=8, likelihood="gaussian").network(SIZES, generator())
    assert network(*batch_of()[:3]).log_variance.shape == (1, B, 6)


# --- fitting --------------------------------------------------------------------------------------------


NOISE = 0.2


def linear_log(n_rows=4000, seed=0, **options):
    return linear_agents(n_rows, noise=NOISE, rng=np.random.default_rng(seed), **options)


def errors(model, log):
    found = model.predict(log.states, log.observations, log.actions)
    next_o = found.next_observations
    assert next_o is not None
    return ((found.next_states - log.next_states) ** 2).mean(), ((next_o - log.next_observations) ** 2).mean()


FEW = Training(n_steps=400, learning_rate=1e-2)


@pytest.fixture(scope="module")
def fitted():
    """Each kind of model, fitted to the uncoupled agents."""
    kinds = {
        "logo": LOGO(hidden=32, weights={"pd": 0.0}, training=FEW),
        "direct": LOGO(hidden=32, deduce=False, training=FEW),
    }
    kinds["ensemble"] = JointMLP(hidden=(32,), members=3, elites=2, observations=True, training=FEW)
    return {name: kind.fit(linear_log(), rng=np.random.default_rng(0)) for name, kind in kinds.items()}


@pytest.mark.parametrize("name", ["logo", "direct", "ensemble"])
def test_agents_apart_are_predicted_down_to_their_noise(fitted, name):
    assert errors(fitted[name], linear_log(seed=1)) == pytest.approx((NOISE**2, NOISE**2), rel=0.1)


def test_what_must_be_read_off_a_predicted_observation_bends_it():
    """A reward for where an agent was, which what it sees next no longer tells: Eqs. (2) and (4) make it tell."""
    train, test = (linear_log(seed=k, reward="before") for k in (0, 1))
    whole = LOGO(hidden=32, training=FEW).fit(train, rng=np.random.default_rng(0))
    assert min(errors(whole, test)) > 1.15 * NOISE**2


@pytest.mark.parametrize("sees,excess", [("own", 0.8**2 / 6), ("joint", 0.0)])
def test_who_is_not_told_the_others_actions_pays_their_variance(sees, excess):
    """The mean of two uniform actions has variance 1/6; it enters what is seen next with weight 0.8.

    The second way of the same network hears every agent, and pays nothing.
    """
    kind = LOGO(hidden=32, deduce=False, sees=sees, training=FEW)
    model = kind.fit(linear_log(carried=0.8), rng=np.random.default_rng(0))
    of_states, of_observations = errors(model, linear_log(carried=0.8, seed=1))
    assert of_observations - NOISE**2 == pytest.approx(excess, abs=0.2 * 0.8**2 / 6)
    assert of_states == pytest.approx(NOISE**2, rel=0.1)


def test_a_fit_is_the_same_from_the_same_seed_and_ends_early_if_asked():
    log = linear_log(400)
    short = LOGO(hidden=4, training=Training(n_steps=30))
    first, again, other = (short.fit(log, rng=np.random.default_rng(k)) for k in (0, 0, 1))
    asked = log.states[:5], log.observations[:5], log.actions[:5]
    np.testing.assert_array_equal(first.predict(*asked).next_states, again.predict(*asked).next_states)
    assert (first.predict(*asked).next_states != other.predict(*asked).next_states).any()
    patient = Training(n_steps=3000, patience=2, learning_rate=0.05)
    stopped = LOGO(hidden=4, training=patient).fit(log, rng=np.random.default_rng(0))
    assert 3 <= len(stopped.history) and stopped.history[-1]["step"] < 3000
    assert min(x["held_out"] for x in stopped.history[:-2]) <= min(x["held_out"] for x in stopped.history[-2:])


def test_the_elite_are_those_with_the_lowest_loss_and_a_drawn_answer_is_one_of_theirs(fitted):
    model, log = fitted["ensemble"], linear_log(50, seed=3)
    asked = log.states, log.observations, log.actions
    assert len(model.elite) == 2
    alone = [replace_elite(model, [k]).predict(*asked).next_states for k in model.elite]
    drawn_states = model.draw(*asked, np.random.default_rng(0)).next_states
    matches = np.stack([(drawn_states == one).all(1) for one in alone])
    assert (matches.sum(0) == 1).all() and matches.any(1).all()
    np.testing.assert_allclose(model.predict(*asked).next_states, np.mean(alone, 0), atol=1e-6)


def test_the_loss_on_held_out_rows_decides_who_is_elite(monkeypatch):
    monkeypatch.setattr(joint_dynamics, "held_out_loss", lambda *_: np.array([3.0, 1.0, 9.0, 2.0]))
    kind = JointMLP(hidden=(4,), members=4, elites=2, training=Training(n_steps=2))
    assert kind.fit(linear_log(100), rng=np.random.default_rng(0)).elite.tolist() == [1, 3]


def replace_elite(model, elite):
    import copy

    other = copy.copy(model)
    other.elite = np.array(elite)
    return other


# --- doubt ----------------------------------------------------------------------------------------------


def test_doubt_is_the_distance_of_two_ways_and_none_where_they_agree():
    s = drawn(1, B, 5)
    far = s + torch.tensor([3.0, 0, 0, 4.0, 0])
    assert not doubts(Foreseen(s, drawn(1, B, 1), None, s, None))["paths"].any()
    found = doubts(Foreseen(s, drawn(1, B, 1), None, far, None))
    assert set(found) == {"paths"} and torch.allclose(found["paths"], torch.full((B,), 5 / 5**0.5), atol=1e-6)
    members = torch.stack([s[0], far[0]])
    both = doubts(Foreseen(members, drawn(2, B, 1), None, None, torch.zeros(2, B, 6)))
    assert torch.allclose(both["disagreement"], torch.full((B,), 5 / 2**0.5 / 5**0.5), atol=1e-5)
    assert torch.allclose(both["aleatoric"], torch.ones(B))


def test_an_ensemble_doubts_what_it_has_not_seen(fitted):
    model, log = fitted["ensemble"], linear_log(200, seed=3)
    inside = disagreement(model.predict(log.states, log.observations, log.actions))
    outside = disagreement(model.predict(4 * log.states, 4 * log.observations, log.actions))
    assert np.median(outside) > np.quantile(inside, 0.9)
    assert inside.mean() < halt_level(model, log) < np.median(outside)
    single = fitted["direct"].predict(log.states, log.observations, log.actions)
    with pytest.raises(ValueError, match="disagreement needs two or more members"):
        disagreement(single)


def test_neighbours_are_those_of_a_search_by_hand():
    log, other = linear_log(60), linear_log(5, seed=9)
    parts = [log.states, log.actions.reshape(60, -1), log.next_states]
    asked = [other.states, other.actions.reshape(5, -1), other.next_states]
    square = sum(
        (((x[:, None] - y[None]) / y.std(0)) ** 2).sum(-1) / y.shape[1] for x, y in zip(asked, parts, strict=True)
    )
    for k in (1, 3):
        expected = np.log1p(np.sort(square**0.5, axis=1)[:, k - 1])
        np.testing.assert_allclose(
            Neighbours(log, k).doubt(other.states, other.actions, other.next_states), expected, rtol=1e-5
        )
    assert not Neighbours(log).doubt(log.states, log.actions, log.next_states).any()
    with pytest.raises(ValueError, match="k must be from 1 to the 60 transitions; got 0"):
        Neighbours(log, 0)


def test_weights_fall_with_doubt_and_add_up_to_one():
    doubt, ceiling = np.array([0.0, 0.1, 0.5, 0.7, 3.0]), 0.6
    np.testing.assert_allclose(priorities(doubt, ceiling), [0.6, 0.5, 0.1, 0, 0])
    for tau in (1.0, ceiling / 5):
        w = sampling_weights(doubt, ceiling, tau)
        assert w.sum() == pytest.approx(1) and (np.diff(w) <= 0).all()
        assert w[0] / w[-1] == pytest.approx(np.exp(ceiling / tau))
        np.testing.assert_allclose(
            w, np.exp(priorities(doubt, ceiling) / tau) / np.exp(priorities(doubt, ceiling) / tau).sum()
        )
    np.testing.assert_allclose(sampling_weights(np.full(7, 0.3), ceiling), 1 / 7)
    np.testing.assert_allclose(sampling_weights(doubt, ceiling, weighting="uniform"), 1 / 5)
    np.testing.assert_allclose(sampling_weights(doubt, ceiling, weighting="truncate"), [1 / 3, 1 / 3, 1 / 3, 0, 0])
    np.testing.assert_allclose(sampling_weights(doubt + 9, ceiling, weighting="truncate"), 1 / 5)
    assert effective_share(np.full(8, 1 / 8)) == pytest.approx(1)
    assert effective_share(np.eye(8)[0]) == pytest.approx(1 / 8)


# --- rollouts -------------------------------------------------------------------------------------------


def test_a_rollout_feeds_predictions_back(fitted):
    model, log = fitted["logo"], linear_log(4, seed=5)

    def act(observations, rng):
        return np.tanh(observations)

    found = imagine_team(model, act, log.states, log.observations, 3, rng=np.random.default_rng(0), measure="paths")
    assert found.rewards.shape == (12,) and found.n_stopped == 0 and found.depth.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    np.testing.assert_array_equal(found.states[4:], found.next_states[:8])
    np.testing.assert_array_equal(found.observations[4:], found.next_observations[:8])
    np.testing.assert_array_equal(found.actions, np.tanh(found.observations))
    step = model.predict(found.states[4:8], found.observations[4:8], found.actions[4:8])
    np.testing.assert_allclose(found.next_states[4:8], step.next_states, atol=1e-6)
    np.testing.assert_allclose(found.doubt[4:8], step.uncertainty["paths"], atol=1e-6)
    states, rewards = open_loop(model, log.states, log.observations, found.actions.reshape(3, 4, 3, 1))
    np.testing.assert_allclose(states[2], found.next_states[8:], atol=1e-5)
    np.testing.assert_allclose(rewards[1], found.rewards[4:8], atol=1e-5)


def test_a_rollout_that_is_not_finite_stops_and_is_counted(fitted):
    import copy

    model, log = copy.deepcopy(fitted["logo"]), linear_log(4, seed=5)
    clean = model.predict

    def act(observations, rng):
        return np.zeros_like(observations)

    whole = model.draw

    def draw(states, *rest):
        found = whole(states, *rest)
        found.next_states[0] = np.inf  # the first rollout that is left
        return found

    model.draw = draw
    found = imagine_team(model, act, log.states, log.observations, 3, rng=np.random.default_rng(0))
    assert found.n_stopped == 3 and found.depth.tolist() == [0, 0, 0, 1, 1, 2] and np.isfinite(found.next_states).all()
    assert clean is not None


def test_a_model_that_predicts_no_observations_cannot_be_played_in(fitted):
    log = linear_log(100)
    blind = JointMLP(hidden=(4,), training=Training(n_steps=2)).fit(log, rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="fit it with observations=True"):
        imagine_team(blind, lambda o, _: 0 * o, log.states, log.observations, 1, rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"measure must be one that the model has \(paths\); got 'disagreement'"):
        imagine_team(
            fitted["logo"],
            lambda o, _: 0 * o,
            log.states,
            log.observations,
            1,
            rng=np.random.default_rng(0),
            measure="disagreement",
        )


# --- refusals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make,said",
    [
        (lambda: LOGO(sees="all"), "sees must be one of own, joint; got 'all'"),
        (lambda: LOGO(likelihood="l1"), "likelihood must be one of gaussian, mse; got 'l1'"),
        (lambda: LOGO(hidden=0), "hidden must be an integer >= 1; got 0"),
        (lambda: LOGO(weights={"xx": 1.0}), "weights must be numbers >= 0 of pe, pd, de, dd, rd, ps"),
        (lambda: JointMLP(hidden=()), r"hidden must be widths >= 1; got \(\)"),
        (lambda: JointMLP(members=2, elites=3), "elites must be from 1 to members; got 3 of 2"),
        (lambda: Training(n_steps=0), "n_steps must be an integer >= 1; got 0"),
        (lambda: Training(held_out=1.0), "held_out must lie between 0 and 1; got 1.0"),
        (lambda: Training(learning_rate=-1.0), "learning_rate must be positive and finite"),
        (lambda: sampling_weights(np.ones(3), 1.0, 0.0), "tau must be > 0; got 0.0"),
        (lambda: sampling_weights(np.ones(3), 1.0, weighting="max"), "weighting must be one of softmax"),
    ],
)
def test_arguments_out_of_range_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_a_loss_that_is_not_finite_stops_the_fit():
    wild = LOGO(hidden=4, training=Training(n_steps=200, learning_rate=1e20))
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        wild.fit(linear_log(200), rng=np.random.default_rng(0))


def test_data_of_another_size_are_refused(fitted):
    log = linear_log(40)
    wide = replace(
        log,
        observations=np.repeat(log.observations, 2, -1),
        next_observations=np.repeat(log.next_observations, 2, -1),
        widths=None,
    )
    with pytest.raises(DatasetError, match="observation_size is 2 in the data and 1 in the model"):
        check_like(fitted["logo"], wide)
