"""Learned policies of the channel: small networks that run in the kernel, kept as safetensors with their making."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from fedmorl.dca.policy import MLPPolicy


class LearnedPolicy(MLPPolicy):
    """A ReLU network from observation to the logits of (defer, transmit), that can be saved."""

    @classmethod
    def of(cls, network: nn.Sequential) -> "LearnedPolicy":
        """From a torch network of linear layers with ReLU between them."""
        linear = [layer for layer in network if isinstance(layer, nn.Linear)]
        return cls([(layer.weight.detach().numpy().T, layer.bias.detach().numpy()) for layer in linear])

    def probability(self, observations: np.ndarray) -> np.ndarray:
        """P(transmit | o): (..., O) -> (...), float64."""
        logits = self.logits(observations).astype(np.float64)
        return 1.0 / (1.0 + np.exp(logits[..., 0] - logits[..., 1]))

    def save(self, path: Path | str, provenance: Mapping[str, Any] | None = None) -> None:
        """Write the policy of one station; see `save_policies`."""
        save_policies(path, [self], provenance)


def load_policy(path: Path | str) -> LearnedPolicy:
    """The policy in a file that holds one; ValueError if it holds none or several that differ."""
    policies = load_policies(path)
    if len({policy.content_hash for policy in policies}) > 1:
        raise ValueError(f"{path} holds {len(policies)} policies that differ; use load_policies")
    return policies[0]


def save_policies(path: Path | str, policies: Sequence[MLPPolicy], provenance: Mapping[str, Any] | None = None) -> None:
    """Write the policies of stations 0, 1, ... to one safetensors file, whole or not at all.

    Layer k of station i is `station_i.layer_k.weight` (n_in, n_out) and `.bias` (n_out,), float32; `provenance`
    is kept as JSON in the header.
    """
    from safetensors.numpy import save_file

    if not policies:
        raise ValueError("policies must hold at least one policy; got none")
    arrays = {
        f"station_{i}.layer_{k}.{name}": np.ascontiguousarray(array)
        for i, policy in enumerate(policies)
        for k, layer in enumerate(policy.layers)
        for name, array in zip(("weight", "bias"), layer, strict=True)
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(arrays, temporary, metadata={"provenance": json.dumps(dict(provenance or {}), sort_keys=True)})
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_policies(path: Path | str) -> list[LearnedPolicy]:
    """The policies of stations 0, 1, ... in a file; ValueError, one sentence, if it is no such file."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        arrays = load_file(path)
        n_stations = len({name.partition(".")[0] for name in arrays})
        return [LearnedPolicy(_layers(arrays, i)) for i in range(max(n_stations, 1))]
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path} does not hold policies: {error}") from None


def _layers(arrays: Mapping[str, np.ndarray], station: int) -> list[tuple[np.ndarray, np.ndarray]]:
    prefix = f"station_{station}.layer_"
    depth = len({name for name in arrays if name.startswith(prefix) and name.endswith(".weight")})
    return [(arrays[f"{prefix}{k}.weight"], arrays[f"{prefix}{k}.bias"]) for k in range(depth)]
