"""What theory says about the shared channel, to draw beside the simulator and to test it.

Letters: N stations, L = tx_slots, F = difs_slots, T_b = L + F (a successful busy period with its DIFS),
T_c = collision_slots + F, C_s the contention window (the largest draw) of back-off stage s, tau the attempt
probability, p the probability that an attempt collides. All times are in slots, all rates are per slot or
dimensionless. Everything here is saturated: each station always has a packet.

Sources: Bianchi (2000), IEEE JSAC 18(3); Foh & Tantra (2005), IEEE Communications Letters 9(2); Tinnirello,
Bianchi & Xiao (2010), IEEE Transactions on Vehicular Technology 59(3). What is ours says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np

COUNTDOWNS = ("frozen", "bianchi")
MAX_RETRY_LIMIT = 65_535  # ours: one stage per attempt is kept in memory; beyond it no limit is meant
MAX_ITERATIONS = 10_000


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A saturated channel in the long run, under the simulator's names where it has them.

    Attributes
    ----------
    throughput_ratio : float
        Share of time spent in successful transmissions, L n_s / E, 0..1.
    collision_probability : float
        p: collided attempts of all stations over all their attempts (the simulator's `collision_rate`).
    attempt_probability : float
        tau: of one station, per channel slot (an idle slot or a whole busy period) for `bianchi` and for
        p-persistent access; per *idle* slot, re-attempts without an idle slot not counted, for `frozen`.
    collision_event_rate : float
        Busy periods that are collisions over all busy periods.
    idle_fraction : float
        Share of time in idle contention slots (neither busy nor DIFS).
    access_delay_slots : float
        Mean time at the head of line per packet that leaves, delivered or dropped [slots]; infinite when
        none leaves. Without a retry limit it is N L / S.
    drop_probability : float
        Dropped packets over packets that leave; 0 without a retry limit.
    """

    throughput_ratio: float
    collision_probability: float
    attempt_probability: float
    collision_event_rate: float
    idle_fraction: float
    access_delay_slots: float
    drop_probability: float


# --------------------------------------------------------------------------------------- fixed points


def bianchi(
    cw_min: int,
    cw_max: int,
    n_stations: int,
    countdown: str = "frozen",
    retry_limit: int = 0,
    *,
    tx_slots: int = 120,
    difs_slots: int = 4,
    collision_slots: int | None = None,
) -> Prediction:
    """Mean-field prediction for N saturated stations with binary exponential back-off.

    Parameters
    ----------
    cw_min, cw_max : int
        802.11 CW values: a draw is uniform on the CW + 1 integers 0..CW. C_0 = cw_min,
        C_{s+1} = min(2 C_s + 1, cw_max).
    n_stations : int
        N >= 1.
    countdown : {"frozen", "bianchi"}
        "bianchi": a waiting station lowers its counter once per channel slot, idle or busy.
        "frozen": only in idle slots, as in 802.11.
    retry_limit : int
        R: the attempt on whose collision the packet is dropped; 0 for none.
    tx_slots, difs_slots, collision_slots : int
        Length of a transmission, of DIFS, and of a collision (None: as a transmission) [slots].

    Notes
    -----
    "bianchi" solves, with w_s the mean number of attempts a packet makes at stage s,

        tau = sum_s w_s / sum_s w_s (C_s / 2 + 1),    p = 1 - (1 - tau)^(N-1),

    w_s = p^s, where without a limit the last stage repeats, and with R attempts s = 0..R-1. Then
    n_s = N tau (1 - tau)^(N-1) and n_c = 1 - (1 - tau)^N - n_s successes and collisions per channel slot,
    E = (1 - tau)^N + n_s T_b + n_c T_c slots, drop probability p^R.

    "frozen" (ours, in the spirit of the two later papers) takes an idle slot and the chain of busy periods it
    sets off as one step: see `_chain`. E = 1 + n_s T_b + n_c T_c per step.

    Both take the stations as independent. For throughput and p that is exact with a single window (cw_min =
    cw_max, or retry_limit = 1); beside simulations of 2e8 slots with N = 2..30 throughput was otherwise
    within 1.6 % and p within 0.02 for cw_min = 7, within 0.5 % and 0.01 for CW 15-31 and 31-1023. Compare a
    prediction with a simulation of its own count-down only: the rule alone is worth 0.397 against 0.343 for
    CW 7-15 and N = 14. All stations are alike, with no AIFS differences, EIFS or frame errors.

    With cw_min = 0 a `frozen` chain may never end. The long run is then exact, not mean-field: for N >= 2
    either all collide for ever (cw_max = 0, or retry_limit = 1), or one station that succeeds redraws 0 and
    holds the channel for ever; attempt_probability is then the mean over stations, 1/N.

    Source: Bianchi (2000) for "bianchi" without a limit; the limit and "frozen" are ours.
    Departs from source: a window is 0..CW with every CW legal, not only W 2^s; times are whole slots.

    Examples
    --------
    >>> [round(bianchi(7, 15, 14, rule).throughput_ratio, 3) for rule in ("frozen", "bianchi")]
    [0.397, 0.343]
    """
    cw_min = _whole("cw_min", cw_min, 0, "a window is 0..CW")
    cw_max = _whole("cw_max", cw_max, cw_min, f"it may not lie below cw_min ({cw_min})")
    n_stations = _stations(n_stations)
    retry_limit = _whole("retry_limit", retry_limit, 0, "pass 0 for no limit", highest=MAX_RETRY_LIMIT)
    _check_countdown(countdown)
    airtime = _airtime(tx_slots, difs_slots, collision_slots)
    windows = _stage_windows(cw_min, cw_max, retry_limit)
    if countdown == "bianchi":
        return _bianchi_countdown(windows, n_stations, retry_limit, airtime)
    if cw_min == 0:
        return _endless_chain(n_stations, cw_max == 0 or retry_limit == 1, retry_limit, airtime)
    return _frozen_countdown(windows, n_stations, retry_limit, airtime)


