"""World model, planning and learners of FedMORL: closed forms, second routes, and the channel's own answer."""

import numpy as np
import pytest
import torch

from fedmorl.data import DatasetError, OfflineDataset, collect_dca_logs
from fedmorl.dca import CSMA_CA, Scenario, analytic, simulate
from fedmorl.dca.policy import OBSERVATION, MLPPolicy
from fedmorl.federated import FitConfig
from fedmorl.learners import (
    BehaviourCloning,
    BlindBehaviour,
    LearnedPolicy,
    PlannerWeightedCloning,
    RolloutAugmentation,
    load_policies,
    load_policy,
    save_policies,
)
from fedmorl.learners.rollout_augmentation import EXPECTILE, QV, cql_loss, iql_loss
from fedmorl.learners.temperature import choose_beta, effective_stations, population_throughput
from fedmorl.learners.weighted_cloning import WeightedCloning, closed_form, weights
from fedmorl.planning.grid import LITERAL, PlanConfig, evaluate_on_grid, grid_observations, interpolate, q_values
from fedmorl.planning.tree import TreeSearch
from fedmorl.world_models import TransitionConfig, TransitionModel
from fedmorl.world_models.transition import Prediction, mean_durations_slots, tensors, transition_loss

N_STATIONS = 6
QUICK = FitConfig(local_steps=50, batch_size=128, lr=3e-3, lr_final=1.5e-4, lr_rounds=12)


@pytest.fixture(scope="module")
def logs() -> OfflineDataset:
    return collect_dca_logs(Scenario.uniform(CSMA_CA, n_stations=N_STATIONS, alpha=0.0), n_decisions=20_000, seed=1)


@pytest.fixture(scope="module")
def model(logs) -> TransitionModel:
    model = TransitionModel(TransitionConfig(hidden=(32, 32)), rng=np.random.default_rng(0))
    model.federate(logs.clients(), seed=0, rounds=12, fit_config=QUICK, progress=False)
    return model


def played(policy: MLPPolicy, n_stations: int = N_STATIONS):
    scenario = Scenario.uniform(CSMA_CA, n_stations=n_stations).with_policies(dict.fromkeys(range(n_stations), policy))
    return simulate(scenario, n_slots=5_100_000, seed=5, warmup_slots=100_000)


# --- world model -----------------------------------------------------------------------------------------


def test_outcome_probabilities_are_calibrated_in_every_cell_of_the_log(logs, model):
    """In each (outcome, previous action, action): the mean prediction is the share, to 4 standard errors + .015."""
    batch = logs.transitions()
    expected = model.predict(batch.observations, batch.actions).outcome
    seen = batch.next_observations[:, :4]
    cell = batch.observations[:, :4].argmax(1) * 4 + (batch.observations[:, 4] > 0.5) * 2 + batch.actions
    for c in np.unique(cell):
        rows = cell == c
        p = seen[rows].mean(0)
        allowed = 0.015 + 4 * np.sqrt(p * (1 - p) / rows.sum())
        assert (np.abs(expected[rows].mean(0) - p) < allowed).all(), (c, rows.sum(), expected[rows].mean(0), p)


def test_the_model_beats_the_cells_own_shares_or_equals_them(logs, model):
    """It sees the delay besides, so its nats are no more than those of a table of the cells, give or take .005."""
    batch = logs.transitions()
    cell = batch.observations[:, :4].argmax(1) * 4 + (batch.observations[:, 4] > 0.5) * 2 + batch.actions
    counts = np.zeros((16, 4))
    np.add.at(counts, (cell, batch.next_observations[:, :4].argmax(1)), 1)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    nats = -(counts * np.log(np.where(share > 0, share, 1))).sum() / counts.sum()
    assert model.negative_log_likelihood(logs) < nats + 0.005


