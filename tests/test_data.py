"""Offline logs: they agree with the simulator and with a replay, keep their content, and refuse what is broken."""

import hashlib
import json
import math
import os
import subprocess
import sys
from dataclasses import replace

import h5py
import numpy as np
import pytest

from fedmorl.cli import main
from fedmorl.data import (
    DatasetError,
    OfflineDataset,
    collect_dca_logs,
    concatenate,
    concatenate_transitions,
    files,
    flatten_agents,
    partition,
    unflatten_agents,
)
from fedmorl.dca import (
    AC_BE,
    AC_VO,
    CSMA_CA,
    CSMA_ECA,
    BatchedEnv,
    ConstantRate,
    Poisson,
    Saturated,
    Scenario,
    Station,
    simulate,
)
from fedmorl.dca.policy import FEATURES, OBSERVATION, MLPPolicy

NET = MLPPolicy([(np.zeros((7, 2)), np.array([3.0, 0.0]))])
IDLE, SUCCESS, COLLISION, ACK = range(4)
SCENARIOS = {
    "source": Scenario.uniform(CSMA_CA, 4),
    "alone": Scenario.uniform(CSMA_CA, 1),
    "bianchi": Scenario.uniform(CSMA_CA, 5, countdown="bianchi"),
    "mixed, local": Scenario(stations=[AC_VO, AC_BE, CSMA_ECA, Station(policy=NET)], d2lt="local"),
    "losses, drops": Scenario.uniform(replace(AC_VO, frame_error_rate=0.3, retry_limit=3), 4, delay_term="raw"),
    "deferrals": Scenario(
        stations=[AC_BE, replace(AC_BE, aifs_slots=6), Station(policy=NET, aifs_slots=9)], eifs_extra_slots=3
    ),
    "Poisson": Scenario.uniform(CSMA_CA, 3, traffic=Poisson(0.001)),
    "loads": Scenario(stations=[replace(AC_BE, traffic=ConstantRate(0.0007)), CSMA_CA], traffic=Poisson(0.018)),
    "no DIFS": Scenario.uniform(replace(AC_BE, aifs_slots=0), 3, difs_slots=0, tx_slots=7, ack_slots=1),
}
names = pytest.mark.parametrize("name", SCENARIOS)


def collect(scenario, n_decisions=1500, **options):
    return collect_dca_logs(scenario, n_decisions, **{"seed": 3, "warmup_slots": 0} | options)


@pytest.fixture(scope="module")
def small():
    return collect(SCENARIOS["source"], 200, n_replications=2)


@pytest.fixture(scope="module")
def ragged():
    """Stations that decide at different instants, in episodes of different lengths."""
    return collect(SCENARIOS["Poisson"], 200, n_replications=2)


# --- what is logged -------------------------------------------------------------------------------------


@names
def test_a_log_counts_what_the_simulator_counts_over_the_same_slots(name):
    """Each station's decisions fill the time from its first to its last, and hold all its successes and failures."""
    log, scenario = collect(SCENARIOS[name]), SCENARIOS[name]
    for i in range(scenario.n_stations):
        own, slots = log.mask[0, :, i], log.extras["slots"][0]
        start, durations = slots[own], log.durations[0, own, i]
        end = int(start[-1] + durations[-1])
        assert own.sum() == 1500 and np.array_equal(start[1:], start[:-1] + durations[:-1])
        m = simulate(scenario, end, seed=3, warmup_slots=0)
        outcome, sent = log.extras["outcomes"][0, own, i], log.actions[0, own, i] == 1
        assert (outcome == ACK).sum() == m.stations["successes"][i]
        assert (sent & (outcome == COLLISION)).sum() == m.stations["collisions"][i] + m.stations["errors"][i]
        assert not (sent & ((outcome == IDLE) | (outcome == SUCCESS))).any() and not (~sent & (outcome == ACK)).any()
        before = simulate(scenario, int(start[0]), seed=3, warmup_slots=0).counts if start[0] else {}
        net = [c.get("n_successes", 0) - c.get("n_collisions", 0) for c in (m.counts, before)]
        assert log.extras["global_rewards"][0, :, i].sum() == net[0] - net[1]
    if log.mask.all():  # all decide together, so the rows are all there is
        won = np.bincount(log.extras["winners"][0] + 1, minlength=scenario.n_stations + 1)
        assert won[1:].tolist() == m.stations["successes"].tolist()
        assert (log.extras["outcomes"][0, :, 0] == IDLE).sum() == m.counts["idle_slots"]


