"""The latent space that tasks share: a stem for each task, one trunk, and the bytes that agents send each other.

Letters: B batch, O observation of a task, D = 16 latent.
"""

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedmorl.data.network_logs import NetworkLog
from fedmorl.federated.clients import one_thread
from fedmorl.nn.mlp import mlp, torch_generator

TASKS = ("cw", "ua", "pc")  # each has its place in the one-hot code, trained or not
D = 16
STEM, TRUNK = 64, 128
SD_FLOOR = 1e-3  # of an observation's standard deviation
BYTES = D + 1  # of a message: 136 bits
REWARD_LIMIT = 4.0


@dataclass(frozen=True, kw_only=True)
class CodecTraining:
    """Adam on the reconstruction of standardised observations; rate 2e-3 falls linearly to a hundredth."""

    n_steps: int = 1_500
    batch_size: int = 128  # of each task
    learning_rate: float = 2e-3


DEFAULT = CodecTraining()


class LatentCodec(nn.Module):
    """Encoder (B, O) -> (B, D) in (-1, 1), and its decoder, of the tasks it has stems for."""

    latent_sd: Tensor  # (D,) of the latents of the training logs

    def __init__(self, sizes: dict[str, int], generator: torch.Generator) -> None:
        super().__init__()
        self.sizes = dict(sizes)
        self.stems, self.heads = nn.ModuleDict(), nn.ModuleDict()
        self.trunk = mlp((STEM, TRUNK, TRUNK, D), generator)
        self.back = mlp((D + len(TASKS), TRUNK, TRUNK), generator)
        self.register_buffer("latent_sd", torch.ones(D))
        for task, size in sizes.items():
            self.add_stem(task, size, generator)

    def add_stem(self, task: str, size: int, generator: torch.Generator) -> None:
        """A stem and a decoder's head for observations of `size` numbers, not trained."""
        if task not in TASKS:
            raise ValueError(f"task must be one of {', '.join(TASKS)}, which have a code; got {task!r}")
        self.sizes[task] = size
        self.stems[task], self.heads[task] = mlp((size, STEM), generator), mlp((TRUNK, size), generator)
        self.register_buffer(f"{task}_mean", torch.zeros(size))
        self.register_buffer(f"{task}_sd", torch.ones(size))

    def standardised(self, task: str, observations: Tensor) -> Tensor:
        """(B, O) -> (B, O)."""
        return (observations - getattr(self, f"{task}_mean")) / getattr(self, f"{task}_sd")

    def latent(self, task: str, standardised: Tensor) -> Tensor:
        """(B, O) -> (B, D) in (-1, 1)."""
        return self.trunk(self.stems[task](standardised).relu()).tanh()

    def decoded(self, task: str, z: Tensor) -> Tensor:
        """(B, D) -> (B, O), standardised."""
        code = task_code(task).expand(len(z), -1)
        return self.heads[task](self.back(torch.cat([z, code], -1)).relu())

    def encode(self, task: str, observations: np.ndarray) -> Tensor:
        """Observations (..., O) -> tanh latents (..., D); ValueError without a stem, or if one is not finite."""
        self.check(task, observations)
        with torch.no_grad(), one_thread():
            flat = torch.tensor(np.asarray(observations, np.float32)).flatten(0, -2)
            return self.latent(task, self.standardised(task, flat)).view(*observations.shape[:-1], D)

    def check(self, task: str, observations: np.ndarray) -> None:
        """ValueError in a sentence if these observations cannot be encoded."""
        if task not in self.sizes:
            raise ValueError(
                f"task must be one that has a stem ({', '.join(self.sizes)}); got {task!r}: train one on a few logs "
                "with NetWorld.adapt"
            )
        if observations.shape[-1] != self.sizes[task]:
            raise ValueError(
                f"observations of {task} must hold {self.sizes[task]} numbers; got {observations.shape[-1]}: "
                "encode what the task of the training logs shows"
            )
        if not np.isfinite(observations).all():
            raise ValueError(
                f"observations of {task} must be finite, or latents are not; got {np.sum(~np.isfinite(observations))} "
                "numbers that are not: mend the source"
            )

    @property
    def content_hash(self) -> str:
        """Of all weights: messages of another encoder mean nothing."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            if not name.startswith(("heads", "back")):
                digest.update(name.encode() + tensor.numpy().tobytes())
        return digest.hexdigest()[:16]

    def reconstruction_nmse(self, log: NetworkLog) -> np.ndarray:
        """(O,): squared error of each feature over its variance in the training logs."""
        flat = log.observations.reshape(-1, log.observations.shape[-1])
        with torch.no_grad():
            x = self.standardised(log.task, torch.tensor(flat))
            return ((self.decoded(log.task, self.latent(log.task, x)) - x) ** 2).mean(0).numpy()


def task_code(task: str) -> Tensor:
    """(3,), one-hot."""
    return torch.eye(len(TASKS))[TASKS.index(task)]


def fit_codec(
    logs: Sequence[NetworkLog], training: CodecTraining = DEFAULT, *, rng: np.random.Generator
) -> LatentCodec:
    """An encoder and decoder of all tasks in `logs`, then frozen."""
    generator = torch_generator(rng)
    codec = LatentCodec({log.task: log.observations.shape[-1] for log in logs}, generator)
    _train(codec, logs, list(codec.parameters()), training, generator)
    everything = torch.cat([codec.encode(log.task, log.observations).flatten(0, -2) for log in logs])
    codec.latent_sd.copy_(everything.std(0).clamp(min=0.05))  # a latent that hardly moves is not blown up
    return codec.requires_grad_(False)


def with_stem(codec: LatentCodec, log: NetworkLog, training: CodecTraining, *, rng: np.random.Generator) -> LatentCodec:
    """A copy that also has a stem and a head for the task of `log`; the trunk and all else stay as they are."""
    codec, generator = copy.deepcopy(codec), torch_generator(rng)
    codec.add_stem(log.task, log.observations.shape[-1], generator)
    new = [*codec.stems[log.task].parameters(), *codec.heads[log.task].parameters()]
    _train(codec, [log], new, training, generator)
    return codec.requires_grad_(False)


def _train(
    codec: LatentCodec,
    logs: Sequence[NetworkLog],
    parameters: list[nn.Parameter],
    training: CodecTraining,
    generator: torch.Generator,
) -> None:
    rows: dict[str, Tensor] = {}
    for task in dict.fromkeys(log.task for log in logs):
        seen = [log.observations.reshape(-1, log.observations.shape[-1]) for log in logs if log.task == task]
        x = torch.tensor(np.concatenate(seen))
        getattr(codec, f"{task}_mean").copy_(x.mean(0))
        getattr(codec, f"{task}_sd").copy_(x.std(0).clamp(min=SD_FLOOR))
        rows[task] = codec.standardised(task, x)
    optimiser = torch.optim.Adam(parameters, lr=training.learning_rate, fused=True)
    falling = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.01, training.n_steps)
    with one_thread():
        for _ in range(training.n_steps):
            loss = torch.zeros(())
            for task, x in rows.items():
                some = x[torch.randint(len(x), (training.batch_size,), generator=generator)]
                loss = loss + ((codec.decoded(task, codec.latent(task, some)) - some) ** 2).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            falling.step()


# --- messages -------------------------------------------------------------------------------------------


def to_bytes(z: np.ndarray, reward: np.ndarray, bits: int = 8) -> np.ndarray:
    """Tanh latents (..., D) and z-scored rewards (...) -> uint8 (..., 17): what an agent sends.

    Latents are rounded to 2^bits even levels of [-1, 1], one byte each; the reward to 256 levels of [-4, 4]. With 8
    bits a message is 136 bits.
    """
    steps = 2**bits - 1
    latent = np.rint((np.clip(z, -1, 1) + 1) / 2 * steps)
    score = np.rint((np.clip(reward, -REWARD_LIMIT, REWARD_LIMIT) / REWARD_LIMIT + 1) / 2 * 255)
    return np.concatenate([latent, score[..., None]], -1).astype(np.uint8)


def from_bytes(message: np.ndarray, bits: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (..., 17) -> tanh latents (..., D) and z-scored rewards (...), float32."""
    if message.shape[-1] != BYTES or message.dtype != np.uint8:
        raise ValueError(f"a message must be {BYTES} bytes; got {message.shape[-1]} of {message.dtype}")
    z = message[..., :D].astype(np.float32) / (2**bits - 1) * 2 - 1
    return z, (message[..., D].astype(np.float32) / 255 * 2 - 1) * REWARD_LIMIT


def mean_field(message: np.ndarray, weights: np.ndarray, bits: int = 8) -> np.ndarray:
    """m_i = sum_j w_ij z_j, as received: messages (..., N, 17), weights (..., N, N) -> (..., N, D) float32."""
    return (weights @ from_bytes(message, bits)[0]).astype(np.float32)


def with_messages(log: NetworkLog, codec: LatentCodec, *, age: int = 0, bits: int = 8) -> NetworkLog:
    """The log, with what each agent would have sent before each epoch and received `age` epochs late."""
    z = codec.encode(log.task, log.observations).numpy()
    scored = (log.rewards - log.rewards.mean()) / max(float(log.rewards.std()), SD_FLOOR)
    scored = np.concatenate([np.zeros_like(scored[:, :1]), scored], 1)  # before the first epoch nothing was earned
    sent = to_bytes(z, scored, bits)
    late = np.maximum(np.arange(sent.shape[1]) - age, 0)
    received = mean_field(sent[:, late], log.weights[:, late], bits)
    about: dict[str, Any] = {"encoder_hash": codec.content_hash, "message_age": age, "bits": D * bits + 8}
    return replace(log, sent=sent, received=received, **about)
