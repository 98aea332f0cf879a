"""Run a scenario: one run in one call, a run in chunks, or many replications with their intervals."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fedmorl.dca import kernels
from fedmorl.dca.metrics import SCALARS, Metrics, measure
from fedmorl.dca.policy import OBSERVATION
from fedmorl.dca.ring import pair_fits, ring_fits, ring_size, run_pair, run_ring
from fedmorl.dca.scenario import MAX_SLOTS, Scenario
from fedmorl.dca.state import CONTENTION, State, make_state, open_window

if TYPE_CHECKING:
    import pandas as pd


def check_count(name: str, value: Any, low: int = 0, high: int = MAX_SLOTS) -> int:
    """`value` as an int from low to high, or a ValueError that says so."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not low <= value <= high:
        raise ValueError(f"{name} must be an integer from {low} to {high}; got {value!r}")
    return int(value)


class Simulation:
    """One channel that can be run in chunks: the numbers do not depend on where the chunks end.

    >>> from fedmorl.dca import AC_BE, Scenario
    >>> simulation = Simulation(Scenario.uniform(AC_BE, n_stations=2), seed=0)
    >>> simulation.run(50_000).run(200_000).metrics().window_slots
    200000
    """

    def __init__(
        self,
        scenario: Scenario,
        seed: int = 0,
        replication: int = 0,
        mode: Literal["event", "slot"] = "event",
        trace: bool = False,
    ) -> None:
        if not isinstance(scenario, Scenario):
            raise ValueError(f"scenario must be a Scenario, such as Scenario.uniform(AC_BE, 10); got {scenario!r}")
        if mode not in ("event", "slot"):
            raise ValueError(f'mode must be "event" or "slot"; got {mode!r}')
        seed, replication = (
            check_count("seed", seed, 0, 2**63),
            check_count("replication", replication, 0, 2**63),
        )
        self.scenario, self.traced = scenario, bool(trace)
        self._kernel = kernels.run_slots if mode == "slot" else kernels.run_events
        self._n_buckets = ring_size(scenario) if mode == "event" and not trace and ring_fits(scenario) else 0
        self._is_pair = bool(self._n_buckets) and pair_fits(scenario)
        self._memory: dict[int, Any] = dict.fromkeys(range(scenario.n_stations))
        self._policies = {k: s.policy for k, s in enumerate(scenario.stations) if s.policy is not None}
        self._rng = {k: np.random.default_rng([seed, replication, k]) for k in self._policies}
        self.state = make_state(scenario, seed, replication)
        self.state.channel["tracing"] = self.traced
        self._grow_trace()
        kernels.start(self.state)

    @property
    def t(self) -> int:
        """The current slot."""
        return int(self.state.channel[0]["t"])

    def run(self, until: int) -> "Simulation":
        """Go on to slot `until`; returns self."""
        until = check_count("until", until, self.t)
        self._grow_log(until)
        while self.t < until:
            if self._n_buckets:
                self._run_fast(until)
            stopped = self._kernel(self.state, until)
            if stopped == kernels.DECIDE:
                self._answer()
            elif stopped == kernels.TRACE_FULL:
                self._grow_trace()
        return self

    def _run_fast(self, until: int) -> None:
        """From the next contention slot on, as far as the fast path gets; the kernel does the rest."""
        channel = self.state.channel[0]
        if channel["phase"] != CONTENTION:
            self._kernel(self.state, min(until, self.t + int(channel["remaining"] + channel["difs_slots"])))
        if channel["phase"] == CONTENTION and self._is_pair:
            run_pair(self.state, until)
        elif channel["phase"] == CONTENTION:
            run_ring(self.state, until, self._n_buckets)

    def open_window(self) -> "Simulation":
        """Forget what was counted so far (the warm-up); returns self."""
        open_window(self.state)
        return self

    def metrics(self) -> Metrics:
        """What was counted since the window opened; a copy, so the simulation can go on."""
        kernels.settle(self.state)
        return measure(self.scenario, State(*(array.copy() for array in self.state)), self.traced)

    def _answer(self) -> None:
        stations = self.state.stations
        for k in np.flatnonzero((stations["may_decide"] == 1) & (stations["policy"] < 0)).tolist():
            observation = stations["observation"][k, : len(OBSERVATION)].copy()
            answer = self._policies[k].act(observation, self._memory[k], self._rng[k])
            if not isinstance(answer, tuple) or len(answer) != 2:
                raise ValueError(f"the policy of station {k} must return a tuple (action, memory); got {answer!r}")
            action, self._memory[k] = answer
            if action not in (0, 1):
                raise ValueError(
                    f"the policy of station {k} must return action 0 (defer) or 1 (transmit); got {action!r}"
                )
            stations["action"][k] = action
        self.state.channel["answered"] = 1

    def _grow_log(self, until: int) -> None:
        channel, log = self.state.channel[0], self.state.log
        busy_slots = int(channel["tx_slots"] + channel["difs_slots"])
        needed = int(channel["log_length"]) + (until - self.t) // busy_slots + 2
        if needed > log.size:
            self.state = self.state._replace(log=_enlarged(log, max(needed, 2 * log.size)))

    def _grow_trace(self) -> None:
        if self.traced:
            trace = self.state.trace
            size = max(1024, 8 * self.scenario.n_stations, 2 * trace.size)
            self.state = self.state._replace(trace=_enlarged(trace, size).view(np.recarray))


def _enlarged(array: np.ndarray, size: int) -> np.ndarray:
    larger = np.empty(size, array.dtype)
    larger[: array.size] = array
    return larger


