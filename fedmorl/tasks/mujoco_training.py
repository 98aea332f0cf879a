"""A body learns to run: one run of PPO, of stable-baselines3, with its checkpoints and all that was done in it.

The run moves all joints at once and sees the whole state; dividing the body among agents comes after. A run is a
folder: policies as safetensors, the actions of every episode with the seed that it began from, which is all that it
takes to play it again, and `run.json`, written last. Nothing is pickled.

Letters: B episodes side by side, T steps, E episodes, S state, J joints.
"""

import json
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from torch import nn

from fedmorl.checkpoints import load_into_module, read_config, save_module
from fedmorl.evaluation.team import EVALUATION_SEED, play_team
from fedmorl.nn.mlp import mlp
from fedmorl.provenance import project_root
from fedmorl.tasks.mujoco import (
    FULL,
    SCENARIOS,
    TIME_LIMIT,
    MultiAgentMuJoCo,
    Parts,
    body_version,
    check_scenario,
    make_body,
    package_version,
)

EPISODES_PER_SEED = (
    1_000_000  # training of seed s begins its episodes from the seeds from 1_000_000 s + 500_000 on, ...
)
FIRST_EPISODE = 500_000  # ... data of its policies from those before
MAX_SEED = 999  # so that all stay below fedmorl.evaluation.team.EVALUATION_SEED, 10**9
N_CHECKPOINTS = 25
N_EVALUATED = 10  # episodes of each checkpoint
CLIP = 10.0  # of a normalised state
SCHEMA = "fedmorl-mujoco-run/1"


@dataclass(frozen=True, kw_only=True)
class PPOSettings:
    """Of PPO on one body; names are stable-baselines3's.

    `n_steps` counts the steps of one environment, `hidden` two layers of policy and of value, with ReLU.
    """

    steps: int  # of training, default
    n_envs: int
    n_steps: int
    batch_size: int
    n_epochs: int
    gamma: float
    gae_lambda: float
    learning_rate: float
    clip_range: float
    ent_coef: float
    vf_coef: float
    max_grad_norm: float
    log_std_init: float = -2.0
    hidden: int = 256
    ortho_init: bool = False


# Rates, discounts and clips are those that RL Baselines3 Zoo tuned (MIT; hyperparams/ppo.yml, v3 bodies) for cheetah
# and ant. With its own for the hopper two trainings of ours still stood at a return of 1,000 when they were ended,
# after 690 and 290 thousand steps (the Zoo's issue 376 tells the same), so the hopper has stable-baselines3's defaults,
# but for ReLU.
SETTINGS = {
    "HalfCheetah": PPOSettings(
        steps=500_000, n_envs=4, n_steps=128, batch_size=64, n_epochs=20, gamma=0.98, gae_lambda=0.92,
        learning_rate=2.0633e-5, clip_range=0.1, ent_coef=0.000401762, vf_coef=0.58096, max_grad_norm=0.8,
    ),
    "Hopper": PPOSettings(
        steps=800_000, n_envs=4, n_steps=512, batch_size=64, n_epochs=10, gamma=0.99, gae_lambda=0.95,
        learning_rate=3e-4, clip_range=0.2, ent_coef=0.0, vf_coef=0.5, max_grad_norm=0.5, log_std_init=0.0, hidden=64,
        ortho_init=True,
    ),
    "Ant": PPOSettings(
        steps=2_000_000, n_envs=4, n_steps=128, batch_size=32, n_epochs=10, gamma=0.98, gae_lambda=0.8,
        learning_rate=1.90609e-5, clip_range=0.1, ent_coef=4.9646e-7, vf_coef=0.677239, max_grad_norm=0.6,
    ),
}  # fmt: skip


class Actor(nn.Module):
    """The Gaussian policy that a run learned, of all joints at once, from the whole state."""

    mean: torch.Tensor  # (S,) of the states in training, and
    sd: torch.Tensor  # (S,) their spread

    def __init__(self, state_size: int, n_joints: int, hidden: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(state_size))
        self.register_buffer("sd", torch.ones(state_size))
        self.layers = mlp((state_size, hidden, hidden, n_joints), torch.Generator())
        self.log_sd = nn.Parameter(torch.zeros(n_joints))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """States (B, S) -> mean action (B, J), which may lie outside [-1, 1]."""
        return self.layers(((states - self.mean) / self.sd).clamp(-CLIP, CLIP))

    def act(self, states: np.ndarray, noise: float, rng: np.random.Generator) -> np.ndarray:
        """Actions (B, J), drawn and clipped as PPO does in training; `noise` is a standard deviation added to its own.

        That it clips is part of the behaviour, and what is logged is what was done.
        """
        with torch.no_grad():
            mean = self(torch.as_tensor(states, dtype=torch.float32)).double().numpy()
            sd = self.log_sd.exp().double().numpy()
        return np.clip(mean + np.hypot(sd, noise) * rng.standard_normal(mean.shape), -1, 1)


