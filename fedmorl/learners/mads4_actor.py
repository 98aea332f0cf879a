"""The actor of MADS4: one set of weights that acts for each agent in turn and passes on what it remembers.

Letters: B episodes, L steps, n agents, O observation, A actions, H channels, D message. An agent is told its place in
the data by a one-hot id, and hears the agent before it by a message m_(i-1); the first hears zeros (MADS4, eq. (5)).
"""

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedmorl.nn.mlp import mlp
from fedmorl.nn.s4 import S4State
from fedmorl.nn.s4_blocks import S4Stack

SHARES = ("latent", "logits", "both", "none")
MESSAGES = ("output", "state")
STATE_MESSAGE = 16  # numbers in a message read from the S4 state itself


class Inputs(NamedTuple):
    """What one agent is given at each step, MADS4 eq. (7); (B, L, ...) in training, (B, ...) in play."""

    observation: Tensor  # (..., O)
    agent: Tensor  # (B, n) one-hot id
    previous_action: Tensor  # (..., A) one-hot, zeros before the first step
    return_to_go: Tensor  # (..., 1), over the return scale
    message: Tensor  # (..., D)
    turn: int | Tensor = 0  # which place in the order of agents; in play one for each row may be given, (B,)


class MADS4Actor(nn.Module):
    """Encoders, blocks of S4 and two heads: what to do, and what to tell the next agent (MADS4, Fig. 1b).

    Parameters
    ----------
    observation_size, n_agents, n_actions : int
        O, n and A.
    share : str
        What is passed on: "latent" (the projection of the memory), "logits", "both", or "none" (every agent hears
        zeros; IDS4 of MADS4, section 5.4).
    message : str
        Of a latent: "output" projects the output of the last block, "state" reads the state of its S4 layer.
    message_action : bool
        Append the one-hot action of the agent before, which the latent state cannot hold: it is emitted together with
        the action's probabilities (MADS4 speaks of predecessors' actions in section 3.2, eq. (5) passes none).
    H, N, n_blocks, kind, norm, residual, dropout, length
        Of the blocks, see `fedmorl.nn.s4_blocks.S4Stack`.

    Notes
    -----
    Departs from source: the paper names neither the number of blocks (3: its 200 k parameters fit no other) nor the
    residual connection; batch norm has running statistics for each place in the order (`MaskedBatchNorm`); the message
    is a projection of outputs by default, since the convolution yields no states.
    """

    def __init__(
        self,
        observation_size: int,
        n_agents: int,
        n_actions: int,
        *,
        share: str = "latent",
        message: str = "output",
        message_action: bool = False,
        H: int = 96,
        N: int = 96,
        n_blocks: int = 3,
        kind: str = "nplr",
        norm: str = "batch",
        residual: bool = True,
        dropout: float = 0.1,
        length: int = 500,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        if share not in SHARES or message not in MESSAGES:
            name, value, allowed = ("share", share, SHARES) if share not in SHARES else ("message", message, MESSAGES)
            raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")
        self.n_agents, self.n_actions, self.observation_size = n_agents, n_actions, observation_size
        self.share, self.message, self.message_action = share, message, message_action
        latent = STATE_MESSAGE if message == "state" else H
        parts = {"latent": latent, "logits": n_actions, "both": latent + n_actions, "none": latent}
        self.message_size = parts[share] + n_actions * message_action
        self.observe = mlp((observation_size + n_agents, H), generator)
        self.recall_action = mlp((n_actions, H), generator)
        self.aim = mlp((1, H), generator)
        self.listen = mlp((self.message_size, H), generator)
        self.project = mlp((4 * H, H), generator)
        readout = STATE_MESSAGE if message == "state" else 0
        self.blocks = S4Stack(
            H, N, n_blocks=n_blocks, kind=kind, norm=norm, residual=residual, dropout=dropout, length=length,
            n_turns=n_agents, readout=readout, generator=generator,
        )  # fmt: skip
        self.head = mlp((H, H, n_actions), generator)
        self.tell = mlp((H, latent), generator) if message == "output" else None

    def kernels(self, length: int) -> list[Tensor]:
        """The convolution kernel of each block, made once for all agents of an update."""
        return self.blocks.kernels(length)

    def forward(
        self, inputs: Inputs, mask: Tensor | None, kernels: list[Tensor], generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Whole trajectories of one agent: logits (B, L, A) and messages (B, L, D) without a predecessor's action."""
        u, turn = self.encode(inputs), int(inputs.turn)
        if self.message == "state":
            z, latent = self.blocks.forward_and_read(u, mask, kernels=kernels, turn=turn, generator=generator)
        else:
            z = self.blocks(u, mask, kernels=kernels, turn=turn, generator=generator)
            latent = None
        return self._heads(z, latent)

    def step(
        self, inputs: Inputs, state: list[S4State], folded: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor, list[S4State]]:
        """One step of one agent: logits (B, A), message (B, D) and its next state; `folded` is `self.fold()`."""
        z, state = self.blocks.step(self.encode(inputs, folded), state, inputs.turn)
        logits, message = self._heads(z, self.blocks.read(state) if self.message == "state" else None)
        return logits, message, state

    def encode(self, inputs: Inputs, folded: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """(..., H): the four encoders side by side, projected; MADS4, section 4.1 (ii) and (i)."""
        agent = inputs.agent if inputs.observation.ndim == 2 else inputs.agent[:, None]
        agent = agent.expand(*inputs.observation.shape[:-1], -1)
        row = torch.cat((inputs.observation, agent, inputs.previous_action, inputs.return_to_go, inputs.message), -1)
        return functional.relu(functional.linear(row, *(folded or self.fold())))

    def fold(self) -> tuple[Tensor, Tensor]:
        """The encoders and the projection as one affine map of all inputs in a row: weight (H, inputs), bias (H,).

        Nothing bends between them, so this is what they are, in one product where they would take five.
        """
        *encoders, project = (
            cast("nn.Linear", module[0])
            for module in (self.observe, self.recall_action, self.aim, self.listen, self.project)
        )
        parts = project.weight.chunk(4, 1)
        weight = torch.cat([part @ encoder.weight for part, encoder in zip(parts, encoders, strict=True)], 1)
        biases = [part @ encoder.bias for part, encoder in zip(parts, encoders, strict=True)]
        return weight, torch.stack([*biases, project.bias]).sum(0)

    def silence(self, *shape: int) -> Tensor:
        """What the first agent hears: zeros (..., D)."""
        return torch.zeros(*shape, self.message_size, device=next(self.parameters()).device)

    def with_action(self, message: Tensor, action: Tensor) -> Tensor:
        """The message as it is heard: with the sender's one-hot action, if that is passed on too."""
        return torch.cat((message, action), -1) if self.message_action else message

    def _heads(self, z: Tensor, latent: Tensor | None) -> tuple[Tensor, Tensor]:
        logits = self.head(z)
        if self.share == "none":
            return logits, torch.zeros(*z.shape[:-1], self.message_size - self.n_actions * self.message_action)
        latent = functional.relu(self.tell(z) if self.tell is not None else latent)  # type: ignore[arg-type]
        told = {"latent": (latent,), "logits": (logits,), "both": (latent, logits)}[self.share]
        return logits, torch.cat(told, -1)
