"""Offline logs: decisions, not slots, with their durations.

E episodes, T decisions, N stations, B batch (flat transitions), O observation, K clients.

collect    a scenario  ──►  the decisions of all its stations
dataset    what a log holds, what it refuses, its views and its hash
files      the same as one HDF5 file
partition  logs of several regimes  ──►  clients that differ, and by how much
"""

from fedmorl.data.collect import collect_dca_logs
from fedmorl.data.dataset import (
    DatasetError,
    OfflineDataset,
    Transitions,
    concatenate,
    concatenate_transitions,
    flatten_agents,
    unflatten_agents,
)

__all__ = [
    "DatasetError",
    "OfflineDataset",
    "Transitions",
    "collect_dca_logs",
    "concatenate",
    "concatenate_transitions",
    "flatten_agents",
    "unflatten_agents",
]
