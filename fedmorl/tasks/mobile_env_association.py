"""User association in the package `mobile-env`, whose channel, walks and quality of experience others wrote.

For evaluation only: a planner that learned from `UserAssociation` plans here as it stands, on the same 13 numbers.
Source: Schneider et al. (2022), mobile-env, NOMS; the package, version 2.1.0 (MIT).

Letters: E networks, N users, M base stations, A = min(M, 4) actions. Places are in metres.
"""

from importlib import metadata
from typing import Any

import numpy as np

from fedmorl.tasks.networks import Tally, check_actions, check_size, even_weights
from fedmorl.tasks.user_association import SEEN, SWEEPS, loads, ranks_of

SCENARIOS = {"small": "MComSmall", "medium": "MComMedium"}
NONE = -1  # the station of a user without a link


def mobile_env_version() -> str:
    """The version of the installed package, or one sentence that says how to get it."""
    try:
        return metadata.version("mobile-env")
    except metadata.PackageNotFoundError:
        raise ModuleNotFoundError(
            "this task needs the package mobile-env; install the extra: pip install 'fedmorl[mobile]'"
        ) from None


class MobileEnvAssociation:
    """E instances of one of mobile-env's scenarios, each user on one station at most.

    Parameters
    ----------
    n_networks : E >= 1.
    scenario : "small" (3 stations, 5 users) or "medium" (7 stations, 15 users), as the package has them. Stations
        stand where the package puts them; where users are and walk to is drawn.

    An action is the rank of a station by own SNR, 0 the strongest, at the place where the user observed. A user's
    rate, its utility and whom it may connect to are the package's own: resources shared evenly, a logarithmic quality
    of experience in [-1, 1] which is -1 without a link, and no link at or below the user's own least SNR. Whoever asks
    for a station out of reach has none until it asks for another.

    An observation (O = 13) is that of `UserAssociation`. SNR there is in dB above the user's least SNR: 0 dB is where
    a link breaks, as it is about where log2(1 + SNR) bends. The load of a station out of reach is not heard and reads
    0, as in the package's own observations. The rank is that, where the user is now, of the station it asked for last.
    The utility is ln(R + 0.05), R the package's rate in its own unit (MB/s in its words).

    Departs from the package: its action toggles one link, so that a handover takes two actions and passes through two
    links or none. Here both toggles fall in one step, between the package's steps, by its own `apply_action`.
    """

    name, observation_size, change_probability = "ua", 3 * SEEN + 1, 0.03
    own: np.ndarray  # (E, N) float32: the package's utility of each user
    credit: np.ndarray | None = None  # nothing is learned here

    def __init__(self, n_networks: int, scenario: str = "small") -> None:
        self.n_networks = check_size("n_networks", n_networks, 1)
        if scenario not in SCENARIOS:
            raise ValueError(f"scenario must be one of {', '.join(SCENARIOS)}; got {scenario!r}")
        self.scenario = scenario
        self.envs = [_instance(scenario, seed=0)]
        self.n_agents, self.n_stations = self.envs[0].NUM_USERS, self.envs[0].NUM_STATIONS
        self.n_levels = min(self.n_stations, SEEN)

    def reset(self, rng: np.random.Generator) -> np.ndarray:
        """New instances, and one epoch on stations of ranks drawn evenly -> observations (E, N, 13) float32."""
        shape = (self.n_networks, self.n_agents)
        self.envs = [_instance(self.scenario, int(seed)) for seed in rng.integers(2**31, size=self.n_networks)]
        for env in self.envs:
            env.reset()
        self._attached = np.full(shape, NONE)
        self._look()
        return self.step(rng.integers(self.n_levels, size=shape))[0]

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ranks (E, N) -> observations (E, N, 13) and the package's utilities (E, N), float32; users attach, then walk.

        RuntimeError once the package's episode is over, 99 epochs after `reset`.
        """
        ranks = check_actions(actions, self)
        if self.envs[0].time is None or self.envs[0].time_is_up:
            raise RuntimeError("no episode of mobile-env is under way (one has 100 epochs): call reset(rng) first")
        asked = np.take_along_axis(self._order, ranks[..., None], -1)[..., 0]
        for env, stations in zip(self.envs, asked, strict=True):
            _attach(env, stations)
            env.step({})
        before, self._attached = self._attached, np.stack([_stations_of(env) for env in self.envs])
        self._changed = (self._attached != before) & (self._attached != NONE) & (before != NONE)
        self._rate = np.array([[float(env.macro[ue]) for ue in env.active] for env in self.envs])
        self._utility = np.array([[float(env.utilities[ue]) for ue in env.active] for env in self.envs])
        self.own = self._utility.astype(np.float32)
        self._look()
        return self._observe(asked), self.own

    def reference(self) -> np.ndarray:
        """(E, N): ranks after three sweeps of best response, with everybody's rate on every station known.

        In turn each user leaves, and joins the station where its own utility and what those already there lose add up
        to most. Utilities are the package's, of the rates that it would give now.
        """
        attached, rows = self._attached.copy(), np.arange(self.n_networks)
        ranks = np.zeros(attached.shape, dtype=np.int64)
        for _ in range(SWEEPS):
            for i in range(self.n_agents):
                attached[:, i] = NONE
                ranks[:, i] = self._value_of_joining(i, attached).argmax(-1)
                station = self._order[rows, i, ranks[:, i]]
                attached[:, i] = np.where(self._alone[rows, i, station] > 0, station, NONE)
        return ranks

    def greedy_reference(self) -> np.ndarray:
        """(E, N): ranks that each user would choose for itself, arg max_m R1_m / (L_m + 1), if nobody else moved.

        R1_m is the package's rate alone on station m, 0 out of reach, and L_m the load without the user.
        """
        here = self._attached[..., None] == np.arange(self.n_stations)
        others = loads(self._attached, self.n_stations)[:, None] - here
        return self._ranked(self._alone / (others + 1)).argmax(-1)

    def weights(self) -> np.ndarray:
        """(E, N, N): the users of a cell count ten times as much as those of others; those without a link are alone."""
        together = self._attached[:, :, None] == self._attached[:, None, :]
        together &= (self._attached != NONE)[:, :, None]
        weight = np.where(together, 1.0, 0.1) * even_weights(self.n_networks, self.n_agents)
        return weight / weight.sum(-1, keepdims=True)

    def tally(self) -> Tally:
        """The package's mean utility; mean ln(R + 0.05), handovers, and the share of users that have a link."""
        one = np.ones(self.n_networks)
        return {
            "utility": (self._utility.mean(1), one),
            "log_utility": (np.log(self._rate + 0.05).mean(1), one),
            "handovers": (self._changed.mean(1), one),
            "connected": ((self._rate > 0).mean(1), one),
        }

    def new_level(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        """Mostly a strong station, as in `UserAssociation`: geometric(0.6) - 1, at most the last rank."""
        return np.minimum(rng.geometric(0.6, shape) - 1, self.n_levels - 1)

    def _look(self) -> None:
        """SNR over the least one, rate alone and order of stations where the users are now."""
        self._snr = np.array([_snr(env) for env in self.envs])  # (E, N, M)
        least = np.array([[ue.snr_threshold for ue in env.active] for env in self.envs])[..., None]
        self._margin_db = 10 * np.log10(self._snr / least)
        bandwidth = np.array([[bs.bw for bs in env.stations.values()] for env in self.envs])[:, None]
        self._alone = np.where(self._snr > least, bandwidth * np.log2(1 + self._snr), 0.0)
        self._order = np.argsort(-self._snr, axis=-1, kind="stable")

    def _ranked(self, values: np.ndarray) -> np.ndarray:
        """Of each station (E, N, M) -> of each rank that can be asked for (E, N, A)."""
        return np.take_along_axis(values, self._order, -1)[..., : self.n_levels]

    def _value_of_joining(self, i: int, attached: np.ndarray) -> np.ndarray:
        """(E, A): what user i gains on the station of each rank, less what others there lose; `attached` has no i."""
        there = attached[..., None] == np.arange(self.n_stations)  # (E, N, M)
        load = there.sum(1)
        before = self._qoe(self._alone / np.maximum(load, 1)[:, None])
        lost = (there * (before - self._qoe(self._alone / (load + 1)[:, None]))).sum(1)
        mine = self._alone[:, i]
        gain = self._qoe(mine / (load + 1)) - np.where(mine > 0, lost, 0.0)  # who cannot join takes nothing
        return np.take_along_axis(gain, self._order[:, i], -1)[:, : self.n_levels]

    def _qoe(self, rate: np.ndarray) -> np.ndarray:
        """The package's scaled utility, for arrays: in [-1, 1], -1 at rate 0."""
        model = self.envs[0].utility
        w1, w2, w3 = model.coeffs
        linked = np.where(rate > 0, rate, 1.0)
        bounded = np.clip(w1 * np.log(w2 + linked) / np.log(w3), model.lower, model.upper)
        return model.scale(np.where(rate > 0, bounded, model.lower))

    def _observe(self, asked: np.ndarray) -> np.ndarray:
        m, missing = self.n_stations, ((0, 0), (0, 0), (0, SEEN - self.n_levels))
        heard = np.where(self._alone > 0, loads(self._attached, m)[:, None], 0)
        rank = np.take_along_axis(ranks_of(self._snr), asked[..., None], -1)
        columns = (
            np.pad(np.clip(self._ranked(self._margin_db) / 15, -2, 2), missing, constant_values=-2),
            np.pad(self._ranked(heard) * m / (2 * self.n_agents) - 1, missing, constant_values=-1),
            2.0 * (rank == np.arange(SEEN)) - 1,
            np.log(self._rate + 0.05)[..., None] / 2,
        )
        return np.concatenate(columns, -1).astype(np.float32)


class _Silent:
    """What mobile-env calls a handler, without observations and rewards: ours are taken from the simulation.

    The package's own would take most of the time of a step.
    """

    @staticmethod
    def action(env: Any, actions: dict[int, int]) -> dict[int, int]:
        return actions

    @staticmethod
    def info(env: Any) -> dict[str, float]:
        return {}

    @staticmethod
    def _nothing(env: Any) -> None:
        return None

    action_space = observation_space = observation = reward = check = _nothing


def _instance(scenario: str, seed: int) -> Any:
    """One of the package's environments, with the package's numbers."""
    mobile_env_version()
    from mobile_env.scenarios import medium, small

    kind = getattr({"small": small, "medium": medium}[scenario], SCENARIOS[scenario])
    return kind(config={"seed": seed, "handler": _Silent})


def _attach(env: Any, stations: np.ndarray) -> None:
    """Toggle links until each user is on the station it asks for, or on none where the package refuses that one.

    A link that no longer reaches is released by `env.step`, before it counts.
    """
    for ue, wanted in zip(env.active, stations, strict=True):
        for number, bs in env.stations.items():
            if (ue in env.connections[bs]) != (number == wanted):
                env.apply_action(number + 1, ue)  # 0 is to do nothing


def _stations_of(env: Any) -> list[int]:
    """Of each user, its station, or NONE."""
    on = {ue: number for number, bs in env.stations.items() for ue in env.connections[bs]}
    return [on.get(ue, NONE) for ue in env.active]


def _snr(env: Any) -> list[list[float]]:
    """(N, M): the package's SNR, no dB."""
    return [[float(env.channel.snr(bs, ue)) for bs in env.stations.values()] for ue in env.active]
