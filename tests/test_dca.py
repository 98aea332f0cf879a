"""The channel simulator against its rules: an independent oracle, identities, closed forms, refusals."""

import itertools
import json
import math
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from dca_reference import reference_run

from fedmorl.dca import (
    AC_BE,
    AC_VI,
    AC_VO,
    CSMA_CA,
    CSMA_ECA,
    ConstantRate,
    MLPPolicy,
    Poisson,
    Saturated,
    Scenario,
    Simulation,
    Station,
    replicate,
    simulate,
)
from fedmorl.dca.histogram import N_BINS, bin_centres, bin_index
from fedmorl.dca.metrics import jain_index

MIXED = [AC_VO, replace(AC_BE, aifs_slots=5), CSMA_ECA, replace(CSMA_CA, frame_error_rate=0.1, retry_limit=4)]
SCENARIOS = {
    "BE saturated": Scenario.uniform(AC_BE, 5),
    "a pair": Scenario.uniform(AC_VO, 2, collision_slots=50),
    "a pair, bianchi, retry limit": Scenario(
        stations=[replace(AC_VO, retry_limit=2), replace(CSMA_CA, retry_limit=5)], countdown="bianchi"
    ),
    "VO bianchi": Scenario.uniform(AC_VO, 6, countdown="bianchi"),
    "ECA": Scenario.uniform(CSMA_ECA, 7),
    "ECA bianchi": Scenario.uniform(CSMA_ECA, 3, countdown="bianchi"),
    "retry limit, short collisions": Scenario.uniform(replace(AC_VO, retry_limit=3), 5, collision_slots=40),
    "three kinds on the ring": Scenario(stations=[AC_VO, replace(CSMA_CA, retry_limit=2), CSMA_ECA, CSMA_ECA]),
    "sparse Poisson": Scenario.uniform(AC_BE, 4, traffic=Poisson(0.0005)),
    "Poisson overload": Scenario.uniform(CSMA_CA, 5, traffic=Poisson(0.018)),
    "Poisson, bianchi": Scenario.uniform(AC_VI, 3, traffic=Poisson(0.002), countdown="bianchi"),
    "constant rate": Scenario.uniform(AC_VI, 3, traffic=ConstantRate(0.002), buffer=3),
    "mixed AIFS, EIFS, errors": Scenario(stations=MIXED, eifs_extra_slots=2),
    "mixed traffic": Scenario(
        stations=[
            replace(s, traffic=t)
            for s, t in zip(MIXED, (Saturated(), Poisson(0.001), ConstantRate(0.003), None), strict=False)
        ],
        traffic=Poisson(0.01),
        eifs_extra_slots=3,
        difs_slots=4,
    ),
    "stations come and go": Scenario(
        stations=[
            replace(s, traffic=Saturated(start, stop))
            for s, start, stop in zip(MIXED, (0, 4001, 0, 9000), (15_000, None, 8000, 9001), strict=True)
        ],
        eifs_extra_slots=2,
    ),
    "one station": Scenario.uniform(CSMA_CA, 1),
    "no DIFS": Scenario.uniform(replace(AC_BE, aifs_slots=0), 3, difs_slots=0, tx_slots=7, ack_slots=1),
}
names = pytest.mark.parametrize("name", SCENARIOS)


def listener(seed=0, loss=0.0, **fields):
    """A station whose network reads all that it hears; it sends in about every tenth slot."""
    rng = np.random.default_rng(seed)
    layers = [(0.3 * rng.normal(size=(16, 12)), np.zeros(12)), (rng.normal(size=(12, 2)), np.array([2.5, -0.5]))]
    return Station(policy=MLPPolicy(layers), overhearing_loss=loss, **fields)


LISTENERS = {
    "listeners": Scenario.uniform(listener(), 5),
    "listeners beside others": Scenario(
        stations=[listener(1), listener(1, 0.3), AC_BE, CSMA_ECA, listener(2, frame_error_rate=0.1)],
        eifs_extra_slots=2,
    ),
    "listeners with gaps": Scenario.uniform(listener(3, 0.1), 4, traffic=Poisson(0.002)),
    "listeners come and go": Scenario(
        stations=[listener(1, traffic=Saturated(k, 20_000 + 9 * k)) for k in (0, 3000, 7001)] + [listener(1)],
        difs_slots=0,
    ),
}


