"""Measure the package beside its peers, in one run and by CPU time; rows go to results/benchmarks.csv.

    make bench                                        everything, about eight minutes
    python benchmarks/run.py --only kernels           one group
    python benchmarks/run.py --ns3-python PATH        with ns-3, from an interpreter that has the `ns3` package

Programs alternate and the best of `--repeats` counts, because the clock of a shared machine wanders; a row's
ratio compares what ran within the same seconds. Every program computes the same outputs (see README.md), and
each run pays for touching its own memory. The group `batch` (see batch.py) goes by wall time, as it starts processes
and waits for them.
"""

import argparse
import csv
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import batch
import federated
import logo
import networld
import numpy as np
import python_peer
import sequence

from fedmorl.dca import AC_BE, AC_VI, AC_VO, CSMA_CA, BatchedEnv, DCAParallelEnv, MLPPolicy, Scenario, Station, simulate
from fedmorl.dca.analytic import bianchi
from fedmorl.provenance import commit, commit_text, machine, today

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "results" / "benchmarks.csv"
COLUMNS = [
    "group", "case", "quantity", "ours", "peer", "peer_value", "ratio", "asked", "repeats",
    "commit", "machine", "python", "numba", "date",
]  # fmt: skip
WARMUP_SLOTS = 100_000


def cpu_seconds(work: Callable[[], Any]) -> float:
    """CPU time of one call in this process."""
    start = time.process_time()
    work()
    return time.process_time() - start


def all_outputs(scenario: Scenario, n_slots: int) -> None:
    """One run and everything dcf.c prints."""
    m = simulate(scenario, n_slots, seed=1, warmup_slots=WARMUP_SLOTS)
    m.to_dict()
    m.jain_window(100_000)


def build_c(folder: Path) -> Path:
    program = folder / "dcf"
    command = ["gcc", "-O3", "-march=native", "-o", str(program), str(ROOT / "benchmarks" / "dcf.c")]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise SystemExit("benchmarks/dcf.c needs gcc, which is not on the path: install it (Debian: gcc)") from None
    return program


def run_c(program: Path, station: Station, n: int, n_slots: int, countdown: str = "frozen") -> dict[str, Any]:
    """What dcf.c prints of one run in a fresh process, so that it too touches new memory."""
    options = {
        "countdown": countdown,
        "n": n,
        "cw-min": station.cw_min,
        "cw-max": station.cw_max,
        "slots": n_slots,
        "warmup": WARMUP_SLOTS,
    }
    flags = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    printed = subprocess.run([str(program), *flags], check=True, capture_output=True, text=True).stdout
    return json.loads(printed)


def kernels(repeats: int, ns3_python: str | None) -> Iterable[dict]:
    """Slots per CPU second, every output computed, against C, pure Python and (where installed) ns-3."""
    n_slots, n_slots_python = 100_000_000, 3_000_000
    with tempfile.TemporaryDirectory() as folder:
        program = build_c(Path(folder))
        best: dict[tuple[str, int], float] = {}
        for station in (AC_BE, CSMA_CA):
            for n in (2, 14, 64):
                scenario = Scenario.uniform(station, n)
                all_outputs(scenario, 1_000_000)
                ours, c = [], []
                for _ in range(repeats):
                    ours.append(cpu_seconds(lambda: all_outputs(scenario, n_slots)))  # noqa: B023  (called at once)
                    c.append(run_c(program, station, n, n_slots)["cpu_seconds"])
                best[station.name, n] = min(ours)
                asked = {2: ">= 0.8", 14: ">= 0.5"}.get(n, "")
                case = f"{station.name}, N = {n}"
                yield rate(case, "slots per CPU second", n_slots, ours, "C (dcf.c)", n_slots, c, asked)
                windows = station.cw_min, station.cw_max
                python = [
                    cpu_seconds(lambda: python_peer.run(n, *windows, n_slots_python, 1, WARMUP_SLOTS))  # noqa: B023
                    for _ in range(2)
                ]
                peer = "pure Python"
                yield rate(case, "slots per CPU second", n_slots, ours, peer, n_slots_python, python, ">= 40")
                if ns3_python and n < 64:
                    slots, seconds = ns3_speed(ns3_python, station, n)
                    yield rate(case, "slots per CPU second", n_slots, ours, "ns-3", slots, [seconds], ">= 5000")
            ratio = best[station.name, 64] / best[station.name, 2]
            yield row(f"{station.name}", "CPU seconds at N = 64 / N = 2", ratio, asked="<= 32")


