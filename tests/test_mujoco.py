"""MuJoCo's bodies divided among agents: what they see, earn and may do; policies that a run left, and their data."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from fedmorl.cli import main
from fedmorl.data.collect_joint import collect_joint
from fedmorl.data.joint_card import card, episode_returns
from fedmorl.data.joint_transitions import JointTransitions
from fedmorl.evaluation.team import EVALUATION_SEED, play_team
from fedmorl.tasks.mujoco import FORMS, SCENARIOS, MultiAgentMuJoCo, make_body
from fedmorl.tasks.mujoco_data import GRADES, check_arguments, collect_mujoco, medium_and_expert
from fedmorl.tasks.mujoco_training import (
    EPISODES_PER_SEED,
    FIRST_EPISODE,
    MAX_SEED,
    SETTINGS,
    Actor,
    Checkpoint,
    PPOSettings,
    Run,
    TrainedTeam,
    _write_run,
    exported,
    load_or_train,
    train,
)

HOPPER, ANT, CHEETAH = SCENARIOS
JOINTS = {  # of each agent, by their names in gymnasium's XML
    HOPPER: [["thigh_joint"], ["leg_joint"], ["foot_joint"]],
    ANT: [["hip_1", "ankle_1", "hip_2", "ankle_2"], ["hip_3", "ankle_3", "hip_4", "ankle_4"]],
    CHEETAH: [["bthigh"], ["bshin"], ["bfoot"], ["fthigh"], ["fshin"], ["ffoot"]],
}
WIDTHS = {
    (HOPPER, "full"): (14,) * 3,
    (HOPPER, 0): (7, 7, 7),
    (HOPPER, 1): (8, 9, 8),
    (ANT, "full"): (107, 107),
    (ANT, 0): (61, 61),
    (ANT, 1): (63, 63),
    (CHEETAH, "full"): (23,) * 6,
    (CHEETAH, 0): (7,) * 6,
    (CHEETAH, 1): (9, 9, 8, 9, 9, 8),
}
TINY = PPOSettings(
    steps=400, n_envs=2, n_steps=32, batch_size=32, n_epochs=2, gamma=0.99, gae_lambda=0.95, learning_rate=1e-3,
    clip_range=0.2, ent_coef=0.0, vf_coef=0.5, max_grad_norm=0.5, hidden=8,
)  # fmt: skip
LIMIT = 50
SENTENCE = (
    r"^MuJoCo's bodies need the packages mujoco, gymnasium-robotics, stable-baselines3; install the extra: "
    r"pip install -c constraints\.txt -e '\.\[mamujoco\]'$"
)


@pytest.fixture(scope="module")
def extra():
    for module in ("mujoco", "gymnasium_robotics", "stable_baselines3"):
        pytest.importorskip(module, reason="needs the `mamujoco` extra")


@pytest.fixture(scope="module")
def run(extra, tmp_path_factory):
    """A hopper that trained for some steps; its checkpoints are said to have earned 1, 2 and 4."""
    folder = tmp_path_factory.mktemp("mujoco") / "run"
    made = train(
        HOPPER, folder, seed=3, time_limit=LIMIT, settings=TINY, n_checkpoints=3, n_evaluated=2, progress=False
    )
    said = [one._replace(mean_return=float(2**k)) for k, one in enumerate(made.checkpoints)]
    told = json.loads((folder / "run.json").read_text())
    told["checkpoints"] = [one._asdict() for one in said]
    (folder / "run.json").write_text(json.dumps(told))
    return replace(made, checkpoints=tuple(said))


def at_random(task, rng):
    return rng.uniform(-1, 1, (task.batch, task.n_agents, task.action_size)).astype(np.float32)


def moved_by_name(body, scenario, actions):
    """Actions (N, A) as the body takes them: each to the actuator of the joint that the agent has by name."""
    model, moved = body.unwrapped.model, np.zeros(body.action_space.shape, np.float32)
    for actuator in range(model.nu):
        name = model.joint(model.actuator_trnid[actuator, 0]).name
        (place,) = [(i, k) for i, own in enumerate(JOINTS[scenario]) for k, one in enumerate(own) if one == name]
        moved[actuator] = actions[place]
    return moved


# --- without the extra ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make", [MultiAgentMuJoCo, lambda name: train(name, "nowhere"), lambda name: make_body(SCENARIOS[name][0])]
)
def test_without_the_packages_one_sentence_says_how_to_get_them(make, monkeypatch, tmp_path):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModuleNotFoundError, match=SENTENCE):
        make(HOPPER)
    assert not list(tmp_path.iterdir())


def arguments(**change):
    good = {"scenario": HOPPER, "n_transitions": 10, "grade": "expert", "agent_obsk": 0, "seed": 0, "noise": 0.0}
    check_arguments(**good)
    return check_arguments(**good | change)


@pytest.mark.parametrize(
    "bad,said",
    [
        (lambda: MultiAgentMuJoCo("walker-2x3"), "scenario must be one of hopper-3x1, ant-2x4, halfcheetah-6x1; got"),
        (lambda: MultiAgentMuJoCo(HOPPER, 2), 'agent_obsk must be "full", 0 or 1; got 2'),
        (lambda: MultiAgentMuJoCo(HOPPER, True), 'agent_obsk must be "full", 0 or 1; got True'),
        (lambda: MultiAgentMuJoCo(HOPPER, 0, 0), "batch must be an integer >= 1; got 0"),
        (lambda: MultiAgentMuJoCo(HOPPER, 0, 1, 2.5), "time_limit must be an integer >= 1; got 2.5"),
        (lambda: train("walker", "nowhere"), "scenario must be one of hopper-3x1, ant-2x4, halfcheetah-6x1; got"),
        (lambda: train(HOPPER, "nowhere", seed=1000), "seed must be an integer from 0 to 999; got 1000"),
        (lambda: train(HOPPER, "nowhere", steps=0), "steps must be an integer from 1 to 1000000000; got 0"),
        (lambda: train(HOPPER, "nowhere", n_checkpoints=0), "n_checkpoints must be an integer from 1 to 1000; got 0"),
        (lambda: train(HOPPER, "nowhere", time_limit=0), "time_limit must be an integer from 1 to 1000000000; got 0"),
        (lambda: arguments(scenario="walker"), "scenario must be one of"),
        (lambda: arguments(agent_obsk="0"), "agent_obsk must be"),
        (lambda: arguments(grade="good"), "grade must be one of medium-replay, medium, expert, mixed; got 'good'"),
        (lambda: arguments(n_transitions=0), "n_transitions must be an integer from 1 to 100000000; got 0"),
        (lambda: arguments(n_transitions=1, grade="mixed"), "n_transitions must be an integer from 2 to"),
        (lambda: arguments(seed=-1), "seed must be an integer from 0 to 999; got -1"),
        (lambda: arguments(noise=-0.1), "noise must be finite and >= 0; got -0.1"),
        (lambda: arguments(noise=float("nan")), "noise must be finite and >= 0; got nan"),
        (lambda: arguments(noise=float("inf")), "noise must be finite and >= 0; got inf"),
        (lambda: arguments(noise=0.1, grade="medium-replay"), "noise must be 0 in medium-replay"),
    ],
)
def test_arguments_out_of_range_are_refused_before_anything_is_imported(bad, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="^" + said.replace("(", r"\(")):
        bad()
    assert not list(tmp_path.iterdir())


def test_episodes_of_training_of_data_and_of_an_evaluation_never_share_a_seed():
    assert 0 < FIRST_EPISODE < EPISODES_PER_SEED and EPISODES_PER_SEED * (MAX_SEED + 1) <= EVALUATION_SEED


def run_of(*returns, folder=Path("run")):
    checkpoints = [Checkpoint(100 * (k + 1), float(r), 1.0, k, 0.0) for k, r in enumerate(returns)]
    return Run(
        folder=folder, scenario=HOPPER, version="v5", algorithm="PPO", seed=0, steps=100, time_limit=LIMIT,
        settings=TINY, checkpoints=tuple(checkpoints),
    )  # fmt: skip


def test_expert_earned_most_and_medium_half_as_much_on_the_way_there():
    medium, expert = medium_and_expert(run_of(10, 900, 1400, 2100, 3000, 1500))
    assert (medium.mean_return, expert.mean_return) == (1400, 3000)  # 1500 came after the expert
    assert medium_and_expert(run_of(10, 1300, 2100, 1500, 3000))[0].mean_return == 1300  # 1500 had fallen back
    assert medium_and_expert(run_of(10, 1900, 1500, 3000))[0].mean_return == 1900
    for none in (run_of(3000, 1000), run_of(-9, -5)):
        with pytest.raises(ValueError, match=r"has no checkpoint below its best, of return .* train for longer"):
            medium_and_expert(none)


def test_what_is_no_finished_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no finished training run: train one there"):
        Run.load(tmp_path)
    for text in ("no JSON", "[]", '{"schema": "other/1"}', '{"schema": "fedmorl-mujoco-run/1", "settings": {}}'):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(ValueError, match=r"run\.json does not describe a training run; train again"):
            Run.load(tmp_path)
    _write_run(run_of(1, 2, folder=tmp_path))
    assert Run.load(tmp_path) == run_of(1, 2, folder=tmp_path)
    text = (tmp_path / "run.json").read_text()
    (tmp_path / "run.json").write_text(text.replace("fedmorl-mujoco-run/1", "fedmorl-mujoco-run/0"))
    with pytest.raises(ValueError, match=r"run\.json does not describe a training run; train again"):
        Run.load(tmp_path)
    (tmp_path / "rollouts.safetensors").write_text("nothing")
    with pytest.raises(ValueError, match=r"rollouts\.safetensors does not hold the rollouts of a run"):
        run_of(1, folder=tmp_path).rollouts()


@pytest.mark.parametrize("noise", [0.0, 0.4])
def test_an_action_is_drawn_about_the_mean_with_the_policys_own_noise_and_ours_and_clipped(noise):
    """Bounds of 4.5 standard errors of 20,000 draws."""
    actor, states, n = Actor(4, 2, 8), np.ones((20_000, 4)), 20_000
    with torch.no_grad():
        actor.layers[-1].weight.zero_()
        actor.layers[-1].bias.copy_(torch.tensor([0.1, 5.0]))
        actor.log_sd.fill_(np.log(0.1))
    actions, sd = actor.act(states, noise, np.random.default_rng(0)), np.hypot(0.1, noise)
    assert (actions[:, 1] == 1).all() and abs(actions).max() <= 1
    inside = np.clip(0.1 + sd * np.random.default_rng(1).standard_normal(10**6), -1, 1)
    assert actions[:, 0].mean() == pytest.approx(inside.mean(), abs=4.5 * sd / np.sqrt(n))
    assert actions[:, 0].std() == pytest.approx(inside.std(), abs=4.5 * sd / np.sqrt(2 * n))


def test_the_settings_fill_whole_batches():
    for settings in SETTINGS.values():
        assert settings.n_envs * settings.n_steps % settings.batch_size == 0


# --- the task -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_states_rewards_and_falls_are_those_of_gymnasiums_own_environment(extra, scenario):
    """The same actions, joint by joint by their names."""
    task, own, rng = MultiAgentMuJoCo(scenario, "full", 2), make_body(SCENARIOS[scenario][0]), np.random.default_rng(0)
    observations = task.reset([11, 7])
    state, _ = own.reset(seed=7)
    terminated = False
    for _ in range(150):
        np.testing.assert_array_equal(task.states()[1], state.astype(np.float32), strict=True)
        np.testing.assert_array_equal(observations[1, :, : task.state_size], [task.states()[1]] * task.n_agents)
        np.testing.assert_array_equal(observations[1, :, task.state_size :], np.eye(task.n_agents))
        if terminated:
            break
        actions = at_random(task, rng)
        state, reward, terminated, _, _ = own.step(moved_by_name(own, scenario, actions[1]))
        step = task.step(actions)
        observations = step.observations
        assert step.rewards[1] == reward and step.terminated[1] == terminated
    assert terminated or scenario != HOPPER  # which falls if it moves at random


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("agent_obsk", FORMS)
def test_widths_and_sizes_of_each_form(extra, scenario, agent_obsk):
    task = MultiAgentMuJoCo(scenario, agent_obsk, 2)
    n = len(JOINTS[scenario])
    assert task.widths == WIDTHS[scenario, agent_obsk]
    assert task.state_size == {HOPPER: 11, ANT: 105, CHEETAH: 17}[scenario]
    assert (task.n_agents, task.action_size, task.discrete) == (n, len(JOINTS[scenario][0]), False)
    seen = task.reset([0, 1])
    assert seen.shape == (2, n, task.observation_size) == (2, n, max(task.widths)) and seen.dtype == np.float32
    for i, width in enumerate(task.widths):
        assert not seen[:, i, width:].any()
    np.testing.assert_array_equal(task.parts.states(seen), task.states())


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("agent_obsk", [0, 1])
def test_agents_see_what_mamujocos_own_environment_shows_them(extra, scenario, agent_obsk, tmp_path, monkeypatch):
    """Which takes it from MuJoCo's memory, not from the state."""
    from gymnasium_robotics import mamujoco_v1

    monkeypatch.chdir(tmp_path)  # where MuJoCo writes what it has to say of the XML
    own = mamujoco_v1.parallel_env(*SCENARIOS[scenario], agent_obsk=agent_obsk)
    task, rng = MultiAgentMuJoCo(scenario, agent_obsk), np.random.default_rng(0)
    seen, shown = task.reset([5]), own.reset(seed=5)[0]
    for _ in range(8):
        for i, (name, width) in enumerate(zip(own.possible_agents, task.widths, strict=True)):
            np.testing.assert_array_equal(seen[0, i, :width], shown[name].astype(np.float32))
        actions = at_random(task, rng)
        seen = task.step(actions).observations
        shown = own.step(dict(zip(own.possible_agents, actions[0], strict=True)))[0]


