"""The measured effects on the book's page of departures: run again from their seeds, and compared with the page.

`python tests/test_deviations.py` prints the table to paste.
"""

import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from fedmorl.dca import AC_BE, AC_VO, CSMA_CA, CSMA_ECA, Poisson, Replications, Scenario, Station, replicate, simulate
from fedmorl.dca.env import BatchedEnv

PAGE = Path(__file__).resolve().parents[1] / "book" / "deviations.md"
N_REPLICATIONS, MEASURED, WARMUP = 10, 10_000_000, 1_000_000


@dataclass(frozen=True)
class Row:
    """One line of the table: a metric under two scenarios."""

    number: int
    case: str
    metric: str
    ours: Scenario
    change: str
    other: Scenario
    other_metric: str = ""
    digits: int = 3
    warmup: int = WARMUP
    every_machine: bool = True  # saturated: integers only; Poisson arrivals take a logarithm, whose last bit may differ

    def text(self) -> str:
        cells = [
            f"[{self.number}](#deviation-{self.number})",
            f"{self.case}, N\u00a0=\u00a0{self.ours.n_stations}",
            self.metric.replace("_slots", " [slots]").replace("_", " "),
            self._value(self.ours, self.metric),
            self.change,
            self._value(self.other, self.other_metric or self.metric),
        ]
        return f"| {' | '.join(cells)} |"

    def stands_in(self, page: str) -> bool:
        """Whether the page has this very row or, where bits may differ, one within twice the printed half-widths."""
        wanted = self.text()
        if wanted in page or self.every_machine:
            return wanted in page
        fixed = wanted.split("±")[0].rsplit("| ", 1)[0]
        printed = next((line for line in page.splitlines() if line.startswith(fixed)), fixed)
        (a, da, b, db), (x, dx, y, dy) = numbers(wanted), numbers(printed)
        unit = 10.0**-self.digits
        return abs(a - x) <= 2 * (da + dx) + unit and abs(b - y) <= 2 * (db + dy) + unit

    def _value(self, scenario: Scenario, metric: str) -> str:
        runs = measured(scenario, self.warmup)
        low, high = runs.interval(metric)
        return f"{runs.mean(metric):.{self.digits}f}\u00a0±\u00a0{(high - low) / 2:.{self.digits}f}"


def numbers(row: str) -> list[float]:
    """The two values of a row with their half-widths; NaN where it has none."""
    found = [float(x) for pair in re.findall(r"([\d.]+)\s±\s([\d.]+)", row) for x in pair]
    return found if len(found) == 4 else [float("nan")] * 4


@cache
def measured(scenario: Scenario, warmup: int) -> Replications:
    return replicate(
        scenario, n_slots=warmup + MEASURED, n_replications=N_REPLICATIONS, seed=0, warmup_slots=warmup, workers=2
    )


def both(station: Station, n_stations: int, **fields: object) -> tuple[Scenario, Scenario]:
    """`n_stations` of one kind, as they are and with scenario fields changed."""
    return Scenario.uniform(station, n_stations), Scenario.uniform(station, n_stations, **fields)


def varied(station: Station, n_stations: int, **fields: object) -> tuple[Scenario, Scenario]:
    """`n_stations` of one kind, as they are and with station fields changed."""
    return Scenario.uniform(station, n_stations), Scenario.uniform(replace(station, **fields), n_stations)


