"""What a MADS4 team lived through, kept so that each step can be gone through again: states, messages, returns to go.

Letters: B episodes, T steps of the longest, n agents, O observation, A actions, S global state, D message, H channels,
M = N / 2 states of a channel. "By position" means k-th to act; which agent that is says `order`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fedmorl.evaluation.team import TeamStep, TeamTask
from fedmorl.learners.mads4 import Batch, MADS4Policy, Memory
from fedmorl.learners.mads4_actor import Inputs
from fedmorl.nn.s4 import S4State

ROWS = 1_000  # at a time where no gradient is needed


@dataclass(frozen=True, kw_only=True, eq=False)
class Rollout:
    """B episodes of one policy, padded on the right where `mask` is False.

    The S4 states weigh most: 8 bytes x B T n H M a layer, 0.1 GB for 8 episodes of 500 steps, 2 agents and 3 layers
    of H = N = 32, 0.9 GB at H = N = 96.
    """

    observations: Tensor  # (B, T, n, O)
    actions: Tensor  # (B, T, n) int64
    available: Tensor | None  # (B, T, n, A) bool
    returns_to_go: Tensor  # (B, T, 1), over the policy's return scale
    order: Tensor  # (B, n) agent at each position
    states: list[Tensor]  # of each layer: x_i^(t-1) by position, (B, T, n, H, M) complex
    heard: Tensor  # (B, T, n, D): m_(i-1) by position, as the agent heard it
    situations: Tensor  # (B, T + 1, S + n D): global state s^t and every agent's m^(t-1), zeros at t = 0
    rewards: Tensor  # (B, T), in the task's unit
    terminated: Tensor  # (B, T) bool
    truncated: Tensor  # (B, T) bool
    mask: Tensor  # (B, T) bool: the step was played
    sums: dict[str, np.ndarray]  # (B,) of each number that the task tells besides, summed over the episode

    @property
    def taken(self) -> Tensor:
        """The actions by position, (B, T, n)."""
        return self.actions.gather(2, self.order[:, None].expand_as(self.actions))

    @property
    def previous_actions(self) -> Tensor:
        """The actions of the step before, (B, T, n); -1 before the first."""
        return functional.pad(self.actions, (0, 0, 1, 0), value=-1)[:, :-1]

    @property
    def returns(self) -> np.ndarray:
        """Undiscounted returns, (B,)."""
        return self.rewards.double().sum(1).cpu().numpy()

    @property
    def n_steps(self) -> int:
        """Joint steps played."""
        return int(self.mask.sum())


def collect(task: TeamTask, policy: MADS4Policy, seeds: Sequence[int], rng: np.random.Generator) -> Rollout:
    """Play one episode for each seed and keep all that fine-tuning needs; MADS4, Algorithm 2, lines 5 to 15.

    The global state is the task's `states()`, (B, S); of a task that has none, all observations side by side. If it has
    `available()`, (B, n, A) bool, only those actions are taken.

    Raises
    ------
    ValueError
        If a reward is not finite, or an episode has not ended at the task's time limit.
    """
    observations, memory = task.reset(seeds), policy.start(len(seeds), rng)
    alive, rows = np.ones(len(seeds), bool), []
    for t in range(task.time_limit):
        available = task.available() if hasattr(task, "available") else None
        actions, after = policy.act(observations, memory, rng, available)
        before = _remembered(memory, after if not policy.config.delayed else memory)
        before |= {"observations": observations, "state": _state(task, observations)}
        step = task.step(actions)
        rows.append(before | {"actions": actions, "alive": alive} | _outcome(step, alive, t))
        if available is not None:
            rows[-1]["available"] = available | ~alive[:, None, None]
        memory, observations = policy.rewarded(after, rows[-1]["rewards"]), step.observations
        alive = alive & ~(step.terminated | step.truncated)
        if not alive.any():
            break
    if alive.any():
        raise ValueError(f"every episode must end within the task's time_limit, {task.time_limit} steps; one has not")
    last = _situation(torch.from_numpy(_state(task, observations)), _by_agent(memory))
    return _stacked(rows, torch.from_numpy(memory.order), last, next(policy.actor.parameters()).device)


def step_log_probabilities(policy: MADS4Policy, rollout: Rollout, b: Tensor, t: Tensor) -> Tensor:
    """log pi of every action [nats] at step t of episode b, by position: indices (R,) -> (R, n, A).

    One step of the recurrence from the recorded state and message, which are constants here: the gradient goes through
    this step only ("individual tuples", MADS4, section 1), and none reaches the head that makes messages.
    """
    actor, order = policy.actor, rollout.order[b]  # (R, n)
    at = (b[:, None], t[:, None], order)
    one_hot = functional.one_hot(rollout.previous_actions[at] + 1, actor.n_actions + 1)[..., 1:]
    inputs = Inputs(
        observation=policy.standardised(rollout.observations[at]).flatten(0, 1),
        agent=functional.one_hot(order, actor.n_agents).float().flatten(0, 1),
        previous_action=one_hot.float().flatten(0, 1),
        return_to_go=rollout.returns_to_go[b, t].repeat_interleave(actor.n_agents, 0),
        message=rollout.heard[b, t].flatten(0, 1),
        turn=torch.arange(actor.n_agents, device=b.device).repeat(len(b)),
    )
    recurrence = actor.blocks.recurrence()
    before = [S4State(x[b, t].flatten(0, 1), r) for x, r in zip(rollout.states, recurrence, strict=True)]
    logits = actor.step(inputs, before)[0].unflatten(0, order.shape)
    if rollout.available is not None:
        logits = logits.masked_fill(~rollout.available[at], -1e9)
    return functional.log_softmax(logits, -1)


def sequence_log_probabilities(policy: MADS4Policy, rollout: Rollout, b: Tensor, t: Tensor) -> Tensor:
    """The same by convolution over whole episodes: the gradient goes through all steps and messages before."""
    episodes, row = b.unique(return_inverse=True)
    one_hot = functional.one_hot(rollout.previous_actions[episodes] + 1, policy.actor.n_actions + 1)[..., 1:]
    batch = Batch(
        observations=rollout.observations[episodes],
        actions=rollout.actions[episodes],
        previous_actions=one_hot.float(),
        returns_to_go=rollout.returns_to_go[episodes],
        mask=rollout.mask[episodes],
        available=None if rollout.available is None else rollout.available[episodes],
    )
    return policy.log_probabilities(batch, rollout.order[episodes])[row, t]


def played_log_probabilities(policy: MADS4Policy, rollout: Rollout) -> Tensor:
    """log pi [nats] of the policy that played, by position, (B, T, n, A); 0 in the padding."""
    b, t = rollout.mask.nonzero(as_tuple=True)
    found = [step_log_probabilities(policy, rollout, *rows) for rows in zip(b.split(ROWS), t.split(ROWS), strict=True)]
    whole = torch.zeros(*rollout.actions.shape, policy.actor.n_actions, device=b.device)
    return whole.index_put((b, t), torch.cat(found))


def parts(
    rollout: Rollout, n_parts: int, generator: torch.Generator, *, whole: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """All played steps in random parts of nearly the same size, as (b, t); `whole` keeps each episode in one part."""
    b, t = rollout.mask.nonzero(as_tuple=True)
    units = len(rollout.mask) if whole else len(b)
    for chosen in torch.randperm(units, generator=generator).tensor_split(min(n_parts, units)):
        rows = torch.isin(b, chosen.to(b.device)) if whole else chosen.to(b.device)
        yield b[rows], t[rows]


# ------------------------------------------------------------------------------------------------ recording


def _remembered(memory: Memory, speaking: Memory) -> dict[str, Any]:
    """What the agents act on besides observations; `speaking` holds the messages that they hear."""
    layers = zip(*([layer.x for layer in states] for states in memory.states), strict=True)
    return {
        "returns_to_go": memory.returns_to_go,
        "heard": functional.pad(speaking.messages, (0, 0, 1, 0))[:, :-1],
        "told": _by_agent(memory),
        **{f"layer {k}": torch.stack(x, 1) for k, x in enumerate(layers)},
    }


def _by_agent(memory: Memory) -> Tensor:
    """The messages of the step before in the order of the agents, (B, n, D)."""
    place = memory.order.argsort(1)
    return memory.messages[np.arange(len(place))[:, None], place]


def _state(task: TeamTask, observations: np.ndarray) -> np.ndarray:
    """(B, S) float32."""
    return (
        np.asarray(task.states(), np.float32)
        if hasattr(task, "states")
        else observations.reshape(len(observations), -1)
    )


def _situation(state: Tensor, told: Tensor) -> Tensor:
    """(..., S) and (..., n, D) -> (..., S + n D)."""
    return torch.cat((state.to(told.device), told.flatten(-2)), -1)


def _outcome(step: TeamStep, alive: np.ndarray, t: int) -> dict[str, np.ndarray]:
    rewards = np.where(alive, step.rewards, 0.0).astype(np.float32)
    if not np.isfinite(rewards).all():
        b = int(np.argmin(np.isfinite(rewards)))
        raise ValueError(f"rewards must be finite; the task gave {rewards[b]} at step {t} of episode {b}")
    ends = {"terminated": step.terminated & alive, "truncated": step.truncated & alive & ~step.terminated}
    extras = {f"sum {name}": values * alive for name, values in step.extras.items() if values.ndim == 1}
    return {"rewards": rewards, **ends, **extras}


def _stacked(rows: list[dict[str, Any]], order: Tensor, last: Tensor, device: torch.device) -> Rollout:
    """Steps side by side; each name leaves `rows` as it is stacked, so that the S4 states are there only once."""
    stacked = {}
    for name in list(rows[0]):
        stacked[name] = torch.stack([torch.as_tensor(row.pop(name)) for row in rows], 1).to(device)
    layers = [stacked.pop(name) for name in list(stacked) if name.startswith("layer ")]
    sums = {name[4:]: stacked.pop(name).sum(1).cpu().numpy() for name in list(stacked) if name.startswith("sum ")}
    situations = _situation(stacked.pop("state"), stacked.pop("told"))
    return Rollout(
        order=order.to(device),
        states=layers,
        situations=torch.cat((situations, last[:, None].to(device)), 1),
        mask=stacked.pop("alive"),
        sums=sums,
        available=stacked.pop("available", None),
        **stacked,
    )
