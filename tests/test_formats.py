"""Files in the formats of other projects, written here by hand, and what they are read as."""

import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from fedmorl.cli import main
from fedmorl.data.dataset import DatasetError
from fedmorl.data.formats_continuous import from_omar, from_omiga
from fedmorl.data.formats_madt import from_madt
from fedmorl.data.formats_pymarl import from_alberdice, from_cfcql
from fedmorl.data.joint_transitions import JointTransitions
from fedmorl.data.trajectories import Trajectories

TASK = {"env_id": "toy", "env_version": "1"}


def refused(convert, path, **options):
    """What a converter says of a bad file: one sentence after the file's name."""
    with pytest.raises(DatasetError) as error:
        convert(path, **TASK | options)
    told = str(error.value)
    assert told.startswith(str(path)) and "\n" not in told
    return told


def hdf5(path, arrays):
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
    return path


# --- OMIGA ----------------------------------------------------------------------------------------------

SIX_DONES = [0, 0, 1, 0, 0, 0]  # rows 0 to 2 are an episode that ended, rows 3 to 5 one that was cut


def omiga(path, done=SIX_DONES, **change):
    """Row t of agent i: state 10 t, observation 10 t + i, action (t - i) / 10, reward t + 1."""
    t, i = np.arange(len(done), dtype=float)[:, None, None], np.arange(2)[:, None]
    arrays = {
        "s": np.broadcast_to(10 * t, (len(done), 2, 3)),
        "o": np.broadcast_to(10 * t + i, (len(done), 2, 4)),
        "a": (t - i) / 10,
        "r": t[:, :, 0] + 1,
        "d": np.array(done, float)[:, None],
    }
    return hdf5(path, {name: array for name, array in (arrays | change).items() if array is not None})


def read_omiga(path, **options):
    return from_omiga(path, **TASK | {"convention": "omiga"} | options)


def test_omiga_takes_the_row_with_d_for_the_state_after_the_end(tmp_path):
    log = read_omiga(omiga(tmp_path / "Hopper-v2-3x1-expert.hdf5"))
    np.testing.assert_array_equal(log.states[:, 0], [0, 10, 30, 40])
    np.testing.assert_array_equal(log.next_states[:, 2], [10, 20, 40, 50])
    np.testing.assert_array_equal(log.observations[:, :, 0], [[0, 1], [10, 11], [30, 31], [40, 41]])
    np.testing.assert_array_equal(log.next_observations[:, :, 3], [[10, 11], [20, 21], [40, 41], [50, 51]])
    np.testing.assert_allclose(log.actions[..., 0], [[0, -0.1], [0.1, 0], [0.3, 0.2], [0.4, 0.3]], atol=1e-7)
    np.testing.assert_array_equal(log.rewards, [1, 2, 4, 5])
    np.testing.assert_array_equal(log.terminated, [False, True, False, False])
    np.testing.assert_array_equal(log.episodes, [0, 0, 1, 1])
    assert not log.discrete and log.widths == (4, 4) and (log.env_id, log.env_version) == ("toy", "1")
    assert log.behaviour == {
        "name": "Hopper-v2-3x1-expert",
        "source": "converted:omiga",
        "convention": "omiga",
        "time_limit": None,
        "states": "shared",
    }


def test_standard_takes_the_row_with_d_for_the_last_transition(tmp_path):
    log = read_omiga(omiga(tmp_path / "six.hdf5"), convention="standard")
    np.testing.assert_array_equal(log.states[:, 0], [0, 10, 20, 30, 40])
    np.testing.assert_array_equal(log.next_states[:, 0], [10, 20, 20, 40, 50])
    np.testing.assert_array_equal(log.next_observations[:, 1, 0], [11, 21, 21, 41, 51])
    np.testing.assert_array_equal(log.rewards, [1, 2, 3, 4, 5])
    np.testing.assert_array_equal(log.terminated, [False, False, True, False, False])
    np.testing.assert_array_equal(log.episodes, [0, 0, 0, 1, 1])


@pytest.mark.parametrize(
    "convention, rewards, terminated",
    [("omiga", [1, 2, 4], [0, 0, 1]), ("standard", [1, 2, 4, 5], [0, 0, 0, 1])],
)
def test_an_omiga_episode_as_long_as_the_limit_is_truncated(tmp_path, convention, rewards, terminated):
    path = omiga(tmp_path / "five.hdf5", done=[0, 0, 1, 0, 1])
    log = read_omiga(path, convention=convention, time_limit=3)
    np.testing.assert_array_equal(log.rewards, rewards)
    np.testing.assert_array_equal(log.terminated, terminated)
    assert read_omiga(path, convention=convention).terminated.sum() == 2
    assert log.behaviour["time_limit"] == 3


