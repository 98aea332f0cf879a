"""The warehouse: the package behind our arrays, AlberDICE's reward, the scripted team, its data, card and commands."""

import heapq
from copy import deepcopy
from dataclasses import replace
from importlib import metadata
from itertools import pairwise

import numpy as np
import pytest

pytest.importorskip("rware", reason="needs the `rware` extra")

from pettingzoo.test import parallel_api_test

from fedmorl.cli import main
from fedmorl.data.trajectories import Trajectories
from fedmorl.data.trajectory_card import action_entropy, card, saco
from fedmorl.evaluation.team import EVALUATION_SEED, play_team
from fedmorl.tasks.rware import RwareParallelEnv, Warehouses, alberdice_reward, make_warehouse
from fedmorl.tasks.rware_data import EPISODES_PER_SEED, MAX_SEED, collect_rware, episode_seed
from fedmorl.tasks.rware_expert import FETCH, PATROL, LocalExpert, follow, look
from fedmorl.tasks.rware_floor import AFTER_LEFT, AFTER_RIGHT, AGAINST_THE_LANE, TURNS, floor_of
from fedmorl.tasks.rware_traffic import FORWARD, LEFT, RIGHT, STAY, TOGGLE, Robot, right_of_way


@pytest.fixture(scope="module")
def tiny():
    """Eight episodes of the expert, two robots."""
    return collect_rware("tiny-2ag", 8, workers=2, progress=False)


@pytest.fixture(scope="module")
def crowd():
    """Two episodes of the expert, four robots."""
    return collect_rware("tiny-4ag", 2, workers=2, progress=False)


# --- the task -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["tiny-2ag", "small-6ag"])
def test_observations_rewards_and_requests_are_those_of_the_package_itself(task):
    """Busy robots: those of the expert with noise, so that shelves are carried, delivered and drawn anew."""
    ours, expert, rng = Warehouses(task), LocalExpert(task=task, noise=0.1), np.random.default_rng(0)
    theirs = [make_warehouse(task) for _ in range(2)]
    seen, memory, delivered = ours.reset([11, 12]), expert.start(2, rng), 0
    reference = [warehouse.reset(seed=seed)[0] for warehouse, seed in zip(theirs, (11, 12), strict=True)]
    for _ in range(150):
        np.testing.assert_array_equal(seen, reference)
        actions, memory = expert.act(seen, memory, rng)
        step = ours.step(actions)
        answers = [warehouse.step(row.tolist()) for warehouse, row in zip(theirs, actions, strict=True)]
        seen, reference = step.observations, [answer[0] for answer in answers]
        np.testing.assert_array_equal(step.extras["rewards_agent"], [answer[1] for answer in answers])
        np.testing.assert_array_equal(step.extras["team_deliveries"], [sum(answer[1]) for answer in answers])
        delivered += step.extras["team_deliveries"].sum()
    assert seen.dtype == np.float32 and delivered >= 4  # requests were drawn anew, from the same stream


def looking(carrying, requested):
    """(1, 1, 71): robot 0's observation with requested shelves in the given of its 9 cells."""
    seen = np.zeros((1, 1, 71), np.float32)
    seen[..., 2] = carrying
    for cell in requested:
        seen[..., 8 + 7 * cell + 5] = seen[..., 8 + 7 * cell + 6] = 1
    return seen


@pytest.mark.parametrize(
    "carrying,requested,shaping",
    [(1, [4], 0.007), (1, [4, 0], 0.007), (0, [4], 0.004), (0, [8], 0.001), (1, [0], 0.001), (0, [], 0), (1, [], 0)],
)
def test_the_reward_is_robot_0s_own_with_alberdices_shaping(carrying, requested, shaping):
    seen = looking(carrying, requested)
    assert alberdice_reward(seen, np.array([[1.0, 0.0]])) == pytest.approx(1 + shaping)
    assert alberdice_reward(seen, np.array([[0.0, 1.0]])) == pytest.approx(shaping)


def test_the_limit_truncates_and_the_packages_own_limit_of_500_does_not():
    task = Warehouses("tiny-2ag", 2, 510)
    task.reset([0, 1])
    for t in range(510):
        step = task.step(np.zeros((2, 2), int))
        assert not step.terminated.any() and (step.truncated == (t == 509)).all()
    with pytest.raises(RuntimeError, match=r"call reset\(seeds\) before step"):
        task.step(np.zeros((2, 2), int))


