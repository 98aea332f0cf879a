"""Spread: its physics against a plain loop, what is seen, what is paid, and the scripted teams."""

import numpy as np
import pytest

from fedmorl.data.collect_joint import collect_joint
from fedmorl.evaluation.team import play_team
from fedmorl.tasks.spread import BORDER, NOISE, PDTeam, RandomTeam, Spread, advance, observe, reward


def by_hand(p, v, a, coupling):
    """One step without noise, agent by agent, as the docstring has it."""
    n, after = len(p), []
    for i in range(n):
        near = [j for j in range(n) if j != i and np.hypot(*(p[j] - p[i])) < 0.6]
        force = 3 * a[i]
        for j in near:
            d = np.hypot(*(p[j] - p[i]))
            force = force + (d - 0.3) * (p[j] - p[i]) / d
        if near:
            force = force + 3 * coupling * np.mean([a[j] for j in near], axis=0)
        after.append(0.9 * v[i] + 0.1 * force)
    return p + 0.1 * np.array(after), np.array(after)


@pytest.mark.parametrize("coupling", [0.0, 0.5])
def test_a_step_is_the_formula(coupling):
    rng = np.random.default_rng(0)
    p, v, a = rng.uniform(-0.6, 0.6, (3, 4, 6, 2))
    found_p, found_v, _ = advance(p, v, a, coupling, np.zeros_like(p))
    for b in range(4):
        expected_p, expected_v = by_hand(p[b], v[b], a[b], coupling)
        np.testing.assert_allclose(found_p[b], expected_p, atol=1e-12)
        np.testing.assert_allclose(found_v[b], expected_v, atol=1e-12)


def test_noise_is_on_the_velocity_and_of_the_stated_size():
    task = Spread(3)
    task.reset(range(400))
    p, v = task._p, task._v
    task.step(np.zeros((400, 3, 2)))
    expected = advance(p, v, np.zeros_like(p), 0.0, np.zeros_like(p))[1]
    assert (task._v - expected).std() == pytest.approx(NOISE, rel=0.05)  # 2400 draws: a standard error of 1.4 %


def test_at_the_border_an_agent_stands_still():
    p, v = np.array([[BORDER - 0.01, 0.0], [-1.0, 0.0]]), np.array([[2.0, 0.5], [0.0, 0.0]])
    p, v, _ = advance(p, v, np.zeros((2, 2)), 0.0, np.zeros((2, 2)))
    assert p[0, 0] == BORDER and v[0, 0] == 0 and v[0, 1] == pytest.approx(0.45)


def test_what_an_agent_sees_in_each_form():
    p = np.array([[0.0, 0.0], [0.5, 0.0], [0.1, 0.0], [1.4, 0.0]])
    v = np.arange(8.0).reshape(4, 2) / 10
    marks = np.array([[0.0, 1.0], [0.2, 0.0], [-1.0, -1.0], [0.0, 0.3]])
    near = observe(p, v, marks, "nearest", 2)[0]
    np.testing.assert_allclose(near[:4], [0, 0, 0, 0.1], atol=1e-7)
    np.testing.assert_allclose(near[4:9], [0.1, 0, 0.4, 0.4, 1], atol=1e-7)  # agent 2, the nearer
    np.testing.assert_allclose(near[9:14], [0.5, 0, 0.2, 0.2, 1], atol=1e-7)
    np.testing.assert_allclose(near[14:], [0.2, 0, 0, 0.3], atol=1e-7)
    by_id = observe(p, v, marks, "by_id", 3)[0]
    np.testing.assert_allclose(by_id[4:9], near[9:14])
    np.testing.assert_allclose(by_id[9:14], near[4:9])
    assert not by_id[14:19].any()  # agent 3 is out of range
    assert not observe(p, v, marks, "nearest", 2)[3, 4:14].any()
    assert Spread(10).observation_size == 18 and Spread(4, slots="by_id").observation_size == 23


def test_what_is_paid():
    p, marks = np.array([[0.0, 0.0], [0.05, 0.0]]), np.array([[0.0, 0.3], [1.05, 0.0]])
    thrust = np.array([[1.0, 1.0], [0.0, 0.0]])
    assert reward(p, marks, thrust) == pytest.approx(-(0.3 + 1.0) / 2 - 0.1 / 2 - 0.01)


def test_an_episode_depends_on_its_seed_alone():
    one, many = Spread(3), Spread(3)
    many.reset([4, 5, 6]), one.reset([5])
    for _ in range(5):
        a, b = one.step(np.full((1, 3, 2), 0.3)), many.step(np.full((3, 3, 2), 0.3))
        np.testing.assert_array_equal(a.observations[0], b.observations[1])
        assert a.rewards[0] == b.rewards[1] != b.rewards[0]
    np.testing.assert_array_equal(one.states()[0], many.states()[1])