def _bianchi_countdown(windows: np.ndarray, n: int, retry_limit: int, airtime: _Airtime) -> Prediction:
    def excess(p: float) -> float:
        return 1 - (1 - _attempts_per_channel_slot(p, windows, retry_limit)) ** (n - 1) - p

    p = _bisect(excess, 0.0, 1.0)
    tau = _attempts_per_channel_slot(p, windows, retry_limit)
    return _independent_attempts(tau, n, airtime, retry_limit)


def _attempts_per_channel_slot(p: float, windows: np.ndarray, retry_limit: int) -> float:
    """tau(p), scaled by 1 - p where the last stage repeats: finite at p = 1, and falling in p."""
    weight = p ** np.arange(windows.size)  # (S,), 0.0**0 is 1
    if not retry_limit:
        weight[:-1] *= 1 - p
    return float(weight.sum() / (weight * (windows / 2 + 1)).sum())


def _independent_attempts(tau: float, n: int, airtime: _Airtime, retry_limit: int = 0) -> Prediction:
    """N stations that attempt independently with probability tau in each channel slot."""
    idle = (1 - tau) ** n
    alone = (1 - tau) ** (n - 1)
    success = n * tau * alone
    collision = max(0.0, 1 - idle - success)  # rounding alone can make it negative, when N = 1
    p = 1 - alone
    without_limit = 1 / alone if alone else math.inf
    attempts_per_packet = (p ** np.arange(retry_limit)).sum() if retry_limit else without_limit
    wait = attempts_per_packet / tau if tau else math.inf
    return airtime.predict(tau, p, idle, success, collision, wait, p**retry_limit if retry_limit else 0.0)


def _frozen_countdown(windows: np.ndarray, n: int, retry_limit: int, airtime: _Airtime) -> Prediction:
    """Fixed point of tau and of mu (S,), the stage of an attempting station; damped by one half."""
    zero = 1 / (windows + 1)  # (S,) chance of drawing 0
    after = np.arange(1, windows.size + 1)  # (S,) stage after a collision
    after[-1] = 0 if retry_limit else windows.size - 1
    tau, mu = 2 / (windows[0] + 2), np.full(windows.size, 1 / windows.size)
    for _ in range(MAX_ITERATIONS):
        collided, succeeded, collisions = _chain(tau, mu, zero, after, n)
        # a chain ends with a positive draw, uniform on 1..C_s, which is reached exactly that many steps later
        resting = np.bincount(after, (1 - zero[after]) * collided, windows.size)
        resting[0] += (1 - zero[0]) * succeeded
        resting = resting / resting.sum()
        tau_step = 1 / (resting @ (windows + 1) / 2) - tau
        mu_step = resting - mu
        if abs(tau_step) < 1e-13 and np.abs(mu_step).max() < 1e-12:
            break
        tau, mu = tau + tau_step / 2, mu + mu_step / 2
    else:
        raise ArithmeticError(f"no frozen fixed point in {MAX_ITERATIONS} rounds; N = {n}, windows {windows}")
    dropped = collided[-1] if retry_limit else 0.0
    leaving = succeeded + dropped
    p = collided.sum() / (collided.sum() + succeeded)
    wait = 1 / (tau * leaving)
    return airtime.predict(tau, p, 1.0, n * tau * succeeded, n * tau * collisions, wait, dropped / leaving)


