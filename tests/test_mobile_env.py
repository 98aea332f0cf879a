"""User association in mobile-env: links, ranks, rates and utilities are the package's own; references by definition."""

from importlib import metadata

import numpy as np
import pytest

from fedmorl.evaluation.networks import Always, Informed, merit, play
from fedmorl.tasks.mobile_env_association import NONE, MobileEnvAssociation
from fedmorl.tasks.user_association import UserAssociation

SCENARIOS = ("small", "medium")


@pytest.fixture(scope="module")
def package():
    pytest.importorskip("mobile_env", reason="needs the `mobile` extra")
    from mobile_env.handlers.multi_agent import MComMAHandler
    from mobile_env.scenarios.medium import MComMedium
    from mobile_env.scenarios.small import MComSmall

    kinds = {"small": MComSmall, "medium": MComMedium}
    return lambda scenario, seed: kinds[scenario](config={"seed": seed, "handler": MComMAHandler})


@pytest.fixture(params=SCENARIOS)
def task(package, request):
    """Three networks, four epochs after reset."""
    task = MobileEnvAssociation(3, request.param)
    task.reset(np.random.default_rng(4))
    for ranks in ranks_drawn(task, 4):
        task.step(ranks)
    return task


def ranks_drawn(task, n, seed=9):
    return np.random.default_rng(seed).integers(task.n_levels, size=(n, task.n_networks, task.n_agents))


def links(env):
    """For each user, the stations that the package has it connected to."""
    return [[number for number, bs in env.stations.items() if ue in env.connections[bs]] for ue in env.active]


def strongest_first(env, ue):
    snrs = [env.channel.snr(bs, ue) for bs in env.stations.values()]
    return sorted(env.stations, key=lambda number: -snrs[number])


def rate_of(env, ue, number):
    """The package's rate of a user alone on a station; 0 out of reach."""
    bs = env.stations[number]
    return env.channel.datarate(bs, ue, env.channel.snr(bs, ue))


def total_utility(env, stations):
    """By the package's utility, if each user were on the station of its number; None: no link."""
    total = 0.0
    for ue, number in zip(env.active, stations, strict=True):
        rate = 0.0 if number is None else rate_of(env, ue, number) / stations.count(number)
        total += env.utility.scale(env.utility.utility(rate))
    return total


# --- without the extra ----------------------------------------------------------------------------------


