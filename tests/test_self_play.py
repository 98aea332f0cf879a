"""Self-play: the joint model against the simulator it was learned from, the search, and what it measures."""

import numpy as np
import pytest
from test_dca import LISTENERS, SCENARIOS

from fedmorl.data import DatasetError, collect_dca_logs
from fedmorl.dca import AC_BE, CSMA_CA, CSMA_ECA, MLPPolicy, Scenario, Simulation, Station, simulate
from fedmorl.dca.policy import FEATURES, LISTENING, pack_weights
from fedmorl.evaluation import trials
from fedmorl.learners import self_play
from fedmorl.learners.scenes import Stage, beside, cold, curriculum, joined, least_delay_slots, left, loaded
from fedmorl.learners.self_play import INPUTS, SelfPlay, SelfPlayConfig, network, rank_weights
from fedmorl.learners.self_play_choice import long_scores, overall
from fedmorl.world_models.joint import JointModel, others_sending

IDLE, SUCCESS, COLLISION, ACK = range(4)
TRUE_TABLE = np.zeros((2, 3, 4))
TRUE_TABLE[0, [0, 1, 2], [IDLE, SUCCESS, COLLISION]] = 1
TRUE_TABLE[1, [0, 1, 2], [ACK, COLLISION, COLLISION]] = 1
SLOTS = np.array([1, 124, 3 * 124, 124]) / 6  # share times duration, were all six cases equally frequent


@pytest.fixture(scope="module")
def logs():
    return collect_dca_logs(Scenario.uniform(CSMA_CA, 6), n_decisions=4000, seed=0, warmup_slots=50_000)


@pytest.fixture(scope="module")
def model(logs):
    return JointModel.federate(logs.clients())


def always(logit, n_inputs=16):
    """A policy that sends with one probability, whatever it sees."""
    return MLPPolicy([(np.zeros((n_inputs, 2)), np.array([0.0, logit]))])


def test_a_station_labels_its_own_log_as_the_channel_was(logs):
    """Who really sent is known to the log of all: the labels of each station agree with it."""
    others = logs.actions[0].sum(1, keepdims=True) - logs.actions[0]
    labels = others_sending(logs.actions[0], logs.extras["outcomes"][0])
    truth = np.where(logs.actions[0] == 1, np.minimum(others, 1), np.minimum(others, 2))
    whole = logs.mask[0].all(1)  # at the end some stations have had their decisions
    assert whole.sum() > 3000 and np.array_equal(labels[whole], truth[whole])


def test_the_table_that_a_log_teaches_is_the_true_one(model):
    assert np.array_equal(model.probability, TRUE_TABLE)
    assert model.duration_slots.tolist() == [1, 124, 124, 124]
    assert model.frequency.sum() == pytest.approx(1) and model.seen.all()


def test_fedavg_of_the_clients_tables_is_the_table_of_the_pooled_log(logs, model):
    pooled = JointModel.fit(logs)
    np.testing.assert_allclose(model.frequency, pooled.frequency, atol=1e-15)  # sums in another order
    np.testing.assert_allclose(model.slots, pooled.slots, rtol=1e-12)
    unequal = [logs.client(0), logs.client(1).transitions().take(np.arange(100))]
    weights, parts = np.array([4000, 100]) / 4100, [JointModel.fit(log).frequency for log in unequal]
    expected = weights[0] * parts[0] + weights[1] * parts[1]
    np.testing.assert_allclose(JointModel.federate(unequal).frequency, expected, atol=1e-15)


def test_what_a_log_does_not_hold_stays_uniform_and_is_filled_by_others(logs):
    batch = logs.client(0).transitions()
    timid = batch.take(batch.actions == 0)
    alone = JointModel.fit(timid)
    assert alone.seen.tolist() == [[True] * 3, [False] * 3]
    assert np.array_equal(alone.probability[1], np.full((3, 4), 0.25))
    together = JointModel.federate([timid, batch.take(batch.actions == 1)])
    assert np.array_equal(together.probability, TRUE_TABLE)


@pytest.mark.parametrize(
    "scenario",
    [
        Scenario.uniform(AC_BE, 7),
        SCENARIOS["ECA"],
        SCENARIOS["sparse Poisson"],
        LISTENERS["listeners"],
        LISTENERS["listeners with gaps"],
        Scenario(stations=[*LISTENERS["listeners"].stations, AC_BE, CSMA_ECA]),
    ],
    ids=["BE", "ECA", "Poisson", "listeners", "listeners with gaps", "mixed"],
)
def test_with_what_it_learned_the_imagined_channel_is_the_simulator_bit_for_bit(model, scenario):
    imagined = model.channel(scenario, seed=4)
    model.run(imagined, 150_000)
    real = Simulation(scenario, seed=4, mode="slot").run(int(imagined.channel[0]["t"])).state
    for name in ("successes", "collisions", "arrivals", "last_success", "cw", "rank", "collision_average"):
        assert np.array_equal(imagined.stations[name], real.stations[name]), name
    assert imagined.channel[0]["n_successes"] > 50 or scenario.traffic != scenario.stations[0].traffic


