"""Fine-tuning of MADS4 by playing: advantages by hand, probabilities that play gave, what moves and what must not."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedmorl.evaluation.team import TeamStep
from fedmorl.learners import mads4
from fedmorl.learners.actor_critic import bellman_targets, clipped_surrogate, generalised_advantages
from fedmorl.learners.mads4 import MADS4, MADS4Policy
from fedmorl.learners.mads4_actor import MADS4Actor
from fedmorl.learners.mappo import FROZEN, MAPPO
from fedmorl.learners.rollouts import collect, sequence_log_probabilities, step_log_probabilities

N_ACTIONS = 3


class Echo:
    """Everybody sees a random symbol of 3 and is to say it; the reward is the share that does.

    Every second episode terminates after `short` steps, the others are truncated after 6. The global state is the
    step; after an episode's end the rewards are not a number, as nobody is to look at them.
    """

    n_agents, n_actions, observation_size, time_limit = 2, N_ACTIONS, N_ACTIONS, 6

    def __init__(self, short=4, wrong=None):
        self.short, self.wrong = short, wrong

    def reset(self, seeds):
        self.t, self.shown = 0, np.array([np.random.default_rng(s).integers(0, 3, 7) for s in seeds])
        self.odd = np.arange(len(seeds)) % 2 == 1
        return self.seen()

    def seen(self):
        return np.repeat(np.eye(N_ACTIONS, dtype=np.float32)[self.shown[:, self.t]][:, None], 2, 1)

    def states(self):
        return np.full((len(self.shown), 1), self.t)

    def step(self, actions):
        said = (actions == self.shown[:, self.t, None]).mean(1)
        rewards = np.where(self.odd & (self.t >= self.short), np.nan, said)
        if self.wrong == self.t:
            rewards[0] = np.inf
        self.t += 1
        ends = np.full(len(said), self.t == 6)
        return TeamStep(self.seen(), rewards, self.odd & (self.t == self.short), ends, {"said": said})


def untrained(seed=0, length=6, kind="nplr", **learner):
    config = MADS4(H=16, N=4, n_blocks=2, kind=kind, **{"norm": "batch"} | learner)
    generator = torch.Generator().manual_seed(seed)
    actor = MADS4Actor(
        N_ACTIONS, 2, N_ACTIONS, H=16, N=4, n_blocks=2, kind=kind, length=length, generator=generator,
        share=config.share, message=config.message, message_action=config.message_action, norm=config.norm,
    )  # fmt: skip
    for name, statistic in actor.named_buffers():
        if "norm" in name:
            statistic.copy_(0.5 + torch.rand(statistic.shape, generator=generator))  # each turn its own
    return MADS4Policy(actor.eval(), config, scale=2.0, target=5.0)


def weights(policy):
    return {name: value.clone() for name, value in policy.actor.state_dict().items()}


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


QUICK = MAPPO(
    iterations=2, warmup=0, episodes=4, epochs=2, minibatches=2, critic_minibatches=2, actor_rate=1e-3, hidden=16
)


# --- equations ----------------------------------------------------------------------------------------------


def test_advantages_bootstrap_where_an_episode_is_truncated_and_not_where_it_terminates():
    rewards, values = torch.tensor([[1.0, 2.0]] * 3), torch.tensor([[1.0, 2.0, 4.0]] * 3)
    terminated = torch.tensor([[False, True], [False, False], [True, False]])
    truncated = torch.tensor([[False, False], [False, True], [False, False]])
    found = generalised_advantages(rewards, values, terminated, truncated, gamma=0.5, lam=0.5)
    by_hand = [
        [1 + 0.5 * 2 - 1 + 0.25 * 0, 2 - 2],  # terminated: nothing to come behind step 1
        [1 + 0.5 * 2 - 1 + 0.25 * 2, 2 + 0.5 * 4 - 2],  # truncated: V = 4 to come
        [1 - 1],  # terminated at once: what stands behind it is padding
    ]
    for row, expected in zip(found, by_hand, strict=True):
        assert row[: len(expected)].tolist() == expected


def test_the_critics_target_counts_on_nothing_behind_a_terminated_step():
    ends = torch.tensor([True, False])
    assert bellman_targets(torch.ones(2), torch.tensor([3.0, 3.0]), ends, 0.5).tolist() == [1.0, 2.5]


@pytest.mark.parametrize("kind, expected", [("min", [1.2, 0.5, -1.5, -0.8]), ("clip_only", [1.2, 0.8, -1.2, -0.8])])
def test_the_surrogate_is_ppos_or_what_algorithm_2_prints(kind, expected):
    ratio, advantages = torch.tensor([1.5, 0.5, 1.5, 0.5]), torch.tensor([1.0, 1.0, -1.0, -1.0])
    assert clipped_surrogate(ratio, advantages, 0.2, kind).tolist() == pytest.approx(expected)


# --- what is recorded ---------------------------------------------------------------------------------------


def played(policy, monkeypatch, episodes=4, task=None):
    """A rollout, and log pi of every action as play had it: (T, n, B, A)."""
    found, choose = [], mads4.choose

    def kept(logits, act, rng):
        found.append(torch.from_numpy(logits).log_softmax(-1))
        return choose(logits, act, rng)

    monkeypatch.setattr(mads4, "choose", kept)
    rollout = collect(task or Echo(), policy, range(episodes), np.random.default_rng(0))
    return rollout, torch.stack(found).unflatten(0, (-1, 2))


VARIANTS = [
    {},
    {"message": "state"},
    {"share": "both", "message_action": True},
    {"share": "none"},
    {"delayed": True},
    {"order": "shuffle"},
    {"kind": "s4d-lin"},
    {"length": 0},
    {"norm": "layer"},
]


@pytest.mark.parametrize("route", [step_log_probabilities, sequence_log_probabilities])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_going_through_the_steps_again_gives_the_probabilities_of_play(variant, route, monkeypatch):
    policy = untrained(**variant)
    rollout, expected = played(policy, monkeypatch)
    b, t = rollout.mask.nonzero(as_tuple=True)
    with torch.no_grad():
        found = route(policy, rollout, b, t)  # (R, n, A)
    assert len(b) == 2 * 6 + 2 * 4
    torch.testing.assert_close(found.double(), expected[t, :, b], atol=1e-5, rtol=0)  # float32


@pytest.mark.parametrize("gradient, earlier", [("tuple", False), ("conv", True)])
def test_a_tuples_gradient_stays_in_its_step_and_the_convolutions_reaches_the_steps_before(gradient, earlier):
    policy = untrained()
    rollout = collect(Echo(), policy, range(2), np.random.default_rng(0))
    seen = rollout.observations.requires_grad_()
    route = {"tuple": step_log_probabilities, "conv": sequence_log_probabilities}[gradient]
    route(policy, rollout, torch.tensor([0]), torch.tensor([5]))[0, 1, 0].backward()
    assert seen.grad[0, 5, 1].abs().max() > 0
    assert bool(seen.grad[0, :5].abs().max() > 0) is earlier
    assert bool(seen.grad[0, 5, 0].abs().max() > 0) is earlier  # the first agent's message


def test_the_critic_is_told_the_state_and_what_each_agent_told_a_step_ago():
    policy = untrained(order="shuffle")
    rollout = collect(Echo(), policy, range(8), np.random.default_rng(0))
    state, told = rollout.situations[..., 0], rollout.situations[..., 1:].unflatten(-1, (2, -1))
    assert (state == torch.arange(7)).all() and not told[:, 0].any()
    first = rollout.order[:, 0]
    assert set(first.tolist()) == {0, 1}
    for b, agent in enumerate(first):
        assert torch.equal(told[b, 1:, agent], rollout.heard[b, :, 1])  # the second hears what the first told


def test_what_comes_behind_an_episodes_end_is_not_counted():
    rollout = collect(Echo(), untrained(), range(4), np.random.default_rng(0))
    assert rollout.mask.sum(1).tolist() == [6, 4, 6, 4] and rollout.n_steps == 20
    np.testing.assert_array_equal(rollout.returns, rollout.sums["said"])
    assert rollout.terminated.sum(1).tolist() == [0, 1, 0, 1] and rollout.truncated.sum(1).tolist() == [1, 0, 1, 0]


def test_only_available_actions_are_taken_and_the_others_have_no_probability(monkeypatch):
    class Silent(Echo):
        def available(self):
            return np.tile(np.array([True, False, True]), (len(self.shown), 2, 1))

    rollout, expected = played(policy := untrained(), monkeypatch, task=Silent())
    assert set(rollout.actions[rollout.mask].unique().tolist()) == {0, 2}
    b, t = rollout.mask.nonzero(as_tuple=True)
    for route in (step_log_probabilities, sequence_log_probabilities):
        found = route(policy, rollout, b, t).detach()
        assert not found[..., 1].exp().any()
        torch.testing.assert_close(found[..., ::2].double(), expected[t, :, b][..., ::2], atol=1e-5, rtol=0)
    _, history = QUICK.fit(policy, Silent(), rng=np.random.default_rng(0))
    assert 0 < history[0]["entropy"] < np.log(2) + 1e-6


# --- learning -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", ["tuple", "conv"])
def test_the_ratio_is_one_and_the_divergence_zero_until_the_first_update(gradient):
    once = replace(QUICK, iterations=1, epochs=1, minibatches=1, gradient=gradient, actor_rate=0.01, clip=1e-4)
    _, (row,) = once.fit(untrained(), Echo(), rng=np.random.default_rng(0))
    assert abs(row["kl"]) < 1e-5 and row["clip_share"] == 0  # so every ratio is within 1e-4 of 1
    _, (row,) = replace(once, epochs=2).fit(untrained(), Echo(), rng=np.random.default_rng(0))
    assert row["kl"] > 1e-4 and row["clip_share"] > 0.5


@pytest.mark.parametrize("gradient", ["tuple", "conv"])
def test_A_and_dt_stay_bit_for_bit_and_B_C_D_move(gradient):
    policy = untrained()
    before = weights(policy)
    tuned, _ = replace(QUICK, gradient=gradient).fit(policy, Echo(), rng=np.random.default_rng(0))
    moved = {name.rpartition(".")[2] for name in changed(before, weights(tuned)) if ".s4." in name}
    assert moved == {"B", "C", "D"}
    free, _ = replace(QUICK, gradient=gradient, freeze_A=False).fit(policy, Echo(), rng=np.random.default_rng(0))
    assert {name.rpartition(".")[2] for name in changed(before, weights(free)) if ".s4." in name} >= set(FROZEN)
    statistics = {name for name in before if name.endswith(("norm.mean", "norm.variance"))}
    assert len(statistics) == 4
    for one in (tuned, free):
        assert not statistics & changed(before, weights(one))
        assert all(parameter.requires_grad for parameter in one.actor.parameters())


def test_the_warm_up_leaves_the_actor_bit_for_bit_and_teaches_the_critic():
    class Paid(Echo):
        def step(self, actions):
            return super().step(actions)._replace(rewards=np.ones(len(actions)))

    policy = untrained()
    before = weights(policy)
    learner = replace(QUICK, iterations=8, warmup=8, critic_rate=5e-3, epochs=20, gamma=0.5)
    tuned, history = learner.fit(policy, Paid(short=7), rng=np.random.default_rng(0))
    assert not changed(before, weights(tuned))
    assert all(row["frozen"] and row["kl"] == 0 for row in history)
    assert history[-1]["value_loss"] < 0.1 * history[0]["value_loss"]  # V = 1 / (1 - gamma) = 2 everywhere


def test_the_policy_handed_in_is_left_as_it_is():
    policy = untrained()
    before = weights(policy)
    tuned, _ = QUICK.fit(policy, Echo(), rng=np.random.default_rng(0))
    assert not changed(before, weights(policy)) and policy.target == 5.0
    assert all(parameter.requires_grad and parameter.grad is None for parameter in policy.actor.parameters())
    assert changed(before, weights(tuned)) and int(tuned.actor.state_dict()["blocks.blocks.0.s4.length"]) == 6


@pytest.mark.parametrize("gradient, surrogate", [("tuple", "min"), ("conv", "min")])
def test_a_team_learns_from_nothing_to_say_what_it_sees(gradient, surrogate):
    learner = replace(
        QUICK, iterations=12, warmup=1, episodes=16, epochs=4, actor_rate=5e-3, critic_rate=5e-3, gamma=0.5,
        gradient=gradient, surrogate=surrogate,
    )  # fmt: skip
    tuned, history = learner.fit(untrained(1), Echo(), rng=np.random.default_rng(1))
    longest = 5.0  # mean of 6 and 4 steps
    assert history[0]["return_mean"] < 0.5 * longest  # chance is a third
    assert history[-1]["return_mean"] > 0.8 * longest
    rollout = collect(Echo(), tuned, range(100, 116), np.random.default_rng(1))  # the policy returned is the tuned one
    assert rollout.returns.mean() > 0.8 * longest


def test_the_return_asked_for_is_the_best_so_far_and_a_tenth():
    tuned, history = replace(QUICK, iterations=5, episodes=1).fit(untrained(), Echo(), rng=np.random.default_rng(0))
    best = np.maximum.accumulate([row["return_mean"] for row in history])
    assert history[0]["target"] == 5.0  # the policy's own
    np.testing.assert_allclose([row["target"] for row in history[1:]] + [tuned.target], 1.1 * best, rtol=1e-6)
    assert [row["env_steps"] for row in history] == [6, 12, 18, 24, 30]


def test_the_same_seed_tunes_the_same_weights():
    one, two = (QUICK.fit(untrained(), Echo(), rng=np.random.default_rng(3)) for _ in range(2))
    assert not changed(weights(one[0]), weights(two[0])) and one[1] == two[1]


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"surrogate": "ppo"}, "surrogate must be one of min, clip_only"),
        ({"gradient": "bptt"}, "gradient must be one of tuple, conv"),
        ({"value_target": "mc"}, "value_target must be one of"),
        ({"iterations": 0, "warmup": 0}, "iterations must be >= 1"),
        ({"minibatches": 0}, "minibatches must be >= 1"),
        ({"warmup": 101}, "warmup must be from 0 to iterations, 100; got 101"),
        ({"actor_rate": 0.0}, "actor_rate must be > 0"),
        ({"critic_rate": float("nan")}, "critic_rate must be > 0"),
        ({"clip": -0.1}, "clip must be from 0 to 1"),
        ({"gamma": 1.5}, "gamma must be from 0 to 1"),
        ({"gradient": "conv", "minibatches": 9}, "minibatches must be <= episodes, 8"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        MAPPO(**wrong)


def test_rewards_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="rewards must be finite; the task gave inf at step 2 of episode 0"):
        QUICK.fit(untrained(), Echo(wrong=2), rng=np.random.default_rng(0))


def test_a_task_for_another_team_is_refused():
    task = Echo()
    task.n_actions = 4
    with pytest.raises(ValueError, match="n_actions of the task is 4 and of the policy 3"):
        QUICK.fit(untrained(), task, rng=np.random.default_rng(0))


def test_an_episode_without_an_end_is_refused():
    task = Echo()
    task.time_limit = 5
    with pytest.raises(ValueError, match="every episode must end within the task's time_limit, 5 steps"):
        QUICK.fit(untrained(), task, rng=np.random.default_rng(0))