def test_rollouts_draw_outcomes_as_the_model_says_and_repeat_with_the_seed(logs, model):
    start = np.repeat(logs.observations[0, :1, 0], 40_000, axis=0)
    always = _constant_policy(0.5)
    dreamt = model.rollout(start, always, 2, np.random.default_rng(3))
    again = model.rollout(start, always, 2, np.random.default_rng(3))
    np.testing.assert_array_equal(dreamt.next_observations, again.next_observations)
    np.testing.assert_array_equal(dreamt.observations[:, 1], dreamt.next_observations[:, 0])
    for action in (0, 1):
        rows = dreamt.actions[:, 0] == action
        p = model.predict(start[:1], np.array([action])).outcome[0]
        seen = dreamt.next_observations[rows, 0, :4].mean(0)
        assert (np.abs(seen - p) < 4 * np.sqrt(p * (1 - p) / rows.sum()) + 1e-4).all()
    busy = dreamt.next_observations[:, 0, 0] == 0
    assert set(dreamt.durations[busy, 0]) == {124.0} and set(dreamt.durations[~busy, 0]) == {1.0}


def test_durations_come_from_the_log(logs):
    assert mean_durations_slots(logs) == (1.0, 124.0, 124.0, 124.0)


def test_the_loss_of_a_perfect_model_is_the_entropy_it_states(logs):
    """Constant logits for one sure outcome, no change, no reward: nats alone, log 4 for a flat guess."""
    columns = [column[:64] for column in tensors(logs)]
    network = torch.nn.Linear(8, 20)
    torch.nn.init.zeros_(network.weight)
    torch.nn.init.zeros_(network.bias)
    inputs, outcome, d2lt, buffer, reward = columns
    zero = torch.zeros_like(reward)
    assert transition_loss(network, inputs, outcome, zero, zero, zero).item() == pytest.approx(np.log(4))
    more = transition_loss(network, inputs, outcome, d2lt, buffer, reward).item()
    expected = np.log(4) + 10 * ((d2lt**2).mean() + (buffer**2).mean()).item() + (reward**2).mean().item()
    assert more == pytest.approx(expected, rel=1e-5)


def test_a_model_comes_back_from_its_file_and_others_are_refused(model, tmp_path):
    model.save(tmp_path / "m.safetensors")
    back = TransitionModel.load(tmp_path / "m.safetensors")
    points = grid_observations(5)
    np.testing.assert_array_equal(
        back.predict(points, np.ones(len(points))).outcome, model.predict(points, np.ones(len(points))).outcome
    )
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "m.safetensors").read_bytes()[:-10])
    save_policies(tmp_path / "p.safetensors", [_constant_policy(0.1)])
    for name in ("cut", "p"):
        with pytest.raises(ValueError, match=rf"{name}.safetensors is not a TransitionModel"):
            TransitionModel.load(tmp_path / f"{name}.safetensors")


def test_a_log_of_other_observations_is_refused_in_a_sentence(model):
    from fedmorl.dca.policy import FEATURES

    other = collect_dca_logs(Scenario.uniform(CSMA_CA, n_stations=2), n_decisions=50, observation_names=FEATURES)
    with pytest.raises(DatasetError, match="observation_names must be"):
        model.clients([other])


# --- planning --------------------------------------------------------------------------------------------


class Toy:
    """Transmit: reward 1, ACK, 124 slots; defer: reward 0, idle, 1 slot. The delay does not matter."""

    def predict(self, observations, actions):
        sends = np.asarray(actions) > 0.5
        outcome = np.zeros((len(sends), 4), np.float32)
        outcome[sends, 3], outcome[~sends, 0] = 1, 1
        d2lt = np.repeat(observations[:, [5]], 4, axis=1)
        durations = np.tile(np.float32([1, 124, 124, 124]), (len(sends), 1))
        return Prediction(outcome, d2lt, observations[:, 6], sends.astype(np.float32), durations)