def test_the_state_holds_every_robots_pose_and_two_requested_shelves_a_robot():
    task = Warehouses("tiny-4ag")
    seen, states = task.reset([5, 6, 7]), task.states()
    assert states.shape == (3, 7 * 4)
    np.testing.assert_array_equal(states[:, :12].reshape(3, 4, 3)[..., :2], seen[..., :2])
    np.testing.assert_array_equal(states[:, :12].reshape(3, 4, 3)[..., 2], seen[..., 3:7].argmax(-1))
    queue, floor = states[:, 12:].reshape(3, 8, 2), floor_of("tiny")
    assert floor.storage[(queue[..., 1] * floor.width + queue[..., 0]).astype(int)].all()
    assert all(len(np.unique(row, axis=0)) == 8 for row in queue)


def test_an_episode_is_its_seeds_alone_whatever_warehouse_played_before():
    fresh, used = Warehouses(), Warehouses()
    used.reset([3, 4, 5])
    used.step(np.ones((3, 2), int))
    np.testing.assert_array_equal(fresh.reset([9]), used.reset([9]))
    assert not np.array_equal(fresh.reset([9]), fresh.reset([10]))


def test_the_parallel_environment_keeps_pettingzoos_rules_and_plays_the_same_episode():
    parallel_api_test(RwareParallelEnv("tiny-2ag", 20), num_cycles=60)
    env, task = RwareParallelEnv("tiny-2ag", 3), Warehouses("tiny-2ag", 1, 3)
    observations, _ = env.reset(seed=4)
    np.testing.assert_array_equal(list(observations.values()), task.reset([4])[0])
    for k in range(3):
        observations, rewards, terminated, truncated, _ = env.step({"robot_0": 1, "robot_1": 2})
        step = task.step(np.array([[1, 2]]))
        np.testing.assert_array_equal(list(observations.values()), step.observations[0])
        assert set(rewards.values()) == {step.rewards[0]} and not any(terminated.values())
        assert set(truncated.values()) == {k == 2}
    assert env.agents == []


def refusals():
    """What is refused, and in which words."""
    started = Warehouses("tiny-2ag")
    started.reset([0])
    return [
        (lambda: Warehouses("tiny-3ag"), "task must be one of tiny-2ag, .*; got 'tiny-3ag'"),
        (lambda: Warehouses("tiny-2ag", 0), "batch must be an integer >= 1; got 0"),
        (lambda: Warehouses("tiny-2ag", 1, 1.5), "episode_limit must be an integer >= 1; got 1.5"),
        (lambda: started.reset([]), "seeds must be integers >= 0, one a warehouse"),
        (lambda: started.reset([-1]), r"seeds must be integers >= 0, one a warehouse; got \[-1\]"),
        (lambda: started.step(np.zeros((1, 3), int)), r"must have shape \(1, 2\) \(warehouses, robots\); got \(1, 3\)"),
        (lambda: started.step(np.zeros((1, 2))), r"actions must be integers from 0 to 4 \(stay, .*\); got float64"),
        (lambda: started.step(np.full((1, 2), 5)), "actions must be integers .*; got int64 from 5 to 5"),
        (lambda: LocalExpert(task="huge"), "task must be one of"),
        (lambda: LocalExpert(noise=1.5), "noise must be a probability; got 1.5"),
        (lambda: LocalExpert(patrol_radius=0), "patrol_radius must be >= 1 step, or None for no limit; got 0"),
        (lambda: collect_rware("tiny-2ag", 0), "n_episodes must be an integer from 1 to 1000000; got 0"),
        (lambda: collect_rware("tiny-2ag", 1, seed=1000), "seed must be an integer from 0 to 999; got 1000"),
        (lambda: collect_rware("tiny-2ag", 1, grade="best"), "grade must be one of expert, .*; got 'best'"),
        (lambda: collect_rware("tiny-2ag", 1, workers=0), "workers must be an integer from 1 to 1024; got 0"),
    ]


