"""Offline data of MuJoCo's bodies, graded: policies of one training run at play, and the training itself.

Letters: B episodes side by side, T steps of the longest, N agents, A joints of each.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from fedmorl.data.collect_joint import collect_episodes
from fedmorl.data.joint_transitions import JointTransitions, concatenate_joint
from fedmorl.tasks.mujoco import FULL, MultiAgentMuJoCo, check_form, check_scenario
from fedmorl.tasks.mujoco_training import (
    EPISODES_PER_SEED,
    FIRST_EPISODE,
    MAX_SEED,
    Checkpoint,
    Rollouts,
    Run,
    TrainedTeam,
)

REPLAY, MEDIUM, EXPERT, MIXED = "medium-replay", "medium", "expert", "mixed"
GRADES = (REPLAY, MEDIUM, EXPERT, MIXED)
SIDE_BY_SIDE = 8  # episodes; more would only be played in vain at the end


def collect_mujoco(
    scenario: str,
    run: Run,
    n_transitions: int,
    *,
    grade: str = EXPERT,
    agent_obsk: str | int = FULL,
    seed: int = 0,
    noise: float = 0.0,
    progress: bool = True,
) -> JointTransitions:
    """Let policies of a training run play, or play its training again, and log every step.

    Parameters
    ----------
    scenario : that of the run.
    run : what `fedmorl.tasks.mujoco_training.train` gave, or `Run.load`.
    n_transitions : whole episodes are logged until there are so many; "mixed" has half of them from each policy.
    grade : "expert", the checkpoint with the largest return; "medium", the one on the way there that is closest to
        half of that; "mixed", both, which OMIGA's data call medium-expert; "medium-replay", episodes of the training up
        to the medium checkpoint, at random, all of them if there are fewer.
    agent_obsk : what an agent sees, "full", 0 or 1.
    seed : from 0 to 999, of where episodes begin and of all draws; the same seed gives the same data.
    noise : standard deviation of a normal disturbance of each action, beside that of the policy's own; the sum is
        clipped, and what is logged is what was done. None in "medium-replay".
    progress : show a bar of transitions.

    Returns
    -------
    JointTransitions
        Whose behaviour says the checkpoint, what it earned in an evaluation, and the noise.
    """
    check_arguments(scenario, n_transitions, grade=grade, agent_obsk=agent_obsk, seed=seed, noise=noise)
    if run.scenario != scenario:
        raise ValueError(
            f"scenario is {scenario} and the run in {run.folder} is of {run.scenario}; train one of its own"
        )
    task = MultiAgentMuJoCo(scenario, agent_obsk, SIDE_BY_SIDE, run.time_limit)
    if run.version != task.env_version:
        raise ValueError(
            f"the run in {run.folder} is of the bodies {run.version} and here are {task.env_version}; train again"
        )
    medium, expert = medium_and_expert(run)
    with tqdm(total=n_transitions, desc=f"{task.env_id} {grade}", unit="transition", disable=not progress) as bar:
        if grade == REPLAY:
            return _played_again(task, run, medium, n_transitions, seed, bar)
        if grade != MIXED:
            return _played(task, run, {MEDIUM: medium, EXPERT: expert}[grade], grade, n_transitions, seed, noise, bar)
        half = n_transitions - n_transitions // 2
        parts = [
            _played(task, run, medium, MEDIUM, half, seed, noise, bar),
            _played(task, run, expert, EXPERT, n_transitions - half, seed, noise, bar),
        ]
        of_both = [dict(part.behaviour) for part in parts]
        return concatenate_joint(parts, {"name": "PPO/medium-expert", "behaviours": of_both})


def check_arguments(
    scenario: str, n_transitions: int, *, grade: str, agent_obsk: str | int, seed: int, noise: float
) -> None:
    """ValueError, one sentence, of what `collect_mujoco` would refuse, before anything is trained for it."""
    check_scenario(scenario)
    check_form(agent_obsk)
    if grade not in GRADES:
        raise ValueError(f"grade must be one of {', '.join(GRADES)}; got {grade!r}")
    least = 2 if grade == MIXED else 1
    for name, value, low, high in (("n_transitions", n_transitions, least, 10**8), ("seed", seed, 0, MAX_SEED)):
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"{name} must be an integer from {low} to {high}; got {value!r}")
    if not (np.isfinite(noise) and noise >= 0):
        raise ValueError(f"noise must be finite and >= 0; got {noise!r}")
    if grade == REPLAY and noise > 0:
        raise ValueError(f"noise must be 0 in {REPLAY}: what was done in training is played again; got {noise!r}")


def medium_and_expert(run: Run) -> tuple[Checkpoint, Checkpoint]:
    """The checkpoint with the largest return, and the one on the way there that is closest to half of it.

    The way ends with the first that reaches half: later ones may have fallen back to it, after better ones.
    """
    expert = max(run.checkpoints, key=lambda one: one.mean_return)
    before = [one for one in run.checkpoints if one.step < expert.step]
    if not before or expert.mean_return <= 0:
        raise ValueError(
            f"the run in {run.folder} has no checkpoint below its best, of return {expert.mean_return:.0f} at step "
            f"{expert.step}, to be called medium; train for longer"
        )
    half = expert.mean_return / 2
    reached = next((one.step for one in before if one.mean_return >= half), expert.step)
    on_the_way = [one for one in before if one.step <= reached]
    return min(on_the_way, key=lambda one: abs(one.mean_return - half)), expert


class DoneBefore:
    """Does again what was done in episodes side by side, and nothing once one of them is over."""

    def __init__(self, episodes: Sequence[np.ndarray], joints: np.ndarray, time_limit: int) -> None:
        self.actions = np.zeros((len(episodes), time_limit, *joints.shape), np.float32)
        for b, one in enumerate(episodes):
            self.actions[b, : len(one)] = one[:, joints]

    def start(self, batch: int, rng: np.random.Generator) -> int:
        """The step that comes."""
        return 0

    def act(self, observations: np.ndarray, memory: int, rng: np.random.Generator) -> tuple[np.ndarray, int]:
        """Joint actions (B, N, A)."""
        return self.actions[:, memory], memory + 1

    def rewarded(self, memory: int, rewards: np.ndarray) -> int:
        """Rewards are not looked at."""
        return memory


def _played(
    task: MultiAgentMuJoCo, run: Run, by: Checkpoint, grade: str, n_transitions: int, seed: int, noise: float, bar: Any
) -> JointTransitions:
    """Episodes of one checkpoint."""
    team = TrainedTeam(run.actor(by), task.parts, noise)
    behaviour = _behaviour(run, by, grade) | {"noise": noise}
    firsts = range(EPISODES_PER_SEED * seed, EPISODES_PER_SEED * seed + FIRST_EPISODE, SIDE_BY_SIDE)
    parts = (collect_episodes(task, team, np.arange(k, k + SIDE_BY_SIDE), behaviour=behaviour) for k in firsts)
    return _until(parts, n_transitions, behaviour, bar)


def _played_again(
    task: MultiAgentMuJoCo, run: Run, by: Checkpoint, n_transitions: int, seed: int, bar: Any
) -> JointTransitions:
    """Episodes of training that were over before a checkpoint, in an order drawn."""
    if not by.episodes:
        raise ValueError(f"no episode of the run in {run.folder} was over before step {by.step}; train for longer")
    rollouts, order = run.rollouts(), np.random.default_rng(seed).permutation(by.episodes)
    behaviour = _behaviour(run, by, REPLAY)

    def parts() -> Iterator[JointTransitions]:
        for k in range(0, len(order), SIDE_BY_SIDE):
            some = order[k : k + SIDE_BY_SIDE]
            some = some[np.argsort(rollouts.seeds[some])]  # as rows will be
            team = DoneBefore([rollouts.actions_of(e) for e in some], task.parts.joints, run.time_limit)
            part = collect_episodes(task, team, rollouts.seeds[some], behaviour=behaviour)
            _check_played_again(part, rollouts, some, run)
            yield part

    return _until(parts(), n_transitions, behaviour, bar)


def _check_played_again(part: JointTransitions, rollouts: Rollouts, episodes: np.ndarray, run: Run) -> None:
    """ValueError if an episode came out otherwise than in training: MuJoCo on another processor may round otherwise."""
    _, numbers = np.unique(part.episodes, return_inverse=True)
    earned = np.bincount(numbers, weights=part.rewards)
    rounding = 1e-7 * np.bincount(numbers, weights=abs(part.rewards)) + 1e-9  # rewards are kept in float32
    same = (np.bincount(numbers) == rollouts.lengths[episodes]) & (abs(earned - rollouts.returns[episodes]) <= rounding)
    if not same.all():
        b = int(np.argmin(same))
        raise ValueError(
            f"the run in {run.folder} does not play again as it was: the episode of seed "
            f"{rollouts.seeds[episodes[b]]} earned {rollouts.returns[episodes[b]]:.6g} and earns {earned[b]:.6g}; "
            "train it on this machine"
        )


def _until(
    parts: Iterable[JointTransitions], n_transitions: int, behaviour: dict[str, Any], bar: Any
) -> JointTransitions:
    """The first episodes, whole, that hold so many transitions; all if they are fewer."""
    kept, left = [], n_transitions
    for part in parts:
        _, lengths = np.unique(part.episodes, return_counts=True)  # rows are sorted by episode
        before = np.cumsum(lengths) - lengths
        kept.append(part.take(np.repeat(before < left, lengths)))
        left -= len(kept[-1])
        bar.update(len(kept[-1]))
        if left <= 0:
            break
    return concatenate_joint(kept, behaviour)


def _behaviour(run: Run, by: Checkpoint, grade: str) -> dict[str, Any]:
    """Name, which the card looks up, and where the policy is from."""
    return {
        "name": f"PPO/{grade}",
        "algorithm": run.algorithm,
        "training_seed": run.seed,
        "training_step": by.step,
        "checkpoint_return": by.mean_return,
    }
