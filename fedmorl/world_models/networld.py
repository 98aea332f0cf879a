"""NetWorld: one diffusion world model of several wireless tasks, which agents plan in and talk in.

A reconstruction: only the paper's abstract was at hand (Meng, Li, Deng, Zhao and Zhang, 2026, arXiv 2602.00558). Its
words are a classifier-guided conditional diffusion model, shared latents, two-hot codes, inverse dynamics and a light
mean-field message; sizes, schedule and all else are ours or of published neighbours, and no number of it is claimed.

Letters: B batch, H = 16 epochs, D = 16 latent, A levels. c is the condition (B, 36) of `Windows`.
"""

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedmorl.checkpoints import load_into_module, read_config, save_module
from fedmorl.data.network_logs import NetworkLog
from fedmorl.federated.clients import one_thread
from fedmorl.nn.diffusion import N_NOISE, cosine_alpha_bar, noised
from fedmorl.nn.mlp import torch_generator
from fedmorl.nn.residual import ResidualMLP, level_codes
from fedmorl.nn.two_hot import TwoHot
from fedmorl.world_models.latent_codec import (
    DEFAULT,
    TASKS,
    CodecTraining,
    D,
    LatentCodec,
    with_messages,
    with_stem,
)
from fedmorl.world_models.network_windows import CONDITION, DEFAULT_RETURNS, H, TaskRows, Windows, check_logs

ACTION_CODE, RETURN_CODE = TwoHot(-1, 1, 21), TwoHot(-4, 4, 41)
LEVEL_CODE = 16
PARTS = ("score", "guide")
VALUE_NOISE = 0.1  # on the clean futures that the value head learns from
TERMS = {"score": ("futures", "value", "prior"), "guide": ("trajectory", "classifier", "inverse")}
WEIGHTS = {"inverse": 0.5}  # of terms of the loss; 1 where none is given (CDMP)