@pytest.mark.parametrize("case", range(len(refusals())))
def test_bad_input_is_refused_in_one_sentence(case):
    call, words = refusals()[case]
    with pytest.raises(ValueError, match=words):
        call()


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr("fedmorl.tasks.rware.metadata.version", missing)
    with pytest.raises(ModuleNotFoundError, match=r"install the extra: pip install 'fedmorl\[rware\]'"):
        Warehouses()


# --- the floor and the traffic --------------------------------------------------------------------------


def cheapest(floor, start, direction, goal):
    """The cost of the cheapest way by Dijkstra's rule, pose by pose; a storage cell is entered as the goal only."""
    width, done = floor.width, set()
    queue = [(0, start, direction)]
    while queue:
        cost, cell, direction = heapq.heappop(queue)
        if cell == goal:
            return cost
        if (cell, direction) in done:
            continue
        done.add((cell, direction))
        heapq.heappush(queue, (cost + 1, cell, AFTER_LEFT[direction]))
        heapq.heappush(queue, (cost + 1, cell, AFTER_RIGHT[direction]))
        ahead, x = floor.ahead[cell][direction], cell % width
        against = 3 <= x <= width - 4 and (direction == 0 if x < width / 2 else direction == 1)
        if ahead >= 0 and (not floor.storage[ahead] or (ahead == goal and not floor.storage[cell])):
            heapq.heappush(queue, (cost + 1 + AGAINST_THE_LANE * against, ahead, direction))


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_the_table_of_ways_holds_the_cheapest(size):
    floor, rng = floor_of(size), np.random.default_rng(0)
    for start, goal in rng.integers(len(floor.storage), size=(60, 2)).tolist():
        direction = int(rng.integers(4))
        assert floor.steps[goal, start, direction] == cheapest(floor, start, direction, goal)


def test_turns_are_the_packages():
    warehouse = make_warehouse("tiny-2ag")
    warehouse.reset(seed=0)
    directions = type(warehouse.agents[0].dir)
    for before in range(4):
        for action, after in ((LEFT, AFTER_LEFT), (RIGHT, AFTER_RIGHT)):
            warehouse.agents[0].dir = directions(before)
            warehouse.step([action, STAY])
            assert warehouse.agents[0].dir.value == after[before] and TURNS[before][after[before]] == 1


def robot(x, y, direction, goal, priority, **more):
    floor = floor_of("tiny")
    steps = floor.steps[goal[1] * floor.width + goal[0]]
    return Robot(cell=y * floor.width + x, direction=direction, steps_to_goal=steps, priority=priority, **more)


UP, DOWN, WEST, EAST = range(4)


@pytest.mark.parametrize("first", [0, 1])
def test_of_two_robots_face_to_face_the_lower_priority_makes_way_whatever_its_number(first):
    """In the outer aisle, one up and one down: the lower turns aside, the higher waits for it."""
    robots = [robot(0, 4, DOWN, (4, 10), 10 - first), robot(0, 5, UP, (0, 0), 9 + first)]
    actions, asked = right_of_way(floor_of("tiny"), robots, np.random.default_rng(0))
    assert asked == {1 - first} and actions[first] == STAY and actions[1 - first] in (LEFT, RIGHT)


def test_a_robot_follows_the_one_that_leaves_and_pushes_the_one_that_could():
    """Three in a row, the last one first in rank: all move at once."""
    robots = [robot(x, 10, EAST, (9, 10), 3 - x) for x in (2, 1, 0)]
    actions, asked = right_of_way(floor_of("tiny"), robots, np.random.default_rng(0))
    assert actions == [FORWARD] * 3 and asked == {0, 1}


def test_where_the_other_cannot_leave_a_robot_takes_another_way():
    """A loaded robot under its shelf whose only way out is where the first one stands: that one must go on."""
    walls = frozenset({5 * 10 + 2, 4 * 10 + 1, 6 * 10 + 1})
    robots = [robot(0, 5, EAST, (1, 5), 9, waited=8), robot(1, 5, WEST, (4, 10), 1, closed=walls)]
    actions, _ = right_of_way(floor_of("tiny"), robots, np.random.default_rng(0))
    assert actions[0] in (LEFT, RIGHT) and actions[1] == STAY


