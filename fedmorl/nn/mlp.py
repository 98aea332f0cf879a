"""The multilayer perceptron, drawn from a generator and from no global state."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import nn


def mlp(sizes: Sequence[int], generator: torch.Generator) -> nn.Sequential:
    """Linear layers with ReLU between them; `sizes` are the widths from input to output.

    Weights and biases are uniform within 1/sqrt(inputs), torch's own default, drawn from `generator` and from no
    global state.
    """
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        linear = nn.Linear(n_in, n_out)
        bound = n_in**-0.5
        with torch.no_grad():
            for parameter in (linear.weight, linear.bias):
                parameter.copy_(torch.rand(parameter.shape, generator=generator) * 2 * bound - bound)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def torch_generator(rng: np.random.Generator) -> torch.Generator:
    """A torch generator seeded from a numpy one, which advances by one draw."""
    return torch.Generator().manual_seed(int(rng.integers(2**63)))
