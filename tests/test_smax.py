"""SMAX behind our arrays: what may be done, what is paid, how a battle ends; its data; and what is said without it."""

import os
from importlib import metadata

import numpy as np
import pytest

from fedmorl.evaluation.team import EVALUATION_SEED, play_team
from fedmorl.learners.mads4 import MADS4
from fedmorl.learners.team_cloning import TeamCloning
from fedmorl.tasks.smax import SMAX, STOP, AmongAvailable
from fedmorl.tasks.smax_data import BATCH, EPISODES_PER_SEED, MAX_SEED, Heuristic, collect_smax

MAP, N, M = "5m_vs_6m", 5, 6
HEALTH, RANGE = 45, 5.0  # of a marine
FAST_COMPILE = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"  # a third of the time
SEEDS = list(range(BATCH))  # as many as the data are collected in: another number would compile anew


@pytest.fixture(scope="module")
def task():
    os.environ.setdefault("XLA_FLAGS", FAST_COMPILE)  # read when jax is imported
    pytest.importorskip("jaxmarl", reason="needs the `smax` extra")
    return SMAX(MAP, BATCH)


@pytest.fixture(scope="module")
def logs(task):
    """Episodes of two batches."""
    return collect_smax(MAP, BATCH + 8, progress=False)


def units(states):
    """(..., S) -> health share (..., 11), place (..., 11, 2) of every unit; all 0 of a fallen one."""
    features = states[..., : 10 * (N + M)].reshape(*states.shape[:-1], N + M, 10)
    return features[..., 0], features[..., 1:3]


def left_with(task, allies, enemies):
    """Give the units of each side so much health [points], wherever the battles stand."""
    game = task._states.state
    health = np.broadcast_to(np.float32([allies] * N + [enemies] * M), (task.batch, N + M))
    task._states = task._states.replace(state=game.replace(unit_health=health))


def stop(task):
    return task.step(np.full((task.batch, N), STOP))


