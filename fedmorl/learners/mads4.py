"""MADS4: offline policies as S4 sequence models; agents act one after another and pass on their latent state.

Training is supervised: the logged actions are predicted from observations, past actions and the return that was still
to come, whole trajectories at once, by convolution (MADS4, Algorithm 1). Play asks for a return above any in the data,
step by step, by recurrence. Letters: B episodes, L steps, n agents, O observation, A actions.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fedmorl.checkpoints import load_into_module, read_config, save_module
from fedmorl.data.trajectories import Trajectories
from fedmorl.federated.clients import one_thread
from fedmorl.learners.mads4_actor import Inputs, MADS4Actor
from fedmorl.nn.mlp import torch_generator
from fedmorl.nn.s4 import S4State, parameter_groups
from fedmorl.nn.s4_kernels import Recurrence

ORDERS = ("fixed", "shuffle")
ACTS = ("sample", "argmax")
LR_END = 1e-4  # where the cosine schedule ends


class Batch(NamedTuple):
    """B trajectories of n agents as tensors; padded steps are False in `mask`."""

    observations: Tensor  # (B, L, n, O)
    actions: Tensor  # (B, L, n) int64
    previous_actions: Tensor  # (B, L, n, A) one-hot, zeros before the first step
    returns_to_go: Tensor  # (B, L, 1), over the return scale
    mask: Tensor  # (B, L) bool
    available: Tensor | None  # (B, L, n, A) bool

    def take(self, rows: Tensor | slice) -> "Batch":
        """Some of the trajectories."""
        return Batch(*(None if x is None else x[rows] for x in self))  # type: ignore[arg-type]

    def to(self, device: torch.device | str) -> "Batch":
        """The same elsewhere."""
        return Batch(*(None if x is None else x.to(device) for x in self))  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class MADS4:
    """How MADS4 is trained and played; `fit` does it.

    Parameters
    ----------
    H, N, n_blocks, kind, norm, residual, dropout : see `MADS4Actor`.
    share, message, message_action : what an agent hears of the one before; "none" gives independent agents (IDS4).
    order : "fixed", as the agents stand in the data, or "shuffle", a random one for each episode (MADS4, Fig. 4a).
    delayed : hear what the predecessor told a step ago, so that all agents can act at once (MADS4-dec, Fig. 4b).
    detach_message : cut the gradient from an agent to its predecessors (an ablation of eq. (6)).
    epochs, batch_size, learning_rate, weight_decay, clip : AdamW on `batch_size` trajectories, the rate falling to
        1e-4 by a cosine, the gradient clipped to norm `clip`.
    context_steps : train on stretches of so many steps instead of whole trajectories (MADS4, Fig. 5).
    target_gain : the return asked for in play lies this share above the best in the data (MADS4, section 5.2: .1).
    act : "sample" (section 4.1) or "argmax" (eq. (8)); the paper says both.
    device : "cpu", "cuda", or "auto".

    Notes
    -----
    Departs from source: one update for all agents together, after the loop over agents (Algorithm 1 updates inside
    it, which would break eq. (6)'s gradient); cross-entropy where line 9 prints a sum that rises with it.
    """

    H: int = 96
    N: int = 96
    n_blocks: int = 3
    kind: str = "nplr"
    norm: str = "batch"
    residual: bool = True
    dropout: float = 0.1
    share: str = "latent"
    message: str = "output"
    message_action: bool = False
    order: str = "fixed"
    delayed: bool = False
    detach_message: bool = False
    epochs: int = 20
    batch_size: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    clip: float = 1.0
    context_steps: int | None = None
    target_gain: float = 0.1
    act: str = "sample"
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, allowed in (("order", ORDERS), ("act", ACTS)):
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1; got {getattr(self, name)}")

    def actor(self, dataset: Trajectories, generator: torch.Generator) -> MADS4Actor:
        """An untrained actor for the agents of `dataset`."""
        _, length, n = dataset.actions.shape
        own = ("share", "message", "message_action", "H", "N", "n_blocks", "kind", "norm", "residual", "dropout")
        return MADS4Actor(
            dataset.observations.shape[-1], n, dataset.n_actions, length=self.context_steps or length,
            generator=generator, **{name: getattr(self, name) for name in own},
        )  # fmt: skip

    def untrained(self, dataset: Trajectories, generator: torch.Generator) -> "MADS4Policy":
        """The policy that `fit` begins with: of `dataset` it knows how large observations and returns are, no more."""
        actor = self.actor(dataset, generator).to(_device(self.device)).eval()
        scale, target = return_scale(dataset), target_return(dataset, self.target_gain)
        policy = MADS4Policy(actor, self, scale=scale, target=target)
        policy.standardise(dataset)
        return policy

    def fit(self, dataset: Trajectories, *, rng: np.random.Generator, progress: bool = False) -> "MADS4Policy":
        """Train on all of `dataset`; the policy of the last update.

        Raises
        ------
        ValueError
            If `context_steps` is longer than the data.
        """
        if self.context_steps is not None and not 1 <= self.context_steps <= dataset.actions.shape[1]:
            raise ValueError(
                f"context_steps must be from 1 to {dataset.actions.shape[1]}, the longest trajectory in the data; "
                f"got {self.context_steps}"
            )
        generator = torch_generator(rng)
        policy = self.untrained(dataset, generator)
        batch = stretches(to_batch(dataset, policy.scale), self.context_steps)
        with one_thread():
            policy.history = list(self._train(policy, batch, generator, progress))
        policy.actor.eval()
        return policy

    def _train(
        self, policy: "MADS4Policy", batch: Batch, generator: torch.Generator, progress: bool
    ) -> Iterator[float]:
        """One mean loss [nats a decision] an epoch."""
        from tqdm.auto import tqdm

        n_rows, actor = len(batch.mask), policy.actor.train()
        optimiser = torch.optim.AdamW(parameter_groups(actor, lr=self.learning_rate, weight_decay=self.weight_decay))
        n_updates = self.epochs * -(-n_rows // self.batch_size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, n_updates, eta_min=LR_END)
        bar = tqdm(range(self.epochs), desc="MADS4", unit="epoch", disable=not progress)
        for _ in bar:
            total = count = 0.0
            for rows in torch.randperm(n_rows, generator=generator).split(self.batch_size):
                own = batch.take(rows).to(_of(actor))
                optimiser.zero_grad()
                nats = policy.nats(own, generator)
                n_decisions = float(own.mask.sum()) * actor.n_agents
                (nats / n_decisions).backward()
                torch.nn.utils.clip_grad_norm_(actor.parameters(), self.clip)
                optimiser.step()
                schedule.step()
                total, count = total + float(nats.detach()), count + n_decisions
            bar.set_postfix(nats=f"{total / count:.3f}")
            yield total / count


class Memory(NamedTuple):
    """What B teams remember between steps; position k is the k-th to act, which agent that is says `order`."""

    order: np.ndarray  # (B, n) agent at each position
    states: list[list[S4State]]  # of each position
    previous_actions: Tensor  # (B, n, A) one-hot, by position
    messages: Tensor  # (B, n, D) of the step before, by position
    returns_to_go: Tensor  # (B, 1), over the return scale


class MADS4Policy:
    """A trained team. Memory is explicit: `start`, then `act` and `rewarded` in turn (see `fedmorl.evaluation.team`).

    `target` is the return that is asked for, in the data's unit of reward, and may be set; `history` is the loss of
    each epoch [nats a decision].
    """

    def __init__(self, actor: MADS4Actor, config: MADS4, *, scale: float, target: float) -> None:
        self.actor, self.config, self.scale, self.target = actor, config, scale, target
        self.history: list[float] = []
        self._recurrence: list[Recurrence] | None = None
        self._folded: tuple[Tensor, Tensor] | None = None
        for name, fill in (("observation_mean", 0.0), ("observation_sd", 1.0)):
            if not hasattr(actor, name):
                actor.register_buffer(name, torch.full((actor.observation_size,), fill, device=_of(actor)))

    def standardise(self, dataset: Trajectories) -> None:
        """Centre and scale observations by those of `dataset`; numbers that never vary are left as they are."""
        seen = dataset.observations[:, :-1][dataset.mask].reshape(-1, self.actor.observation_size)
        sd = seen.std(0, dtype=np.float64)
        for name, value in (
            ("mean", np.where(sd > 1e-6, seen.mean(0, dtype=np.float64), 0)),
            ("sd", np.where(sd > 1e-6, sd, 1)),
        ):
            buffer = getattr(self.actor, f"observation_{name}")
            buffer.copy_(torch.from_numpy(value.astype(np.float32)))

    # ---------------------------------------------------------------------------- whole trajectories

    def nats(self, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        """Summed cross-entropy of the logged actions [nats], all agents and played steps; MADS4, eq. (6)."""
        order = self._orders(len(batch.mask), generator)
        total = torch.zeros((), device=batch.mask.device)
        for logits, actions in self._in_turn(batch, order, generator):
            total = total + functional.cross_entropy(logits[batch.mask], actions[batch.mask], reduction="sum")
        return total

    def negative_log_likelihood(self, dataset: Trajectories, batch_size: int = 16) -> np.ndarray:
        """-log pi of each logged action [nats], (E, L, n), 0 in the padding; agents in the order of the data."""
        batch, found = to_batch(dataset, self.scale), []
        with torch.no_grad(), one_thread():
            for rows in torch.arange(len(dataset)).split(batch_size):
                own = batch.take(rows).to(_of(self.actor))
                order = torch.arange(self.actor.n_agents).expand(len(rows), -1)
                turns = [
                    functional.cross_entropy(logits.movedim(-1, 1), actions, reduction="none") * own.mask
                    for logits, actions in self._in_turn(own, order, None)
                ]
                found.append(torch.stack(turns, -1).cpu().numpy())
        return np.concatenate(found)

    def log_probabilities(self, batch: Batch, order: Tensor) -> Tensor:
        """log pi of every action [nats] by convolution, (B, L, n, A); position k is agent order[b, k]."""
        turns = self._in_turn(batch, order, None)
        return torch.stack([functional.log_softmax(logits, -1) for logits, _ in turns], 2)

    def _in_turn(
        self, batch: Batch, order: Tensor, generator: torch.Generator | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits (B, L, A) and logged actions (B, L) of the agent at each position, the messages handed on."""
        actor, (b, length) = self.actor, batch.mask.shape
        kernels, message = actor.kernels(length), actor.silence(b, length)
        observations = self.standardised(batch.observations)
        rows = torch.arange(b, device=batch.mask.device)
        padded = None if bool(batch.mask.all()) else batch.mask
        for turn, agent in enumerate(order.to(rows.device).T):
            inputs = Inputs(
                observation=observations[rows, :, agent],
                agent=functional.one_hot(agent, actor.n_agents).float(),
                previous_action=batch.previous_actions[rows, :, agent],
                return_to_go=batch.returns_to_go,
                message=message,
                turn=turn,
            )
            logits, told = actor(inputs, padded, kernels, generator)
            actions = batch.actions[rows, :, agent]
            if batch.available is not None:
                logits = logits.masked_fill(~batch.available[rows, :, agent], -1e9)
            yield logits, actions
            message = actor.with_action(told, functional.one_hot(actions, actor.n_actions).float())
            message = message.detach() if self.config.detach_message else message
            if self.config.delayed:
                message = functional.pad(message, (0, 0, 1, 0))[:, :-1]

    # ------------------------------------------------------------------------------------ step by step

    def start(self, batch: int, rng: np.random.Generator) -> Memory:
        """The memory before the first step: nothing seen, and the target return still to come."""
        actor, n = self.actor, self.actor.n_agents
        if not np.isfinite(self.target):
            raise ValueError(f"target must be a finite return; got {self.target}")
        if self._recurrence is None:
            with torch.no_grad(), one_thread():
                self._recurrence, self._folded = actor.blocks.recurrence(), actor.fold()
        order = np.tile(np.arange(n), (batch, 1))
        if self.config.order == "shuffle":
            order = rng.permuted(order, axis=1)
        return Memory(
            order=order,
            states=[actor.blocks.initial_state(batch, self._recurrence) for _ in range(n)],
            previous_actions=torch.zeros(batch, n, actor.n_actions, device=_of(actor)),
            messages=actor.silence(batch, n),
            returns_to_go=torch.full((batch, 1), self.target / self.scale, device=_of(actor)),
        )

    def act(
        self,
        observations: np.ndarray,
        memory: Memory,
        rng: np.random.Generator,
        available: np.ndarray | None = None,
    ) -> tuple[np.ndarray, Memory]:
        """Joint actions (B, n) for observations (B, n, O), agent after agent, and the memory after them."""
        rows, actions = np.arange(len(observations)), np.zeros(observations.shape[:2], np.int64)
        message, states, told, taken = self.actor.silence(len(observations)), [], [], []
        for k in range(self.actor.n_agents):
            agent = memory.order[:, k]
            heard = memory.messages[:, k - 1] if self.config.delayed and k > 0 else message
            logits, message, state = self._answer(observations[rows, agent], agent, heard, k, memory)
            if available is not None:
                logits = np.where(available[rows, agent], logits, -np.inf)
            chosen = choose(logits, self.config.act, rng)
            actions[rows, agent] = chosen
            one_hot = functional.one_hot(torch.from_numpy(chosen), self.actor.n_actions).float().to(message.device)
            message = self.actor.with_action(message, one_hot)
            states.append(state)
            told.append(message)
            taken.append(one_hot)
        return actions, memory._replace(
            states=states, messages=torch.stack(told, 1), previous_actions=torch.stack(taken, 1)
        )

    def rewarded(self, memory: Memory, rewards: np.ndarray) -> Memory:
        """The return still to come falls by what was received, (B,)."""
        received = torch.from_numpy(np.asarray(rewards, np.float32)[:, None] / np.float32(self.scale))
        return memory._replace(returns_to_go=memory.returns_to_go - received.to(memory.returns_to_go.device))

    def _answer(
        self, observation: np.ndarray, agent: np.ndarray, heard: Tensor, k: int, memory: Memory
    ) -> tuple[np.ndarray, Tensor, list[S4State]]:
        device = _of(self.actor)
        inputs = Inputs(
            observation=self.standardised(torch.from_numpy(observation).to(device)),
            agent=functional.one_hot(torch.from_numpy(agent).to(device), self.actor.n_agents).float(),
            previous_action=memory.previous_actions[:, k],
            return_to_go=memory.returns_to_go,
            message=heard,
            turn=k,
        )
        with torch.inference_mode():
            logits, message, state = self.actor.step(inputs, memory.states[k], self._folded)
        return logits.double().cpu().numpy(), message, state

    def standardised(self, observations: Tensor) -> Tensor:
        """Observations (..., O) as the actor wants them."""
        mean, sd = self.actor.get_buffer("observation_mean"), self.actor.get_buffer("observation_sd")
        return (observations - mean) / sd

    def _orders(self, batch: int, generator: torch.Generator | None) -> Tensor:
        n = self.actor.n_agents
        if self.config.order == "fixed" or generator is None:
            return torch.arange(n).expand(batch, -1)
        return torch.stack([torch.randperm(n, generator=generator) for _ in range(batch)])

    # ------------------------------------------------------------------------------------------ on disk

    def save(self, path: Path | str, provenance: Mapping[str, Any] | None = None) -> None:
        """Write weights, configuration and targets to one safetensors file, whole or not at all."""
        actor = self.actor
        sizes = {name: getattr(actor, name) for name in ("observation_size", "n_agents", "n_actions")}
        length = int(next(iter(actor.blocks)).s4.length)
        own = {"learner": asdict(self.config), "sizes": sizes, "length": length}
        save_module(path, actor, own | {"scale": self.scale, "target": self.target}, provenance or {})

    @classmethod
    def load(cls, path: Path | str) -> "MADS4Policy":
        """The policy that `save` wrote; ValueError, one sentence, if the file holds none or one of another size."""
        kept = read_config(path)
        config, sizes = MADS4(**kept["learner"]), kept["sizes"]
        own = ("share", "message", "message_action", "H", "N", "n_blocks", "kind", "norm", "residual", "dropout")
        settings = {name: getattr(config, name) for name in own}
        actor = MADS4Actor(**sizes, **settings, length=kept["length"], generator=torch.Generator())
        policy = cls(actor, config, scale=kept["scale"], target=kept["target"])
        load_into_module(path, actor)
        actor.eval()
        return policy


def to_batch(dataset: Trajectories, scale: float) -> Batch:
    """Trajectories as tensors; returns-to-go over `scale`."""
    mask, actions = torch.from_numpy(dataset.mask), torch.from_numpy(dataset.actions.astype(np.int64))
    one_hot = functional.one_hot(actions, dataset.n_actions).float() * mask[..., None, None]
    available = None if dataset.available is None else torch.from_numpy(dataset.available[:, :-1].copy())
    if available is not None:
        available = available | ~mask[..., None, None]  # in the padding anything may be taken: no row is all masked
    return Batch(
        observations=torch.from_numpy(dataset.observations[:, :-1].copy()),
        actions=actions,
        previous_actions=functional.pad(one_hot, (0, 0, 0, 0, 1, 0))[:, :-1],
        returns_to_go=torch.from_numpy(dataset.returns_to_go / np.float32(scale))[..., None],
        mask=mask,
        available=available,
    )


def stretches(batch: Batch, length: int | None) -> Batch:
    """Trajectories cut into stretches of `length` steps; those that hold no played step are left out."""
    if length is None or length == batch.mask.shape[1]:
        return batch
    short = -batch.mask.shape[1] % length

    def cut(x: Tensor) -> Tensor:
        padded = functional.pad(x, (*[0, 0] * (x.ndim - 2), 0, short))
        return padded.reshape(-1, length, *x.shape[2:])

    whole = Batch(*(None if x is None else cut(x) for x in batch))  # type: ignore[arg-type]
    return whole.take(torch.nonzero(whole.mask.any(1))[:, 0])


def return_scale(dataset: Trajectories) -> float:
    """What returns-to-go are divided by: the best return in the data, in absolute value."""
    return max(float(np.abs(dataset.returns.max())), 1e-6)


def target_return(dataset: Trajectories, gain: float = 0.1) -> float:
    """The return asked for in play: the best in the data and `gain` of its absolute value (MADS4, section 5.2)."""
    best = float(dataset.returns.max())
    return best + gain * abs(best)


def choose(logits: np.ndarray, act: str, rng: np.random.Generator) -> np.ndarray:
    """(B, A) -> (B,) int64: drawn from the softmax, or its mode."""
    if act == "argmax":
        return logits.argmax(-1)
    p = np.exp(logits - logits.max(-1, keepdims=True)).cumsum(-1)
    return (rng.random((len(p), 1)) * p[:, -1:] >= p).sum(-1)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def _of(module: torch.nn.Module) -> torch.device:
    return next(module.parameters()).device
