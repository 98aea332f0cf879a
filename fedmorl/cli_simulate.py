"""The `fedmorl simulate` command: options in, the simulator's metrics out, as a table or as JSON."""

import argparse
import json
import math
import re
from typing import Any

from fedmorl import __version__

SUMMARY = "simulate stations that share one channel"
EXAMPLES = """\
Time is in slots of 9 µs; one packet holds the channel for 120 of them. Rates are packets a slot and
station: 0.018 is 2000 packets/s.

  fedmorl simulate --access ac_be --stations 10
  fedmorl simulate --access ac_vo --stations 4 --slots 1e8 --replications 10
  fedmorl simulate --access csma_ca --stations 6 --traffic poisson --rate 0.001 --json
  fedmorl simulate --access csma_eca --stations 12 --slots 2e7 --warmup 1e7
"""
ACCESS = ("ac_be", "ac_vi", "ac_vo", "csma_ca", "csma_eca")

# metric -> (label, unit)
METRICS = {
    "throughput_ratio": ("throughput ratio", "of time"),
    "collision_rate": ("collision rate", "of transmissions"),
    "collision_event_rate": ("collided busy periods", "of busy periods"),
    "idle_fraction": ("idle", "of time"),
    "error_rate": ("frame errors", "of transmissions"),
    "mean_delay_slots": ("mean delay", "slots"),
    "mean_access_delay_slots": ("mean access delay", "slots"),
    "access_delay_p50_slots": ("access delay, median", "slots"),
    "access_delay_p95_slots": ("access delay, 95th percentile", "slots"),
    "access_delay_p99_slots": ("access delay, 99th percentile", "slots"),
    "mean_queue_length": ("mean queue length", "packets"),
    "jain_index": ("Jain index, whole run", ""),
    "jain_short": ("Jain index, short windows", ""),
    "capture_index": ("capture index", "of successes"),
    "delivered": ("delivered", "packets"),
    "blocked": ("blocked, queue full", "packets"),
    "dropped": ("dropped, retry limit", "packets"),
}
MIN_INTERVAL_REPLICATIONS = 5  # below, a t interval of so few values says little


class Refused(ValueError):
    """An option that the simulator refuses, in the simulator's words."""