@names
def test_replaying_the_logged_actions_through_the_environment_gives_the_log_again(name):
    """The environment asks every station; its observations, masks, times and rewards are computed elsewhere."""
    log, env = collect(SCENARIOS[name], 400), BatchedEnv(SCENARIOS[name], n_envs=1)
    n_rows = 400  # before any station is done
    observation, info = env.reset(seed=3)
    credited = np.zeros((n_rows + 1, 1))
    for t in range(n_rows):
        on = log.mask[0, t]
        assert env.t[0] == log.extras["slots"][0, t] and np.array_equal(info["mask"][0], on)
        assert np.array_equal(observation[0, on], log.observations[0, t, on])
        observation, reward, _, _, info = env.step(log.actions[:, t].astype(int))
        credited[t + 1] = credited[t] + info["r_glob"]
        local = log.extras["local_rewards"][0, t]
        assert np.array_equal(info["r_local"][0], local)
        if on.all() and log.mask[0, t + 1 : t + 2].all():  # the step is the decision
            assert np.array_equal(observation[0], log.next_observations[0, t])
            assert np.array_equal(reward[0], log.rewards[0, t])
            assert (info["duration_slots"][0] == log.durations[0, t]).all()
    for i in range(log.n_stations):  # decisions that last several steps
        rows = np.flatnonzero(log.mask[0, :n_rows, i])
        assert np.array_equal(np.diff(credited[rows, 0]), log.extras["global_rewards"][0, rows[:-1], i])
        assert np.array_equal(log.next_observations[0, rows[:-1], i], log.observations[0, rows[1:], i])


def test_rewards_are_equation_3_and_alpha_can_change_without_a_new_simulation(small):
    r_glob, r_local = (small.extras[f"{part}_rewards"].astype(float) for part in ("global", "local"))
    np.testing.assert_allclose(small.rewards, r_glob + 0.2 * r_local, rtol=1e-6)  # 0.05 N
    np.testing.assert_allclose(r_local, -(small.observations[..., 5] * small.observations[..., 6]).astype(float))
    anew = collect(replace(SCENARIOS["source"], alpha=0.7), 200, n_replications=2)
    assert np.array_equal(small.with_alpha(0.7).rewards, anew.rewards) and small.with_alpha(0.7).alpha == anew.alpha
    with pytest.raises(DatasetError, match="extras/local_rewards is missing"):
        replace(small, extras={"global_rewards": small.extras["global_rewards"]}).with_alpha(1.0)


def test_nobody_collides_right_after_an_own_success_when_counters_freeze():
    """Everybody else's counter is at least 1 then; under `bianchi` it may have reached 0."""
    for scenario, is_safe in ((SCENARIOS["source"], True), (SCENARIOS["bianchi"], False)):
        log = collect(scenario, 20_000)
        after_ack = (log.observations[..., ACK] == 1) & (log.actions == 1)
        assert after_ack.sum() > 500 and log.extras["outcomes"][after_ack].min() >= COLLISION
        assert ((log.extras["outcomes"][after_ack] == COLLISION).sum() == 0) == is_safe


def test_saturated_stations_decide_together_and_a_decision_lasts_1_slot_or_124(small):
    assert small.mask.all() and small.observations.shape == (2, 200, 4, 7)
    assert np.array_equal(small.durations == 1, small.extras["outcomes"] == IDLE)
    assert set(small.durations.ravel().tolist()) == {1, 124}
    np.testing.assert_allclose(small.observations[:, 1:, :, 5].sum(-1), 1, rtol=1e-5)  # global D2LT; 0 at slot 0
    assert np.array_equal(small.next_observations[:, :-1], small.observations[:, 1:])
    assert np.array_equal(small.observations[:, 1:, :, 4], small.actions[:, :-1])  # the previous action


def test_nothing_is_terminated_and_each_stations_last_decision_is_truncated(ragged):
    assert not ragged.terminated.any() and ragged.truncated.sum() == 2 * 3
    for e, n in np.ndindex(2, 3):
        assert np.flatnonzero(ragged.truncated[e, :, n]).tolist() == [np.flatnonzero(ragged.mask[e, :, n])[-1]]
    assert not ragged.mask.all() and (ragged.mask.sum(1) == 200).all()


def test_the_warm_up_cuts_off_the_beginning_and_changes_nothing_else():
    whole, rest = collect(SCENARIOS["source"], 1000), collect(SCENARIOS["source"], 500, warmup_slots=10_000)
    first = np.searchsorted(whole.extras["slots"][0], 10_000)
    assert 0 < first < 500 and rest.extras["slots"][0, 0] >= 10_000
    for name in ("observations", "actions", "rewards", "next_observations", "durations"):
        assert np.array_equal(getattr(rest, name)[0], getattr(whole, name)[0, first : first + 500]), name