class TrainedTeam:
    """`Actor` as a team policy: what the agents see is put together to the state, each does its part of the action."""

    def __init__(self, actor: Actor, parts: Parts, noise: float = 0.0) -> None:
        self.actor, self.parts, self.noise = actor, parts, noise

    def start(self, batch: int, rng: np.random.Generator) -> None:
        """It remembers nothing."""

    def act(self, observations: np.ndarray, memory: None, rng: np.random.Generator) -> tuple[np.ndarray, None]:
        """Joint actions (B, N, A)."""
        return self.actor.act(self.parts.states(observations), self.noise, rng)[:, self.parts.joints], None

    def rewarded(self, memory: None, rewards: np.ndarray) -> None:
        """Rewards are not looked at."""


class Checkpoint(NamedTuple):
    """A policy of the run: when, what it earned, how much had been done."""

    step: int
    mean_return: float  # of episodes of an evaluation, played as data are, without noise of ours
    sd_return: float
    episodes: int  # of training, over by then
    seconds: float  # since the run began, evaluations included

    @property
    def name(self) -> str:
        """Of its file."""
        return f"step-{self.step:09d}.safetensors"


class Rollouts(NamedTuple):
    """The episodes of training in the order of their ends; seed and actions are all it takes to play one again."""

    seeds: np.ndarray  # (E,)
    lengths: np.ndarray  # (E,)
    returns: np.ndarray  # (E,)
    actions: np.ndarray  # (T, J) float32, episode after episode

    def actions_of(self, episode: int) -> np.ndarray:
        """(length, J)."""
        first = int(self.lengths[:episode].sum())
        return self.actions[first : first + int(self.lengths[episode])]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training run that came to its end."""

    folder: Path
    scenario: str
    version: str  # of the body and its physics
    algorithm: str
    seed: int
    steps: int
    time_limit: int
    settings: PPOSettings
    checkpoints: tuple[Checkpoint, ...]

    @classmethod
    def load(cls, folder: Path | str) -> "Run":
        """The run that `train` left in a folder; ValueError, one sentence, if there is none or not a whole one."""
        path = Path(folder) / "run.json"
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            if told.pop("schema") != SCHEMA:
                raise KeyError("schema")
            told["settings"] = PPOSettings(**told["settings"])
            told["checkpoints"] = tuple(Checkpoint(**one) for one in told["checkpoints"])
            return cls(folder=Path(folder), **told)
        except FileNotFoundError:
            raise ValueError(f"{folder} holds no finished training run: train one there") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{path} does not describe a training run; train again in another folder") from None

    def actor(self, checkpoint: Checkpoint) -> Actor:
        """The policy of a checkpoint."""
        path = self.folder / checkpoint.name
        config = read_config(path)
        actor = Actor(config["state_size"], config["n_joints"], config["hidden"])
        load_into_module(path, actor)
        return actor

    def rollouts(self) -> Rollouts:
        """All that was done in training, but for the episodes that its end cut."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        path = self.folder / "rollouts.safetensors"
        try:
            return Rollouts(**load_file(path))
        except (SafetensorError, TypeError) as error:
            raise ValueError(f"{path} does not hold the rollouts of a run: {error}; train again") from None


