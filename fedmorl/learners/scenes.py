"""What a policy is trained on by self-play: imagined channels, and what counts as doing well in one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedmorl.dca import AC_BE, CSMA_ECA, MLPPolicy, Poisson, Saturated, Scenario, Station
from fedmorl.dca.kernels import settle
from fedmorl.dca.metrics import jain_index
from fedmorl.dca.state import State
from fedmorl.world_models.joint import JointModel

TX_SLOTS = 120  # of the channel by default
LOSS = 0.02  # ours: share of receiver addresses missed in the scenes that have lost overhearing


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A channel to play on, from a cold start; what happens from `window_slot` to `end_slot` is judged.

    `load` is the offered share of the channel, 0 under saturation; `judged` are the stations that are there.
    """

    kind: str
    scenario: Scenario
    end_slot: int
    window_slot: int = 0
    load: float = 0.0
    judged: tuple[int, ...]

    def score(self, state: State) -> float:
        """Throughput times fairness over their optimum, or the least possible delay over the delay: 0 to 1."""
        return self._loaded_score(state) if self.load else self._saturated_score(state)

    def _saturated_score(self, state: State) -> float:
        """S / S_TDMA times Jain's index of the stations' successes."""
        channel, successes = state.channel[0], state.stations["successes"]
        if not successes[list(self.judged)].any():
            return 0.0
        ideal = (channel["t"] - channel["window_start"]) / (channel["tx_slots"] + channel["difs_slots"])
        return float(successes.sum() / ideal * jain_index(successes[list(self.judged)]))

    def _loaded_score(self, state: State) -> float:
        """Little's law: time in queue per accepted packet, against a single queue that serves all; less the blocked."""
        settle(state)
        stations, busy_slots = state.stations, float(state.channel[0]["tx_slots"] + state.channel[0]["difs_slots"])
        arrivals, blocked = stations["arrivals"].sum(), stations["blocked"].sum()
        delay_slots = stations["queue_area"].sum() / max(arrivals - blocked, 1)
        return float(
            min(least_delay_slots(self.load, busy_slots) / max(delay_slots, 1.0), 1.0) * (1 - blocked / arrivals)
        )


def least_delay_slots(load: float, busy_slots: float) -> float:
    """Mean delay of one queue with Poisson arrivals and the channel as its server (M/D/1) [slots].

    `load` is the share of time that the payloads would take, rho = load busy / 120 that of the busy periods:
    busy (1 + rho / (2 (1 - rho))), Pollaczek and Khinchine's formula; ours as a bound.
    """
    rho = load * busy_slots / TX_SLOTS
    return busy_slots * (1 + rho / (2 * (1 - rho)))


def cold(n: int, end_slot: int, policy: MLPPolicy, loss: float = 0.0) -> Scene:
    """N saturated stations that have never heard each other."""
    scenario = Scenario.uniform(Station(policy=policy, overhearing_loss=loss), n)
    return Scene(kind="cold", scenario=scenario, end_slot=end_slot, judged=tuple(range(n)))


def joined(n: int, n_new: int, at_slot: int, end_slot: int, policy: MLPPolicy) -> Scene:
    """`n_new` stations join N at `at_slot`."""
    traffic = [Saturated()] * n + [Saturated(at_slot)] * n_new
    return _changed("join", traffic, at_slot, end_slot, policy, n + n_new)


def left(n: int, n_leaving: int, at_slot: int, end_slot: int, policy: MLPPolicy) -> Scene:
    """`n_leaving` of N stations leave at `at_slot`."""
    traffic = [Saturated()] * (n - n_leaving) + [Saturated(0, at_slot)] * n_leaving
    return _changed("leave", traffic, at_slot, end_slot, policy, n - n_leaving)


def _changed(kind: str, traffic: Sequence[Saturated], at_slot: int, end_slot: int, policy: MLPPolicy, n: int) -> Scene:
    scenario = Scenario(stations=[Station(policy=policy, traffic=own) for own in traffic])
    return Scene(kind=kind, scenario=scenario, end_slot=end_slot, window_slot=at_slot, judged=tuple(range(n)))


def loaded(n: int, load: float, end_slot: int, policy: MLPPolicy) -> Scene:
    """N stations whose Poisson arrivals offer a share of the channel."""
    scenario = Scenario.uniform(Station(policy=policy), n, traffic=Poisson(load / (n * TX_SLOTS)))
    return Scene(kind=f"load {load:g}", scenario=scenario, end_slot=end_slot, load=load, judged=tuple(range(n)))


def beside(n: int, legacy: Station, end_slot: int, policy: MLPPolicy, join_slot: int = 0) -> Scene:
    """N stations of which half are `legacy`, from `join_slot` on; for odd N the larger half is ours.

    Judged is what comes 1e4 slots later, when they have met.
    """
    ours, late = (n + 1) // 2, replace(legacy, traffic=Saturated(join_slot))
    scenario = Scenario(stations=[Station(policy=policy)] * ours + [late] * (n - ours))
    return Scene(
        kind=f"beside {legacy.name}", scenario=scenario, window_slot=join_slot + 10_000, end_slot=end_slot,
        judged=tuple(range(n)),
    )  # fmt: skip


def curriculum(policy: MLPPolicy, rng: np.random.Generator) -> list[Scene]:
    """The eight scenes of one generation: some of each kind, drawn anew with their numbers of stations, 2 to 14."""
    low, middle, high = (int(rng.integers(a, b)) for a, b in ((3, 7), (7, 11), (11, 15)))
    n, new = int(rng.integers(2, 11)), int(rng.integers(1, 4))
    rule, other = (AC_BE, CSMA_ECA) if rng.random() < 0.5 else (CSMA_ECA, AC_BE)
    few, many = int(rng.choice([2, 4])), int(rng.choice([6, 10, 14]))
    return [
        cold(2, 30_000, policy) if rng.random() < 0.5 else cold(low, 30_000, policy, LOSS),
        cold(middle if rng.random() < 0.5 else high, 30_000, policy),
        joined(n, new, 15_000, 35_000, policy) if rng.random() < 0.5 else left(n + 4, new, 15_000, 30_000, policy),
        loaded(high, 0.5, 50_000, policy) if rng.random() < 0.5 else loaded(middle, 0.8, 50_000, policy),
        loaded(high, 0.8, 50_000, policy),
        beside(few, rule, 40_000, policy),
        beside(many, other, 40_000, policy),
        beside(int(rng.integers(2, 7)), AC_BE if rng.random() < 0.5 else CSMA_ECA, 50_000, policy, 10_000),
    ]


class Stage:
    """Scenes at slot 0, ready to be played again and again by other weights."""

    def __init__(self, model: JointModel, scenes: Sequence[Scene], seed: int) -> None:
        self.model, self.scenes = model, tuple(scenes)
        self._start = [model.channel(scene.scenario, seed, k) for k, scene in enumerate(scenes)]

    def scores(self, weights: np.ndarray) -> np.ndarray:
        """(scenes,) of the policy whose packed weights are given (see `fedmorl.dca.policy.pack_weights`)."""
        return np.array([self._play(k, weights) for k in range(len(self.scenes))])

    def _play(self, k: int, weights: np.ndarray) -> float:
        scene, start = self.scenes[k], self._start[k]
        fresh = {name: getattr(start, name).copy() for name in ("stations", "channel", "queue", "heard")}
        state = start._replace(weights=weights, **fresh)
        if scene.window_slot:
            self.model.run(state, scene.window_slot)
            state.channel["window_start"] = state.channel["t"]
            state.stations["successes"] = 0
        self.model.run(state, scene.end_slot)
        return scene.score(state)