def test_without_the_package_one_sentence_says_how_to_get_it(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'fedmorl\[mobile\]'$"):
        MobileEnvAssociation(1)


# --- links and rates ------------------------------------------------------------------------------------


def test_a_user_is_on_the_station_it_asked_for_or_on_none_where_that_is_out_of_reach(task):
    refused = 0
    for ranks in ranks_drawn(task, 12):
        wanted = []
        for env, of_env in zip(task.envs, ranks, strict=True):
            asked = [strongest_first(env, ue)[rank] for ue, rank in zip(env.active, of_env, strict=True)]
            able = [
                env.check_connectivity(env.stations[number], ue) for ue, number in zip(env.active, asked, strict=True)
            ]
            wanted.append([[number] if may else [] for number, may in zip(asked, able, strict=True)])
            refused += able.count(False)
        task.step(ranks)
        assert [links(env) for env in task.envs] == wanted
        assert task._attached.tolist() == [[one[0] if one else NONE for one in of_env] for of_env in wanted]
    assert refused > 20, "else the rule was hardly tried"


def test_a_link_that_no_longer_reaches_is_gone_and_its_user_has_the_worst_utility(task):
    task.step(np.zeros((3, task.n_agents), int))
    assert (task._attached[:, 0] != NONE).any()
    for env in task.envs:
        env.active[0].x = env.active[0].y = 1_000.0
    task._look()
    _, utility = task.step(np.zeros((3, task.n_agents), int))
    assert [links(env)[0] for env in task.envs] == [[], [], []]
    assert (task._attached[:, 0] == NONE).all() and (utility[:, 0] == -1).all()
    assert (task.tally()["connected"][0] < 1).all() and (task.tally()["handovers"][0] < 1).all()


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_first_epoch_is_a_step_of_the_package(package, scenario):
    """From no links one toggle each will do, so that the package can be told in its own words."""
    task = MobileEnvAssociation(2, scenario)
    observation = task.reset(np.random.default_rng(6))
    rng = np.random.default_rng(6)
    seeds = rng.integers(2**31, size=2)
    ranks = rng.integers(task.n_levels, size=(2, task.n_agents))
    for k, seed in enumerate(seeds):
        env = package(scenario, int(seed))
        env.reset()
        env.step({ue.ue_id: strongest_first(env, ue)[rank] + 1 for ue, rank in zip(env.active, ranks[k], strict=True)})
        assert task._rate[k].tolist() == [env.macro[ue] for ue in env.active]
        assert task._utility[k].tolist() == [env.utilities[ue] for ue in env.active]
        assert task._utility[k].mean() == pytest.approx(np.mean([*env.utilities.values()]))
        assert_sees(observation[k], env)


def assert_sees(observation, env):
    """The package's own observation holds the same SNRs and loads, each divided by a number of its own."""
    m, n = env.NUM_STATIONS, env.NUM_USERS
    seen = min(m, 4)
    for row, (ue, features) in zip(observation, zip(env.active, env.features().values(), strict=True), strict=True):
        order = np.argsort(-features["snrs"], kind="stable")[:seen]
        relative_db = np.clip(15 * row[:seen], -30, 30) - 15 * row[0]
        if abs(row[:seen]).max() < 2:
            np.testing.assert_allclose(relative_db, 10 * np.log10(features["snrs"][order]), atol=1e-3)
        margin_db = 10 * np.log10(env.channel.snr(env.stations[order[0]], ue) / ue.snr_threshold)
        assert row[0] == pytest.approx(np.clip(margin_db / 15, -2, 2), abs=1e-6)
        load = (row[4 : 4 + seen] + 1) * 2 * n / m
        heard = [env.check_connectivity(env.stations[k], ue) * len(env.connections[env.stations[k]]) for k in order]
        np.testing.assert_allclose(load, heard, atol=1e-4)
        share = features["stations_connected"][order]
        np.testing.assert_allclose(load * max(share.sum(), 1e-9), share * max(load.sum(), 1e-9), atol=1e-4)


def test_observations_are_those_of_our_own_task(task):
    ranks = ranks_drawn(task, 1, seed=2)[0]
    asked = [
        [strongest_first(env, ue)[rank] for ue, rank in zip(env.active, of_env, strict=True)]
        for env, of_env in zip(task.envs, ranks, strict=True)
    ]
    observation, reward = task.step(ranks)
    ours = UserAssociation(3, task.n_agents, task.n_stations)
    assert observation.shape == ours.reset(np.random.default_rng(0)).shape and observation.dtype == np.float32
    assert ours.n_levels == task.n_levels and task.name == ours.name
    assert (np.diff(observation[..., :4]) <= 0).all(), "the strongest station comes first"
    if task.n_stations == 3:
        assert (observation[..., 3] == -2).all() and (observation[..., 7] == -1).all()
    for k, env in enumerate(task.envs):
        now = [strongest_first(env, ue).index(number) for ue, number in zip(env.active, asked[k], strict=True)]
        np.testing.assert_array_equal(observation[k, :, 8:12], [[1 if r == a else -1 for a in range(4)] for r in now])
        rates = np.array([env.macro[ue] for ue in env.active])
        np.testing.assert_allclose(observation[k, :, 12], np.log(rates + 0.05) / 2, rtol=1e-6)
        np.testing.assert_allclose(reward[k], [env.utilities[ue] for ue in env.active], rtol=1e-6)


def test_a_handover_is_a_link_that_became_another(task):
    before = [links(env) for env in task.envs]
    task.step(ranks_drawn(task, 1, seed=3)[0])
    moved = [
        [bool(a and b and a != b) for a, b in zip(old, links(env), strict=True)]
        for old, env in zip(before, task.envs, strict=True)
    ]
    assert np.array(moved).any() and task.tally()["handovers"][0].tolist() == np.mean(moved, 1).tolist()


# --- references -----------------------------------------------------------------------------------------


def test_quality_of_experience_is_the_packages(task):
    rates = np.array([0.0, 1e-4, 0.26, 1.0, 17.3, 100.0, 1e5])
    model = task.envs[0].utility
    np.testing.assert_allclose(task._qoe(rates), [model.scale(model.utility(rate)) for rate in rates], rtol=1e-12)


def test_the_greedy_rule_is_its_definition(task):
    found = task.greedy_reference()
    for k, env in enumerate(task.envs):
        now = links(env)
        for i, ue in enumerate(env.active):
            others = [one for j, of_user in enumerate(now) if j != i for one in of_user]
            order = strongest_first(env, ue)[: task.n_levels]
            value = [rate_of(env, ue, number) / (others.count(number) + 1) for number in order]
            assert found[k, i] == value.index(max(value))


def test_at_full_information_nobody_can_move_to_the_good_of_all(task):
    found = task.reference()
    for env, ranks in zip(task.envs, found, strict=True):
        orders = [strongest_first(env, ue)[: task.n_levels] for ue in env.active]

        def joined(i, rank, env=env, orders=orders):
            number = orders[i][rank]
            return number if rate_of(env, env.active[i], number) > 0 else None

        settled = [joined(i, rank) for i, rank in enumerate(ranks)]
        best = total_utility(env, settled)
        for i in range(task.n_agents):
            for rank in range(task.n_levels):
                assert total_utility(env, [*settled[:i], joined(i, rank), *settled[i + 1 :]]) <= best + 1e-9


def test_weights_are_of_cells_and_add_up_to_one(task):
    weights, rows = task.weights(), np.arange(task.n_agents)
    np.testing.assert_allclose(weights.sum(-1), 1)
    assert (weights[:, rows, rows] == 0).all()
    for k, env in enumerate(task.envs):
        now = links(env)
        for i in rows:
            near = [j for j in rows if j != i and now[i] and now[j] == now[i]]
            far = [j for j in rows if j != i and j not in near]
            if near and far:
                assert weights[k, i, near[0]] == pytest.approx(10 * weights[k, i, far[0]])


# --- play, seeds, bad input -----------------------------------------------------------------------------


def test_a_fixed_seed_gives_the_same_episode_and_another_one_another(package):
    def episode(seed):
        task = MobileEnvAssociation(2)
        begin = task.reset(np.random.default_rng(seed))
        return np.stack([begin, *(task.step(ranks)[0] for ranks in ranks_drawn(task, 6))])

    np.testing.assert_array_equal(episode(1), episode(1))
    assert not np.array_equal(episode(1)[0], episode(2)[0])
    assert not np.array_equal(episode(1)[:, 0], episode(1)[:, 1]), "networks are drawn apart"


def test_full_information_is_above_the_weakest_station(package):
    task = MobileEnvAssociation(4)
    informed, weakest = (merit(play(task, policy, 8, seed=3)) for policy in (Informed(), Always(-1)))
    assert (informed > weakest).all() and (np.abs([informed, weakest]) <= 1).all()


def test_bad_input_is_named(package):
    with pytest.raises(ValueError, match="scenario must be one of small, medium; got 'large'"):
        MobileEnvAssociation(1, "large")
    with pytest.raises(ValueError, match="n_networks must be an integer >= 1; got 0"):
        MobileEnvAssociation(0)
    task = MobileEnvAssociation(1)
    still = np.zeros((1, 5), int)
    with pytest.raises(RuntimeError, match=r"call reset\(rng\) first"):
        task.step(still)
    task.reset(np.random.default_rng(0))
    with pytest.raises(ValueError, match="actions must be integers from 0 to 2; got int64 from 3 to 3"):
        task.step(still + 3)
    with pytest.raises(ValueError, match=r"actions must have shape \(1, 5\)"):
        task.step(still[0])
    for _ in range(99):
        task.step(still)
    with pytest.raises(RuntimeError, match=r"one has 100 epochs.*call reset\(rng\) first"):
        task.step(still)