def test_values_of_a_deterministic_world_are_its_geometric_sums():
    grid, half = evaluate_on_grid(Toy(), 5), np.full(8 * 5, 0.5)
    gamma, horizon = 0.9, 4
    decisions = q_values(
        grid, PlanConfig(horizon=horizon, objective="discount_decisions", backup="max", discount=gamma)
    )
    assert decisions[0] == pytest.approx(
        [sum(gamma**k for k in range(1, horizon)), sum(gamma**k for k in range(horizon))]
    )
    slots = q_values(grid, PlanConfig(horizon=2, objective="discount_slots", backup="max", discount=gamma))
    assert slots[0] == pytest.approx([gamma, 1 + gamma**124])
    rate = q_values(grid, PlanConfig(horizon=2), behaviour=half, reward_rate=0.01)
    later = 0.5 * (1 - 1.24) + 0.5 * (0 - 0.01)
    assert rate[0] == pytest.approx([-0.01 + later, 1 - 1.24 + later])


def test_without_capture_a_winner_expects_what_it_expects_after_an_idle_slot(model):
    points = grid_observations()
    pi = np.full(len(points), 0.1)
    q = q_values(evaluate_on_grid(model), PlanConfig(capture=False), behaviour=pi).reshape(4, 2, 65, 2)
    np.testing.assert_array_equal(q[3, 1], q[0, 0])
    seen = q_values(evaluate_on_grid(model), PlanConfig(), behaviour=pi).reshape(4, 2, 65, 2)
    assert (
        seen[3, 1, :, 1] - seen[1, 0, :, 1]
    ).mean() > 0.1  # after the own success sending is safe, and the log says so


@pytest.mark.parametrize("capture", [True, False])
def test_tree_search_agrees_with_the_grid_under_the_behaviour_policy(logs, model, capture):
    config, behaviour = PlanConfig(horizon=5, capture=capture), BlindBehaviour.of(logs)
    rho = logs.rewards.sum() / logs.durations.sum()
    points = grid_observations()
    q = q_values(evaluate_on_grid(model), config, behaviour=behaviour.probability(points), reward_rate=rho)
    search = TreeSearch(model=model, config=config, behaviour=behaviour.table, reward_rate=rho)
    for observation in (logs.observations[0, 10, 0], points[3 * 130 + 65 + 8]):  # of the log; after an own success
        values, errors = search.q_values(observation, n_simulations=3000, rng=np.random.default_rng(1))
        exact = interpolate(q, observation[None])[0]
        assert (np.abs(values - exact) < 4 * errors + 0.01).all(), (values, exact, errors)  # .01: interpolation


def test_tree_search_finds_the_best_action_of_the_literal_equation(model):
    config = PlanConfig(horizon=3, objective="discount_decisions", backup="max")
    q = q_values(evaluate_on_grid(model), config)
    observation = grid_observations()[3 * 130 + 65 + 8]
    values, _ = TreeSearch(model=model, config=config).q_values(
        observation, n_simulations=6000, rng=np.random.default_rng(1)
    )
    exact = interpolate(q, observation[None])[0]
    assert values.argmax() == exact.argmax()
    assert np.abs(values - exact).max() < 0.15  # UCT tries the worse action too, so it is below the maximum


def test_bad_plans_are_refused():
    with pytest.raises(ValueError, match="horizon must be an integer >= 1; got 0"):
        PlanConfig(horizon=0)
    with pytest.raises(ValueError, match="objective must be one of"):
        PlanConfig(objective="reward")
    with pytest.raises(ValueError, match="needs the behaviour policy"):
        q_values(evaluate_on_grid(Toy(), 3), PlanConfig())
    with pytest.raises(ValueError, match="needs the behaviour policy"):
        TreeSearch(model=Toy(), config=PlanConfig())


# --- learners --------------------------------------------------------------------------------------------


def test_the_blind_behaviour_policy_is_the_log_s_own_rate_in_each_cell(logs):
    table = BlindBehaviour.of(logs).table
    batch = logs.transitions()
    after_ack = batch.observations[:, 3] > 0.5
    assert table[3, 1] == pytest.approx(batch.actions[after_ack].mean(), abs=1e-3)
    p = 1 / 8  # CW 7: after a success 0 of 0..7 is drawn
    assert abs(table[3, 1] - p) < 4 * np.sqrt(p * (1 - p) / after_ack.sum()) + 1e-3
    parts = [BlindBehaviour.of(client) for client in logs.clients()]
    np.testing.assert_array_equal(sum(parts[1:], parts[0]).table, table)