def simulate(
    scenario: Scenario,
    n_slots: int = 10_000_000,
    seed: int = 0,
    warmup_slots: int = 100_000,
    mode: Literal["event", "slot"] = "event",
    replication: int = 0,
    trace: bool = False,
) -> Metrics:
    """Simulate slots 0 .. n_slots and measure those from `warmup_slots` on.

    Parameters
    ----------
    scenario : who shares the channel, such as Scenario.uniform(AC_BE, n_stations=10).
    n_slots : length of the run T [slots], the warm-up included; at least 1e7 for a number to publish.
    seed : integer >= 0; the same seed gives the same bits on any number of threads.
    warmup_slots : first slots W that are simulated and not measured [slots].
    mode : "event" (skips idle time) or "slot" (one slot at a time); the results are the same bits.
    replication : which independent repetition of `seed`.
    trace : keep every event of the window, as `Metrics.trace`; give warmup_slots=0 to see the first draws.

    Returns
    -------
    Metrics
        What was measured over slots [W, T): throughput_ratio, collision_rate, jain_index, per_station, ...

    Raises
    ------
    ValueError
        If an argument is out of range, or a policy returns an action other than 0 or 1.

    Examples
    --------
    >>> from fedmorl.dca import AC_BE, Scenario
    >>> round(simulate(Scenario.uniform(AC_BE, n_stations=10), n_slots=10_000_000).throughput_ratio, 2)
    0.8
    """
    n_slots = check_count("n_slots", n_slots, 1)
    warmup_slots = check_count("warmup_slots", warmup_slots)
    if warmup_slots >= n_slots:
        raise ValueError(
            f"n_slots must exceed warmup_slots, which it contains; got n_slots={n_slots} and "
            f"warmup_slots={warmup_slots} (pass a smaller warmup_slots for a short run)"
        )
    simulation = Simulation(scenario, seed, replication, mode, trace)
    if warmup_slots > 0:
        simulation.run(warmup_slots).open_window()
    simulation.run(n_slots)
    kernels.settle(simulation.state)
    return measure(scenario, simulation.state, trace)


@dataclass(frozen=True, repr=False)
class Replications:
    """Independent repetitions of one scenario; intervals are 95 % Student t intervals over them."""

    runs: tuple[Metrics, ...]

    def __repr__(self) -> str:
        low, high = interval(self.values("throughput_ratio"))
        return (
            f"Replications({len(self.runs)} runs: throughput_ratio={self.mean('throughput_ratio'):.4f} "
            f"[{low:.4f}, {high:.4f}])"
        )

    def values(self, metric: str) -> np.ndarray:
        """One value a run, shape (R,); `metric` is a key of `Metrics.to_dict()` or an attribute."""
        if metric in SCALARS or hasattr(type(self.runs[0]), metric):
            return np.array([getattr(run, metric) for run in self.runs], dtype=float)
        known = self.runs[0].to_dict()
        if metric not in known:
            raise ValueError(f"metric must be one of {', '.join(known)}; got {metric!r}")
        return np.array([run.to_dict()[metric] for run in self.runs], dtype=float)

    def mean(self, metric: str) -> float:
        """Mean over the runs."""
        return float(self.values(metric).mean())

    def interval(self, metric: str) -> tuple[float, float]:
        """mean -+ t(0.975, R - 1) sd / sqrt(R); ValueError with a single run, which tells nothing of the spread."""
        if len(self.runs) < 2:
            raise ValueError("an interval needs at least 2 replications; got 1 (pass n_replications=5 or more)")
        return interval(self.values(metric))

    def table(self) -> "pd.DataFrame":
        """One row a scalar metric: mean, low, high, sd, n."""
        import pandas as pd

        frame = pd.DataFrame([run.to_dict() for run in self.runs])
        rows = []
        for metric in frame.columns:
            values = frame[metric].to_numpy(dtype=float)
            low, high = interval(values)
            sd = values.std(ddof=1) if values.size > 1 else float("nan")
            rows.append(
                {
                    "metric": metric,
                    "mean": values.mean(),
                    "low": low,
                    "high": high,
                    "sd": sd,
                    "n": values.size,
                }
            )
        return pd.DataFrame(rows)


def interval(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """95 % Student t interval of the mean of independent values, shape (R,)."""
    from scipy.stats import t

    values = np.asarray(values, dtype=float)
    if values.size < 2:
        return float("nan"), float("nan")
    half = t.ppf(0.975, values.size - 1) * values.std(ddof=1) / np.sqrt(values.size)
    return float(values.mean() - half), float(values.mean() + half)


def replicate(
    scenario: Scenario,
    n_slots: int = 10_000_000,
    n_replications: int = 10,
    seed: int = 0,
    warmup_slots: int = 100_000,
    mode: Literal["event", "slot"] = "event",
    workers: int | None = None,
    progress: bool = False,
) -> Replications:
    """`n_replications` independent runs side by side in threads; the numbers do not depend on `workers`."""
    n_replications = check_count("n_replications", n_replications, 1, 10**6)
    workers = check_count("workers", workers, 1, 1024) if workers is not None else os.cpu_count() or 1

    def one(replication: int) -> Metrics:
        return simulate(scenario, n_slots, seed, warmup_slots, mode, replication)

    with ThreadPoolExecutor(min(workers, n_replications)) as pool:
        runs = pool.map(one, range(n_replications))
        if progress:
            from tqdm.auto import tqdm

            runs = tqdm(runs, total=n_replications, desc="replications")
        return Replications(tuple(runs))