def _chain(tau: float, mu: np.ndarray, zero: np.ndarray, after: np.ndarray, n: int) -> tuple[np.ndarray, float, float]:
    """The chain of busy periods after an idle slot, for a station that attempts in its first one.

    While it collides, a station stays in the chain by redrawing 0, and so does each of its colliders: with
    zeta = sum_s mu_s z_{after(s)}, z_s = 1 / (C_s + 1), the number J_d of others in busy period d is binomial
    with N - 1 trials of probability tau zeta^d (a thinned binomial is binomial), whatever the station drew.
    After a success it redraws 0 with probability z_0, and is alone for the rest of the chain.

    Returns
    -------
    collided : ndarray, shape (S,)
        Its mean number of collided attempts at each stage.
    succeeded : float
        Its mean number of successes.
    collisions : float
        Its share of the chain's collisions, one over the number of colliders each.
    """
    n_rounds = 1 + math.ceil(math.log(1e-15) / math.log(zero[after].max()))  # mass left < 1e-15; z <= 1/2
    reach = np.empty((n_rounds, mu.size))  # chance of d redraws of 0, and of stage s then
    reach[0] = mu
    for d in range(1, n_rounds):
        reach[d] = np.bincount(after, reach[d - 1], mu.size) * zero
    absent = 1 - tau * (mu @ zero[after]) ** np.arange(n_rounds)  # (D,) of one other station
    alone = absent ** (n - 1)  # (D,) never falls with d
    first_success = np.diff(alone, prepend=0.0) @ reach.sum(axis=1)
    shared = np.mean(absent[:, None] ** np.arange(n), axis=1) - alone  # (D,) E[1 / (J_d + 1); J_d >= 1]
    return (1 - alone) @ reach, float(first_success / (1 - zero[0])), float(shared @ reach.sum(axis=1))


def _endless_chain(n: int, all_collide: bool, retry_limit: int, airtime: _Airtime) -> Prediction:
    """The frozen count-down with C_0 = 0: in the end busy periods follow each other with no idle slot."""
    if n == 1 or not all_collide:
        return airtime.predict(1 / n, 0.0, 0.0, 1.0, 0.0, n, 0.0)
    wait = retry_limit or math.inf  # collisions until a packet is dropped
    return airtime.predict(1.0, 1.0, 0.0, 0.0, 1.0, wait, float(retry_limit > 0))


# ------------------------------------------------------------------------- memoryless and scheduled access


def p_persistent_throughput(
    tau: float, n_stations: int, *, tx_slots: int = 120, difs_slots: int = 4, collision_slots: int | None = None
) -> float:
    """Throughput ratio of N stations that attempt in each channel slot with probability tau, independently.

    S(tau) = L N tau (1 - tau)^(N-1) / [P_i + P_s T_b + (1 - P_i - P_s) T_c], with P_i = (1 - tau)^N and
    P_s = N tau (1 - tau)^(N-1). Exact, no mean-field assumption.

    Source: Bianchi (2000), the throughput of independent attempts.

    Examples
    --------
    >>> round(p_persistent_throughput(0.05, 2), 4)
    0.8774
    """
    if isinstance(tau, bool) or not isinstance(tau, Real) or not 0 <= tau <= 1:
        raise ValueError(f"tau must be a probability from 0 to 1, got {tau!r}; pass one station's attempt probability")
    airtime = _airtime(tx_slots, difs_slots, collision_slots)
    return _independent_attempts(float(tau), _stations(n_stations), airtime).throughput_ratio