def test_states_that_differ_between_agents_are_joined(tmp_path):
    own = np.arange(6.0)[:, None, None] + np.array([[0.0], [100.0]])
    log = read_omiga(omiga(tmp_path / "six.hdf5", s=own))
    np.testing.assert_array_equal(log.states, [[0, 100], [1, 101], [3, 103], [4, 104]])
    np.testing.assert_array_equal(log.next_states, [[1, 101], [2, 102], [4, 104], [5, 105]])
    assert log.behaviour["states"] == "joined"


@pytest.mark.parametrize(
    "change, options, words",
    [
        ({"d": np.zeros((6, 1))}, {}, "d is never 1"),
        ({"d": np.full((6, 1), 0.5)}, {}, "d must hold 0 and 1 only"),
        ({"d": np.ones((6, 1))}, {}, "d leaves no transition"),
        ({"d": None, "s": None}, {}, "s, d missing"),
        ({"r": np.zeros((6, 2))}, {}, "r must have shape (T,) or (T, 1); got (6, 2)"),
        ({"a": np.zeros((5, 2, 1))}, {}, "a must have shape (6, 2, A); got (5, 2, 1)"),
        ({"a": np.full((6, 2, 1), 2.0)}, {}, "actions must be from -1 to 1"),
        ({"s": np.zeros((6, 3, 3))}, {}, "s must have shape (6, 2, S); got (6, 3, 3)"),
        ({"o": np.full((6, 2, 4), np.nan)}, {}, "observations must be finite"),
        ({"o": np.zeros((6, 2, 0))}, {}, "o is empty"),
        ({"o": np.array([b"text"] * 6)}, {}, "o must have dtype of a number"),
        ({}, {"convention": "theirs"}, "convention must be 'omiga' or 'standard', and cannot be guessed; got 'theirs'"),
        ({}, {"time_limit": 2}, "d gives episode 0 3 rows, and time_limit is 2"),
        ({}, {"time_limit": 0}, "time_limit must be 1 step or more; got 0"),
    ],
)
def test_omiga_files_that_are_refused(tmp_path, change, options, words):
    assert words in refused(read_omiga, omiga(tmp_path / "bad.hdf5", **change), **options)


def test_omiga_has_no_convention_of_its_own(tmp_path):
    with pytest.raises(TypeError, match="convention"):
        from_omiga(omiga(tmp_path / "six.hdf5"), **TASK)
    with pytest.raises(FileNotFoundError):
        read_omiga(tmp_path / "none.hdf5")
    (tmp_path / "text.hdf5").write_text("text")
    assert "is no HDF5 file" in refused(read_omiga, tmp_path / "text.hdf5")


# --- OMAR -----------------------------------------------------------------------------------------------


def omar(folder, done=(0, 0, 1, 0, 0, 0), states=True, **change):
    """Row t of agent i, which sees 3 - i numbers: observation 10 t + i, next 10 more, action -t / 10, reward t + 1."""
    folder.mkdir(parents=True, exist_ok=True)
    t = np.arange(len(done), dtype=float)[:, None]
    for i in range(2):
        arrays = {
            "obs": np.repeat(10 * t + i, 3 - i, 1),
            "next_obs": np.repeat(10 * (t + 1) + i, 3 - i, 1),
            "acs": np.repeat(-t / 10, 2, 1),
            "rews": t[:, 0] + 1,
            "dones": np.array(done, float),
        }
        if states:
            arrays |= {"states": np.repeat(100 * t, 4, 1), "next_states": np.repeat(100 * t + 100, 4, 1)}
        for name, array in arrays.items():
            np.save(folder / f"{name}_{i}.npy", array)
    for name, array in change.items():
        np.save(folder / f"{name}.npy", array) if array is not None else (folder / f"{name}.npy").unlink()
    return folder


def read_omar(folder, **options):
    return from_omar(folder, **TASK | {"time_limit": 4} | options)


