"""The analytic references, held against printed values, closed forms and the exact joint chain."""

import doctest
from math import comb, sqrt

import numpy as np
import pytest
from exact_chain import exact_joint_chain, exact_metrics

from fedmorl.dca import analytic
from fedmorl.dca.analytic import bianchi

COUNTDOWNS = ("frozen", "bianchi")
FOUR_DIGITS = 5e-5  # half a unit of the last printed digit

# N, then tau, S and p of the p-persistent optimum, then S of ECA: V = 16 frozen, V = 16 bianchi, V = 4 frozen
REFERENCE_TABLE = [
    (2, 0.0824, 0.8880, 0.0824, 0.9091, 0.9125, 0.9524),
    (4, 0.0346, 0.8708, 0.1002, 0.9375, 0.9430, 0.9600),
    (6, 0.0220, 0.8658, 0.1053, 0.9474, 0.9536, None),
    (8, 0.0162, 0.8634, 0.1078, 0.9524, 0.9590, None),
    (10, 0.0128, 0.8620, 0.1092, 0.9554, 0.9623, None),
    (12, 0.0106, 0.8611, 0.1102, 0.9574, 0.9645, None),
    (14, 0.0090, 0.8605, 0.1108, 0.9589, 0.9661, None),
]


def test_examples_in_the_docstrings_hold():
    result = doctest.testmod(analytic)
    assert result.attempted >= 4
    assert result.failed == 0


# ------------------------------------------------------------------------- memoryless and scheduled access


@pytest.mark.parametrize("n, tau, s, p, eca, eca_bianchi, eca_short", REFERENCE_TABLE)
def test_reference_table_to_four_digits(n, tau, s, p, eca, eca_bianchi, eca_short):
    best = analytic.p_persistent_optimum(n)
    assert best.attempt_probability == pytest.approx(tau, abs=FOUR_DIGITS)
    assert best.throughput_ratio == pytest.approx(s, abs=FOUR_DIGITS)
    assert best.collision_probability == pytest.approx(p, abs=FOUR_DIGITS)
    assert analytic.eca_throughput(n) == pytest.approx(eca, abs=FOUR_DIGITS)
    assert analytic.eca_throughput(n, countdown="bianchi") == pytest.approx(eca_bianchi, abs=FOUR_DIGITS)
    if eca_short is not None:
        assert analytic.eca_throughput(n, backoff=4) == pytest.approx(eca_short, abs=FOUR_DIGITS)


@pytest.mark.parametrize("collision_slots", [None, 10])
@pytest.mark.parametrize("n", [2, 5, 14, 64, 256])
def test_throughput_is_flat_at_the_p_persistent_optimum(n, collision_slots):
    best = analytic.p_persistent_optimum(n, collision_slots=collision_slots)
    tau, step = best.attempt_probability, 1e-4
    below, above = (
        analytic.p_persistent_throughput(tau * (1 + sign * step), n, collision_slots=collision_slots)
        for sign in (-1, 1)
    )
    assert below < best.throughput_ratio > above
    # d log S / d log tau by a central difference: truncation ~ step^2, rounding ~ 2e-16 / step
    assert abs(above - below) / (2 * step * best.throughput_ratio) < 10 * step**2


def test_p_persistent_optimum_tends_to_the_known_approximation():
    # the next term of the expansion is of relative size sqrt(2 / T_b) = 0.13
    tau = analytic.p_persistent_optimum(256).attempt_probability
    assert tau * 256 == pytest.approx(sqrt(2 / 124), rel=0.13)


def test_p_persistent_throughput_of_two_stations_by_hand():
    # tau = 1/2: a channel slot is idle 1/4, a success 1/2, a collision 1/4 of the time
    by_hand = 120 * 0.5 / (0.25 + 0.5 * 124 + 0.25 * 14)
    assert analytic.p_persistent_throughput(0.5, 2, collision_slots=10) == pytest.approx(by_hand, rel=1e-14)
    assert analytic.p_persistent_throughput(0, 2) == 0
    assert analytic.p_persistent_throughput(1, 2) == 0
    assert analytic.p_persistent_throughput(1, 1) == pytest.approx(120 / 124, rel=1e-14)


