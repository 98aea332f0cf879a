"""Who shares the channel, and by which rules: stations, traffic, presets. All validation is here.

Times are whole slots unless a name says otherwise. The rules these numbers feed are the book's page
"The rules of the channel"; each field names its source there.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from fedmorl.dca.policy import MLPPolicy, Policy

MAX_STATIONS = 256  # a success is logged with its station in 8 bits
MAX_WINDOW = 65_535  # counters and back-off windows stay far inside the streams' 32-bit draws
COUNTDOWNS = ("frozen", "bianchi")
D2LT_FORMS = ("global", "local")
DELAY_TERMS = ("share", "raw")
MAX_SLOTS = 10**12


def _check_number(name: str, value: float, low: float, high: float, rule: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, {rule}; got {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be {rule}; got {value!r}")


def _check_integer(name: str, value: int, low: int, high: int, rule: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} must be an integer, {rule}; got {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be {rule}; got {value}")


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}")


@dataclass(frozen=True)
class Saturated:
    """A packet always waits: the queue is refilled at once.

    A station that comes and goes joins at boundary `start_slot`; the packet in front at `stop_slot` is its last.
    """

    start_slot: int = 0
    stop_slot: int | None = None  # None: never

    def __post_init__(self) -> None:
        _check_integer("start_slot", self.start_slot, 0, MAX_SLOTS, f"from 0 to {MAX_SLOTS}")
        if self.stop_slot is not None:
            rule = f"after start_slot={self.start_slot}, and at most {MAX_SLOTS}"
            _check_integer("stop_slot", self.stop_slot, self.start_slot + 1, MAX_SLOTS, rule)


@dataclass(frozen=True)
class Poisson:
    """Packets arrive as a Poisson process. The default, 0.018 a slot, is QPMIX's 2000 packets/s; it saturates."""

    rate_per_slot: float = 0.018

    def __post_init__(self) -> None:
        _check_number("rate_per_slot", self.rate_per_slot, 1e-9, 1.0, "between 1e-9 and 1 packets a slot")


@dataclass(frozen=True)
class ConstantRate:
    """Packets arrive at equal gaps of 1 / rate_per_slot, from a random phase."""

    rate_per_slot: float = 0.004

    def __post_init__(self) -> None:
        _check_number("rate_per_slot", self.rate_per_slot, 1e-9, 1.0, "between 1e-9 and 1 packets a slot")


Traffic = Saturated | Poisson | ConstantRate


@dataclass(frozen=True, kw_only=True)
class Station:
    """One radio (the papers' UE): how it contends and what it has to send.

    `cw_min` and `cw_max` are 802.11 CW values, i.e. the *largest* draw: a draw is uniform on the CW + 1
    integers 0..CW. With `policy` set the station asks the policy at each of its decision slots instead of
    counting down; its window fields are then unused.
    """

    cw_min: int = 7
    cw_max: int = 1023
    aifs_slots: int = 4  # idle wait before contending; DIFS is 4 slots = 36 us
    eca_backoff_slots: int | None = None  # CSMA/ECA: deterministic V after a success; None: DCF
    retry_limit: int = 0  # failed attempts until a packet is dropped; 0: never
    frame_error_rate: float = 0.0  # chance that a lone transmission is not received
    overhearing_loss: float = 0.0  # chance that it misses the receiver address in another's acknowledgement
    traffic: Traffic | None = None  # None: the scenario's
    policy: Policy | None = None
    name: str = ""

    def __post_init__(self) -> None:
        _check_integer("cw_min", self.cw_min, 0, MAX_WINDOW, f"from 0 to {MAX_WINDOW}")
        _check_integer("cw_max", self.cw_max, 0, MAX_WINDOW, f"from 0 to {MAX_WINDOW}")
        if self.cw_min > self.cw_max:
            raise ValueError(f"cw_min must be <= cw_max; got cw_min={self.cw_min} > cw_max={self.cw_max}")
        _check_integer("aifs_slots", self.aifs_slots, 0, 1000, "from difs_slots to 1000")
        if self.eca_backoff_slots is not None:
            _check_integer("eca_backoff_slots", self.eca_backoff_slots, 1, MAX_WINDOW, f"from 1 to {MAX_WINDOW}")
        _check_integer("retry_limit", self.retry_limit, 0, 1_000_000, "0 (never drop) or a positive count")
        _check_number("frame_error_rate", self.frame_error_rate, 0.0, 1.0, "between 0 and 1")
        _check_number("overhearing_loss", self.overhearing_loss, 0.0, 1.0, "between 0 and 1")
        _check_traffic("traffic", self.traffic, or_none=True)
        if self.policy is not None and not callable(getattr(self.policy, "act", None)):
            raise ValueError(
                f"policy must have a method act(observation, memory, rng); got {type(self.policy).__name__}"
            )


