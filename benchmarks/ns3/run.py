"""Run the saturated DCF scenario in ns-3 over the comparison grid and keep one row a run in results/ns3.csv.

The scenario is dcf_ns3.cc, next to this file. It is compiled against the headers and libraries that the Python
package `ns3` carries (pip install ns3==3.44.post0); nothing is downloaded here. Only the standard library is used,
so that any interpreter that has the package can run this file.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(__file__).resolve().with_name("dcf_ns3.cc")
BUILD = ROOT / "_build" / "ns3"
MODULES = ("wifi", "spectrum", "energy", "propagation", "antenna", "mobility", "network", "stats", "core")

ACCESS = {"CSMA_CA": (7, 1023), "AC_BE": (31, 1023), "AC_VI": (15, 31), "AC_VO": (7, 15)}  # CW as the largest draw
STATIONS = (2, 6, 10, 14)
COLUMNS = (
    "access", "cw_min", "cw_max", "n_stations", "rng_run", "measured_s",
    "throughput_ratio", "collision_probability", "jain_index", "transmissions", "received",
    "cpu_seconds", "slots", "ns3_version", "program_hash", "commit", "machine", "date",
)  # fmt: skip

# Runs in the interpreter that has the package. The wheel may lack an importable `ns3`, so its metadata are asked.
LOCATE = """
import importlib.metadata as m, json
try:
    d = m.distribution("ns3")
    print(json.dumps([d.version, str(d.locate_file("ns3"))]))
except m.PackageNotFoundError:
    print("null")
"""


class Failure(Exception):
    """Something the user must mend; the message is one sentence."""


@dataclass(frozen=True)
class Ns3:
    """An installed `ns3` package: its version and the folder with include/ and lib64/."""

    version: str
    folder: Path


@dataclass(frozen=True, order=True)
class Config:
    """One run of the grid. `order` puts rows in the grid's order."""

    access_index: int
    n_stations: int
    rng_run: int
    measured_s: float

    @property
    def access(self) -> str:
        return list(ACCESS)[self.access_index]

    def options(self) -> list[str]:
        cw_min, cw_max = ACCESS[self.access]
        fields = {"n_stations": self.n_stations, "cw_min": cw_min, "cw_max": cw_max,
                  "rng_run": self.rng_run, "measured_s": self.measured_s}  # fmt: skip
        return [f"--{name}={value}" for name, value in fields.items()]


def find_ns3(python: str) -> Ns3:
    """Ask an interpreter where its `ns3` package lies."""
    try:
        answer = subprocess.run([python, "-c", LOCATE], capture_output=True, text=True, check=True).stdout
        found = json.loads(answer)
    except (OSError, subprocess.CalledProcessError, json.JSONDecodeError):
        raise Failure(f"{python} is not a Python interpreter that runs; give one with --python PATH") from None
    if found is None:
        raise Failure(f"{python} has no package ns3; `pip install ns3==3.44.post0` there, or name another --python")
    return Ns3(found[0], Path(found[1]))


def program_hash() -> str:
    """First 12 hex digits of the SHA-256 of dcf_ns3.cc."""
    return hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]


def compile_command(ns3: Ns3, output: Path) -> list[str]:
    """The g++ call. The wheel's pkg-config files name its build host, so paths are given by hand."""
    libraries = ns3.folder / "lib64"
    names = [path.name for path in libraries.glob("libns3*-wifi.so")]
    if not names:
        raise Failure(f"the ns3 package {ns3.version} carries no lib64/libns3*-wifi.so; 3.44.post0 does")
    prefix = names[0].removeprefix("lib").removesuffix("-wifi.so")
    return ["g++", "-O2", "-std=c++20", "-w", f"-I{ns3.folder / 'include'}", str(SOURCE), "-o", str(output),
            f"-L{libraries}", *(f"-l{prefix}-{module}" for module in MODULES),
            f"-Wl,-rpath,{libraries}", f"-Wl,-rpath-link,{libraries}", "-Wl,--allow-shlib-undefined"]  # fmt: skip


def build(ns3: Ns3) -> Path:
    """Compile once per source, package version and package place; returns the program."""
    place = hashlib.sha256(str(ns3.folder).encode()).hexdigest()[:6]
    program = BUILD / f"dcf_ns3-{program_hash()}-{ns3.version}-{place}"
    if program.exists():
        return program
    BUILD.mkdir(parents=True, exist_ok=True)
    unfinished = program.with_name(f"{program.name}.{os.getpid()}.tmp")
    try:
        done = subprocess.run(compile_command(ns3, unfinished), capture_output=True, text=True)
    except FileNotFoundError:
        raise Failure("g++ was not found; install a C++20 compiler (Debian: apt install g++)") from None
    if done.returncode != 0:
        unfinished.unlink(missing_ok=True)
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        raise Failure(f"g++ could not compile {SOURCE.name}: {lines[0].strip() if lines else 'no message'}")
    unfinished.rename(program)
    return program