def test_the_hoppers_leg_sees_its_joint_its_neighbours_and_the_torso(extra):
    task = MultiAgentMuJoCo(HOPPER, 1)
    seen = task.reset([0])
    z, pitch, thigh, leg, foot, vx, vz, v_pitch, _, v_leg, _ = task.states()[0]
    np.testing.assert_array_equal(seen[0, 1], [leg, v_leg, foot, thigh, z, pitch, vx, vz, v_pitch])


def until_it_falls(task):
    """A hopper thrown forward; all its steps."""
    task.reset([0] * task.batch)
    steps = []
    while not steps or not steps[-1].terminated[0]:
        steps.append(task.step(np.ones((task.batch, 3, 1))))
    return steps


def test_a_fallen_hopper_terminates_stands_still_and_earns_nothing_more(extra):
    task = MultiAgentMuJoCo(HOPPER, 0)
    steps = until_it_falls(task)
    assert 5 < len(steps) < 100 and not any(one.truncated[0] for one in steps)
    assert not any(one.terminated[0] for one in steps[:-1])  # nor did the fall change what had been told before
    before, after = task.states(), task.step(np.zeros((1, 3, 1)))
    np.testing.assert_array_equal(before, task.states())
    assert after.terminated[0] and not after.truncated[0] and after.rewards[0] == 0 != steps[-1].rewards[0]
    exact = MultiAgentMuJoCo(HOPPER, 0, 1, time_limit=len(steps))  # falls at the very step of the limit
    last = until_it_falls(exact)[-1]
    assert last.terminated[0] and not last.truncated[0]