def test_optimism_pays_in_the_model_and_costs_everything_in_the_channel(model):
    scenario, n_busy = Scenario.uniform(Station(policy=always(50.0)), 3), 2000
    real = simulate(scenario, n_busy * 124, warmup_slots=0)
    assert real.throughput_ratio == 0
    acks = {}
    for at_most_one in (False, True):
        dreamer = JointModel(frequency=model.frequency, slots=model.slots, at_most_one_ack=at_most_one).optimistic(0.3)
        state = dreamer.channel(scenario, seed=0)
        dreamer.run(state, n_busy * 124)
        acks[at_most_one] = state.stations["successes"].sum() / n_busy
    sd = np.sqrt(0.3 * 0.7 * 3 / n_busy)
    assert acks[False] == pytest.approx(3 * 0.3, abs=4 * sd)
    assert acks[True] == pytest.approx(1 - 0.7**3, abs=4 * sd)  # some station is told, never two


def test_the_joint_model_refuses_a_log_without_outcomes(logs):
    batch = logs.client(0).transitions()
    with pytest.raises(DatasetError, match="no transitions"):
        JointModel.fit(batch.take(np.zeros(len(batch), bool)))
    bare = type(batch)(**{**{f: getattr(batch, f) for f in batch.__dataclass_fields__}, "extras": {}})
    with pytest.raises(DatasetError, match="extras/outcomes is missing"):
        JointModel.fit(bare)


def test_the_policy_reads_nothing_that_a_station_cannot_know():
    config = SelfPlayConfig()
    policy = network(np.ones(config.n_parameters), config.hidden)
    first = policy.layers[0][0]
    assert (first[FEATURES.index("d2lt")] == 0).all()
    for name, scale in INPUTS.items():
        assert (first[LISTENING.index(name)] == scale).all()
    assert not {"d2lt", "n_stations"} & set(INPUTS)
    row = np.arange(1, 17, dtype=np.float32)  # the logit is a ReLU network of the scaled inputs
    inside = sum(scale * row[LISTENING.index(name)] for name, scale in INPUTS.items()) + 1
    assert policy.logits(row) == pytest.approx([0, config.hidden * inside + 1], rel=1e-5)


def test_only_the_order_of_the_candidates_counts():
    scores = np.array([[3.0, 1.0, 2.0, 10.0], [0.0, 0.0, 1.0, 1.0]]).T
    expected = np.array([[1 / 6, -1 / 2, -1 / 6, 1 / 2], [-1 / 3, -1 / 3, 1 / 3, 1 / 3]]).T
    np.testing.assert_allclose(rank_weights(scores), expected)
    assert np.array_equal(rank_weights(scores), rank_weights(np.exp(scores)))
    nearly_alike = 0.5 + 0.001 * (scores - scores.mean(0)) / scores.std(0)  # a tenth of the spread that counts in full
    np.testing.assert_allclose(rank_weights(nearly_alike), 0.1 * expected)


def test_scenes_score_what_they_say(model):
    quiet, loud = always(-30.0), always(30.0)
    for scene in curriculum(loud, np.random.default_rng(0)):
        assert 0 <= Stage(model, [scene], seed=0).scores(pack_weights([loud])[1])[0] < 0.75, scene.kind
    tdma = Stage(model, [cold(1, 124_000, loud), cold(2, 60_000, quiet)], seed=0)
    assert tdma.scores(pack_weights([loud])[1]).tolist() == [1.0, 0.0]  # alone: every busy period; two: none
    assert least_delay_slots(60 / 124, 124.0) == pytest.approx(124 * 1.5)  # rho = 1/2: half a service of waiting
    alone = Stage(model, [loaded(1, 0.5, 4_000_000, loud)], seed=0).scores(pack_weights([loud])[1])[0]
    assert alone == pytest.approx(1, abs=0.02)  # one station that sends at once is that queue


def test_scenes_of_change_judge_what_comes_after_it():
    policy = always(0.0)
    for scene, n_judged in ((joined(3, 2, 500, 900, policy), 5), (left(5, 2, 500, 900, policy), 3)):
        assert (scene.window_slot, len(scene.judged)) == (500, n_judged)
        assert all(scene.scenario.station_traffic(k).stop_slot is None for k in scene.judged)
    loud = always(30.0)  # alone it succeeds in every busy period, two of them in none
    met = Stage(JointModel(frequency=TRUE_TABLE / 6, slots=SLOTS), [joined(1, 1, 12_400, 24_800, loud)], seed=0)
    assert met.scores(pack_weights([loud])[1]).tolist() == [0.0]
    mixed = beside(5, AC_BE, 100, policy).scenario.stations
    assert [s.policy is None for s in mixed] == [False, False, False, True, True]


def test_self_play_climbs(model, monkeypatch):
    monkeypatch.setattr(self_play, "curriculum", lambda policy, rng: [cold(2, 20_000, policy), cold(5, 20_000, policy)])
    config = SelfPlayConfig(n_generations=24, n_candidates=12)
    history = SelfPlay(config).search(model, rng=np.random.default_rng(0), progress=False).history[:, 0]
    assert history[-4:].mean() > history[:4].mean() + 0.1