def run_one(program: Path, options: list[str]) -> dict[str, Any]:
    """Run the program; returns the JSON object that it prints."""
    done = subprocess.run([program, *options], capture_output=True, text=True)
    if done.returncode != 0:
        said = (done.stderr.strip() or "no message").splitlines()[-1]
        raise Failure(f"ns-3 failed (status {done.returncode}) on {' '.join(options)}: {said}")
    return json.loads(done.stdout)


def jain_index(received: list[int]) -> float:
    """Jain's index of packets received per station: 1/N (one has all) .. 1 (equal shares)."""
    return sum(received) ** 2 / (len(received) * sum(x * x for x in received))


def provenance(ns3: Ns3) -> dict[str, str]:
    """Columns that say where a row comes from; nothing in them names a host or a path."""
    return {
        "ns3_version": ns3.version,
        "program_hash": program_hash(),
        "commit": commit(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def commit() -> str:
    """Short commit, '-dirty' if anything but results/ differs from it; 'none' outside a repository."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", ROOT, *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        head = git("rev-parse", "--short", "HEAD")
        return head + ("-dirty" if git("status", "--porcelain", "--", ".", ":!results") else "")
    except (OSError, subprocess.CalledProcessError):
        return "none"


def make_row(config: Config, seen: dict[str, Any], origin: dict[str, str]) -> dict[str, str]:
    cw_min, cw_max = ACCESS[config.access]
    values = {
        "access": config.access, "cw_min": cw_min, "cw_max": cw_max, "n_stations": config.n_stations,
        "rng_run": config.rng_run, "measured_s": f"{config.measured_s:g}",
        "throughput_ratio": f"{seen['throughput_ratio']:.6f}",
        "collision_probability": f"{seen['collision_probability']:.6f}",
        "jain_index": f"{jain_index(seen['received_per_station']):.6f}",
        "transmissions": seen["transmissions"], "received": seen["received"],
        "cpu_seconds": f"{seen['cpu_seconds']:.2f}", "slots": seen["slots"], **origin,
    }  # fmt: skip
    return {name: str(values[name]) for name in COLUMNS}


class Table:
    """The CSV of rows, one per Config, always whole on disk: each change goes to a temporary name, then renamed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = dict(self._read())

    def _read(self) -> Iterator[tuple[Config, dict[str, str]]]:
        if not self.path.exists():
            return
        with self.path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise Failure(f"{self.path.name} has other columns than this program writes; move it away first")
            for row in reader:
                yield self._config(row, reader.line_num), row

    def _config(self, row: dict[str, str], line: int) -> Config:
        try:
            index = list(ACCESS).index(row["access"])
            return Config(index, int(row["n_stations"]), int(row["rng_run"]), float(row["measured_s"]))
        except (ValueError, TypeError):
            raise Failure(f"{self.path.name} cannot be read at line {line}; remove that line") from None

    def has(self, config: Config, origin: dict[str, str]) -> bool:
        """Whether the row is there and came from this program and this ns-3."""
        row = self.rows.get(config)
        return row is not None and all(row[name] == origin[name] for name in ("program_hash", "ns3_version"))

    def put(self, config: Config, row: dict[str, str]) -> None:
        self.rows[config] = row
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        try:
            with unfinished.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                writer.writeheader()
                writer.writerows(self.rows[key] for key in sorted(self.rows))
            unfinished.replace(self.path)
        finally:
            unfinished.unlink(missing_ok=True)


def run_grid(
    program: Path, configs: list[Config], extra: list[str], table: Table, origin: dict[str, str], jobs: int
) -> None:
    """Run what the table lacks, `jobs` processes at a time; every finished row is on disk at once."""
    todo = [config for config in configs if not table.has(config, origin)]
    print(f"{len(configs) - len(todo)} of {len(configs)} runs are in {table.path.name} already", flush=True)
    pool = ThreadPoolExecutor(jobs)
    try:
        futures = {pool.submit(run_one, program, config.options() + extra): config for config in todo}
        for count, future in enumerate(as_completed(futures), start=1):
            config, seen = futures[future], future.result()
            table.put(config, make_row(config, seen, origin))
            print(f"[{count:3}/{len(todo)}] {config.access:8} N={config.n_stations:<3} run {config.rng_run}: "
                  f"throughput {seen['throughput_ratio']:.4f}, collisions {seen['collision_probability']:.4f}, "
                  f"{seen['cpu_seconds']:.1f} CPU s", flush=True)  # fmt: skip
    finally:
        pool.shutdown(cancel_futures=True)


def print_timing(program: Path, access: str, n_stations: int, extra: list[str]) -> None:
    """When stations resume after a burst, by how many sent in it: a table of 20 simulated seconds."""
    cw_min, cw_max = ACCESS[access]
    seen = run_one(program, [f"--n_stations={n_stations}", f"--cw_min={cw_min}", f"--cw_max={cw_max}",
                             "--warmup_s=20", "--measured_s=1", *extra])  # fmt: skip
    print(f"{access}, N = {n_stations}. DATA + SIFS + ACK [us]: {', '.join(seen['exchange_us'])}")
    print("From the end of DATA to where a back-off may count again [us], with the share of cases:")
    for group, histogram in sorted(seen["resume_us"].items(), key=lambda item: (int(item[0].split("_")[0]), item)):
        total = sum(histogram.values())
        shares = (f"{us}: {count / total:.3f}" for us, count in sorted(histogram.items(), key=lambda kv: -kv[1]))
        print(f"  {group.replace('_', ' '):18} {total:7} cases   {',  '.join(shares)}")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    grid = ", ".join(f"{name} {low}-{high}" for name, (low, high) in ACCESS.items())
    parser = argparse.ArgumentParser(
        description="Compile dcf_ns3.cc and run it over the grid: " + grid + f"; N = {', '.join(map(str, STATIONS))}.",
        epilog="Needs g++ and the package ns3 (pip install ns3==3.44.post0, in a venv of its own if you like: "
        "--python VENV/bin/python). Interrupt it when you want; the next call goes on where it stopped. A row is "
        "computed anew only if dcf_ns3.cc or the version of ns-3 has changed.",
    )
    parser.add_argument("--python", default=sys.executable, metavar="PATH", help="interpreter that has ns3 (this one)")
    parser.add_argument("--access", nargs="+", choices=list(ACCESS), default=list(ACCESS), help="part of the grid")
    parser.add_argument("--stations", nargs="+", type=int, default=list(STATIONS), metavar="N", help="part of the grid")
    parser.add_argument("--runs", type=int, default=5, help="RNG runs 1..RUNS a point (5)")
    parser.add_argument("--seconds", type=float, default=20, help="measured simulated seconds a run (20)")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (2)")
    parser.add_argument("--quick", action="store_true", help="one run of 2 s a point, into _build/ns3/quick.csv")
    parser.add_argument("--decode-headers", action="store_true",
                        help="no PHY header is lost in a collision, so that every listener waits EIFS; "
                             "rows go to results/ns3_decoded_headers.csv")  # fmt: skip
    parser.add_argument("--timing", action="store_true", help="print when stations resume after a burst, no grid")
    chosen = parser.parse_args(arguments)
    if chosen.quick and chosen.decode_headers:
        parser.error("--quick and --decode-headers write to different files; give one of them")
    if chosen.quick:
        chosen.runs, chosen.seconds = 1, 2
    if min(chosen.runs, chosen.jobs) < 1 or not all(1 <= n <= 250 for n in chosen.stations):
        parser.error("--runs and --jobs must be >= 1, and --stations 1..250")
    if not 0.1 <= chosen.seconds <= 10_000:
        parser.error("--seconds must be 0.1..10000")
    return chosen


def output_of(chosen: argparse.Namespace) -> Path:
    """The CSV to complete: results/ holds full grids only, one file for each setting of ns-3."""
    if chosen.quick:
        return BUILD / "quick.csv"
    return ROOT / "results" / ("ns3_decoded_headers.csv" if chosen.decode_headers else "ns3.csv")


def run(chosen: argparse.Namespace) -> None:
    ns3 = find_ns3(chosen.python)
    program = build(ns3)
    extra = ["--decode_headers=1"] if chosen.decode_headers else []
    if chosen.timing:
        for access in chosen.access:
            for n_stations in chosen.stations:
                print_timing(program, access, n_stations, extra)
        return
    configs = [Config(list(ACCESS).index(access), n_stations, rng_run, chosen.seconds)
               for rng_run in range(1, chosen.runs + 1)
               for access in chosen.access
               for n_stations in chosen.stations]  # fmt: skip
    run_grid(program, configs, extra, Table(output_of(chosen)), provenance(ns3), chosen.jobs)


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, 1 after a failure told in one sentence, 130 after an interrupt."""
    chosen = parse_arguments(arguments)
    try:
        run(chosen)
    except Failure as failure:
        print(f"run.py: {failure}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"run.py: cannot use {error.filename or 'the output'}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("run.py: interrupted; finished rows are kept, the same command goes on from them", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