def ns3_speed(python: str, station: Station, n: int) -> tuple[int, float]:
    """(slots, CPU seconds) of one short ns-3 run of the same scenario."""
    choice = ["--quick", "--access", station.name, "--stations", str(n), "--python", python]
    subprocess.run([sys.executable, str(ROOT / "benchmarks" / "ns3" / "run.py"), *choice], check=True)
    with (ROOT / "_build" / "ns3" / "quick.csv").open(newline="") as file:
        rows = [r for r in csv.DictReader(file) if (r["access"], r["n_stations"]) == (station.name, str(n))]
    return int(rows[-1]["slots"]), float(rows[-1]["cpu_seconds"])


def accuracy(repeats: int) -> Iterable[dict]:
    """Largest differences from dcf.c, and from Bianchi's fixed point, over N = 2..14 at 1e8 slots (seed 1 of each)."""
    n_slots, crowds = 100_000_000, range(2, 15)
    with tempfile.TemporaryDirectory() as folder:
        program = build_c(Path(folder))
        for station in (CSMA_CA, AC_VO, AC_VI, AC_BE):
            pairs = []
            for n in crowds:
                m = simulate(Scenario.uniform(station, n), n_slots, seed=1, warmup_slots=WARMUP_SLOTS)
                pairs.append((m, run_c(program, station, n, n_slots)))
            case = f"{station.name}, N = 2..14, 1e8 slots"
            for quantity, asked in (("throughput_ratio", "<= 0.002"), ("collision_rate", "<= 0.003")):
                worst = max(abs(getattr(m, quantity) - c[quantity]) for m, c in pairs)
                yield row(case, f"largest difference of {quantity} from dcf.c", worst, asked=asked)
        for station, asked in ((CSMA_CA, "<= 0.016"), (AC_BE, "<= 0.005")):
            worst = max(
                abs(bianchi(station.cw_min, station.cw_max, n, "bianchi").throughput_ratio / m.throughput_ratio - 1)
                for n in crowds
                for m in [simulate(Scenario.uniform(station, n, countdown="bianchi"), n_slots, seed=1)]
            )
            case = f"{station.name}, N = 2..14, 1e8 slots, bianchi count-down"
            yield row(case, "largest relative error of Bianchi's throughput", worst, asked=asked)


def policies(repeats: int) -> Iterable[dict]:
    """Decisions a second of an 8-32-2 network inside the kernel."""
    rng = np.random.default_rng(0)
    hidden = (rng.normal(size=(8, 32)), rng.normal(size=32))
    network = MLPPolicy([hidden, (0.1 * rng.normal(size=(32, 2)), np.array([3.0, -1.0]))])
    for n in (2, 10, 14):
        scenario, n_slots = Scenario.uniform(Station(policy=network), n), 10_000_000
        decisions = simulate(scenario, n_slots, warmup_slots=0).counts["decisions"]
        seconds = [cpu_seconds(lambda: simulate(scenario, n_slots, warmup_slots=0)) for _ in range(repeats)]  # noqa: B023
        yield row(f"8-32-2 network, N = {n}", "decisions per CPU second", decisions / min(seconds), asked=">= 1e7")


def environments(repeats: int) -> Iterable[dict]:
    """Steps a second through the arrays of BatchedEnv and the dictionaries of PettingZoo."""
    n, n_envs, n_steps = 10, 256, 400
    batch = BatchedEnv(Scenario.uniform(CSMA_CA, n), n_envs=n_envs)
    actions = (np.random.default_rng(0).random((n_steps, n_envs, n)) < 0.03).astype(int)
    seconds = []
    for _ in range(repeats):
        batch.reset(seed=0)
        seconds.append(cpu_seconds(lambda: [batch.step(a) for a in actions]))
    case = f"BatchedEnv, {n_envs} replications of N = {n}"
    yield row(case, "agent-steps per CPU second", n_steps * n_envs * n / min(seconds), asked=">= 1e6")
    env, seconds = DCAParallelEnv(Scenario.uniform(CSMA_CA, n)), []
    for _ in range(repeats):
        env.reset(seed=0)
        seconds.append(cpu_seconds(lambda: [env.step(dict.fromkeys(env.agents, 0)) for _ in range(2000)]))
    yield row(f"DCAParallelEnv, N = {n}", "agent-steps per CPU second", 2000 * n / min(seconds))