# --- without the extra ----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [SMAX, lambda name: collect_smax(name, 1)])
def test_without_the_package_one_sentence_says_how_to_get_it(make, monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(ModuleNotFoundError, match=r"pip install -c constraints\.txt -e '\.\[smax\]'$"):
        make(MAP)


@pytest.mark.parametrize("make", [SMAX, Heuristic, lambda name: collect_smax(name, 1)])
@pytest.mark.parametrize(
    "name,said", [("2c_vs_64zg", "a map of SMAC that SMAX lacks"), ("corridor", "SMAX lacks"), ("3m", "got '3m'")]
)
def test_maps_that_smax_lacks_are_refused(make, name, said):
    with pytest.raises(ValueError, match=rf"map_name must be one of 5m_vs_6m, 6h_vs_8z; .*{said}"):
        make(name)


@pytest.mark.parametrize(
    "bad,said",
    [
        (lambda: SMAX(MAP, 0), "batch must be an integer >= 1; got 0"),
        (lambda: SMAX(MAP, 1, 2.5), "time_limit must be an integer >= 1; got 2.5"),
        (lambda: Heuristic(MAP, 1.5), "noise must be from 0 to 1; got 1.5"),
        (lambda: collect_smax(MAP, 1, grade="good"), "grade must be one of expert, medium, poor; got 'good'"),
        (lambda: collect_smax(MAP, 0), "n_episodes must be an integer from 1 to 1000000; got 0"),
        (lambda: collect_smax(MAP, 1, seed=1000), "seed must be an integer from 0 to 999; got 1000"),
    ],
)
def test_arguments_out_of_range_are_refused_before_anything_is_imported(bad, said):
    with pytest.raises(ValueError, match=said):
        bad()


def test_episodes_of_data_and_of_an_evaluation_never_share_a_seed():
    assert EPISODES_PER_SEED * (MAX_SEED + 1) <= EVALUATION_SEED


# --- the task -------------------------------------------------------------------------------------------


def test_each_ally_sees_itself_where_the_global_state_has_it(task):
    """Health and place of the ally itself, which the two tell by different functions of the package."""
    observations = task.reset(SEEDS)
    health, place = units(task.states())
    assert observations.dtype == np.float32 and observations.shape == (BATCH, N, task.observation_size)
    assert task.available().shape == (BATCH, N, task.n_actions) == (BATCH, N, 5 + M)
    np.testing.assert_allclose(observations[..., -10], health[:, :N])
    np.testing.assert_allclose(observations[..., -9:-7], place[:, :N] / 32, rtol=1e-6)


def test_an_enemy_may_be_attacked_in_range_and_a_fallen_unit_may_only_stop(logs):
    seen = logs.mask  # (E, T)
    health, place = units(logs.states[:, :-1][seen])
    alive = health > 0
    distance = np.linalg.norm(place[:, :N, None] - place[:, None, N:], axis=-1)
    reach = alive[:, :N, None] & alive[:, None, N:] & (distance < RANGE)
    expected = np.concatenate([np.repeat(alive[:, :N, None], 4, -1), np.ones((len(alive), N, 1), bool), reach], axis=-1)
    sure = np.ones_like(expected)
    sure[..., 5:] = abs(distance - RANGE) > 1e-4  # float32 places up to 32 are kept to 2e-6
    np.testing.assert_array_equal(logs.available[:, :-1][seen][sure], expected[sure])
    assert reach.any() and (~alive[:, :N]).any()


def test_actions_that_are_not_available_are_refused(task):
    task.reset(SEEDS)
    actions = np.full((BATCH, N), STOP)
    actions[3, 2] = 7
    with pytest.raises(ValueError, match="7 of ally 2 in battle 3 is not; let AmongAvailable"):
        task.step(actions)
    with pytest.raises(ValueError, match=r"actions must have shape \(32, 5\) \(battles, allies\); got \(32, 4\)"):
        task.step(actions[:, :4])
    with pytest.raises(ValueError, match="actions must be integers from 0 to 10; got int64 from 4 to 11"):
        task.step(np.where(actions == 7, 11, actions))
    with pytest.raises(ValueError, match="seeds must be integers from 0 to 4294967295"):
        task.reset([-1])


def test_the_return_is_the_share_of_the_enemies_health_that_was_taken(logs):
    health, _ = units(logs.states[np.arange(len(logs)), logs.lengths])
    won = logs.extras["win"].sum(1)
    np.testing.assert_allclose(logs.returns, 1 - health[:, N:].mean(1) + won, atol=1e-6)
    assert 0.3 < logs.returns.mean() < 2


def test_a_win_pays_one_and_terminates(task):
    """Enemies with 1 point of health fall at a touch; each is then worth 1/45 of 1/6."""
    team = AmongAvailable(Heuristic(MAP), task)
    observations, memory, rng = task.reset(SEEDS), team.start(BATCH, np.random.default_rng(0)), np.random.default_rng(0)
    left_with(task, HEALTH, 1)
    paid, over = np.zeros(BATCH), np.zeros(BATCH, bool)
    while not over.all():
        actions, memory = team.act(observations, memory, rng)
        step = task.step(actions)
        observations, paid = step.observations, paid + step.rewards * ~over
        np.testing.assert_array_equal(step.extras["win"], step.terminated)
        assert not step.truncated.any()
        over |= step.terminated
    np.testing.assert_allclose(paid, 1 + 1 / HEALTH, rtol=1e-5)


@pytest.mark.parametrize("allies,enemies,won", [(45, 0, 1), (0, 45, 0), (0, 0, 0)])
def test_a_side_without_units_ends_a_battle_and_only_survivors_win_it(task, allies, enemies, won):
    """Decided at the very step of the limit: terminated and not truncated."""
    short = SMAX(MAP, BATCH, time_limit=1)
    short.reset(SEEDS)
    left_with(short, allies, enemies)
    step = stop(short)
    assert step.terminated.all() and not step.truncated.any()
    np.testing.assert_array_equal(step.extras["win"], won)
    np.testing.assert_array_equal(step.rewards, won)


def test_chance_is_another_at_each_step(task):
    """The same battles, in the middle of a fight, gone on from twice: cooldowns and targets are drawn anew."""
    team = AmongAvailable(Heuristic(MAP), task)
    observations, memory, rng = task.reset(SEEDS), team.start(BATCH, np.random.default_rng(0)), np.random.default_rng(0)
    for _ in range(8):
        actions, memory = team.act(observations, memory, rng)
        observations = task.step(actions).observations
    actions, _ = team.act(observations, memory, rng)
    states = task._states
    first = task.step(actions).observations
    task._states = states
    task._look()
    assert (task.step(actions).observations != first).any((1, 2)).mean() > 0.9


def test_the_limit_truncates_to_the_step_and_ends_the_episode(task):
    short = SMAX(MAP, BATCH, time_limit=3)
    short.reset(SEEDS)
    ends = [stop(short) for _ in range(3)]
    assert [one.truncated.all() for one in ends] == [one.truncated.any() for one in ends] == [False, False, True]
    assert not any(one.terminated.any() for one in ends)
    with pytest.raises(RuntimeError, match="call reset"):
        stop(short)
    data = collect_smax(MAP, 2, time_limit=3, progress=False)
    assert (data.lengths == 3).all() and data.truncated[:, -1].all() and not data.terminated.any()


# --- the scripted team and its data ---------------------------------------------------------------------


def test_an_episode_depends_on_its_seed_and_not_on_how_many_are_played(logs):
    few = collect_smax(MAP, 3, progress=False)
    for e, steps in enumerate(few.lengths):
        np.testing.assert_array_equal(few.observations[e, : steps + 1], logs.observations[e, : steps + 1])
        np.testing.assert_array_equal(few.actions[e, :steps], logs.actions[e, :steps])
        np.testing.assert_array_equal(few.rewards[e, :steps], logs.rewards[e, :steps])
    np.testing.assert_array_equal(logs.episode_seeds, np.arange(BATCH + 8))
    poor = [collect_smax(MAP, n, grade="poor", progress=False).actions[:2, :8] for n in (2, 3)]
    np.testing.assert_array_equal(*poor)  # and so does its noise
    other = collect_smax(MAP, 3, seed=1, progress=False)
    np.testing.assert_array_equal(other.episode_seeds, EPISODES_PER_SEED + np.arange(3))
    assert (other.observations[:, 0] != few.observations[:, 0]).any((1, 2)).all()


def test_a_step_gives_back_the_very_types_that_it_takes(task):
    """Or JAX would compile it a second time, which takes seconds."""
    jax = pytest.importorskip("jax")

    def types(tree):
        return [jax.typeof(x) for x in jax.tree.leaves(tree)]

    seen, states, memory = task.reset(SEEDS), task._states, Heuristic(MAP).seeded(SEEDS)
    _, after = Heuristic(MAP).act(seen, memory, None, task.available())
    stop(task)
    assert types(task._states) == types(states) and types(after.minds) == types(memory.minds)


def test_a_battle_is_the_same_wherever_it_stands_in_the_batch(task):
    turned = SEEDS[::-1]
    first = [task.reset(SEEDS), *(stop(task).observations for _ in range(12))]
    second = [task.reset(turned), *(stop(task).observations for _ in range(12))]
    np.testing.assert_array_equal(np.stack(first)[:, ::-1], np.stack(second))
    assert len({row.tobytes() for row in first[-1]}) == BATCH  # and no two are alike


@pytest.mark.parametrize("noise", [0.4, 1.0])
def test_noise_replaces_an_action_by_an_available_one_each_as_likely(task, noise):
    """At the start 5 actions are available, so a share of 4/5 of the noisy ones shows; bounds of 4.5 sd."""
    observations, repeats = task.reset(SEEDS), 40
    scripted, noisy = Heuristic(MAP), Heuristic(MAP, noise)
    assert task.available().sum(-1).max() == 5
    differ, counts, memory = 0.0, np.zeros(5), scripted.seeded(SEEDS)
    for _ in range(repeats):  # of what is seen at the start, with the chance of later and later steps
        actions, _ = noisy.act(observations, memory, None, task.available())
        plain, memory = scripted.act(observations, memory, None, task.available())
        differ += (plain != actions).mean() / repeats
        counts += np.bincount(actions.ravel(), minlength=5)[:5]
    n = repeats * BATCH * N
    share = 0.8 * noise
    assert differ == pytest.approx(share, abs=4.5 * np.sqrt(share * (1 - share) / n))
    if noise == 1:
        np.testing.assert_allclose(counts / n, 0.2, atol=4.5 * np.sqrt(0.2 * 0.8 / n))


def test_grades_are_apart_and_every_label_says_smax(logs):
    graded = [logs, *(collect_smax(MAP, BATCH, grade=grade, progress=False) for grade in ("medium", "poor"))]
    means = [one.returns.mean() for one in graded]
    errors = [one.returns.std() / np.sqrt(len(one)) for one in graded]
    assert means[0] - means[1] > 2 * np.hypot(*errors[:2]) and means[1] - means[2] > 2 * np.hypot(*errors[1:])
    assert logs.reward_def.startswith("SMAX") and logs.env_id == "SMAX-5m_vs_6m"
    assert logs.env_version == metadata.version("jaxmarl") and logs.behaviours[0]["noise"] == 0


@pytest.mark.parametrize("learner", [MADS4(H=4, N=4, epochs=1), TeamCloning(epochs=1)], ids=["mads4", "cloning"])
def test_learned_teams_play_what_is_available(task, logs, learner):
    policy = learner.fit(logs.take(np.arange(8)), rng=np.random.default_rng(0))
    seeds = [EVALUATION_SEED + k for k in SEEDS]
    played = play_team(task, AmongAvailable(policy, task), seeds, np.random.default_rng(0))
    assert (played["returns"] >= 0).all() and (played["returns"] <= 1 + played["win"]).all()
    with pytest.raises(ValueError, match="let AmongAvailable"):
        play_team(task, policy, seeds, np.random.default_rng(0))