def p_persistent_optimum(
    n_stations: int, *, tx_slots: int = 120, difs_slots: int = 4, collision_slots: int | None = None
) -> Prediction:
    """The best that N memoryless stations with one common attempt probability can do.

    dS/dtau = 0 where 1 - N tau = (T_c - 1) / T_c (1 - tau)^N, roughly tau = sqrt(2 / T_c) / N; the left side
    minus the right falls in tau and changes sign on [0, 1/N], so bisection finds the one root. It depends on
    the cost of a collision only, not on that of a success. A policy that sees more (D2LT, say) may do better.

    Source: Bianchi (2000), the maximum of the saturation throughput; written here in whole slots.

    Examples
    --------
    >>> best = p_persistent_optimum(10)
    >>> round(best.attempt_probability, 4), round(best.throughput_ratio, 4)
    (0.0128, 0.862)
    """
    n = _stations(n_stations)
    airtime = _airtime(tx_slots, difs_slots, collision_slots)
    waste = 1 - 1 / airtime.collision_busy
    tau = _bisect(lambda tau: 1 - n * tau - waste * (1 - tau) ** n, 0.0, 1 / n)
    return _independent_attempts(tau, n, airtime)


def tdma_throughput(*, tx_slots: int = 120, difs_slots: int = 4) -> float:
    """Ceiling of the throughput ratio if every transmission pays its DIFS: L / (L + F), 120/124 = 0.9677."""
    airtime = _airtime(tx_slots, difs_slots)
    return airtime.tx / airtime.success_busy


def tdma_access_delay_slots(n_stations: int, *, tx_slots: int = 120, difs_slots: int = 4) -> int:
    """Access delay of a saturated round robin: one turn of each of the N stations, N (L + F) slots."""
    return _stations(n_stations) * _airtime(tx_slots, difs_slots).success_busy


def eca_throughput(
    n_stations: int, backoff: int = 16, countdown: str = "frozen", *, tx_slots: int = 120, difs_slots: int = 4
) -> float:
    """Throughput ratio of saturated CSMA/ECA once it is free of collisions: N L / cycle.

    The cycle is `eca_access_delay_slots`. No formula holds above the capacity, N > backoff (`frozen`) or
    N > backoff + 1 (`bianchi`): some stations then keep colliding. How long the lock takes is not told here;
    near capacity it is slow.

    Source: counting, ours. The protocol: Barcelo et al. (2008), Learning-BEB.

    Examples
    --------
    >>> round(eca_throughput(14), 4)
    0.9589
    """
    cycle = eca_access_delay_slots(n_stations, backoff, countdown, tx_slots=tx_slots, difs_slots=difs_slots)
    return n_stations * tx_slots / cycle


def eca_access_delay_slots(
    n_stations: int, backoff: int = 16, countdown: str = "frozen", *, tx_slots: int = 120, difs_slots: int = 4
) -> int:
    """Cycle of collision-free CSMA/ECA, which is every station's access delay [slots].

    Each of N stations transmits once a cycle and waits `backoff` = V counts after it. `frozen`: V idle slots
    and N busy periods, N T_b + V. `bianchi`: V + 1 channel slots of which N are busy, N T_b + V + 1 - N.

    Raises
    ------
    ValueError
        If N is above the capacity, V (`frozen`) or V + 1 (`bianchi`).
    """
    n, v = _stations(n_stations), _whole("backoff", backoff, 1, "it is the fixed back-off V after a success")
    _check_countdown(countdown)
    capacity = v if countdown == "frozen" else v + 1
    if n > capacity:
        raise ValueError(
            f"n_stations must be <= {capacity} for backoff = {v} under the {countdown} count-down, got {n}; "
            f"CSMA/ECA is not free of collisions above that, so raise backoff or simulate"
        )
    busy = n * _airtime(tx_slots, difs_slots).success_busy
    return busy + (v if countdown == "frozen" else v + 1 - n)


# ------------------------------------------------------------------------------------------- identities


def access_delay_slots(throughput_ratio: float, n_stations: int, *, tx_slots: int = 120) -> float:
    """Mean access delay of N saturated stations that drop nothing: N L / S [slots].

    The access delays of one station add up to the elapsed time, so this is exact in the long run for any
    access scheme. `throughput_ratio` is S, all stations together.
    """
    s = _positive("throughput_ratio", throughput_ratio, "N L / S is infinite at 0", highest=1.0)
    return _stations(n_stations) * _whole("tx_slots", tx_slots, 1, _TX_HINT) / s


