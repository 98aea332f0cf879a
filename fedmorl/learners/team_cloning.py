"""Behaviour cloning of a team: the actions of the log, predicted from what each agent sees, and nothing else.

The baseline without a world model, a return or a message; with a memory in one of its forms, a GRU. One set of weights
acts for all agents, told apart by a one-hot id. Letters: B rows, L steps, N agents, O observation, A actions.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedmorl.checkpoints import load_into_module, read_config, save_module
from fedmorl.data.trajectories import Trajectories
from fedmorl.federated.clients import one_thread
from fedmorl.learners.mads4 import ACTS, choose
from fedmorl.nn.gru import GRUNetwork
from fedmorl.nn.mlp import mlp, torch_generator

RATES = {"mlp": 5e-4, "gru": 2e-3}  # of each form; the GRU's updates are few, an episode being one item
KIND = "cloned team"  # what a file says that it holds
LR_END = 0.05  # share of the learning rate at which its cosine ends


@dataclass(frozen=True, kw_only=True)
class TeamCloning:
    """min E[-log pi(a_i | what agent i has seen)] over a log.

    Parameters
    ----------
    form : "mlp", which sees one observation, or "gru", which remembers all of the episode.
    hidden : widths of the MLP's hidden layers.
    width : of the GRU.
    previous_action : the GRU is told its own last action too.
    epochs, learning_rate, weight_decay, clip : AdamW, the rate falling to a twentieth by a cosine, the gradient clipped
        to norm `clip`; the last update counts. A rate of None is the form's own, see `RATES`.
    batch_size : decisions in an update of the MLP.
    batch_episodes : whole episodes in an update of the GRU.
    act : "sample" or "argmax".
    """

    form: str = "mlp"
    hidden: tuple[int, ...] = (256, 256)
    width: int = 64
    previous_action: bool = True
    epochs: int = 20
    batch_size: int = 128
    batch_episodes: int = 4
    learning_rate: float | None = None
    weight_decay: float = 0.0
    clip: float = 1.0
    act: str = "sample"

    def __post_init__(self) -> None:
        for name, allowed in (("form", tuple(RATES)), ("act", ACTS)):
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")
        for name in ("epochs", "batch_size", "batch_episodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1; got {getattr(self, name)}")

    def fit(self, dataset: Trajectories, *, rng: np.random.Generator, progress: bool = False) -> "TeamCloningPolicy":
        """Clone the actions of `dataset`; the policy's `history` is the loss of each epoch [nats a decision]."""
        sizes = {"observation_size": dataset.observations.shape[-1]} | {
            name: getattr(dataset, name) for name in ("n_agents", "n_actions")
        }
        policy = TeamCloningPolicy(ClonedTeam(self, **sizes, generator=torch_generator(rng)), self)
        policy.network.view.standardise(dataset)
        rate = RATES[self.form] if self.learning_rate is None else self.learning_rate
        optimiser = torch.optim.AdamW(policy.network.parameters(), lr=rate, weight_decay=self.weight_decay)
        one_step = self.form == "mlp"
        items = np.argwhere(dataset.mask) if one_step else np.arange(len(dataset))
        batch = max(self.batch_size // dataset.n_agents, 1) if one_step else self.batch_episodes
        with one_thread():
            policy.history = train(
                lambda rows: policy.loss(dataset, items[rows]), len(items), batch, self.epochs, optimiser,
                clip=self.clip, rng=rng, progress=progress,
            )  # fmt: skip
        return policy


class AgentView(nn.Module):
    """What an agent is given: its observation, centred and scaled by the data's, and a one-hot id.

    With `sees="all"` the observations of the agents after it follow its own, round the table: what a central teacher
    knows.
    """

    mean: Tensor
    sd: Tensor

    def __init__(self, observation_size: int, n_agents: int, sees: str = "own") -> None:
        super().__init__()
        if sees not in ("own", "all"):
            raise ValueError(f"sees must be own or all; got {sees!r}")
        self.observation_size, self.n_agents, self.sees = observation_size, n_agents, sees
        self.register_buffer("mean", torch.zeros(observation_size))
        self.register_buffer("sd", torch.ones(observation_size))

    @property
    def size(self) -> int:
        """Numbers given to each agent."""
        return self.observation_size * (self.n_agents if self.sees == "all" else 1) + self.n_agents

    def standardise(self, dataset: Trajectories) -> None:
        """Take mean and standard deviation of `dataset`; numbers that never vary are left as they are."""
        seen = dataset.observations[:, :-1][dataset.mask].reshape(-1, self.observation_size)
        mean, sd = seen.mean(0, dtype=np.float64), seen.std(0, dtype=np.float64)
        self.mean.copy_(torch.from_numpy(np.where(sd > 1e-6, mean, 0)))
        self.sd.copy_(torch.from_numpy(np.where(sd > 1e-6, sd, 1)))

    def forward(self, observations: Tensor) -> Tensor:
        """(..., N, O) -> (..., N, size)."""
        if observations.shape[-2:] != (self.n_agents, self.observation_size):
            raise ValueError(
                f"observations must have shape (..., {self.n_agents}, {self.observation_size}), as in the data; "
                f"got {tuple(observations.shape)}"
            )
        x = (observations - self.mean) / self.sd
        if self.sees == "all":
            x = torch.cat([x.roll(-k, dims=-2) for k in range(self.n_agents)], dim=-1)
        return torch.cat([x, torch.eye(self.n_agents).expand(*x.shape[:-1], -1)], dim=-1)


class ClonedTeam(nn.Module):
    """The network of `TeamCloning`: logits of all agents from a stretch of their observations."""

    def __init__(
        self, config: TeamCloning, observation_size: int, n_agents: int, n_actions: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.sizes = {"observation_size": observation_size, "n_agents": n_agents, "n_actions": n_actions}
        self.n_actions, self.previous_action = n_actions, config.form == "gru" and config.previous_action
        self.view = AgentView(observation_size, n_agents)
        self.mlp = self.gru = None
        if config.form == "mlp":
            self.mlp = mlp((self.view.size, *config.hidden, n_actions), generator)
        else:
            n_in = self.view.size + n_actions * self.previous_action
            self.gru = GRUNetwork(n_in, config.width, n_actions, generator)

    def forward(
        self, observations: Tensor, previous_actions: Tensor, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """observations (B, L, N, O), previous_actions (B, L, N), -1 where there is none: logits (B, L, N, A), state."""
        x = self.view(observations)
        if self.mlp is not None:
            return self.mlp(x), None
        if self.previous_action:
            one_hot = functional.one_hot(previous_actions + 1, self.n_actions + 1)[..., 1:]
            x = torch.cat([x, one_hot.to(x.dtype)], dim=-1)
        assert self.gru is not None
        rows = x.transpose(1, 2)  # (B, N, L, I)
        logits, state = self.gru(rows.flatten(0, 1), state)
        return logits.unflatten(0, rows.shape[:2]).transpose(1, 2), state


class TeamCloningPolicy:
    """A cloned team; `history` is the loss of each epoch. Its memory is the GRU's state and the actions just taken."""

    def __init__(self, network: ClonedTeam, config: TeamCloning) -> None:
        self.network, self.config = network, config
        self.history: list[float] = []

    def loss(self, dataset: Trajectories, items: np.ndarray) -> tuple[Tensor, int]:
        """Mean cross-entropy [nats a decision] and how many decisions it is the mean of.

        `items` are the episodes (B,), whole, or the (episode, step) (B, 2) of single decisions.
        """
        at = (items[:, :1], items[:, 1:]) if items.ndim == 2 else (items[:, None], np.arange(dataset.mask.shape[1]))
        mask = torch.from_numpy(dataset.mask[at])
        nats = nats_of(self._logits(dataset, at), dataset, at)
        return nats[mask].mean(), int(mask.sum()) * dataset.n_agents

    def negative_log_likelihood(self, dataset: Trajectories, batch_size: int = 16) -> np.ndarray:
        """-log pi of each logged action [nats], (E, T, N), 0 in the padding."""
        steps, found = np.arange(dataset.mask.shape[1]), []
        with torch.no_grad(), one_thread():
            for first in range(0, len(dataset), batch_size):
                at = (np.arange(first, min(first + batch_size, len(dataset)))[:, None], steps)
                found.append(nats_of(self._logits(dataset, at), dataset, at).numpy() * dataset.mask[at][..., None])
        return np.concatenate(found)

    def start(self, batch: int, rng: np.random.Generator) -> tuple[Tensor, Tensor | None]:
        """No action taken, nothing remembered."""
        return torch.full((batch, self.network.view.n_agents), -1), None

    def act(
        self,
        observations: np.ndarray,
        memory: tuple[Tensor, Tensor | None],
        rng: np.random.Generator,
        available: np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[Tensor, Tensor | None]]:
        """Joint actions (B, N) for observations (B, N, O), and the memory after them."""
        previous, state = memory
        with torch.inference_mode():
            seen = torch.tensor(observations, dtype=torch.float32)
            logits, state = self.network(seen[:, None], previous[:, None], state)
        actions = joint_actions(logits[:, 0], self.config.act, rng, available)
        return actions, (torch.from_numpy(actions), state)

    def rewarded(self, memory: tuple[Tensor, Tensor | None], rewards: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """Rewards are not looked at."""
        return memory

    def save(self, path: Path | str, provenance: Mapping[str, Any] | None = None) -> None:
        """Write weights and configuration to one safetensors file, whole or not at all."""
        own = {"kind": KIND, "learner": asdict(self.config), "sizes": self.network.sizes}
        save_module(path, self.network, own, provenance or {})

    @classmethod
    def load(cls, path: Path | str) -> "TeamCloningPolicy":
        """The policy that `save` wrote; ValueError, one sentence, if the file holds none or one of another size."""
        if (kept := read_config(path)).get("kind") != KIND:
            raise ValueError(f"{path} does not hold a {KIND}")
        config = TeamCloning(**kept["learner"] | {"hidden": tuple(kept["learner"]["hidden"])})
        network = ClonedTeam(config, **kept["sizes"], generator=torch.Generator())
        load_into_module(path, network)
        return cls(network, config)

    def _logits(self, dataset: Trajectories, at: tuple[np.ndarray, np.ndarray]) -> Tensor:
        episodes, steps = at
        previous = np.where(steps[..., None] > 0, dataset.actions[episodes, steps - 1], -1)
        return self.network(torch.from_numpy(dataset.observations[at]), torch.from_numpy(previous.astype(np.int64)))[0]


def among_available(logits: Tensor, dataset: Trajectories, at: tuple[np.ndarray, np.ndarray]) -> Tensor:
    """Logits (B, L, N, A) at (episodes, steps), those of actions that were not available at probability 0."""
    if dataset.available is None:
        return logits
    free = dataset.available[at] | ~dataset.mask[at][..., None, None]  # in the padding anything may be taken
    return logits.masked_fill(torch.from_numpy(~free), -1e9)


def nats_of(logits: Tensor, dataset: Trajectories, at: tuple[np.ndarray, np.ndarray]) -> Tensor:
    """-log pi [nats] of the actions at (episodes, steps), (B, L, N); of padded steps some value, to be left out."""
    actions = torch.from_numpy(dataset.actions[at].astype(np.int64))
    logits = among_available(logits, dataset, at)
    return functional.cross_entropy(logits.movedim(-1, 1), actions, reduction="none")


def joint_actions(logits: Tensor, act: str, rng: np.random.Generator, available: np.ndarray | None) -> np.ndarray:
    """(B, N, A) -> (B, N) int64: drawn, or the likeliest, among those available."""
    scores = logits.double().numpy()
    if available is not None:
        scores = np.where(available, scores, -np.inf)
    return choose(scores.reshape(-1, scores.shape[-1]), act, rng).reshape(scores.shape[:2])


def train(
    loss: Callable[[np.ndarray], tuple[Tensor, int]],
    n_items: int,
    batch: int,
    epochs: int,
    optimiser: torch.optim.Optimizer,
    *,
    stride: int = 1,
    clip: float,
    rng: np.random.Generator,
    progress: bool,
) -> list[float]:
    """Passes over the items in random order, the rate falling by a cosine; the mean loss of each.

    `loss(rows)` is the mean over the items at `rows` and its weight among all. A pass takes one item in `stride`.
    """
    from tqdm.auto import tqdm

    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    n_taken = -(-n_items // stride)
    rate, n_updates = optimiser.param_groups[0]["lr"], epochs * -(-n_taken // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, n_updates, eta_min=LR_END * rate)
    history = []
    for _ in (bar := tqdm(range(epochs), desc="cloning", unit="epoch", disable=not progress)):
        total = weight = 0.0
        order = rng.permutation(n_items)[:n_taken]
        for first in range(0, n_taken, batch):
            optimiser.zero_grad()
            value, count = loss(order[first : first + batch])
            value.backward()
            torch.nn.utils.clip_grad_norm_(parameters, clip)
            optimiser.step()
            schedule.step()
            total, weight = total + float(value.detach()) * count, weight + count
        history.append(total / weight)
        bar.set_postfix(nats=f"{history[-1]:.3f}")
    return history