def test_omar_rows_are_transitions_and_episodes_end_at_a_done_or_at_the_limit(tmp_path):
    log = read_omar(omar(tmp_path / "expert" / "seed_0_data", done=(0, 0, 1, 0, 0, 0, 1, 0)))
    t = np.arange(8)
    seen = 10 * t[:, None, None] + np.array([[0, 0, 0], [1, 1, 1]])
    np.testing.assert_array_equal(log.observations, seen * [[1, 1, 1], [1, 1, 0]])
    np.testing.assert_array_equal(log.next_observations, (seen + 10) * [[1, 1, 1], [1, 1, 0]])
    np.testing.assert_array_equal(log.states, np.repeat(100 * t[:, None], 4, 1))
    np.testing.assert_array_equal(log.next_states, np.repeat(100 * t[:, None] + 100, 4, 1))
    np.testing.assert_allclose(log.actions, np.broadcast_to(-t[:, None, None] / 10, (8, 2, 2)), rtol=1e-6)
    np.testing.assert_array_equal(log.rewards, t + 1)
    np.testing.assert_array_equal(log.episodes, [0, 0, 0, 1, 1, 1, 1, 2])
    np.testing.assert_array_equal(log.terminated, [0, 0, 1, 0, 0, 0, 0, 0])  # the done of row 6 is the limit's
    assert log.widths == (3, 2) and not log.discrete
    assert log.behaviour == {
        "name": "expert/seed_0_data",
        "source": "converted:omar",
        "time_limit": 4,
        "states": "shared",
    }


def test_omar_without_a_done_is_cut_by_the_limit(tmp_path):
    """Particle worlds: no done at all, no states, episodes of one length."""
    log = read_omar(omar(tmp_path / "data", done=[0] * 9, states=False))
    np.testing.assert_array_equal(log.episodes, [0, 0, 0, 0, 1, 1, 1, 1, 2])
    assert not log.terminated.any() and log.behaviour["states"] == "observations"
    np.testing.assert_array_equal(log.states[3], [30, 30, 30, 31, 31])
    np.testing.assert_array_equal(log.next_states[3], [40, 40, 40, 41, 41])


def test_omar_rows_that_do_not_follow_each_other_are_of_two_episodes(tmp_path):
    other = np.repeat(10 * np.arange(1.0, 7)[:, None] + 1, 2, 1)
    other[3] = -1
    log = read_omar(omar(tmp_path / "data", next_obs_1=other), time_limit=100)
    np.testing.assert_array_equal(log.episodes, [0, 0, 0, 1, 2, 2])
    np.testing.assert_array_equal(log.terminated, [0, 0, 1, 0, 0, 0])


def test_omar_states_are_joined_where_a_next_one_differs(tmp_path):
    log = read_omar(omar(tmp_path / "data", next_states_1=np.full((6, 4), 7.0)))
    assert log.behaviour["states"] == "joined" and log.states.shape == (6, 8)
    np.testing.assert_array_equal(log.states[1], [100] * 8)
    np.testing.assert_array_equal(log.next_states[1], [200] * 4 + [7] * 4)


@pytest.mark.parametrize(
    "change, options, words",
    [
        ({"acs_1": np.zeros((5, 2))}, {}, "acs_1.npy must have shape (6, 2); got (5, 2)"),
        ({"acs_1": np.zeros((6, 3))}, {}, "acs_1.npy must have shape (6, 2); got (6, 3)"),
        ({"next_obs_0": np.zeros((6, 2))}, {}, "next_obs_0.npy must have shape (6, 3); got (6, 2)"),
        ({"rews_1": np.zeros(6)}, {}, "rews_1.npy differs from rews_0.npy"),
        ({"rews_1": np.zeros((6, 2))}, {}, "rews_1.npy must have shape (T,) or (T, 1)"),
        ({"dones_1": np.zeros(6)}, {}, "dones_1.npy differs from dones_0.npy"),
        ({"next_states_1": None}, {}, "next_states_1.npy missing"),
        ({"obs_0": None}, {}, "obs_0.npy missing"),
        ({"obs_0": np.array([[{}]] * 6)}, {}, "obs_0.npy is damaged, or holds pickled objects, which are not read"),
        ({"obs_0": np.array([["a"]] * 6)}, {}, "obs_0.npy must hold one array of numbers"),
        ({"acs_0": np.full((6, 2), 3.0)}, {}, "actions must be from -1 to 1"),
        ({}, {"time_limit": 0}, "time_limit must be 1 step or more; got 0"),
    ],
)
def test_omar_folders_that_are_refused(tmp_path, change, options, words):
    assert words in refused(read_omar, omar(tmp_path / "data", **change), **options)


