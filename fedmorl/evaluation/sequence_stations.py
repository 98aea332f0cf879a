"""Sequence policies on the channel: every station plays one by itself, all stations of all channels in one batch.

A station that was trained on windows of its own decisions (`fedmorl.data.channel_sequences`) is asked wherever it may
send (rule 11), sees what the log would hold and is told its reward at its next decision. A return is the sum over a
window, so after as many decisions the target is asked for anew.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedmorl.data.channel_sequences import with_duration
from fedmorl.dca.metrics import Metrics
from fedmorl.dca.policy import OBSERVATION
from fedmorl.dca.scenario import MAX_SLOTS, Saturated, Scenario
from fedmorl.dca.simulate import Simulation, check_count
from fedmorl.evaluation.team import TeamPolicy
from fedmorl.federated.clients import one_thread


class Outside:
    """Marks a station that is asked together with the others."""

    def act(self, observation: np.ndarray, memory: Any, rng: np.random.Generator) -> tuple[int, Any]:
        raise RuntimeError("this station is asked through play_stations, not by act()")


class AskedChannel(Simulation):
    """A channel whose stations are all asked from outside, `n_decisions` times at most.

    `go_on` runs it to where its stations decide. Then `observations` (N, O + 1), and `rewards` (N,) of the decision
    before, are those of a log; `answer` is given the actions (N,).
    """

    def __init__(self, scenario: Scenario, seed: int, replication: int, n_decisions: int) -> None:
        super().__init__(scenario, seed, replication)
        self.busy_slots = scenario.tx_slots + scenario.difs_slots
        self.observations = np.zeros((scenario.n_stations, len(OBSERVATION) + 1), np.float32)
        self.rewards: np.ndarray = np.zeros(scenario.n_stations)
        self._asked_at = self._credited = 0
        self._grow_log(n_decisions * self.busy_slots)  # a decision leads to one success at most

    def go_on(self) -> None:
        """To the next decision."""
        self._kernel(self.state, MAX_SLOTS)
        channel, seen = self.state.channel[0], self.state.stations["observation"][:, : len(OBSERVATION)]
        delay = self.observations[:, 5].astype(float) * self.observations[:, 6]  # d~ b~ where it decided before
        credited, duration = int(channel["reward_glob"]), np.full(len(seen), self.t - self._asked_at)
        self.rewards = credited - self._credited - self.scenario.reward_alpha * delay
        self.observations = with_duration(seen, duration, self.busy_slots)
        self._asked_at, self._credited = self.t, credited

    def answer(self, actions: np.ndarray) -> None:
        """What every station does in the slot that was reached."""
        self.state.stations["action"] = actions
        self.state.channel["answered"] = 1


class Asking:
    """The memory of R rows, and the return that each still asks for.

    Parameters
    ----------
    targets : (R,) return of each row over `horizon` decisions; of no effect on a policy that asks for none.
    horizon : decisions after which the targets are asked for anew.
    forget : whether the memory begins anew then too, as it must where a policy knows no later step.
    """

    def __init__(
        self, policy: TeamPolicy, targets: np.ndarray, horizon: int, forget: bool, rng: np.random.Generator
    ) -> None:
        self.policy, self.targets, self.horizon, self.forget, self.rng = policy, targets, horizon, forget, rng
        self.begin()

    def begin(self) -> None:
        """Nothing seen, and the targets still to come."""
        self.memory = self.policy.start(len(self.targets), self.rng)
        asked = np.full(len(self.targets), getattr(self.policy, "target", 0.0))
        self.memory = self.policy.rewarded(self.memory, asked - self.targets)  # what remains is the target of each row
        self.remaining, self.n_decisions = self.targets.copy(), 0

    def act(self, observations: np.ndarray, rewards: np.ndarray) -> np.ndarray:
        """Actions (R,) for observations (R, O), after the rewards (R,) of the actions before."""
        if self.n_decisions > 0:
            self._receive(rewards)
        if self.n_decisions == self.horizon:
            self._renew()
        actions, self.memory = self.policy.act(observations[:, None], self.memory, self.rng)
        self.n_decisions += 1
        return actions[:, 0]

    def _receive(self, rewards: np.ndarray) -> None:
        self.memory, self.remaining = self.policy.rewarded(self.memory, rewards), self.remaining - rewards

    def _renew(self) -> None:
        if self.forget:
            self.begin()
        else:
            self._receive(self.remaining - self.targets)
            self.n_decisions = 0


def play_stations(
    policy: TeamPolicy,
    scenario: Scenario,
    targets: Sequence[float],
    *,
    horizon: int,
    n_decisions: int,
    seed: int,
    rng: np.random.Generator,
    warmup_decisions: int = 0,
    forget: bool = False,
    progress: bool = False,
) -> list[Metrics]:
    """One channel for each target, all its stations under `policy`; what was measured after the warm-up.

    Parameters
    ----------
    policy : of one agent, with observations of 8 numbers; each station remembers by itself.
    scenario : how many stations, and the channel; whatever rule it names, the policy decides.
    targets : return that the stations of a channel ask for, each over `horizon` of its decisions.
    n_decisions : of each station, those of the warm-up included. How many slots they take is the policy's doing: from
        one each on a channel where nobody sends to 124 where somebody always does.
    seed : of the channels; the k-th is replication k. The policy's own draws are from `rng`.
    forget : see `Asking`.

    Raises
    ------
    ValueError
        If a station is not saturated or defers, or another delay term than "share" is rewarded.
    """
    from tqdm.auto import tqdm

    _check(scenario)
    check_count("horizon", horizon, 1)
    check_count("n_decisions", n_decisions, 1 + check_count("warmup_decisions", warmup_decisions), 10**9)
    n = scenario.n_stations
    asked = scenario.with_policies({k: Outside() for k in range(n)})
    channels = [AskedChannel(asked, seed, k, n_decisions) for k in range(len(targets))]
    asking = Asking(policy, np.repeat(np.asarray(targets, float), n), horizon, forget, rng)
    with one_thread():
        for decision in tqdm(range(n_decisions), unit="decision", disable=not progress, leave=False):
            for channel in channels:
                channel.go_on()
                if decision == warmup_decisions:
                    channel.open_window()
            observations, rewards = (
                np.concatenate(x) for x in zip(*((c.observations, c.rewards) for c in channels), strict=True)
            )
            actions = asking.act(observations, rewards).reshape(-1, n)
            for channel, own in zip(channels, actions, strict=True):
                channel.answer(own)
    for channel in channels:
        channel.go_on()
    return [channel.metrics() for channel in channels]


def _check(scenario: Scenario) -> None:
    saturated = all(scenario.station_traffic(k) == Saturated() for k in range(scenario.n_stations))
    deferring = scenario.eifs_extra_slots or any(s.aifs_slots != scenario.difs_slots for s in scenario.stations)
    if not saturated or deferring or scenario.delay_term != "share":
        raise ValueError(
            "scenario must have saturated stations that all decide together (aifs_slots = difs_slots, no EIFS) and "
            f'delay_term="share"; got {scenario.traffic}, delay_term={scenario.delay_term!r}, '
            f"eifs_extra_slots={scenario.eifs_extra_slots}"
        )
