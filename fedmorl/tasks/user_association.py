"""User association: users walk about and each chooses, by rank of signal, the base station that serves it.

Letters: E networks, N users, M base stations, A = min(M, 4) actions. Places are in metres, SNR in dB.
Related work: Sana et al. (2020), arXiv 2006.09066. Numbers are ours.
"""

import numpy as np

from fedmorl.tasks.networks import Tally, check_actions, check_size, even_weights

SIDE_M, STATION_MARGIN_M, SPOT_MARGIN_M, SPOT_SD_M = 200.0, 20.0, 30.0, 35.0
STEP_M = 3.0  # walked in an epoch
SEEN = 4  # stations that a user knows of: those with the strongest signal
HANDOVER_COST = 0.1
SWEEPS = 3  # of the best response


class UserAssociation:
    """E networks of N users and M base stations.

    Parameters
    ----------
    n_networks, n_agents, n_stations : E >= 1, N >= 2, M >= 2.

    An action is the rank of a station by own SNR, 0 the strongest. In a step users walk, SNR and ranks follow, and all
    attach by the *new* order. User i gets R_i = log2(1 + SNR) / load, its utility is u_i = ln(R_i + 0.05), and the
    reward is 0.5 u_i + 0.5 mean_j u_j - 0.1 [the station changed].

    An observation (O = 13): the four strongest SNRs, sorted; the loads of those stations; the own rank; the utility.
    Where M < 4 the places left are -2 and -1.
    """

    name, observation_size, change_probability = "ua", 3 * SEEN + 1, 0.03
    own: np.ndarray  # (E, N) float32: the own utility, less the cost of changing
    credit: np.ndarray  # (E, N) float32: `own`, less what the others on the station lose by one more

    def __init__(self, n_networks: int, n_agents: int = 12, n_stations: int = 4) -> None:
        self.n_networks, self.n_agents = check_size("n_networks", n_networks, 1), check_size("n_agents", n_agents, 2)
        self.n_stations = check_size("n_stations", n_stations, 2)
        self.n_levels = min(self.n_stations, SEEN)

    def reset(self, rng: np.random.Generator) -> np.ndarray:
        """Draw places and attach everybody to a station of a rank drawn evenly -> observations (E, N, 13) float32."""
        e, n = self.n_networks, self.n_agents
        self._rng = rng
        self._stations = rng.uniform(STATION_MARGIN_M, SIDE_M - STATION_MARGIN_M, (e, self.n_stations, 2))
        spot = rng.uniform(SPOT_MARGIN_M, SIDE_M - SPOT_MARGIN_M, (e, 1, 2))
        self._places = np.clip(spot + SPOT_SD_M * rng.standard_normal((e, n, 2)), 0, SIDE_M)
        self._goals = rng.uniform(0, SIDE_M, (e, n, 2))
        self._attached = np.full((e, n), -1)
        return self.step(rng.integers(self.n_levels, size=(e, n)))[0]

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ranks (E, N) -> observations (E, N, 13), rewards (E, N), float32."""
        ranks = check_actions(actions, self)
        self._walk()
        self._snr_db = snr_db(self._places, self._stations)  # (E, N, M)
        order = np.argsort(-self._snr_db, axis=-1, kind="stable")
        attached = np.take_along_axis(order, ranks[..., None], -1)[..., 0]
        self._changed = (attached != self._attached) & (self._attached >= 0)
        self._attached = attached
        load = loads(attached, self.n_stations)  # (E, M)
        alone = np.take_along_axis(spectral_efficiency(self._snr_db), attached[..., None], -1)[..., 0]
        crowd = np.take_along_axis(load, attached, -1)
        self._rate = alone / crowd
        self._utility = np.log(self._rate + 0.05)
        self.own = (self._utility - HANDOVER_COST * self._changed).astype(np.float32)
        self.credit = (self.own - externality(alone, attached, crowd)).astype(np.float32)
        team = self._utility.mean(1, keepdims=True)
        reward = 0.5 * self._utility + 0.5 * team - HANDOVER_COST * self._changed
        return self._observe(order, load, ranks), reward.astype(np.float32)

    def reference(self) -> np.ndarray:
        """(E, N): ranks after three sweeps of best response, with everybody's place and station known.

        In turn each user leaves, and joins arg max_m ln(R1_m / (L_m + 1) + 0.05) + L_m (ln max(L_m, 1) - ln(L_m + 1)):
        what it gets and what those already there lose. L_m is the load without it, R1_m what it would get alone.
        """
        alone = spectral_efficiency(self._snr_db)
        attached, load = self._attached.copy(), loads(self._attached, self.n_stations).astype(float)
        rows = np.arange(self.n_networks)
        for _ in range(SWEEPS):
            for i in range(self.n_agents):
                load[rows, attached[:, i]] -= 1
                theirs = load * (np.log(np.maximum(load, 1)) - np.log(load + 1))
                value = np.log(alone[:, i] / (load + 1) + 0.05) + theirs
                reachable = ranks_of(self._snr_db[:, i]) < self.n_levels
                attached[:, i] = np.where(reachable, value, -np.inf).argmax(-1)
                load[rows, attached[:, i]] += 1
        return np.take_along_axis(ranks_of(self._snr_db), attached[..., None], -1)[..., 0]

    def greedy_reference(self) -> np.ndarray:
        """(E, N): ranks that each user would choose for itself, arg max_m R1_m / (L_m + 1), if nobody else moved."""
        here = self._attached[..., None] == np.arange(self.n_stations)
        others = loads(self._attached, self.n_stations)[:, None] - here
        ranks = ranks_of(self._snr_db)
        value = np.where(ranks < self.n_levels, spectral_efficiency(self._snr_db) / (others + 1), -np.inf)
        return np.take_along_axis(ranks, value.argmax(-1)[..., None], -1)[..., 0]

    def weights(self) -> np.ndarray:
        """(E, N, N): the users of a cell count ten times as much as those of others."""
        together = self._attached[:, :, None] == self._attached[:, None, :]
        weight = np.where(together, 1.0, 0.1) * even_weights(self.n_networks, self.n_agents)
        return weight / weight.sum(-1, keepdims=True)

    def tally(self) -> Tally:
        """Mean log-utility, handovers per user and epoch, and the rate that one user in twenty stays below."""
        one = np.ones(self.n_networks)
        return {
            "log_utility": (self._utility.mean(1), one),
            "handovers": (self._changed.mean(1), one),
            "rate_5": (np.quantile(self._rate, 0.05, axis=1), one),
        }

    def new_level(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        """Mostly a strong station: geometric(0.6) - 1, at most the last rank."""
        return np.minimum(rng.geometric(0.6, shape) - 1, self.n_levels - 1)

    def _walk(self) -> None:
        """Three metres towards the own goal; a new one for those who are there."""
        way = self._goals - self._places
        far = np.linalg.norm(way, axis=-1, keepdims=True)
        self._places = self._places + way * np.minimum(STEP_M / np.maximum(far, 1e-9), 1)
        fresh = self._rng.uniform(0, SIDE_M, self._goals.shape)
        self._goals = np.where(far <= 2 * STEP_M, fresh, self._goals)  # what is left is at most one step

    def _observe(self, order: np.ndarray, load: np.ndarray, ranks: np.ndarray) -> np.ndarray:
        seen = order[..., :SEEN]
        m = self.n_stations
        strong = np.clip(np.take_along_axis(self._snr_db, seen, -1) / 15, -2, 2)
        full = np.take_along_axis(load[:, None], seen, -1) * m / (2 * self.n_agents) - 1
        missing = ((0, 0), (0, 0), (0, SEEN - seen.shape[-1]))
        columns = (
            np.pad(strong, missing, constant_values=-2),
            np.pad(full, missing, constant_values=-1),
            2.0 * (ranks[..., None] == np.arange(SEEN)) - 1,
            self._utility[..., None] / 2,
        )
        return np.concatenate(columns, -1).astype(np.float32)


def snr_db(places: np.ndarray, stations: np.ndarray) -> np.ndarray:
    """80 - 35 log10(d + 5), d the distance in metres: places (E, N, 2), stations (E, M, 2) -> (E, N, M)."""
    distance_m = np.linalg.norm(places[:, :, None] - stations[:, None], axis=-1)
    return 80 - 35 * np.log10(distance_m + 5)


def spectral_efficiency(snr_in_db: np.ndarray) -> np.ndarray:
    """log2(1 + SNR) [bit/s/Hz] of a user alone on its station."""
    return np.log2(1 + 10 ** (snr_in_db / 10))


def externality(alone: np.ndarray, attached: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """(E, N): the utility that the others on a user's station lose because it is there too.

    alone, attached, crowd : (E, N), what each would get alone, its station, and how many are on it.
    """
    lost = np.log(alone / np.maximum(crowd - 1, 1) + 0.05) - np.log(alone / crowd + 0.05)  # by j, if one more is there
    together = (attached[:, :, None] == attached[:, None, :]) & ~np.eye(attached.shape[1], dtype=bool)
    return (together * lost[:, None, :]).sum(-1)


def loads(attached: np.ndarray, n_stations: int) -> np.ndarray:
    """Users on each station: (E, N) -> (E, M)."""
    return (attached[..., None] == np.arange(n_stations)).sum(1)


def ranks_of(snr_in_db: np.ndarray) -> np.ndarray:
    """Rank of each station by SNR, 0 the strongest: (..., M) -> (..., M)."""
    return np.argsort(np.argsort(-snr_in_db, axis=-1, kind="stable"), axis=-1, kind="stable")