def test_a_file_cut_short_and_a_folder_that_is_none_are_refused(tmp_path):
    folder = omar(tmp_path / "data")
    whole = (folder / "obs_1.npy").read_bytes()
    (folder / "obs_1.npy").write_bytes(whole[:-3])
    assert "obs_1.npy is damaged" in refused(read_omar, folder)
    (folder / "obs_1.npy").write_bytes(b"")
    assert "obs_1.npy is damaged" in refused(read_omar, folder)
    assert "is no folder" in refused(read_omar, folder / "obs_0.npy", time_limit=4)
    with pytest.raises(TypeError, match="time_limit"):
        from_omar(folder, **TASK)


# --- CFCQL and AlberDICE: PyMARL's arrays ---------------------------------------------------------------

LENGTHS, LIMIT = (2, 4, 3), 4  # steps of three episodes; the second is as long as the limit


def pymarl(ends, n_rows=LIMIT + 1):
    """Row t of episode e: 100 e + 10 t and more in obs and state; the last filled row holds an action never taken."""
    e, t = np.arange(3), np.arange(n_rows)
    lengths = np.array(LENGTHS)[:, None]
    filled = t <= lengths
    place = ((100 * e[:, None] + 10 * t + 1) * filled).astype(np.float32)
    actions = (e[:, None, None] + t[:, None] + np.arange(2)) % 3 * filled[..., None]
    free = np.eye(3)[actions] + np.eye(3)[(actions + 1) % 3]  # the action taken, and the one after it
    return {
        "state": np.repeat(place[..., None], 5, -1),
        "obs": np.stack([place, place + filled], -1)[..., None] * np.ones(4, np.float32),
        "actions": actions[..., None],
        "avail_actions": (free * filled[..., None, None]).astype(np.int32),
        "reward": ((e[:, None] + t / 8) * (t < lengths)).astype(np.float32)[..., None],
        "terminated": ((t == lengths - 1) & np.array(ends, bool)[:, None]).astype(np.uint8)[..., None],
        "filled": filled.astype(np.int64)[..., None],
        "probs": np.full((3, n_rows, 2, 3), 1 / 3, np.float32),
    }


def check_episodes(log, terminated):
    """`log` against the recipe of `pymarl`, number by number."""
    t_max = max(LENGTHS)
    assert log.actions.shape == (3, t_max, 2) and log.n_actions == 3 and log.time_limit == LIMIT
    np.testing.assert_array_equal(log.lengths, LENGTHS)
    for e, length in enumerate(LENGTHS):
        for t in range(t_max + 1):
            here = (100 * e + 10 * t + 1) * (t <= length)
            np.testing.assert_array_equal(log.states[e, t], [here] * 5)
            np.testing.assert_array_equal(log.observations[e, t], [[here] * 4, [here + (t <= length)] * 4])
            for i in range(2):
                free = {(e + t + i) % 3, (e + t + i + 1) % 3} if t <= length else set()
                assert set(np.flatnonzero(log.available[e, t, i])) == free
        for t in range(t_max):
            played = t < length
            np.testing.assert_array_equal(log.actions[e, t], [(e + t + i) % 3 * played for i in range(2)])
            assert log.rewards[e, t] == (e + t / 8) * played
            assert log.terminated[e, t] == (t == length - 1 and terminated[e])
            assert log.truncated[e, t] == (t == length - 1 and not terminated[e])
    np.testing.assert_array_equal(log.episode_seeds, [0, 1, 2])


def read_cfcql(path, **options):
    return from_cfcql(path, **TASK | {"time_limit": LIMIT} | options)


def test_cfcql_episodes_end_where_terminated_says_or_at_the_limit(tmp_path):
    log = read_cfcql(hdf5(tmp_path / "2s3z_expert.h5", pymarl(ends=(1, 0, 1))))
    check_episodes(log, terminated=(True, False, True))
    assert log.behaviours == ({"name": "2s3z_expert", "source": "converted:cfcql"},)
    assert (log.env_id, log.env_version, log.reward_def) == ("toy", "1", "team")


def test_a_cfcql_battle_that_ends_with_the_limit_is_terminated(tmp_path):
    check_episodes(read_cfcql(hdf5(tmp_path / "log.h5", pymarl(ends=(1, 1, 1)))), terminated=(True, True, True))


def test_rows_behind_the_longest_episode_are_left_out(tmp_path):
    log = read_cfcql(hdf5(tmp_path / "log.h5", pymarl(ends=(1, 1, 1), n_rows=9)), time_limit=LIMIT)
    check_episodes(log, terminated=(True, True, True))


