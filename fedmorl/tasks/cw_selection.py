"""Contention-window selection: each station of a saturated channel holds a window for an epoch, then chooses again.

Two backends with one interface. "rounds" is an abstraction with a closed form: in each round every station attempts on
its own with probability 2 / (CW + 1). "dca" is the channel of `fedmorl.dca`, back-off counters and all, with the window
of every station held for a beacon interval; what is published comes from it.

Letters: E networks, N stations, A = 8 levels. Level a is CW = 2^(a + 3) - 1, from 7 to 1023. Times are slots of 9 us.
Formulation: contention windows per epoch, after Wydmanski and Szott (2021), WCNC. The rest is ours.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from fedmorl.dca import Scenario, Station, kernels, simulate
from fedmorl.dca.compiled import compiled
from fedmorl.dca.state import make_state
from fedmorl.dca.streams import draw_backoff
from fedmorl.tasks.networks import Tally, check_actions, check_size, even_weights

BACKENDS = ("rounds", "dca")
WINDOWS = 2 ** (np.arange(8) + 3) - 1
PACKET_SLOTS, PAYLOAD_SLOTS = 120, 100
EPOCH_ROUNDS = 150
EPOCH_SLOTS = 11_378  # 102.4 ms, the usual beacon interval


class Epoch(NamedTuple):
    """What E channels counted."""

    successes: np.ndarray  # (E, N)
    collisions: np.ndarray  # (E, N) attempts that collided
    idle_slots: np.ndarray  # (E,)
    busy_periods: np.ndarray  # (E,)
    slots: np.ndarray  # (E,)


class CWSelection:
    """E networks of N saturated stations.

    Parameters
    ----------
    n_networks, n_agents : E >= 1 and N >= 2.
    backend : "rounds" or "dca".

    An observation (O = 5) is of the last epoch: the own level, the share of own attempts that collided, the own share
    of the channel times N, the share of rounds that were idle (a round: an idle slot or a busy period), and the
    logarithm of own successes. The reward is 0.8 sum_j share_j + 0.2 min(N share_i, 1), where a share is payload slots
    over all slots (its ceiling on "rounds" is 100/120: payload, not airtime).
    """

    name, n_levels, observation_size, change_probability = "cw", len(WINDOWS), 5, 0.05
    own: np.ndarray  # (E, N) float32: the own share of the channel times N
    credit = None  # what a station's attempts cost the others cannot be told from one epoch

    def __init__(self, n_networks: int, n_agents: int = 10, backend: str = "dca") -> None:
        if backend not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)}; got {backend!r}")
        self.n_networks, self.n_agents = check_size("n_networks", n_networks, 1), check_size("n_agents", n_agents, 2)
        self.backend = backend

    def reset(self, rng: np.random.Generator) -> np.ndarray:
        """Start E channels and play one epoch at levels drawn evenly -> observations (E, N, 5) float32."""
        self._rng = rng
        if self.backend == "dca":
            self._channels = HeldWindows(self.n_networks, self.n_agents, int(rng.integers(2**62)))
        return self.step(rng.integers(self.n_levels, size=(self.n_networks, self.n_agents)))[0]

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Levels (E, N), held for one epoch -> observations (E, N, 5), rewards (E, N), float32."""
        levels = check_actions(actions, self)
        if self.backend == "dca":
            self._epoch = self._channels.play(WINDOWS[levels], EPOCH_SLOTS)
        else:
            self._epoch = play_rounds(2 / (WINDOWS[levels] + 1), EPOCH_ROUNDS, self._rng)
        share = PAYLOAD_SLOTS * self._epoch.successes / self._epoch.slots[:, None]
        self.own = (self.n_agents * share).astype(np.float32)
        reward = 0.8 * share.sum(1, keepdims=True) + 0.2 * np.minimum(self.n_agents * share, 1)
        return observe(levels, share, self._epoch), reward.astype(np.float32)

    def reference(self) -> np.ndarray:
        """(E, N): the best level that all have in common."""
        level = best_level(self.n_agents, self.backend)
        return np.full((self.n_networks, self.n_agents), level)

    def weights(self) -> np.ndarray:
        """(E, N, N): on a shared channel all others count alike."""
        return even_weights(self.n_networks, self.n_agents)

    def tally(self) -> Tally:
        """Throughput (payload share of the slots) and the share of attempts that collided, as sums; Jain's index."""
        e = self._epoch
        sent, one = (e.successes + e.collisions).sum(1), np.ones(self.n_networks)
        return {
            "throughput": (PAYLOAD_SLOTS * e.successes.sum(1), e.slots),
            "collision_rate": (e.collisions.sum(1), np.maximum(sent, 1)),
            "jain_index": (e.successes.sum(1) ** 2 / np.maximum((e.successes**2).sum(1), 1) / self.n_agents, one),
        }

    def new_level(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        """Drawn evenly."""
        return rng.integers(self.n_levels, size=shape)


def observe(levels: np.ndarray, share: np.ndarray, epoch: Epoch) -> np.ndarray:
    """What each station knows of its last epoch, (E, N, 5) float32."""
    sent = np.maximum(epoch.successes + epoch.collisions, 1)
    idle = epoch.idle_slots / np.maximum(epoch.idle_slots + epoch.busy_periods, 1)
    columns = (
        levels / 3.5 - 1,
        2 * epoch.collisions / sent - 1,
        np.minimum(levels.shape[1] * share, 3) - 1,
        np.broadcast_to(2 * idle[:, None] - 1, levels.shape),
        np.log1p(epoch.successes) / 2 - 1,
    )
    return np.stack(columns, -1).astype(np.float32)


# --- rounds ---------------------------------------------------------------------------------------------


def play_rounds(attempt: np.ndarray, n_rounds: int, rng: np.random.Generator) -> Epoch:
    """Rounds in which each station attempts by itself with probability `attempt` (E, N).

    Nobody: one idle slot. One: a success of 120 slots. More: a collision of 120 slots.
    """
    tries = rng.random((n_rounds, *attempt.shape)) < attempt  # (R, E, N)
    n_tries = tries.sum(-1, keepdims=True)
    idle = (n_tries == 0).sum((0, 2))
    busy = n_rounds - idle
    successes, collisions = (tries & (n_tries == 1)).sum(0), (tries & (n_tries > 1)).sum(0)
    return Epoch(successes, collisions, idle, busy, idle + PACKET_SLOTS * busy)


def closed_form(n_agents: int, window: int) -> float:
    """Payload share of the slots when all attempt with probability p = 2 / (CW + 1).

    S = 100 N p (1 - p)^(N - 1) / (q + 120 (1 - q)), q = (1 - p)^N. Slotted contention in the manner of Bianchi (2000).
    """
    p = 2 / (window + 1)
    q = (1 - p) ** n_agents
    return PAYLOAD_SLOTS * n_agents * p * (1 - p) ** (n_agents - 1) / (q + PACKET_SLOTS * (1 - q))


# --- the channel ----------------------------------------------------------------------------------------


class HeldWindows:
    """E channels of `fedmorl.dca` whose stations' windows are set from outside, and held.

    Every back-off is uniform on 0..CW, whatever happened before: no doubling. A station whose window changes while it
    counts down draws its counter afresh; one that is sending draws from the new window when it is done.
    """

    def __init__(self, n_networks: int, n_agents: int, seed: int) -> None:
        scenario = Scenario.uniform(_holding(int(WINDOWS[0])), n_agents)
        states = [make_state(scenario, seed, e) for e in range(n_networks)]
        for state in states:
            state.channel["logging"] = 0
            kernels.start(state)
        self._stations = np.stack([s.stations for s in states]).view(np.recarray)
        self._channels = np.concatenate([s.channel for s in states]).view(np.recarray)
        self._queues, self._heard = np.stack([s.queue for s in states]), np.stack([s.heard for s in states])
        self._shared = states[0]  # histograms, which nobody reads

    def play(self, windows: np.ndarray, n_slots: int) -> Epoch:
        """Set the windows (E, N), go on for `n_slots` slots, and count."""
        before = self._counts()
        s = self._shared
        hold_windows(
            self._stations, self._channels, self._queues, self._heard, s.access_histogram, s.delay_histogram, s.log,
            s.trace, s.sizes, s.weights, s.scratch, windows.astype(np.int64), n_slots,
        )  # fmt: skip
        return Epoch(*(after - b for after, b in zip(self._counts(), before, strict=True)))

    def _counts(self) -> Epoch:
        ch, u = self._channels, self._stations
        busy = ch["n_successes"] + ch["n_collisions"]
        return Epoch(
            u["successes"].copy(), u["collisions"].copy(), ch["idle_slots"].copy(), busy, np.array(ch["t"], np.int64)
        )


@compiled
def hold_windows(
    all_stations: Any, channels: Any, queues: Any, all_heard: Any, access_histogram: Any, delay_histogram: Any,
    log: Any, trace: Any, sizes: Any, weights: Any, scratch: Any, windows: Any, n_slots: int,
) -> None:  # fmt: skip
    """Set every window and run every channel for `n_slots` slots."""
    for e in range(channels.shape[0]):
        stations, ch = all_stations[e], channels[e]
        for i in range(stations.shape[0]):
            u = stations[i]
            if u.cw_max != windows[e, i]:
                u.cw_min, u.cw_max, u.cw = windows[e, i], windows[e, i], windows[e, i]
                if u.active == 1 and u.sending == 0:
                    u.counter = draw_backoff(u.backoff_stream, u.cw)
        kernels.advance(
            stations, ch, queues[e], all_heard[e], access_histogram, delay_histogram, log, trace, sizes, weights,
            scratch, ch.t + n_slots,
        )  # fmt: skip


@lru_cache(maxsize=64)
def best_level(n_agents: int, backend: str, n_slots: int = 3_000_000) -> int:
    """The common level of highest throughput: by the closed form on "rounds", by simulation on "dca"."""
    if backend == "rounds":
        return int(np.argmax([closed_form(n_agents, int(cw)) for cw in WINDOWS]))
    runs = [simulate(Scenario.uniform(_holding(int(cw)), n_agents), n_slots=n_slots, seed=0) for cw in WINDOWS]
    return int(np.argmax([run.throughput_ratio for run in runs]))


def _holding(window: int) -> Station:
    """A station that never doubles its window."""
    return Station(cw_min=window, cw_max=window)