def train(
    scenario: str,
    folder: Path | str,
    *,
    seed: int = 0,
    steps: int | None = None,
    time_limit: int = TIME_LIMIT,
    settings: PPOSettings | None = None,
    n_checkpoints: int = N_CHECKPOINTS,
    n_evaluated: int = N_EVALUATED,
    progress: bool = True,
) -> Run:
    """Train the body of a scenario by PPO, write the run into `folder`, and give it back.

    Parameters
    ----------
    scenario : one of `fedmorl.tasks.mujoco.SCENARIOS`.
    folder : new, or without a finished run; a run that was interrupted begins anew.
    seed : from 0 to 999, of the policy's beginning, of its draws and of the episodes.
    steps : of training, of all environments together; the body's own of `SETTINGS` if None.
    time_limit : steps of an episode; where it cuts, the value of what comes is counted on, as after no fall.
    settings : of PPO; the body's own of `SETTINGS` if None.
    n_checkpoints : policies kept, at equal distances, the last at the end.
    n_evaluated : episodes that each of them plays.
    progress : show a bar of steps, with the last checkpoint's return.
    """
    limits = (("seed", seed, 0, MAX_SEED), ("n_checkpoints", n_checkpoints, 1, 1000))
    least = (("time_limit", time_limit, 1), ("n_evaluated", n_evaluated, 1), ("steps", steps, 1))
    for name, value, low, high in (*limits, *((name, value, low, 10**9) for name, value, low in least)):
        wrong = isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high
        if wrong and not (name == "steps" and value is None):
            raise ValueError(f"{name} must be an integer from {low} to {high}; got {value!r}")
    body, folder = SCENARIOS[check_scenario(scenario)][0], Path(folder)
    settings = SETTINGS[body] if settings is None else settings
    steps = settings.steps if steps is None else steps
    if (folder / "run.json").exists():
        raise ValueError(f"{folder} holds a finished run; take it as it is, or name another folder")
    algorithm = f"PPO of stable-baselines3 {package_version('stable-baselines3')}"
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(
        folder=folder,
        scenario=scenario,
        version=body_version(),
        algorithm=algorithm,
        seed=seed,
        steps=steps,
        time_limit=time_limit,
        settings=settings,
        checkpoints=(),
    )
    with _alone():
        checkpoints, rollouts = _train(run, n_checkpoints, n_evaluated, progress)
    run = replace(run, checkpoints=checkpoints)
    _write_rollouts(folder / "rollouts.safetensors", rollouts)
    _write_run(run)
    return run


def load_or_train(
    scenario: str, folder: Path | str | None = None, *, seed: int = 0, steps: int | None = None, progress: bool = True
) -> Run:
    """The run that stands in `folder`, or `train` it there; of two processes that ask at once, one trains.

    Parameters
    ----------
    scenario, seed, steps, progress : as in `train`. A run that is there is taken as it is; ValueError, one sentence, if
        it has other `steps` than are asked for.
    folder : `_build/mujoco/SCENARIO-SEED` of the project if None, with `-STEPS` behind it if `steps` is given.
    """
    from filelock import FileLock

    check_scenario(scenario)
    if folder is None:
        here = (project_root(Path.cwd()) or Path.cwd()) / "_build" / "mujoco"
        folder = here / (f"{scenario}-{seed}" if steps is None else f"{scenario}-{seed}-{steps}")
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        if not (folder / "run.json").exists():
            return train(scenario, folder, seed=seed, steps=steps, progress=progress)
        run = Run.load(folder)
    if steps not in (None, run.steps):
        raise ValueError(
            f"{folder} holds a run of {run.steps} steps; ask for no number of steps, or name another folder"
        )
    return run