def test_a_lone_memoryless_station_always_sends():
    best = analytic.p_persistent_optimum(1)
    assert (best.attempt_probability, best.collision_probability) == (1, 0)
    assert best.throughput_ratio == pytest.approx(analytic.tdma_throughput(), rel=1e-14)


def test_round_robin_takes_one_turn_each():
    assert analytic.tdma_throughput() == 120 / 124
    assert analytic.tdma_throughput(tx_slots=9, difs_slots=1) == 0.9
    assert analytic.tdma_access_delay_slots(14) == 124 * 14


def replay_locked_eca(n, v, countdown):
    """(successes, slots) of one period of n locked stations, moved channel slot by channel slot."""
    counters = list(range(n))
    successes = slots = 0
    while successes == 0 or counters != list(range(n)):
        sender = counters.index(0) if 0 in counters else None
        assert counters.count(0) <= 1
        moves = sender is None or countdown == "bianchi"
        counters = [v if i == sender else c - moves for i, c in enumerate(counters)]
        successes, slots = successes + (sender is not None), slots + (1 if sender is None else 124)
    return successes, slots


@pytest.mark.parametrize("countdown, capacity", [("frozen", 5), ("bianchi", 6)])
def test_eca_formula_is_the_replayed_cycle_up_to_capacity(countdown, capacity):
    for n in range(1, capacity + 1):
        successes, slots = replay_locked_eca(n, 5, countdown)
        assert analytic.eca_throughput(n, 5, countdown) == pytest.approx(120 * successes / slots, rel=1e-14)
        assert analytic.eca_access_delay_slots(n, 5, countdown) == slots * n / successes
    with pytest.raises(ValueError, match=rf"n_stations must be <= {capacity} .* got {capacity + 1}; .*simulate"):
        analytic.eca_throughput(capacity + 1, 5, countdown)


# ------------------------------------------------------------------------------------------- identities


@pytest.mark.parametrize("countdown", COUNTDOWNS)
@pytest.mark.parametrize("cw_min", [0, 1, 7, 31])
def test_a_lone_station_waits_half_its_window(cw_min, countdown):
    lone = bianchi(cw_min, 1023, 1, countdown)
    s = 120 / (124 + cw_min / 2)
    assert lone.throughput_ratio == pytest.approx(s, rel=1e-12)
    assert lone.access_delay_slots == pytest.approx(124 + cw_min / 2, rel=1e-12)
    assert (lone.collision_probability, lone.collision_event_rate) == (0, pytest.approx(0, abs=1e-15))
    assert analytic.single_station_throughput(cw_min) == pytest.approx(s, rel=1e-14)


def test_a_lone_station_never_collides_by_rounding():
    assert min(bianchi(cw, cw, 1, "bianchi").collision_event_rate for cw in range(200)) == 0


@pytest.mark.parametrize("retry_limit", [0, 1, 4])
@pytest.mark.parametrize("countdown", COUNTDOWNS)
@pytest.mark.parametrize("cw_min, cw_max, n", [(7, 15, 2), (31, 1023, 14), (1, 255, 6)])
def test_time_and_packets_are_conserved(cw_min, cw_max, n, countdown, retry_limit):
    airtime = {"tx_slots": 100, "difs_slots": 3, "collision_slots": 20}
    got = bianchi(cw_min, cw_max, n, countdown, retry_limit, **airtime)
    per_slot = got.throughput_ratio / 100  # successes
    collisions = per_slot * got.collision_event_rate / (1 - got.collision_event_rate)
    assert got.idle_fraction + per_slot * 103 + collisions * 23 == pytest.approx(1, rel=1e-12)
    leaving = per_slot / (1 - got.drop_probability)  # Little: N packets are at the head of line
    assert got.access_delay_slots == pytest.approx(n / leaving, rel=1e-10)
    if retry_limit == 0:
        identity = analytic.access_delay_slots(got.throughput_ratio, n, tx_slots=100)
        assert got.access_delay_slots == pytest.approx(identity, rel=1e-10)