def rows() -> list[Row]:
    frozen, bianchi = both(AC_VO, 14, countdown="bianchi")
    full, short = both(AC_VO, 14, collision_slots=1)
    plain, eifs = both(AC_VO, 14, eifs_extra_slots=2)
    best_effort, later = varied(AC_BE, 10, aifs_slots=5)
    kept, dropped = varied(CSMA_CA, 14, retry_limit=7)
    saturated, poisson = both(CSMA_CA, 14, traffic=Poisson(0.018))
    v16, v15 = varied(CSMA_ECA, 14, eca_backoff_slots=15)
    _, v4 = varied(CSMA_ECA, 14, cw_min=7, eca_backoff_slots=4)
    queued = "`CSMA_CA`, `Poisson(0.018)`"
    settled, by_log = {"warmup": 10_000_000}, {"every_machine": False}
    return [
        Row(1, "`AC_VO`", "throughput_ratio", full, "`collision_slots=1`", short),
        Row(2, "`AC_VO`", "throughput_ratio", plain, "`eifs_extra_slots=2`", eifs),
        Row(3, "`AC_VO`", "throughput_ratio", frozen, '`countdown="bianchi"`', bianchi),
        Row(4, "`AC_BE`", "throughput_ratio", best_effort, "`aifs_slots=5`", later),
        Row(5, "`CSMA_CA`", "throughput_ratio", kept, "`retry_limit=7`", dropped),
        Row(5, "`CSMA_CA`", "mean_access_delay_slots", kept, "`retry_limit=7`", dropped, digits=0),
        Row(6, "`CSMA_CA`", "throughput_ratio", saturated, "`Poisson(0.018)`", poisson, **by_log),
        Row(6, "`CSMA_CA`", "mean_queue_length", saturated, "`Poisson(0.018)`", poisson, **by_log),
        Row(
            7,
            queued,
            "mean_access_delay_slots",
            poisson,
            "`mean_delay_slots`",
            poisson,
            "mean_delay_slots",
            0,
            **by_log,
        ),
        Row(8, "`CSMA_ECA`", "throughput_ratio", v16, "`eca_backoff_slots=15`", v15, **settled),
        Row(8, "`CSMA_ECA`", "throughput_ratio", v16, "`cw_min=7, eca_backoff_slots=4`", v4, **settled),
    ]


def test_the_pages_table_is_what_the_simulator_gives():
    wanted = rows()
    page = PAGE.read_text(encoding="utf-8")
    missing = [row.text() for row in wanted if not row.stands_in(page)]
    assert not missing, "book/deviations.md lacks these rows:\n" + "\n".join(missing)
    assert page.count("](#deviation-") == len(wanted), "book/deviations.md has a row that no test makes again"


def unsettled(backoff: int) -> int:
    """Replications of 14 CSMA/ECA stations that still collide after the long warm-up."""
    _, scenario = varied(CSMA_ECA, 14, eca_backoff_slots=backoff)
    return int((measured(scenario, 10_000_000).values("collision_rate") > 0).sum())


def decision_slots(station: Station, n_stations: int) -> float:
    """Mean slots between two decision steps of a saturated station: idle slots and busy periods both open one."""
    m = simulate(Scenario.uniform(station, n_stations), n_slots=MEASURED, seed=0, warmup_slots=0)
    return m.window_slots / (m.counts["idle_slots"] + m.counts["n_successes"] + m.counts["n_collisions"])


def mean_share(form: str, n_stations: int = 10, attempt: float = 0.0128, n_steps: int = 5_000) -> float:
    """Mean normalised D2LT that agents observe when each sends with probability `attempt`."""
    env = BatchedEnv(Scenario.uniform(CSMA_CA, n_stations, d2lt=form), n_envs=16, n_steps=n_steps)
    rng, shares = np.random.default_rng(0), []
    env.reset(seed=0)
    for _ in range(n_steps):
        observations, *_ = env.step((rng.random((16, n_stations)) < attempt).astype(int))
        shares.append(observations[..., 5].mean())
    return float(np.mean(shares[n_steps // 10 :]))


def test_the_pages_sentences_are_what_the_simulator_gives():
    sentences = [
        f"With $V = 15$ {('none', 'one', 'two', 'three')[unsettled(15)]} of ten replications",
        f"{decision_slots(CSMA_CA, 10):.0f} slots for ten `CSMA_CA` stations",
        f"{decision_slots(AC_BE, 10):.0f} slots for ten `AC_BE` stations",
        f'{mean_share("global"):.2f} with `d2lt="global"`',
        f'{mean_share("local"):.2f} with `d2lt="local"`',
    ]
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    missing = [text for text in sentences if text not in page]
    assert not missing, f"book/deviations.md should say: {missing}"


if __name__ == "__main__":
    print("\n".join(row.text() for row in rows()))
