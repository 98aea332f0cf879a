"""Logs of the channel: what every station saw, did and got, decision by decision."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from fedmorl.data.dataset import OfflineDataset, add_rewards
from fedmorl.dca import kernels
from fedmorl.dca.logs import ROWS_FULL, Cursor, Rows, log_decisions
from fedmorl.dca.policy import FEATURES, OBSERVATION
from fedmorl.dca.scenario import Scenario
from fedmorl.dca.simulate import Simulation, check_count

CHUNK_SLOTS = 10_000_000  # a kernel call runs no further, so that an interruption is heard


def collect_dca_logs(
    scenario: Scenario,
    n_decisions: int = 100_000,
    seed: int = 0,
    n_replications: int = 1,
    warmup_slots: int = 100_000,
    observation_names: Sequence[str] = OBSERVATION,
    max_slots: int = 10**9,
    workers: int | None = None,
) -> OfflineDataset:
    """Run the channel and log the decisions of all its stations, whatever rule or policy takes them.

    A station decides at every contention slot in which it has a packet and does not defer (rule 11); a
    rule-based one transmits iff its counter is 0. What it sees is FedMORL's observation, without the counter. A
    decision lasts until the same station's next one: 1 slot if the channel stayed idle, 124 if somebody sent,
    more if the station had nothing to send or deferred in between. The reward is what ended in that time, +1 a
    success and -1 a collision, plus alpha r_local, taken at the decision (rule 10).

    Parameters
    ----------
    scenario : who shares the channel; any mix of rules, policies and traffic. Its `d2lt`, `delay_term` and
        `alpha` say what is observed and rewarded.
    n_decisions : decisions of each station in each episode; exactly so many. A station that is done goes on
        unlogged until the slowest is done too.
    seed : integer >= 0; the same seed gives the same log on any number of threads.
    n_replications : E, the episodes; one replication each, truncated at the end.
    warmup_slots : slots before the first logged decision [slots].
    observation_names : `OBSERVATION`, the paper's seven numbers, or `FEATURES`, with the own retries as an eighth.
    max_slots : where to give up on a station that hardly ever has a packet [slots].
    workers : threads (default: the cores at hand).

    Returns
    -------
    OfflineDataset
        Shapes (E, T, N, ...). T is `n_decisions` where all stations decide together, as saturated ones without
        extra deferral do; otherwise larger, with mask False where a station did not decide.

    Raises
    ------
    ValueError
        If an argument is out of range, or a station has not made its decisions after `max_slots`.

    Examples
    --------
    >>> from fedmorl.dca import CSMA_CA, Scenario
    >>> logs = collect_dca_logs(Scenario.uniform(CSMA_CA, n_stations=3), n_decisions=1000)
    >>> logs.observations.shape, sorted(set(logs.durations.ravel().tolist()))
    ((1, 1000, 3, 7), [1, 124])
    """
    if not isinstance(scenario, Scenario):
        raise ValueError(f"scenario must be a Scenario, such as Scenario.uniform(CSMA_CA, 10); got {scenario!r}")
    n_decisions, seed = check_count("n_decisions", n_decisions, 1, 10**9), check_count("seed", seed, 0, 2**63 - 1)
    n_replications = check_count("n_replications", n_replications, 1, 10**6)
    warmup_slots, max_slots = check_count("warmup_slots", warmup_slots), check_count("max_slots", max_slots, 1)
    workers = check_count("workers", workers, 1, 1024) if workers is not None else os.cpu_count() or 1
    names = tuple(observation_names)
    if names not in (OBSERVATION, FEATURES):
        raise ValueError(f"observation_names must be {OBSERVATION}, or that with 'retries'; got {names}")

    def one(replication: int) -> Rows:
        return _episode(scenario, n_decisions, seed, replication, warmup_slots, len(names), max_slots)

    with ThreadPoolExecutor(min(workers, n_replications)) as pool:
        episodes = list(pool.map(one, range(n_replications)))
    return _dataset(scenario, episodes, seed, names)


def _episode(
    scenario: Scenario, n_decisions: int, seed: int, replication: int, first_slot: int, n_inputs: int, max_slots: int
) -> Rows:
    """One replication, T rows."""
    n, raw_delay = scenario.n_stations, scenario.delay_term == "raw"
    simulation = Simulation(scenario, seed, replication)
    simulation.state.channel["logging"] = 0  # that is the simulator's list of successes
    rows, cursor = _empty_rows(n_decisions, n, n_inputs), _cursor(n)
    limit = first_slot + max_slots
    while cursor.counts[1] < n:
        if simulation.t >= limit:
            _give_up(scenario, cursor, n_decisions, max_slots)
        until = min(simulation.t + CHUNK_SLOTS, limit)
        stopped = log_decisions(simulation.state, rows, cursor, n_decisions, first_slot, raw_delay, until)
        if stopped == kernels.DECIDE:
            simulation._answer()  # a policy in Python; its memory and its randomness are the simulation's
        elif stopped == ROWS_FULL:
            rows = _longer(rows)
    return Rows(*(array[: cursor.counts[0]] for array in rows))


def _give_up(scenario: Scenario, cursor: Cursor, n_decisions: int, max_slots: int) -> None:
    closed = cursor.opened - (cursor.open_row >= 0)
    slowest = int(closed.argmin())
    raise ValueError(
        f"station {slowest} ({scenario.station_traffic(slowest)}) has made {closed[slowest]} of {n_decisions} "
        f"decisions after {max_slots} slots; ask for fewer decisions, give it more traffic, or raise max_slots"
    )


def _empty_rows(length: int, n: int, n_inputs: int) -> Rows:
    return Rows(
        slots=np.zeros(length, np.int64),
        winners=np.zeros(length, np.int16),
        mask=np.zeros((length, n), np.bool_),
        observations=np.zeros((length, n, n_inputs), np.float32),
        next_observations=np.zeros((length, n, n_inputs), np.float32),
        actions=np.zeros((length, n), np.uint8),
        outcomes=np.zeros((length, n), np.int8),
        durations=np.zeros((length, n), np.int64),
        global_rewards=np.zeros((length, n), np.int32),
        local_rewards=np.zeros((length, n), np.float32),
    )


def _cursor(n: int) -> Cursor:
    zeros = np.zeros(n, np.int64)
    return Cursor(np.zeros(2, np.int64), zeros - 1, zeros.copy(), zeros.copy())


def _longer(rows: Rows) -> Rows:
    length, n, n_inputs = rows.observations.shape
    longer = _empty_rows(2 * length, n, n_inputs)
    for array, old in zip(longer, rows, strict=True):
        array[:length] = old
    return longer


def _dataset(scenario: Scenario, episodes: Sequence[Rows], seed: int, names: tuple[str, ...]) -> OfflineDataset:
    """Episodes of unequal length, padded with rows in which nobody decides."""
    length = max(rows.slots.shape[0] for rows in episodes)
    stacked = Rows(*(_stack(arrays, length) for arrays in zip(*episodes, strict=True)))
    last = length - 1 - stacked.mask[:, ::-1].argmax(1)  # (E, N)
    return OfflineDataset(
        observations=stacked.observations,
        actions=stacked.actions,
        rewards=add_rewards(stacked.global_rewards, stacked.local_rewards, scenario.reward_alpha),
        next_observations=stacked.next_observations,
        terminated=np.zeros(stacked.mask.shape, np.bool_),
        truncated=np.arange(length)[None, :, None] == last[:, None, :],
        durations=stacked.durations,
        mask=stacked.mask,
        seeds=np.full(len(episodes), seed),
        replications=np.arange(len(episodes)),
        scenario=scenario.to_dict(),
        stations=tuple(range(scenario.n_stations)),
        observation_names=names,
        alpha=scenario.reward_alpha,
        extras={
            name: getattr(stacked, name) for name in ("slots", "winners", "outcomes", "global_rewards", "local_rewards")
        },
    )


def _stack(arrays: Sequence[np.ndarray], length: int) -> np.ndarray:
    """(T_e, ...) of each episode -> (E, T, ...)."""
    if len(arrays) == 1:
        return arrays[0][None]
    stacked = np.zeros((len(arrays), length, *arrays[0].shape[1:]), arrays[0].dtype)
    for e, array in enumerate(arrays):
        stacked[e, : len(array)] = array
    return stacked