def test_airtimes_move_shares_of_time_but_not_attempts():
    long, short = bianchi(7, 15, 14, "bianchi"), bianchi(7, 15, 14, "bianchi", collision_slots=1)
    assert short.attempt_probability == long.attempt_probability
    assert short.collision_probability == long.collision_probability
    assert long.throughput_ratio < 0.35  # cheap collisions would hide the paper's degradation of AC_VO
    assert short.throughput_ratio == pytest.approx(0.90, abs=0.005)
    assert bianchi(7, 15, 14, "bianchi", collision_slots=120) == long


def test_delays_follow_from_counts():
    assert analytic.access_delay_slots(0.5, 10) == 2400
    assert analytic.access_delay_slots(0.5, 10, tx_slots=60) == 1200
    assert analytic.little_delay_slots(3.0, 0.004) == 750
    assert analytic.little_delay_slots(0, 0.004) == 0


# ---------------------------------------------------------------------------------------- fixed points


@pytest.mark.parametrize("n", [2, 6, 14, 64])
@pytest.mark.parametrize("cw_min, doublings", [(7, 1), (15, 1), (7, 7), (31, 5)])
def test_bianchi_equals_the_closed_form_for_exact_doubling(cw_min, doublings, n):
    w, m = cw_min + 1, doublings
    got = bianchi(cw_min, w * 2**m - 1, n, "bianchi")
    p, tau = got.collision_probability, got.attempt_probability
    closed = 2 * (1 - 2 * p) / ((1 - 2 * p) * (w + 1) + p * w * (1 - (2 * p) ** m))
    assert tau == pytest.approx(closed, rel=1e-14 / abs(1 - 2 * p))  # the closed form cancels near p = 1/2
    assert p == pytest.approx(1 - (1 - tau) ** (n - 1), rel=1e-12)


@pytest.mark.parametrize("retry_limit", [1, 4, 7])
def test_bianchi_with_a_retry_limit_drops_p_to_the_limit(retry_limit):
    got = bianchi(7, 31, 10, "bianchi", retry_limit)
    p = got.collision_probability
    weights = p ** np.arange(retry_limit)
    windows = np.array([7, 15, 31, 31, 31, 31, 31])[:retry_limit]
    assert got.attempt_probability == pytest.approx(weights.sum() / (weights * (windows / 2 + 1)).sum(), rel=1e-12)
    assert got.drop_probability == pytest.approx(p**retry_limit, rel=1e-12)


@pytest.mark.parametrize("countdown", COUNTDOWNS)
def test_a_generous_retry_limit_is_no_limit(countdown):
    limited, free = bianchi(31, 1023, 10, countdown, 60), bianchi(31, 1023, 10, countdown)
    # p^60 with p near 0.3 is 1e-31; the frozen iteration stops with stage masses at 1e-12 from their end
    assert limited.drop_probability < 1e-12
    for name in ("throughput_ratio", "collision_probability", "attempt_probability", "access_delay_slots"):
        # the frozen iteration stops at steps of 1e-12, i.e. about 1e-10 of tau from its end
        assert getattr(limited, name) == pytest.approx(getattr(free, name), rel=1e-9)