def test_weighted_cloning_finds_its_closed_form(logs):
    seen = logs.transitions().observations[::40]
    behaviour = BlindBehaviour.of(logs).probability(seen)
    weight = weights(np.where(seen[:, 3] > 0.5, 0.5, -0.1), 0.3)
    policy = WeightedCloning().fit(seen, behaviour, weight, rng=np.random.default_rng(0))
    assert np.abs(policy.probability(seen) - closed_form(behaviour, weight)).mean() < 0.005


def test_weights_are_clipped_at_e_cubed_and_refuse_a_beta_of_zero():
    assert weights(np.array([-100.0, 0.0, 100.0]), 0.2) == pytest.approx([np.exp(-3), 1, np.exp(3)])
    with pytest.raises(ValueError, match="beta must be > 0"):
        weights(np.zeros(1), 0.0)


def test_the_population_chain_gives_the_memoryless_optimum_its_closed_form():
    for n in (2, 6, 14):
        best = analytic.p_persistent_optimum(n)
        constant = np.full((4, 2), best.attempt_probability)
        assert population_throughput(constant, n) == pytest.approx(best.throughput_ratio, rel=1e-9)
        assert population_throughput(constant * 1.5, n) < best.throughput_ratio


def test_the_population_chain_foretells_what_copies_of_a_policy_make_of_the_channel():
    """Cells as learned: sends on after an own success. The chain counts every collision as one of two: hence 2 %."""
    attempt = np.array([[0.02, 0.02], [0.0, 0.0], [0.0, 0.2], [0.6, 0.6]])
    layers = [(np.zeros((7, 8)), np.zeros(8)), (np.zeros((8, 2)), np.zeros(2))]
    for k, cell in enumerate([(0, 0), (1, 0), (2, 0), (2, 1), (3, 1)]):  # a unit that fires in this cell alone
        outcome, previous = cell
        layers[0][0][outcome, k], layers[0][0][4, k], layers[0][1][k] = 2.0, 2.0 * (2 * previous - 1), -1 - 2 * previous
        p = np.clip(attempt[cell], 1e-6, None)
        layers[1][0][k, 1] = np.log(p / (1 - p))
    policy = LearnedPolicy(layers)
    assert policy.probability(np.array([[0, 0, 0, 1, 1, 0.1, 1]])) == pytest.approx([0.6])
    assert played(policy).throughput_ratio == pytest.approx(population_throughput(attempt, N_STATIONS), rel=0.02)


def test_beta_is_the_one_whose_policy_plays_best():
    """pi = beta / 100 in every cell: the best beta is a hundred times the optimal attempt probability."""
    optimum = analytic.p_persistent_optimum(10).attempt_probability
    betas, points = np.linspace(0.2, 8, 40), grid_observations()
    chosen = choose_beta(lambda beta: np.full(len(points), beta / 100), points, 10.0, betas)
    assert chosen == betas[np.abs(betas - 100 * optimum).argmin()]


def test_logs_tell_about_how_many_stations_there_are(logs):
    assert N_STATIONS - 1 < effective_stations(logs.clients()) < N_STATIONS + 2


def test_planning_beats_the_source_and_every_station_gets_its_share(logs, model):
    source = simulate(Scenario.uniform(CSMA_CA, n_stations=N_STATIONS), n_slots=5_100_000, warmup_slots=100_000)
    policy = PlannerWeightedCloning().fit(logs.clients(), model=model, rng=np.random.default_rng(0))
    m = played(policy)
    assert m.throughput_ratio > source.throughput_ratio + 0.1
    assert m.collision_rate < source.collision_rate / 2
    assert m.jain_window(1_000_000) > 0.95


def test_planning_without_capture_reaches_the_memoryless_optimum(logs, model):
    learner = PlannerWeightedCloning(beta="offline", plan=PlanConfig(capture=False))
    m = played(learner.fit(logs.clients(), model=model, rng=np.random.default_rng(0)))
    assert m.throughput_ratio == pytest.approx(analytic.p_persistent_optimum(N_STATIONS).throughput_ratio, abs=0.015)


