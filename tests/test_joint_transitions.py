"""Joint transitions: what they hold, what they refuse, their file and their card."""

from dataclasses import replace

import h5py
import numpy as np
import pytest

from fedmorl.data import joint_card, joint_files
from fedmorl.data.dataset import DatasetError
from fedmorl.data.joint_transitions import ARRAYS, JointTransitions, concatenate_joint, from_trajectories
from fedmorl.data.trajectories import Trajectories


def joint(lengths=(4, 2, 3), n_agents=2, seed=0, discrete=False, **change):
    """Episodes of random numbers; agent 1 sees 2 numbers, the others 3; the first episode terminates."""
    rng, t = np.random.default_rng(seed), sum(lengths)
    seen = (2, t, n_agents, 3)
    before, after = rng.random(seen).astype(np.float32) * (np.arange(3) < np.array([3, 2, 3, 3])[:n_agents, None])
    choices = rng.integers(0, 2, (t, n_agents))
    return JointTransitions(
        **{
            "states": rng.random((t, 4)),
            "next_states": rng.random((t, 4)),
            "observations": before,
            "next_observations": after,
            "actions": np.eye(2)[choices] if discrete else rng.uniform(-1, 1, (t, n_agents, 2)),
            "rewards": rng.random(t),
            "terminated": np.arange(t) == lengths[0] - 1,
            "episodes": np.repeat(np.arange(len(lengths)), lengths),
            "discrete": discrete,
            "widths": (3, 2, 3, 3)[:n_agents],
            "env_id": "toy",
            "env_version": "1",
            "env_kwargs": {"size": 3},
            "reward_def": "team",
            "behaviour": {"name": "expert"},
        }
        | change
    )


def changed(log, name, where, value):
    array = np.array(getattr(log, name))
    array[where] = value
    return {name: array}


# --- the file -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("discrete", [False, True])
def test_a_file_gives_back_what_was_saved(tmp_path, discrete):
    log = joint(discrete=discrete)
    log.save(tmp_path / "new" / "log.h5")
    back = JointTransitions.load(tmp_path / "new" / "log.h5")
    assert back.content_hash == log.content_hash and back.attributes() == log.attributes()
    for name, (dtype, _) in ARRAYS.items():
        np.testing.assert_array_equal(getattr(back, name), getattr(log, name), strict=True)
        assert getattr(back, name).dtype.str == dtype
    assert back.widths == (3, 2) and back.discrete is discrete
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["log.h5"]


def test_the_hash_sees_arrays_and_meaning_but_not_the_packing(tmp_path):
    log = joint()
    for level in (0, 9):
        joint_files.write(log, tmp_path / f"{level}.h5", gzip_level=level)
        assert JointTransitions.load(tmp_path / f"{level}.h5").content_hash == log.content_hash
    assert (tmp_path / "0.h5").read_bytes() != (tmp_path / "9.h5").read_bytes()
    others = [replace(log, **changed(log, name, 0, 0)) for name in ("rewards", "next_states")]
    others += [replace(log, reward_def="other"), replace(log, behaviour={"name": "poor"}), replace(log, widths=(3, 3))]
    assert len({one.content_hash for one in (log, *others)}) == 6