def assert_equal_states(a, b):
    for field in a.state._fields:
        x, y = getattr(a.state, field), getattr(b.state, field)
        if field in ("log", "trace"):
            length = int(a.state.channel[0][f"{field}_length"])
            x, y = x[:length], y[:length]
        if field == "stations":  # scratch of rule 11, unused by rule-based stations
            x, y = x.copy(), y.copy()
            x["observation"] = y["observation"] = 0
        assert x.tobytes() == y.tobytes(), field


@names
def test_kernels_obey_the_rules_as_an_independent_slot_loop_reads_them(name):
    scenario, n_slots = SCENARIOS[name], 30_000
    radios, slots, busy = reference_run(scenario, n_slots, seed=3, replication=2)
    m = simulate(scenario, n_slots, seed=3, warmup_slots=0, replication=2, trace=True)
    for row, radio in zip(m.stations, radios, strict=True):
        for count in ("successes", "collisions", "errors", "dropped", "blocked", "arrivals", "cw", "retries"):
            assert row[count] == getattr(radio, count), count
        assert row["access_delay_sum"] == sum(radio.access_delays)
        assert row["delay_sum"] == pytest.approx(sum(radio.delays))
    c = m.counts
    measured = (c["idle_slots"], c["success_slots"], c["collision_slots"], c["error_slots"], c["difs_count"])
    assert measured == tuple(slots.values())
    trace = m.trace.to_frame()
    sent = trace[trace.event != "draw"].groupby(["slot", "end_slot"], sort=True).station.apply(tuple)
    assert [(*key, who) for key, who in sent.items()] == [b for b in busy if b[1] <= n_slots]


@pytest.mark.parametrize("name", SCENARIOS | LISTENERS)
def test_event_mode_equals_slot_mode_bit_for_bit(name):
    for trace in (False, True):  # without a trace, saturated scenarios take the bucket ring
        runs = []
        for mode in ("slot", "event"):
            simulation = Simulation((SCENARIOS | LISTENERS)[name], seed=5, mode=mode, trace=trace)
            simulation.run(10_007).open_window().run(150_011)
            simulation.metrics()
            runs.append(simulation)
        assert_equal_states(*runs)


@pytest.mark.parametrize("name", SCENARIOS | LISTENERS)
def test_numbers_do_not_depend_on_where_the_chunks_end(name):
    whole, chunked = (Simulation((SCENARIOS | LISTENERS)[name], seed=1) for _ in range(2))
    whole.run(60_000)
    for until in (1, 2, 30, 119, 125, 126, 1000, 1001, 33_333, 59_999, 60_000):
        chunked.run(until).metrics()
    whole.metrics()
    assert_equal_states(whole, chunked)


def test_jitted_kernels_equal_pure_python():
    program = (
        "import numpy as np; np.seterr(over='ignore');"
        "import sys; sys.path.insert(0, 'tests');"
        "from test_dca import LISTENERS, SCENARIOS; from fedmorl.dca import simulate; import hashlib;"
        "h = hashlib.sha256();\n"
        "for s in (SCENARIOS | LISTENERS).values():\n"
        "    m = simulate(s, 6000, seed=9, warmup_slots=500)\n"
        "    h.update(m.log.tobytes() + m.access_histogram.tobytes() + str(sorted(m.counts.items())).encode())\n"
        "print(h.hexdigest())"
    )
    digests = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "NUMBA_DISABLE_JIT": disabled},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for disabled in ("0", "1")
    ]
    assert digests[0] == digests[1]


@names
def test_slots_and_packets_are_conserved_exactly(name):
    m = simulate(SCENARIOS[name], 300_000, seed=2, warmup_slots=12_345)
    c = m.counts
    counted = c["idle_slots"] + c["success_slots"] + c["collision_slots"] + c["error_slots"] + c["difs_count"]
    assert counted == m.window_slots == 300_000 - 12_345
    loaded = [k for k in range(m.scenario.n_stations) if not isinstance(m.scenario.station_traffic(k), Saturated)]
    s = m.stations[loaded]
    entered = s["queued_at_start"] + s["arrivals"]
    assert (entered == s["successes"] + s["dropped"] + s["blocked"] + s["queue_len"]).all()
    assert c["n_successes"] == s_all(m, "successes") and m.log.size == c["n_successes"]
    assert (m.access_histogram.sum(1) == m.stations["successes"]).all()