def with_change(name, where, value, ends=(1, 1, 1)):
    arrays = pymarl(ends)
    arrays[name][where] = value
    return arrays


UNFILLED = [
    (with_change("filled", (0, 1), 0), "filled must be 1 from the first row on, without a gap; episode 0 has one"),
    (with_change("filled", (0, slice(1, None)), 0), "filled leaves episode 0 without a step"),
    (with_change("filled", (0, 1), 2), "filled must hold 0 and 1 only"),
    (with_change("reward", (2, 3), 1.0), "reward is set in row 3 of episode 2, whose last step is row 2"),
    (with_change("terminated", (2, 1), 1), "terminated is set in row 1 of episode 2, whose last step is row 2"),
    (with_change("obs", (0, 3, 1, 2), 5.0), "observations must be 0 behind the end"),
    (with_change("state", (0, 1, 1), np.nan), "states must be finite; it holds nan at (0, 1, 1)"),
    (with_change("actions", (0, 1, 1), 3), "actions must be from 0 to 2; got 0 to 3"),
    (with_change("avail_actions", (1, 2), 0), "of agent 0 at step 2 of episode 1 is not available"),
    (pymarl((1, 1, 1)) | {"obs": np.ones((3, 5, 3, 4))}, "obs must have shape (3, 5, 2, O); got (3, 5, 3, 4)"),
    (pymarl((1, 1, 1)) | {"actions": np.zeros((3, 5, 2))}, "actions must have shape (E, X, N, 1); got (3, 5, 2)"),
    (pymarl((1, 1, 1)) | {"state": np.ones((3, 5))}, "state must have shape (3, 5, S); got (3, 5)"),
]


@pytest.mark.parametrize(
    "arrays, words",
    [
        *UNFILLED,
        ({k: v for k, v in pymarl((1, 1, 1)).items() if k != "filled"}, "filled missing"),
        (pymarl((1, 1, 0)), "terminated is never 1 in episode 2 of 3 steps, and time_limit is 4"),
    ],
)
def test_cfcql_files_that_are_refused(tmp_path, arrays, words):
    assert words in refused(read_cfcql, hdf5(tmp_path / "bad.h5", arrays))


def test_an_episode_longer_than_the_limit_is_refused(tmp_path):
    assert "lengths must be from 1 to 3 steps" in refused(
        read_cfcql, hdf5(tmp_path / "bad.h5", pymarl(ends=(1, 1, 1))), time_limit=3
    )
    with pytest.raises(TypeError, match="time_limit"):
        from_cfcql(tmp_path / "bad.h5", **TASK)


def alberdice(folder, arrays, n_episodes=3):
    folder.mkdir()
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    told = {"buffer_index": n_episodes, "episodes_in_buffer": n_episodes, "buffer_size": len(arrays["actions"])}
    (folder / "meta.json").write_text(json.dumps(told))
    return folder


def read_alberdice(folder, **options):
    return from_alberdice(folder, **TASK | {"time_limit": LIMIT} | options)


def test_alberdice_marks_every_end_and_the_limit_tells_them_apart(tmp_path):
    log = read_alberdice(alberdice(tmp_path / "mix", pymarl(ends=(1, 1, 1))), reward_def="agent0+shaping")
    check_episodes(log, terminated=(True, False, True))
    assert log.behaviours == ({"name": "mix", "source": "converted:alberdice"},)
    assert log.reward_def == "agent0+shaping"


def test_an_alberdice_task_may_be_done_with_the_limit(tmp_path):
    def on_goal(states):
        np.testing.assert_array_equal(states, [[141] * 5])  # the last of episode 1, the only one as long
        return np.array([True])

    log = read_alberdice(alberdice(tmp_path / "mix", pymarl(ends=(1, 1, 1))), finished=on_goal)
    check_episodes(log, terminated=(True, True, True))


def test_alberdice_agents_without_observations_see_the_state(tmp_path):
    arrays = pymarl(ends=(1, 1, 1))
    del arrays["obs"]
    log = read_alberdice(alberdice(tmp_path / "mix", arrays))
    for i in range(2):
        np.testing.assert_array_equal(log.observations[:, :, i], log.states)
    assert log.states[1, 4, 0] == 141


def test_alberdice_places_that_were_never_filled_are_left_out(tmp_path):
    arrays = {name: np.concatenate([array, 0 * array[:2]]) for name, array in pymarl(ends=(1, 1, 1)).items()}
    check_episodes(read_alberdice(alberdice(tmp_path / "mix", arrays)), terminated=(True, False, True))
    few = read_alberdice(alberdice(tmp_path / "few", pymarl(ends=(1, 1, 1)), n_episodes=1))
    np.testing.assert_array_equal(few.lengths, LENGTHS[:1])