def _whole(text: str) -> int:
    """An integer, also as 1e7 or 10_000_000."""
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if not math.isfinite(number) or not number.is_integer():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text) if re.fullmatch(r"[-+]?[0-9_]+", text) else int(number)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `fedmorl simulate`."""
    parser.add_argument(
        "--access", type=str.lower, choices=ACCESS, default="ac_be", help="access rule of all stations (default: ac_be)"
    )
    parser.add_argument("--stations", type=_whole, default=10, metavar="N", help="stations, 1 to 256 (default: 10)")
    parser.add_argument(
        "--slots", type=_whole, default=10_000_000, metavar="T", help="slots, warm-up included (default: 1e7)"
    )
    parser.add_argument(
        "--warmup",
        type=_whole,
        metavar="W",
        help="first slots that are not measured (default: 1e5, or a tenth of a short run)",
    )
    parser.add_argument("--seed", type=_whole, metavar="S", default=0, help="same seed, same numbers (default: 0)")
    parser.add_argument("--replications", type=_whole, default=1, metavar="R", help="independent runs (default: 1)")
    parser.add_argument(
        "--countdown",
        choices=("frozen", "bianchi"),
        default="frozen",
        help="back-off while the channel is busy (default: frozen)",
    )
    parser.add_argument(
        "--traffic",
        choices=("saturated", "poisson", "constant"),
        default="saturated",
        help="when packets come (default: saturated, one always waits)",
    )
    parser.add_argument("--rate", type=float, help="packets a slot and station, for poisson and constant traffic")
    parser.add_argument(
        "--mode",
        choices=("event", "slot"),
        default="event",
        help="two kernels, one answer; slot is the slow reference",
    )
    parser.add_argument("--json", action="store_true", help="strict JSON, with the scenario, on stdout")


def command(options: argparse.Namespace) -> int:
    """Run the simulator and print what it measured."""
    if options.warmup is None:
        options.warmup = min(100_000, options.slots // 10)
    try:
        scenario = _scenario(options)
        values, intervals = _measure(scenario, options)
    except ValueError as error:
        raise Refused(str(error)) from None
    if options.json:
        report = {
            **values,
            "intervals_95": intervals,
            "scenario": scenario.to_dict(),
            "run": _run_options(options),
        }
        print(json.dumps(_strict(report), allow_nan=False, indent=1))
    else:
        print(_table(values, intervals, options))
    return 0


def _scenario(options: argparse.Namespace) -> Any:
    from fedmorl import dca

    if options.traffic == "saturated" and options.rate is not None:
        raise Refused("--rate is for --traffic poisson or constant; saturated stations always have a packet")
    if options.replications < 1:
        raise Refused(f"--replications must be at least 1, got {options.replications}")
    kind = {"saturated": dca.Saturated, "poisson": dca.Poisson, "constant": dca.ConstantRate}[options.traffic]
    traffic = kind() if options.rate is None else kind(rate_per_slot=options.rate)
    station = getattr(dca, options.access.upper())
    return dca.Scenario.uniform(station, n_stations=options.stations, traffic=traffic, countdown=options.countdown)


def _measure(scenario: Any, options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Scalar metrics, and their 95 % intervals where there are replications enough."""
    from fedmorl import dca

    run = {
        "n_slots": options.slots,
        "seed": options.seed,
        "warmup_slots": options.warmup,
        "mode": options.mode,
    }
    if options.replications == 1:
        return dca.simulate(scenario, **run).to_dict(), {}
    done = dca.replicate(scenario, n_replications=options.replications, **run)
    names = list(done.table()["metric"])
    intervals = {}
    if options.replications >= MIN_INTERVAL_REPLICATIONS:
        intervals = {name: [float(end) for end in done.interval(name)] for name in names}
    return {name: float(done.mean(name)) for name in names}, intervals


def _run_options(options: argparse.Namespace) -> dict[str, Any]:
    names = (
        "access",
        "stations",
        "slots",
        "warmup",
        "seed",
        "replications",
        "countdown",
        "traffic",
        "rate",
        "mode",
    )
    return {name: getattr(options, name) for name in names} | {"fedmorl": __version__}


def _strict(value: Any) -> Any:
    """`value` with NaN and infinities as null, and numpy numbers as Python's."""
    if isinstance(value, dict):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _table(values: dict[str, Any], intervals: dict[str, list[float]], options: argparse.Namespace) -> str:
    """Aligned lines: label, mean, 95 % interval, unit."""
    rows = [
        (label, _number(values[name]), _interval(intervals.get(name)), unit)
        for name, (label, unit) in METRICS.items()
        if name in values
    ]
    wide = [max(len(row[column]) for row in rows) for column in range(3)]
    head = f"{options.access}, {options.stations} stations, {options.traffic}, {options.slots:,} slots"
    head += f", the first {options.warmup:,} not measured, seed {options.seed}"
    if options.replications > 1:
        head += f", mean of {options.replications} replications" + (" [95 % interval]" if intervals else "")
    lines = [f"  {row[0]:<{wide[0]}}  {row[1]:>{wide[1]}}  {row[2]:<{wide[2]}}  {row[3]}".rstrip() for row in rows]
    return "\n".join([head, *lines])


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "undefined"
    return f"{value:,.0f}" if abs(value) >= 10_000 or value == int(value) > 1 else f"{value:.5g}"


def _interval(ends: list[float] | None) -> str:
    return "" if ends is None or not math.isfinite(ends[0]) else f"[{_number(ends[0])}, {_number(ends[1])}]"