def test_the_limit_truncates_to_the_step(extra):
    task = MultiAgentMuJoCo(CHEETAH, 0, 2, time_limit=3)
    with pytest.raises(RuntimeError, match="call reset"):
        task.step(np.zeros((2, 6, 1)))
    task.reset([0, 1])
    steps = [task.step(np.zeros((2, 6, 1))) for _ in range(3)]
    assert [one.truncated.all() for one in steps] == [one.truncated.any() for one in steps] == [False, False, True]
    assert not any(one.terminated.any() for one in steps)
    with pytest.raises(RuntimeError, match="call reset"):
        task.step(np.zeros((2, 6, 1)))


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_an_episode_is_the_same_wherever_it_stands_and_whatever_was_played_before(extra, scenario):
    rng = np.random.default_rng(0)
    one, three = MultiAgentMuJoCo(scenario, 0), MultiAgentMuJoCo(scenario, 0)
    chosen = [at_random(one, rng) for _ in range(10)]

    def play(task, seeds):
        seen = [task.reset(seeds)]
        for actions in chosen:
            step = task.step(np.repeat(actions, len(seeds), 0))
            seen += [step.observations, np.repeat(step.rewards, step.observations[0].size).reshape(seen[0].shape)]
        return np.stack(seen)

    alone = play(one, [4])
    batch = play(three, [3, 9, 4])  # more episodes than it was made for
    np.testing.assert_array_equal(alone[:, 0], batch[:, 2])
    np.testing.assert_array_equal(alone, play(one, [4]))
    assert (batch[:, 0] != batch[:, 2]).any() and three.batch == 3


