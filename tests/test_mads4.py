"""MADS4: two routes to every probability, what a message carries, whom a gradient reaches, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_trajectories import team
from torch.nn import functional

from fedmorl.evaluation.team import TeamStep, play_team
from fedmorl.learners import mads4
from fedmorl.learners.mads4 import MADS4, MADS4Policy, to_batch

SMALL = MADS4(H=8, N=8, n_blocks=2, epochs=2, batch_size=2)
VARIANTS = [
    {},
    {"message": "state"},
    {"share": "logits"},
    {"share": "both", "message_action": True},
    {"share": "none"},
    {"delayed": True},
    {"order": "shuffle"},
    {"norm": "layer", "residual": False},
    {"kind": "s4d-lin"},
    {"context_steps": 3},
]


def symbols(n_episodes=24, n_steps=20, n_agents=3, seed=0):
    """Agents see random symbols of 4; each must say the symbol that the agent before it sees at the same step."""
    rng = np.random.default_rng(seed)
    log = team(n_episodes, n_steps, n_agents, first_seed=seed)
    shown = rng.integers(0, 4, (n_episodes, n_steps + 1, n_agents))
    said = np.concatenate([np.zeros_like(shown[:, :-1, :1]), shown[:, :-1, :-1]], 2)
    return replace(log, observations=np.eye(4, dtype=np.float32)[shown], actions=said, n_actions=4)


def played_nats(policy, log, monkeypatch):
    """-log pi of the logged actions, by playing them step by step: (E, T, n)."""
    nats, position = np.zeros(log.actions.shape), [0, 0]

    def logged(logits, act, rng):
        t, k = position
        actions = log.actions[:, t, k].astype(np.int64)
        nats[:, t, k] = functional.cross_entropy(
            torch.from_numpy(logits), torch.from_numpy(actions), reduction="none"
        ).numpy()
        position[1] += 1
        return actions

    monkeypatch.setattr(mads4, "choose", logged)
    rng = np.random.default_rng(0)
    memory = policy.start(len(log), rng)
    memory = memory._replace(order=np.tile(np.arange(log.n_agents), (len(log), 1)))
    for t in range(log.actions.shape[1]):
        position[:] = [t, 0]
        to_come = torch.from_numpy(log.returns_to_go[:, t, None] / np.float32(policy.scale))
        _, memory = policy.act(log.observations[:, t], memory._replace(returns_to_go=to_come), rng)
    return nats


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_step_by_step_gives_each_logged_action_the_probability_that_whole_trajectories_give_it(variant, monkeypatch):
    log = team(6, 12, 3)
    policy = replace(SMALL, **variant).fit(log, rng=np.random.default_rng(0))
    whole = policy.negative_log_likelihood(log)
    np.testing.assert_allclose(played_nats(policy, log, monkeypatch), whole, atol=2e-5)  # float32, 12 steps


def test_padding_changes_no_probability():
    log = team(5, 12, 2, lengths=[12, 4, 7, 12, 1])
    policy = SMALL.fit(log, rng=np.random.default_rng(0))
    alone = policy.negative_log_likelihood(log.take([1]))
    np.testing.assert_allclose(policy.negative_log_likelihood(log)[1], alone[0], atol=1e-6)
    assert not alone[0, 4:].any()


def test_a_batch_of_one_played_step_is_trained_on():
    policy = SMALL.fit(team(1, 12, 2, lengths=[1]), rng=np.random.default_rng(0))
    assert np.isfinite(policy.history).all()


def test_an_agent_hears_its_predecessor_and_an_independent_one_does_not():
    log = symbols(40, 30, 2)
    learner = replace(SMALL, H=16, N=4, epochs=10, batch_size=4, learning_rate=1e-2, dropout=0.0)
    heard, alone, late = (
        replace(learner, **kw).fit(log, rng=np.random.default_rng(0)).negative_log_likelihood(log)[..., 1].mean()
        for kw in ({}, {"share": "none"}, {"delayed": True})
    )
    chance = np.log(4)  # the symbols are independent, so nothing else helps
    assert heard < 0.3 * chance
    assert alone > 0.9 * chance and late > 0.9 * chance


def gradient_to_first(policy, log):
    """Norm of the last agent's loss gradient at what the first agent sees."""
    batch = to_batch(log, policy.scale)
    seen = batch.observations.requires_grad_()
    order = torch.arange(log.n_agents).expand(len(log), -1)
    *_, (logits, actions) = policy._in_turn(batch._replace(observations=seen), order, None)
    functional.cross_entropy(logits.movedim(-1, 1), actions).backward()
    return float(seen.grad[:, :, 0].abs().max())


