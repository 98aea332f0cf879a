"""What an upload gives away and what hiding it costs: a shadow-client attack, its measures, noise with its epsilon.

Letters: S shadow clients, which the attacker makes himself; V victims; P parameters; D numbers of a secret; C cells of
observations.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import log_ndtr
from scipy.stats import rankdata

from fedmorl.federated import ClientUpdate, Engine, FitConfig, RoundResult, State

PENALTIES = tuple(np.geomspace(1e-4, 1e4, 25))  # of the ridge, in units of the mean eigenvalue of X X'
FLOOR = 0.01  # of the root mean square of the deviations: what hardly varies among shadows is not blown up to match
NOISE = 7  # the purpose of the mechanism's stream


# --- the attack ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RidgeAttack:
    """Ridge regression from what an attacker sees to a secret, learned on shadow clients whose secrets he knows.

    y = mean(y) + B' D^-1 (x - mean(x)) with B = argmin |Y - X B|^2 + lambda |B|^2. D holds the standard deviations of
    x, none below a hundredth of their root mean square, or ones, which serve better where noise is as large in each
    number; that and lambda, one for each number of the secret, are chosen by the leave-one-out error of the shadows,
    who must therefore be different clients. The mean of their secrets, `prior`, is the best guess of who sees nothing.
    """

    prior: np.ndarray  # (D,)
    centre: np.ndarray  # (P,)
    weights: np.ndarray  # (P, D)

    @classmethod
    def fit(cls, seen: np.ndarray, secrets: np.ndarray) -> "RidgeAttack":
        """(S, P) what is seen of the shadows and (S, D) their secrets; ValueError unless finite, S >= 3 and equal."""
        seen, secrets = _matrix("seen", seen), _matrix("secrets", secrets)
        if len(seen) != len(secrets) or len(seen) < 3:
            raise ValueError(
                f"seen and secrets must have equally many rows, at least 3; got {len(seen)} and {len(secrets)}"
            )
        centre, spread, prior = seen.mean(0), seen.std(0), secrets.mean(0)
        floor = FLOOR * float(np.sqrt((spread**2).mean()))
        scales = (np.maximum(spread, floor) if floor > 0 else np.ones_like(spread), np.ones_like(spread))
        fits = [_ridge((seen - centre) / scale, secrets - prior) for scale in scales]
        best = np.argmin([errors for _, errors in fits], axis=0)  # (D,)
        weights = np.stack([weights / scale[:, None] for (weights, _), scale in zip(fits, scales, strict=True)])
        return cls(prior, centre, weights[best, :, np.arange(len(best))].T)

    def predict(self, seen: np.ndarray) -> np.ndarray:
        """(V, P) -> (V, D)."""
        return self.prior + (_matrix("seen", seen) - self.centre) @ self.weights


def _ridge(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights (P, D) and leave-one-out errors (D,) of centred x (S, P) and y (S, D), at the best penalty for each."""
    squares, u = np.linalg.eigh(x @ x.T)  # S is far below P, and one decomposition serves every penalty
    squares = np.maximum(squares, 0.0)
    penalties = np.array(PENALTIES) * max(float(squares.mean()), np.finfo(float).tiny)
    errors = np.stack([_left_out_errors(u, squares, y, penalty) for penalty in penalties])  # (L, D)
    best = penalties[errors.argmin(0)]
    return x.T @ (u @ ((u.T @ y) / (squares[:, None] + best))), errors.min(0)


def _left_out_errors(u: np.ndarray, squares: np.ndarray, y: np.ndarray, penalty: float) -> np.ndarray:
    """(D,) mean squared errors of each row predicted by the others, in closed form."""
    shrink = squares / (squares + penalty)
    leverage = 1 / len(u) + (u**2 * shrink).sum(1)  # the mean is learned too
    residual = y - u @ (shrink[:, None] * (u.T @ y))
    return ((residual / np.maximum(1 - leverage, 1e-6)[:, None]) ** 2).mean(0)


