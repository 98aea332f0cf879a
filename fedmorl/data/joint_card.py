"""Joint transitions described from their own numbers; nothing in it is typed by hand but what others published."""

import json
import re

import numpy as np

from fedmorl.data.joint_transitions import ARRAYS, JointTransitions

DECIMALS = 4  # of state and action, before equal ones are counted
# OMIGA's data of MaMuJoCo v2 by scenario, partition and quality: mean return, its sd, the largest (None: not told),
# episodes; from OG-MARL's dataset cards. A quality whose name ends like another's stands before it.
PUBLISHED = {
    ("Hopper", "3x1", "medium-replay"): (746, 672, 2801, 4160),
    ("Hopper", "3x1", "medium-expert"): (1191, 973, None, 5481),
    ("Hopper", "3x1", "medium"): (724, 212, 2776, 4000),
    ("Hopper", "3x1", "expert"): (2452, 1098, 3763, 1481),
    ("Ant", "2x4", "medium-replay"): (1030, 141, 1517, 1750),
    ("Ant", "2x4", "medium-expert"): (1737, 320, None, 2000),
    ("Ant", "2x4", "medium"): (1419, 37, 1474, 1000),
    ("Ant", "2x4", "expert"): (2055, 22, 2124, 1000),
    ("HalfCheetah", "6x1", "medium-replay"): (656, 590, 2133, 1000),
    ("HalfCheetah", "6x1", "medium-expert"): (2105, 1073, None, 2000),
    ("HalfCheetah", "6x1", "medium"): (1426, 520, 2114, 1000),
    ("HalfCheetah", "6x1", "expert"): (2785, 1053, 3866, 1000),
}


def card(log: JointTransitions, name: str = "") -> str:
    """The card of joint transitions, as text of one fact a line; `name` is the file's, if it has one."""
    t, n, o = log.observations.shape
    returns, steps, ended = episode_returns(log), _of_episodes(log, np.ones(t)), _of_episodes(log, log.terminated)
    what = "one-hot choices" if log.discrete else "numbers"
    parts = [
        *([("name", name)] if name else []),
        ("content", log.content_hash),
        ("task", f"{log.env_id}, version {log.env_version}, {json.dumps(dict(log.env_kwargs), sort_keys=True)}"),
        ("reward", log.reward_def),
        ("behaviour", json.dumps(dict(log.behaviour))),
        ("shape", f"{n} agents x {o} observations (of their own {_list(log.widths or ())}), "
            f"{log.actions.shape[2]} {what} an action, {log.states.shape[1]} a state"),
        ("transitions", f"{t} in {len(returns)} episodes; {_spread(steps)} steps an episode"),
        ("ends", f"{(ended > 0).mean():.1%} of the episodes terminated"),
        ("return", _spread(returns)),
        *_published(log, returns),
        ("SACo", f"{saco(log):.3f} different pairs of state and joint action a transition"),
        *_actions(log),
    ]  # fmt: skip
    lines = [f"{name:<16} {text}" for name, text in parts]
    arrays = [f"  {name:<26} {a.dtype.str} {a.shape}  {ARRAYS[name][1]}" for name, a in log.arrays().items()]
    return "\n".join([*lines, "arrays", *arrays])


def episode_returns(log: JointTransitions) -> np.ndarray:
    """(E,) undiscounted sum of rewards of each episode, in the order of their numbers."""
    return _of_episodes(log, log.rewards)


def saco(log: JointTransitions) -> float:
    """Share of different (state, joint action) pairs among the transitions, rounded to four decimals.

    Near 1 nothing is there twice; 1/k where k copies are.

    Source: the SACo measure of offline multi-agent data sets (OG-MARL's dataset cards).
    """
    rows = np.concatenate([log.states, log.actions.reshape(len(log), -1)], 1)
    return len(np.unique(np.round(rows, DECIMALS), axis=0)) / len(log)


def _of_episodes(log: JointTransitions, values: np.ndarray) -> np.ndarray:
    _, numbers = np.unique(log.episodes, return_inverse=True)
    return np.bincount(numbers, weights=values)


def _actions(log: JointTransitions) -> list[tuple[str, str]]:
    """Mean and spread of what each agent does; the mean of one-hot choices is how often each is taken."""
    rows = []
    for i in range(log.n_agents):
        mean, sd = log.actions[:, i].mean(0, dtype=float), log.actions[:, i].std(0, dtype=float)
        if log.discrete:
            entropy = (mean * np.log(1 / np.where(mean > 0, mean, 1.0))).sum()
            rows.append((f"actions of {i}", f"{_list(mean)}; entropy {entropy:.3f} of {np.log(len(mean)):.3f} nats"))
        else:
            rows.append((f"actions of {i}", f"mean {_list(mean)}; sd {_list(sd)}"))
    return rows


def _published(log: JointTransitions, returns: np.ndarray) -> list[tuple[str, str]]:
    """Where the mean return lies against OMIGA's data of the same scenario, partition and quality."""
    words = re.split(r"[^A-Za-z0-9]+", log.env_id)
    quality = str(log.behaviour.get("name", "")).lower().replace("_", "-")
    for (scenario, partition, one), (mean, sd, most, episodes) in PUBLISHED.items():
        if scenario in words and partition in words and quality.endswith(one):
            largest = "" if most is None else f", up to {most}"
            told = f"{mean} (sd {sd}{largest}), {episodes} episodes of OMIGA's data, MuJoCo v2"
            return [("published", f"{told}; the mean here is {returns.mean() - mean:+.0f} from it")]
    return []


def _spread(values: np.ndarray) -> str:
    return f"{values.mean():.4g} (sd {values.std():.3g}, {values.min():.4g} to {values.max():.4g})"


def _list(values: np.ndarray | tuple[int, ...]) -> str:
    return " ".join(f"{x:.3f}" if isinstance(x, float) else str(x) for x in values)
