"""The environments: PettingZoo's own checks, ours where those are hollow, and agreement with simulate()."""

import numpy as np
import pytest
from pettingzoo.test import parallel_api_test, parallel_seed_test

from fedmorl.dca import AC_BE, CSMA_CA, BatchedEnv, DCAParallelEnv, Poisson, Saturated, Scenario, Station, simulate
from fedmorl.dca.policy import MLPPolicy


def make(n_steps=100, **fields):
    return DCAParallelEnv(Scenario.uniform(CSMA_CA, 4, **fields), n_steps=n_steps)


@pytest.mark.filterwarnings("error")  # PettingZoo warns where it only frowns
def test_pettingzoo_accepts_it(capsys):
    env = make()
    parallel_api_test(env, num_cycles=500)  # raises at what it refuses, and says so at its end
    assert capsys.readouterr().out == "Passed Parallel API test\n"
    assert env.agents == []  # played to its last step
    parallel_seed_test(make, num_cycles=100)


@pytest.mark.parametrize("traffic", [Saturated(), Poisson(0.001)])
def test_same_seed_same_500_steps_and_another_seed_differs(traffic):
    """PettingZoo's seed test compares one step only; this one compares them all."""

    def play(seed):
        env = make(n_steps=500, traffic=traffic)
        rng, seen = np.random.default_rng(0), []
        observations, infos = env.reset(seed=seed)
        while env.agents:
            actions = {a: int(rng.random() < 0.1) for a in env.agents}
            observations, rewards, terminations, truncations, infos = env.step(actions)
            slots = [i["duration_slots"] for i in infos.values()]
            seen.append([*np.concatenate(list(observations.values())), *rewards.values(), *slots])
        assert not any(terminations.values()) and all(truncations.values())
        return np.array(seen)

    first, again, other = play(7), play(7), play(8)
    assert first.shape[0] == 500
    assert np.array_equal(first, again)
    # under saturation the agents' own coins are all there is; Poisson arrivals come from the seed
    assert np.array_equal(first, other) == (traffic == Saturated())


def test_a_step_lasts_1_slot_when_idle_and_124_when_somebody_sends():
    env = make()
    env.reset(seed=0)
    quiet, alone, clash = ({a: int(k < n) for k, a in enumerate(env.agents)} for n in (0, 1, 3))
    for actions, slots, reward in ((quiet, 1, 0), (alone, 124, 1), (clash, 124, -1)):
        _, _, _, _, infos = env.step(actions)
        assert {i["duration_slots"] for i in infos.values()} == {slots}
        assert {i["r_glob"] for i in infos.values()} == {reward}


def test_reward_is_throughput_plus_alpha_times_the_share_of_delay():
    env = make(alpha=0.5)
    env.reset(seed=0)
    send = {a: int(a == "station_0") for a in env.agents}
    observations, *_ = env.step(send)
    _, rewards, _, _, infos = env.step(send)
    for agent, observation in observations.items():
        assert infos[agent]["r_local"] == pytest.approx(-observation[5] * observation[6])
        assert rewards[agent] == pytest.approx(1 + 0.5 * infos[agent]["r_local"])
    assert sum(i["r_local"] for i in infos.values()) == pytest.approx(-1)  # the local term only redistributes


def test_observation_shows_the_last_event_to_each_station():
    env = make()
    env.reset(seed=0)
    observations, *_ = env.step({a: int(a == "station_2") for a in env.agents})
    assert observations["station_2"][:5].tolist() == [0, 0, 0, 1, 1]
    assert observations["station_0"][:5].tolist() == [0, 1, 0, 0, 0]


def test_an_agent_with_nothing_to_send_is_masked_and_its_action_does_not_count():
    env = DCAParallelEnv(Scenario(stations=[CSMA_CA, CSMA_CA], traffic=Poisson(1e-4)), n_steps=2000)
    _, infos = env.reset(seed=3)
    idle_sends = 0
    while env.agents:
        masked = {a for a in env.agents if not infos[a]["action_mask"][1]}
        idle_sends += len(masked)
        *_, infos = env.step(dict.fromkeys(env.agents, 1))
        if len(masked) == 1:  # one had a packet and sent alone
            assert infos["station_0"]["r_glob"] == 1
    assert idle_sends > 500