def mean_of_groups(uploads: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """What ideal secure aggregation shows: (K, P) uploads, (G, m) members of each group -> (G, P) means."""
    return uploads[groups].mean(1)


def draw_groups(n_clients: int, size: int, n_groups: int, rng: np.random.Generator) -> np.ndarray:
    """(n_groups, size) clients, without repetition inside a group; group g begins with client g modulo n_clients."""
    if not 1 <= size <= n_clients:
        raise ValueError(f"size must be from 1 to {n_clients}, the clients there are; got {size}")
    first = np.arange(n_groups) % n_clients
    rest = [rng.choice(np.delete(np.arange(n_clients), k), size - 1, replace=False) for k in first]
    return np.column_stack([first, np.array(rest, dtype=np.int64).reshape(n_groups, size - 1)])


# --- measures --------------------------------------------------------------------------------------------


def r_squared(truth: np.ndarray, guess: np.ndarray, prior: np.ndarray) -> float:
    """1 - sum (y - guess)^2 / sum (y - prior)^2, the mean over the D numbers; (V, D), (V, D), (D,).

    0 for the attacker who knows the prior alone, 1 for the one who knows all; negative for one who fools himself.
    """
    return float((1 - ((truth - guess) ** 2).sum(0) / ((truth - prior) ** 2).sum(0)).mean())


def total_variation(truth: np.ndarray, guess: np.ndarray, visits: np.ndarray) -> float:
    """Mean |pi(transmit) - guess| over the visited observations: all (V, C); the total variation of two actions."""
    return float(_visited(np.abs(truth - guess), visits).mean())


def agreement(truth: np.ndarray, guess: np.ndarray, visits: np.ndarray) -> float:
    """Share of the visited observations for which both policies prefer the same action: all (V, C)."""
    return float(_visited((truth > 0.5) == (guess > 0.5), visits).mean())


def _visited(values: np.ndarray, visits: np.ndarray) -> np.ndarray:
    return (values * visits).sum(-1) / visits.sum(-1)


def auc(members: np.ndarray, others: np.ndarray) -> float:
    """Chance that a member scores above a non-member, ties counted half."""
    ranks = rankdata(np.concatenate([members, others]))
    n, m = len(members), len(others)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def tpr_at_fpr(members: np.ndarray, others: np.ndarray, fpr: float = 0.01) -> float:
    """Share of members above the score that at most a share `fpr` of the non-members exceeds."""
    threshold = np.sort(others)[::-1][int(np.floor(fpr * len(others)))]
    return float((members > threshold).mean())


def membership_scores(own: np.ndarray, reference: np.ndarray, segment: int) -> np.ndarray:
    """How much likelier trajectories are to a model than to models that never saw them.

    (B,) nats of its transitions under the model and (R, B) under R reference models -> (B // segment,): the mean
    over `segment` decisions of the references' mean nats minus the model's own.
    """
    gain = reference.mean(0) - own
    whole = len(gain) // segment * segment
    return gain[:whole].reshape(-1, segment).mean(1)


# --- protection ------------------------------------------------------------------------------------------


def epsilon(noise_multiplier: float, rounds: int = 1, delta: float = 1e-5, sensitivity: float = 2.0) -> float:
    """The smallest epsilon for which T releases are (epsilon, delta)-differentially private.

    Parameters
    ----------
    noise_multiplier : z, standard deviation of the noise on each coordinate over the clipping bound; 0: infinity.
    rounds : T, releases of one client.
    sensitivity : largest distance of two clipped uploads over the bound; 2, as one client's log is exchanged for
        another.

    Notes
    -----
    T Gaussian releases are one of mu = sensitivity sqrt(T) / z, and
    delta(eps) = Phi(mu / 2 - eps / mu) - e^eps Phi(-mu / 2 - eps / mu).

    Source: Balle & Wang (2018), arXiv 1805.06530, theorem 8; the composition is Dong, Roth & Su (2019),
    arXiv 1905.02383, corollary 3.3.
    """
    if not noise_multiplier >= 0 or rounds < 1 or not 0 < delta < 1:
        raise ValueError(
            "noise_multiplier must be >= 0, rounds >= 1 and delta between 0 and 1; "
            f"got {noise_multiplier}, {rounds} and {delta}"
        )
    if noise_multiplier == 0:
        return float("inf")
    mu = sensitivity * np.sqrt(rounds) / noise_multiplier

    def excess(eps: float) -> float:
        here = np.exp(log_ndtr(mu / 2 - eps / mu)) - np.exp(eps + log_ndtr(-mu / 2 - eps / mu))
        return float(here - delta)

    if excess(0.0) <= 0:
        return 0.0
    return float(brentq(excess, 0.0, mu * mu / 2 + 10 * mu + 10))


def clipped(change: np.ndarray, bound: float) -> np.ndarray:
    """Changes (..., P) shortened to a Euclidean norm of at most `bound`."""
    norm = np.linalg.norm(change, axis=-1, keepdims=True)
    return change * np.minimum(1.0, bound / np.maximum(norm, np.finfo(float).tiny))


def protected(change: np.ndarray, bound: float, noise_multiplier: float, rng: np.random.Generator) -> np.ndarray:
    """Clip, then add normal noise of standard deviation noise_multiplier x bound to each coordinate: (..., P)."""
    short = clipped(change, bound)
    return short + noise_multiplier * bound * rng.standard_normal(short.shape)


@dataclass(frozen=True)
class ProtectedEngine:
    """An engine whose clients clip what they have learned and add noise before they send it."""

    engine: Engine
    bound: float
    noise_multiplier: float
    seed: int

    def run_round(self, round: int, state: State, config: FitConfig, ids: Sequence[int]) -> RoundResult:
        """The round of the engine inside, each update protected with noise of its own."""
        result = self.engine.run_round(round, state, config, ids)
        start = vector(state)
        return replace(result, updates=tuple(self._protected(update, start, state) for update in result.updates))

    def _protected(self, update: ClientUpdate, start: np.ndarray, state: State) -> ClientUpdate:
        address = np.random.SeedSequence(self.seed, spawn_key=(NOISE, update.round, update.client_id))
        change = vector(update.state) - start
        noisy = protected(change, self.bound, self.noise_multiplier, np.random.default_rng(address))
        return replace(update, state=as_arrays(start + noisy, state))


# --- states as vectors -----------------------------------------------------------------------------------


def vector(state: State) -> np.ndarray:
    """All parameters as one vector (P,), float64, by sorted name."""
    return np.concatenate([state[name].ravel() for name in sorted(state)]).astype(np.float64)


def as_arrays(values: np.ndarray, like: State) -> dict[str, np.ndarray]:
    """A vector (P,) as a state with the names, shapes and dtypes of `like`."""
    names = sorted(like)
    parts = np.split(values, np.cumsum([like[name].size for name in names])[:-1])
    return {
        name: part.reshape(like[name].shape).astype(like[name].dtype) for name, part in zip(names, parts, strict=True)
    }


def _matrix(name: str, values: Any) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or not np.isfinite(array).all():
        raise ValueError(f"{name} must be a finite matrix, one row a client; got shape {array.shape}")
    return array