def s_all(m, count):
    return int(m.stations[count].sum())


def test_access_delays_of_a_saturated_station_add_up_to_its_last_success():
    simulation = Simulation(Scenario.uniform(AC_BE, 8), seed=0).run(10_000_000)
    m = simulation.metrics()
    assert (m.stations["access_delay_sum"] == m.stations["last_success"]).all()
    # N * 120 / S up to the end effect: one open access delay of some 1e3 slots a station in 1e7
    assert m.mean_access_delay_slots == pytest.approx(8 * 120 / m.throughput_ratio, rel=1e-3)


def test_littles_law_holds():
    m = simulate(Scenario.uniform(AC_BE, 5, traffic=Poisson(0.0012)), 20_000_000, seed=0)
    accepted_rate = (m.arrivals - m.blocked) / m.window_slots / 5
    assert m.mean_queue_length == pytest.approx(accepted_rate * m.mean_delay_slots, rel=5e-3)
    assert m.throughput_ratio == pytest.approx(0.0012 * (1 - m.blocked / m.arrivals) * 5 * 120, rel=5e-3)


@pytest.mark.parametrize("countdown", ["frozen", "bianchi"])
@pytest.mark.parametrize("station", [CSMA_CA, AC_VO, AC_BE])
def test_a_station_alone_follows_its_closed_form(station, countdown):
    m = simulate(Scenario.uniform(station, 1, countdown=countdown), 10_000_000, seed=0)
    cycle, n = 124 + station.cw_min / 2, 10_000_000 / 128
    sd_cycle = math.sqrt(((station.cw_min + 1) ** 2 - 1) / 12 / n)  # a cycle's draw is uniform on 0..cw_min
    assert m.collision_rate == 0
    assert m.throughput_ratio == pytest.approx(120 / cycle, abs=4 * 120 * sd_cycle / cycle**2 + 1e-4)


def test_windows_of_zero_collide_for_ever_unless_alone():
    zero = Station(cw_min=0, cw_max=0)
    assert simulate(Scenario.uniform(zero, 1), 124_000, warmup_slots=0).throughput_ratio == 120 / 124
    m = simulate(Scenario.uniform(zero, 3), 124_000, warmup_slots=0)
    assert (m.throughput_ratio, m.collision_rate) == (0, 1)


@pytest.mark.parametrize("n", [2, 8, 12])
@pytest.mark.parametrize("countdown", ["frozen", "bianchi"])
def test_eca_settles_into_its_collision_free_cycle(n, countdown):
    m = simulate(Scenario.uniform(CSMA_ECA, n, countdown=countdown), 12_000_000, seed=1, warmup_slots=10_000_000)
    cycle = 124 * n + 16 + (1 - n if countdown == "bianchi" else 0)
    assert m.collision_rate == 0
    assert m.throughput_ratio == pytest.approx(120 * n / cycle, abs=1e-4)
    assert m.jain_index == pytest.approx(1, abs=1e-6)


def coin(tau):
    """A network that ignores what it sees and sends with probability tau."""
    return MLPPolicy([(np.zeros((7, 2)), np.array([0.0, math.log(tau / (1 - tau))]))])


@pytest.mark.parametrize("tau", [0.01, 0.05, 0.2])
def test_agents_that_flip_a_coin_follow_the_p_persistent_formula(tau):
    n = 5
    r = replicate(Scenario.uniform(Station(policy=coin(tau)), n), 1_000_000, 10, seed=0)
    idle, alone = (1 - tau) ** n, n * tau * (1 - tau) ** (n - 1)
    expected = 120 * alone / (idle + (1 - idle) * 124)
    se = r.values("throughput_ratio").std(ddof=1) / math.sqrt(10)
    assert abs(r.mean("throughput_ratio") - expected) < 4 * se


