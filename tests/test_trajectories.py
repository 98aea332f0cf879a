"""Trajectories: what they hold, what they refuse, and their file."""

from dataclasses import replace

import h5py
import numpy as np
import pytest

from fedmorl.data.dataset import DatasetError
from fedmorl.data.trajectories import Trajectories, concatenate_trajectories


def team(n_episodes=4, n_steps=6, n_agents=2, lengths=None, first_seed=0, behaviour="expert"):
    """Episodes of random numbers; `lengths` shorter than n_steps are padded."""
    rng = np.random.default_rng(first_seed)
    lengths = np.full(n_episodes, n_steps) if lengths is None else np.array(lengths)
    played = np.arange(n_steps) < lengths[:, None]
    seen = np.arange(n_steps + 1) <= lengths[:, None]
    last = np.arange(n_steps) == lengths[:, None] - 1
    return Trajectories(
        observations=(rng.random((n_episodes, n_steps + 1, n_agents, 3)) * seen[..., None, None]).astype(np.float32),
        actions=rng.integers(0, 5, (n_episodes, n_steps, n_agents)) * played[..., None],
        rewards=(rng.random((n_episodes, n_steps)) * played).astype(np.float32),
        terminated=last & (lengths < n_steps)[:, None],
        truncated=last & (lengths == n_steps)[:, None],
        lengths=lengths,
        episode_seeds=first_seed + np.arange(n_episodes),
        behaviour_ids=np.zeros(n_episodes, int),
        env_id="toy",
        env_version="1",
        env_kwargs={},
        n_actions=5,
        reward_def="team",
        time_limit=n_steps,
        behaviours=({"name": behaviour},),
        extras={"deliveries": played.astype(np.int16)},
    )


def changed(log, name, where, value):
    array = np.array(getattr(log, name))
    array[where] = value
    return {name: array}


def test_returns_to_go_are_the_sums_of_the_rewards_still_to_come():
    log = team(lengths=[6, 4, 1, 6])
    by_hand = np.array([[log.rewards[e, t:].sum(dtype=np.float64) for t in range(6)] for e in range(4)])
    np.testing.assert_allclose(log.returns_to_go, by_hand, rtol=1e-6)
    np.testing.assert_allclose(log.returns, by_hand[:, 0], rtol=1e-6)
    assert log.mask.sum() == 17 == log.n_transitions


def test_a_file_gives_back_what_was_saved(tmp_path):
    log = team(lengths=[6, 4, 1, 6])
    log.save(tmp_path / "log.h5")
    back = Trajectories.load(tmp_path / "log.h5")
    assert back.content_hash == log.content_hash and back.attributes() == log.attributes()
    assert all(np.array_equal(array, back.arrays()[name]) for name, array in log.arrays().items())
    assert not list(tmp_path.glob(".*"))


def test_the_hash_sees_arrays_and_meaning_but_not_the_packing(tmp_path):
    from fedmorl.data.trajectory_files import write

    log = team()
    write(log, tmp_path / "light.h5", gzip_level=1)
    assert Trajectories.load(tmp_path / "light.h5").content_hash == log.content_hash
    assert replace(log, reward_def="other").content_hash != log.content_hash
    assert replace(log, **changed(log, "rewards", (0, 0), 9.0)).content_hash != log.content_hash


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda log: changed(log, "rewards", (0, 0), np.nan), "rewards must be finite"),
        (lambda log: changed(log, "actions", (0, 0, 0), 5), "actions must be from 0 to 4; got 0 to 5"),
        (lambda log: changed(log, "rewards", (1, 5), 1.0), "rewards must be 0 behind the end"),
        (lambda log: changed(log, "truncated", (0, 2), True), "exactly one of terminated and truncated"),
        (lambda log: changed(log, "lengths", 0, 7), "lengths must be from 1 to 6"),
        (lambda log: {"time_limit": 5}, "lengths must be from 1 to 5"),
        (lambda log: changed(log, "episode_seeds", 1, 0), "an episode is there twice"),
        (lambda log: {"rewards": log.rewards[:, :-1]}, "rewards must have shape (4, 6)"),
        (lambda log: {"actions": [[[0, 1], [2]]]}, "actions must have equally many steps"),
        (lambda log: {"available": np.zeros((4, 7, 2, 5), bool)}, "at step 0 of episode 0 is not available"),
        (lambda log: changed(log, "behaviour_ids", 0, 1), "indices into the 1 behaviours"),
    ],
)
def test_a_broken_log_is_refused_in_one_sentence_that_names_the_field(change, words):
    log = team(lengths=[6, 4, 1, 6])
    with pytest.raises((DatasetError, ValueError)) as error:
        replace(log, **change(log))
    assert words in str(error.value)


def test_a_file_that_was_changed_is_refused(tmp_path):
    team().save(tmp_path / "log.h5")
    with h5py.File(tmp_path / "log.h5", "r+") as file:
        file["rewards"][0, 0] = 0.5
    with pytest.raises(DatasetError, match=r"log.h5: the content hash is not the content's"):
        Trajectories.load(tmp_path / "log.h5")


def test_a_log_of_the_channel_is_not_taken_for_trajectories(tmp_path):
    from fedmorl.data import collect_dca_logs
    from fedmorl.dca import CSMA_CA, Scenario

    collect_dca_logs(Scenario.uniform(CSMA_CA, 2), n_decisions=20).save(tmp_path / "channel.h5")
    with pytest.raises(DatasetError, match="schema is 'fedmorl-log/1'"):
        Trajectories.load(tmp_path / "channel.h5")


def test_joined_logs_keep_their_episodes_and_behaviours():
    one, two = team(lengths=[6, 4, 1, 6]), team(3, first_seed=100, behaviour="poor")
    both = concatenate_trajectories([one, two])
    assert len(both) == 7 and [both.behaviours[k]["name"] for k in both.behaviour_ids] == ["expert"] * 4 + ["poor"] * 3
    np.testing.assert_array_equal(both.take([4, 5, 6]).rewards, two.rewards)
    assert both.take(both.returns > 0).returns.min() > 0


@pytest.mark.parametrize("change", [{"reward_def": "other"}, {"env_version": "2"}])
def test_logs_of_different_tasks_or_units_are_not_joined_nor_played(change):
    log = team()
    with pytest.raises(DatasetError, match=f"{next(iter(change))} differs"):
        concatenate_trajectories([log, replace(team(first_seed=9), **change)])
    with pytest.raises(DatasetError, match=f"{next(iter(change))} of the data"):
        log.check_task(**{"env_id": "toy", "env_version": "1", "reward_def": "team"} | change)


def test_teams_of_unequal_size_are_not_joined():
    with pytest.raises(DatasetError, match="n_agents differs: 3 in log 1, 2 in the first"):
        concatenate_trajectories([team(), team(n_agents=3, first_seed=9)])