def test_a_writing_that_is_interrupted_leaves_the_old_file(tmp_path, monkeypatch):
    old, path = joint(), tmp_path / "log.h5"
    old.save(path)

    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(joint_files, "_sync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        joint(seed=1).save(path)
    assert JointTransitions.load(path).content_hash == old.content_hash
    assert [one.name for one in tmp_path.iterdir()] == ["log.h5"]


def test_a_file_that_was_changed_is_refused(tmp_path):
    path = tmp_path / "log.h5"

    def change_reward(file):
        file["rewards"][0] = 0.5

    def change_meaning(file):
        file.attrs["reward_def"] = '"other"'

    for change, words in [
        (change_reward, "the content hash is not the content's"),
        (change_meaning, "the content hash is not the content's"),
        (lambda file: file.attrs.modify("env_id", "toy"), "the attribute env_id is not JSON text"),
        (lambda file: file.attrs.pop("discrete"), "the attribute discrete is missing"),
        (lambda file: file.pop("episodes"), "episodes missing"),
        (lambda file: file.attrs.modify("schema", '"fedmorl-joint/9"'), "schema is 'fedmorl-joint/9'"),
        (lambda file: _replaced(file, "states", file["states"][()].astype("f8")), "states must have dtype float32"),
        (lambda file: _replaced(file, "states", h5py.ExternalLink("/etc/hosts", "states")), "inside the file"),
    ]:
        joint().save(path)
        with h5py.File(path, "r+") as file:
            change(file)
        with pytest.raises(DatasetError) as error:
            JointTransitions.load(path)
        assert str(error.value).startswith(f"{path}: ") and words in str(error.value)


def _replaced(file, name, value):
    del file[name]
    file[name] = value


def test_what_is_no_log_is_refused(tmp_path):
    (tmp_path / "text.h5").write_text("not a log")
    with pytest.raises(DatasetError, match=r"text\.h5: the file is no HDF5 file"):
        JointTransitions.load(tmp_path / "text.h5")
    with pytest.raises(FileNotFoundError):
        JointTransitions.load(tmp_path / "none.h5")


# --- what is refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda log: changed(log, "rewards", 3, np.nan), "rewards must be finite; it holds nan at (3,)"),
        (lambda log: changed(log, "next_states", (1, 2), np.inf), "next_states must be finite; it holds inf at (1, 2)"),
        (lambda log: changed(log, "observations", (0, 1, 2), 1), "observations of agent 1 must be 0 behind its 2 num"),
        (lambda log: changed(log, "next_observations", (0, 1, 2), 1), "next_observations of agent 1 must be 0 behind"),
        (lambda log: changed(log, "actions", (2, 1, 0), -1.5), "actions must be from -1 to 1; got -1.5 at (2, 1, 0)"),
        (lambda log: {"discrete": True}, "actions must be one-hot"),
        (lambda log: {"rewards": log.rewards[:-1]}, "rewards must have shape (9,), as observations (9, 2, 3)"),
        (lambda log: {"next_states": log.next_states[:, :3]}, "next_states must have shape (9, 4)"),
        (lambda log: {"actions": log.actions[:, :1]}, "actions must have shape (9, 2, 2)"),
        (lambda log: {"states": log.states[:, 0]}, "states must hold numbers of shape (T, S)"),
        (lambda log: {"observations": [[[1.0], [1.0, 2.0]]]}, "rows of unequal width; pad agents"),
        (lambda log: {"widths": (3,)}, "widths must be 2 integers from 1 to 3"),
        (lambda log: {"widths": (3, 0)}, "widths must be 2 integers from 1 to 3"),
        (lambda log: {"widths": (3, 4)}, "widths must be 2 integers from 1 to 3"),
        (lambda log: {name: array[:0] for name, array in log.arrays().items()}, "none of them 0"),
        (lambda log: {"rewards": np.array(["much"] * 9)}, "rewards must hold numbers"),
    ],
)
def test_a_broken_log_is_refused_in_one_sentence_that_names_the_field(change, words):
    log = joint()
    with pytest.raises(DatasetError) as error:
        replace(log, **change(log))
    assert words in str(error.value)


def test_choices_must_be_one_of_them():
    log = joint(discrete=True)
    for one in ((0, 0), (1, 1), (0.5, 0.5)):
        with pytest.raises(DatasetError, match="actions must be one-hot"):
            replace(log, **changed(log, "actions", (4, 1), one))


def test_arrays_cannot_be_written():
    log = joint()
    for array in log.arrays().values():
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


@pytest.mark.parametrize("change", [{"env_id": "other"}, {"env_version": "2"}])
def test_data_of_another_task_or_version_are_refused(change):
    log = joint()
    log.check_task("toy", "1")
    with pytest.raises(DatasetError, match=f"{next(iter(change))} of the data is"):
        log.check_task(**{"env_id": "toy", "env_version": "1"} | change)


# --- parts ----------------------------------------------------------------------------------------------


def test_rows_are_taken_with_all_that_belongs_to_them():
    log = joint()
    for rows in (np.array([8, 0, 3]), log.rewards > 0.5, slice(2, 5)):
        part = log.take(rows)
        for name, array in log.arrays().items():
            np.testing.assert_array_equal(getattr(part, name), array[rows])
        assert part.attributes() == log.attributes()