def test_a_policy_in_python_is_logged_as_it_saw_and_acted():
    class Recorder:
        def __init__(self):
            self.seen = []

        def act(self, observation, memory, rng):
            memory = (memory or 0) + 1
            action = int(rng.random() < 0.05 or memory % 50 == 0)
            self.seen.append((*observation.tolist(), action))
            self.last = memory
            return action, memory

    recorder = Recorder()
    log = collect(Scenario(stations=[CSMA_CA, Station(policy=recorder)]), 300)
    logged = np.column_stack([log.observations[0, :, 1], log.actions[0, :, 1]])
    assert np.array_equal(logged, np.array(recorder.seen, np.float32)[:300]) and log.actions[0, :, 1].sum() > 10
    assert recorder.last == len(recorder.seen)  # its memory came back to it each time


def test_the_eighth_observation_is_the_own_retries():
    plain, more = (
        collect(SCENARIOS["losses, drops"], 300, observation_names=names) for names in (OBSERVATION, FEATURES)
    )
    assert np.array_equal(more.observations[..., :7], plain.observations)
    assert set(np.round(more.observations[..., 7] * 7).astype(int).ravel()) == {0, 1, 2}  # dropped at the third


@pytest.mark.parametrize("name", ["source", "Poisson"])
def test_the_log_depends_on_the_seed_alone(name):
    one, again = (collect(SCENARIOS[name], 300, n_replications=5, workers=k) for k in (1, 4))
    assert one.content_hash == again.content_hash
    assert collect(SCENARIOS[name], 300, n_replications=5, seed=4).content_hash != one.content_hash
    assert not np.array_equal(one.actions[0], one.actions[1])


def test_collecting_refuses_in_one_sentence():
    source, rare = SCENARIOS["source"], Scenario(stations=[CSMA_CA, replace(CSMA_CA, traffic=Poisson(1e-9))])
    with pytest.raises(ValueError, match=r"^station 1 \(Poisson.*\) has made 0 of 10 decisions after 50000 slots; "):
        collect(rare, 10, max_slots=50_000)
    for options, text in [
        ({"n_decisions": 0}, "n_decisions"),
        ({"seed": -1}, "seed"),
        ({"workers": 0}, "workers"),
        ({"warmup_slots": 0.5}, "warmup_slots"),
        ({"observation_names": ("d2lt",)}, "observation_names"),
    ]:
        with pytest.raises(ValueError, match=f"^{text} must be"):
            collect_dca_logs(source, **options)
    with pytest.raises(ValueError, match="scenario must be a Scenario"):
        collect_dca_logs("AC_BE")


# --- views ----------------------------------------------------------------------------------------------


def test_flattening_agents_keeps_their_order_and_can_be_undone():
    x = np.array([[[1, 2], [3, 4], [5, 6]], [[7, 8], [9, 10], [11, 12]]])  # (B = 2, N = 3, 2)
    assert flatten_agents(x)[:, 0].tolist() == [1, 3, 5, 7, 9, 11]  # agent 1 of batch 0 before agent 0 of batch 1
    assert np.array_equal(unflatten_agents(flatten_agents(x), 3), x)
    assert np.array_equal(flatten_agents(unflatten_agents(np.arange(8), 2)), np.arange(8))


def test_clients_hold_their_own_decisions_and_together_the_whole_log(ragged):
    whole, parts = ragged.transitions(), [client.transitions() for client in ragged.clients()]
    assert len(whole) == ragged.n_transitions == 3 * 400 and [len(part) for part in parts] == [400] * 3
    for k, part in enumerate(parts):
        own = whole.take(whole.extras["stations"] == k)
        for name in ("observations", "actions", "rewards", "next_observations", "durations", "truncated"):
            assert np.array_equal(getattr(part, name), getattr(own, name)), name
        for name in ("slots", "winners", "outcomes", "global_rewards", "stations"):
            assert np.array_equal(part.extras[name], own.extras[name]), name
    e, t, n = np.argwhere(ragged.mask)[777]
    assert np.array_equal(whole.observations[777], ragged.observations[e, t, n])
    assert (whole.extras["slots"][777], whole.extras["stations"][777]) == (ragged.extras["slots"][e, t], n)
    assert ragged.client(1).stations == (1,) and ragged.client(1).observations.shape[2] == 1
    with pytest.raises(ValueError, match="client must be an index from 0 to 2; got 3"):
        ragged.client(3)


