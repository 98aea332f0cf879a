"""Public offline data of MADT, StarCraft's battles as lists of lists, as trajectories.

Letters: E episodes, T steps of the longest, N agents, O observation, A actions, S state. `episode_seeds` is the
episode's place among the files, which know no seed.
"""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedmorl.data.dataset import DatasetError
from fedmorl.data.foreign_files import (
    check_shapes,
    check_time_limit,
    converted_from,
    flags,
    folder_of,
    one_state,
    refusals_of,
    step_ends,
)
from fedmorl.data.trajectories import Trajectories

# MADT's entries of one step of one agent, in this order
MADT = {"state": "TNS", "observation": "TNO", "action": "TN1", "reward": "TN1", "done": "TN1", "available": "TNA"}
SEEN = ("state", "observation", "available")  # what there is once more at the end, when nothing is done any longer


def from_madt(
    folder: Path | str,
    *,
    time_limit: int,
    env_id: str,
    env_version: str,
    reward_def: str = "team",
    env_kwargs: Mapping[str, Any] | None = None,
    behaviour: str | None = None,
) -> Trajectories:
    """MADT's folder of StarCraft: one file of `torch.save` an episode, in the order of their names.

    A file holds lists only: `episode[agent][t]` is [state, observation, action, reward, done, available], and a value
    that is not taken over. It is read by `torch.load(weights_only=True)`, which runs nothing that it finds there.

    What the last step led to is not in the file. An episode shorter than `time_limit` is terminated, and its final
    observation, state and choice repeat the last ones: no value is taken there, but a world model must not learn it.
    An episode as long as the limit is truncated, and a value would be taken there; so it gives up its last step,
    whose reward is lost, and ends with an observation that was seen.

    Parameters
    ----------
    folder : where the files are; names that begin with a dot are passed over.
    time_limit : steps after which the environment cut an episode. The files mark such an end like the battle's.
    env_id, env_version, env_kwargs, reward_def : the task and the unit of reward, which the files do not tell.
    behaviour : who acted; None: the folder's name.

    Returns
    -------
    Trajectories
        States as in `fedmorl.data.formats_continuous.from_omiga`: "shared" or "joined".

    Raises
    ------
    DatasetError
        Naming the file: one that needs more than lists and numbers, agents with unequally many steps (those behind a
        death were cut, and cannot be completed from what is left), rewards that differ between agents, a last
        step that is not done, other sizes than the first file's.
    """
    folder = folder_of(folder)
    check_time_limit(time_limit)
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    if not files:
        raise DatasetError(f"{folder}: there is no file of an episode in it")
    episodes: list[dict[str, np.ndarray]] = []
    known: dict[str, int] = {}
    for path in files:
        with refusals_of(path):
            episodes.append(_madt_steps(_unpickled_safely(path), known))
    with refusals_of(folder):
        lengths = np.array([len(one["reward"]) for one in episodes])
        ended = lengths != time_limit
        lengths[~ended] -= 1
        joined = {
            name: _padded([one[name] for one in episodes], lengths, name in SEEN) for name in MADT if name != "done"
        }
        states, kind = one_state(joined["state"])
        return Trajectories(
            **step_ends(lengths, ended),
            observations=joined["observation"],
            actions=joined["action"].astype(np.int64),
            rewards=joined["reward"],
            available=joined["available"] != 0,
            states=states,
            env_id=env_id,
            env_version=env_version,
            env_kwargs=dict(env_kwargs or {}),
            n_actions=joined["available"].shape[-1],
            reward_def=reward_def,
            time_limit=time_limit,
            behaviours=(converted_from("madt", folder.resolve().name, behaviour) | {"states": kind},),
        )


def _unpickled_safely(path: Path) -> Any:
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        needs = re.search(r"GLOBAL (\S+)", str(error))
        what = f"needs {needs[1]}, which is" if needs else "holds more than lists and numbers, or is damaged; that is"
        raise DatasetError(f"the file {what} not unpickled; save the episode again as plain lists") from None
    except Exception:  # anything at all, where the file is damaged or another
        raise DatasetError("this is no file of torch.save, or a damaged one") from None


def _madt_steps(episode: Any, known: dict[str, int]) -> dict[str, np.ndarray]:
    """The lists of one episode as arrays (T, N, ...), checked; `known` keeps the sizes of the first one."""
    try:
        steps = [len(agent) for agent in episode]
        widths = {len(step) for agent in episode for step in agent}
    except TypeError:
        raise DatasetError("an episode must be a list of agents, each a list of steps, each a list") from None
    if len(set(steps)) > 1:
        raise DatasetError(
            f"agents have {steps} steps; those behind a death were cut, and cannot be completed from what is left"
        )
    if not widths or not widths <= {6, 7}:
        raise DatasetError(f"a step must be [{', '.join(MADT)}] and perhaps a value; got {sorted(widths)} entries")
    found = {}
    for k, name in enumerate(MADT):
        try:
            rows = np.array([[step[k] for step in agent] for agent in episode], np.float32).swapaxes(0, 1)
        except (TypeError, ValueError):  # numpy's words for what is no number, and for rows of unequal width
            raise DatasetError(f"{name} must hold equally many numbers at each step of each agent") from None
        found[name] = rows[..., None] if name == "done" and rows.ndim == 2 else rows
    known |= {letter: size for letter, size in check_shapes(found, MADT, known).items() if letter != "T"}
    if (found["action"] % 1 != 0).any():
        raise DatasetError("action must be an index, a whole number")
    if not flags(found["done"], "done")[-1].all():
        raise DatasetError("done must be 1 for all agents at the last step; the episode is not whole")
    if (found["reward"] != found["reward"][:, :1]).any():
        raise DatasetError("reward differs between agents; a team has one")
    return found | {"action": found["action"][..., 0], "reward": found["reward"][:, 0, 0]}


def _padded(parts: list[np.ndarray], lengths: np.ndarray, seen: bool) -> np.ndarray:
    """(E, T, ...) from E arrays (T_e, ...), zeros behind `lengths`; `seen`: one row more, if need be the last again."""
    joined = np.zeros((len(parts), lengths.max() + seen, *parts[0].shape[1:]), np.float32)
    for e, (part, length) in enumerate(zip(parts, lengths, strict=True)):
        rows = np.arange(length + seen)
        joined[e, : len(rows)] = part[np.minimum(rows, len(part) - 1)]
    return joined