def _train(run: Run, n_checkpoints: int, n_evaluated: int, progress: bool) -> tuple[tuple[Checkpoint, ...], Rollouts]:
    """Write the checkpoints of `run`, which has none yet."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
    from tqdm.auto import tqdm

    began, settings, body = time.perf_counter(), run.settings, SCENARIOS[run.scenario][0]
    seeds, episodes = count(EPISODES_PER_SEED * run.seed + FIRST_EPISODE), list[Episode]()
    bodies = DummyVecEnv([lambda: Recorder(make_body(body, run.time_limit), seeds, episodes)] * settings.n_envs)
    normalised = VecNormalize(bodies, gamma=settings.gamma, clip_obs=CLIP)
    model = PPO("MlpPolicy", normalised, seed=run.seed, device="cpu", **_of_ppo(settings))
    task = MultiAgentMuJoCo(run.scenario, FULL, n_evaluated, run.time_limit)
    checkpoints: list[Checkpoint] = []

    def keep() -> None:
        actor, rng = exported(model, normalised), np.random.default_rng(run.seed)
        evaluated = [EVALUATION_SEED + e for e in range(n_evaluated)]
        returns = play_team(task, TrainedTeam(actor, task.parts), evaluated, rng)["returns"]
        kept = Checkpoint(
            step=model.num_timesteps,
            mean_return=float(returns.mean()),
            sd_return=float(returns.std()),
            episodes=len(episodes),
            seconds=round(time.perf_counter() - began, 1),
        )
        sizes = {"state_size": task.state_size, "n_joints": task.parts.joints.size, "hidden": settings.hidden}
        save_module(
            run.folder / kept.name, actor, sizes, {"scenario": run.scenario, "seed": run.seed, "step": kept.step}
        )
        checkpoints.append(kept)
        bar.set_postfix_str(f"return {kept.mean_return:.0f}")

    def watch(_: dict[str, Any], __: dict[str, Any]) -> bool:
        bar.update(settings.n_envs)
        n = len(checkpoints) + 1
        if n < n_checkpoints and model.num_timesteps >= run.steps * n / n_checkpoints:
            keep()
        return True

    with tqdm(total=run.steps, desc=f"{run.scenario} training", unit="step", disable=not progress) as bar:
        model.learn(run.steps, callback=watch)
        keep()
    return tuple(checkpoints), Rollouts(
        seeds=np.array([one.seed for one in episodes], np.int64),
        lengths=np.array([len(one.actions) for one in episodes], np.int64),
        returns=np.array([one.earned for one in episodes], np.float64),
        actions=np.concatenate([np.zeros((0, task.parts.joints.size), np.float32), *(one.actions for one in episodes)]),
    )


class Episode(NamedTuple):
    """An episode of training, over."""

    seed: int
    actions: np.ndarray  # (length, J) float32
    earned: float


class Recorder(gymnasium.Wrapper):
    """A body that begins each episode from the next of `seeds` and adds what was done to `episodes` when it is over."""

    def __init__(self, body: gymnasium.Env, seeds: Iterator[int], episodes: list[Episode]) -> None:
        super().__init__(body)
        self.seeds, self.episodes = seeds, episodes

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """A seed that is handed in is not looked at."""
        self._seed, self._actions, self._earned = next(self.seeds), list[np.ndarray](), 0.0
        return self.env.reset(seed=self._seed, options=options)

    def step(self, action: np.ndarray) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """One step, written down."""
        self._actions.append(np.array(action, np.float32))
        seen, reward, terminated, truncated, told = self.env.step(action)
        self._earned += float(reward)
        if terminated or truncated:
            self.episodes.append(Episode(self._seed, np.stack(self._actions), self._earned))
        return seen, reward, terminated, truncated, told


def exported(model: Any, normalised: Any) -> Actor:
    """The actor of stable-baselines3's PPO `model`, on environments under its `VecNormalize`, as a network of ours."""
    theirs = [one for one in (*model.policy.mlp_extractor.policy_net, model.policy.action_net) if _is_linear(one)]
    actor = Actor(theirs[0].in_features, theirs[-1].out_features, theirs[0].out_features)
    with torch.no_grad():
        for ours, one in zip(filter(_is_linear, actor.layers), theirs, strict=True):
            ours.load_state_dict(one.state_dict())
        actor.log_sd.copy_(model.policy.log_std)
        actor.mean.copy_(torch.as_tensor(normalised.obs_rms.mean))
        actor.sd.copy_(torch.as_tensor(np.sqrt(normalised.obs_rms.var + normalised.epsilon)))
    return actor


def _is_linear(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear)


def _of_ppo(settings: PPOSettings) -> dict[str, Any]:
    """The settings as stable-baselines3 wants them."""
    ours = ("steps", "n_envs", "log_std_init", "hidden", "ortho_init")
    layers = [settings.hidden, settings.hidden]
    network = {
        "log_std_init": settings.log_std_init,
        "ortho_init": settings.ortho_init,
        "activation_fn": nn.ReLU,
        "net_arch": {"pi": layers, "vf": layers},
    }
    given = {one.name: getattr(settings, one.name) for one in fields(settings) if one.name not in ours}
    return given | {"policy_kwargs": network}


@contextmanager
def _alone() -> Iterator[None]:
    """Torch on one thread, as sums on two come in another order; and the global generators, which PPO seeds, kept."""
    threads, of_python, of_numpy = torch.get_num_threads(), random.getstate(), np.random.get_state()  # noqa: NPY002
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)
        random.setstate(of_python)
        np.random.set_state(of_numpy)  # noqa: NPY002


def _write_rollouts(path: Path, rollouts: Rollouts) -> None:
    from safetensors.numpy import save_file

    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(rollouts._asdict(), temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_run(run: Run) -> None:
    told = {one.name: getattr(run, one.name) for one in fields(run) if one.name != "folder"}
    told |= {"settings": asdict(run.settings), "checkpoints": [one._asdict() for one in run.checkpoints]}
    temporary = run.folder / f".run.json.{os.getpid()}.tmp"
    try:
        temporary.write_text(json.dumps({"schema": SCHEMA} | told, indent=1), encoding="utf-8")
        os.replace(temporary, run.folder / "run.json")
    finally:
        temporary.unlink(missing_ok=True)
