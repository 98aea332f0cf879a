"""Whether a joint world model knows what a contention slot leads to, and what would have come of other actions.

Letters: T contention slots, N stations. Numbers of a station in a state are `fedmorl.data.dca_joint.STATE`, and a ninth
where back-off counters are told.
"""

from dataclasses import replace
from math import comb

import numpy as np

from fedmorl.data.dca_joint import STATE
from fedmorl.data.joint_transitions import JointTransitions
from fedmorl.world_models.joint_rollouts import Predicts

IDLE, SUCCESS, COLLISION, ACK = range(4)


def outcomes(numbers: np.ndarray, n_stations: int) -> np.ndarray:
    """States (T, S), or observations (T, N, 7), logged or predicted -> the likeliest outcome, (T, N)."""
    return numbers.reshape(len(numbers), n_stations, -1)[..., :4].argmax(-1)


def accuracy(predicted: np.ndarray, logged: np.ndarray, n_stations: int) -> float:
    """Share of stations and slots whose outcome is foreseen."""
    return float((outcomes(predicted, n_stations) == outcomes(logged, n_stations)).mean())


def foreseen(model: Predicts, log: JointTransitions, train: JointTransitions) -> dict[str, float]:
    """How one step of a log is predicted.

    Returns
    -------
    dict
        `state_error` and `reward_error`, mean squares in standard deviations of `train`, of numbers that vary there;
        counters do not count. `outcome_in_state` and `outcome_observed`, shares of stations and slots whose outcome
        the predicted state, and what the station itself is predicted to observe, have right; NaN for a model that
        predicts no observations.
    """
    found = model.predict(log.states, log.observations, log.actions)
    n, seen = log.n_agents, found.next_observations
    sd = train.states.std(0, dtype=np.float64).reshape(n, -1)[:, : len(STATE)]
    off = (found.next_states - log.next_states).reshape(len(log), n, -1)[..., : len(STATE)]
    vary = sd > 1e-6
    return {
        "state_error": float(((off[:, vary] / sd[vary]) ** 2).mean()),
        "reward_error": float((((found.rewards - log.rewards) / train.rewards.std()) ** 2).mean()),
        "outcome_in_state": accuracy(found.next_states, log.next_states, n),
        "outcome_observed": float("nan") if seen is None else accuracy(seen, log.next_observations, n),
    }


def own_action_accuracy(tx_prob: float, n_stations: int) -> float:
    """The most that can be foreseen of p-persistent stations by who knows a station's own action alone.

    With M = N - 1 others, q0 = (1 - p)^M and q1 = M p (1 - p)^(M - 1):
    (1 - p) max(q0, q1, 1 - q0 - q1) + p max(q0, 1 - q0). Ours.
    """
    others = n_stations - 1
    none, one = (comb(others, k) * tx_prob**k * (1 - tx_prob) ** (others - k) for k in (0, 1))
    return (1 - tx_prob) * max(none, one, 1 - none - one) + tx_prob * max(none, 1 - none)


def had_they(log: JointTransitions, sends: np.ndarray) -> JointTransitions:
    """The log's situations with other joint actions, and what these lead to by the rules of the channel.

    For saturated stations with a `global` D2LT that lose no packet. `sends` (T, N) bool. Counters, where the state has
    them, stay what they were.
    """
    n, scenario = log.n_agents, log.env_kwargs
    before = log.states.reshape(len(log), n, -1).astype(np.float64)
    outcome = _outcome(sends)
    failure = scenario["tx_slots"] if scenario["collision_slots"] is None else scenario["collision_slots"]
    busy = np.where(sends.sum(1) == 1, scenario["tx_slots"], failure) + scenario["difs_slots"]
    duration = np.where(sends.any(1), busy, 1)[:, None]
    delay = np.where(outcome == ACK, scenario["difs_slots"], np.expm1(before[..., 5]) + duration)
    after = log.next_states.reshape(before.shape).copy()
    after[..., :4], after[..., 4], after[..., 5] = np.eye(4)[outcome], sends, np.log1p(delay)
    seen = log.next_observations.copy()
    seen[..., :4], seen[..., 4] = np.eye(4)[outcome], sends
    seen[..., 5] = delay / delay.sum(1, keepdims=True)
    return replace(
        log,
        actions=np.eye(2)[sends.astype(int)],
        rewards=np.where(sends.sum(1) == 1, 1.0, -1.0 * sends.any(1)),
        next_states=after.reshape(len(log), -1),
        next_observations=seen,
    )


def _outcome(sends: np.ndarray) -> np.ndarray:
    """(T, N) of joint actions (T, N)."""
    count = sends.sum(1, keepdims=True)
    return np.where(count == 0, IDLE, np.where(count > 1, COLLISION, np.where(sends, ACK, SUCCESS)))