def start_up(repeats: int) -> Iterable[dict]:
    """Seconds from a fresh interpreter to the first result, with compiled code on disk and without."""
    program = (
        "import time; t = time.perf_counter(); from fedmorl.dca import AC_BE, Scenario, simulate;"
        "a = time.perf_counter() - t; simulate(Scenario.uniform(AC_BE, 10), 1_000_000);"
        "print(a, time.perf_counter() - t)"
    )

    def fresh(cache: str) -> tuple[float, float]:
        environment = {**os.environ, "NUMBA_CACHE_DIR": cache}
        command = [sys.executable, "-c", program]
        printed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
        imported, first = map(float, printed.split())
        return imported, first

    with tempfile.TemporaryDirectory() as cache:
        _, cold = fresh(cache)
        warm = [fresh(cache) for _ in range(repeats)]
    yield row("import fedmorl.dca", "wall seconds", min(a for a, _ in warm))
    yield row("import and first simulate, warm numba cache", "wall seconds", min(b for _, b in warm), asked="<= 2")
    yield row("import and first simulate, nothing compiled yet", "wall seconds", cold)


def sweeps(repeats: int) -> Iterable[dict]:
    """What a sweep costs beside its runs, and beside two loops over papermill; wall time."""
    for found in batch.measure(repeats):
        if "peer" in found:
            found["ratio"] = f"{found['ours'] / found['peer_value']:.3g}"
            found["peer_value"] = f"{found['peer_value']:.4g}"
        yield row(**found)


def row(case: str, quantity: str, ours: float, **rest: Any) -> dict:
    return {"case": case, "quantity": quantity, "ours": f"{ours:.4g}", **rest}


def rate(case, quantity, n_ours, ours, peer, n_peer, theirs, asked) -> dict:
    a, b = n_ours / min(ours), n_peer / min(theirs)
    return row(case, quantity, a, peer=peer, peer_value=f"{b:.4g}", ratio=f"{a / b:.3g}", asked=asked)


GROUPS = {
    "accuracy": accuracy,
    "kernels": kernels,
    "policies": policies,
    "environments": environments,
    "start-up": start_up,
    "batch": sweeps,
    "federated": federated.federated,
    "sequence": sequence.sequence,
    "logo": logo.logo,
    "networld": networld.networld,
}


def provenance() -> dict[str, str]:
    import numba

    return {
        "commit": commit_text(*commit(ROOT)),
        "machine": machine(),
        "python": platform.python_version(),
        "numba": numba.__version__,
        "date": today(),
    }


def write(rows: list[dict]) -> None:
    """Replace the rows of the measured groups; other groups keep theirs. Written whole, then renamed."""
    measured = {r["group"] for r in rows}
    kept = []
    if OUTPUT.exists():
        with OUTPUT.open(newline="") as file:
            kept = [r for r in csv.DictReader(file) if r["group"] not in measured]
    order = list(GROUPS)
    merged = sorted([*kept, *rows], key=lambda r: order.index(r["group"]))
    temporary = OUTPUT.with_suffix(".tmp")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows(merged)
    os.replace(temporary, OUTPUT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=GROUPS, action="append", help="a group to measure (default: all)")
    parser.add_argument("--repeats", type=int, default=9, help="runs a program, of which the best counts (default 9)")
    parser.add_argument("--ns3-python", metavar="PATH", help="an interpreter with the ns3 package, to measure ns-3 too")
    chosen = parser.parse_args()
    if chosen.repeats < 1:
        parser.error(f"--repeats must be at least 1; got {chosen.repeats}")
    origin, rows = provenance(), []
    for name in chosen.only or GROUPS:
        extra = {"ns3_python": chosen.ns3_python} if name == "kernels" else {}
        for measured in GROUPS[name](chosen.repeats, **extra):
            rows.append({"group": name, "repeats": chosen.repeats, **measured, **origin})
            ratio = f"  {measured['ratio']} x {measured['peer']}" if "ratio" in measured else ""
            asked = f"  (asked {measured['asked']})" if measured.get("asked") else ""
            print(f"{name}: {measured['case']}: {measured['ours']} {measured['quantity']}{ratio}{asked}", flush=True)
    write(rows)
    print(f"rows written to {OUTPUT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
