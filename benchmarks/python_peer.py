"""Saturated DCF and CSMA/ECA in pure Python: the event loop a careful user would write without a compiler.

Same rules and same outputs as `dcf.c`, no NumPy. Stations sit in a heap by the idle-clock instant at which their
back-off expires, so one event costs a few calls into C. An instant and a station share one integer,
`instant << 8 | station`: heap entries, and the log of successes, need no tuples.

    python benchmarks/python_peer.py --n-stations 14 --n-slots 10000000
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush, heapreplace
from itertools import accumulate, chain, pairwise
from operator import eq

TX_SLOTS, DIFS_SLOTS = 120, 4
BUSY_SLOTS = TX_SLOTS + DIFS_SLOTS  # from the start of a busy period to the next contention slot
JAIN_WINDOW_SLOTS = 100_000
STATION = 255  # the station's bits in `instant << 8 | station`
NEVER = 1 << 80  # larger than any instant


@dataclass
class Channel:
    """Contention starts, or goes on, at real time `clock + lag`; `clock` counts idle slots (bianchi: events too)."""

    cw_min: int
    cw_max: int
    tick: int  # by how much a busy period lowers waiting counters: 0 frozen, 1 bianchi
    eca: int | None
    heap: list[int]
    span: list[int]  # CW + 1 of each station
    rng: random.Random
    clock: int = 0
    lag: int = 0
    n_success: int = 0
    n_collision: int = 0
    log: list[int] = field(default_factory=list)  # end << 8 | station of each success
    collided: list[int] = field(default_factory=list)  # the stations of each collision, one after the other


def run(
    n_stations: int,
    cw_min: int,
    cw_max: int,
    n_slots: int,
    seed: int,
    warmup_slots: int = 0,
    countdown: str = "frozen",
    eca: int | None = None,
) -> dict:
    """Simulate slots [0, n_slots) and return what happened in [warmup_slots, n_slots), under `dcf.c`'s names.

    `cw_min` and `cw_max` are the largest draws; `eca` is the back-off after a success (None: DCF). Percentiles
    are exact, where `dcf.c` has bins of 0.8 %.
    """
    _check(n_stations, cw_min, cw_max, n_slots, warmup_slots, countdown, eca)
    rng = random.Random(seed)
    heap = [rng.randint(0, cw_min) << 8 | i for i in range(n_stations)]
    heap += [NEVER] * 2  # so that the root always has two children
    heapify(heap)
    channel = Channel(cw_min, cw_max, int(countdown == "bianchi"), eca, heap, [cw_min + 1] * n_stations, rng)
    _play(channel, warmup_slots)
    before, warm_log = _totals(channel, warmup_slots), channel.log
    channel.log, channel.collided = [], []
    _play(channel, n_slots)
    window = {kind: total - before[kind] for kind, total in _totals(channel, n_slots).items()}
    head = [0] * n_stations
    for entry in warm_log:
        head[entry & STATION] = entry >> 8
    return _outputs(channel, window, head, n_stations, n_slots, warmup_slots)


def _check(n_stations, cw_min, cw_max, n_slots, warmup_slots, countdown, eca) -> None:
    if not 1 <= n_stations <= 256:
        raise ValueError(f"n_stations must be from 1 to 256, got {n_stations}")
    if not 0 <= cw_min <= cw_max:
        raise ValueError(f"cw_min and cw_max must satisfy 0 <= cw_min <= cw_max, got {cw_min} and {cw_max}")
    if not 0 <= warmup_slots < n_slots:
        raise ValueError(f"warmup_slots must be >= 0 and below n_slots = {n_slots}, got {warmup_slots}")
    if countdown not in ("frozen", "bianchi"):
        raise ValueError(f"countdown must be 'frozen' or 'bianchi', got {countdown!r}")
    if eca is not None and eca < 0:
        raise ValueError(f"eca must be None or >= 0, got {eca}")


def _play(channel: Channel, limit: int) -> None:
    """Play every busy period that ends at or before `limit`."""
    heap, span, eca, log, collided = channel.heap, channel.span, channel.eca, channel.log, channel.collided
    random_bits, add = channel.rng.getrandbits, log.append
    span_min, span_max, bits = channel.cw_min + 1, channel.cw_max + 1, channel.cw_min.bit_length()
    tick, busy, stop = channel.tick << 8, (BUSY_SLOTS - channel.tick) << 8, (limit + 1) << 8
    to_end = (channel.lag + TX_SLOTS) << 8
    n_collision, n_logged = 0, len(log)
    code = None
    while (entry := heap[0] + to_end) < stop:
        code = heap[0]
        to_end += busy
        same_instant = code | STATION
        if heap[1] > same_instant < heap[2]:
            add(entry)
            span[code & STATION] = span_min
            if eca is None:
                backoff = random_bits(bits)
                while backoff >= span_min:  # never, when CW + 1 is a power of two
                    backoff = random_bits(bits)
            else:
                backoff = eca
            heapreplace(heap, code + tick + (backoff << 8))
        else:
            n_collision += 1
            redrawn = []
            while heap[0] <= same_instant:
                code = heappop(heap)
                station = code & STATION
                width = 2 * span[station]
                if width > span_max:
                    width = span_max
                span[station] = width
                redrawn.append(code + tick + (int(channel.rng.random() * width) << 8))
                collided.append(station)
            for new in redrawn:
                heappush(heap, new)
    if code is not None:
        channel.clock = (code + tick) >> 8
    channel.lag = (to_end >> 8) - TX_SLOTS
    channel.n_success += len(log) - n_logged
    channel.n_collision += n_collision


def _totals(channel: Channel, limit: int) -> dict[str, int]:
    """Slots by kind before `limit`; the loop has stopped there, so the next busy period ends after it."""
    resume, begin = channel.clock + channel.lag, (channel.heap[0] >> 8) + channel.lag
    lone = channel.heap[1] > (channel.heap[0] | STATION) < channel.heap[2]
    n_busy, cut = channel.n_success + channel.n_collision, max(0, limit - begin)
    return {
        "idle_slots": channel.clock - channel.tick * n_busy + min(max(0, limit - resume), begin - resume),
        "success_slots": TX_SLOTS * channel.n_success + cut * lone,
        "collision_slots": TX_SLOTS * channel.n_collision + cut * (not lone),
        "difs_slots": DIFS_SLOTS * n_busy - max(0, resume - limit),
        "delivered": channel.n_success,
        "collision_events": channel.n_collision,
    }


def _outputs(channel, window, head, n_stations, n_slots, warmup_slots) -> dict:
    who = bytes([entry & STATION for entry in channel.log])
    ends = [entry >> 8 for entry in channel.log]
    delays = [[] for _ in range(n_stations)]
    for end, station in zip(ends, who, strict=True):
        delays[station].append(end - head[station])
        head[station] = end
    delay_sums = [sum(of_station) for of_station in delays]
    collisions_of = Counter(channel.collided)
    collided = [collisions_of[station] for station in range(n_stations)]
    successes, collisions = window["delivered"], window["collision_events"]
    return window | {
        "n_stations": n_stations,
        "n_slots": n_slots,
        "warmup_slots": warmup_slots,
        "throughput_ratio": TX_SLOTS * successes / (n_slots - warmup_slots),
        "collision_rate": _ratio(sum(collided), successes + sum(collided)),
        "collision_event_rate": _ratio(collisions, successes + collisions),
        "mean_access_delay_slots": _ratio(sum(delay_sums), successes),
        **_percentiles(Counter(chain.from_iterable(delays))),
        **_fairness(who, ends, n_stations, n_slots, warmup_slots),
        "station_delivered": [len(of_station) for of_station in delays],
        "station_collided": collided,
        "station_access_delay_sum_slots": delay_sums,
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _percentiles(counts: Counter) -> dict[str, float]:
    values = sorted(counts)
    below = list(accumulate(counts[value] for value in values))
    return {
        f"access_delay_p{q}_slots": values[bisect_right(below, math.ceil(q * below[-1] / 100) - 1)]
        if below
        else math.nan
        for q in (50, 95, 99)
    }


def _jain(successes: bytes, n_stations: int) -> float:
    shares = [successes.count(station) for station in range(n_stations)]
    return _ratio(len(successes) ** 2, n_stations * sum(x * x for x in shares))


def _fairness(who: bytes, ends: list[int], n_stations: int, n_slots: int, warmup_slots: int) -> dict[str, float]:
    size = 10 * n_stations
    blocks = [_jain(who[k : k + size], n_stations) for k in range(0, len(who) - size + 1, size)]
    edges = range(warmup_slots, n_slots + 1, JAIN_WINDOW_SLOTS)
    cuts = [bisect_right(ends, edge) for edge in edges]
    windows = [_jain(who[a:b], n_stations) for a, b in pairwise(cuts) if b > a]
    return {
        "jain_index": _jain(who, n_stations),
        "jain_short": _ratio(sum(blocks), len(blocks)),
        "jain_window_100000": _ratio(sum(windows), len(windows)),
        "capture_index": _ratio(sum(map(eq, who, who[1:])), max(0, len(who) - 1)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Saturated DCF and CSMA/ECA in pure Python, one JSON line.")
    for name, default in (("n-stations", 2), ("cw-min", 31), ("cw-max", 1023), ("n-slots", 10**7), ("seed", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--warmup-slots", type=int, default=0)
    parser.add_argument("--countdown", choices=("frozen", "bianchi"), default="frozen")
    parser.add_argument("--eca", type=int, help="back-off slots after a success (default: DCF)")
    options = vars(parser.parse_args())
    begin = time.process_time()
    try:
        result = run(**options)
    except ValueError as error:
        parser.error(str(error))
    result["cpu_seconds"] = time.process_time() - begin
    for name, value in result.items():
        if isinstance(value, float) and math.isnan(value):
            result[name] = None
    print(json.dumps(result))


if __name__ == "__main__":
    main()
