"""IPPO and MAPPO on the wireless tasks: that they learn, what the critic sees, what an interaction is, refusals."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedmorl.data.network_logs import Wandering, collect_network_log
from fedmorl.evaluation.networks import merit, play
from fedmorl.learners.network_ppo import NetworkPPO, reward_for, situations
from fedmorl.tasks.cw_selection import CWSelection
from fedmorl.tasks.power_control import PowerControl
from fedmorl.tasks.user_association import UserAssociation
from fedmorl.world_models.network_windows import rewards_for, zscored

QUICK = NetworkPPO(n_interactions=10_000, learning_rate=2e-3, gamma=0.25)
TINY = NetworkPPO(n_interactions=250, n_epochs=5, rollout=3, passes=1, hidden=8)


def rng(seed=0):
    return np.random.default_rng(seed)


# --- learning -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ippo", "mappo"])
def test_links_that_play_learn_to_spare_each_other_also_where_there_are_more_of_them(kind):
    """By four standard errors of the paired difference on unseen networks, of the size that was played and twice it."""
    before, *_, after = replace(QUICK, kind=kind).stages(PowerControl(20, 5), rng=rng())
    for n_agents in (5, 10):
        low, high = (merit(play(PowerControl(60, n_agents), policy, 15, seed=1)) for policy in (before, after))
        gain = high - low
        assert gain.mean() > 4 * gain.std(ddof=1) / 60**0.5


def test_a_shared_channel_is_filled_for_the_mean_of_rewards_and_emptied_for_the_own():
    """Throughput by 0.05 at least above and below that of the policy that knows nothing; .73, .17 and .65 were seen."""

    def throughput(policy):
        return merit(play(CWSelection(20, 10, "rounds"), policy, 15, seed=1)).mean()

    task = CWSelection(20, 10, "rounds")
    before, *_, team = replace(QUICK, n_interactions=20_000).stages(task, rng=rng())
    selfish = replace(QUICK, n_interactions=20_000, returns="own").fit(task, rng=rng())
    assert throughput(selfish) < throughput(before) - 0.05
    assert throughput(team) > throughput(before) + 0.05


def test_the_seed_decides_the_policy():
    runs = [list(TINY.stages(PowerControl(4, 3), rng=rng(seed))) for seed in (1, 1, 2)]
    for k in (0, -1):  # before anything is learned, and after
        first, again, other = (run[k].actor.state_dict() for run in runs)
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert not any(torch.equal(first[name], other[name]) for name in first)


def test_an_interaction_is_one_agent_in_one_epoch_and_networks_are_drawn_anew_after_each_play():
    class Counted(PowerControl):
        n_steps = n_resets = 0

        def reset(self, rng):
            self.n_resets += 1
            return super().reset(rng)

        def step(self, actions):
            self.n_steps += 1
            return super().step(actions)

    task = Counted(4, 3)
    found = [policy.interactions for policy in TINY.stages(task, rng=rng())]
    assert found == [0, 36, 60, 96, 120, 156, 180, 216, 240]  # 12 an epoch; plays of 5 epochs learn after 3 and 2
    assert (task.n_resets, task.n_steps) == (4, 20 + 4)  # a reset plays an epoch that nobody chose


# --- what is seen, and what is wanted ---------------------------------------------------------------------


def test_the_critic_of_mappo_sees_what_the_others_see_and_that_of_ippo_does_not():
    seen = torch.randn((2, 5, 3), generator=torch.Generator().manual_seed(0))
    changed = seen.clone()
    changed[:, 4] += 1
    mine = {kind: [situations(x, kind)[:, 0] for x in (seen, changed)] for kind in ("ippo", "mappo")}
    assert torch.equal(*mine["ippo"])
    before, after = mine["mappo"]
    assert torch.equal(before[:, :3], after[:, :3])
    torch.testing.assert_close(after[:, 3:], before[:, 3:] + 1 / 5)


@pytest.mark.parametrize("returns", ["own", "mean_field", "own_minus_externality"])
def test_players_are_rewarded_as_logs_of_the_same_epochs_are(returns):
    logged = rewards_for(collect_network_log(UserAssociation(3, 4), 8, rng=rng()), returns)
    task, (rng_task, rng_act) = UserAssociation(3, 4), rng().spawn(2)
    task.reset(rng_task)
    behaviour = Wandering(task, rng_act)
    found = [reward_for(task, task.step(behaviour.act(None))[1], returns) for _ in range(8)]
    np.testing.assert_allclose(zscored(np.stack(found, 1)), zscored(logged), atol=1e-4)  # of float32


def test_a_greedy_policy_takes_the_likeliest_level_and_any_other_draws():
    policy, task = TINY.fit(PowerControl(4, 3), rng=rng()), PowerControl(50, 6)
    seen = task.reset(rng(1))
    likeliest = policy.actor(torch.tensor(seen)).argmax(-1).numpy()
    found = {}
    for policy.greedy in (True, False):
        policy.start(task, rng(2))
        found[policy.greedy] = policy.act(seen), policy.act(seen)
    assert (found[True][0] == likeliest).all() and (found[True][1] == likeliest).all()
    assert (found[False][0] != found[False][1]).mean() > 0.5


# --- refusals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, words",
    [
        ({"kind": "qmix"}, "kind must be one of ippo, mappo; got 'qmix'"),
        ({"returns": "all"}, "returns must be one of own, .*, reward, or None; got 'all'"),
        ({"n_interactions": 0}, "n_interactions must be an integer >= 1; got 0"),
        ({"rollout": 2.5}, "rollout must be an integer >= 1; got 2.5"),
        ({"learning_rate": 0}, "learning_rate must be > 0; got 0"),
        ({"clip": float("nan")}, "clip must be > 0; got nan"),
        ({"gamma": 1.1}, "gamma must be from 0 to 1; got 1.1"),
        ({"entropy": -0.1}, "entropy must be >= 0; got -0.1"),
    ],
)
def test_a_number_out_of_its_range_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        replace(TINY, **change)


def test_what_cannot_be_played_is_refused():
    with pytest.raises(ValueError, match="n_interactions is 250 and one epoch of 100 networks of 3 agents takes 300"):
        TINY.fit(PowerControl(100, 3), rng=rng())
    with pytest.raises(ValueError, match="cw cannot tell what an agent costs the others; take mean_field or own"):
        replace(TINY, returns="own_minus_externality").fit(CWSelection(2, 3, "rounds"), rng=rng())
    policy = TINY.fit(PowerControl(4, 3), rng=rng())
    with pytest.raises(ValueError, match="the policy reads 9 numbers and chooses among 10 levels; ua has 13 and 4"):
        policy.start(UserAssociation(2, 3), rng())