def test_a_robot_that_wants_to_put_down_does_so_before_it_makes_way():
    robots = [robot(1, 5, EAST, (1, 5), 0, toggles=True), robot(0, 5, EAST, (1, 5), 9)]
    assert right_of_way(floor_of("tiny"), robots, np.random.default_rng(0))[0] == [TOGGLE, STAY]


def test_the_package_refuses_no_step_forward_of_the_expert(tiny, crowd):
    """No two robots head for one cell and none for a wall: where they mean to move, they do."""
    for log in (tiny, crowd):
        moved = (log.observations[:, 1:, :, :2] != log.observations[:, :-1, :, :2]).any(-1)
        np.testing.assert_array_equal(moved, log.actions == FORWARD)


# --- the expert -----------------------------------------------------------------------------------------


def test_a_robot_acts_on_its_own_observations_unless_another_is_near():
    """Robot 0's actions stay the same when all that robot 1 sees is made up, while they are over two cells apart."""
    task, expert, rng = Warehouses(), LocalExpert(), np.random.default_rng(1)
    seen, compared = task.reset([8]), 0
    memory = false_memory = expert.start(1, rng)
    for _ in range(120):
        apart = np.abs(seen[0, 0, :2] - seen[0, 1, :2]).sum() > 4  # so that next step they are not near either
        made_up = seen.copy()
        made_up[0, 1, 8:] = rng.integers(2, size=63)
        if not apart:
            false_memory = memory
        actions, memory = expert.act(seen, memory, np.random.default_rng(2))
        others, false_memory = expert.act(made_up, false_memory, np.random.default_rng(2))
        if apart:
            assert actions[0, 0] == others[0, 0]
            compared += 1
        seen = task.step(actions).observations
    assert compared > 50


def test_acting_leaves_the_memory_handed_in_as_it_was():
    task, expert, rng = Warehouses(), LocalExpert(), np.random.default_rng(0)
    seen, memory = task.reset([0, 1]), expert.start(2, rng)
    for _ in range(20):
        before = deepcopy(memory)
        actions, after = expert.act(seen, memory, rng)
        for team, same in zip(memory, before, strict=True):
            assert team.t == same.t and [str(robot) for robot in team.robots] == [str(robot) for robot in same.robots]
        seen, memory = task.step(actions).observations, after


def test_a_requested_shelf_counts_for_the_robot_that_is_on_it():
    """Seen from (1, 4): requested ones at (1, 3), (1, 5) and on itself; a robot stands on the second."""
    floor, memory = floor_of("tiny"), LocalExpert().start(1, np.random.default_rng(0))[0].robots[0]
    cells = np.zeros((9, 7), bool)
    cells[[1, 4, 7], 5] = cells[[1, 4, 7], 6] = cells[[4, 7], 0] = True
    look(floor, memory, 5, 41, cells, loaded=True)
    assert np.flatnonzero(memory.requested).tolist() == [31]
    assert memory.filled[[31, 41, 51]].tolist() == [True, False, True] and memory.seen_at[41] == 5
    look(floor, memory, 6, 41, cells, loaded=False)
    assert np.flatnonzero(memory.requested).tolist() == [31, 41] and memory.filled[41]


def test_an_empty_robot_fetches_if_it_knows_a_request_and_looks_around_if_not():
    """Request in mind: the goal is the nearest of those known. None: a place that is out of view."""
    task, expert, rng = Warehouses(), LocalExpert(), np.random.default_rng(0)
    seen, memory, fetched, looked = task.reset([2]), expert.start(1, rng), 0, 0
    for _ in range(150):
        actions, memory = expert.act(seen, memory, rng)
        for own, now in zip(seen[0], memory[0].robots, strict=True):
            cell = int(own[1]) * expert.floor.width + int(own[0])
            steps = expert.floor.steps[:, cell, own[3:7].argmax()]
            if not own[2] and now.requested.any():
                fetched += 1
                assert now.purpose == FETCH and steps[now.goal] == steps[now.requested].min()
            elif not own[2]:
                looked += 1
                assert now.purpose == PATROL and now.goal not in expert.floor.view[cell]
        seen = task.step(actions).observations
    assert fetched > 20 and looked > 20


