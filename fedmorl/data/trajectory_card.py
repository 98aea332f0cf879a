"""Trajectories of a team described from their own numbers; nothing in it is typed by hand but what others published."""

import json

import numpy as np

from fedmorl.data.trajectories import ARRAYS, OPTIONAL, Trajectories

DECIMALS = 4  # of state and action, before equal ones are counted
# published data of a task: mean return, its sd, smallest, largest; 1000 episodes each (AlberDICE's cards, rware 1.0.3)
PUBLISHED = {
    ("rware-tiny-2ag-easy-v2", "agent0+shaping"): (12.77, 1.56, 1.97, 16.81),
    ("rware-tiny-4ag-easy-v2", "agent0+shaping"): (15.67, 1.20, 10.40, 18.63),
    ("rware-tiny-6ag-easy-v2", "agent0+shaping"): (17.45, 1.01, 11.88, 19.97),
    ("rware-small-2ag-easy-v2", "agent0+shaping"): (7.12, 2.07, 1.13, 12.37),
    ("rware-small-4ag-easy-v2", "agent0+shaping"): (9.49, 0.84, 3.93, 12.08),
    ("rware-small-6ag-easy-v2", "agent0+shaping"): (10.76, 0.68, 7.59, 12.69),
}


def card(log: Trajectories) -> str:
    """The card of trajectories, as text of one fact a line."""
    e, t, n, o = log.observations[:, 1:].shape
    seeds = log.episode_seeds
    parts = [
        ("content", log.content_hash),
        ("task", f"{log.env_id}, version {log.env_version}, {json.dumps(dict(log.env_kwargs), sort_keys=True)}"),
        ("reward", log.reward_def),
        ("shape", f"{e} episodes x {t} steps x {n} agents x {o} observations, {log.n_actions} actions"),
        ("transitions", f"{log.n_transitions}; {_spread(log.lengths)} steps an episode, limit {log.time_limit}"),
        ("ends", f"{log.terminated.any(1).mean():.1%} terminated, {log.truncated.any(1).mean():.1%} truncated"),
        ("seeds", f"{seeds.min()} to {seeds.max()}, {len(np.unique(seeds))} different"),
        *_behaviours(log),
        *_statistics(log),
    ]
    lines = [f"{name:<16} {text}" for name, text in parts]
    arrays = [f"  {name:<26} {a.dtype.str} {a.shape}  {_unit(name)}" for name, a in log.arrays().items()]
    return "\n".join([*lines, "arrays", *arrays])


def saco(log: Trajectories) -> float:
    """Share of different (state, joint action) pairs among the transitions, rounded to four decimals.

    Without states the joint observation stands in. Near 1 nothing is there twice; 1/k where k copies are.

    Source: the SACo measure of offline multi-agent data sets (OG-MARL's dataset cards).
    """
    seen = log.observations.reshape(*log.observations.shape[:2], -1) if log.states is None else log.states
    rows = np.concatenate([seen[:, :-1][log.mask], log.actions[log.mask]], 1)
    return len(np.unique(np.round(rows, DECIMALS), axis=0)) / log.n_transitions


def action_entropy(log: Trajectories) -> np.ndarray:
    """(N,) entropy of each agent's actions over all transitions [nats]; ln A if all are equally frequent."""
    shares = _action_shares(log)
    return -(shares * np.log(np.where(shares > 0, shares, 1.0))).sum(1)


def _action_shares(log: Trajectories) -> np.ndarray:
    """(N, A): how often each agent takes each action."""
    taken = log.actions[log.mask]  # (transitions, N)
    return np.stack([np.bincount(row, minlength=log.n_actions) for row in taken.T]) / len(taken)


def _behaviours(log: Trajectories) -> list[tuple[str, str]]:
    """Who acted, in how many episodes and with which return."""
    rows = []
    for k, behaviour in enumerate(log.behaviours):
        returns = log.returns[log.behaviour_ids == k]
        told = f"{json.dumps(dict(behaviour))}: {len(returns)} episodes"
        rows.append((f"behaviour {k}", told + (f", return {_spread(returns)}" if len(returns) else "")))
    return rows


def _statistics(log: Trajectories) -> list[tuple[str, str]]:
    deciles = np.percentile(log.returns, range(10, 100, 10))
    played = np.concatenate([log.observations.reshape(len(log), -1), log.actions.reshape(len(log), -1)], 1)
    what = "state" if log.states is not None else "joint observation"
    rows = [
        ("return", _spread(log.returns)),
        ("deciles", " ".join(f"{x:.4g}" for x in deciles)),
        *_published(log),
        ("SACo", f"{saco(log):.3f} different pairs of {what} and joint action a transition"),
        ("episodes", f"{len({row.tobytes() for row in played}) / len(log):.3f} of them different"),
    ]
    for i, (shares, entropy) in enumerate(zip(_action_shares(log), action_entropy(log), strict=True)):
        told = " ".join(f"{x:.3f}" for x in shares)
        rows.append((f"actions of {i}", f"{told}; entropy {entropy:.3f} of {np.log(log.n_actions):.3f} nats"))
    for name, array in log.extras.items():
        sums = array.reshape(len(log), -1).sum(1, dtype=float)
        rows.append((name, f"{_spread(sums)} an episode; largest entry {array.max():.4g}"))
    return rows


def _published(log: Trajectories) -> list[tuple[str, str]]:
    """Where the mean return lies against data of the same task in the same unit that others published."""
    if (log.env_id, log.reward_def) not in PUBLISHED or log.time_limit != 500:
        return []
    mean, sd, least, most = PUBLISHED[log.env_id, log.reward_def]
    away = log.returns.mean() - mean
    told = f"{mean} (sd {sd}, {least} to {most}), expert data of rware 1.0.3"
    return [("published", f"{told}; the mean here is {away:+.2f} from it")]


def _spread(values: np.ndarray) -> str:
    return f"{values.mean():.4g} (sd {values.std():.3g}, {values.min():.4g} to {values.max():.4g})"


def _unit(name: str) -> str:
    return (ARRAYS | OPTIONAL)[name][2] if name in ARRAYS | OPTIONAL else ""