@pytest.mark.parametrize("arrays, words", [*UNFILLED, (pymarl((1, 0, 1)), "terminated is never 1 in episode 1")])
def test_alberdice_folders_that_are_refused(tmp_path, arrays, words):
    assert words in refused(read_alberdice, alberdice(tmp_path / "bad", arrays))


def test_an_alberdice_folder_that_is_not_whole_is_refused(tmp_path):
    folder = alberdice(tmp_path / "bad", pymarl(ends=(1, 1, 1)), n_episodes=4)
    assert "meta.json has 4 episodes_in_buffer and filled.npy only 3" in refused(read_alberdice, folder)
    for text in ("{}", "[]", "text", '{"episodes_in_buffer": 0}', '{"episodes_in_buffer": "3"}'):
        (folder / "meta.json").write_text(text)
        assert "meta.json must name the number of episodes_in_buffer" in refused(read_alberdice, folder)
    (folder / "meta.json").unlink()
    assert "meta.json missing" in refused(read_alberdice, folder)
    folder = alberdice(tmp_path / "worse", pymarl(ends=(1, 1, 1)))
    np.save(folder / "reward.npy", np.array([None, {}]), allow_pickle=True)
    assert "reward.npy is damaged, or holds pickled objects" in refused(read_alberdice, folder)
    (folder / "reward.npy").unlink()
    assert "reward.npy missing" in refused(read_alberdice, folder)
    with pytest.raises(TypeError, match="time_limit"):
        from_alberdice(folder, **TASK)


@pytest.mark.skipif("FEDMORL_ALBERDICE_DIR" not in os.environ, reason="FEDMORL_ALBERDICE_DIR names no buffers")
@pytest.mark.parametrize(
    "folder, episodes, transitions, mean, sd",
    [
        ("bridge_from_start/buffer_optimal", 500, 4000, -1.2620, 0.0227),
        ("bridge_from_start/buffer_mix", 1000, 28885, -9.4644, None),
        ("mmdp_game_1_from_start/buffer_random", 100, 5000, None, None),
    ],
)
def test_the_public_buffers_of_alberdice_hold_what_was_counted_in_them(folder, episodes, transitions, mean, sd):
    """Their release's folder `buffer`; the numbers were taken from its files by hand."""
    log = read_alberdice(Path(os.environ["FEDMORL_ALBERDICE_DIR"]) / folder, time_limit=50)
    assert (len(log), log.n_transitions) == (episodes, transitions)
    assert mean is None or log.returns.mean() == pytest.approx(mean, abs=5e-5)
    assert sd is None or log.returns.std() == pytest.approx(sd, abs=5e-5)


# --- MADT -----------------------------------------------------------------------------------------------


def madt_episode(e, length, n_agents=2):
    """Step t: state 100 e + 10 t, observation one more for each agent, reward t + e / 2; agent 1 falls at step 1."""
    return [
        [
            [
                [100.0 * e + 10 * t] * 3,
                [100.0 * e + 10 * t + i + 1] * 4,
                [(t + i) % 3],
                [t + e / 2],
                t == length - 1 or (i == 1 and t >= 1),
                [1, 1, 1] if (t + i) % 2 else [int(a == (t + i) % 3) for a in range(3)],
                *([[0.25]] if e == 1 else []),  # some files hold a value too
            ]
            for t in range(length)
        ]
        for i in range(n_agents)
    ]


def madt(folder, episodes):
    folder.mkdir()
    for name, episode in episodes.items():
        torch.save(episode, folder / name)
    return folder


def read_madt(folder, **options):
    return from_madt(folder, **TASK | {"time_limit": 4} | options)


