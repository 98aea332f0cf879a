"""Federation: who averages what, in which order, and what happens when somebody fails.

It knows states and clients, never what a model means; `fedmorl.federated.core` states the contract.
"""

from fedmorl.federated.aggregators import FedAdam, FedAvg, FedProx, Krum, Median, TooFewUpdates, TrimmedMean
from fedmorl.federated.batched import InProcessBatched
from fedmorl.federated.clients import ModelClient, load_into, proximal_term, trainable
from fedmorl.federated.core import FederationStopped, History, RoundRecord, run_federation
from fedmorl.federated.loop import InProcessLoop
from fedmorl.federated.records import (
    Aggregator,
    Client,
    ClientUpdate,
    Engine,
    FitConfig,
    RoundResult,
    ServerState,
    State,
    address,
    as_state,
    digest,
)

__all__ = [
    "Aggregator",
    "Client",
    "ClientUpdate",
    "Engine",
    "FedAdam",
    "FedAvg",
    "FedProx",
    "FederationStopped",
    "FitConfig",
    "History",
    "InProcessBatched",
    "InProcessLoop",
    "Krum",
    "Median",
    "ModelClient",
    "RoundRecord",
    "RoundResult",
    "ServerState",
    "State",
    "TooFewUpdates",
    "TrimmedMean",
    "address",
    "as_state",
    "digest",
    "load_into",
    "proximal_term",
    "run_federation",
    "trainable",
]