def _check_traffic(name: str, value: Any, or_none: bool = False) -> None:
    if not isinstance(value, Traffic) and not (or_none and value is None):
        raise ValueError(f"{name} must be Saturated(), Poisson(rate) or ConstantRate(rate); got {value!r}")


AC_VO = Station(cw_min=7, cw_max=15, name="AC_VO")  # FedMORL, Table 1
AC_VI = Station(cw_min=15, cw_max=31, name="AC_VI")
AC_BE = Station(cw_min=31, cw_max=1023, name="AC_BE")
CSMA_CA = Station(cw_min=7, cw_max=1023, name="CSMA_CA")  # the source of FedMORL's offline logs
CSMA_ECA = Station(cw_min=31, cw_max=1023, eca_backoff_slots=16, name="CSMA_ECA")  # ours: V = (31 + 1) / 2

PRESETS = {s.name.lower(): s for s in (AC_VO, AC_VI, AC_BE, CSMA_CA, CSMA_ECA)}


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """The stations and the channel they share.

    Parameters
    ----------
    stations : sequence of Station, 1 to 256
    countdown : "frozen" (802.11: counters stop during a busy period) or "bianchi" (every other station's
        counter falls by one per busy period, the time rule that makes Bianchi's chain exact).
    d2lt : "global" (the paper: own share of everybody's delay since the last success) or "local" (from
        overheard successes only).
    delay_term : "share" (the paper's normalised D2LT) or "raw" (clipped at 12 400 slots; ours).
    alpha : weight of the local reward; None means 0.05 N (ours: the paper gives no value).

    Raises
    ------
    ValueError
        One sentence naming the field, the rule and what came.
    """

    stations: Sequence[Station]
    countdown: Literal["frozen", "bianchi"] = "frozen"
    traffic: Traffic = Saturated()
    slot_us: float = 9.0
    tx_slots: int = 120  # payload + SIFS + ACK
    ack_slots: int = 7  # the last slots of tx_slots; a label only
    difs_slots: int = 4
    collision_slots: int | None = None  # None: as long as a success
    eifs_extra_slots: int = 0  # extra wait of those who overheard a failed busy period
    buffer: int = 10  # FIFO capacity, the packet being sent included
    d2lt: Literal["global", "local"] = "global"
    delay_term: Literal["share", "raw"] = "share"
    alpha: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.stations, Station) or not isinstance(self.stations, Sequence):
            raise ValueError(
                "stations must be a list of Station, for instance [AC_VO, AC_BE]; "
                f"got {type(self.stations).__name__} (Scenario.uniform repeats one station)"
            )
        object.__setattr__(self, "stations", tuple(self.stations))
        _check_integer("n_stations", len(self.stations), 1, MAX_STATIONS, f"from 1 to {MAX_STATIONS}")
        for k, station in enumerate(self.stations):
            if not isinstance(station, Station):
                raise ValueError(f"stations[{k}] must be a Station; got {station!r}")
        _check_choice("countdown", self.countdown, COUNTDOWNS)
        _check_choice("d2lt", self.d2lt, D2LT_FORMS)
        _check_choice("delay_term", self.delay_term, DELAY_TERMS)
        _check_traffic("traffic", self.traffic)
        _check_number("slot_us", self.slot_us, 1e-3, 1e6, "between 0.001 and 1e6 us")
        _check_integer("tx_slots", self.tx_slots, 1, 100_000, "from 1 to 100000 slots")
        _check_integer("ack_slots", self.ack_slots, 0, self.tx_slots, "from 0 to tx_slots")
        _check_integer("difs_slots", self.difs_slots, 0, 1000, "from 0 to 1000 slots")
        if self.collision_slots is not None:
            _check_integer("collision_slots", self.collision_slots, 1, 100_000, "from 1 to 100000 slots")
        _check_integer("eifs_extra_slots", self.eifs_extra_slots, 0, 1000, "from 0 to 1000 slots")
        _check_integer("buffer", self.buffer, 1, 10_000, "from 1 to 10000 packets")
        if self.alpha is not None:
            _check_number("alpha", self.alpha, 0.0, 1e6, "between 0 and 1e6")
        self._check_deferrals()

    def _check_deferrals(self) -> None:
        for k, station in enumerate(self.stations):
            if station.aifs_slots < self.difs_slots:
                raise ValueError(
                    f"stations[{k}].aifs_slots must be >= difs_slots={self.difs_slots}, since nobody "
                    f"contends before DIFS is over; got {station.aifs_slots}"
                )
        unequal = any(s.aifs_slots != self.difs_slots for s in self.stations)
        if self.countdown == "bianchi" and (unequal or self.eifs_extra_slots):
            raise ValueError(
                'countdown="bianchi" needs aifs_slots = difs_slots for every station and '
                'eifs_extra_slots = 0; use countdown="frozen" for deferrals'
            )

    @classmethod
    def uniform(cls, station: Station, n_stations: int, **fields: Any) -> "Scenario":
        """`n_stations` copies of one station; `fields` are the scenario's other fields."""
        if not isinstance(station, Station):
            raise ValueError(f"station must be a Station such as AC_BE; got {station!r}")
        _check_integer("n_stations", n_stations, 1, MAX_STATIONS, f"from 1 to {MAX_STATIONS}")
        return cls(stations=(station,) * n_stations, **fields)

    @property
    def n_stations(self) -> int:
        """N, the number of stations."""
        return len(self.stations)

    @property
    def failure_slots(self) -> int:
        """Length of a collision in slots."""
        return self.tx_slots if self.collision_slots is None else self.collision_slots

    @property
    def reward_alpha(self) -> float:
        """Weight of the local reward in use."""
        return 0.05 * self.n_stations if self.alpha is None else self.alpha

    def station_traffic(self, station: int) -> Traffic:
        """The traffic of one station: its own, or the scenario's."""
        own = self.stations[station].traffic
        return self.traffic if own is None else own

    def with_policies(self, policies: dict[int, Policy]) -> "Scenario":
        """The same scenario with `policies[k]` in control of station k."""
        for k in policies:
            _check_integer("station index", k, 0, self.n_stations - 1, f"from 0 to {self.n_stations - 1}")
        stations = [replace(s, policy=policies.get(k, s.policy)) for k, s in enumerate(self.stations)]
        return replace(self, stations=stations)

    def to_dict(self) -> dict[str, Any]:
        """Every field as plain JSON values; a policy is given by its class and content hash."""
        plain = {f: getattr(self, f) for f in self.__dataclass_fields__ if f not in ("stations", "traffic")}
        plain["traffic"] = _traffic_dict(self.traffic)
        plain["stations"] = [_station_dict(s) for s in self.stations]
        return plain


def _traffic_dict(traffic: Traffic | None) -> dict[str, Any] | None:
    return None if traffic is None else {"kind": type(traffic).__name__, **asdict(traffic)}


def _station_dict(station: Station) -> dict[str, Any]:
    plain = {f: getattr(station, f) for f in station.__dataclass_fields__ if f not in ("traffic", "policy")}
    plain["traffic"] = _traffic_dict(station.traffic)
    policy = station.policy
    if policy is not None:
        content = policy.content_hash if isinstance(policy, MLPPolicy) else None
        plain["policy"] = {"kind": type(policy).__name__, "content_hash": content}
    return plain