class Scripted:
    """DCF from outside: keeps the counter a kernel would keep, fed by the same back-off stream."""

    def __init__(self, station, k, seed):
        from dca_reference import Stream

        self.cw_min, self.cw_max, self.stream = station.cw_min, station.cw_max, Stream(seed, 0, k, 1)

    def act(self, observation, memory, rng):
        idle, _success, _collision, ack = observation[:4]
        cw, counter, sent = memory or (self.cw_min, self.stream.backoff(self.cw_min), False)
        if sent:
            cw = self.cw_min if ack else min(2 * cw + 1, self.cw_max)
            counter = self.stream.backoff(cw)
        elif memory and idle:
            counter -= 1
        return int(counter == 0), (cw, counter, counter == 0)


def test_a_scripted_policy_with_the_same_streams_gives_the_dcf_trace():
    rule = Scenario.uniform(AC_VO, 3)
    scripted = rule.with_policies({k: Scripted(AC_VO, k, seed=4) for k in range(3)})
    a, b = (simulate(scenario, 100_000, seed=4, warmup_slots=0).log for scenario in (rule, scripted))
    assert a.size > 300 and np.array_equal(a, b)


class RoundRobin:
    """A genie: station k sends in its turn."""

    def __init__(self, k, turn, n):
        self.k, self.turn, self.n = k, turn, n

    def act(self, observation, memory, rng):
        if self.k == 0:
            self.turn[0] += 1
        return int(self.turn[0] % self.n == self.k), None


def test_a_round_robin_genie_reaches_the_tdma_bound():
    turn = [-1]
    scenario = Scenario(stations=[Station(policy=RoundRobin(k, turn, 4)) for k in range(4)])
    m = simulate(scenario, 124_000, warmup_slots=0)
    assert (m.throughput_ratio, m.jain_index, m.capture_index) == (120 / 124, 1, 0)


def test_the_network_in_the_kernel_computes_the_same_logits_as_numpy():
    from fedmorl.dca.kernels import transmit_logit
    from fedmorl.dca.policy import pack_weights

    rng = np.random.default_rng(0)
    for widths in ((7, 2), (8, 32, 2), (7, 64, 64, 2), (8, 5, 3, 9, 2), (16, 2), (16, 12, 2), (16, 5, 3, 2)):
        pairs = itertools.pairwise(widths)
        policy = MLPPolicy([(rng.normal(size=(a, b)), rng.normal(size=b)) for a, b in pairs])
        other = MLPPolicy([(rng.normal(size=(8, 4)), rng.normal(size=4)), (rng.normal(size=(4, 2)), np.zeros(2))])
        sizes, weights = pack_weights([other, policy])
        for _ in range(20):
            observation = rng.normal(size=max(8, widths[0])).astype(np.float32)
            defer, transmit = policy.logits(observation)
            inside = transmit_logit(observation, 1, sizes, weights, np.zeros((2, 64), np.float32))
            assert inside == pytest.approx(transmit - defer, rel=1e-4, abs=1e-4)


def test_workers_do_not_change_a_number_and_replications_differ():
    scenario = Scenario.uniform(AC_BE, 6, traffic=Poisson(0.002))
    one, two, eight = (replicate(scenario, 200_000, 6, seed=8, workers=w).values("mean_delay_slots") for w in (1, 2, 8))
    assert (one == two).all() and (two == eight).all()
    assert len(set(one)) == 6


def test_interval_is_student_t():
    with pytest.raises(ValueError, match="at least 2 replications"):
        replicate(Scenario.uniform(AC_BE, 2), 200_000, 1).interval("throughput_ratio")
    r = replicate(Scenario.uniform(AC_BE, 3), 200_000, 5, seed=0)
    values = r.values("throughput_ratio")
    half = 2.776445 * values.std(ddof=1) / math.sqrt(5)  # t(0.975, 4)
    assert r.interval("throughput_ratio") == pytest.approx((values.mean() - half, values.mean() + half))


def test_jain_windows_and_capture_follow_their_definitions():
    m = simulate(Scenario.uniform(CSMA_CA, 5), 400_000, seed=0, warmup_slots=50_000)
    ends, who = m.log >> 8, m.log & 0xFF
    expected = []
    for k in range(3):
        inside = (ends > 50_000 + 100_000 * k) & (ends <= 150_000 + 100_000 * k)
        counts = np.bincount(who[inside], minlength=5).astype(float)
        expected.append(counts.sum() ** 2 / (5 * (counts**2).sum()))
    assert m.jain_window(100_000) == pytest.approx(np.mean(expected))
    blocks = [np.bincount(who[k : k + 50], minlength=5) for k in range(0, who.size - 49, 50)]
    assert m.jain_short == pytest.approx(np.mean([b.sum() ** 2 / (5 * (b**2).sum()) for b in blocks]))
    assert m.capture_index == pytest.approx(sum(a == b for a, b in itertools.pairwise(who)) / (who.size - 1))
    assert float(jain_index(np.array([4.0, 0, 0, 0]))) == 0.25


