"""Exact long-run behaviour of a few saturated stations: the joint Markov chain, with no independence assumed.

The state is (stage, counter) of every station, seen at channel slots (an idle slot or a whole busy period).
It serves as oracle for the fixed points and for the simulator. Cost grows as (states of one station)^n: two
stations with CW 15-31, or three with 7-15, take under a second.
"""

from functools import cache
from itertools import product
from types import MappingProxyType

import numpy as np

TX_SLOTS, DIFS_SLOTS = 120, 4


def exact_joint_chain(cw_min, cw_max, n, countdown, retry_limit=0):
    """(throughput ratio S, collision probability p) of n saturated stations, exact to about 1e-10.

    `countdown` is "frozen" or "bianchi"; `retry_limit` is the attempt that drops a packet, 0 for none.
    """
    metrics = exact_metrics(cw_min, cw_max, n, countdown, retry_limit)
    return metrics["throughput_ratio"], metrics["collision_probability"]


@cache
def exact_metrics(cw_min, cw_max, n, countdown, retry_limit=0):
    """The same chain in full, under the names of `fedmorl.dca.analytic.Prediction`; a read-only mapping."""
    windows = stage_windows(cw_min, cw_max, retry_limit)
    joint = stationary_distribution(windows, n, countdown, restarts=bool(retry_limit))
    at_zero, last = counter_is_zero(windows), stage_of_state(windows) == len(windows) - 1
    idle = success = collision = attempts = drops = 0.0
    for members in product([False, True], repeat=n):
        here = joint
        for station, sends in enumerate(members):
            here = scale(here, station, at_zero if sends else ~at_zero)
        mass, k = here.sum(), sum(members)
        idle, success, collision = idle + mass * (k == 0), success + mass * (k == 1), collision + mass * (k > 1)
        attempts += mass * k
        if k > 1 and retry_limit:
            drops += sum(scale(here, station, last).sum() for station in range(n) if members[station])
    busy = TX_SLOTS + DIFS_SLOTS
    slots = idle + (success + collision) * busy  # per channel slot
    metrics = {
        "throughput_ratio": TX_SLOTS * success / slots,
        "collision_probability": 1 - success / attempts,
        "collision_event_rate": collision / (success + collision),
        "idle_fraction": idle / slots,
        "access_delay_slots": n * slots / (drops + success),  # head-of-line time per packet that leaves
        "drop_probability": drops / (drops + success),
    }
    return MappingProxyType({name: float(value) for name, value in metrics.items()})


def stage_windows(cw_min, cw_max, retry_limit):
    """Largest draw of each stage; with a retry limit there is one stage per attempt."""
    windows = [cw_min]
    while windows[-1] < cw_max:
        windows.append(min(2 * windows[-1] + 1, cw_max))
    return [windows[min(s, len(windows) - 1)] for s in range(retry_limit)] if retry_limit else windows


def stationary_distribution(windows, n, countdown, restarts, tolerance=1e-13, max_rounds=200_000):
    """Power iteration of the (states,) * n tensor, until a round moves less than `tolerance` of its mass."""
    wait, tick, succeed, collide = transition_matrices(windows, restarts)
    keep = wait if countdown == "frozen" else tick
    joint = np.zeros((len(wait),) * n)
    joint[np.ix_(*[np.arange(windows[0] + 1)] * n)] = 1 / (windows[0] + 1) ** n
    for _ in range(max_rounds):
        moved = np.zeros_like(joint)
        for members in product([False, True], repeat=n):
            sends = succeed if sum(members) == 1 else collide
            others = keep if any(members) else tick
            part = joint
            for station, member in enumerate(members):
                part = apply(part, station, sends if member else others)
            moved += part
        change = np.abs(moved - joint).sum()
        joint = moved / moved.sum()
        if change < tolerance:
            return joint
    raise ArithmeticError(f"the joint chain still moved {change:g} after {max_rounds} rounds")


def transition_matrices(windows, restarts):
    """Rows from, columns to, over one station's states: keep a positive counter, lower it, redraw after a
    success, redraw after a collision. The first two are 0 on counter 0, the others 0 on positive counters."""
    first = np.concatenate([[0], np.cumsum(np.array(windows) + 1)])  # index of (stage, counter 0)
    zero = counter_is_zero(windows)
    wait, tick = np.diag(~zero).astype(float), np.eye(first[-1], k=-1) * ~zero[:, None]
    succeed, collide = np.zeros_like(wait), np.zeros_like(wait)
    for stage in range(len(windows)):
        is_last = stage == len(windows) - 1
        after = (0 if restarts else stage) if is_last else stage + 1
        succeed[first[stage], first[0] : first[1]] = 1 / (windows[0] + 1)
        collide[first[stage], first[after] : first[after + 1]] = 1 / (windows[after] + 1)
    return wait, tick, succeed, collide


def stage_of_state(windows):
    return np.repeat(np.arange(len(windows)), np.array(windows) + 1)


def counter_is_zero(windows):
    return np.concatenate([np.arange(c + 1) for c in windows]) == 0


def apply(joint, station, matrix):
    """Move one station: contract its axis with a (from, to) matrix."""
    return np.moveaxis(np.tensordot(joint, matrix, axes=(station, 0)), -1, station)


def scale(joint, station, weight):
    return np.moveaxis(np.moveaxis(joint, station, -1) * weight, -1, station)
