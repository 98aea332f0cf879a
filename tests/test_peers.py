"""The simulator against its peers: the C program and the pure-Python loop of benchmarks/, written apart from it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fedmorl.dca import AC_BE, AC_VI, AC_VO, CSMA_CA, CSMA_ECA, Scenario, simulate

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
N_SLOTS, WARMUP_SLOTS = 100_000_000, 100_000


@pytest.fixture(scope="module")
def dcf(tmp_path_factory):
    if shutil.which("gcc") is None:
        pytest.skip("the C peer needs gcc, which is not on the path")
    program = tmp_path_factory.mktemp("dcf") / "dcf"
    subprocess.run(["gcc", "-O3", "-Wall", "-Werror", "-o", program, BENCHMARKS / "dcf.c"], check=True)
    return program


def run_c(program, station, n, countdown):
    options = {"n": n, "cw-min": station.cw_min, "cw-max": station.cw_max, "slots": N_SLOTS, "warmup": WARMUP_SLOTS}
    options |= {"countdown": countdown, "seed": 7}
    if station.eca_backoff_slots:
        options["eca"] = station.eca_backoff_slots
    flags = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    return json.loads(subprocess.run([program, *flags], check=True, capture_output=True, text=True).stdout)


@pytest.mark.parametrize("countdown", ["frozen", "bianchi"])
@pytest.mark.parametrize("n", [2, 3, 14])
@pytest.mark.parametrize("station", [CSMA_CA, AC_VO, AC_VI, AC_BE, CSMA_ECA], ids=lambda s: s.name)
def test_simulator_and_c_program_agree(dcf, station, n, countdown):
    """0.002 and 0.003 are what the project asks for; at 1e8 slots they are ten standard errors and more.

    CSMA/ECA at 14 stations settles late and at a random time, so its collisions are left out there.
    """
    ours = simulate(Scenario.uniform(station, n, countdown=countdown), N_SLOTS, seed=11, warmup_slots=WARMUP_SLOTS)
    c = run_c(dcf, station, n, countdown)
    assert ours.throughput_ratio == pytest.approx(c["throughput_ratio"], abs=0.002)
    assert ours.collision_rate == pytest.approx(c["collision_rate"], abs=0.003)
    assert ours.capture_index == pytest.approx(c["capture_index"], abs=0.005)
    assert ours.jain_window(100_000) == pytest.approx(c["jain_window_100000"], abs=0.01)
    percentiles = ours.access_delay_percentiles_slots([50, 95])
    assert percentiles[50] == pytest.approx(c["access_delay_p50_slots"], rel=0.02)
    assert percentiles[95] == pytest.approx(c["access_delay_p95_slots"], rel=0.03)


def test_the_python_peer_agrees_too():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import python_peer
    finally:
        sys.path.remove(str(BENCHMARKS))
    theirs = python_peer.run(5, 31, 1023, 4_000_000, seed=1, warmup_slots=WARMUP_SLOTS)
    ours = simulate(Scenario.uniform(AC_BE, 5), 20_000_000, seed=1)
    assert ours.throughput_ratio == pytest.approx(theirs["throughput_ratio"], abs=0.006)
    assert ours.collision_rate == pytest.approx(theirs["collision_rate"], abs=0.012)