def little_delay_slots(mean_queue_length: float, accepted_rate_per_slot: float) -> float:
    """Little's law: mean delay = mean number of packets held / rate of accepted packets [slots].

    Both pooled or both of one station; the packet being sent is held, a blocked arrival is not accepted.
    """
    if isinstance(mean_queue_length, bool) or not isinstance(mean_queue_length, Real) or not mean_queue_length >= 0:
        raise ValueError(f"mean_queue_length must be a number >= 0, got {mean_queue_length!r}; pass packets held")
    return mean_queue_length / _positive("accepted_rate_per_slot", accepted_rate_per_slot, "no packet, no delay")


def single_station_throughput(cw_min: int, *, tx_slots: int = 120, difs_slots: int = 4) -> float:
    """Throughput ratio of a saturated station alone, L / (L + F + cw_min / 2), under either count-down."""
    cw_min = _whole("cw_min", cw_min, 0, "a window is 0..CW")
    airtime = _airtime(tx_slots, difs_slots)
    return airtime.tx / (airtime.success_busy + cw_min / 2)


# ------------------------------------------------------------------------------------------- small parts


@dataclass(frozen=True, kw_only=True)
class _Airtime:
    """L, T_b and T_c in whole slots."""

    tx: int
    success_busy: int
    collision_busy: int

    def predict(
        self, tau: float, p: float, idle: float, success: float, collision: float, wait: float, dropped: float
    ) -> Prediction:
        """Turn idle slots, successes and collisions per step into shares of time; `wait` is in steps."""
        step_slots = idle + success * self.success_busy + collision * self.collision_busy
        return Prediction(
            throughput_ratio=float(self.tx * success / step_slots),
            collision_probability=float(p),
            attempt_probability=float(tau),
            collision_event_rate=float(collision / (success + collision)) if success + collision else 0.0,
            idle_fraction=float(idle / step_slots),
            access_delay_slots=float(wait * step_slots),
            drop_probability=float(dropped),
        )


_TX_HINT = "a transmission lasts at least one slot"


def _airtime(tx_slots: int, difs_slots: int, collision_slots: int | None = None) -> _Airtime:
    tx = _whole("tx_slots", tx_slots, 1, _TX_HINT)
    difs = _whole("difs_slots", difs_slots, 0, "pass 0 for none")
    busy = tx if collision_slots is None else _whole("collision_slots", collision_slots, 1, "pass None for tx_slots")
    return _Airtime(tx=tx, success_busy=tx + difs, collision_busy=busy + difs)


def _stage_windows(cw_min: int, cw_max: int, retry_limit: int) -> np.ndarray:
    """C_s, shape (S,): one stage per window, or one per attempt if attempts are limited."""
    windows = [cw_min]
    while windows[-1] < cw_max:
        windows.append(min(2 * windows[-1] + 1, cw_max))
    if retry_limit:
        windows = (windows + [cw_max] * retry_limit)[:retry_limit]
    return np.array(windows, dtype=float)


def _bisect(falling: Callable[[float], float], low: float, high: float) -> float:
    """Root of a falling function on [low, high], or the end that lies nearest to it, to the last bit."""
    if falling(low) <= 0:
        return low
    if falling(high) >= 0:
        return high
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if falling(middle) > 0 else (low, middle)
    return low


def _whole(name: str, value: int, lowest: int, hint: str, highest: float = math.inf) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or not lowest <= value <= highest:
        limits = f">= {lowest}" if highest == math.inf else f"from {lowest} to {highest}"
        raise ValueError(f"{name} must be a whole number {limits}, got {value!r}; {hint}")
    return int(value)


def _positive(name: str, value: float, hint: str, highest: float = math.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < value <= highest:
        limit = "" if highest == math.inf else f" and <= {highest:g}"
        raise ValueError(f"{name} must be a number > 0{limit}, got {value!r}; {hint}")
    return float(value)


def _stations(n_stations: int) -> int:
    return _whole("n_stations", n_stations, 1, "pass how many stations share the channel")


def _check_countdown(countdown: str) -> None:
    if countdown not in COUNTDOWNS:
        raise ValueError(f"countdown must be one of {COUNTDOWNS}, got {countdown!r}; 'frozen' is what 802.11 does")
