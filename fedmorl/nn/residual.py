"""A residual perceptron: pre-normalised blocks on a stream of one width; and the code of a noise level."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class ResidualBlock(nn.Module):
    """x + W2 silu(W1 norm(x))."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width) -> (B, width)."""
        return x + self.down(functional.silu(self.up(self.norm(x))))


class ResidualMLP(nn.Module):
    """Linear to `width`, `n_blocks` blocks, linear to `n_out`; several inputs are put side by side.

    Weights are drawn from `generator` alone; with `zero` the last layer starts at nothing, so that a softmax on it
    starts even.
    """

    def __init__(
        self, n_in: int, n_out: int, *, width: int, n_blocks: int, generator: torch.Generator, zero: bool = False
    ) -> None:
        super().__init__()
        self.into = nn.Linear(n_in, width)
        self.blocks = nn.ModuleList(ResidualBlock(width, 2 * width) for _ in range(n_blocks))
        self.out = nn.Linear(width, n_out)
        redraw(self, generator)
        if zero:
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.out.bias)

    def forward(self, *parts: Tensor) -> Tensor:
        """Parts (B, ...) that hold n_in numbers together -> (B, n_out)."""
        x = self.into(torch.cat([part.flatten(1) for part in parts], 1))
        for block in self.blocks:
            x = block(x)
        return self.out(x)


def redraw(module: nn.Module, generator: torch.Generator) -> None:
    """Draw every linear layer anew, uniform within 1/sqrt(inputs), from `generator` and no global state."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            bound = layer.in_features**-0.5
            with torch.no_grad():
                for parameter in (layer.weight, layer.bias):
                    parameter.copy_(torch.rand(parameter.shape, generator=generator) * 2 * bound - bound)


def level_codes(n_levels: int, width: int) -> Tensor:
    """Noise levels 0 .. n - 1 as sines and cosines of geometric frequencies, (n_levels, width)."""
    frequency = torch.exp(torch.linspace(0, math.log(n_levels), width // 2))
    angle = torch.arange(n_levels)[:, None] / n_levels * frequency * math.pi / 2
    return torch.cat([angle.sin(), angle.cos()], -1)
