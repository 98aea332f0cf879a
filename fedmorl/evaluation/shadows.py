"""Clients with secrets: how they act, among how many, under which load; their logs, and what they upload.

K clients, each station 0 of a channel of its own among source stations (CSMA/CA 7-1023); R rounds, P parameters.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fedmorl.data import Transitions, collect_dca_logs
from fedmorl.dca import CSMA_CA, Poisson, Scenario, Station
from fedmorl.dca.logs import OUTCOMES
from fedmorl.dca.policy import OBSERVATION, MLPPolicy
from fedmorl.evaluation.privacy import as_arrays, vector
from fedmorl.federated import FitConfig, ModelClient, State
from fedmorl.federated.batched import InProcessBatched
from fedmorl.learners.behaviour_cloning import BlindBehaviour, cells
from fedmorl.learners.weighted_cloning import closed_form, weights
from fedmorl.nn.mlp import mlp, torch_generator
from fedmorl.planning.grid import PlanConfig, evaluate_on_grid, grid_observations, interpolate, q_values
from fedmorl.policies import LearnedPolicy
from fedmorl.world_models import TransitionConfig, TransitionModel
from fedmorl.world_models.transition import flat

Family = Literal["attempt", "window", "load"]
Shared = Literal["model", "policy"]
STATIONS = (2, 6, 10, 14)  # N of a client's channel, itself included; secret in every family
LOGITS = (-3.5, 1.0)  # of an attempt policy: it sends with .03 to .73
CW_MIN_BITS, CW_MAX_BITS = (2, 6), 10  # CWmin 3 to 63, CWmax CWmin to 1023
PREVIOUS_ACTIONS = (0, 0, 1, 1)  # the one that goes with each outcome: who sent knows of a collision at first hand
LOG_RATES = (np.log(3e-4), np.log(3e-3))  # packets a slot


@dataclass(frozen=True)
class Population:
    """K clients: what they hide and what they have logged."""

    family: Family
    secrets: np.ndarray  # (K, D): logits by last outcome; log2 of CWmin + 1 and CWmax + 1; log of the packet rate
    n_stations: np.ndarray  # (K,)
    logs: tuple[Transitions, ...]
    held_out: tuple[Transitions, ...]  # as long again, of the same runs, later

    def __len__(self) -> int:
        return len(self.logs)

    def shortened(self, n_transitions: int) -> "Population":
        """The first transitions of each log, and as many held out."""
        first = np.arange(n_transitions)
        logs, held_out = (tuple(log.take(first) for log in part) for part in (self.logs, self.held_out))
        return replace(self, logs=logs, held_out=held_out)


def draw_population(family: Family, n_clients: int, n_decisions: int, seed: int) -> Population:
    """K clients with secrets of their own, and logs of n_decisions each; the same seed, the same clients."""
    rng = np.random.default_rng(seed)
    draw = SECRETS[family]
    counts = rng.choice(STATIONS, n_clients)
    secrets, logs = [], []
    for k, n in enumerate(counts.tolist()):
        secret, station = draw(rng)
        scenario = Scenario(stations=[station, *[CSMA_CA] * (n - 1)], alpha=0.0)
        log = collect_dca_logs(scenario, 2 * n_decisions, seed=seed * 10_000 + k, workers=1)
        secrets.append(secret)
        logs.append(log.client(0).transitions())
    first = np.arange(n_decisions)
    return Population(
        family,
        np.array(secrets),
        counts,
        tuple(log.take(first) for log in logs),
        tuple(log.take(n_decisions + first) for log in logs),
    )


def _attempt(rng: np.random.Generator) -> tuple[np.ndarray, Station]:
    logits = rng.uniform(*LOGITS, len(OUTCOMES))
    weight = np.zeros((len(OBSERVATION), 2), np.float32)
    weight[: len(OUTCOMES), 1] = logits
    return logits, replace(CSMA_CA, policy=MLPPolicy([(weight, np.zeros(2, np.float32))]))


def _window(rng: np.random.Generator) -> tuple[np.ndarray, Station]:
    low = int(rng.integers(CW_MIN_BITS[0], CW_MIN_BITS[1] + 1))
    high = int(rng.integers(low, CW_MAX_BITS + 1))
    return np.array([low, high], float), Station(cw_min=2**low - 1, cw_max=2**high - 1)


def _load(rng: np.random.Generator) -> tuple[np.ndarray, Station]:
    rate = rng.uniform(*LOG_RATES)
    return np.array([rate]), replace(CSMA_CA, traffic=Poisson(float(np.exp(rate))))


SECRETS: dict[str, Callable[[np.random.Generator], tuple[np.ndarray, Station]]] = {
    "attempt": _attempt,
    "window": _window,
    "load": _load,
}


# --- what is federated -----------------------------------------------------------------------------------


def cloning_loss(network: nn.Module, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """Nats of the logged actions: what a client of policy federation minimises."""
    return functional.cross_entropy(network(observations), actions)


@dataclass(frozen=True)
class Participants:
    """Clients of one federation, whose networks begin alike: world models or cloned policies."""

    shared: Shared
    clients: tuple[ModelClient, ...]
    model: TransitionModel | None  # a copy to ask, which no client trains from; None where policies are shared
    network: nn.Sequential  # its network, or a policy's

    @classmethod
    def of(cls, shared: Shared, logs: Sequence[Transitions], hidden: tuple[int, ...], seed: int) -> "Participants":
        """One client a log."""
        rng = np.random.default_rng(seed)
        if shared == "model":
            model = TransitionModel(TransitionConfig(hidden=hidden), rng=rng)
            probe = copy.deepcopy(model)
            return cls(shared, tuple(model.clients(logs)), probe, probe.network)
        network = mlp((len(OBSERVATION), *hidden, 2), torch_generator(rng))
        columns = [
            [torch.from_numpy(np.array(log.observations)), torch.from_numpy(log.actions.astype(np.int64))]
            for log in map(flat, logs)
        ]
        clients = [ModelClient(k, network, cloning_loss, own) for k, own in enumerate(columns)]
        return cls(shared, tuple(clients), None, copy.deepcopy(network))

    def nats(self, parameters: np.ndarray, log: Transitions) -> np.ndarray:
        """What each transition costs the network with these parameters: (P,) -> (B,).

        Of its outcome if world models are shared, of its action if policies are.
        """
        load(self.network, as_arrays(parameters, self.clients[0].state()))
        if self.model is not None:
            outcome = log.next_observations[:, : len(OUTCOMES)].argmax(1)
            chosen = self.model.predict(log.observations, log.actions).outcome[np.arange(len(log)), outcome]
        else:
            transmit = LearnedPolicy.of(self.network).probability(log.observations)
            chosen = np.where(log.actions == 1, transmit, 1 - transmit)
        return -np.log(np.maximum(chosen, 1e-12))


def load(network: nn.Module, state: State) -> None:
    """Put a state into a network."""
    network.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})


@dataclass(frozen=True)
class Uploads:
    """What all clients would send in each round of one federation."""

    starts: np.ndarray  # (R + 1, P) the model before each round, and after the last
    changes: np.ndarray  # (R, K, P)


def record_uploads(clients: Sequence[ModelClient], members: np.ndarray, rounds: int, config: FitConfig) -> Uploads:
    """Run FedAvg over `members` and note what every client, member or not, makes of each round's model.

    The others are the attacker's shadows: he has the models that the server sent, and trains them as a client would.
    """
    engine, ids = InProcessBatched(clients, stack=len(clients)), [client.client_id for client in clients]
    form = clients[0].state()
    starts, changes = [vector(form)], []
    for round in range(1, rounds + 1):
        result = engine.run_round(round, as_arrays(starts[-1], form), config, ids)
        ordered = sorted(result.updates, key=lambda update: update.client_id)
        changes.append(np.stack([vector(update.state) for update in ordered]) - starts[-1])
        starts.append(starts[-1] + changes[-1][members].mean(0))
    return Uploads(np.stack(starts), np.stack(changes))


# --- policies in cells, and a protection -----------------------------------------------------------------


def visits(logs: Sequence[Transitions]) -> np.ndarray:
    """(K, 4) how often each last outcome was observed."""
    return np.stack([log.observations[:, : len(OUTCOMES)].sum(0) for log in logs]).astype(float)


def counted_policies(logs: Sequence[Transitions]) -> np.ndarray:
    """(K, 4) probability of transmitting by last outcome, counted on the raw logs."""
    tables = [BlindBehaviour.of(log).counts.sum(1) for log in logs]  # (4, 2)
    return np.stack([(table[:, 1] + 0.5) / (table.sum(1) + 1.0) for table in tables])


def read_policies(participants: Participants, parameters: np.ndarray, logs: Sequence[Transitions]) -> np.ndarray:
    """(K, 4) the same, read from uploaded policies (K, P): their mean over the client's own observations.

    An outcome that a log never shows counts as one half.
    """
    answers = []
    for own, log in zip(parameters, logs, strict=True):
        load(participants.network, as_arrays(own, participants.clients[0].state()))
        transmit = LearnedPolicy.of(participants.network).probability(log.observations)
        outcome = log.observations[:, : len(OUTCOMES)]
        answers.append((transmit @ outcome + 0.5) / (outcome.sum(0) + 1.0))
    return np.stack(answers)


def learned_policies(model: TransitionModel, logs: Sequence[Transitions], beta: float = 0.2) -> np.ndarray:
    """(K, 4) what each client's own planner makes of its log and the shared model: P(transmit) by last outcome.

    FedMORL's Algorithm 2 in closed form, with behaviour counts and reward rate of the own log alone, at the mean delay
    that the log shows. It is never uploaded.
    """
    grid, points = evaluate_on_grid(model), grid_observations()
    found = []
    for log in logs:
        behaviour = BlindBehaviour.of(log)
        rho = float(log.rewards.sum() / log.durations.sum())
        q = q_values(grid, PlanConfig(), behaviour=behaviour.probability(points), reward_rate=rho)
        here = np.zeros((len(OUTCOMES), len(OBSERVATION)), np.float32)
        here[:, : len(OUTCOMES)] = np.eye(len(OUTCOMES))
        here[:, OBSERVATION.index("previous_action")] = PREVIOUS_ACTIONS
        here[:, OBSERVATION.index("d2lt")] = log.observations[:, OBSERVATION.index("d2lt")].mean()
        advantage = interpolate(q[:, 1] - q[:, 0], here)
        least = 0.5 / len(log)  # a log in which nobody ever sends says that it is rare, not that it is impossible
        found.append(closed_form(behaviour.probability(here).clip(least, 1 - least), weights(advantage, beta)))
    return np.stack(found)


def balanced(log: Transitions, rng: np.random.Generator) -> Transitions:
    """A log of the same length with every (outcome, previous action, action) that it holds equally often.

    A model of p(o' | o, a) needs no more; how often its owner takes which action is then no longer in the sample.
    """
    cell = cells(log.observations) * 2 + log.actions
    weight = 1.0 / np.bincount(cell)[cell]
    return log.take(rng.choice(len(log), len(log), p=weight / weight.sum()))