def chain_by_enumeration(cw_min, cw_max, n, retry_limit):
    """(S, p, tau) of the frozen fixed point with the number of others enumerated: binomials, matrix, 60 terms."""
    c = np.array([cw_min] + [min((cw_min + 1) * 2**k - 1, cw_max) for k in range(1, 12)], float)
    c = c[:retry_limit] if retry_limit else c[: int(np.argmax(c == cw_max)) + 1]
    z, last = 1 / (c + 1), len(c) - 1
    up = [min(s + 1, last) if not retry_limit else (s + 1) % len(c) for s in range(len(c))]
    binomial = np.array([[comb(j, k) for k in range(n)] for j in range(n)], float)
    k, left = np.arange(n), np.subtract.outer(np.arange(n), np.arange(n)).clip(0)
    tau, mu = 0.1, np.full(len(c), 1 / len(c))
    for _ in range(400):
        zeta = sum(mu[s] * z[up[s]] for s in range(len(c)))
        stay = binomial * zeta**k * (1 - zeta) ** left
        x = np.outer(mu, binomial[-1] * tau**k * (1 - tau) ** (n - 1 - k))
        visits = np.zeros_like(x)
        for _ in range(60):
            visits += x
            moved = np.zeros_like(x)
            moved[0, 0] = z[0] * x[:, 0].sum()
            for s in range(len(c)):
                moved[up[s]] += z[up[s]] * (x[s, 1:] @ stay[1:])
            x = moved
        ends = np.zeros(len(c))
        ends[0] = (1 - z[0]) * visits[:, 0].sum()
        for s in range(len(c)):
            ends[up[s]] += (1 - z[up[s]]) * visits[s, 1:].sum()
        mu = (mu + ends / ends.sum()) / 2
        tau = (tau + 1 / (ends / ends.sum() @ (c + 1) / 2)) / 2
    success = n * tau * visits[:, 0].sum()
    collision = n * tau * (visits[:, 1:] / (k[1:] + 1)).sum()
    p = visits[:, 1:].sum() / visits.sum()
    return 120 * success / (1 + (success + collision) * 124), p, tau


@pytest.mark.parametrize(
    "cw_min, cw_max, n, retry_limit",
    [(7, 15, 2, 0), (7, 15, 14, 0), (3, 63, 5, 0), (31, 1023, 8, 0), (7, 15, 5, 3), (3, 7, 4, 2)],
)
def test_thinned_chain_equals_enumerated_chain(cw_min, cw_max, n, retry_limit):
    s, p, tau = chain_by_enumeration(cw_min, cw_max, n, retry_limit)
    got = bianchi(cw_min, cw_max, n, retry_limit=retry_limit)
    # two damped iterations, each stopped with steps below 1e-12: allow a factor of 1000 for slow convergence
    assert got.throughput_ratio == pytest.approx(s, abs=1e-9)
    assert got.collision_probability == pytest.approx(p, abs=1e-9)
    assert got.attempt_probability == pytest.approx(tau, abs=1e-9)


@pytest.mark.parametrize("countdown, simulated", [("frozen", 0.3978), ("bianchi", 0.3431)])
def test_countdown_rule_outweighs_decoupling_for_fourteen_voice_stations(countdown, simulated):
    # simulated: 3e8 slots, sd about 2e-4. Decoupling: 0.2 % measured at this N, so 0.5 %; the rule: 14 %
    assert bianchi(7, 15, 14, countdown).throughput_ratio == pytest.approx(simulated, rel=0.005)


# --------------------------------------------------------------------------------- the exact joint chain


@pytest.mark.parametrize("countdown", COUNTDOWNS)
def test_joint_chain_of_one_station_waits_half_its_window(countdown):
    s, p = exact_joint_chain(7, 15, 1, countdown)
    assert s == pytest.approx(120 / (124 + 3.5), rel=1e-10)
    assert p == pytest.approx(0, abs=1e-12)


def test_joint_chain_of_two_stations_with_windows_of_one_by_hand():
    # CW 1-1, Bianchi's count-down: after an idle slot (1,1) both send; then each pair of draws has odds 1/4 and
    # the waiting station's 1 falls to 0, while the sender redraws. With a, b, c the shares of channel slots that
    # start at (0,0), (0,1) or (1,0), and (1,1): a = a/4 + b/2 + c, b = a/2 + b/2, c = a/4, so a : b : c = 4 : 4 : 1
    s, p = exact_joint_chain(1, 1, 2, "bianchi")
    assert s == pytest.approx(4 * 120 / (1 + 8 * 124), rel=1e-10)
    assert p == pytest.approx(8 / 12, rel=1e-10)


@pytest.mark.parametrize("countdown", COUNTDOWNS)
def test_joint_chain_without_a_limit_is_the_limit_of_many_attempts(countdown):
    # a packet collides 20 times with odds of about p^20 < 1e-5 (p = 0.44 frozen, 0.55 bianchi)
    assert exact_joint_chain(1, 3, 2, countdown) == pytest.approx(
        exact_joint_chain(1, 3, 2, countdown, retry_limit=20), abs=1e-5
    )