@pytest.mark.parametrize("share, n_second", [(0.0, 1), (0.3, 3), (0.5, 5), (1.0, 9)])
def test_a_split_is_by_whole_episodes_and_loses_none(share, n_second):
    log = joint(lengths=(3, 1, 4, 1, 5, 9, 2, 6, 5, 3))
    first, second = log.split(share, np.random.default_rng(0))
    assert len(np.unique(second.episodes)) == n_second
    assert set(first.episodes) | set(second.episodes) == set(range(10)) and not set(first.episodes) & set(
        second.episodes
    )
    assert sorted([*first.rewards, *second.rewards]) == sorted(log.rewards)
    again = log.split(share, np.random.default_rng(0))[1]
    assert again.content_hash == second.content_hash
    drawn = {tuple(np.unique(log.split(share, np.random.default_rng(k))[1].episodes)) for k in range(5)}
    assert len(drawn) > 1, "episodes are not drawn at random"


def test_one_episode_is_not_split():
    with pytest.raises(DatasetError, match="two or more to be split; got 1"):
        joint(lengths=(5,)).split(0.5, np.random.default_rng(0))


def test_joined_logs_keep_their_rows_and_number_episodes_anew():
    one, two = joint(), joint(seed=1).take(slice(4, 9))  # episodes 0, 1, 2 and 1, 2
    both = concatenate_joint([one, two], {"name": "mixed"})
    np.testing.assert_array_equal(both.rewards, np.concatenate([one.rewards, two.rewards]))
    np.testing.assert_array_equal(both.episodes, [0, 0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 4, 4])
    assert both.behaviour == {"name": "mixed"}
    for change in ({"env_version": "2"}, {"reward_def": "other"}, {"widths": (3, 3)}):
        with pytest.raises(DatasetError, match=f"{next(iter(change))} differs: .* in log 1"):
            concatenate_joint([one, replace(two, **change)], {})


def test_steps_of_trajectories_become_rows():
    """Episode 0 has two steps and terminates, episode 1 has three and is truncated; 10 e + t stands in every array."""
    place = 10.0 * np.arange(2)[:, None] + np.arange(4)
    seen = np.arange(4) <= np.array([[2], [3]])
    played = np.arange(3) < np.array([[2], [3]])
    place = place * seen
    log = Trajectories(
        observations=(place[:, :, None, None] + np.array([[0.1], [0.2]])) * seen[..., None, None],
        states=place[..., None] - 5 * seen[..., None],
        actions=np.array([[[0, 1], [2, 0], [0, 0]], [[1, 1], [2, 2], [0, 1]]]),
        rewards=place[:, :3] * played,
        terminated=np.array([[0, 1, 0], [0, 0, 0]], bool),
        truncated=np.array([[0, 0, 0], [0, 0, 1]], bool),
        lengths=[2, 3],
        episode_seeds=[7, 8],
        behaviour_ids=[0, 0],
        env_id="toy",
        env_version="1",
        env_kwargs={"size": 3},
        n_actions=3,
        reward_def="team",
        time_limit=3,
        behaviours=({"name": "expert"},),
    )
    rows = from_trajectories(log)
    at = np.array([0, 1, 10, 11, 12], np.float32)
    np.testing.assert_array_equal(rows.states[:, 0], at - 5)
    np.testing.assert_array_equal(rows.next_states[:, 0], at - 4)
    np.testing.assert_allclose(rows.observations[..., 0], np.stack([at + 0.1, at + 0.2], 1), rtol=1e-6)
    np.testing.assert_allclose(rows.next_observations[..., 0], np.stack([at + 1.1, at + 1.2], 1), rtol=1e-6)
    np.testing.assert_array_equal(rows.rewards, at)
    np.testing.assert_array_equal(rows.terminated, [0, 1, 0, 0, 0])
    np.testing.assert_array_equal(rows.episodes, [0, 0, 1, 1, 1])
    np.testing.assert_array_equal(rows.actions.argmax(-1), [[0, 1], [2, 0], [1, 1], [2, 2], [0, 1]])
    assert rows.discrete and rows.actions.sum() == 10 and rows.env_kwargs == {"size": 3}
    assert rows.behaviour == {"behaviours": [{"name": "expert"}]}
    with pytest.raises(DatasetError, match="states must be in the log"):
        from_trajectories(replace(log, states=None))


# --- the card -------------------------------------------------------------------------------------------


