"""The wireless tasks: rounds and the channel against closed forms, references against definitions, the interface."""

import numpy as np
import pytest
from pettingzoo.test import parallel_api_test
from scipy.special import j0

from fedmorl.dca import Scenario, Station, simulate
from fedmorl.tasks import power_control
from fedmorl.tasks.cw_selection import WINDOWS, CWSelection, HeldWindows, best_level, closed_form, play_rounds
from fedmorl.tasks.networks import NetworkParallelEnv
from fedmorl.tasks.power_control import PowerControl, externality, fractional_programming, rates, wmmse
from fedmorl.tasks.user_association import UserAssociation, loads, ranks_of, spectral_efficiency

MAKERS = {
    "cw": lambda e=2: CWSelection(e, 4),
    "cw_rounds": lambda e=2: CWSelection(e, 4, "rounds"),
    "ua": lambda e=2: UserAssociation(e, 5),
    "pc": lambda e=2: PowerControl(e, 4),
}


def rng(seed=0):
    return np.random.default_rng(seed)


# --- contention windows ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 5, 10, 30])
def test_rounds_carry_what_the_closed_form_says(n):
    """Sum over sums; four standard errors over 60 networks, and one per cent."""
    for window in WINDOWS:
        epoch = play_rounds(np.full((60, n), 2 / (window + 1)), 12_000, rng(int(window)))
        per_network = 100 * epoch.successes.sum(1) / epoch.slots
        pooled = 100 * epoch.successes.sum() / epoch.slots.sum()
        error = per_network.std(ddof=1) / 60**0.5
        expected = closed_form(n, int(window))
        assert abs(pooled - expected) < 4 * error + 1e-12
        if error < expected / 400:  # where a per cent can be told from noise
            assert abs(pooled / expected - 1) < 0.01


def test_a_round_is_idle_a_success_or_a_collision():
    epoch = play_rounds(np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]), 10, rng())
    assert epoch.slots.tolist() == [1200, 1200, 10]
    assert epoch.successes.tolist() == [[10, 0], [0, 0], [0, 0]]
    assert epoch.collisions.tolist() == [[0, 0], [10, 10], [0, 0]]


def test_windows_held_from_the_start_are_the_simulator():
    """Two stations at CW 31: held epoch by epoch, and simulated in one go, are the same channel in the long run."""
    epoch = HeldWindows(8, 2, seed=3).play(np.full((8, 2), 31), 400_000)
    held = 120 * epoch.successes.sum(1) / epoch.slots
    scenario = Scenario.uniform(Station(cw_min=31, cw_max=31), 2)
    whole = simulate(scenario, n_slots=3_000_000, seed=1).throughput_ratio
    assert abs(held.mean() - whole) < 4 * held.std(ddof=1) / 8**0.5 + 1e-3


def test_a_window_that_changes_takes_effect_at_once():
    """After an epoch at CW 1023 with all at CW 7 the channel is as busy as one that was always at CW 7."""
    channels = HeldWindows(8, 5, seed=0)
    channels.play(np.full((8, 5), 1023), 20_000)
    busy = channels.play(np.full((8, 5), 7), 20_000)
    assert (busy.idle_slots / busy.slots < 0.02).all()


def test_no_window_is_doubled_after_a_collision():
    channels = HeldWindows(4, 5, seed=0)
    channels.play(np.full((4, 5), 7), 50_000)
    assert (channels._stations["cw"] == 7).all()


@pytest.mark.parametrize("backend", ["rounds", "dca"])
def test_the_best_common_level_grows_with_the_network(backend):
    levels = [best_level(n, backend) for n in (5, 10, 15, 20, 30)]
    assert WINDOWS[levels].tolist() == [63, 127, 255, 255, 511]


def test_the_reference_of_contention_beats_its_neighbours():
    task, found = CWSelection(16, 10), {}
    for shift in (-1, 0, 1):
        task.reset(rng(1))
        level = task.reference() + shift
        sums = np.sum([[x.sum() for x in task.tally()["throughput"]] for _ in range(30) if task.step(level)], 0)
        found[shift] = sums[0] / sums[1]
    assert found[0] == max(found.values())


# --- power control --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [wmmse, fractional_programming])
def test_the_sum_rate_never_falls(method):
    task = PowerControl(20, 10)
    task.reset(rng())
    history = [rates(task._gain, method(task._gain, k)).sum(1) for k in range(12)]
    assert (np.diff(history, axis=0) > -1e-9).all()
    assert (history[-1] > history[0] + 0.5).mean() > 0.5


