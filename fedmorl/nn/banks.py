"""Many small networks of one shape, evaluated in one batched product: the agents of a team, the members of an ensemble.

Letters: K networks, B batch.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class Bank(nn.Module):
    """K linear maps, each with its own input: (K, B, n_in) -> (K, B, n_out).

    Weights and biases are uniform within 1/sqrt(n_in), as in `fedmorl.nn.mlp`, each map's drawn after the other's.
    """

    def __init__(self, k: int, n_in: int, n_out: int, generator: torch.Generator) -> None:
        super().__init__()
        bound = n_in**-0.5
        drawn = torch.rand(k, n_in + 1, n_out, generator=generator) * 2 * bound - bound
        self.weight, self.bias = nn.Parameter(drawn[:, :-1].clone()), nn.Parameter(drawn[:, -1:].clone())

    def forward(self, x: Tensor) -> Tensor:
        """(K, B, n_in) -> (K, B, n_out)."""
        return torch.baddbmm(self.bias, x, self.weight)


def bank_mlp(k: int, sizes: Sequence[int], generator: torch.Generator, *, end: bool = False) -> nn.Sequential:
    """K multilayer perceptrons with ReLU between their layers, and behind the last one if `end` is set."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        layers += [Bank(k, n_in, n_out, generator), nn.ReLU()]
    return nn.Sequential(*(layers if end else layers[:-1]))


def soft_bounded(x: Tensor, low: float, high: float) -> Tensor:
    """x kept within (low, high) by a slope that never vanishes, as ensembles bound a log-variance."""
    x = high - nn.functional.softplus(high - x)
    return low + nn.functional.softplus(x - low)


def gaussian_nats(mean: Tensor, log_variance: Tensor | None, target: Tensor) -> Tensor:
    """-log N(target; mean, variance) without its constant, number by number; log_variance None: of variance 1."""
    square = (target - mean) ** 2
    if log_variance is None:
        return square / 2
    return (square * (-log_variance).exp() + log_variance) / 2
