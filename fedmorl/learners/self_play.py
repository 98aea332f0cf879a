"""Self-play in the learned joint model: copies of one policy, and evolution of its weights by throughput x fairness.

The simulator is not called: all that the copies hear comes from `fedmorl.world_models.joint.JointModel`.
"""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from fedmorl.data import OfflineDataset
from fedmorl.dca.policy import LISTENING, pack_weights
from fedmorl.federated import digest
from fedmorl.learners.scenes import Stage, curriculum
from fedmorl.policies import LearnedPolicy
from fedmorl.world_models.joint import JointModel

# What the policy reads, and by how much it is scaled. Not D2LT, which somebody would have to tell it; nor what grows
# with the number of stations (others_heard, successes_since_own), as it is to work at numbers it was not trained at.
INPUTS = {
    **{name: 1.0 for name in LISTENING if name not in ("d2lt", "others_heard", "successes_since_own")},
    **{"rank": 4.0, "idle_run": 4.0, "retries": 4.0, "collision_average": 4.0},
}
ADAM = (0.9, 0.99)
CHECKPOINT_EVERY = 10  # generations
SPREAD = 0.01  # of scores, see `rank_weights`


@dataclass(frozen=True, kw_only=True)
class SelfPlayConfig:
    """All ours; FedMORL has no self-play."""

    hidden: int = 12
    n_generations: int = 400
    n_annealing: int = 160  # generations over which the two below fall along a cosine; then they stay
    n_candidates: int = 32  # in antithetic pairs
    sigma: tuple[float, float] = (0.3, 0.1)  # of the search distribution, first and last
    learning_rate: tuple[float, float] = (0.25, 0.03)
    averaged: float = 1 / 8  # of the generations, the last ones, whose means the policy is the average of

    def __post_init__(self) -> None:
        for name in ("hidden", "n_generations", "n_annealing"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1; got {getattr(self, name)}")
        if not 0 < self.averaged <= 1:
            raise ValueError(f"averaged must be a share of the generations, in (0, 1]; got {self.averaged}")
        if self.n_candidates < 2 or self.n_candidates % 2:
            raise ValueError(f"n_candidates must be even and >= 2, as they come in pairs; got {self.n_candidates}")

    @property
    def n_averaged(self) -> int:
        """Generations that the policy averages, at least the last one."""
        return max(1, round(self.averaged * self.n_generations))

    @property
    def n_parameters(self) -> int:
        """Weights and biases of one hidden layer and one logit."""
        return (len(INPUTS) + 2) * self.hidden + 1

    def between(self, ends: tuple[float, float], generation: int) -> float:
        """Along a cosine from the first generation to the end of the annealing."""
        share = min(generation / max(self.n_annealing - 1, 1), 1.0)
        return ends[1] + (ends[0] - ends[1]) * (1 + np.cos(np.pi * share)) / 2


@dataclass
class Search:
    """Where the evolution stands: all that a checkpoint holds."""

    mean: np.ndarray  # (D,)
    average: np.ndarray  # (D,) of the means of the last generations: the policy
    m: np.ndarray  # (D,) Adam's moments
    v: np.ndarray  # (D,)
    history: np.ndarray  # (n_generations, 2): mean and best score of the candidates; NaN where it has not come yet
    root: int  # seed of every generation's scenes and candidates
    generation: int = 0
    cpu_s: float = 0.0  # what it took so far

    def save(self, path: Path, identity: dict[str, Any]) -> None:
        """Write it whole or not at all, with what it belongs to."""
        from safetensors.numpy import save_file

        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays = {name: getattr(self, name) for name in ("mean", "average", "m", "v", "history")}
        whole = {"identity": json.dumps(identity), "root": str(self.root), "generation": str(self.generation)}
        whole["cpu_s"] = str(self.cpu_s)
        try:
            save_file(arrays, temporary, metadata=whole)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path, identity: dict[str, Any]) -> "Search":
        """What `save` wrote; ValueError if it belongs to another search or is no such file."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                about = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}
            found = json.loads(about["identity"])
        except (SafetensorError, KeyError, ValueError) as error:
            raise ValueError(f"{path} is not a checkpoint of self-play: {error}") from None
        if found != json.loads(json.dumps(identity)):
            differs = next(name for name in identity if found.get(name) != json.loads(json.dumps(identity[name])))
            raise ValueError(f"{path} is the checkpoint of a search with another {differs}; give it another name")
        generation, cpu_s = int(about["generation"]), float(about["cpu_s"])
        return cls(**arrays, root=int(about["root"]), generation=generation, cpu_s=cpu_s)


class SelfPlay:
    """Evolution strategy over the weights of one policy that all stations share.

    Each generation draws scenes (N = 2..14 from a cold start, stations that join and leave, Poisson load, neighbours
    under AC_BE and CSMA/ECA), plays them with antithetic candidates around the mean, on the same random numbers, and
    moves the mean along the rank-weighted sum of the candidates. The number of stations is an input to none of it.

    Source: Salimans et al. (2017), arXiv 1703.03864, Algorithm 1, with their rank transformation and Adam.
    Departs from source: candidates are ranked in each scene and the ranks averaged, so that the last per cent of a
    quiet scene counts as much as the noise of a loud one; sigma falls along a cosine; no weight decay; the policy is
    the average of the last eighth of the means, which a step's noise moves less than the last one.
    """

    def __init__(self, config: SelfPlayConfig = SelfPlayConfig()) -> None:
        self.config = config

    def fit(
        self,
        logs: OfflineDataset | Sequence[OfflineDataset],
        *,
        rng: np.random.Generator,
        checkpoint: Path | str | None = None,
        progress: bool | None = None,
    ) -> LearnedPolicy:
        """Learn the joint model from the stations' logs by federation, then play in it."""
        clients = logs.clients() if isinstance(logs, OfflineDataset) else list(logs)
        return self.play(JointModel.federate(clients), rng=rng, checkpoint=checkpoint, progress=progress)

    def play(
        self,
        model: JointModel,
        *,
        rng: np.random.Generator,
        checkpoint: Path | str | None = None,
        progress: bool | None = None,
    ) -> LearnedPolicy:
        """The policy at the end of the search.

        With `checkpoint`, a file, the search is kept every ten generations and goes on from there, to the same bits.
        """
        search = self.search(model, rng=rng, checkpoint=checkpoint, progress=progress)
        return network(search.average, self.config.hidden)

    def search(
        self,
        model: JointModel,
        *,
        rng: np.random.Generator,
        checkpoint: Path | str | None = None,
        progress: bool | None = None,
    ) -> Search:
        """As `play`, but where the search ended and how it went."""
        search, path = self._begin(rng), Path(checkpoint) if checkpoint else None
        identity = {"config": asdict(self.config), "model": digest(model.state()), "root": search.root}
        if path and path.exists():
            search = Search.load(path, identity)
        n = self.config.n_generations
        with tqdm(total=n, initial=search.generation, desc="self-play", disable=_silent(progress)) as bar:
            while search.generation < n:
                began = time.process_time()
                scores = self.generation(model, search).mean(1)
                search.cpu_s += time.process_time() - began
                if path and (search.generation % CHECKPOINT_EVERY == 0 or search.generation == n):
                    search.save(path, identity)
                bar.update(1)
                bar.set_postfix(score=f"{scores.mean():.3f}", best=f"{scores.max():.3f}")
        return search

    def _begin(self, rng: np.random.Generator) -> Search:
        d = self.config.n_parameters
        mean = rng.normal(size=d) / np.sqrt(len(INPUTS))
        mean[-1] = -3.0  # a newcomer sends in about every twentieth slot
        history = np.full((self.config.n_generations, 2), np.nan)
        return Search(mean, mean.copy(), np.zeros(d), np.zeros(d), history, root=int(rng.integers(2**62)))

    def generation(self, model: JointModel, search: Search) -> np.ndarray:
        """One step of the search; the candidates' scores (n_candidates, scenes)."""
        config, rng = self.config, np.random.default_rng([search.root, search.generation])
        sigma = config.between(config.sigma, search.generation)
        half = rng.normal(size=(config.n_candidates // 2, search.mean.size))
        noise = np.concatenate([half, -half])
        here = network(search.mean, config.hidden)
        stage = Stage(model, curriculum(here, rng), seed=int(rng.integers(2**62)))
        scores = np.array([stage.scores(packed(search.mean + sigma * e, config.hidden)) for e in noise])
        gradient = rank_weights(scores).mean(1) @ noise / (config.n_candidates * sigma)
        self._climb(search, gradient, config.between(config.learning_rate, search.generation))
        search.history[search.generation] = scores.mean(), scores.mean(1).max()
        search.generation += 1
        return scores

    def _climb(self, search: Search, gradient: np.ndarray, learning_rate: float) -> None:
        (b1, b2), t = ADAM, search.generation + 1
        search.m = b1 * search.m + (1 - b1) * gradient
        search.v = b2 * search.v + (1 - b2) * gradient**2
        step = search.m / (1 - b1**t) / (np.sqrt(search.v / (1 - b2**t)) + 1e-8)
        search.mean = search.mean + learning_rate * step
        k = t - (self.config.n_generations - self.config.n_averaged)  # how many are in the average, with this one
        if k > 0:
            search.average = search.average + (search.mean - search.average) / k


def _silent(progress: bool | None) -> bool | None:
    """tqdm's `disable`: by default silent where standard error is no terminal."""
    return None if progress is None else not progress


def rank_weights(scores: np.ndarray) -> np.ndarray:
    """(candidates, scenes) -> centred ranks from -1/2 to 1/2 in each scene, ties sharing theirs.

    Only the order counts, but for scenes in which the scores differ by less than `SPREAD` (standard deviation): they
    count in proportion, so that the last thousandth of one scene is not bought with a tenth of another.
    """
    lower = (scores[None] < scores[:, None]).sum(1)
    equal = (scores[None] == scores[:, None]).sum(1) - 1
    return ((lower + equal / 2) / (len(scores) - 1) - 0.5) * np.minimum(scores.std(0) / SPREAD, 1)


def network(parameters: np.ndarray, hidden: int) -> LearnedPolicy:
    """(D,) -> the policy that the kernel runs; the scales of the inputs go into the first layer."""
    n = len(INPUTS)
    first = np.zeros((len(LISTENING), hidden))
    scale = np.array(list(INPUTS.values()))
    rows = [LISTENING.index(name) for name in INPUTS]
    first[rows] = parameters[: n * hidden].reshape(n, hidden) * scale[:, None]
    out = np.zeros((hidden, 2))
    out[:, 1] = parameters[(n + 1) * hidden : -1]
    return LearnedPolicy([(first, parameters[n * hidden : (n + 1) * hidden]), (out, np.array([0.0, parameters[-1]]))])


def packed(parameters: np.ndarray, hidden: int) -> np.ndarray:
    """The same, as the kernel's array of weights."""
    return pack_weights([network(parameters, hidden)])[1]
