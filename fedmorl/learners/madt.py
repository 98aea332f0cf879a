"""MADT: a decision transformer for a team, asked for a return; each agent acts by itself.

One set of weights acts for all agents, told apart by a one-hot id; there is no message and no order. Letters: B
windows, L steps, N agents, O observation, A actions, W width.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fedmorl.checkpoints import load_into_module, read_config, save_module
from fedmorl.data.trajectories import Trajectories
from fedmorl.federated.clients import one_thread
from fedmorl.learners.mads4 import ACTS, return_scale, target_return
from fedmorl.learners.team_cloning import AgentView, among_available, joint_actions, nats_of, train
from fedmorl.nn.mlp import torch_generator
from fedmorl.nn.transformer import DecisionTransformer, KVCache, Window

INFERENCE = ("window", "cache")
KIND = "decision transformer"  # what a file says that it holds
BETAS = (0.9, 0.95)  # of AdamW; GPT-3's, as MADT's

Extra = Callable[["Windows", Tensor, Tensor], Tensor]  # (windows, logits, features) -> what is added to the loss


class Windows(NamedTuple):
    """B stretches of at most L steps, each the past of one decision; padded on the right, where `mask` is False."""

    at: tuple[np.ndarray, np.ndarray]  # episodes (B, 1) and steps (B, L) in the data
    observations: Tensor  # (B, L, N, O)
    actions: Tensor  # (B, L, N)
    returns_to_go: Tensor  # (B, L), over the return scale
    mask: Tensor  # (B, L)


@dataclass(frozen=True, kw_only=True)
class MADT:
    """min E[-log pi(a_i | R, o_i and up to `context` steps of agent i)] over a log; play asks for more than the best.

    Parameters
    ----------
    context : steps that an agent sees, the present one included; MADT's own is 1, hardly a sequence.
    width, n_layers, n_heads : see `DecisionTransformer`.
    epochs, learning_rate, weight_decay, clip : AdamW, the rate falling to a twentieth by a cosine, the gradient clipped
        to norm `clip`; the last update counts. Only matrices decay.
    batch_size : windows of one agent in an update; those of all agents at a step come together.
    stride : an epoch takes one window in so many; 1 takes the window of every decision.
    target_gain : the return asked for in play lies this share of its absolute value above the best in the data.
    act : "sample" or "argmax".
    inference : "window" computes the last `context` steps anew, as in training; "cache" keeps keys and values, which is
        faster and, once an episode is longer than the context, an approximation (see `fedmorl.nn.transformer`).

    Notes
    -----
    Source: Meng et al. (2023), MADT; its constants of offline training.
    Departs from source: windows end at every step of an episode, the first ones short; the rate falls.
    """

    context: int = 1
    width: int = 32
    n_layers: int = 2
    n_heads: int = 2
    epochs: int = 10
    batch_size: int = 128
    stride: int = 1
    learning_rate: float = 5e-4
    weight_decay: float = 0.1
    clip: float = 0.5
    target_gain: float = 0.1
    act: str = "sample"
    inference: str = "window"

    def __post_init__(self) -> None:
        for name, allowed in (("act", ACTS), ("inference", INFERENCE)):
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")
        for name in ("context", "epochs", "batch_size", "stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1; got {getattr(self, name)}")

    def fit(self, dataset: Trajectories, *, rng: np.random.Generator, progress: bool = False) -> "MADTPolicy":
        """Train on `dataset`; the policy's `history` is the loss of each epoch [nats a decision].

        Raises
        ------
        ValueError
            If `context` is longer than the data.
        """
        return self.fit_with(dataset, rng=rng, progress=progress)

    def fit_with(
        self,
        dataset: Trajectories,
        *,
        rng: np.random.Generator,
        progress: bool = False,
        sees: str = "own",
        extra: Extra | None = None,
    ) -> "MADTPolicy":
        """As `fit`, with agents that see what all see, or with an `extra` term of the loss; for MADTKD."""
        if self.context > dataset.actions.shape[1]:
            raise ValueError(
                f"context must be at most {dataset.actions.shape[1]}, the longest trajectory in the data; "
                f"got {self.context}"
            )
        network = TeamTransformer(self, sizes_of(dataset), sees, torch_generator(rng))
        network.view.standardise(dataset)
        scale, target = return_scale(dataset), target_return(dataset, self.target_gain)
        policy = MADTPolicy(network, self, scale=scale, target=target)
        ends = np.argwhere(dataset.mask)

        def loss(rows: np.ndarray) -> tuple[Tensor, int]:
            windows = windows_of(dataset, ends[rows], self.context, scale)
            features = network.features(windows)
            logits = among_available(network.transformer.head(features), dataset, windows.at)
            nats = nats_of(logits, dataset, windows.at)[windows.mask].mean()
            return nats if extra is None else nats + extra(windows, logits, features), int(windows.mask.sum())

        with one_thread():
            policy.history = train(
                loss, len(ends), max(self.batch_size // dataset.n_agents, 1), self.epochs,
                torch.optim.AdamW(decaying(network, self.weight_decay), lr=self.learning_rate, betas=BETAS),
                stride=self.stride, clip=self.clip, rng=rng, progress=progress,
            )  # fmt: skip
        return policy


class TeamTransformer(nn.Module):
    """A decision transformer behind the eyes of each agent."""

    def __init__(self, config: MADT, sizes: Mapping[str, int], sees: str, generator: torch.Generator) -> None:
        super().__init__()
        self.sizes, self.sees = dict(sizes), sees
        self.view = AgentView(sizes["observation_size"], sizes["n_agents"], sees)
        self.transformer = DecisionTransformer(
            self.view.size, sizes["n_actions"], context=config.context, n_steps=sizes["time_limit"],
            width=config.width, n_layers=config.n_layers, n_heads=config.n_heads, generator=generator,
        )  # fmt: skip

    def features(self, windows: Windows) -> Tensor:
        """(B, L, N, W): what the head reads for each agent."""
        n, b = self.view.n_agents, len(windows.mask)
        steps = torch.from_numpy(windows.at[1])
        x = self.transformer.features(
            windows.returns_to_go.repeat_interleave(n, 0),
            self.view(windows.observations).transpose(1, 2).flatten(0, 1),
            windows.actions.transpose(1, 2).flatten(0, 1),
            steps.repeat_interleave(n, 0),
        )
        return x.unflatten(0, (b, n)).transpose(1, 2)


class Memory(NamedTuple):
    """What B teams remember; rows are B x N, the agent's index the fastest."""

    return_to_go: Tensor  # (B,), over the return scale
    previous_actions: Tensor  # (B * N,)
    past: KVCache | Window