@pytest.mark.parametrize("bad", [1.001, -1.5, np.nan, np.inf])
def test_actions_out_of_bounds_are_refused_and_not_clipped(extra, bad):
    task = MultiAgentMuJoCo(ANT, 0, 2)
    task.reset([0, 1])
    actions = np.zeros((2, 2, 4))
    actions[1, 0, 3] = bad
    with pytest.raises(ValueError, match=f"^actions must be from -1 to 1; got {bad:g}: clip them on purpose"):
        task.step(actions)
    task.step(np.sign(np.nan_to_num(actions)))


def test_other_shapes_kinds_and_seeds_are_refused(extra):
    task = MultiAgentMuJoCo(HOPPER, 0, 2)
    task.reset([0, 1])
    with pytest.raises(ValueError, match=r"actions must be numbers of shape \(2, 3, 1\) \(episodes, agents, joints"):
        task.step(np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"actions must be numbers of shape .* got bool"):
        task.step(np.zeros((2, 3, 1), bool))
    for seeds in ([], [-1], [0.5], [True]):
        with pytest.raises(ValueError, match="seeds must be integers >= 0, one an episode"):
            task.reset(seeds)


def test_making_a_task_leaves_no_file_no_words_and_no_handler_behind(extra, tmp_path):
    """MuJoCo has something to say of the half-cheetah's XML, and would write it to a file too."""
    code = (
        "import mujoco; before = mujoco.get_mju_user_warning()\n"
        "from fedmorl.tasks.mujoco import MultiAgentMuJoCo; MultiAgentMuJoCo('halfcheetah-6x1', 0)\n"
        "assert mujoco.get_mju_user_warning() is before"
    )
    paths = {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=os.environ | paths
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "") and not list(tmp_path.iterdir())


