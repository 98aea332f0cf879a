"""Power control: interfering links, each of which chooses its transmit power on last slot's channel.

Letters: E networks, N links, A = 10 powers a / 9 of the maximum. G[i, j] is the gain from transmitter j to receiver i,
over noise at full power (linear). Rates are bit/s/Hz.
After Nasir and Guo (2019), IEEE JSAC 37(10); WMMSE: Shi et al. (2011), IEEE TSP 59(9); fractional programming: Shen and
Yu (2018), IEEE TSP 66(10). The reward is the rate minus what it costs the others, as in the first.
"""

import numpy as np
from scipy.special import j0

from fedmorl.tasks.networks import Tally, check_actions, check_size

SIDE_M, LINK_M = 500.0, (10.0, 120.0)
SHADOWING_DB, POWER_DBM, NOISE_DBM = 8.0, 38.0, -114.0
DOPPLER_HZ, SLOT_S = 10.0, 0.02
RHO = float(j0(2 * np.pi * DOPPLER_HZ * SLOT_S))  # correlation of fading from slot to slot, Jakes
ITERATIONS = 60
HEARD = 5  # neighbours whose messages count


class PowerControl:
    """E networks of N links.

    Parameters
    ----------
    n_networks, n_agents : E >= 1, N >= 3 (two strongest neighbours are observed).

    In a step powers are chosen, fading moves on, and rates follow: rate_i = log2(1 + G_ii p_i / (1 + I_i)), where
    I_i = sum_{j != i} G_ij p_j. The reward of j is clip(rate_j - ext_j, -6, 8) / 2 with the rate lost by others,
    ext_j = sum_{i != j} (log2(1 + G_ii p_i / (1 + I_i - G_ij p_j)) - rate_i).

    An observation (O = 9), all of the last slot: power, own gain, interference, rate, ext, the two largest gains
    caused, the two largest powers suffered; gains and powers in dB, shifted and scaled.
    """

    name, n_levels, observation_size, change_probability = "pc", 10, 9, 0.05
    own: np.ndarray  # (E, N) float32: the rate alone, on the reward's scale
    credit: np.ndarray  # (E, N) float32: the reward, which is own minus externality

    def __init__(self, n_networks: int, n_agents: int = 10) -> None:
        self.n_networks, self.n_agents = check_size("n_networks", n_networks, 1), check_size("n_agents", n_agents, 3)

    def reset(self, rng: np.random.Generator) -> np.ndarray:
        """Draw places, shadowing and fading, and play one slot at powers drawn evenly -> (E, N, 9) float32."""
        self._rng, shape = rng, (self.n_networks, self.n_agents)
        self._mean_gain = mean_gains(*shape, rng)
        self._fading = rayleigh((*shape, self.n_agents), rng)
        return self.step(rng.integers(self.n_levels, size=shape))[0]

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Powers a / 9, (E, N) -> observations (E, N, 9), rewards (E, N), float32."""
        levels = check_actions(actions, self)
        self._fading = RHO * self._fading + (1 - RHO**2) ** 0.5 * rayleigh(self._fading.shape, self._rng)
        self._power = levels / (self.n_levels - 1)
        self._gain = np.abs(self._fading) ** 2 * self._mean_gain
        self._rate, cost = rates(self._gain, self._power), externality(self._gain, self._power)
        self.own = (np.clip(self._rate, -6, 8) / 2).astype(np.float32)
        self.credit = (np.clip(self._rate - cost, -6, 8) / 2).astype(np.float32)
        return self._observe(levels, cost), self.credit

    def reference(self) -> np.ndarray:
        """(E, N): WMMSE on last slot's gains of all pairs, rounded to a power there is."""
        return self.rounded(wmmse(self._gain))

    def fractional_reference(self) -> np.ndarray:
        """(E, N): fractional programming on last slot's gains, rounded likewise."""
        return self.rounded(fractional_programming(self._gain))

    def genie_rate(self) -> np.ndarray:
        """(E,): mean rate per link [bit/s/Hz] had WMMSE known the gains of the slot just played, powers not rounded."""
        return rates(self._gain, wmmse(self._gain)).mean(1)

    def rounded(self, power: np.ndarray) -> np.ndarray:
        """The nearest levels."""
        return np.rint(power * (self.n_levels - 1)).astype(np.int64)

    def weights(self) -> np.ndarray:
        """(E, N, N): the five that interfere most at full power, by their gain in dB above the noise (at least 1)."""
        n = self.n_agents
        level = np.maximum(10 * np.log10(self._gain + 1), 1) * (1 - np.eye(n))
        least = np.sort(level, -1)[..., -min(HEARD, n - 1), None]
        kept = np.where(level >= least, level, 0)
        return kept / kept.sum(-1, keepdims=True)

    def tally(self) -> Tally:
        """Mean rate per link, and the rate that one link in twenty stays below [bit/s/Hz]."""
        one = np.ones(self.n_networks)
        return {"rate": (self._rate.mean(1), one), "rate_5": (np.quantile(self._rate, 0.05, axis=1), one)}

    def new_level(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        """Drawn evenly."""
        return rng.integers(self.n_levels, size=shape)

    def _observe(self, levels: np.ndarray, cost: np.ndarray) -> np.ndarray:
        own = np.diagonal(self._gain, axis1=1, axis2=2)
        cross = self._gain * (1 - np.eye(self.n_agents))
        suffered = cross * self._power[:, None, :]
        columns = (
            2 * levels / (self.n_levels - 1) - 1,
            scaled_db(own),
            scaled_db(suffered.sum(-1)),
            self._rate / 4 - 1,
            np.clip(cost / 4, 0, 2),
            *np.moveaxis(scaled_db(np.sort(cross, 1)[:, :-3:-1]), 1, 0),  # the two largest G_ji, j any receiver
            *np.moveaxis(scaled_db(np.sort(suffered, 2)[..., :-3:-1]), -1, 0),
        )
        return np.stack(columns, -1).astype(np.float32)


# --- radio ----------------------------------------------------------------------------------------------


def mean_gains(n_networks: int, n_links: int, rng: np.random.Generator) -> np.ndarray:
    """Path loss and shadowing of every pair, over noise at full power, linear: (E, N, N).

    Path loss [dB] 120.9 + 37.6 log10(max(d, 10 m) / 1 km) + N(0, 8^2); transmitters are uniform in the square,
    receivers 10 to 120 m away at any angle.
    """
    senders = rng.uniform(0, SIDE_M, (n_networks, n_links, 2))
    angle = rng.uniform(0, 2 * np.pi, (n_networks, n_links))
    away = rng.uniform(*LINK_M, (n_networks, n_links))
    receivers = senders + away[..., None] * np.stack([np.cos(angle), np.sin(angle)], -1)
    distance_m = np.linalg.norm(receivers[:, :, None] - senders[:, None], axis=-1)  # [i, j]: sender j to receiver i
    loss_db = 120.9 + 37.6 * np.log10(np.maximum(distance_m, 10) / 1000)
    loss_db = loss_db + SHADOWING_DB * rng.standard_normal(loss_db.shape)
    return 10 ** ((POWER_DBM - NOISE_DBM - loss_db) / 10)


def rayleigh(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """CN(0, 1)."""
    real, imaginary = rng.standard_normal((2, *shape)) / 2**0.5
    return real + 1j * imaginary


def scaled_db(x: np.ndarray) -> np.ndarray:
    """Gains lie at 45 to 110 dB: (dB - 70) / 20, from -2 to 2."""
    return np.clip((10 * np.log10(x + 1e-3) - 70) / 20, -2, 2)


def rates(gain: np.ndarray, power: np.ndarray) -> np.ndarray:
    """log2(1 + SINR) of each link: gains (E, N, N) and powers (E, N) -> (E, N)."""
    heard = gain * power[:, None, :]
    signal = np.diagonal(heard, axis1=1, axis2=2)
    return np.log2(1 + signal / (1 + heard.sum(-1) - signal))


def externality(gain: np.ndarray, power: np.ndarray) -> np.ndarray:
    """(E, N): the rate that all others lose because j sends, one j at a time."""
    heard = gain * power[:, None, :]  # [i, j]
    signal = np.diagonal(heard, axis1=1, axis2=2)[..., None]
    noise = 1 + heard.sum(-1, keepdims=True) - signal
    lost = np.log2(1 + signal / np.maximum(noise - heard, 1.0)) - np.log2(1 + signal / noise)
    return (lost * (1 - np.eye(gain.shape[1]))).sum(1)


# --- references -----------------------------------------------------------------------------------------


def wmmse(gain: np.ndarray, n_iterations: int = ITERATIONS) -> np.ndarray:
    """Powers (E, N) in [0, 1] that raise the sum rate, by weighted minimum mean-square error from full power.

    u_i = sqrt(G_ii) v_i / (1 + sum_j G_ij v_j^2), w_i = 1 / (1 - u_i sqrt(G_ii) v_i),
    v_j = clip(w_j u_j sqrt(G_jj) / sum_i G_ij w_i u_i^2, 0, 1), p = v^2. The sum rate never falls.

    Source: Shi et al. (2011), Table I, for one antenna.
    """
    root = np.sqrt(np.diagonal(gain, axis1=1, axis2=2))
    v = np.ones_like(root)
    for _ in range(n_iterations):
        u = root * v / (1 + (gain * (v**2)[:, None, :]).sum(-1))
        w = 1 / (1 - u * root * v)
        v = np.clip(w * u * root / np.maximum((gain * (w * u**2)[..., None]).sum(1), 1e-300), 0, 1)
    return v**2


def fractional_programming(gain: np.ndarray, n_iterations: int = ITERATIONS) -> np.ndarray:
    """Powers (E, N) in [0, 1] that raise the sum rate, by the quadratic transform from full power.

    gamma_i = SINR_i, y_i = sqrt((1 + gamma_i) G_ii p_i) / (1 + sum_j G_ij p_j),
    p_i = min(1, y_i^2 (1 + gamma_i) G_ii / (sum_j y_j^2 G_ji)^2). The sum rate never falls.

    Source: Shen and Yu (2018), part I, the closed form for power control.
    """
    own = np.diagonal(gain, axis1=1, axis2=2)
    p = np.ones_like(own)
    for _ in range(n_iterations):
        heard = 1 + (gain * p[:, None, :]).sum(-1)
        gamma = own * p / (heard - own * p)
        y = np.sqrt((1 + gamma) * own * p) / heard
        cost = (gain * (y**2)[..., None]).sum(1)
        p = np.minimum(1, y**2 * (1 + gamma) * own / np.maximum(cost, 1e-300) ** 2)
    return p