def test_logs_of_one_scenario_can_be_joined(ragged):
    other = collect(SCENARIOS["Poisson"], 300, seed=9)
    both = concatenate([ragged, other])
    assert both.mask.shape[1] == max(ragged.mask.shape[1], other.mask.shape[1])
    assert list(zip(both.seeds, both.replications, strict=True)) == [(3, 0), (3, 1), (9, 0)]
    for name in ("rewards", "next_observations", "actions"):
        joined = [getattr(log.transitions(), name) for log in (ragged, other)]
        assert np.array_equal(getattr(both.transitions(), name), np.concatenate(joined)), name
    assert concatenate([ragged]).content_hash == ragged.content_hash


def test_logs_that_mean_different_things_are_not_joined(small):
    def like(seed=9, **fields):
        return collect(replace(SCENARIOS["source"], **fields), 50, seed=seed)

    for other, text in [
        (like(d2lt="local"), r"^scenario.d2lt differs: \"local\" in log 1, \"global\" in the first"),
        (like(traffic=Poisson(0.018)), r"^scenario.traffic differs"),
        (like(alpha=3.0), "^alpha differs: 3.0 in log 1, 0.2 in the first"),
        (collect(SCENARIOS["bianchi"], 50), "^stations differs"),
        (collect(SCENARIOS["source"], 50, observation_names=FEATURES), "^observation_names differs"),
        (small, "^seeds and replications must .* an episode is there twice"),
    ]:
        with pytest.raises(DatasetError, match=text):
            concatenate([small, other])
    with pytest.raises(DatasetError, match="at least one log"):
        concatenate([])
    other = [
        like(d2lt="local").transitions(),
        collect(SCENARIOS["source"], 50, observation_names=FEATURES).transitions(),
    ]
    for flat, text in zip(other, ("^d2lt differs", "^observation_names differs"), strict=True):
        with pytest.raises(DatasetError, match=text):
            concatenate_transitions([small.transitions(), flat])


# --- what is refused ------------------------------------------------------------------------------------


def changed(log, name, where, value):
    """One array of `log` with another value at one place."""
    array = getattr(log, name).copy()
    array[where] = value
    return {name: array}


@pytest.mark.parametrize(
    ("name", "where", "value", "text"),
    [
        ("observations", (0, 3, 1, 5), np.nan, r"^observations must be finite; it holds nan at \(0, 3, 1, 5\)"),
        ("rewards", (1, 0, 0), np.inf, "^rewards must be finite"),
        ("actions", (0, 0, 0), 2, r"^actions must be 0 \(defer\) or 1 \(transmit\); got 2"),
        ("durations", (0, 5, 2), 0, "^durations must be at least 1 slot; got 0"),
        ("durations", (0, 5, 2), -3, "^durations must be at least 1 slot; got -3"),
        ("mask", (0, 5, 2), False, "^(observations|actions|rewards) must be 0 where mask is False"),
        ("truncated", (0, 5, 2), True, "^terminated or truncated must be set at each .* see row 5 of station 2 in ep"),
        ("truncated", (0, -1, 0), False, "^terminated or truncated must be set"),
        ("terminated", (0, -1, 0), True, "^terminated and truncated are both set"),
        ("seeds", 0, -1, "^seeds and replications must be >= 0"),
        ("replications", 0, 1, "^seeds and replications .* twice"),
    ],
)
def test_wrong_values_are_refused_by_the_name_of_their_field(small, name, where, value, text):
    with pytest.raises(DatasetError, match=text):
        replace(small, **changed(small, name, where, value))


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"actions": np.zeros((2, 200, 4))}, "^actions must be integers; got dtype float64"),
        ({"actions": np.full((2, 200, 4), 257)}, "^actions must be 0 .* got 257"),
        (
            {"actions": np.zeros((2, 200, 3), int)},
            r"^actions must have shape \(E, T, N\) = \(2, 200, 4\); got \(2, 200, 3\)",
        ),
        ({"durations": np.ones((2, 200, 4))}, "^durations must have dtype int64; got float64"),
        ({"rewards": np.full((2, 200, 4), "x")}, "^rewards must hold numbers; got dtype <U1"),
        ({"observations": np.zeros((2, 0, 4, 7))}, "^observations must have shape .* an empty log cannot be used"),
        ({"observation_names": ("a", "b")}, "^observation_names must name O = 7; it has 2"),
        ({"observation_names": ("a",) * 7}, "^observation_names must be different"),
        ({"stations": (0, 1, 2)}, "^stations must name N = 4; it has 3"),
        ({"stations": (0, 1, 2, 2)}, "^stations must be different"),
        ({"alpha": math.nan}, "^alpha must be a finite number >= 0; got nan"),
        ({"scenario": {"a": object()}}, "^scenario must be plain JSON"),
        ({"extras": {"x": np.zeros((2, 199))}}, "^extras/x must begin with shape"),
        ({"extras": {"x": np.full((2, 200), np.nan)}}, "^extras/x must be finite"),
    ],
)
def test_wrong_shapes_and_meanings_are_refused_by_the_name_of_their_field(small, fields, text):
    with pytest.raises(DatasetError, match=text):
        replace(small, **fields)


