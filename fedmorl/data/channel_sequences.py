"""Logs of the channel as sequences: what one station saw, did and got, decision after decision.

A sequence is a team of one. Stations that share the channel are separate sequences: what one of them remembers cannot
be told to the others inside a slot of 9 us.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedmorl.data.dataset import OfflineDataset
from fedmorl.data.trajectories import Trajectories

ENV_ID = "dca"
ENV_VERSION = "1"  # the rules of the channel, see the book's page on them
ACTIONS = 2  # defer, transmit; a sequence holds decisions only, where both may be taken
REWARD = "r_glob + {alpha:g} r_local"


def channel_sequences(logs: OfflineDataset, length: int) -> Trajectories:
    """Windows of `length` successive decisions of each station, (E' = episodes x stations x windows).

    Parameters
    ----------
    logs : of any channel; a window lies within one replication, and decisions after the last whole one are left out.
    length : L [decisions]; each window is truncated there, as channel access never ends.

    Returns
    -------
    Trajectories
        One agent. Observations are those of the log and, as a last number, `duration_feature` of the previous decision;
        rewards are r_i = r_glob + alpha r_local. `extras`: `outcomes` (see `fedmorl.dca.logs.OUTCOMES`) and
        `durations` [slots], (E', L).

    Raises
    ------
    ValueError
        If a station has made fewer decisions than a window holds.
    """
    longest = int(logs.mask.sum(1).min())
    if isinstance(length, bool) or not isinstance(length, int | np.integer) or not 1 <= length <= longest:
        raise ValueError(
            f"length must be an integer from 1 to {longest}, the fewest decisions of a station in the log; got {length}"
        )
    parts = [
        _windows(logs, episode, station, length)
        for episode in range(logs.mask.shape[0])
        for station in range(logs.n_stations)
    ]
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    extras = {name: arrays.pop(name) for name in ("outcomes", "durations")}
    truncated = np.broadcast_to(np.arange(length) == length - 1, arrays["rewards"].shape)
    return Trajectories(
        **arrays,
        terminated=np.zeros_like(truncated),
        truncated=truncated,
        lengths=np.full(len(truncated), length),
        episode_seeds=np.arange(len(truncated)),
        behaviour_ids=np.zeros(len(truncated), int),
        env_id=ENV_ID,
        env_version=ENV_VERSION,
        env_kwargs=dict(logs.scenario),
        n_actions=ACTIONS,
        reward_def=REWARD.format(alpha=logs.alpha),
        time_limit=int(length),
        behaviours=({"stations": _names(logs)},),
        extras=extras,
    )


def with_duration(observations: np.ndarray, durations: np.ndarray, busy_slots: int) -> np.ndarray:
    """Observations (..., O) of the log as a sequence policy sees them, (..., O + 1)."""
    feature = duration_feature(durations, busy_slots)
    return np.concatenate([observations, feature[..., None]], axis=-1, dtype=np.float32)


def duration_feature(durations: np.ndarray, busy_slots: int) -> np.ndarray:
    """ln(1 + d) / ln(1 + 124) of the slots d that a station's previous decision took; 0 before the first.

    `busy_slots` is the length of a busy period with its DIFS, 124 by default: 1 after a busy period, .14 after an idle
    slot.
    """
    return (np.log1p(durations) / np.log1p(busy_slots)).astype(np.float32)


def busy_slots(scenario: Mapping[str, Any]) -> int:
    """Slots from the start of a success to the next contention slot, of a scenario as plain values."""
    return int(scenario["tx_slots"] + scenario["difs_slots"])


def _windows(logs: OfflineDataset, episode: int, station: int, length: int) -> dict[str, np.ndarray]:
    """The windows of one station in one episode, (W, L, ...)."""
    own = logs.mask[episode, :, station]

    def decided(array: np.ndarray) -> np.ndarray:
        return array[episode, own, station]

    n_kept = int(own.sum()) // length * length
    durations = decided(logs.durations)
    seen = with_duration(
        np.concatenate([decided(logs.observations), decided(logs.next_observations)[-1:]]),
        np.concatenate([[0], durations]),
        busy_slots(logs.scenario),
    )  # (decisions + 1, O + 1)
    starts = np.arange(0, n_kept, length)
    rows = starts[:, None] + np.arange(length + 1)
    per_step = {"actions": logs.actions, "rewards": logs.rewards, "outcomes": logs.extras["outcomes"]}
    cut = {name: decided(array)[rows[:, :-1]] for name, array in per_step.items()}
    cut["actions"] = cut["actions"][..., None]
    return cut | {"durations": durations[rows[:, :-1]], "observations": seen[rows][:, :, None]}


def _names(logs: OfflineDataset) -> Sequence[str]:
    """What the logged stations are called."""
    return sorted({logs.scenario["stations"][k]["name"] for k in logs.stations})
