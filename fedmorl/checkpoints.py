"""Networks on disk: one safetensors file, weights by name, and what they are as JSON in its header."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn


def save_module(path: Path | str, module: nn.Module, config: Mapping[str, Any], provenance: Mapping[str, Any]) -> None:
    """Write the state of `module` with its `config`, plain JSON values; whole or not at all."""
    from safetensors.torch import save_file

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    header = {"config": json.dumps(dict(config)), "provenance": json.dumps(dict(provenance), sort_keys=True)}
    try:
        save_file(state, temporary, metadata=header)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_config(path: Path | str) -> dict[str, Any]:
    """The `config` that `save_module` wrote; ValueError, one sentence, if the file holds none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return json.loads(file.metadata()["config"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not hold a network of this project: {error}") from None


def load_into_module(path: Path | str, module: nn.Module) -> None:
    """Set `module` to the weights in a file; ValueError names the first weight that is missing or of another shape."""
    from safetensors.torch import load_file

    state, own = load_file(path), module.state_dict()
    for name in sorted(own.keys() | state.keys()):
        here, there = (tuple(s[name].shape) if name in s else None for s in (own, state))
        if here != there:
            raise ValueError(
                f"{path} is of a network of another size: {name} is {_said(there)} there and {_said(here)} here"
            )
    module.load_state_dict(state)


def _said(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else str(shape)