def test_two_routes_to_the_powers_end_close_to_each_other():
    task = PowerControl(50, 10)
    task.reset(rng())
    a, b = (rates(task._gain, method(task._gain, 200)).mean() for method in (wmmse, fractional_programming))
    assert abs(a / b - 1) < 0.02


def test_fading_is_rayleigh_with_the_correlation_of_jakes():
    task = PowerControl(200, 5)
    task.reset(rng())
    before = task._fading.copy()
    task.step(np.zeros((200, 5), int))
    found = (before.conj() * task._fading).mean().real / (np.abs(before) ** 2).mean()
    assert power_control.RHO == pytest.approx(float(j0(2 * np.pi * 0.2)))
    assert abs(found - power_control.RHO) < 4 / before.size**0.5
    assert abs((np.abs(task._fading) ** 2).mean() - 1) < 4 / before.size**0.5


def test_the_externality_is_the_rate_that_others_win_when_one_falls_silent():
    task = PowerControl(3, 4)
    task.reset(rng())
    power = rng(1).uniform(0.1, 1, (3, 4))
    cost, now = externality(task._gain, power), rates(task._gain, power)
    for j in range(4):
        silent = power.copy()
        silent[:, j] = 0
        others = np.arange(4) != j
        won = (rates(task._gain, silent) - now)[:, others].sum(1)
        np.testing.assert_allclose(cost[:, j], won, rtol=1e-9)


def test_delay_costs_the_reference_little_and_random_powers_a_lot():
    task, rate = PowerControl(64, 10), {"reference": [], "genie": [], "random": []}
    for name in ("reference", "random"):
        task.reset(rng(2))
        for _ in range(8):
            level = task.reference() if name == "reference" else rng(3).integers(10, size=(64, 10))
            task.step(level)
            rate[name].append(task.tally()["rate"][0].mean())
            if name == "reference":
                rate["genie"].append(task.genie_rate().mean())
    found = {name: np.mean(values) for name, values in rate.items()}
    assert 0.9 < found["reference"] / found["genie"] < 0.99
    assert found["random"] < 0.75 * found["reference"]


# --- user association -----------------------------------------------------------------------------------


def test_the_greedy_rule_is_the_best_rank_while_nobody_else_moves():
    task = UserAssociation(4, 6, 3)
    task.reset(rng(2))
    ranks = task.greedy_reference()
    alone, attached, rank_of = spectral_efficiency(task._snr_db), task._attached, ranks_of(task._snr_db)
    for e in range(4):
        for i in range(6):
            load = [np.sum(np.delete(attached[e], i) == m) + 1 for m in range(3)]
            assert rank_of[e, i, np.argmax(alone[e, i] / load)] == ranks[e, i]


def test_nobody_gains_by_leaving_the_reference_alone():
    """Three sweeps settle nearly everywhere: no single move raises the sum of utilities by a fiftieth."""
    task = UserAssociation(40, 12)
    task.reset(rng(5))
    alone, order = spectral_efficiency(task._snr_db), np.argsort(-task._snr_db, axis=-1)

    def total(ranks):
        m = np.take_along_axis(order, ranks[..., None], -1)[..., 0]
        rate = np.take_along_axis(alone, m[..., None], -1)[..., 0]
        return np.log(rate / np.take_along_axis(loads(m, 4), m, -1) + 0.05).sum(1)

    chosen, gains = task.reference(), []
    for i in range(12):
        for rank in range(4):
            other = chosen.copy()
            other[:, i] = rank
            gains.append(total(other) - total(chosen))
    assert (np.max(gains, 0) < 0.02).mean() >= 0.9
    assert (total(chosen) > total(np.zeros((40, 12), int))).all()


def test_all_attach_by_the_new_order_and_share_their_station():
    task = UserAssociation(2, 5)
    task.reset(rng())
    task.step(np.zeros((2, 5), int))
    assert np.array_equal(task._attached, task._snr_db.argmax(-1))
    r = np.take_along_axis(spectral_efficiency(task._snr_db), task._attached[..., None], -1)[..., 0]
    for e in range(2):
        for i in range(5):
            assert task._rate[e, i] == pytest.approx(r[e, i] / (task._attached[e] == task._attached[e, i]).sum())


