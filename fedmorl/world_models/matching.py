"""Models of different kinds made equally large."""

from dataclasses import replace
from typing import Any

import torch

from fedmorl.world_models.ensemble import JointMLP
from fedmorl.world_models.joint_networks import Sizes
from fedmorl.world_models.logo import LOGO

Kind = LOGO | JointMLP


def count(kind: Kind, sizes: Sizes) -> int:
    """Parameters of the network that `kind` would train, all members and all that only training needs."""
    with torch.device("meta"):
        network = kind.network(sizes, torch.Generator())
    return sum(p.numel() for p in network.parameters())


def with_parameters(kind: Any, sizes: Sizes, n_parameters: int) -> Any:
    """`kind` at the width, the same for all its layers, whose number of parameters is nearest to the one asked for.

    Raises
    ------
    ValueError
        If even the narrowest network is more than a tenth too large.
    """
    low, high = 1, 2
    while count(_at(kind, high), sizes) < n_parameters:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(_at(kind, middle), sizes) <= n_parameters else (low, middle)
    nearest = min((low, high), key=lambda width: abs(count(_at(kind, width), sizes) - n_parameters))
    if count(_at(kind, nearest), sizes) > 1.1 * n_parameters:
        raise ValueError(
            f"n_parameters must be at least {count(_at(kind, 1), sizes)} for this kind; got {n_parameters}"
        )
    return _at(kind, nearest)


def _at(kind: Kind, width: int) -> Kind:
    if isinstance(kind, JointMLP):
        return replace(kind, hidden=(width,) * len(kind.hidden))
    return replace(kind, hidden=width)