def test_madt_episodes_are_read_in_order_and_end_by_themselves_or_at_the_limit(tmp_path):
    folder = madt(tmp_path / "good", {"b": madt_episode(1, 4), "a": madt_episode(0, 2), "c": madt_episode(2, 3)})
    (folder / ".hidden").write_text("passed over")
    log = read_madt(folder)
    np.testing.assert_array_equal(log.lengths, [2, 3, 3])  # the second gave up its last step
    np.testing.assert_array_equal(log.terminated, [[0, 1, 0], [0, 0, 0], [0, 0, 1]])
    np.testing.assert_array_equal(log.truncated, [[0, 0, 0], [0, 0, 1], [0, 0, 0]])
    np.testing.assert_array_equal(log.rewards, [[0, 1, 0], [0.5, 1.5, 2.5], [1, 2, 3]])
    last = {0: 1, 1: 3, 2: 2}  # of the steps that were seen; an end that was not seen repeats it
    for e, length in enumerate((2, 3, 3)):
        for t in range(4):
            step, seen = min(t, last[e]), t <= length
            assert (log.states[e, t] == (100 * e + 10 * step) * seen).all()
            for i in range(2):
                assert (log.observations[e, t, i] == (100 * e + 10 * step + i + 1) * seen).all()
                free = {0, 1, 2} if (step + i) % 2 else {(step + i) % 3}
                assert set(np.flatnonzero(log.available[e, t, i])) == (free if seen else set())
                if t < 3:
                    assert log.actions[e, t, i] == (t + i) % 3 * (t < length)
    assert log.n_actions == 3 and log.time_limit == 4
    assert log.behaviours == ({"name": "good", "source": "converted:madt", "states": "shared"},)


def test_madt_states_that_differ_between_agents_are_joined(tmp_path):
    episode = madt_episode(0, 2)
    episode[1][1][0] = [5.0, 6.0, 7.0]
    log = read_madt(madt(tmp_path / "good", {"a": episode}))
    np.testing.assert_array_equal(log.states[0], [[0] * 6, [10, 10, 10, 5, 6, 7], [10, 10, 10, 5, 6, 7]])
    assert log.behaviours[0]["states"] == "joined"


class Attack:
    def __reduce__(self):
        return Path.touch, (Path("ran"),)


def edited(agent, t, k, value):
    episode = madt_episode(0, 3)
    episode[agent][t][k] = value
    return episode


@pytest.mark.parametrize(
    "episode, words",
    [
        ([madt_episode(0, 3)[0], madt_episode(0, 3)[1][:2]], "agents have [3, 2] steps; those behind a death were cut"),
        (edited(0, 1, 2, [0.5]), "action must be an index"),
        (edited(0, 1, 2, [0, 1]), "action must hold equally many numbers"),
        (edited(0, 1, 3, [7.0]), "reward differs between agents"),
        (edited(1, 2, 4, False), "done must be 1 for all agents at the last step"),
        (edited(1, 2, 4, 2), "done must hold 0 and 1 only"),
        (edited(1, 2, 1, [1.0]), "observation must hold equally many numbers"),
        (edited(1, 2, 1, None), "observation must hold equally many numbers"),
        (madt_episode(0, 3, n_agents=3), "state must have shape (T, 2, 3); got (3, 3, 3)"),
        (
            [[step[:5] for step in agent] for agent in madt_episode(0, 3)],
            "a step must be [state, observation, action, ",
        ),
        ([], "a step must be [state, "),
        ([1, 2], "an episode must be a list of agents"),
        (edited(0, 1, 4, np.bool_(True)), "the file needs numpy._core.multiarray.scalar, which is not unpickled"),
        ([Attack()], "which is not unpickled"),
    ],
)
def test_madt_files_that_are_refused(tmp_path, monkeypatch, episode, words):
    monkeypatch.chdir(tmp_path)
    folder = madt(tmp_path / "bad", {"0": madt_episode(0, 3), "1": episode})
    told = refused(read_madt, folder)
    assert words in told and told.startswith(str(folder / "1") + ": ")
    assert not (tmp_path / "ran").exists()


def test_madt_logs_that_are_refused_as_a_whole(tmp_path):
    episode = edited(0, 1, 5, [0, 0, 0])
    assert "action 1 of agent 0 at step 1 of episode 0 is not available" in refused(
        read_madt, madt(tmp_path / "taken", {"0": episode})
    )
    assert "lengths must be from 1 to 2 steps" in refused(
        read_madt, madt(tmp_path / "long", {"0": madt_episode(0, 3)}), time_limit=2
    )
    (tmp_path / "empty").mkdir()
    assert "there is no file of an episode" in refused(read_madt, tmp_path / "empty")
    for k, content in enumerate((b"", b"text", (tmp_path / "long" / "0").read_bytes()[:-100])):
        (tmp_path / str(k)).mkdir()
        (tmp_path / str(k) / "0").write_bytes(content)
        assert "no file of torch.save, or a damaged one" in refused(read_madt, tmp_path / str(k))
    with pytest.raises(TypeError, match="time_limit"):
        from_madt(tmp_path / "taken", **TASK)


# --- the command ----------------------------------------------------------------------------------------