class MADTPolicy:
    """A trained team. Memory is explicit: `start`, then `act` and `rewarded` in turn (see `fedmorl.evaluation.team`).

    `target` is the return that is asked for, in the data's unit of reward, and may be set; `history` is the loss of
    each epoch.
    """

    def __init__(self, network: TeamTransformer, config: MADT, *, scale: float, target: float) -> None:
        self.network, self.config, self.scale, self.target = network, config, scale, target
        self.history: list[float] = []

    def negative_log_likelihood(self, dataset: Trajectories, batch_size: int = 256) -> np.ndarray:
        """-log pi of each logged action [nats] given the window that ends there, (E, T, N), 0 in the padding."""
        ends, found = np.argwhere(dataset.mask), np.zeros(dataset.actions.shape, np.float32)
        with torch.no_grad(), one_thread():
            for first in range(0, len(ends), batch_size):
                own = ends[first : first + batch_size]
                windows = windows_of(dataset, own, self.config.context, self.scale)
                last = windows.mask.sum(1) - 1
                features = self.network.features(windows)[torch.arange(len(own)), last]
                at = (own[:, :1], own[:, 1:])
                nats = nats_of(self.network.transformer.head(features)[:, None], dataset, at)
                found[own[:, 0], own[:, 1]] = nats[:, 0].numpy()
        return found

    def start(self, batch: int, rng: np.random.Generator) -> Memory:
        """Nothing seen, and the target return still to come."""
        if not np.isfinite(self.target):
            raise ValueError(f"target must be a finite return; got {self.target}")
        rows, transformer = batch * self.network.view.n_agents, self.network.transformer
        windowed = self.config.inference == "window"
        past = transformer.initial_window(rows) if windowed else transformer.initial_cache()
        return Memory(torch.full((batch,), self.target / self.scale), torch.zeros(rows, dtype=torch.long), past)

    def act(
        self,
        observations: np.ndarray,
        memory: Memory,
        rng: np.random.Generator,
        available: np.ndarray | None = None,
    ) -> tuple[np.ndarray, Memory]:
        """Joint actions (B, N) for observations (B, N, O), and the memory after them."""
        n, transformer = self.network.view.n_agents, self.network.transformer
        if memory.past.n_steps >= transformer.n_steps:
            raise ValueError(
                f"an episode must end after {transformer.n_steps} steps, the data's time limit; it goes on"
            )
        with torch.inference_mode():
            seen = self.network.view(torch.tensor(observations, dtype=torch.float32)).flatten(0, 1)
            asked = memory.return_to_go.repeat_interleave(n, 0)
            advance: Any = transformer.recompute if isinstance(memory.past, Window) else transformer.step
            logits, past = advance(asked, seen, memory.previous_actions, memory.past)
        actions = joint_actions(logits.unflatten(0, (-1, n)), self.config.act, rng, available)
        return actions, memory._replace(previous_actions=torch.from_numpy(actions).flatten(), past=past)

    def rewarded(self, memory: Memory, rewards: np.ndarray) -> Memory:
        """The return still to come falls by what was received, (B,)."""
        received = torch.from_numpy(np.asarray(rewards, np.float32) / np.float32(self.scale))
        return memory._replace(return_to_go=memory.return_to_go - received)

    def save(self, path: Path | str, provenance: Mapping[str, Any] | None = None) -> None:
        """Write weights, configuration and target to one safetensors file, whole or not at all."""
        own = {"kind": KIND, "learner": asdict(self.config), "sizes": self.network.sizes, "sees": self.network.sees}
        save_module(path, self.network, own | {"scale": self.scale, "target": self.target}, provenance or {})

    @classmethod
    def load(cls, path: Path | str) -> "MADTPolicy":
        """The policy that `save` wrote; ValueError, one sentence, if the file holds none or one of another size."""
        if (kept := read_config(path)).get("kind") != KIND:
            raise ValueError(f"{path} does not hold a {KIND}")
        config = MADT(**kept["learner"])
        network = TeamTransformer(config, kept["sizes"], kept["sees"], torch.Generator())
        load_into_module(path, network)
        return cls(network, config, scale=kept["scale"], target=kept["target"])


