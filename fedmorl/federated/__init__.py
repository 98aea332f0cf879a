"""Federation: who averages what, in which order, and what happens when somebody fails.

It knows states and clients, never what a model means; `fedmorl.federated.core` states the contract.
"""

from fedmorl.federated.aggregators import FedAdam, FedAvg, FedProx, Krum, Median, TooFewUpdates, TrimmedMean
from fedmorl.federated.batched import InProcessBatched
from fedmorl.federated.clients import ModelClient, load_into, proximal_term, trainable
from fedmorl.federated.core import run_federation
from fedmorl.federated.history import FederationStopped, History, RoundRecord
from fedmorl.federated.loop import InProcessLoop
from fedmorl.federated.plan import Plan, PlanError, Recipe, read_plan
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
from fedmorl.federated.runtime import FlowerError

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
    "FlowerError",
    "History",
    "InProcessBatched",
    "InProcessLoop",
    "Krum",
    "Median",
    "ModelClient",
    "Plan",
    "PlanError",
    "Recipe",
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
    "read_plan",
    "run_federation",
    "trainable",
]
