"""A recurrent network for sequences of observations: linear, ReLU, GRU, linear."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedmorl.nn.mlp import mlp


class GRUNetwork(nn.Module):
    """u (B, L, I) -> (B, L, A) through a state of `width` numbers, drawn from `generator` and from no global state."""

    def __init__(self, n_in: int, width: int, n_out: int, generator: torch.Generator) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width must be >= 1; got {width}")
        self.read, self.write = mlp((n_in, width), generator)[0], mlp((width, n_out), generator)[0]
        self.cell = nn.GRU(width, width, batch_first=True)
        bound = width**-0.5  # torch's own
        with torch.no_grad():
            for parameter in self.cell.parameters():
                parameter.copy_(torch.rand(parameter.shape, generator=generator) * 2 * bound - bound)

    def forward(self, u: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, L, I) -> (B, L, A) and the state after it, (1, B, width); None is zeros, at the start of an episode."""
        y, state = self.cell(functional.relu(self.read(u)), state)
        return self.write(y), state