@pytest.mark.parametrize(
    "variant, reaches", [({}, True), ({"share": "none"}, False), ({"detach_message": True}, False)], ids=str
)
def test_the_gradient_of_the_last_agent_reaches_the_first_only_through_messages(variant, reaches):
    log = team(3, 8, 3)
    policy = replace(SMALL, **variant, epochs=1).fit(log, rng=np.random.default_rng(0))
    assert (gradient_to_first(policy, log) > 0) is reaches


def test_the_same_seed_trains_the_same_weights():
    one, two, other = (
        SMALL.fit(team(), rng=np.random.default_rng(s)).negative_log_likelihood(team()) for s in (1, 1, 2)
    )
    assert np.array_equal(one, two) and not np.array_equal(one, other)


class Echo:
    """Reward 1 for each agent that says the symbol it sees; two of the four steps are played."""

    n_agents, n_actions, observation_size, time_limit = 2, 4, 4, 4

    def reset(self, seeds):
        self.t, self.shown = 0, np.random.default_rng(list(seeds)).integers(0, 4, (5, len(seeds), 2))
        return np.eye(4, dtype=np.float32)[self.shown[0]]

    def step(self, actions):
        right = (actions == self.shown[self.t]).sum(1)
        self.t += 1
        ended = np.full(len(right), self.t == 2)
        seen = np.eye(4, dtype=np.float32)[self.shown[self.t]]
        return TeamStep(seen, right.astype(float), ended, np.zeros_like(ended), {"right": right})


def test_the_return_asked_for_falls_by_what_was_received_and_play_stops_at_the_end():
    policy = SMALL.fit(
        replace(symbols(n_agents=2), rewards=np.ones((24, 20), np.float32)), rng=np.random.default_rng(0)
    )
    assert policy.target == pytest.approx(1.1 * 20) and policy.scale == 20
    memory = policy.start(3, np.random.default_rng(0))
    after = policy.rewarded(memory, np.array([0.0, 5.0, 22.0]))
    np.testing.assert_allclose(after.returns_to_go[:, 0] * 20, [22.0, 17.0, 0.0], atol=1e-5)
    played = play_team(Echo(), policy, [1, 2, 3], np.random.default_rng(0))
    assert played["lengths"].tolist() == [2, 2, 2]
    np.testing.assert_array_equal(played["returns"], played["right"])


def test_shuffled_teams_act_in_orders_of_their_own_and_every_agent_acts():
    policy = replace(SMALL, order="shuffle").fit(team(n_agents=3), rng=np.random.default_rng(0))
    memory = policy.start(50, np.random.default_rng(0))
    assert (np.sort(memory.order, 1) == np.arange(3)).all() and len(np.unique(memory.order, axis=0)) == 6


def test_a_saved_policy_comes_back_and_one_of_another_size_is_refused(tmp_path):
    log = team()
    policy = SMALL.fit(log, rng=np.random.default_rng(0))
    policy.save(tmp_path / "team.safetensors", {"seed": 0})
    back = MADS4Policy.load(tmp_path / "team.safetensors")
    assert np.array_equal(back.negative_log_likelihood(log), policy.negative_log_likelihood(log))
    assert (back.target, back.scale, back.config) == (policy.target, policy.scale, policy.config)
    other = replace(SMALL, H=16).actor(log, torch.Generator())
    with pytest.raises(ValueError, match=r"another size: .* is .* there and .* here"):
        mads4.load_into_module(tmp_path / "team.safetensors", other)
    (tmp_path / "text").write_text("no network")
    with pytest.raises(ValueError, match="does not hold a network"):
        MADS4Policy.load(tmp_path / "text")


@pytest.mark.parametrize(
    "setting, words",
    [
        ({"context_steps": 7}, "context_steps must be from 1 to 6, the longest trajectory"),
        ({"order": "sorted"}, "order must be one of fixed, shuffle"),
        ({"act": "best"}, "act must be one of sample, argmax"),
        ({"share": "all"}, "share must be one of latent, logits, both, none"),
        ({"epochs": 0}, "epochs must be >= 1"),
        ({"kind": "s5"}, "kind must be one of"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(setting, words):
    with pytest.raises(ValueError, match=words):
        replace(SMALL, **setting).fit(team(), rng=np.random.default_rng(0))


def test_a_target_that_is_not_finite_is_refused():
    policy = SMALL.fit(team(), rng=np.random.default_rng(0))
    policy.target = float("nan")
    with pytest.raises(ValueError, match="target must be a finite return; got nan"):
        policy.start(1, np.random.default_rng(0))


def test_the_printed_size_has_about_the_parameters_that_the_paper_states():
    log = team()
    actor = MADS4().actor(replace(log, observations=np.zeros((4, 7, 2, 71), np.float32)), torch.Generator())
    assert sum(p.numel() for p in actor.parameters()) == 212_933  # the paper: about 200 k, 12 % of 1.8 M