def test_rule_based_neighbours_and_networks_share_the_channel_with_agents():
    net = MLPPolicy([(np.zeros((7, 2)), np.array([3.0, 0.0]))])
    env = BatchedEnv(Scenario(stations=[AC_BE, Station(policy=net), AC_BE]), n_envs=8, agents=[2], n_steps=500)
    env.reset(seed=0)
    for _ in range(500):
        env.step(np.zeros((8, 1), int))
    assert (env.successes[:, 2] == 0).all() and (env.successes[:, :2] > 0).all()


def test_batched_replications_equal_single_environments():
    scenario, rng = Scenario.uniform(CSMA_CA, 3, traffic=Poisson(0.002)), np.random.default_rng(1)
    batch = BatchedEnv(scenario, n_envs=3, n_steps=50)
    observations, info = batch.reset(seed=5)
    singles = [BatchedEnv(scenario, n_envs=1, n_steps=50) for _ in range(3)]
    for b, single in enumerate(singles):
        for episode in range(b + 1):  # replication b of seed 5 is its b-th episode
            first, single_info = single.reset(seed=5 if episode == 0 else None)
        assert np.array_equal(first[0], observations[b])
        assert np.array_equal(single_info["mask"][0], info["mask"][b])
    for _ in range(50):
        actions = (rng.random((3, 3)) < 0.2).astype(int)
        outputs = batch.step(actions)
        for b, single in enumerate(singles):
            alone = single.step(actions[b : b + 1])
            for whole, part in zip(outputs[:4], alone[:4], strict=True):
                assert np.array_equal(whole[b], part[0])


def test_coins_through_the_environment_agree_with_coins_in_the_kernel():
    tau, n = 0.05, 5
    env = BatchedEnv(Scenario.uniform(CSMA_CA, n), n_envs=64, n_steps=2000)
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(2000):
        env.step(rng.random((64, n)) < tau)
    idle, alone = (1 - tau) ** n, n * tau * (1 - tau) ** (n - 1)
    expected = 120 * alone / (idle + (1 - idle) * 124)
    values = env.throughput_ratio
    assert abs(values.mean() - expected) < 4 * values.std(ddof=1) / 8


def test_the_scripted_rule_through_the_environment_is_the_simulators_rule():
    """A station that is left to its rule behaves as in simulate(), whoever asks."""
    scenario = Scenario(stations=[AC_BE, Station(cw_min=0, cw_max=0, traffic=Poisson(1e-9))])
    env = DCAParallelEnv(scenario, agents=[1], n_steps=1)
    env._batch.reset(seed=2)  # runs to the first decision of a station that hardly ever has a packet
    ratio = simulate(scenario, 2_000_000, seed=2, warmup_slots=0).throughput_ratio
    assert env.throughput_ratio == pytest.approx(ratio, abs=2e-3)


@pytest.mark.parametrize("action", [2, -1, 0.5, float("nan"), None])
def test_actions_other_than_0_and_1_are_refused(action):
    env = make()
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"0 .defer. or 1 .transmit."):
        env.step({a: action for a in env.agents})


def test_misuse_gets_one_clear_sentence():
    env = make(n_steps=1)
    with pytest.raises(RuntimeError, match="call reset"):
        env._batch.step(np.zeros((1, 4)))
    env.reset(seed=0)
    with pytest.raises(ValueError, match="missing station_3"):
        env.step({f"station_{k}": 0 for k in range(3)})
    with pytest.raises(ValueError, match="unknown agents zz"):
        env.step({"zz": 1} | {f"station_{k}": 0 for k in range(4)})
    with pytest.raises(ValueError, match="must be a dict"):
        env.step(None)
    with pytest.raises(ValueError, match="scenario must be a Scenario"):
        DCAParallelEnv("AC_BE")
    with pytest.raises(ValueError, match="agents"):
        DCAParallelEnv(Scenario.uniform(AC_BE, 2), agents=[])
    with pytest.raises(ValueError, match="from 0 to 1"):
        DCAParallelEnv(Scenario.uniform(AC_BE, 2), agents=[2])
    batch = BatchedEnv(Scenario.uniform(AC_BE, 2), n_envs=4)
    batch.reset(seed=0)
    with pytest.raises(ValueError, match="shape"):
        batch.step(np.zeros((4, 3)))
