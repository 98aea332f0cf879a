"""Public offline data with continuous actions, of MuJoCo and particle worlds, as joint transitions.

Letters: T rows, N agents, O observation, A action, S state. Both formats keep rows, not episodes; each converter says
how episodes are found in them. Nothing is guessed: what a file does not tell is an argument without a default.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedmorl.data.dataset import DatasetError
from fedmorl.data.foreign_files import (
    check_shapes,
    check_time_limit,
    column,
    converted_from,
    flags,
    folder_of,
    hdf5_arrays,
    npy_array,
    one_state,
    refusals_of,
)
from fedmorl.data.joint_transitions import JointTransitions

CONVENTIONS = ("omiga", "standard")
# file of an agent -> shape; the last two in MuJoCo only
OMAR = {"obs": "TO", "next_obs": "TO", "acs": "TA", "rews": "T", "dones": "T", "states": "TS", "next_states": "TS"}


def from_omiga(
    path: Path | str,
    *,
    convention: str,
    env_id: str,
    env_version: str,
    time_limit: int | None = None,
    reward_def: str = "team",
    env_kwargs: Mapping[str, Any] | None = None,
    behaviour: str | None = None,
) -> JointTransitions:
    """OMIGA's file of MaMuJoCo, one HDF5 with rows of all episodes in order.

    It holds `s` (T, N, S), `o` (T, N, O), `a` (T, N, A) from -1 to 1, `r` (T, 1) and `d` (T, 1); a row with d = 1 is
    the last of its episode, and the rows behind the last one are an episode that was cut.

    Parameters
    ----------
    path : the file.
    convention : what a row with d = 1 is.
        "omiga": the state after the end. Row t with d[t] = 0 leads to row t + 1 and is terminal if d[t + 1] = 1; the
        row with d = 1 is never a transition, and its reward is lost. This is how the method's own code reads it.
        "standard": the last transition. What it led to is not in the file, so that `next_states` and
        `next_observations` repeat the row's own: a value is never taken there, but a world model must not learn it.
    env_id, env_version, env_kwargs, reward_def : the task and the unit of reward, which the file does not tell.
    time_limit : rows of an episode that the limit ended. Its end is then not terminal; as "standard" its last row,
        whose outcome is not in the file, is left out. None: every d = 1 is the task's end, as published.
    behaviour : who acted; None: the file's name without its suffix.

    Returns
    -------
    JointTransitions
        The state is the first agent's where the states of all agents are equal in every row, else all of them joined
        (N S numbers); `behaviour["states"]` says "shared" or "joined".

    Raises
    ------
    DatasetError
        Naming file and field: an array missing or of another shape, d without any 1, an unknown convention, an
        episode longer than `time_limit`.
    """
    path = Path(path)
    with refusals_of(path):
        if convention not in CONVENTIONS:
            raise DatasetError(f"convention must be 'omiga' or 'standard', and cannot be guessed; got {convention!r}")
        found = hdf5_arrays(path, "soard")
        found |= {name: column(found[name], name) for name in "rd"}
        check_shapes(found, {"o": "TNO", "s": "TNS", "a": "TNA", "r": "T", "d": "T"})
        done = flags(found["d"], "d")
        if not done.any():
            raise DatasetError("d is never 1, so the ends of episodes are not in the file")
        episodes = np.concatenate([[0], done.cumsum()[:-1]])
        by_limit = _ended_by_limit(episodes, time_limit)
        if convention == "omiga":
            rows = np.flatnonzero(~done[:-1])
            after = rows + 1
            terminated = done[after] & ~by_limit[rows]
        else:
            has_next = ~done & (np.arange(len(done)) < len(done) - 1)
            rows = np.flatnonzero(has_next | (done & ~by_limit))
            terminated = done[rows]
            after = np.where(terminated, rows, rows + 1)
        if not len(rows):
            raise DatasetError(f"d leaves no transition by the convention {convention!r}")
        states, kind = one_state(found["s"])
        return JointTransitions(
            states=states[rows],
            observations=found["o"][rows],
            actions=found["a"][rows],
            rewards=found["r"][rows],
            next_states=states[after],
            next_observations=found["o"][after],
            terminated=terminated,
            episodes=episodes[rows],
            discrete=False,
            env_id=env_id,
            env_version=env_version,
            env_kwargs=dict(env_kwargs or {}),
            reward_def=reward_def,
            behaviour=converted_from("omiga", path.stem, behaviour)
            | {"convention": convention, "time_limit": time_limit, "states": kind},
        )


def from_omar(
    folder: Path | str,
    *,
    time_limit: int,
    env_id: str,
    env_version: str,
    reward_def: str = "team",
    env_kwargs: Mapping[str, Any] | None = None,
    behaviour: str | None = None,
) -> JointTransitions:
    """OMAR's folder `seed_K_data` of particle worlds or MuJoCo: .npy files of transitions, five an agent i.

    `obs_i` (T, O), `acs_i` (T, A) from -1 to 1, `rews_i` (T,), `next_obs_i` (T, O) and `dones_i` (T,); in MuJoCo also
    `states_i` and `next_states_i` (T, S). Agents may see different numbers; the rest of their row is 0.

    Parameters
    ----------
    folder : where obs_0.npy is.
    time_limit : steps of an episode that the limit ended, 25 in particle worlds and 1000 in MuJoCo. The files mark
        such an end like the task's own, or not at all, so an episode ends at a done or with its `time_limit`-th row,
        and only a done before that is terminal. Where a row's next observation is not the following row's, as in a
        replay buffer, a new episode begins.
    env_id, env_version, env_kwargs, reward_def : the task and the unit of reward, which the files do not tell.
    behaviour : who acted; None: the names of the folder and of the one above, such as "expert/seed_0_data".

    Returns
    -------
    JointTransitions
        The state as in `from_omiga`; without files of states, all observations joined ("observations").

    Raises
    ------
    DatasetError
        Naming folder and file: one missing, of another length than obs_0, or with rewards or dones that differ
        between agents, which have no one reward or end.
    """
    folder = folder_of(folder)
    with refusals_of(folder):
        check_time_limit(time_limit)
        has_states = (folder / "states_0.npy").exists()
        found = _agents(folder, tuple(OMAR) if has_states else tuple(OMAR)[:5])
        observations, next_observations = _padded(found["obs"]), _padded(found["next_obs"])
        if has_states:  # judged together: both shared, or both joined
            both, kind = one_state(np.concatenate([np.stack(found[name], 1) for name in ("states", "next_states")]))
            states, next_states = np.split(both, 2)
        else:
            kind = "observations"
            states, next_states = (np.concatenate(found[name], 1) for name in ("obs", "next_obs"))
        done = flags(found["dones"][0], "dones_0.npy")
        broken = (next_observations[:-1] != observations[1:]).any((1, 2))
        episodes, steps = _episodes(done | np.append(broken, True), time_limit)
        return JointTransitions(
            states=states,
            observations=observations,
            actions=np.stack(found["acs"], 1),
            rewards=found["rews"][0],
            next_states=next_states,
            next_observations=next_observations,
            terminated=done & (steps < time_limit),
            episodes=episodes,
            discrete=False,
            widths=tuple(array.shape[1] for array in found["obs"]),
            env_id=env_id,
            env_version=env_version,
            env_kwargs=dict(env_kwargs or {}),
            reward_def=reward_def,
            behaviour=converted_from("omar", "/".join(folder.resolve().parts[-2:]), behaviour)
            | {"time_limit": time_limit, "states": kind},
        )


def _ended_by_limit(episodes: np.ndarray, time_limit: int | None) -> np.ndarray:
    """(T,) bool: the row's episode has as many rows as the limit allows."""
    rows = np.bincount(episodes)
    if time_limit is not None:
        check_time_limit(time_limit)
    if time_limit is not None and rows.max() > time_limit:
        raise DatasetError(f"d gives episode {rows.argmax()} {rows.max()} rows, and time_limit is {time_limit}")
    return (rows == time_limit)[episodes]


