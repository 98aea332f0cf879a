"""Policies that control a station: any object with `act`, or an `MLPPolicy` that runs inside the kernel."""

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

# One row of the kernel's observation, in this order. The first seven are FedMORL's observation, the channel
# outcome one-hot; `retries` is own state that the paper's observation lacks.
FEATURES = ("idle", "success", "collision", "ack", "previous_action", "d2lt", "buffer", "retries")
OBSERVATION = FEATURES[:7]
# What a station hears besides (ours): nothing needs to be told to it, the number of stations least of all. See
# `fedmorl.dca.kernels.observe_listening` for the scales and `listen` for the memory they come from.
LISTENING = (
    *FEATURES,
    "rank",  # stations heard within the last `HEARD_SUCCESSES` successes whose last one is older than the own one
    "idle_run",  # idle contention slots since the last busy period
    "successes_since_own",
    "others_heard",  # within the last `HEARD_SUCCESSES` successes
    "last_was_own",  # whether the last success on the channel was the own one
    "collision_average",  # share of failures among busy periods, forgetting one in `AVERAGE_PERIODS`
    "out_of_turn",  # whether the last success went to a station that had not waited longest
    "out_of_turn_average",
)
HEARD_SUCCESSES = 64  # how many successes back a station remembers receiver addresses
AVERAGE_PERIODS = 32
COUNT_SCALE, COUNT_LIMIT = 8.0, 64  # a count enters a network as min(count, 64) / 8
DEFER, TRANSMIT = 0, 1


@runtime_checkable
class Policy(Protocol):
    """What every policy offers; `memory` is explicit and None at the start of a run."""

    def act(self, observation: np.ndarray, memory: Any, rng: np.random.Generator) -> tuple[int, Any]:
        """(O,) float32 observation -> (action 0 or 1, next memory)."""
        ...


class MLPPolicy:
    """A ReLU network from observation to two logits; the action is drawn from their softmax.

    Parameters
    ----------
    layers : sequence of (weight, bias)
        Weight of shape (n_in, n_out), bias of shape (n_out,); the last n_out is 2 (defer, transmit), the first
        n_in is 7 (the paper's observation), 8 (with `retries`, see `FEATURES`) or 16 (with what the station
        hears of the others, see `LISTENING`).

    Raises
    ------
    ValueError
        If shapes do not chain, or a value is not finite.
    """

    def __init__(self, layers: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        self.layers = tuple((np.array(w, dtype=np.float32), np.array(b, dtype=np.float32)) for w, b in layers)
        if not self.layers:
            raise ValueError("layers must hold at least one (weight, bias) pair; got none")
        n_in = self.layers[0][0].shape[0] if self.layers[0][0].ndim == 2 else 0
        if n_in not in (len(OBSERVATION), len(FEATURES), len(LISTENING)):
            raise ValueError(
                f"layers[0] must take {len(OBSERVATION)}, {len(FEATURES)} or {len(LISTENING)} inputs {LISTENING}; "
                f"got {n_in}"
            )
        for k, (w, b) in enumerate(self.layers):
            if w.ndim != 2 or w.shape[0] != n_in or b.shape != (w.shape[1],):
                raise ValueError(
                    f"layers[{k}] must have weight ({n_in}, n_out) and bias (n_out,); got {w.shape} and {b.shape}"
                )
            if not (np.isfinite(w).all() and np.isfinite(b).all()):
                raise ValueError(f"layers[{k}] must be finite; it holds NaN or infinity")
            n_in = w.shape[1]
        if n_in != 2:
            raise ValueError(f"the last layer must have 2 outputs (defer, transmit); got {n_in}")

    @property
    def n_inputs(self) -> int:
        """Width of the observation it reads: 7, 8 or 16."""
        return self.layers[0][0].shape[0]

    @property
    def listens(self) -> bool:
        """Whether it reads what the station hears of the others."""
        return self.n_inputs == len(LISTENING)

    @property
    def content_hash(self) -> str:
        """SHA-256 of the weights, 12 hex digits."""
        digest = hashlib.sha256()
        for w, b in self.layers:
            digest.update(repr(w.shape).encode() + w.tobytes() + b.tobytes())
        return digest.hexdigest()[:12]

    def logits(self, observation: np.ndarray) -> np.ndarray:
        """(..., O) -> (..., 2), in numpy; the kernel computes the same in its own loop."""
        x = np.asarray(observation, dtype=np.float32)[..., : self.n_inputs]
        for w, b in self.layers[:-1]:
            x = np.maximum(x @ w + b, 0)
        w, b = self.layers[-1]
        return x @ w + b

    def act(self, observation: np.ndarray, memory: Any, rng: np.random.Generator) -> tuple[int, Any]:
        """Draw an action; for use outside the kernel."""
        defer, transmit = self.logits(observation)
        return int(rng.random() < 1.0 / (1.0 + np.exp(defer - transmit))), memory


def pack_weights(policies: Sequence[MLPPolicy]) -> tuple[np.ndarray, np.ndarray]:
    """Policies as two arrays for a kernel: sizes (P, 2 + layers) int64 and weights (P, most) float32.

    `sizes[p]` is (number of layers, n_in, n_out of each); a layer's weights are its rows, then its bias. A first
    layer of 7 inputs is padded to the 8 features. Only the difference of the two logits decides, so of the last
    layer transmit - defer is kept.
    """
    depth = max((len(p.layers) for p in policies), default=0)
    flat = [_flat_weights(p) for p in policies]
    sizes = np.zeros((max(len(policies), 1), 2 + depth), dtype=np.int64)
    weights = np.zeros((max(len(policies), 1), max((f.size for f in flat), default=1)), dtype=np.float32)
    for k, policy in enumerate(policies):
        n_in = max(policy.n_inputs, len(FEATURES))
        sizes[k, : 2 + len(policy.layers)] = [len(policy.layers), n_in, *(w.shape[1] for w, _ in policy.layers)]
        weights[k, : flat[k].size] = flat[k]
    return sizes, weights


def _flat_weights(policy: MLPPolicy) -> np.ndarray:
    layers = [[w, b] for w, b in policy.layers]
    layers[0][0] = np.pad(layers[0][0], ((0, max(len(FEATURES) - policy.n_inputs, 0)), (0, 0)))
    weight, bias = layers[-1]
    layers[-1] = [weight[:, 1] - weight[:, 0], bias[1:] - bias[:1]]
    return np.concatenate([part.ravel() for layer in layers for part in layer])
