"""Logs of the channel as joint transitions: all stations at once, from one contention slot to the next.

Letters: T contention slots, N stations, S = 8 N. The state is what the channel knows of every station and no
observation tells: `STATE`, station by station. Back-off counters are left out on purpose. They are not part of the
channel but of a rule, and determine every action under it: a model that is told them looks perfect on the log and is
wrong under any other rule. `with_counters` puts them in, to show that.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from fedmorl.data.channel_sequences import ENV_ID, ENV_VERSION
from fedmorl.data.collect import collect_dca_logs
from fedmorl.data.dataset import DatasetError, OfflineDataset
from fedmorl.data.joint_transitions import JointTransitions
from fedmorl.dca.policy import OBSERVATION, MLPPolicy
from fedmorl.dca.scenario import PRESETS, Scenario, Station

STATE = ("idle", "success", "collision", "ack", "previous_action", "log_d2lt", "buffer", "active")
REWARD_DEF = "+1 a success, -1 a collision"
EPISODE = 200  # contention slots that are kept together when a log is split


class ChannelLog(NamedTuple):
    """T contention slots, one after the other.

    A duration is 1 after an idle slot, 124 after a busy one, and more if nobody had a packet in between.
    """

    transitions: JointTransitions
    durations: np.ndarray  # (T,) [slots] to the next one


def p_persistent(tx_prob: float) -> Station:
    """A station that transmits at each contention slot with probability `tx_prob`, whatever it has heard."""
    if not 0 < tx_prob < 1:
        raise ValueError(f"tx_prob must lie between 0 and 1; got {tx_prob!r}")
    logit = float(np.log(tx_prob) - np.log1p(-tx_prob))
    policy = MLPPolicy([(np.zeros((len(OBSERVATION), 2)), np.array([0.0, logit]))])
    return Station(policy=policy, name=f"p_persistent_{tx_prob:g}")


def collect_dca_joint(
    behaviour: Scenario | Sequence[str | Station], n_transitions: int, seed: int, *, burn_in: int = 1_000
) -> ChannelLog:
    """Play the channel from slot 0 and join the rows of its stations on the contention slot.

    Parameters
    ----------
    behaviour : a scenario, or who contends in a saturated one: names of `fedmorl.dca.scenario.PRESETS` ("csma_ca",
        "ac_vo", "ac_vi", "ac_be", "csma_eca") or stations, such as `p_persistent(0.05)`.
    n_transitions : T.
    burn_in : contention slots before the first one that is kept.

    Returns
    -------
    ChannelLog
        Observations (T, N, 7), zero where a station has no packet; states (T, 8 N); actions one-hot, defer or
        transmit; rewards +1 for a success, -1 for a collision, 0 for an idle slot. Episodes are pieces of 200 slots.

    Raises
    ------
    ValueError
        If stations wait longer than DIFS: what they would do while they wait is not logged.
    """
    scenario = behaviour if isinstance(behaviour, Scenario) else Scenario(stations=[_station(b) for b in behaviour])
    if scenario.eifs_extra_slots or any(s.aifs_slots != scenario.difs_slots for s in scenario.stations):
        raise ValueError(
            "aifs_slots must equal difs_slots, and eifs_extra_slots be 0: a deferring station logs nothing"
        )
    if n_transitions < 1 or burn_in < 0:
        raise ValueError(f"n_transitions must be >= 1 and burn_in >= 0; got {n_transitions} and {burn_in}")
    rows = burn_in + n_transitions + 1
    logs = collect_dca_logs(scenario, rows, seed, warmup_slots=0)
    return _joined(scenario, logs, slice(burn_in, rows), seed)


def with_counters(log: JointTransitions) -> JointTransitions:
    """The same with each station's back-off counter as a ninth number of the state: log(1 + idle slots to come).

    They are known in hindsight, up to the last transmission of the station that sent longest ago; later slots are
    left out. For `countdown="frozen"`.
    """
    sends = log.actions[..., 1] > 0  # (T, N)
    if not sends.any(0).all():
        raise DatasetError(f"actions of station {int(sends.any(0).argmin())} are never to transmit; log more slots")
    idle_before = np.r_[0, np.cumsum(~sends.any(1))]  # (T + 1,) idle slots before each
    n = int((len(log) - 1 - sends[::-1].argmax(0)).min())  # slots that have a sending one after them
    counters = np.log1p([_until_next(sends[:, i], idle_before)[: n + 1] for i in range(log.n_agents)]).T
    kept = log.take(slice(0, n))
    both = ((kept.states, counters[:-1]), (kept.next_states, counters[1:]))
    states, next_states = (_with_column(s, x) for s, x in both)
    return replace(kept, states=states, next_states=next_states)


def _until_next(sends: np.ndarray, idle_before: np.ndarray) -> np.ndarray:
    """(T,) idle slots from each one to the next in which the station sends; meaningless after the last."""
    where = np.flatnonzero(sends)
    following = where[np.minimum(np.searchsorted(where, np.arange(len(sends))), len(where) - 1)]
    return idle_before[following] - idle_before[:-1]


def _with_column(states: np.ndarray, column: np.ndarray) -> np.ndarray:
    t, n = column.shape
    return np.concatenate([states.reshape(t, n, -1), column[..., None]], -1).reshape(t, -1)


def _station(named: str | Station) -> Station:
    if isinstance(named, Station):
        return named
    if named not in PRESETS:
        raise ValueError(f"behaviour must name {', '.join(PRESETS)}, or be stations; got {named!r}")
    return PRESETS[named]


def _joined(scenario: Scenario, logs: OfflineDataset, kept: slice, seed: int) -> ChannelLog:
    """Rows up to `kept.stop` hold every decision: nobody has made as many before."""
    n_rows = kept.stop
    slots, winners = (logs.extras[name][0, :n_rows] for name in ("slots", "winners"))
    actions, mask = logs.actions[0, :n_rows], logs.mask[0, :n_rows]
    states = _states(scenario, slots, winners, actions, mask, logs.observations[0, :n_rows, :, 6])[kept]
    observations = logs.observations[0, kept]
    actions, winners = actions[kept][:-1], winners[kept][:-1]
    sent: np.ndarray = actions.max(1) > 0
    transitions = JointTransitions(
        states=states[:-1].reshape(len(states) - 1, -1),
        observations=observations[:-1],
        actions=np.eye(2)[actions],
        rewards=np.where(winners >= 0, 1.0, -1.0 * sent),
        next_states=states[1:].reshape(len(states) - 1, -1),
        next_observations=observations[1:],
        terminated=np.zeros(len(sent), bool),
        episodes=np.arange(len(sent)) // EPISODE,
        discrete=True,
        env_id=ENV_ID,
        env_version=ENV_VERSION,
        env_kwargs=scenario.to_dict(),
        reward_def=REWARD_DEF,
        behaviour={"stations": [s.name for s in scenario.stations], "seed": seed},
    )
    return ChannelLog(transitions, np.diff(slots[kept]))


def _states(
    scenario: Scenario,
    slots: np.ndarray,
    winners: np.ndarray,
    actions: np.ndarray,
    active: np.ndarray,
    buffers: np.ndarray,
) -> np.ndarray:
    """(T, N, 8) of rows from slot 0 on, where every delay is 0: what each row's slot begins with."""
    t, n = actions.shape
    station = np.arange(n)
    outcome, previous = np.zeros((t, n), int), np.zeros((t, n))
    freed, last = np.zeros((t, n), np.int64), np.zeros(n, np.int64)  # freed: end of each one's last success
    for k in range(1, t):
        n_sent = actions[k - 1].sum()
        busy = (scenario.failure_slots if n_sent > 1 else scenario.tx_slots) + scenario.difs_slots
        if n_sent and slots[k] == slots[k - 1] + busy:  # else an idle slot came after it, in which nobody had a packet
            outcome[k] = np.where(station == winners[k - 1], 3, 1) if winners[k - 1] >= 0 else 2
        previous[k] = np.where(active[k - 1], actions[k - 1], previous[k - 1])
        if winners[k - 1] >= 0:
            last[winners[k - 1]] = slots[k - 1] + scenario.tx_slots
        freed[k] = last
    parts = (np.eye(4)[outcome], previous, np.log1p(slots[:, None] - freed), buffers, active)
    return np.concatenate([x if x.ndim == 3 else x[..., None] for x in parts], -1)