def test_an_interrupted_search_ends_on_the_same_bits(model, tmp_path, monkeypatch):
    config, path = SelfPlayConfig(n_generations=4, n_candidates=2), tmp_path / "search.safetensors"
    whole = SelfPlay(config).search(model, rng=np.random.default_rng(1), progress=False)
    monkeypatch.setattr(self_play, "CHECKPOINT_EVERY", 2)
    ordinary = SelfPlay.generation

    def stops_at_the_fourth(self, model, search):
        if search.generation == 3:
            raise KeyboardInterrupt
        return ordinary(self, model, search)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SelfPlay, "generation", stops_at_the_fourth)
        SelfPlay(config).search(model, rng=np.random.default_rng(1), checkpoint=path, progress=False)
    resumed = SelfPlay(config).search(model, rng=np.random.default_rng(1), checkpoint=path, progress=False)
    assert np.array_equal(whole.average, resumed.average) and np.array_equal(whole.history, resumed.history)
    with pytest.raises(ValueError, match="another root"):
        SelfPlay(config).search(model, rng=np.random.default_rng(2), checkpoint=path)
    with pytest.raises(ValueError, match="another model"):
        SelfPlay(config).search(model.optimistic(0.1), rng=np.random.default_rng(1), checkpoint=path)
    path.write_bytes(b"torn")
    with pytest.raises(ValueError, match="is not a checkpoint of self-play"):
        SelfPlay(config).search(model, rng=np.random.default_rng(1), checkpoint=path)


def test_the_policy_is_the_average_of_the_last_means(model):
    config = SelfPlayConfig(n_generations=5, n_candidates=2, averaged=0.6)
    learner, rng = SelfPlay(config), np.random.default_rng(1)
    search = learner._begin(rng)
    means = []
    for _ in range(5):
        learner.generation(model, search)
        means.append(search.mean.copy())
    assert np.allclose(search.average, np.mean(means[2:], axis=0), atol=1e-12, rtol=0)
    assert SelfPlayConfig(n_generations=400).n_averaged == 50 and SelfPlayConfig(n_generations=2).n_averaged == 1
    with pytest.raises(ValueError, match="averaged must be a share"):
        SelfPlayConfig(averaged=0)


def test_long_scenes_tell_a_policy_that_shares_from_one_that_does_not(model):
    shy, bold = always(-4.0), always(30.0)  # about every fiftieth idle slot, or every one
    scores = long_scores(model, [shy, bold, shy], seed=0, end_slot=40_000)
    assert scores.shape == (3, 28) and np.array_equal(scores[0], scores[2])  # the same random numbers for all
    assert overall(scores)[0] > overall(scores)[1]
    lost = np.full((1, 4), 0.9)
    lost[0, 2] = 0.0
    assert overall(lost)[0] == pytest.approx((0.9**3 * 1e-3) ** 0.25)
    with pytest.raises(ValueError, match="at least one policy"):
        long_scores(model, [], seed=0)


def test_recovery_is_the_end_of_the_first_good_window():
    tdma = np.arange(124, 200_000, 124)
    assert trials.recovery_slots(tdma, 50_000) == 10_000  # never lost
    gap = tdma[(tdma <= 50_000) | (tdma > 62_000)]
    # 80 successes must fit: from 62 000 on they end at 62 000 + 80 * 124 at the latest; windows move by 100 slots
    assert trials.recovery_slots(gap, 50_000) == pytest.approx(62_000 + 80 * 124 - 50_000, abs=124 + 100)
    assert trials.recovery_slots(tdma[tdma <= 50_000], 50_000) == np.inf


def test_trials_of_a_known_rule_agree_with_its_closed_form():
    alone = trials.saturated(always(50.0), 1, seed=0, n_slots=1_000_000)
    assert alone["throughput_ratio"] == pytest.approx(120 / 124, abs=2e-4)  # one packet at either end
    assert (alone["least_share"], alone["collision_rate"], alone["capture_index"]) == (1, 0, 1)
    starved = trials.beside(always(50.0), 2, AC_BE, seed=0, n_slots=1_000_000)
    assert starved["agents_share"] == 1 and starved["legacy_kept"] == starved["least_share"] == 0
    load = trials.under_load(always(-1.0), 2, 0.3, seed=0, n_slots=1_000_000)
    be = simulate(Scenario.uniform(AC_BE, 2, traffic=trials.Poisson(0.3 / 240)), 1_200_000, 0, 200_000)
    assert load["mean_delay_slots_ac_be"] == be.mean_delay_slots


def test_a_change_is_measured_from_the_slot_at_which_it_happens():
    polite = always(-3.5)
    joined_late = trials.change(polite, 2, 3, seed=0, n_replications=2)
    assert set(joined_late) == {"recovery_slots", "recovery_slots_most", "throughput_after"}
    assert joined_late["recovery_slots"] == 130_000  # a coin never reaches .955
    assert 0.7 < joined_late["throughput_after"] < 0.9
