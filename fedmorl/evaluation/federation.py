"""What federation is worth: one recipe for every arm of the comparison, judged on logs that nobody trained on.

The arms differ in who learns from whose log and in nothing else: each client alone (`Training.apart`), all together
by federation, or one learner with everybody's log (`Training.shared` of many logs, or of their union). K clients,
R regimes, n transitions a client.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional

from fedmorl.data import Transitions
from fedmorl.data.partition import Skews, count_cells, skews
from fedmorl.dca.policy import OBSERVATION
from fedmorl.evaluation.statistics import Estimate, mean_interval
from fedmorl.federated import (
    Engine,
    FitConfig,
    InProcessBatched,
    InProcessLoop,
    ModelClient,
    State,
    load_into,
    run_federation,
    trainable,
)
from fedmorl.federated.records import RoundResult
from fedmorl.nn.mlp import mlp, torch_generator
from fedmorl.policies import LearnedPolicy
from fedmorl.world_models import TransitionModel
from fedmorl.world_models.transition import tensors, transition_loss

MODEL_RATES = FitConfig(local_steps=50, batch_size=64, lr=3e-3, lr_final=1.5e-4, lr_rounds=20)  # ours
POLICY_RATES = FitConfig(local_steps=25, batch_size=128, lr=1e-2, lr_final=1e-3, lr_rounds=10)  # ours


# --- logs ------------------------------------------------------------------------------------------------


class Split(NamedTuple):
    """A log in two: what is learned from, and what tells when to stop; None where all is learned from."""

    fitted: Transitions
    held_out: Transitions | None


def hold_out(log: Transitions, share: float, rng: np.random.Generator) -> Split:
    """A random `share` of a log set aside, at least one transition; nothing for a share of 0."""
    if not 0 <= share < 1:
        raise ValueError(f"share must be from 0 to below 1; got {share}")
    if share == 0:
        return Split(log, None)
    order, cut = rng.permutation(len(log)), max(1, round(share * len(log)))
    return Split(log.take(order[cut:]), log.take(order[:cut]))


def mixture_skews(mixtures: np.ndarray, logs: Sequence[Transitions]) -> Skews:
    """How K clients differ in distribution [bits], from their mixtures (K, R) and one long log a regime.

    Their own logs overstate it where they are short (see `partition.skews`); long logs in the clients' proportions
    do not.
    """
    cells = np.stack([count_cells(log) / len(log) for log in logs])  # (R, bins, A, outcomes)
    mixed: np.ndarray = np.tensordot(mixtures, cells, axes=1)
    return skews(mixed)


# --- training: the same for every arm --------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Training:
    """Rounds of Adam steps, with the last state or, where something was held out, the one it likes best.

    Where logs have a held-out part, the state of the round with the least mean held-out nats is returned (each
    client's mean counts the same), else that of the last round. The judge is never the log on which arms are compared.
    """

    rounds: int = 20
    fit_config: FitConfig = MODEL_RATES

    def shared(self, model: TransitionModel, logs: Sequence[Split], *, seed: int) -> State:
        """Federate several logs into one state (FedAvg); of one log, plain training."""
        clients = model.clients([log.fitted for log in logs])
        engine = InProcessBatched(clients) if len(clients) > 1 else InProcessLoop(clients)
        return _best(model, self._states(clients, engine, seed), logs)

    def apart(self, model: TransitionModel, logs: Sequence[Split], *, seed: int) -> list[State]:
        """Train each log alone, all side by side: K states, each as `shared` makes it of that log, to rounding.

        The logs must be equally long, so that one draw of rows serves all.
        """
        module = Apart(model.network, len(logs))
        columns = [torch.stack(column, dim=1) for column in zip(*(tensors(log.fitted) for log in logs), strict=True)]
        clients = [ModelClient(0, module, apart_loss, columns)]  # each (n, K, ...)
        states = [module.states(state) for state in self._states(clients, InProcessLoop(clients), seed)]
        own = [[rounds[k] for rounds in states] for k in range(len(logs))]
        return [_best(model, found, [log]) for found, log in zip(own, logs, strict=True)]

    def _states(self, clients: Sequence[ModelClient], engine: Engine, seed: int) -> list[State]:
        """The server's state after each round."""
        seen = Recorder(engine)
        history = run_federation(
            clients, engine=seen, rounds=self.rounds, fit_config=self.fit_config, seed=seed, progress=False
        )
        return [*seen.states[1:], history.state]


def _best(model: TransitionModel, states: Sequence[State], logs: Sequence[Split]) -> State:
    """The state with the least mean held-out nats; the last one where nothing is held out."""
    judges = [log.held_out for log in logs if log.held_out is not None]
    nats = [regime_nats(model, state, judges).mean() if judges else 0.0 for state in states]
    return states[int(np.argmin(nats))] if judges else states[-1]


class Recorder:
    """An engine that keeps the state each round starts from."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.states = engine, list[State]()

    def run_round(self, round: int, state: State, config: FitConfig, ids: Sequence[int]) -> RoundResult:
        """Note the state and pass it on."""
        self.states.append(state)
        return self.engine.run_round(round, state, config, ids)


class _Loss(nn.Module):
    """`transition_loss` as a module, so that `functional_call` swaps the network's parameters."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *batch: Tensor) -> Tensor:
        return transition_loss(self.network, *batch)


class Apart(nn.Module):
    """K copies of one network that learn side by side, each from its own log and none from another's."""

    def __init__(self, network: nn.Module, n_copies: int) -> None:
        super().__init__()
        self.template = (_Loss(network),)  # in a tuple: only the copies are parameters
        for name, parameter in trainable(network).items():
            copies = parameter.detach().expand(n_copies, *parameter.shape).clone()
            self.register_parameter(name.replace(".", "/"), nn.Parameter(copies))

    def losses(self, *columns: Tensor) -> Tensor:
        """Each copy's loss on its own batch, (K,); columns are (B, K, ...)."""
        stacked: dict[str, Tensor] = {f"network.{name.replace('/', '.')}": p for name, p in self.named_parameters()}

        def own(parameters: dict[str, Tensor], *batch: Tensor) -> Tensor:
            loss: Tensor = functional_call(self.template[0], parameters, batch)
            return loss

        each: Tensor = vmap(own, in_dims=(0, *[1] * len(columns)))(stacked, *columns)
        return each

    @staticmethod
    def states(state: State) -> list[State]:
        """A state of all copies, taken apart."""
        n_copies = len(next(iter(state.values())))
        return [{name.replace("/", "."): value[k] for name, value in state.items()} for k in range(n_copies)]


def apart_loss(module: Apart, *columns: Tensor) -> Tensor:
    """Sum of the copies' losses: Adam works number by number, so each copy moves as if it were alone."""
    return module.losses(*columns).sum()


# --- judging ---------------------------------------------------------------------------------------------


def regime_nats(model: TransitionModel, state: State, logs: Sequence[Transitions]) -> np.ndarray:
    """Mean negative log-likelihood of the outcomes in the log of each regime, (R,) [nats a decision].

    With a client's mixture w it gives its own log's expected nats, w @ nats; with equal weights, the common log's.
    """
    loaded = model.load_state(state)
    return np.array([loaded.negative_log_likelihood(log) for log in logs])


def gap_closed(local: ArrayLike, federated: ArrayLike, central: ArrayLike) -> Estimate | None:
    """(L_local - L_fed) / (L_local - L_central) over R seeds, or None where its denominator is within its noise.

    All (R,), nats of matched seeds. The ratio of the means, with Fieller's interval for paired means: the set of
    ratios q that the t-test of mean(L_local - L_fed) = q mean(L_local - L_central) does not reject. None unless the
    denominator's mean exceeds two of its standard errors, and where Fieller's set is unbounded.

    Source: Fieller (1954), Journal of the Royal Statistical Society B 16(2).
    """
    whole = np.asarray(local, float) - np.asarray(central, float)
    part = np.asarray(local, float) - np.asarray(federated, float)
    n = whole.size
    error = whole.std(ddof=1) / np.sqrt(n)
    if not whole.mean() > 2 * error:
        return None
    half = mean_interval(whole)
    t = (half.high - half.value) / error if error > 0 else 0.0
    covariance = np.cov(part, whole) / n
    a = whole.mean() ** 2 - t**2 * covariance[1, 1]
    b = part.mean() * whole.mean() - t**2 * covariance[0, 1]
    c = part.mean() ** 2 - t**2 * covariance[0, 0]
    if a <= 0:
        return None
    root = np.sqrt(max(b**2 - a * c, 0.0))
    return Estimate(float(part.mean() / whole.mean()), float((b - root) / a), float((b + root) / a), n)


# --- policies --------------------------------------------------------------------------------------------


def federate_policies(
    policies: Sequence[LearnedPolicy],
    logs: Sequence[Transitions],
    *,
    rng: np.random.Generator,
    hidden: tuple[int, ...] = (16,),
    rounds: int = 10,
    fit_config: FitConfig = POLICY_RATES,
) -> LearnedPolicy:
    """One policy by federating policies instead of models: the comparison that FedMORL argues against.

    Client k uploads policy parameters. Its loss is E[-sum_a pi_k(a | o) log pi(a | o)] over its own log, pi_k being
    the policy that it would learn alone: the minimiser of its own Eq. (2).
    """
    network = mlp((len(OBSERVATION), *hidden, 2), torch_generator(rng))
    clients = [
        ModelClient(k, network, policy_loss, [torch.from_numpy(np.array(x)) for x in _targets(policy, log)])
        for k, (policy, log) in enumerate(zip(policies, logs, strict=True))
    ]
    seed = int(rng.integers(2**32))
    history = run_federation(clients, rounds=rounds, fit_config=fit_config, seed=seed, progress=False)
    load_into(trainable(network), history.state)
    return LearnedPolicy.of(network)


def policy_loss(network: nn.Module, observations: Tensor, probability: Tensor) -> Tensor:
    """Cross-entropy to a policy that transmits with `probability`: (B, 7) and (B,)."""
    return functional.cross_entropy(network(observations), torch.stack([1 - probability, probability], dim=-1))


def _targets(policy: LearnedPolicy, log: Transitions) -> tuple[np.ndarray, np.ndarray]:
    return log.observations, policy.probability(log.observations).astype(np.float32)