def test_returns_and_copies_are_counted():
    log = joint(lengths=(4, 2, 3))
    by_hand = [log.rewards[:4].sum(), log.rewards[4:6].sum(), log.rewards[6:].sum()]
    np.testing.assert_allclose(joint_card.episode_returns(log), by_hand, rtol=1e-6)
    assert joint_card.saco(log) == 1
    assert joint_card.saco(concatenate_joint([log, log, log], {})) == pytest.approx(1 / 3)
    states = np.repeat(np.float32([[0.1], [0.2], [0.3]]), 3, 0) * np.ones(4, np.float32)  # each three times
    same = replace(log, states=states, actions=np.zeros_like(log.actions))
    assert joint_card.saco(same) == pytest.approx(1 / 3)
    moved = np.arange(9, dtype=np.float32)[:, None]
    assert joint_card.saco(replace(same, states=states + 1e-6 * moved)) == pytest.approx(1 / 3)
    assert joint_card.saco(replace(same, **changed(same, "actions", (4, 1, 1), 0.5))) == pytest.approx(4 / 9)


def test_a_card_tells_what_the_arrays_hold():
    log = joint(lengths=(2, 2), rewards=[1, 2, 3, 5])
    log = replace(log, actions=[[[1, 0], [0.5, 0]], [[-1, 0], [0.5, 0]], [[1, 0], [0.5, 0]], [[-1, 0], [0.5, 0]]])
    told = joint_card.card(log, "log.h5").splitlines()
    assert told[0] == "name             log.h5" and told[1].split() == ["content", log.content_hash]
    for line in (
        'task             toy, version 1, {"size": 3}',
        "reward           team",
        'behaviour        {"name": "expert"}',
        "shape            2 agents x 3 observations (of their own 3 2), 2 numbers an action, 4 a state",
        "transitions      4 in 2 episodes; 2 (sd 0, 2 to 2) steps an episode",
        "ends             50.0% of the episodes terminated",
        "return           5.5 (sd 2.5, 3 to 8)",
        "SACo             1.000 different pairs of state and joint action a transition",
        "actions of 0     mean 0.000 0.000; sd 1.000 0.000",
        "actions of 1     mean 0.500 0.000; sd 0.000 0.000",
    ):
        assert line in told
    assert not any(line.startswith("published") for line in told)


def test_a_card_of_choices_tells_their_entropy():
    log = joint(lengths=(4,), discrete=True)
    log = replace(log, actions=np.eye(2)[[[0, 0], [0, 1], [0, 0], [0, 1]]])
    told = joint_card.card(log)
    assert "actions of 0     1.000 0.000; entropy 0.000 of 0.693 nats" in told
    assert "actions of 1     0.500 0.500; entropy 0.693 of 0.693 nats" in told


@pytest.mark.parametrize(
    "env_id, behaviour, words",
    [
        ("Hopper-v2-3x1", "Hopper-v2-3x1-expert", "2452 (sd 1098, up to 3763), 1481 episodes"),
        ("mamujoco-Hopper-3x1", "medium-expert", "1191 (sd 973), 5481 episodes"),
        ("Ant-2x4", "medium_replay", "1030 (sd 141, up to 1517), 1750 episodes"),
        ("HalfCheetah-6x1", "medium", "1426 (sd 520, up to 2114), 1000 episodes"),
        ("HalfCheetah-2x3", "medium", None),
        ("Hopper-3x1", "random", None),
    ],
)
def test_published_returns_stand_beside_data_of_the_same_task_and_quality(env_id, behaviour, words):
    log = joint(lengths=(2, 2), rewards=[1000, 0, 2000, 1000], env_id=env_id, behaviour={"name": behaviour})
    told = [line for line in joint_card.card(log).splitlines() if line.startswith("published")]
    assert len(told) == (words is not None)
    if words is not None:
        assert words in told[0] and told[0].endswith(f"the mean here is {2000 - int(words.split()[0]):+d} from it")


def test_nothing_or_another_size_cannot_be_joined():
    one = joint()
    with pytest.raises(DatasetError, match="parts must hold at least one log"):
        concatenate_joint([], {})
    wide = replace(one, states=np.c_[one.states, one.states], next_states=np.c_[one.next_states, one.next_states])
    with pytest.raises(DatasetError, match=r"sizes differs: .* in log 1"):
        concatenate_joint([one, wide], {})


def test_numbers_that_are_no_flags_are_not_made_into_flags():
    with pytest.raises(DatasetError, match="terminated must have dtype bool; got float64"):
        replace(joint(), terminated=np.full(len(joint()), 0.5))
