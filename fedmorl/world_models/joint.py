"""The joint outcome model: what a station hears, given its own action and how many others send.

Every station can label its own log for it: while it defers, idle, another's success and a collision mean that none,
one or several others sent; while it sends, its acknowledgement means none, a collision at least one. Nothing else
about the channel is needed to let any number of stations play with each other, so stations that were never logged
together, and any number of them, can be imagined: `imagine` is the channel's loop with the answers drawn from the
model in place of the rules of a busy period.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedmorl.data import DatasetError, OfflineDataset, Transitions
from fedmorl.dca import kernels
from fedmorl.dca.logs import OUTCOMES
from fedmorl.dca.scenario import Scenario
from fedmorl.dca.state import COLLISION, IDLE, SUCCESS, State, make_state
from fedmorl.federated import ClientUpdate, FitConfig, run_federation
from fedmorl.federated import State as Parameters
from fedmorl.world_models.imagined import ACK, SEND, imagine

OTHERS = ("no other sends", "one other sends", "several others send")  # while sending, one means at least one

Log = OfflineDataset | Transitions


@dataclass(frozen=True, kw_only=True)
class JointModel:
    """P(outcome | own action, others that send), and how long an outcome lasts.

    Attributes
    ----------
    frequency : (2, 3, 4) float64, share of the log's decisions by own action, others that send (0, 1, 2: several)
        and outcome in the order of `fedmorl.dca.logs.OUTCOMES`. Adds up to 1.
    slots : (4,) float64, share times duration of an outcome [slots]: divided by the outcome's share, its mean.
    at_most_one_ack : whether of several stations that are told ACK in one busy period all but one are told
        COLLISION instead: knowledge of the medium that a table for one station cannot hold.
    """

    frequency: np.ndarray
    slots: np.ndarray
    at_most_one_ack: bool = False

    @property
    def seen(self) -> np.ndarray:
        """(2, 3) whether the log holds the case; while sending, one other and several are one case."""
        seen = self.frequency.sum(-1) > 0
        seen[SEND, 2] = seen[SEND, 1]
        return seen

    @property
    def probability(self) -> np.ndarray:
        """(2, 3, 4) P(outcome | own action, others); uniform where the log does not hold the case."""
        total = self.frequency.sum(-1, keepdims=True)
        p = np.where(total > 0, self.frequency / np.where(total > 0, total, 1), 1 / len(OUTCOMES))
        p[SEND, 2] = p[SEND, 1]
        return p

    @property
    def duration_slots(self) -> np.ndarray:
        """(4,) int64, mean slots from a decision with this outcome to the next; of an outcome never seen 1."""
        share = self.frequency.sum((0, 1))
        mean = np.where(share > 0, self.slots / np.where(share > 0, share, 1), 1)
        return np.maximum(np.rint(mean), 1).astype(np.int64)

    def optimistic(self, probability: float) -> "JointModel":
        """The same model, but a collision is read as ACK with this probability: the error that is fatal."""
        frequency = self.frequency.copy()
        frequency[SEND, 1] = self.frequency[SEND, 1].sum() * (np.arange(4) == ACK) * probability
        frequency[SEND, 1, COLLISION] = self.frequency[SEND, 1].sum() * (1 - probability)
        moved = frequency.sum((0, 1)) - self.frequency.sum((0, 1))  # every outcome keeps its duration
        return replace(self, frequency=frequency, slots=self.slots + moved * self.duration_slots)

    def state(self) -> Parameters:
        """What a client sends."""
        return {"frequency": self.frequency, "slots": self.slots}

    @classmethod
    def fit(cls, log: Log) -> "JointModel":
        """Count one log, of one client or of many. DatasetError if it lacks the outcomes or is empty."""
        batch = log.transitions() if isinstance(log, OfflineDataset) else log
        if len(batch) == 0:
            raise DatasetError("the log has no transitions, so nothing can be learned from it")
        if "outcomes" not in batch.extras:
            raise DatasetError("extras/outcomes is missing, from which the joint model is learned")
        action, outcome = batch.actions.astype(np.int64), batch.extras["outcomes"].astype(np.int64)
        frequency, slots = np.zeros((2, 3, 4)), np.zeros(4)
        np.add.at(frequency, (action, others_sending(action, outcome), outcome), 1 / len(batch))
        np.add.at(slots, outcome, batch.durations / len(batch))
        return cls(frequency=frequency, slots=slots)

    @classmethod
    def federate(cls, logs: Sequence[Log]) -> "JointModel":
        """One round of FedAvg over clients that count their own logs: exactly the table of the pooled log."""
        clients = [JointClient(k, log) for k, log in enumerate(logs)]
        history = run_federation(
            clients, engine="loop", rounds=1, fit_config=FitConfig(), seed=0, max_norm=None, progress=False,
            initial=clients[0].model.state(),
        )  # fmt: skip
        return cls(frequency=np.asarray(history.state["frequency"]), slots=np.asarray(history.state["slots"]))

    def channel(self, scenario: Scenario, seed: int, replication: int = 0) -> State:
        """Stations at slot 0, for `run`; policies must run in the kernel."""
        outside = [
            k for k, s in enumerate(scenario.stations) if s.policy is not None and not hasattr(s.policy, "layers")
        ]
        if outside:
            raise ValueError(f"stations[{outside[0]}].policy must be an MLPPolicy to play in a model")
        state = make_state(scenario, seed, replication)
        state.channel["logging"] = 0
        kernels.start(state)
        return state

    def run(self, state: State, until: int) -> None:
        """Play on to slot `until` (the last busy period may end after it)."""
        imagine(state, self.probability.cumsum(-1), self.duration_slots, self.at_most_one_ack, until)


class JointClient:
    """Counts its own log, whatever the server sends."""

    def __init__(self, client_id: int, log: Log) -> None:
        self.client_id, self.model = client_id, JointModel.fit(log)
        self.n = log.n_transitions if isinstance(log, OfflineDataset) else len(log)

    def fit(self, round: int, state: Parameters, config: FitConfig) -> ClientUpdate:
        """The own table; FedAvg weights it by the length of the log."""
        return ClientUpdate(client_id=self.client_id, round=round, n=self.n, state=self.model.state())


def others_sending(action: np.ndarray, outcome: np.ndarray) -> np.ndarray:
    """0, 1 or 2 (several) others, as a station can tell from what it did and heard; while sending, 1 means any."""
    deferring = np.select([outcome == IDLE, outcome == SUCCESS], [0, 1], 2)
    return np.where(action == SEND, np.where(outcome == ACK, 0, 1), deferring)