class NetWorldNetworks(nn.Module):
    """Every network that is trained on windows.

    futures : x_t, t, c, H action codes -> x_0, what comes of actions (planner P2).
    value : clean x, c, H action codes -> return bins. prior : c -> action bins, what the logs would do.
    trajectory : x_t, t, c -> x_0, whatever is done (planner P1). classifier : noisy x_t, t, c -> return bins.
    inverse : z_j, z_j+1, task -> action bins.
    """

    alpha_bar: Tensor  # of every noise level
    level_codes: Tensor  # (n_noise, LEVEL_CODE)

    def __init__(self, parts: Sequence[str], width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.width = width
        window, noisy = H * D, H * D + LEVEL_CODE + CONDITION
        small: dict[str, Any] = {"width": width // 2, "generator": generator, "zero": True, "n_blocks": 2}
        large: dict[str, Any] = {"width": width, "generator": generator}
        middle = large | {"width": 2 * width // 3}  # P1 asks five levels and four gradients one after the other
        if "score" in parts:
            self.futures = ResidualMLP(noisy + H, window, n_blocks=3, **large)
            self.value = ResidualMLP(window + CONDITION + H, RETURN_CODE.n_bins, **small)
            self.prior = ResidualMLP(CONDITION, ACTION_CODE.n_bins, **small)
        if "guide" in parts:
            self.trajectory = ResidualMLP(noisy, window, n_blocks=3, **middle)
            self.classifier = ResidualMLP(noisy, RETURN_CODE.n_bins, n_blocks=2, zero=True, **middle)
            self.inverse = ResidualMLP(2 * D + len(TASKS), ACTION_CODE.n_bins, **small)
        self.register_buffer("alpha_bar", cosine_alpha_bar())
        self.register_buffer("level_codes", level_codes(N_NOISE, LEVEL_CODE))

    @property
    def parts(self) -> tuple[str, ...]:
        """Which of `PARTS` there are."""
        return tuple(part for part, terms in TERMS.items() if hasattr(self, terms[0]))

    def guess_future(self, x: Tensor, level: Tensor, c: Tensor, codes: Tensor) -> Tensor:
        """x_0 (B, H, D) of noisy x (B, H, D) at levels (B,), if these actions (B, H) are taken."""
        return self.futures(x, self.level_codes[level], c, codes).view(x.shape)

    def guess_trajectory(self, x: Tensor, level: Tensor, c: Tensor) -> Tensor:
        """x_0 (B, H, D) of noisy x (B, H, D) at levels (B,)."""
        return self.trajectory(x, self.level_codes[level], c).view(x.shape)

    def classify(self, x: Tensor, level: Tensor, c: Tensor) -> Tensor:
        """Return bins (B, 41) of noisy x (B, H, D), whose first row is clean."""
        return self.classifier(x, self.level_codes[level], c)

    def inverted(self, before: Tensor, after: Tensor, c: Tensor) -> Tensor:
        """Action bins (B, 21) of the step between two latents (B, D)."""
        return self.inverse(before, after, c[:, : len(TASKS)])


def losses(networks: NetWorldNetworks, windows: Windows, level: Tensor, eps: Tensor, step: Tensor) -> dict[str, Tensor]:
    """Each term of the loss, mean over the batch: a pure function.

    level : (B,) noise levels. eps : (B, H, D) their noise. step : (B,) the step whose action is recovered.
    """
    x, codes, c, g = windows
    x_t = torch.cat([x[:, :1], noised(x, eps, networks.alpha_bar[level])[:, 1:]], 1)
    found = {}
    if "score" in networks.parts:
        found["futures"] = squared(networks.guess_future(x_t, level, c, codes), x)
        found["value"] = RETURN_CODE.loss(networks.value(x + VALUE_NOISE * eps, c, codes), g).mean()
        found["prior"] = ACTION_CODE.loss(networks.prior(c), codes[:, 0]).mean()
    if "guide" in networks.parts:
        found["trajectory"] = squared(networks.guess_trajectory(x_t, level, c), x)
        found["classifier"] = RETURN_CODE.loss(networks.classify(x_t, level, c), g).mean()
        row = torch.arange(len(x))
        bins = networks.inverted(x[row, step], x[row, step + 1], c)
        found["inverse"] = ACTION_CODE.loss(bins, codes[row, step]).mean()
    return found


def squared(guess: Tensor, x: Tensor) -> Tensor:
    """Mean of (x_0_hat - x_0)^2 over rows 1..H-1; row 0 is known."""
    return ((guess - x)[:, 1:] ** 2).mean()


def total(found: Mapping[str, Tensor]) -> Tensor:
    """The weighted sum."""
    return torch.stack([WEIGHTS.get(name, 1.0) * value for name, value in found.items()]).sum()


@dataclass(frozen=True, kw_only=True)
class NetWorld:
    """How a world model is trained.

    Parameters
    ----------
    parts : "score" for planner P2, "guide" for P1.
    width : of the residual stream of P2's denoiser; two thirds of it for P1's networks.
    n_steps, batch_size : updates, and windows of each task in one.
    learning_rate : AdamW's; falls linearly to a fiftieth. Weight decay 1e-4.
    ema : of the averaged weights that are kept.
    returns : task -> "own", "mean_field" or "own_minus_externality"; what is not named has its `DEFAULT_RETURNS`.
    """

    parts: tuple[str, ...] = PARTS
    width: int = 192
    n_steps: int = 4_000
    batch_size: int = 64
    learning_rate: float = 1e-3
    ema: float = 0.995
    returns: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.parts or set(self.parts) - set(PARTS):
            raise ValueError(f"parts must be some of {', '.join(PARTS)}; got {self.parts}")
        for name in ("width", "n_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be an integer >= 1; got {getattr(self, name)!r}")

    def fit(
        self, logs: Sequence[NetworkLog], codec: LatentCodec, *, rng: np.random.Generator, progress: bool = False
    ) -> "NetWorldModel":
        """The model of all tasks in `logs`, whose messages are in terms of `codec`."""
        check_logs(logs, codec)
        generator = torch_generator(rng)
        networks = NetWorldNetworks(self.parts, self.width, generator)
        model = NetWorldModel(networks, codec, dict(DEFAULT_RETURNS) | dict(self.returns))
        return self.tune(model, logs, generator, progress)

    def adapt(
        self,
        model: "NetWorldModel",
        log: NetworkLog,
        *,
        rng: np.random.Generator,
        codec_training: CodecTraining = DEFAULT,
        frozen: Sequence[str] = (),
    ) -> "NetWorldModel":
        """The model after a few logged networks: of a task it knows, or of a new one, which gets a stem of its own.

        log : without messages, or with any; they are made anew. frozen : names of networks that stay as they are.
        """
        rng_stem, rng_fit = rng.spawn(2)
        codec = model.codec
        if log.task not in codec.sizes:
            codec = with_stem(codec, log, codec_training, rng=rng_stem)
        known = NetWorldModel(model.networks, codec, model.returns)
        return self.tune(known, [with_messages(log, codec)], torch_generator(rng_fit), frozen=frozen)

    def tune(
        self,
        model: "NetWorldModel",
        logs: Sequence[NetworkLog],
        generator: torch.Generator,
        progress: bool = False,
        frozen: Sequence[str] = (),
    ) -> "NetWorldModel":
        """Train the networks of `model` on, but those named in `frozen`; what comes back is a new model."""
        from tqdm.auto import tqdm

        began, rows = time.process_time(), model.rows(logs)
        networks = copy.deepcopy(model.networks).requires_grad_(True)
        for name in frozen:
            getattr(networks, name).requires_grad_(False)
        parameters = [p for p in networks.parameters() if p.requires_grad]
        kept, history = [p.detach().clone() for p in parameters], []
        optimiser = torch.optim.AdamW(parameters, lr=self.learning_rate, weight_decay=1e-4, fused=True)
        falling = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.02, self.n_steps)
        with one_thread():
            for step in tqdm(range(self.n_steps), desc="networld", unit="step", disable=not progress, leave=False):
                found = losses(networks, *batch(rows, self.batch_size, generator))
                optimiser.zero_grad()
                total(found).backward()
                optimiser.step()
                falling.step()
                torch._foreach_lerp_(kept, [p.detach() for p in parameters], 1 - min(self.ema, step / (step + 10)))
                if step % 100 == 0:
                    history.append({name: float(value.detach()) for name, value in found.items()})
        with torch.no_grad():
            for p, average in zip(parameters, kept, strict=True):
                p.copy_(average)
        tuned = NetWorldModel(networks.requires_grad_(False), model.codec, model.returns)
        tuned.history, tuned.cpu_seconds = history, model.cpu_seconds + time.process_time() - began
        return tuned


def batch(rows: Sequence[TaskRows], n_each: int, generator: torch.Generator) -> tuple[Windows, Tensor, Tensor, Tensor]:
    """`n_each` windows of every task with their noise levels, noise and steps."""
    windows = Windows(*(torch.cat(x) for x in zip(*(r.draw(n_each, generator) for r in rows), strict=True)))
    n = len(windows.returns)
    level = torch.randint(N_NOISE, (n,), generator=generator)
    step = torch.randint(H - 1, (n,), generator=generator)
    return windows, level, torch.randn(windows.x.shape, generator=generator), step


class NetWorldModel:
    """A trained world model: the shared encoder, the networks, and the return that guides each task.

    Attributes
    ----------
    history : the terms of the loss, every hundredth update. cpu_seconds : of the training.
    """

    def __init__(self, networks: NetWorldNetworks, codec: LatentCodec, returns: Mapping[str, str]) -> None:
        self.networks, self.codec, self.returns = networks, codec, dict(returns)
        self.history: list[dict[str, float]] = []
        self.cpu_seconds = 0.0

    @property
    def n_parameters(self) -> int:
        """Of all networks, the encoder's aside."""
        return sum(p.numel() for p in self.networks.parameters())

    def save(self, path: Path | str, provenance: Mapping[str, Any] | None = None) -> None:
        """Write one safetensors file, whole or not at all: weights, and what they are as JSON."""
        config = {"parts": self.networks.parts, "width": self.networks.width, "sizes": self.codec.sizes}
        config |= {"returns": self.returns, "cpu_seconds": self.cpu_seconds}
        save_module(path, self._whole(), config, provenance or {})

    @classmethod
    def load(cls, path: Path | str) -> "NetWorldModel":
        """Read a file that `save` wrote; ValueError, one sentence, if it holds no such model."""
        config, generator = read_config(path), torch.Generator()
        if missing := [name for name in ("parts", "width", "sizes", "returns") if name not in config]:
            raise ValueError(f"{path} does not hold a NetWorld: {', '.join(missing)} missing")
        networks = NetWorldNetworks(config["parts"], config["width"], generator).requires_grad_(False)
        model = cls(networks, LatentCodec(config["sizes"], generator).requires_grad_(False), config["returns"])
        load_into_module(path, model._whole())
        model.cpu_seconds = config["cpu_seconds"]
        return model

    def _whole(self) -> nn.Module:
        return nn.ModuleDict({"networks": self.networks, "codec": self.codec})

    def rows(self, logs: Sequence[NetworkLog]) -> list[TaskRows]:
        """The logs as windows, task by task."""
        check_logs(logs, self.codec)
        tasks = dict.fromkeys(log.task for log in logs)
        return [TaskRows([x for x in logs if x.task == task], self.codec, self.returns[task]) for task in tasks]

    def inverse_accuracy(self, log: NetworkLog, n: int, rng: np.random.Generator) -> float:
        """Share of `n` logged steps whose exact level the inverse dynamics recovers."""
        (rows,), generator = self.rows([log]), torch_generator(rng)
        windows, _, _, step = batch([rows], n, generator)
        row = torch.arange(n)
        with torch.no_grad():
            bins = self.networks.inverted(windows.x[row, step], windows.x[row, step + 1], windows.condition)
        level = ACTION_CODE.pick(bins, log.n_levels).argmax(-1)
        truth = ((windows.actions[row, step] + 1) / 2 * (log.n_levels - 1)).round().long()
        return float((level == truth).float().mean())