def test_histogram_bins_are_narrow_and_percentiles_hit_known_values():
    values = np.unique(np.logspace(0, 11, 4000).astype(np.int64))
    index = np.array([bin_index(v) for v in values])
    assert (np.diff(index) >= 0).all() and index.max() < N_BINS
    assert (np.abs(bin_centres()[index] / values - 1) < 0.005).all()
    m = simulate(Scenario.uniform(Station(cw_min=0, cw_max=0), 1), 124_000, warmup_slots=0)
    assert m.access_delay_percentiles_slots([50, 99]) == {50: 124, 99: 124}


def test_frame_errors_happen_at_their_rate_and_are_no_collisions():
    m = simulate(Scenario.uniform(replace(AC_BE, frame_error_rate=0.2), 1), 5_000_000, seed=0)
    n = m.counts["n_errors"] + m.counts["n_successes"]
    assert m.error_rate == pytest.approx(0.2, abs=4 * math.sqrt(0.16 / n))
    assert m.collision_rate == 0


def test_observation_is_the_papers_at_a_decision():
    seen = []

    class Watch:
        def act(self, observation, memory, rng):
            seen.append(observation)
            return int(memory is None), True  # send once, at the first decision

    scenario = Scenario(stations=[Station(policy=Watch()), Station(cw_min=0, cw_max=0)])
    simulate(scenario, 1000, warmup_slots=0)
    first, second, third = seen[:3]
    assert first.tolist() == [1, 0, 0, 0, 0, 0, 1]  # idle so far; nobody has waited yet
    assert second[:5].tolist() == [0, 0, 1, 0, 1]  # both sent: collision; previous action 1
    assert second[5] == pytest.approx(0.5)
    assert third[:5].tolist() == [0, 1, 0, 0, 0]  # the other one succeeds
    assert third[5] == pytest.approx(248 / (248 + 4))


def test_local_d2lt_uses_overheard_successes_only():
    seen = []

    class Watch:
        def act(self, observation, memory, rng):
            seen.append(observation[5])
            return 0, None

    others = [Station(cw_min=0, cw_max=0), Station(cw_min=3, cw_max=3, traffic=ConstantRate(1e-6))]
    simulate(Scenario(stations=[Station(policy=Watch()), *others], d2lt="local"), 1000, warmup_slots=0)
    assert seen[1] == pytest.approx(124 / (124 + 4))  # own wait 124; the other succeeded 4 slots ago
    assert seen[2] == pytest.approx(248 / (248 + 4))


def memory_of_a_listener(station, successes, failures_and_successes):
    """rank, successes since own, others heard, out of turn, two averages: from the definitions, with lists."""
    last, rank, out, out_average, average = {}, 0, 0, 0, 0
    for now, winner in enumerate(successes, start=1):
        waiting = [j for j, when in last.items() if max(0, now - 1 - 64) < when < last.get(winner, 0)]
        out = int(bool(waiting))
        out_average += (65536 * out - out_average) // 32
        last[winner] = now
    for failed in failures_and_successes:
        average += (65536 * failed - average) // 32
    now, own = len(successes), last.get(station, 0)
    recent = {j: when for j, when in last.items() if when > now - 64 and j != station}
    rank = sum(when < own for when in recent.values())
    return rank, now - own, len(recent), out, average, out_average