class AtRandom:
    def start(self, batch, rng):
        return None

    def act(self, observations, memory, rng):
        return rng.uniform(-1, 1, (*observations.shape[:2], 1)), None

    def rewarded(self, memory, rewards):
        return None


def test_joint_transitions_know_who_sees_less_and_their_actions_play_them_again(extra):
    task = MultiAgentMuJoCo(HOPPER, 1, time_limit=60)
    log = collect_joint(task, AtRandom(), 4, seed=2, behaviour={"name": "random"})
    assert log.widths == (8, 9, 8) and not log.observations[:, ::2, 8].any() and log.observations[:, 1, 8].any()
    assert log.env_id == "Hopper-3x1" and log.env_version == f"v5, mujoco {metadata.version('mujoco')}"
    assert MultiAgentMuJoCo(**log.env_kwargs).env_kwargs == log.env_kwargs
    again = MultiAgentMuJoCo(HOPPER, 1)
    for episode in np.unique(log.episodes):
        rows = log.take(log.episodes == episode)
        again.reset([int(episode)])
        for t in range(len(rows)):
            np.testing.assert_array_equal(again.states()[0], rows.states[t])
            step = again.step(rows.actions[t : t + 1])
            assert np.float32(step.rewards[0]) == rows.rewards[t] and step.terminated[0] == rows.terminated[t]
        assert rows.terminated[-1]


# --- training and data ----------------------------------------------------------------------------------