@pytest.mark.parametrize("countdown", COUNTDOWNS)
@pytest.mark.parametrize(
    "cw_min, cw_max, n, retry_limit",
    [(7, 15, 2, 0), (7, 15, 2, 2), (7, 15, 2, 4), (7, 15, 3, 0), (7, 15, 3, 2), (15, 31, 2, 0), (15, 31, 2, 4)],
)
def test_fixed_point_is_near_the_joint_chain(cw_min, cw_max, n, retry_limit, countdown):
    rel, p_abs = {7: (0.02, 0.02), 15: (0.005, 0.01)}[cw_min]  # decoupling, not noise; falls as windows grow
    exact = exact_metrics(cw_min, cw_max, n, countdown, retry_limit)
    got = bianchi(cw_min, cw_max, n, countdown, retry_limit)
    assert got.throughput_ratio == pytest.approx(exact["throughput_ratio"], rel=rel)
    for name in ("collision_probability", "collision_event_rate", "drop_probability"):
        assert getattr(got, name) == pytest.approx(exact[name], abs=p_abs)
    # the idle share is a small rest of time: it errs at most by what success and collision shares err by
    assert got.idle_fraction == pytest.approx(exact["idle_fraction"], abs=rel * exact["throughput_ratio"])
    # N E / leaving packets: throughput's error and that of the drops
    assert got.access_delay_slots == pytest.approx(exact["access_delay_slots"], rel=rel + p_abs)


@pytest.mark.parametrize("countdown", COUNTDOWNS)
@pytest.mark.parametrize(
    "cw_min, cw_max, n, retry_limit",
    [(7, 7, 2, 0), (7, 7, 3, 0), (3, 3, 4, 0), (1, 1, 3, 0), (2, 2, 2, 0), (7, 15, 2, 1), (7, 7, 2, 3)],
)
def test_a_single_window_leaves_nothing_to_decouple(cw_min, cw_max, n, retry_limit, countdown):
    # one window, no memory of collisions: the fixed point is the joint chain, to the power iteration's 1e-13
    # (1e-10 leaves room for slow mixing). It guards every term of the chain of busy periods.
    exact = exact_metrics(cw_min, cw_max, n, countdown, retry_limit)
    got = bianchi(cw_min, cw_max, n, countdown, retry_limit)
    for name in set(exact) - {"drop_probability", "access_delay_slots"}:
        assert getattr(got, name) == pytest.approx(exact[name], abs=1e-10), name
    if retry_limit < 2:  # which packet a collision belongs to does have memory
        assert got.drop_probability == pytest.approx(exact["drop_probability"], abs=1e-10)
        assert got.access_delay_slots == pytest.approx(exact["access_delay_slots"], rel=1e-10)


# ------------------------------------------------------------------------------------------------ edges


@pytest.mark.parametrize("countdown", COUNTDOWNS)
@pytest.mark.parametrize("n", [2, 14, 256])
def test_zero_windows_collide_for_ever(n, countdown):
    got = bianchi(0, 0, n, countdown)
    assert (got.throughput_ratio, got.collision_probability, got.attempt_probability) == (0, 1, 1)
    assert (got.collision_event_rate, got.idle_fraction, got.drop_probability) == (1, 0, 0)
    assert got.access_delay_slots == np.inf
    limited = bianchi(0, 0, n, countdown, 3)
    assert (limited.drop_probability, limited.access_delay_slots) == (1, 3 * 124)


@pytest.mark.parametrize("retry_limit", [0, 2])
def test_a_frozen_station_that_redraws_zero_holds_the_channel(retry_limit):
    got = bianchi(0, 3, 2, retry_limit=retry_limit)
    exact = exact_metrics(0, 3, 2, "frozen", retry_limit)  # absorbing: reached to the iteration's 1e-13
    for name in ("throughput_ratio", "collision_probability", "collision_event_rate", "idle_fraction"):
        assert getattr(got, name) == pytest.approx(exact[name], abs=1e-10), name
    assert got.throughput_ratio == 120 / 124
    assert bianchi(0, 3, 2, retry_limit=1).throughput_ratio == 0  # every drop goes back to the window 0..0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("retry_limit", [0, 4])