def test_eight_steps_without_coming_nearer_count_as_stuck_unless_asked_to_give_way():
    memory = LocalExpert().start(1, np.random.default_rng(0))[0].robots[0]
    follow(memory, FETCH, 7, 5)
    for k in range(1, 9):
        follow(memory, FETCH, 7, 5 + k % 2)
        assert memory.stalled == k and memory.breaks == (k == 8)
    assert memory.dodging == 3
    follow(memory, FETCH, 7, 4)
    assert memory.stalled == 0 and not memory.breaks
    memory.asked = True
    for _ in range(20):
        follow(memory, FETCH, 7, 9)
        assert not memory.breaks
    assert memory.stalled == 20


def test_noise_replaces_that_share_of_the_actions():
    """A uniform action is the expert's own in one of five cases: 0.4 noise changes 0.32; four sd of 2000 draws."""
    task, rng = Warehouses("tiny-2ag", 1), np.random.default_rng(0)
    plain, noisy = LocalExpert(), LocalExpert(noise=0.4)
    seen = task.reset(range(20))
    changed = []
    for _ in range(50):
        a, _ = plain.act(seen, plain.start(20, rng), rng)
        b, _ = noisy.act(seen, noisy.start(20, rng), rng)
        changed.append(a != b)
        seen = task.step(a).observations
    assert abs(np.mean(changed) - 0.32) < 4 * np.sqrt(0.32 * 0.68 / 2000)


# --- the data -------------------------------------------------------------------------------------------


def test_the_expert_lies_within_the_band_of_the_published_data(tiny, crowd):
    """12.77 +- 1.5 with two robots, at least 14 with four; eight and two episodes of fixed seeds."""
    assert abs(tiny.returns.mean() - 12.8) < 1.5 and crowd.returns.mean() >= 14


def test_nobody_is_stuck_for_more_than_50_steps(tiny, crowd):
    for log in (tiny, crowd):
        assert log.extras["stalled_steps"].max() <= 50
        cells = log.observations[..., 0] + 100 * log.observations[..., 1]  # (E, T + 1, N)
        stays = np.stack([cells[:, k : k + 451] for k in range(51)]).std(0) == 0  # (E, 451, N): 50 steps in one cell
        assert not stays.any()


def test_grades_are_two_standard_errors_apart(tiny):
    grades = [tiny] + [collect_rware("tiny-2ag", 5, grade=g, workers=2, progress=False) for g in ("medium", "poor")]
    for better, worse in pairwise(grades):
        error = np.hypot(better.returns.std() / len(better) ** 0.5, worse.returns.std() / len(worse) ** 0.5)
        assert better.returns.mean() - worse.returns.mean() > 2 * error


def test_equal_seeds_give_equal_data_on_any_number_of_processes():
    def collect(**more):
        return collect_rware("tiny-2ag", 4, **{"grade": "mixed", "episode_limit": 30, "progress": False} | more)

    one = collect(workers=1)
    assert collect(workers=2).content_hash == one.content_hash != collect(workers=1, seed=1).content_hash
    assert one.behaviour_ids.tolist() == [0, 1, 2, 0] and [b["noise"] for b in one.behaviours] == [0, 0.15, 0.4]
    longer = collect_rware("tiny-2ag", 7, grade="mixed", episode_limit=30, workers=1, progress=False)
    assert longer.take(range(4)).content_hash == one.content_hash


def test_seeds_of_data_stay_below_those_of_evaluation():
    assert episode_seed(MAX_SEED, EPISODES_PER_SEED - 1) < EVALUATION_SEED
    assert episode_seed(1, 0) == episode_seed(0, EPISODES_PER_SEED - 1) + 1


def test_rewards_can_be_told_from_the_observations_and_the_robots_own(tiny):
    """Two routes: the logged rewards, and the rule applied to what was logged beside them."""
    e, t, n, o = tiny.observations[:, 1:].shape
    again = alberdice_reward(tiny.observations[:, 1:].reshape(e * t, n, o), tiny.extras["rewards_agent"].reshape(-1, n))
    np.testing.assert_allclose(tiny.rewards.ravel(), again, rtol=1e-6)
    np.testing.assert_array_equal(tiny.extras["team_deliveries"], tiny.extras["rewards_agent"].sum(-1))
    assert tiny.truncated[:, -1].all() and not tiny.terminated.any() and tiny.reward_def == "agent0+shaping"