def test_the_policy_that_is_kept_is_the_librarys(extra):
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    bodies = VecNormalize(DummyVecEnv([lambda: make_body("Hopper", LIMIT)]))
    network = {"net_arch": [8, 8], "activation_fn": torch.nn.ReLU, "log_std_init": -1.5}
    model = PPO("MlpPolicy", bodies, n_steps=64, batch_size=64, policy_kwargs=network, seed=0, device="cpu")
    model.learn(256)
    actor, states = exported(model, bodies), 3 * np.random.default_rng(0).standard_normal((50, 11))
    states[:3] *= 100  # beyond what the normalised state is cut to
    with torch.no_grad():
        theirs = model.policy.get_distribution(torch.as_tensor(bodies.normalize_obs(states), dtype=torch.float32))
        np.testing.assert_allclose(actor(torch.as_tensor(states).float()), theirs.distribution.mean, atol=1e-5)
        np.testing.assert_allclose(actor.log_sd.exp().expand(50, 3), theirs.distribution.stddev, rtol=1e-6)


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("agent_obsk", FORMS)
def test_a_team_moves_every_joint_as_its_policy_does(extra, scenario, agent_obsk):
    """Whatever its agents see; joints by their names."""
    task, own = MultiAgentMuJoCo(scenario, agent_obsk), make_body(SCENARIOS[scenario][0])
    observations = task.reset([0])
    actor = Actor(task.state_size, task.parts.joints.size, 8)  # with weights as they are drawn at first
    actions, _ = TrainedTeam(actor, task.parts, 0.1).act(observations, None, np.random.default_rng(0))
    moved = actor.act(own.reset(seed=0)[0][None].astype(np.float32), 0.1, np.random.default_rng(0))
    np.testing.assert_array_equal(moved_by_name(own, scenario, actions[0]), moved[0].astype(np.float32))


def test_training_is_cut_at_its_limit_too(extra, tmp_path):
    """A half-cheetah, which never falls: each episode of training and of data has the limit's length."""
    made = train(
        CHEETAH, tmp_path, time_limit=7, settings=TINY, steps=64, n_checkpoints=2, n_evaluated=1, progress=False
    )
    assert (made.rollouts().lengths == 7).all() and len(made.rollouts().lengths) == 8  # of two bodies, 32 steps each
    made = replace(made, checkpoints=tuple(c._replace(mean_return=k + 1) for k, c in enumerate(made.checkpoints)))
    for grade in ("medium", "medium-replay"):
        log = collect_mujoco(CHEETAH, made, 21, grade=grade, progress=False)
        assert len(log) == 21 and not log.terminated.any()


def test_a_run_is_a_folder_of_plain_files_and_the_same_for_the_same_seed(run, tmp_path, monkeypatch):
    kept = sorted(one.name for one in run.folder.iterdir())
    assert kept == ["rollouts.safetensors", "run.json", *(one.name for one in run.checkpoints)]
    assert Run.load(run.folder) == run and len(run.checkpoints) == 3
    assert [one.step for one in run.checkpoints] == [134, 268, 448]  # past a third, two thirds, the last whole round
    monkeypatch.setattr("torch.get_num_threads", lambda: 5)  # before the run, as it is told
    threads = []
    monkeypatch.setattr("torch.set_num_threads", threads.append)
    torch.rand(1), np.random.rand()  # noqa: NPY002 - elsewhere than a run of this seed leaves the generators
    of_torch, (_, keys, place, *_) = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    again = train(
        HOPPER, tmp_path, seed=3, time_limit=LIMIT, settings=TINY, n_checkpoints=3, n_evaluated=2, progress=False
    )
    assert torch.equal(torch.get_rng_state(), of_torch) and threads == [1, 5]
    assert np.random.get_state()[2] == place and (np.random.get_state()[1] == keys).all()  # noqa: NPY002
    for name in (*(one.name for one in run.checkpoints), "rollouts.safetensors"):
        first, second = load_file(run.folder / name), load_file(tmp_path / name)
        for key in first.keys() | second.keys():
            np.testing.assert_array_equal(first[key], second[key], strict=True)
    with pytest.raises(ValueError, match="holds a finished run; take it as it is, or name another folder"):
        train(HOPPER, tmp_path)
    task = MultiAgentMuJoCo(HOPPER, 0, 2, LIMIT)
    returns = play_team(  # as the run evaluated it, from what agents with short sight see together
        task,
        TrainedTeam(again.actor(again.checkpoints[-1]), task.parts),
        [EVALUATION_SEED, EVALUATION_SEED + 1],
        np.random.default_rng(3),
    )["returns"]
    assert returns.mean() == again.checkpoints[-1].mean_return