def test_it_ends_by_the_clock_alone():
    task = Spread(2, time_limit=3)
    task.reset([0, 1])
    ends = [task.step(np.zeros((2, 2, 2))) for _ in range(3)]
    assert [e.truncated.tolist() for e in ends] == [[False] * 2, [False] * 2, [True] * 2]
    assert not any(e.terminated.any() for e in ends)
    with pytest.raises(RuntimeError, match="call reset"):
        task.step(np.zeros((2, 2, 2)))


@pytest.mark.parametrize(
    "make,said",
    [
        (lambda: Spread(1), "n_agents must be an integer >= 2; got 1"),
        (lambda: Spread(3, time_limit=0), "time_limit must be an integer >= 1; got 0"),
        (lambda: Spread(3, coupling=-1.0), "coupling must be finite and >= 0; got -1.0"),
        (lambda: Spread(3, slots="far"), "slots must be one of nearest, by_id; got 'far'"),
        (lambda: Spread(3).reset([-1]), "seeds must be integers >= 0"),
        (lambda: PDTeam(noise=-1), "noise must be finite and >= 0; got -1"),
    ],
)
def test_arguments_out_of_range_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_actions_out_of_bounds_are_refused_and_never_clipped():
    task, choices = Spread(2), Spread(2, discrete=True)
    task.reset([0]), choices.reset([0])
    for bad in (1.5, np.nan):
        with pytest.raises(ValueError, match=r"actions must be from -1 to 1; got (1\.5|nan)"):
            task.step(np.full((1, 2, 2), bad))
    with pytest.raises(ValueError, match=r"actions must have shape \(1, 2, 2\)"):
        task.step(np.zeros((1, 2)))
    with pytest.raises(ValueError, match="actions must be integers from 0 to 4; got int64 from 0 to 5"):
        choices.step(np.array([[0, 5]]))


def test_choices_are_thrusts():
    task, choices = Spread(2), Spread(2, discrete=True)
    task.reset([3]), choices.reset([3])
    thrust = np.array([[[0.0, 1.0], [-1.0, 0.0]]])
    np.testing.assert_array_equal(task.step(thrust).observations, choices.step(np.array([[1, 3]])).observations)


@pytest.mark.parametrize("slots", ["nearest", "by_id"])
def test_the_scripted_team_leaves_a_landmark_to_who_is_nearer(slots):
    p, v = np.array([[0.0, 0.0], [0.2, 0.0]]), np.zeros((2, 2))
    marks = np.array([[0.3, 0.0], [0.0, -0.5]])
    wish = PDTeam(0.0).mean(observe(p, v, marks, slots, 1)[None])[0]
    np.testing.assert_allclose(wish, 2 * np.array([[0.0, -0.5], [0.1, 0.0]]), atol=1e-6)


def test_noise_makes_a_team_worse_and_chance_the_worst():
    teams = [PDTeam(0.1), PDTeam(1.2), RandomTeam()]
    returns = [play_team(Spread(3), team, range(64), np.random.default_rng(0))["returns"].mean() for team in teams]
    assert returns[0] > returns[1] + 2 > returns[2] + 8


def test_logs_hold_what_was_played():
    team = PDTeam(0.4)
    log = collect_joint(Spread(3, time_limit=6), team, 70, seed=2, behaviour=team.describe())
    assert len(log) == 420 and not log.terminated.any() and log.behaviour["noise"] == 0.4
    np.testing.assert_array_equal(np.unique(log.episodes), 2_000_000 + np.arange(70))
    same = log.episodes[1:] == log.episodes[:-1]
    assert same.sum() == 420 - 70
    np.testing.assert_array_equal(log.next_states[:-1][same], log.states[1:][same])
    np.testing.assert_array_equal(log.next_observations[:-1][same], log.observations[1:][same])
    task = Spread(3, time_limit=6)
    task.reset([2_000_065])
    rows = log.take(log.episodes == 2_000_065)
    paid = [task.step(a[None].astype(np.float64)).rewards[0] for a in rows.actions]
    np.testing.assert_allclose(rows.rewards, paid, rtol=1e-5)
    with pytest.raises(ValueError, match="seed must be an integer from 0 to 999"):
        collect_joint(Spread(3), team, 1, seed=1000, behaviour={})


def test_choices_are_logged_one_hot():
    class Up:
        def start(self, batch, rng): ...
        def rewarded(self, memory, rewards): ...
        def act(self, observations, memory, rng):
            return np.ones(observations.shape[:2], int), None

    log = collect_joint(Spread(2, discrete=True, time_limit=2), Up(), 3, seed=0, behaviour={"name": "up"})
    assert log.discrete and (log.actions == [0, 1, 0, 0, 0]).all()