def test_the_externality_of_a_user_is_what_the_rest_of_its_station_would_win():
    task = UserAssociation(2, 6, 2)
    task.reset(rng())
    r = np.take_along_axis(spectral_efficiency(task._snr_db), task._attached[..., None], -1)[..., 0]
    for e in range(2):
        for i in range(6):
            others = [j for j in range(6) if j != i and task._attached[e, j] == task._attached[e, i]]
            won = sum(np.log(r[e, j] / len(others) + 0.05) - task._utility[e, j] for j in others)
            assert task.own[e, i] - task.credit[e, i] == pytest.approx(won, abs=1e-5)


def test_users_walk_three_metres_and_stay_inside():
    task = UserAssociation(10, 12)
    task.reset(rng())
    for _ in range(50):
        before = task._places.copy()
        task.step(np.zeros((10, 12), int))
        moved = np.linalg.norm(task._places - before, axis=-1)
        assert (moved <= 3 + 1e-9).all() and np.median(moved) == pytest.approx(3)
        assert (task._places >= 0).all() and (task._places <= 200).all()


def test_few_stations_are_padded_and_many_are_not_all_seen():
    few, many = UserAssociation(2, 4, 3), UserAssociation(2, 4, 7)
    obs = few.reset(rng())
    assert few.n_levels == 3 and (obs[..., 3] == -2).all() and (obs[..., 7] == -1).all()
    assert many.reset(rng()).shape == (2, 4, 13) and many.n_levels == 4
    assert many.reference().max() < 4


# --- all of them ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", MAKERS.values(), ids=list(MAKERS))
def test_same_seed_same_networks_and_shapes(make):
    found = []
    for _ in range(2):
        task = make()
        first = task.reset(rng(7))
        second, reward = task.step(np.ones((2, task.n_agents), int))
        assert first.shape == second.shape == (2, task.n_agents, task.observation_size)
        assert first.dtype == reward.dtype == np.float32 and reward.shape == task.own.shape == (2, task.n_agents)
        found.append((first, second, reward))
    for a, b in zip(*found, strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("make", MAKERS.values(), ids=list(MAKERS))
def test_an_observation_holds_the_own_previous_action(make):
    task = make()
    task.reset(rng())
    seen = [task.step(np.full((2, task.n_agents), a))[0] for a in range(task.n_levels)]
    own = [o[..., 8:12] if task.name == "ua" else o[..., :1] for o in seen]
    for a in range(1, task.n_levels):
        assert (own[a] != own[a - 1]).any(-1).all()


@pytest.mark.parametrize("make", MAKERS.values(), ids=list(MAKERS))
def test_what_is_heard_adds_up_to_one_and_is_of_others(make):
    task = make()
    task.reset(rng())
    w = task.weights()
    assert np.allclose(w.sum(-1), 1) and (np.diagonal(w, axis1=1, axis2=2) == 0).all() and (w >= 0).all()


@pytest.mark.parametrize("make", MAKERS.values(), ids=list(MAKERS))
def test_one_network_is_a_parallel_env(make):
    env = NetworkParallelEnv(make(1), n_steps=2)
    parallel_api_test(env, num_cycles=10)  # PettingZoo's own assertions
    env.reset(seed=0)
    stay = dict.fromkeys(env.possible_agents, 0)
    assert not any(env.step(stay)[3].values()) and env.agents
    _, rewards, ended, cut, _ = env.step(stay)
    assert all(cut.values()) and not any(ended.values()) and not env.agents and set(rewards) == set(stay)


@pytest.mark.parametrize(
    "actions, words",
    [(np.zeros((2, 3), int), "shape"), (np.full((2, 4), 10), "from 0 to 9"), (np.zeros((2, 4)), "integers")],
)
def test_a_wrong_action_is_refused_in_a_sentence(actions, words):
    task = MAKERS["pc"]()
    task.reset(rng())
    with pytest.raises(ValueError, match=words):
        task.step(actions)


def test_wrong_sizes_are_refused_in_a_sentence():
    with pytest.raises(ValueError, match="backend must be one of rounds, dca; got 'ns3'"):
        CWSelection(1, 4, "ns3")
    with pytest.raises(ValueError, match="n_agents must be an integer >= 3; got 2"):
        PowerControl(1, 2)
    with pytest.raises(ValueError, match="one network"):
        NetworkParallelEnv(PowerControl(2, 4))
