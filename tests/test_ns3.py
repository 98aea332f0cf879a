"""The ns-3 side of the comparison, where ns-3 is installed (`make test-all`): one short run, known to the packet."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.ns3
def test_a_short_run_of_ns3_gives_the_packets_it_always_gives():
    """AC_VO, two stations, 2 s, RNG run 1. FEDMORL_NS3_PYTHON names an interpreter with ns3 other than this one."""
    python = os.environ.get("FEDMORL_NS3_PYTHON", sys.executable)
    command = [sys.executable, ROOT / "benchmarks" / "ns3" / "run.py", "--python", python]
    subprocess.run([*command, "--quick", "--access", "AC_VO", "--stations", "2"], check=True)
    with (ROOT / "_build" / "ns3" / "quick.csv").open(newline="") as file:
        (row,) = [r for r in csv.DictReader(file) if (r["access"], r["n_stations"]) == ("AC_VO", "2")]
    assert (int(row["received"]), int(row["transmissions"])) == (1569, 1944)