def test_a_station_without_a_decision_is_refused(small):
    fields = {name: getattr(small, name).copy() for name in (*files.ARRAYS,)}
    for name in ("observations", "actions", "rewards", "next_observations", "truncated", "durations", "mask"):
        fields[name][1, :, 2] = 0
    with pytest.raises(DatasetError, match=r"^mask leaves station 2 without a decision in episode 1"):
        replace(small, **fields)


def test_a_log_cannot_be_changed_in_place(small):
    with pytest.raises(ValueError, match="read-only"):
        small.rewards[0, 0, 0] = 5
    with pytest.raises(AttributeError):
        small.alpha = 1.0


# --- files ----------------------------------------------------------------------------------------------


@pytest.fixture
def saved(small, tmp_path):
    path = tmp_path / "log.h5"
    small.save(path)
    return path


@pytest.mark.parametrize("log", ["small", "ragged"])
def test_a_file_gives_back_every_bit(log, request, tmp_path):
    log = request.getfixturevalue(log)
    log.save(tmp_path / "log.h5")
    back = OfflineDataset.load(tmp_path / "log.h5")
    assert back.arrays().keys() == log.arrays().keys()
    for name, array in log.arrays().items():
        assert back.arrays()[name].dtype == array.dtype and back.arrays()[name].tobytes() == array.tobytes(), name
    assert json.dumps(back.attributes()) == json.dumps(log.attributes()) and back.content_hash == log.content_hash
    assert [path.name for path in tmp_path.iterdir()] == ["log.h5"]


def test_the_content_hash_follows_content_and_not_its_packing(small, tmp_path):
    for level in (0, 9):
        files.write(small, tmp_path / f"{level}.h5", gzip_level=level)
    sizes = [(tmp_path / f"{level}.h5").stat().st_size for level in (0, 9)]
    assert sizes[0] > 2 * sizes[1]
    assert {OfflineDataset.load(tmp_path / f"{level}.h5").content_hash for level in (0, 9)} == {small.content_hash}
    with h5py.File(tmp_path / "9.h5") as file:  # the recipe, read off the file: name, dtype, shape, bytes; then meaning
        digest = hashlib.sha256()
        found = [n for n in file if n != "extras"] + [f"extras/{n}" for n in file["extras"]]
        for name in sorted(found):
            array = file[name][()]
            digest.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode() + array.tobytes())
        keys = ("schema", "scenario", "stations", "observation_names", "alpha")
        meaning = {key: json.loads(file.attrs[key]) for key in keys}
        digest.update(json.dumps(meaning, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())
    assert digest.hexdigest() == small.content_hash


def test_the_content_hash_tells_any_difference(small):
    rewards, outcomes = small.rewards.copy(), small.extras["outcomes"].copy()
    rewards[1, 2, 3] += 1e-6
    outcomes[0, 0, 0] ^= 1
    others = [
        {"rewards": rewards},
        {"extras": {**small.extras, "outcomes": outcomes}},
        {"alpha": 0.3},
        {"seeds": small.seeds + 1},
        {"stations": (0, 1, 2, 5)},
        {"observation_names": ("x", *OBSERVATION[1:])},
        {"scenario": {**small.scenario, "d2lt": "local"}},
    ]
    hashes = {replace(small, **fields).content_hash for fields in others}
    assert len(hashes | {small.content_hash}) == len(others) + 1


def test_an_interrupted_save_leaves_the_old_file(small, ragged, saved, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    before = saved.read_bytes()
    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ragged.save(saved)
    assert saved.read_bytes() == before and [path.name for path in saved.parent.iterdir()] == ["log.h5"]


def refusal(path):
    """The sentence with which a file is refused."""
    with pytest.raises(DatasetError) as error:
        OfflineDataset.load(path)
    text = str(error.value)
    assert text.startswith(f"{path}: ") and "\n" not in text
    return text.removeprefix(f"{path}: ")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.9999])
def test_a_truncated_file_is_refused(saved, share):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(len(content) * share)])
    assert refusal(saved).startswith("the file is cut short" if share > 0.1 else "the file is")


