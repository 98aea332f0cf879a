"""FedMORL's world model: what a decision leads to, learned from one station's log or from many by federation."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedmorl.data import DatasetError, OfflineDataset, Transitions
from fedmorl.dca.logs import OUTCOMES
from fedmorl.dca.policy import OBSERVATION
from fedmorl.federated import FitConfig, History, ModelClient, State, load_into, run_federation, trainable
from fedmorl.federated.clients import numpy_of, one_thread
from fedmorl.nn.mlp import mlp, torch_generator
from fedmorl.policies import LearnedPolicy

N_OUTCOMES = len(OUTCOMES)
N_OBSERVATION = len(OBSERVATION)
D2LT, BUFFER = OBSERVATION.index("d2lt"), OBSERVATION.index("buffer")
N_HEADS = 2 * N_OUTCOMES + 2  # for each action
RESIDUAL_WEIGHT = 10.0  # ours: squared errors of next delay and buffer against nats of the outcome
SATURATED_DURATIONS_SLOTS = (1.0, 124.0, 124.0, 124.0)  # by outcome: an idle slot, or a packet and DIFS

Log = OfflineDataset | Transitions


@dataclass(frozen=True, kw_only=True)
class TransitionConfig:
    """Size of a `TransitionModel`, and its training where it is not federated; the paper states none: all ours."""

    hidden: tuple[int, ...] = (64, 64)
    n_steps: int = 1_000
    batch_size: int = 256
    learning_rate: float = 3e-3  # falls to a twentieth along a cosine
    durations_slots: tuple[float, ...] = SATURATED_DURATIONS_SLOTS  # mean, by outcome

    def __post_init__(self) -> None:
        for name in ("n_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1; got {getattr(self, name)}")
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"hidden must be widths >= 1; got {self.hidden}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive and finite; got {self.learning_rate}")
        if len(self.durations_slots) != N_OUTCOMES or min(self.durations_slots) <= 0:
            raise ValueError(f"durations_slots must be {N_OUTCOMES} numbers > 0; got {self.durations_slots}")


class Prediction(NamedTuple):
    """What a model expects of (o, a), for a batch of B, float32."""

    outcome: np.ndarray  # (B, 4) probabilities of the next outcome, in the order of OUTCOMES
    next_d2lt: np.ndarray  # (B, 4) the next normalised delay if that outcome comes
    next_buffer: np.ndarray  # (B,) the next buffer share
    reward: np.ndarray  # (B,) the expected reward
    duration_slots: np.ndarray  # (B, 4) mean slots to the next decision if that outcome comes


class Rollout(NamedTuple):
    """B imagined episodes of H decisions."""

    observations: np.ndarray  # (B, H, 7)
    actions: np.ndarray  # (B, H) uint8
    rewards: np.ndarray  # (B, H)
    next_observations: np.ndarray  # (B, H, 7)
    durations: np.ndarray  # (B, H) [slots]


class TransitionModel:
    """p(o' | o, a) and r(o, a) on decision steps, one network with all heads.

    The next observation is its outcome, the action just taken, the next normalised delay (a residual for each
    outcome) and the next buffer share (a residual). The reward is a regression; the duration follows from the
    outcome.

    Source: FedMORL, section 3.2.
    Departs from source: the paper leaves the form of both models open.
    """

    def __init__(self, config: TransitionConfig = TransitionConfig(), *, rng: np.random.Generator) -> None:
        self.config = config
        sizes = (N_OBSERVATION + 1, *config.hidden, 2 * N_HEADS)
        self.network: nn.Sequential = mlp(sizes, torch_generator(rng))

    def fit(self, dataset: Log, *, rng: np.random.Generator) -> "TransitionModel":
        """Fit a log alone, without federation; returns self. DatasetError if its observations are not the seven."""
        columns, config, generator = tensors(dataset), self.config, torch_generator(rng)
        optimiser = torch.optim.Adam(self.network.parameters(), lr=config.learning_rate)
        floor = config.learning_rate / 20
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.n_steps, eta_min=floor)
        with one_thread():
            for _ in range(config.n_steps):
                rows = torch.randint(len(columns[0]), (config.batch_size,), generator=generator)
                optimiser.zero_grad()
                transition_loss(self.network, *(column[rows] for column in columns)).backward()
                optimiser.step()
                schedule.step()
        return self

    def clients(self, logs: Sequence[Log]) -> list[ModelClient]:
        """One participant of a federation a log: Algorithm 1's line 4. They start from this model's parameters."""
        return [ModelClient(k, self.network, transition_loss, tensors(log)) for k, log in enumerate(logs)]

    def federate(
        self, logs: Sequence[Log], *, seed: int, rounds: int = 20, fit_config: FitConfig | None = None, **options: Any
    ) -> History:
        """Algorithm 1, lines 2 to 8, one client a log: this model becomes the shared one; returns how it came about.

        `options` go to `fedmorl.federated.run_federation` (aggregator, engine, fraction, checkpoint, progress, ...).
        """
        config = fit_config or FitConfig(local_steps=50, batch_size=256, lr=3e-3, lr_final=1.5e-4, lr_rounds=rounds)
        history = run_federation(self.clients(logs), rounds=rounds, fit_config=config, seed=seed, **options)
        self.load_state(history.state)
        return history

    def predict(self, observations: np.ndarray, actions: np.ndarray) -> Prediction:
        """(B, 7) observations and (B,) actions -> what the model expects."""
        inputs = _inputs(observations, actions)
        with torch.no_grad(), one_thread():
            logits, d2lt, buffer, reward = _heads(self.network, inputs)
            outcome = logits.softmax(-1).numpy()
        return Prediction(
            outcome=outcome,
            next_d2lt=np.clip(inputs[:, [D2LT]].numpy() + d2lt.numpy(), 0, 1),
            next_buffer=np.clip(inputs[:, BUFFER].numpy() + buffer.numpy(), 0, 1),
            reward=reward.numpy(),
            duration_slots=np.broadcast_to(np.array(self.config.durations_slots, np.float32), outcome.shape),
        )

    def negative_log_likelihood(self, dataset: Log) -> float:
        """Mean nats of the outcomes in a log."""
        inputs, outcome, *_ = tensors(dataset)
        with torch.no_grad(), one_thread():
            return float(functional.cross_entropy(_heads(self.network, inputs)[0], outcome))

    def step(
        self, observations: np.ndarray, actions: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One imagined decision: next observations (B, 7), rewards (B,), durations (B,) [slots]."""
        expected, everyone = self.predict(observations, actions), np.arange(len(observations))
        cumulative = expected.outcome.cumsum(-1)
        outcome = (rng.random(len(everyone))[:, None] * cumulative[:, -1:] > cumulative).sum(-1)
        nexts = np.zeros((len(everyone), N_OBSERVATION), np.float32)
        nexts[everyone, outcome] = 1
        nexts[:, N_OUTCOMES] = actions
        nexts[:, D2LT] = expected.next_d2lt[everyone, outcome]
        nexts[:, BUFFER] = expected.next_buffer
        return nexts, expected.reward, expected.duration_slots[everyone, outcome]

    def rollout(
        self, observations: np.ndarray, policy: LearnedPolicy, horizon: int, rng: np.random.Generator
    ) -> Rollout:
        """H imagined decisions of `policy` from each of B observations (FedMORL, Algorithm 3, lines 4 to 9)."""
        if horizon < 1:
            raise ValueError(f"horizon must be >= 1; got {horizon}")
        rows, here = [], np.asarray(observations, np.float32)
        for _ in range(horizon):
            actions = (rng.random(len(here)) < policy.probability(here)).astype(np.uint8)
            nexts, rewards, durations = self.step(here, actions, rng)
            rows.append((here, actions, rewards, nexts, durations))
            here = nexts
        return Rollout(*(np.stack(arrays, axis=1) for arrays in zip(*rows, strict=True)))

    def state(self) -> State:
        """Parameters by name: what a client sends, and all that it sends."""
        return numpy_of(trainable(self.network))

    def load_state(self, state: State) -> "TransitionModel":
        """Take parameters from `state`; ValueError if a name or shape is not this model's. Returns self."""
        load_into(trainable(self.network), state)
        return self

    def save(self, path: Path | str) -> None:
        """Write safetensors, with the configuration as JSON in its header; the file appears whole."""
        from safetensors.numpy import save_file

        path = Path(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            save_file(dict(self.state()), temporary, metadata={"transition_model": json.dumps(asdict(self.config))})
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path | str) -> "TransitionModel":
        """A model that `save` wrote; ValueError, one sentence, for any other file."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                given = json.loads((file.metadata() or {})["transition_model"])
                state = {name: file.get_tensor(name) for name in file.keys()}
            for name in ("hidden", "durations_slots"):
                given[name] = tuple(given[name])
            config = TransitionConfig(**given)
            return cls(config, rng=np.random.default_rng(0)).load_state(state)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a TransitionModel: {error}") from None


def flat(log: Log) -> Transitions:
    """Any log as one batch of transitions of the seven observed numbers; DatasetError if it has others."""
    batch = log.transitions() if isinstance(log, OfflineDataset) else log
    if batch.observation_names != OBSERVATION:
        raise DatasetError(f"observation_names must be {OBSERVATION}; got {batch.observation_names}")
    if len(batch) == 0:
        raise DatasetError("the log has no transitions, so nothing can be learned from it")
    return batch


def mean_durations_slots(log: Log) -> tuple[float, ...]:
    """Mean slots to the next decision by the outcome that it sees, (4,); saturated where the log has none."""
    batch = flat(log)
    outcome = batch.next_observations[:, :N_OUTCOMES].argmax(1)
    counts = np.bincount(outcome, minlength=N_OUTCOMES)
    sums = np.bincount(outcome, batch.durations, minlength=N_OUTCOMES)
    seen = np.where(counts > 0, sums / np.maximum(counts, 1), SATURATED_DURATIONS_SLOTS)
    return tuple(float(value) for value in seen)


def tensors(log: Log) -> list[Tensor]:
    """What the loss takes: inputs (B, 9), next outcome (B,), changes of delay and buffer (B,), reward (B,)."""
    batch = flat(log)
    change = batch.next_observations - batch.observations
    return [
        _inputs(batch.observations, batch.actions),
        torch.from_numpy(batch.next_observations[:, :N_OUTCOMES].argmax(-1)),
        torch.from_numpy(np.ascontiguousarray(change[:, D2LT])),
        torch.from_numpy(np.ascontiguousarray(change[:, BUFFER])),
        torch.from_numpy(np.array(batch.rewards)),
    ]


def transition_loss(
    network: nn.Module, inputs: Tensor, outcome: Tensor, d2lt: Tensor, buffer: Tensor, reward: Tensor
) -> Tensor:
    """Nats of the outcome plus squared errors of delay, buffer and reward: the mean over the batch of `tensors`."""
    logits, d2lt_change, buffer_change, expected = _heads(network, inputs)
    seen = d2lt_change.gather(-1, outcome[:, None])[:, 0]  # (B,): only the outcome that came teaches its residual
    squares = (seen - d2lt).square() + (buffer_change - buffer).square()
    nats = functional.cross_entropy(logits, outcome)
    return nats + RESIDUAL_WEIGHT * squares.mean() + (expected - reward).square().mean()


def _heads(network: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(B, 9) -> outcome logits (B, 4), delay changes (B, 4), buffer change (B,), reward (B,).

    Each action has heads of its own: who sends cannot see an idle slot, and sending is rare in a log.
    """
    action = inputs[..., -1:]
    both = network(inputs[..., :-1])
    output = both[..., :N_HEADS] * (1 - action) + both[..., N_HEADS:] * action
    return output[..., :4], output[..., 4:8], output[..., 8], output[..., 9]


def _inputs(observations: np.ndarray, actions: np.ndarray) -> Tensor:
    """(B, 9): the observation, the root of its delay (which is about 1/N, far from 1), the action."""
    seen = np.asarray(observations, np.float32)
    columns = [seen, np.sqrt(seen[:, [D2LT]]), np.asarray(actions, np.float32)[:, None]]
    return torch.from_numpy(np.concatenate(columns, axis=-1))