def test_a_listening_station_remembers_what_the_definitions_say():
    scenario = Scenario(stations=[listener(), AC_BE, listener(), CSMA_ECA, replace(AC_BE, cw_min=255)])
    simulation, checked = Simulation(scenario, seed=3, trace=True), []
    for until in range(500, 40_000, 500):
        m = simulation.run(until).metrics()
        frame = m.trace.to_frame()
        sent = frame[frame.event.isin(("success", "collision"))].drop_duplicates("end_slot")
        successes = sent[sent.event == "success"].station.tolist()
        for i in (0, 2):
            u, last = m.stations[i], simulation.state.heard[i]
            seen = u["rank"], u["heard_successes"] - last[i], u["others_heard"], u["out_of_turn"]
            seen = (*seen, u["collision_average"], u["out_of_turn_average"])
            assert seen == memory_of_a_listener(i, successes, (sent.event == "collision").tolist())
            checked.append(seen)
    assert all(len(set(values)) > 1 for values in zip(*checked, strict=True))  # none of the six is constant


def test_a_network_in_the_kernel_sees_what_its_station_has_heard():
    simulation = Simulation(Scenario(stations=[listener(1), AC_BE, CSMA_ECA]), seed=0)
    idle_runs = set()
    for until in range(1000, 30_000, 333):
        simulation.run(until)
        u, ch = simulation.state.stations[0], simulation.state.channel[0]
        if ch["phase"] == 0 and u["defer"] == 0 and ch["t"] - ch["contention_start"] > 0:
            row = u["observation"].astype(float)  # of the decision one slot ago
            since_own = u["heard_successes"] - simulation.state.heard[0, 0]
            heard = [u["rank"] / 8, (ch["t"] - ch["contention_start"] - 1) / 8, min(since_own, 64) / 8]
            heard += [u["others_heard"] / 8, float(since_own == 0), u["collision_average"] / 65536]
            assert row[8:] == pytest.approx([*heard, u["out_of_turn"], u["out_of_turn_average"] / 65536])
            idle_runs.add(row[9])
    assert len(idle_runs) > 3


def test_lost_addresses_change_what_is_remembered_and_no_other_stream():
    deaf, keen = (Scenario.uniform(replace(listener(), overhearing_loss=p), 4) for p in (1.0, 0.0))
    states = [Simulation(s, seed=1).run(100_000).state for s in (deaf, keen)]
    assert (states[0].stations["others_heard"] == 0).all() and (states[0].stations["rank"] == 0).all()
    assert (states[1].stations["others_heard"] == 3).all()
    assert (np.diag(states[0].heard) > 0).all()  # an own success is never missed
    blind = [(np.zeros((16, 2)), np.array([3.0, 0.0]))]
    logs = [
        simulate(Scenario.uniform(Station(policy=MLPPolicy(blind), overhearing_loss=p), 4), 200_000).log
        for p in (0.0, 0.3)
    ]
    assert np.array_equal(*logs)


def test_addresses_are_lost_at_their_rate():
    other = Station(cw_min=0, cw_max=0)
    m = Simulation(Scenario(stations=[listener(0, 0.3, traffic=Poisson(1e-9)), other]), seed=0)
    ages = []
    for until in range(124, 124 * 4000, 124):
        m.run(until)
        ages.append(m.state.stations["heard_successes"][0] - m.state.heard[0, 1])
    lost = np.mean(np.array(ages) > 0)  # the latest success was not attributed
    assert lost == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / len(ages)))