def test_no_flipped_bit_passes_unnoticed(small, saved):
    content = saved.read_bytes()
    with h5py.File(saved) as file:
        chunk = file["rewards"].id.get_chunk_info(0)
    flipped = bytearray(content)
    flipped[chunk.byte_offset + chunk.size // 2] ^= 16
    saved.write_bytes(flipped)
    assert refusal(saved).startswith(("rewards is damaged", "rewards must", "content_sha256 is"))


def edit(path, change):
    with h5py.File(path, "r+") as file:
        change(file)


def put(name, value):
    def change(file):
        del file[name]
        file[name] = value

    return change


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda f: f.__delitem__("actions"), "actions missing"),
        (lambda f: f.__setitem__("more", [1]), "more unknown"),
        (lambda f: f.attrs.__delitem__("scenario"), "the attribute scenario is missing"),
        (lambda f: f.attrs.__delitem__("content_sha256"), "the attribute content_sha256 is missing"),
        (lambda f: f.attrs.__setitem__("schema", '"fedmorl-log/9"'), "schema is 'fedmorl-log/9'"),
        (lambda f: f.attrs.__setitem__("alpha", "{"), "the attribute alpha is not JSON"),
        (lambda f: f.attrs.__setitem__("stations", "4"), "the attribute stations must be a list; got 4"),
        (lambda f: f.attrs.__setitem__("alpha", "0.25"), "content_sha256 is"),
        (lambda f: f["rewards"].__setitem__((0, 0, 0), 0.5), "content_sha256 is"),
        (lambda f: f["rewards"].__setitem__((0, 0, 0), np.nan), "rewards must be finite"),
        (lambda f: f["actions"].__setitem__((0, 0, 0), 7), "actions must be 0 (defer) or 1"),
        (put("rewards", np.zeros((2, 200, 4))), "rewards must have dtype float32; got float64"),
        (put("rewards", np.zeros((2, 199, 4), np.float32)), "rewards must have shape (E, T, N) = (2, 200, 4)"),
        (put("extras/slots", np.array(["a"], object)), "extras/slots must have dtype"),
        (put("rewards", h5py.ExternalLink("other.h5", "rewards")), "rewards must be an array inside the file"),
        (put("extras", h5py.SoftLink("/nowhere")), "extras"),
    ],
)
def test_a_file_with_something_missing_or_wrong_is_refused(saved, change, text):
    edit(saved, change)
    assert refusal(saved).startswith(text)


def test_a_file_that_is_no_log_is_refused(tmp_path):
    (tmp_path / "x.h5").write_text("not HDF5 at all, but long enough to look at " * 50)
    assert refusal(tmp_path / "x.h5").startswith("the file is no HDF5 file")
    with h5py.File(tmp_path / "y.h5", "w") as file:
        file["a"] = [1]
    assert refusal(tmp_path / "y.h5") == "the attribute schema is missing, so this is not a log, or not a whole one"
    with pytest.raises(FileNotFoundError):
        OfflineDataset.load(tmp_path / "none.h5")