@pytest.fixture
def fedmorl(capsys, monkeypatch):
    """`fedmorl ARGUMENTS`: its status, and what it printed where."""
    monkeypatch.setattr("signal.signal", lambda *_: None)

    def run(*arguments):
        status = main([str(word) for word in arguments])
        return status, *capsys.readouterr()

    return run


def made(format, folder):
    """A good file of the format, the options that it needs, and what its converter makes of it."""
    task = ("--env-id", "toy", "--env-version", "1")
    if format == "omiga":
        path = omiga(folder / "in.hdf5")
        return path, (*task, "--convention", "standard"), read_omiga(path, convention="standard")
    limit = (*task, "--time-limit", "4")
    if format == "omar":
        return omar(folder / "in"), limit, read_omar(folder / "in")
    if format == "cfcql":
        return hdf5(folder / "in.h5", pymarl((1, 0, 1))), limit, read_cfcql(folder / "in.h5")
    if format == "alberdice":
        return alberdice(folder / "in", pymarl((1, 1, 1))), limit, read_alberdice(folder / "in")
    return madt(folder / "in", {"0": madt_episode(0, 3)}), limit, read_madt(folder / "in")


@pytest.mark.parametrize("format", ["omiga", "omar", "cfcql", "alberdice", "madt"])
def test_convert_writes_what_the_converter_reads_and_card_describes_it(tmp_path, fedmorl, format):
    path, options, log = made(format, tmp_path)
    output = tmp_path / "new" / "out.h5"
    rows = len(log) if isinstance(log, JointTransitions) else log.n_transitions
    status, out, err = fedmorl("data", "convert", format, path, output, *options)
    assert (status, out, err) == (0, f"{output}: {rows} transitions, content {log.content_hash[:12]}\n", "")
    assert type(log).load(output).content_hash == log.content_hash
    status, out, _ = fedmorl("data", "card", output)
    assert status == 0 and log.content_hash in out and f"converted:{format}" in out
    assert isinstance(log, JointTransitions) == (out.splitlines()[0] == "name             out.h5")
    told = fedmorl("data", "verify", output)
    assert told == (0, f"{output}: whole, {rows} transitions, content {log.content_hash[:12]}\n", "")
    status, _, err = fedmorl("data", "convert", format, path, output, *options)
    assert status == 1 and err == f"fedmorl data: {output} exists; name another file, or remove it\n"


def test_convert_tells_who_acted_and_in_which_unit(tmp_path, fedmorl):
    path, options, _ = made("cfcql", tmp_path)
    words = ("--reward-def", "own", "--behaviour", "expert")
    assert fedmorl("data", "convert", "cfcql", path, tmp_path / "out.h5", *options, *words)[0] == 0
    log = Trajectories.load(tmp_path / "out.h5")
    assert log.reward_def == "own" and log.behaviours[0]["name"] == "expert"


@pytest.mark.parametrize(
    "format, without, extra, words",
    [
        ("omiga", "--convention", (), "omiga needs --convention"),
        ("omar", "--time-limit", (), "omar needs --time-limit"),
        ("cfcql", "--time-limit", (), "cfcql needs --time-limit"),
        ("alberdice", "--time-limit", (), "alberdice needs --time-limit"),
        ("madt", "--time-limit", (), "madt needs --time-limit"),
        ("madt", None, ("--convention", "omiga"), "madt takes no --convention"),
        ("omiga", None, ("--time-limit", "2"), "d gives episode 0 3 rows, and time_limit is 2"),
    ],
)
def test_convert_does_not_guess_and_leaves_no_file(tmp_path, fedmorl, format, without, extra, words):
    path, options, _ = made(format, tmp_path)
    if without:
        options = options[: options.index(without)] + options[options.index(without) + 2 :]
    status, out, err = fedmorl("data", "convert", format, path, tmp_path / "out.h5", *options, *extra)
    assert (status, out) == (1, "") and words in err and err.count("\n") == 1
    assert not (tmp_path / "out.h5").exists()


def test_the_help_of_convert_names_every_format_and_what_it_needs(capsys):
    with pytest.raises(SystemExit):
        main(["data", "convert", "--help"])
    told = capsys.readouterr().out
    needs = {"omiga": "--convention"} | dict.fromkeys(("omar", "cfcql", "alberdice", "madt"), "--time-limit")
    for format, option in needs.items():
        (line,) = [line for line in told.splitlines() if line.startswith(f"{format} ") and "  " in line]
        assert line.endswith(option)
