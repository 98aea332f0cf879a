"""Blocks of S4 layers as MADS4 stacks them, over sequences of unequal length, with a step for playing.

A block is norm, S4, linear, GELU, dropout, and around them a residual connection (MADS4, section 4.1). Episodes of
unequal length stand side by side, padded on the right: `mask` (B, L) is True at steps that were played. A causal layer
carries nothing back from the padding, but a batch norm would count it; `MaskedBatchNorm` does not.
"""

from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedmorl.nn.mlp import mlp
from fedmorl.nn.s4 import S4Layer, S4State
from fedmorl.nn.s4_kernels import Recurrence

NORMS = ("batch", "layer")


class MaskedBatchNorm(nn.Module):
    """Batch normalisation over the played steps of a padded batch; padded steps come out as zero.

    Where several agents share the weights and come one after another, each turn is normalised in training by its own
    mean and variance. So there are running ones for each of `n_turns`; a mean over all of them would be no one's.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, H: int, n_turns: int = 1, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(H)), nn.Parameter(torch.zeros(H))
        self.momentum, self.eps = momentum, eps
        self.register_buffer("mean", torch.zeros(n_turns, H))
        self.register_buffer("variance", torch.ones(n_turns, H))

    def forward(self, u: Tensor, mask: Tensor | None = None, turn: int = 0) -> Tensor:
        """u (B, L, H), mask (B, L) -> (B, L, H): equal to the norm of all played steps in one row, (steps, H)."""
        played = u.flatten(0, 1) if mask is None else u[mask]
        training = self.training and len(played) > 1  # one step alone has no variance
        normed = functional.batch_norm(
            played, self.mean[turn], self.variance[turn], self.weight, self.bias, training, self.momentum, self.eps
        )
        return normed.view_as(u) if mask is None else torch.zeros_like(u).masked_scatter(mask[..., None], normed)

    def step(self, u_t: Tensor, turn: int | Tensor = 0) -> Tensor:
        """(B, H) -> (B, H) with the running statistics of one turn, or of a turn for each row, (B,).

        In training too: a step has no batch to speak of.
        """
        mean, variance = self.mean[turn], self.variance[turn]
        if isinstance(turn, int):
            return functional.batch_norm(u_t, mean, variance, self.weight, self.bias, eps=self.eps)
        return (u_t - mean) * torch.rsqrt(variance + self.eps) * self.weight + self.bias


class StepNorm(nn.LayerNorm):
    """Layer normalisation, which looks at one step at a time and needs neither mask nor turn."""

    def forward(self, u: Tensor, mask: Tensor | None = None, turn: int = 0) -> Tensor:
        """(..., H) -> (..., H)."""
        return super().forward(u)

    def step(self, u_t: Tensor, turn: int | Tensor = 0) -> Tensor:
        """(B, H) -> (B, H)."""
        return super().forward(u_t)


class S4Block(nn.Module):
    """u + dropout(GELU(W S4(norm(u)))), MADS4, section 4.1; the residual connection is ours, the paper names none.

    `layer` holds the arguments of `S4Layer`.
    """

    def __init__(
        self,
        H: int = 96,
        N: int = 96,
        *,
        norm: str = "batch",
        n_turns: int = 1,
        residual: bool = True,
        dropout: float = 0.1,
        generator: torch.Generator,
        **layer: Any,
    ) -> None:
        super().__init__()
        if norm not in NORMS:
            raise ValueError(f"norm must be one of {', '.join(NORMS)}; got {norm!r}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be a share of units in [0, 1); got {dropout}")
        self.norm: MaskedBatchNorm | StepNorm = MaskedBatchNorm(H, n_turns) if norm == "batch" else StepNorm(H)
        self.s4 = S4Layer(H, N, generator=generator, **layer)
        self.mix = mlp((H, H), generator)[0]
        self.residual, self.dropout = residual, dropout

    def forward(
        self,
        u: Tensor,
        mask: Tensor | None = None,
        *,
        kernel: Tensor | None = None,
        turn: int = 0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """(B, L, H) -> (B, L, H); training with dropout needs the `generator` that draws what is dropped."""
        return self._forward(self.norm(u, mask, turn), u, kernel, generator)

    def forward_and_read(
        self,
        u: Tensor,
        mask: Tensor | None = None,
        *,
        kernel: Tensor | None = None,
        turn: int = 0,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """`forward`, and the read-out of the S4 layer's state after each step, (B, L, readout)."""
        normed = self.norm(u, mask, turn)
        kernel = self.s4.kernel(u.shape[1]) if kernel is None else kernel
        return self._forward(normed, u, kernel, generator), self.s4.read_sequence(normed, kernel)

    def step(self, u_t: Tensor, state: S4State, turn: int | Tensor = 0) -> tuple[Tensor, S4State]:
        """One step, (B, H) -> (B, H): running statistics, nothing dropped."""
        y, state = self.s4.step(self.norm.step(u_t, turn), state)
        y = functional.gelu(self.mix(y))
        return (u_t + y if self.residual else y), state

    def _forward(self, normed: Tensor, u: Tensor, kernel: Tensor | None, generator: torch.Generator | None) -> Tensor:
        y = functional.gelu(self.mix(self.s4(normed, kernel)))
        if self.training and self.dropout > 0:
            y = dropped(y, self.dropout, generator)
        return u + y if self.residual else y


