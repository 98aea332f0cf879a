"""A client made from a log file: what a recipe names where a process or a machine of its own holds the log."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedmorl.federated.clients import ModelClient


def transition_client(
    client_id: int, log: Path | str | None = None, *, hidden: Sequence[int] = (64, 64), seed: int = 0
) -> ModelClient:
    """A client that fits FedMORL's world model to one log.

    Parameters
    ----------
    client_id : int
        Its name in every engine.
    log : path
        What `OfflineDataset.save` wrote, .h5. It never leaves the client.
    hidden : sequence of int
        Widths of the hidden layers, the same for all clients.
    seed : int
        Of the initial parameters, the same for all clients.

    Raises
    ------
    ValueError
        In one sentence: no log is named, or the file is no whole log.
    """
    from fedmorl.data import OfflineDataset
    from fedmorl.world_models.transition import TransitionConfig, TransitionModel, tensors, transition_loss

    if log is None:
        raise ValueError(f"client {client_id} has no log; name it under `logs`, or by --log where the client runs")
    model = TransitionModel(TransitionConfig(hidden=tuple(hidden)), rng=np.random.default_rng(seed))
    return ModelClient(client_id, model.network, transition_loss, tensors(OfflineDataset.load(Path(log))))