@pytest.mark.parametrize("countdown", COUNTDOWNS)
@pytest.mark.parametrize("cw_min, cw_max", [(1, 1), (7, 15), (31, 1023), (10, 1000)])
def test_more_stations_collide_more_up_to_256(cw_min, cw_max, countdown, retry_limit):
    found = [bianchi(cw_min, cw_max, n, countdown, retry_limit) for n in (1, 2, 5, 20, 64, 150, 256)]
    p = [f.collision_probability for f in found]
    delay = [f.access_delay_slots for f in found]
    assert p == sorted(p) and p[0] == pytest.approx(0, abs=1e-15) and p[-1] <= 1
    assert delay == sorted(delay)
    assert all(0 <= f.throughput_ratio <= 120 / 124 and 0 <= f.idle_fraction <= 1 for f in found)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: bianchi(7, 15, 0), r"^n_stations must be a whole number >= 1, got 0; pass"),
        (lambda: bianchi(7, 15, 2.0), r"^n_stations must be a whole number >= 1, got 2\.0; pass"),
        (lambda: bianchi(7, 15, True), r"^n_stations must be a whole number >= 1, got True; pass"),
        (lambda: bianchi(-1, 15, 2), r"^cw_min must be a whole number >= 0, got -1; a window"),
        (lambda: bianchi(15, 7, 2), r"^cw_max must be a whole number >= 15, got 7; .*cw_min \(15\)"),
        (lambda: bianchi(7, 15, 2, "freeze"), r"^countdown must be one of .*'frozen'.*, got 'freeze'; "),
        (lambda: bianchi(7, 15, 2, retry_limit=-1), r"^retry_limit must .* from 0 to 65535, got -1; pass 0"),
        (lambda: bianchi(7, 15, 2, retry_limit=65_536), r"^retry_limit must .*, got 65536; pass 0 for no limit"),
        (lambda: bianchi(7, 15, 2, tx_slots=0), r"^tx_slots must be a whole number >= 1, got 0; "),
        (lambda: bianchi(7, 15, 2, difs_slots=-1), r"^difs_slots must be a whole number >= 0, got -1; pass 0"),
        (lambda: bianchi(7, 15, 2, collision_slots=0), r"^collision_slots .* got 0; pass None for tx_slots"),
        (lambda: analytic.p_persistent_throughput(1.5, 2), r"^tau must be a probability from 0 to 1, got 1\.5"),
        (lambda: analytic.p_persistent_throughput(float("nan"), 2), r"^tau must be a probability .* got nan; "),
        (lambda: analytic.p_persistent_throughput(0.1, 0), r"^n_stations must .* got 0; "),
        (lambda: analytic.p_persistent_optimum(0), r"^n_stations must .* got 0; "),
        (lambda: analytic.tdma_access_delay_slots(0), r"^n_stations must .* got 0; "),
        (lambda: analytic.eca_throughput(2, 0), r"^backoff must be a whole number >= 1, got 0; "),
        (lambda: analytic.eca_throughput(2, countdown="x"), r"^countdown must be one of .* got 'x'; "),
        (lambda: analytic.access_delay_slots(0.0, 2), r"^throughput_ratio must be a number > 0 .* got 0\.0; "),
        (lambda: analytic.access_delay_slots(1.1, 2), r"^throughput_ratio must .* <= 1, got 1\.1; "),
        (lambda: analytic.little_delay_slots(-1.0, 1.0), r"^mean_queue_length must be .* >= 0, got -1\.0; pass"),
        (lambda: analytic.little_delay_slots(1.0, 0.0), r"^accepted_rate_per_slot must .* > 0, got 0\.0; "),
        (lambda: analytic.single_station_throughput(-1), r"^cw_min must .* got -1; "),
    ],
)
def test_bad_input_gets_one_clear_sentence(call, message):
    with pytest.raises(ValueError, match=message) as refusal:
        call()
    assert "\n" not in str(refusal.value)