class S4Stack(nn.Module):
    """Blocks one after the other: (B, L, H) -> (B, L, H). MADS4 uses H = N = 96; the number of blocks, 3, is ours.

    `readout` outputs read the last layer's state (MADS4, eq. (5) as a linear map); `block` holds the arguments of
    `S4Block` and `S4Layer`. Three blocks and MADS4's encoders have about the 200 k parameters that the paper states.
    """

    def __init__(
        self, H: int = 96, N: int = 96, *, n_blocks: int = 3, readout: int = 0, generator: torch.Generator, **block: Any
    ) -> None:
        super().__init__()
        if n_blocks < 1:
            raise ValueError(f"n_blocks must be >= 1; got {n_blocks}")
        readouts = [0] * (n_blocks - 1) + [readout]
        self.blocks = nn.ModuleList(S4Block(H, N, readout=r, generator=generator, **block) for r in readouts)

    def __iter__(self) -> Iterator[S4Block]:
        return iter(cast("Iterable[S4Block]", self.blocks))

    def forward(
        self,
        u: Tensor,
        mask: Tensor | None = None,
        *,
        kernels: list[Tensor] | None = None,
        turn: int = 0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """(B, L, H) -> (B, L, H); `kernels` is `self.kernels(L)`, made once for all agents of an update."""
        kernels = self.kernels(u.shape[1]) if kernels is None else kernels
        for block, kernel in zip(self, kernels, strict=True):
            u = block(u, mask, kernel=kernel, turn=turn, generator=generator)
        return u

    def forward_and_read(
        self,
        u: Tensor,
        mask: Tensor | None = None,
        *,
        kernels: list[Tensor] | None = None,
        turn: int = 0,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """`forward`, and what `read` says after each step, (B, L, readout)."""
        kernels = self.kernels(u.shape[1]) if kernels is None else kernels
        *first, last = self
        for block, kernel in zip(first, kernels[:-1], strict=True):
            u = block(u, mask, kernel=kernel, turn=turn, generator=generator)
        return last.forward_and_read(u, mask, kernel=kernels[-1], turn=turn, generator=generator)

    def kernels(self, length: int) -> list[Tensor]:
        """The kernel of each layer, (R, H, length)."""
        return [block.s4.kernel(length) for block in self]

    def initial_state(self, batch: int, recurrence: list[Recurrence] | None = None) -> list[S4State]:
        """The state of each layer before the first step; see `S4Layer.initial_state`."""
        recurrence = self.recurrence() if recurrence is None else recurrence
        return [block.s4.initial_state(batch, r) for block, r in zip(self, recurrence, strict=True)]

    def recurrence(self) -> list[Recurrence]:
        """The step of each layer for the present parameters; made once a checkpoint."""
        return [block.s4.recurrence() for block in self]

    def step(self, u_t: Tensor, state: list[S4State], turn: int | Tensor = 0) -> tuple[Tensor, list[S4State]]:
        """One step through all blocks, (B, H) -> (B, H); the state handed in is left as it is."""
        after = []
        for block, before in zip(self, state, strict=True):
            u_t, now = block.step(u_t, before, turn)
            after.append(now)
        return u_t, after

    def read(self, state: list[S4State]) -> Tensor:
        """(B, readout): the linear read-out of the last layer's state."""
        *_, last = self
        return last.s4.read(state[-1])


def dropped(x: Tensor, share: float, generator: torch.Generator | None) -> Tensor:
    """x with a share of its entries set to zero and the others raised to keep the mean, drawn from `generator`."""
    if generator is None:
        raise ValueError("generator must be given for training with dropout; pass a torch.Generator, or dropout=0")
    quarter = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=generator.device)
    drawn = quarter.random_(-(2**63), None, generator=generator).view(torch.int16)[: x.numel()]  # four of one draw
    kept = drawn >= round(share * 2**16) - 2**15
    return x * kept.view(x.shape).to(x).div_(1 - share)