def test_the_literal_equation_ends_in_collisions(logs, model):
    """Its others keep silent for ever: the maximum believes it (a finding of the book, kept true here)."""
    m = played(PlannerWeightedCloning(plan=LITERAL).fit(logs.clients(), model=model, rng=np.random.default_rng(0)))
    assert m.throughput_ratio < 0.7


@pytest.mark.parametrize("critic", ["iql", "cql"])
def test_rollouts_beat_the_source(logs, model, critic):
    learner = RolloutAugmentation(critic=critic, n_iterations=1, rounds=6)
    m = played(learner.fit(logs.clients()[:3], model=model, rng=np.random.default_rng(0)))
    assert m.throughput_ratio > 0.84 and m.jain_window(1_000_000) > 0.95


def test_one_client_s_log_alone_is_enough_to_learn(logs, model):
    policy = PlannerWeightedCloning().fit(logs.client(0), model=model, rng=np.random.default_rng(0))
    assert played(policy).throughput_ratio > 0.85


def test_learners_repeat_with_the_seed(logs, model):
    for learner in (PlannerWeightedCloning(), RolloutAugmentation(n_iterations=1, rounds=1)):
        first, second = (
            learner.fit(logs.clients()[:2], model=model, rng=np.random.default_rng(3)).content_hash for _ in range(2)
        )
        assert first == second
    first, second = (
        BehaviourCloning(n_steps=20).fit(logs, rng=np.random.default_rng(3)).content_hash for _ in range(2)
    )
    assert first == second


def _batch(n: int):
    generator = torch.Generator().manual_seed(0)
    observations = torch.rand(n, 7, generator=generator)
    return observations, torch.randint(2, (n,), generator=generator), torch.randn(n, generator=generator)


def test_the_iql_loss_is_its_formula():
    observations, actions, gains = _batch(50)
    module = QV((8,), torch.Generator().manual_seed(1))
    q, v = module(observations)
    chosen = q[torch.arange(50), actions]
    u = chosen - v
    expectile = (torch.where(u < 0, 1 - EXPECTILE, EXPECTILE) * u**2).mean()
    bellman = ((gains + module(observations)[1] - v.mean() - chosen) ** 2).mean()
    got = iql_loss(module, observations, actions, gains, observations)
    assert got.item() == pytest.approx((expectile + bellman).item(), rel=1e-5)


def test_the_cql_penalty_of_an_indifferent_critic_is_log_2():
    observations, actions, gains = _batch(50)
    module = QV((8,), torch.Generator().manual_seed(1))
    for parameter in module.parameters():
        torch.nn.init.zeros_(parameter)
    without = (gains**2).mean().item()
    assert cql_loss(module, observations, actions, gains, observations).item() == pytest.approx(
        without + 0.1 * np.log(2), rel=1e-5
    )


# --- policies --------------------------------------------------------------------------------------------


def _constant_policy(p: float):
    return LearnedPolicy([(np.zeros((len(OBSERVATION), 2)), np.array([0.0, np.log(p / (1 - p))]))])


def test_policies_come_back_from_their_file_and_run_in_the_kernel_alike(tmp_path):
    policies = [_constant_policy(p) for p in (0.1, 0.2, 0.3)]
    save_policies(tmp_path / "three.safetensors", policies, {"seed": 1})
    back = load_policies(tmp_path / "three.safetensors")
    assert [p.content_hash for p in back] == [p.content_hash for p in policies]
    with pytest.raises(ValueError, match="3 policies that differ"):
        load_policy(tmp_path / "three.safetensors")
    policies[0].save(tmp_path / "one.safetensors")
    assert load_policy(tmp_path / "one.safetensors").probability(np.zeros((2, 7))) == pytest.approx([0.1, 0.1])
    (tmp_path / "bad.safetensors").write_text("no policy")
    with pytest.raises(ValueError, match=r"bad\.safetensors does not hold policies"):
        load_policies(tmp_path / "bad.safetensors")