def test_a_run_that_is_interrupted_is_not_taken_for_a_run(extra, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("fedmorl.tasks.mujoco_training._write_rollouts", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(HOPPER, tmp_path, time_limit=9, settings=TINY, n_checkpoints=1, n_evaluated=1, progress=False)
    assert [one.suffix for one in tmp_path.iterdir()] == [".safetensors"]
    with pytest.raises(ValueError, match="holds no finished training run"):
        Run.load(tmp_path)


@pytest.mark.parametrize("grade", GRADES)
@pytest.mark.parametrize("agent_obsk", ["full", 1])
def test_data_of_each_grade_end_to_end(run, tmp_path, grade, agent_obsk):
    log = collect_mujoco(HOPPER, run, 150, grade=grade, agent_obsk=agent_obsk, progress=False)
    log.save(tmp_path / "log.h5")
    back = JointTransitions.load(tmp_path / "log.h5")
    assert back.content_hash == log.content_hash and back.widths == WIDTHS[HOPPER, agent_obsk]
    lengths = np.bincount(log.episodes)
    assert 150 <= len(log) < 150 + 2 * lengths.max()  # whole episodes; mixed are two logs
    text = card(back)
    assert f"PPO/{'medium-expert' if grade == 'mixed' else grade}" in text and "\npublished " in text
    told = log.behaviour["behaviours"] if grade == "mixed" else [log.behaviour]
    medium, expert = run.checkpoints[1:]
    of = {"expert": [expert], "mixed": [medium, expert]}.get(grade, [medium])
    assert [(one["training_step"], one["checkpoint_return"]) for one in told] == [(c.step, c.mean_return) for c in of]
    again = collect_mujoco(HOPPER, run, 150, grade=grade, agent_obsk=agent_obsk, progress=False)
    assert again.content_hash == log.content_hash
    other = collect_mujoco(HOPPER, run, 150, grade=grade, agent_obsk=agent_obsk, seed=1, progress=False)
    assert other.content_hash != log.content_hash


def test_mixed_data_are_half_medium_and_half_expert(run):
    parts = [collect_mujoco(HOPPER, run, n, grade=g, progress=False) for g, n in (("medium", 101), ("expert", 100))]
    mixed = collect_mujoco(HOPPER, run, 201, grade="mixed", progress=False)
    for name in ("states", "actions", "rewards"):
        np.testing.assert_array_equal(getattr(mixed, name), np.concatenate([getattr(part, name) for part in parts]))


def test_more_data_begin_as_less_do_and_noise_moves_every_action(run):
    few, many = (collect_mujoco(HOPPER, run, n, grade="expert", progress=False) for n in (60, 200))
    np.testing.assert_array_equal(few.states, many.states[: len(few)])
    noisy = collect_mujoco(HOPPER, run, 60, grade="expert", noise=0.3, progress=False)
    assert (noisy.actions[0] != few.actions[0]).all() and noisy.behaviour["noise"] == 0.3
    np.testing.assert_array_equal(noisy.states[0], few.states[0])


def test_medium_replay_is_the_training_up_to_the_medium_policy(run):
    """All episodes that were over by then, and of each what was done."""
    log = collect_mujoco(HOPPER, run, 10**6, grade="medium-replay", progress=False)
    medium, rollouts = run.checkpoints[1], run.rollouts()
    n = medium.episodes
    assert 0 < n < len(rollouts.seeds) and len(episode_returns(log)) == n
    np.testing.assert_allclose(np.sort(episode_returns(log)), np.sort(rollouts.returns[:n]), rtol=1e-6)
    assert {rows.tobytes() for rows in log.actions} <= {rows.tobytes() for rows in rollouts.actions}
    assert len(log) == rollouts.lengths[:n].sum() <= medium.step
    assert (rollouts.seeds >= EPISODES_PER_SEED * 3 + FIRST_EPISODE).all()
    assert log.terminated.sum() == n  # every one of them fell before the limit


def test_a_training_that_does_not_play_again_as_it_was_is_refused(run, tmp_path, monkeypatch):
    rollouts = run.rollouts()
    changed = rollouts._replace(returns=rollouts.returns + 1e-3)
    monkeypatch.setattr(Run, "rollouts", lambda _: changed)
    with pytest.raises(ValueError, match=r"does not play again as it was: the episode of seed 3500.* train it on this"):
        collect_mujoco(HOPPER, run, 10, grade="medium-replay", progress=False)
    other = replace(run, version="v5, mujoco 3.0.0")
    with pytest.raises(
        ValueError, match=r"is of the bodies v5, mujoco 3\.0\.0 and here are v5, mujoco .*; train again"
    ):
        collect_mujoco(HOPPER, other, 10, progress=False)
    with pytest.raises(
        ValueError, match=r"scenario is ant-2x4 and the run in .* is of hopper-3x1; train one of its own"
    ):
        collect_mujoco(ANT, run, 10, progress=False)
    early = replace(run, checkpoints=(run.checkpoints[1]._replace(episodes=0), run.checkpoints[2]))
    with pytest.raises(ValueError, match=r"no episode of the run in .* was over before step 268; train for longer"):
        collect_mujoco(HOPPER, early, 10, grade="medium-replay", progress=False)


def test_a_run_is_trained_once_and_found_again(tmp_path, monkeypatch):
    (tmp_path / "_toc.yml").touch()
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    trained = []

    def training(scenario, folder, *, seed, steps, progress):
        trained.append(folder)
        folder.mkdir(parents=True)
        made = replace(run_of(1.0, folder=folder), scenario=scenario, seed=seed, steps=steps or 1_000_000)
        _write_run(made)
        return made

    monkeypatch.setattr("fedmorl.tasks.mujoco_training.train", training)
    made, found = load_or_train(HOPPER, seed=3, steps=70), load_or_train(HOPPER, seed=3, steps=70)
    assert found == made and trained == [tmp_path / "_build" / "mujoco" / "hopper-3x1-3-70"]
    assert load_or_train(HOPPER, seed=3).steps == 1_000_000  # another folder
    assert load_or_train(HOPPER, made.folder, seed=9) == made  # a folder is taken as it is
    with pytest.raises(ValueError, match=r"holds a run of 70 steps; ask for no number of steps, or name"):
        load_or_train(HOPPER, made.folder, steps=71)
    with pytest.raises(ValueError, match="scenario must be one of"):
        load_or_train("walker")
    assert len(trained) == 2


def test_of_two_that_ask_at_once_one_trains(tmp_path, monkeypatch):
    trained = []

    def training(scenario, folder, **options):
        trained.append(folder)
        time.sleep(0.3)
        folder.mkdir()
        _write_run(run_of(1.0, folder=folder))
        return Run.load(folder)

    monkeypatch.setattr("fedmorl.tasks.mujoco_training.train", training)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: load_or_train(HOPPER, tmp_path / "run"), range(2))
    assert first == second and len(trained) == 1


def test_the_command_collects_from_a_run_and_trains_where_there_is_none(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    made = ["data", "collect-mujoco", HOPPER, "--transitions", "80", "--run", str(run.folder), "--observations", "1"]
    assert main([*made, "--grade", "mixed", "--noise", "0.2", "--seed", "5", "-o", "log.h5"]) == 0
    log, said = JointTransitions.load("log.h5"), capsys.readouterr().out
    n, mean = len(np.unique(log.episodes)), episode_returns(log).mean()
    assert said.startswith(f"log.h5: {len(log)} transitions in {n} episodes, mean return {mean:.0f} (sd ")
    same = collect_mujoco(HOPPER, run, 80, grade="mixed", agent_obsk=1, seed=5, noise=0.2, progress=False)
    assert log.content_hash == same.content_hash and log.content_hash[:12] in said
    assert main(["data", "card", "log.h5"]) == 0 and "PPO/medium-expert" in capsys.readouterr().out
    for options, words in [
        (["-o", "log.h5"], "fedmorl data: log.h5 exists; "),
        (["-o", "x.h5", "--steps", "7"], f"holds a run of {run.steps} steps; ask for no number of steps, or"),
        (["-o", "x.h5", "--observations", "2"], "--observations must be one of full, 0, 1; got '2'"),
        (["-o", "x.h5", "--grade", "good"], "grade must be one of medium-replay, "),
    ]:
        assert main([*made, *options]) == 1 and words in capsys.readouterr().err
    asked = []

    def trained(scenario, folder, **options):
        asked.append((scenario, folder, options))
        return run

    monkeypatch.setattr("fedmorl.tasks.mujoco_training.train", trained)
    fresh = ["data", "collect-mujoco", HOPPER, "--transitions", "20", "--steps", "1000", "--seed", "2", "-o", "y.h5"]
    assert main([*fresh, "--grade", "good"]) == 1 and asked == []  # said before minutes of training
    assert main(fresh) == 0
    folder = tmp_path / "_build" / "mujoco" / "hopper-3x1-2-1000"
    assert asked == [(HOPPER, folder, {"seed": 2, "steps": 1000, "progress": True})]