def test_the_commands_describe_a_log_and_refuse_a_broken_one(small, saved, capsys, monkeypatch):
    monkeypatch.setattr("signal.signal", lambda *_: None)
    assert main(["data", "verify", str(saved)]) == 0
    assert capsys.readouterr().out == f"{saved}: whole, 1600 transitions, content {small.content_hash[:12]}\n"
    assert main(["data", "card", str(saved)]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if " " in line)
    assert lines["content"] == small.content_hash and lines["transmits"].startswith(f"{small.actions.mean():.4f} of")
    assert lines["shape"] == "2 episodes x 200 decisions x 4 stations x 7 observations"
    outcomes = [f"{share:.4f}" for share in np.bincount(small.extras["outcomes"].ravel()) / 1600]
    assert [word for word in lines["outcomes"].replace(",", "").split() if "." in word] == outcomes
    assert f"{small.rewards.sum(1).mean():.4g} (sd" in lines["return"] and "d2lt global" in lines["reward"]
    saved.write_bytes(saved.read_bytes()[:-100])
    assert main(["data", "verify", str(saved)]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err == f"fedmorl data: {saved}: the file is cut short; copy or collect it again\n"
    assert main(["data", "card", str(saved.parent / "none.h5")]) == 1
    assert capsys.readouterr().err.startswith("fedmorl data: cannot write or read ")


def test_neither_the_channel_nor_the_command_loads_what_logs_need():
    code = "import sys, fedmorl.dca, fedmorl.cli; print({'h5py', 'torch', 'pandas', 'fedmorl.data'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
    code = "import sys, fedmorl.data; print({'torch', 'pandas', 'pettingzoo'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


# --- clients that differ --------------------------------------------------------------------------------


def test_divergences_have_their_closed_forms():
    disjoint = np.eye(4)[:3] * 7
    assert partition.generalised_js(disjoint) == pytest.approx(math.log2(3))
    assert partition.mean_pairwise_js(disjoint) == pytest.approx(1)
    assert partition.generalised_js(np.array([[2, 6], [1, 3]])) == pytest.approx(0, abs=1e-15)
    weights = np.array([0.5, 0.25, 0.25])
    assert partition.generalised_js(disjoint, weights) == pytest.approx(1.5)  # H(w)
    # half of each in common: H(1/4, 1/4, 1/2) - 1
    assert partition.generalised_js(np.array([[1, 0, 1], [0, 1, 1]])) == pytest.approx(0.5)
    rng = np.random.default_rng(0)
    p, q = rng.integers(1, 50, (2, 9))
    m = (p / p.sum() + q / q.sum()) / 2  # a second route: mean Kullback-Leibler divergence from the mixture
    kl = [(x / x.sum() * np.log2(x / x.sum() / m)).sum() for x in (p, q)]
    assert partition.generalised_js(np.stack([p, q])) == pytest.approx(np.mean(kl))
    assert partition.mean_pairwise_js(np.stack([p, q])) == pytest.approx(np.mean(kl))
    with pytest.raises(ValueError, match="clients must be at least 2"):
        partition.mean_pairwise_js(p[None])


def test_entropy_and_coverage_of_visits():
    visits = np.array([[5, 5, 5, 5], [20, 0, 0, 0], [10, 4, 6, 0]])
    np.testing.assert_allclose(partition.visitation_entropy(visits)[:2], [1, 0], atol=1e-15)
    np.testing.assert_allclose(partition.coverage(visits), [1, 0.25, 0.5])
    with pytest.raises(DatasetError, match="no transitions"):
        partition.visitation_entropy(np.zeros(4))


def test_each_skew_is_seen_alone_and_in_bits():
    """Two clients with two bins, two actions, two outcomes: one even in all, one that knows only the second of one."""
    even = np.full((2, 2, 2), 10)
    other_bin, other_action, other_outcome = (even.copy() for _ in range(3))
    other_bin[0], other_bin[1] = 0, 20
    other_action[:, 0], other_action[:, 1] = 0, 20
    other_outcome[..., 0], other_outcome[..., 1] = 0, 20
    quarter = 2 - 0.75 * math.log2(3)  # H(1/4, 3/4)
    bits = quarter - 0.5  # JS of (1/2, 1/2) and (0, 1)
    for counts, which in ((other_bin, 0), (other_action, 1), (other_outcome, 2)):
        found = partition.skews(np.stack([even, counts]))
        assert [found[k] for k in range(3)] == pytest.approx([bits if k == which else 0 for k in range(3)])
        assert found.joint == pytest.approx(bits) and found.quantity == pytest.approx(0)
    larger = partition.skews(np.stack([even, 3 * even]))
    assert larger[:4] == pytest.approx([0] * 4) and larger.quantity == pytest.approx(1 - quarter)


def test_skews_obey_the_chain_rule():
    cells = np.random.default_rng(1).integers(0, 9, (5, 6, 2, 4))
    found, p = partition.skews(cells), cells / cells.sum((1, 2, 3), keepdims=True)
    behaviour = 0.0  # the second route: conditional divergences, weighted by how often the condition holds
    for o in range(6):
        w = p[:, o].sum((1, 2))
        behaviour += w.sum() / 5 * partition.generalised_js(p[:, o].sum(2), w / w.sum())
    assert found.behaviour == pytest.approx(behaviour)
    assert found.covariate + found.behaviour + found.dynamics == pytest.approx(found.joint)


def test_regimes_of_the_channel_move_the_skew_they_are_named_for():
    base, own = Scenario.uniform(CSMA_CA, 6), {}
    regimes = {
        "none": [base] * 3,
        "covariate": partition.covariate_regimes(base, [Saturated(), Poisson(0.002), Poisson(0.0005)]),
        "behaviour": partition.behaviour_regimes(base, [CSMA_CA, AC_VO, AC_BE]),
        "dynamics": partition.dynamics_regimes(base, [2, 6, 14]),
    }
    for name, scenarios in regimes.items():
        logs = [collect_dca_logs(one, 20_000, seed=k).client(0).transitions() for k, one in enumerate(scenarios)]
        own[name] = partition.skews(np.stack([partition.count_cells(log) for log in logs]))
    assert own["covariate"].covariate > 5 * own["none"].covariate
    assert own["behaviour"].behaviour > 5 * own["none"].behaviour
    assert own["dynamics"].dynamics > 10 * max(own[name].dynamics for name in ("none", "covariate", "behaviour"))
    assert regimes["covariate"][1].stations[1:] == base.stations[1:] and regimes["dynamics"][2].n_stations == 14
    assert [s.stations[0] for s in regimes["behaviour"]] == [CSMA_CA, AC_VO, AC_BE]


def test_bins_tell_outcome_action_delay_and_queue_apart(ragged):
    flat = ragged.transitions()
    bins, cells = partition.bin_observations(flat.observations), partition.count_cells(flat)
    assert cells.shape == (64, 2, 4) and cells.sum() == len(flat)
    o = flat.observations
    key = np.column_stack(
        [o[:, :4].argmax(1), o[:, 4], o[:, 5] >= 1 / 64, o[:, 5] >= 1 / 16, o[:, 5] >= 1 / 4, o[:, 6] > 0.5]
    )
    assert len(np.unique(np.column_stack([bins, key]), axis=0)) == len(np.unique(bins)) == len(np.unique(key, axis=0))
    where = (bins == bins[0]) & (flat.actions == 0) & (flat.extras["outcomes"] == IDLE)
    assert cells[bins[0], 0, IDLE] == where.sum() > 0
    with pytest.raises(DatasetError, match="extras/outcomes"):
        partition.count_cells(replace(flat, extras={}))


def test_mixtures_and_sizes():
    rng = np.random.default_rng(0)
    for concentration in (0.05, 1.0, 100.0):  # variance of a Dirichlet share: (1/R)(1 - 1/R) / (R c + 1)
        mixtures = partition.dirichlet_mixtures(20_000, 5, concentration, rng)
        np.testing.assert_allclose(mixtures.sum(1), 1)
        assert mixtures.var(0) == pytest.approx(0.16 / (5 * concentration + 1), rel=0.05)
    dealt = partition.pathological_mixtures(10, 5, 2, rng)
    assert ((dealt > 0).sum(1) == 2).all() and np.allclose(dealt.sum(1), 1) and ((dealt > 0).sum(0) == 4).all()
    sizes = partition.dirichlet_sizes(7, 1000, 0.3, rng)
    assert sizes.sum() == 1000 and sizes.min() >= 1 and sizes.max() > 300
    values = rng.standard_normal(9000)
    ranges = [values[part] for part in partition.continuous_split(values, 3, 1.0, rng)]
    assert ranges[0].max() < ranges[1].min() and ranges[1].max() < ranges[2].min()
    dealt = partition.continuous_split(values, 3, 0.0, rng)
    assert (
        np.array_equal(np.sort(np.concatenate(dealt)), np.arange(9000)) and [len(part) for part in dealt] == [3000] * 3
    )
    assert max(abs(values[part].mean()) for part in dealt) < 4 / math.sqrt(3000)
    for call, text in [
        (lambda: partition.dirichlet_mixtures(3, 2, 0.0, rng), "concentration must be > 0"),
        (lambda: partition.pathological_mixtures(3, 2, 3, rng), "regimes_per_client must be from 1 to 2; got 3"),
        (lambda: partition.continuous_split(values, 3, 1.5, rng), "strictness must be from 0 to 1"),
        (lambda: partition.dirichlet_sizes(3, 2, 1.0, rng), "total must be at least one a client, 3; got 2"),
    ]:
        with pytest.raises(ValueError, match=text):
            call()


def test_clients_are_drawn_by_their_mixtures_and_share_no_transition():
    logs = [collect(Scenario.uniform(CSMA_CA, n), 2000, seed=n).client(0).transitions() for n in (2, 5)]
    mixtures = np.array([[1.0, 0.0], [0.25, 0.75], [1 / 3, 2 / 3]])
    clients = partition.draw_clients(logs, mixtures, [500, 1000, 100], np.random.default_rng(0))
    assert [np.bincount(c.extras["regimes"], minlength=2).tolist() for c in clients] == [[500, 0], [250, 750], [33, 67]]
    taken = np.concatenate([np.column_stack([c.extras["regimes"], c.extras["slots"]]) for c in clients])
    assert len(np.unique(taken, axis=0)) == 1600
    for client in clients:
        for k in (0, len(client) - 1):
            source = logs[client.extras["regimes"][k]]
            at = np.flatnonzero(source.extras["slots"] == client.extras["slots"][k])[0]
            assert np.array_equal(client.observations[k], source.observations[at])
            assert client.rewards[k] == source.rewards[at]
    with pytest.raises(
        DatasetError, match=r"^log 0 has 2000 transitions and the clients take 2375; collect a longer one"
    ):
        partition.draw_clients(logs, mixtures[:2], 1900, np.random.default_rng(0))
    with pytest.raises(ValueError, match="must add up to 1"):
        partition.draw_clients(logs, mixtures * 2, 10, np.random.default_rng(0))
    with pytest.raises(ValueError, match="one column a log"):
        partition.draw_clients(logs, mixtures[:, :1], 10, np.random.default_rng(0))