def test_the_expert_played_as_a_policy_earns_what_its_data_say(tiny):
    """The same warehouses in lockstep: without noise only a broken deadlock could differ, and there is none here."""
    calm = tiny.take(np.flatnonzero(tiny.extras["deadlock_breaks"].sum((1, 2)) == 0)[:2])
    played = play_team(Warehouses(), LocalExpert(), calm.episode_seeds, np.random.default_rng(0))
    assert len(calm) == 2
    np.testing.assert_allclose(played["returns"], calm.returns, rtol=1e-5)
    np.testing.assert_array_equal(played["team_deliveries"], calm.extras["team_deliveries"].sum(1, dtype=float))


# --- card and commands ----------------------------------------------------------------------------------


def test_the_card_says_what_is_in_the_data(tiny):
    lines = dict(line.split(maxsplit=1) for line in card(tiny).splitlines() if not line.startswith("arrays"))
    assert lines["content"] == tiny.content_hash and lines["reward"] == "agent0+shaping"
    assert lines["return"].startswith(f"{tiny.returns.mean():.4g} (sd {tiny.returns.std():.3g}, ")
    assert lines["task"].startswith("rware-tiny-2ag-easy-v2, version 2.") and '"episode_limit": 500' in lines["task"]
    assert lines["ends"] == "0.0% terminated, 100.0% truncated" and lines["seeds"] == "0 to 7, 8 different"
    assert (
        lines["published"].startswith("12.77 (sd 1.56") and f"{tiny.returns.mean() - 12.77:+.2f}" in lines["published"]
    )
    delivered = tiny.extras["team_deliveries"].sum(1, dtype=float)
    assert lines["team_deliveries"].startswith(f"{delivered.mean():.4g} (sd ")


def test_copies_halve_saco_and_one_action_alone_has_no_entropy(tiny):
    short = replace(
        collect_rware("tiny-2ag", 1, episode_limit=40, workers=1, progress=False), behaviours=({"name": "a"},)
    )
    twice = replace(
        short,
        **{name: np.repeat(getattr(short, name), 2, 0) for name in short.arrays() if "/" not in name}
        | {"behaviour_ids": [0, 1], "behaviours": ({"name": "a"}, {"name": "b"})},
        extras={name: np.repeat(array, 2, 0) for name, array in short.extras.items()},
    )
    rows = zip(short.states[0, :-1].tolist(), short.actions[0].tolist(), strict=True)
    assert saco(short) == len({str(row) for row in rows}) / 40 and saco(twice) == saco(short) / 2
    still = replace(short, actions=np.zeros_like(short.actions))
    np.testing.assert_array_equal(action_entropy(still), 0)
    mixed = np.zeros_like(short.actions)
    mixed[:, :, 1] = np.arange(40) % 5
    np.testing.assert_allclose(action_entropy(replace(short, actions=mixed)), [0, np.log(5)])


def test_the_commands_collect_describe_and_check_episodes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("signal.signal", lambda *_: None)
    path = str(tmp_path / "new" / "tiny.h5")
    made = ["data", "collect-rware", "tiny-2ag", "--episodes", "2", "--steps", "30", "--workers", "1", "-o", path]
    assert main(made) == 0
    log = Trajectories.load(path)
    content = log.content_hash[:12]
    assert f"{path}: 2 episodes, mean return {log.returns.mean():.2f} (agent0+shaping), " in capsys.readouterr().out
    assert main(["data", "verify", path]) == 0
    assert capsys.readouterr().out == f"{path}: whole, 60 transitions, content {content}\n"
    assert main(["data", "card", path]) == 0 and log.content_hash in capsys.readouterr().out
    assert main(made) == 1 and capsys.readouterr().err.startswith(f"fedmorl data: {path} exists; ")
    assert main([*made[:2], "tiny-9ag", "-o", f"{path}.h5"]) == 1
    assert capsys.readouterr().err.startswith("fedmorl data: task must be one of tiny-2ag, ")