def test_stations_join_and_leave_at_their_slots():
    visitor = replace(AC_BE, traffic=Saturated(50_001, 80_000))
    trace = simulate(Scenario(stations=[AC_BE, AC_BE, visitor]), 200_000, seed=2, warmup_slots=0, trace=True).trace
    frame = trace.to_frame()
    own = frame[frame.station == 2]
    assert own.iloc[0][["event", "slot"]].tolist() == ["draw", 50_001]
    last = own.iloc[-1]
    assert last.event == "success" and last.end_slot >= 80_000
    assert (own.iloc[:-1].loc[own.event == "success", "end_slot"] < 80_000).all()  # it was the packet in front
    assert frame[frame.event == "success"].end_slot.max() > 199_000  # the others go on


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Scenario.uniform(AC_BE, 0), "n_stations"),
        (lambda: Scenario.uniform(AC_BE, -3), "n_stations"),
        (lambda: Scenario.uniform(AC_BE, 257), "n_stations"),
        (lambda: Scenario(stations=[]), "n_stations"),
        (lambda: Scenario(stations=AC_BE), "stations must be a list"),
        (lambda: Station(cw_min=31, cw_max=15), "cw_min must be <= cw_max"),
        (lambda: Station(cw_min=-1), "cw_min"),
        (lambda: Station(cw_min=7.5), "cw_min must be an integer"),
        (lambda: Poisson(float("nan")), "finite"),
        (lambda: Poisson(float("inf")), "finite"),
        (lambda: Poisson(-0.1), "rate_per_slot"),
        (lambda: ConstantRate(0), "rate_per_slot"),
        (lambda: Station(frame_error_rate=1.5), "frame_error_rate"),
        (lambda: Station(overhearing_loss=-0.1), "overhearing_loss"),
        (lambda: Saturated(-1), "start_slot"),
        (lambda: Saturated(100, 100), "stop_slot must be after start_slot=100"),
        (lambda: Station(policy="send"), "act"),
        (lambda: Scenario.uniform(AC_BE, 2, countdown="stop"), "countdown"),
        (lambda: Scenario.uniform(AC_BE, 2, countdown="bianchi", eifs_extra_slots=2), "bianchi"),
        (lambda: Scenario.uniform(replace(AC_BE, aifs_slots=2), 2), "aifs_slots"),
        (lambda: simulate(Scenario.uniform(AC_BE, 2), 100), "n_slots must exceed warmup_slots"),
        (lambda: simulate(Scenario.uniform(AC_BE, 2), 1.5), "n_slots"),
        (lambda: simulate(Scenario.uniform(AC_BE, 2), seed=-1), "seed"),
        (lambda: simulate(Scenario.uniform(AC_BE, 2), mode="fast"), "mode"),
        (lambda: simulate("AC_BE"), "scenario"),
        (lambda: replicate(Scenario.uniform(AC_BE, 2), n_replications=0), "n_replications"),
        (lambda: simulate(Scenario.uniform(AC_BE, 2), 200_000).jain_window(10**9), "slots"),
        (lambda: simulate(Scenario.uniform(AC_BE, 2), 200_000).delay_percentiles_slots([0]), "percentiles"),
        (lambda: MLPPolicy([(np.zeros((3, 2)), np.zeros(2))]), "inputs"),
        (lambda: MLPPolicy([(np.full((7, 2), np.nan), np.zeros(2))]), "finite"),
        (lambda: MLPPolicy([(np.zeros((7, 3)), np.zeros(3))]), "2 outputs"),
    ],
)
def test_bad_input_gets_one_clear_sentence(make, words):
    with pytest.raises(ValueError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_policy_that_returns_nonsense_is_refused():
    class Nonsense:
        def act(self, observation, memory, rng):
            return 2, memory

    with pytest.raises(ValueError, match=r"station 0 must return action 0 .* got 2"):
        simulate(Scenario.uniform(Station(policy=Nonsense()), 1), 1000, warmup_slots=0)
    Nonsense.act = lambda self, observation, memory, rng: 1
    with pytest.raises(ValueError, match=r"station 0 must return a tuple \(action, memory\); got 1"):
        simulate(Scenario.uniform(Station(policy=Nonsense()), 1), 1000, warmup_slots=0)


def test_importing_the_channel_loads_neither_torch_nor_pandas_and_starts_fast():
    program = (
        "import time; t = time.process_time(); import sys; from fedmorl.dca import AC_BE, Scenario, simulate;"
        "simulate(Scenario.uniform(AC_BE, 10), 1_000_000); print(time.process_time() - t);"
        "assert not {'torch', 'pandas', 'matplotlib', 'pettingzoo'} & set(sys.modules)"
    )
    seconds = [
        float(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)
        for _ in range(3)
    ]
    assert min(seconds) < 2, seconds  # with a warm numba cache, which the first run leaves


def test_256_stations_share_the_channel():
    m = simulate(Scenario.uniform(AC_BE, 256), 300_000, seed=0)
    assert m.scenario.n_stations == 256 and len(m.per_station) == 256
    assert 0.2 < m.throughput_ratio < 0.6


def test_metrics_and_scenario_are_plain_json():
    m = simulate(Scenario(stations=[AC_BE, Station(policy=coin(0.1))]), 200_000)
    assert json.loads(json.dumps(m.scenario.to_dict()))["stations"][1]["policy"]["kind"] == "MLPPolicy"
    assert json.loads(json.dumps(m.to_dict()))["throughput_ratio"] == m.throughput_ratio