def windows_of(dataset: Trajectories, ends: np.ndarray, context: int, scale: float) -> Windows:
    """The past of each decision: up to `context` steps of an episode that end at `ends` (B, 2), (episode, step)."""
    episodes, last = ends[:, :1], ends[:, 1:]
    steps = np.maximum(last - context + 1, 0) + np.arange(context)
    mask = steps <= last
    at = (episodes, np.minimum(steps, last))
    return Windows(
        at=at,
        observations=torch.from_numpy(dataset.observations[at]),
        actions=torch.from_numpy(dataset.actions[at].astype(np.int64)),
        returns_to_go=torch.from_numpy(dataset.returns_to_go[at] / np.float32(scale)),
        mask=torch.from_numpy(mask),
    )


def sizes_of(dataset: Trajectories) -> dict[str, int]:
    """What a network must know of a task."""
    names = ("n_agents", "n_actions", "time_limit")
    return {"observation_size": dataset.observations.shape[-1]} | {name: getattr(dataset, name) for name in names}


def decaying(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for AdamW: matrices of linear maps, which decay, and all else (biases, norms, embeddings)."""
    matrices = [layer.weight for layer in module.modules() if isinstance(layer, nn.Linear)]
    own = {id(p) for p in matrices}
    rest = [p for p in module.parameters() if id(p) not in own]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