def _agents(folder: Path, names: tuple[str, ...]) -> dict[str, list[np.ndarray]]:
    """The arrays of all agents by name: as many rows everywhere, and one reward and one end for the whole team."""
    n_agents = max(len(list(folder.glob("obs_*.npy"))), 1)
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    same: dict[str, int] = {}  # T, A and S of the first agent; O may differ
    for i in range(n_agents):
        own = {f"{name}_{i}.npy": npy_array(folder / f"{name}_{i}.npy") for name in names}
        for name in (f"rews_{i}.npy", f"dones_{i}.npy"):
            own[name] = column(own[name], name)
        sizes = check_shapes(own, {f"{name}_{i}.npy": OMAR[name] for name in names}, same)
        same = {letter: size for letter, size in sizes.items() if letter != "O"}
        for name in names:
            found[name].append(own[f"{name}_{i}.npy"])
    for name in ("rews", "dones"):
        for i, array in enumerate(found[name]):
            if not np.array_equal(array, found[name][0]):
                raise DatasetError(f"{name}_{i}.npy differs from {name}_0.npy; a team has one reward and one end")
    return found


def _padded(parts: list[np.ndarray]) -> np.ndarray:
    """(T, N, O) from N arrays (T, O_i), zeros behind the numbers of an agent that sees fewer."""
    width = max(part.shape[1] for part in parts)
    return np.stack([np.pad(part, [(0, 0), (0, width - part.shape[1])]) for part in parts], 1)


def _episodes(ends: np.ndarray, time_limit: int) -> tuple[np.ndarray, np.ndarray]:
    """(T,) the episode of each row and its step, from 1; an episode has `time_limit` steps at most."""
    starts = np.flatnonzero(np.append(True, ends[:-1]))  # of runs of rows without an end between
    run = np.append(False, ends[:-1]).cumsum()
    step = np.arange(len(ends)) - starts[run]
    return (step % time_limit == 0).cumsum() - 1, step % time_limit + 1
