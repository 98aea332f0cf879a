"""How all stations contend and what they have to send: one configuration, whatever the number of stations.

Load is the offered load G = N lambda L, the share of time that the packets would need if none were lost: each
station gets G / (N L) packets per slot, Poisson.
"""

from dataclasses import dataclass, replace
from typing import Literal

from fedmorl.dca import Poisson, Policy, Scenario, Station

Countdown = Literal["frozen", "bianchi"]
MAX_LOAD = 100.0  # a hundred times what the channel could carry; FedMORL's 0.018 a slot and station is G = 2.16 N


@dataclass(frozen=True)
class Configuration:
    """How every station contends, and what it has to send; the number of stations is left open.

    `load` is None for saturated stations, else the offered load G. Checked where it is used: a bad window or
    count-down is refused by `Station` and `Scenario`. With a `policy`, called `name`, stations follow it instead of
    counting down, and window and count-down mean nothing.
    """

    cw_min: int = 31
    cw_max: int = 1023
    eca_backoff_slots: int | None = None
    countdown: Countdown = "frozen"
    load: float | None = None
    policy: Policy | None = None
    name: str = ""

    @classmethod
    def of(cls, station: Station, countdown: Countdown = "frozen", load: float | None = None) -> "Configuration":
        """The configuration of a preset such as AC_BE, or of a station with a policy, which keeps its name."""
        if station.policy is not None:
            return cls(countdown=countdown, load=load, policy=station.policy, name=station.name)
        return cls(station.cw_min, station.cw_max, station.eca_backoff_slots, countdown, load)

    def scenario(self, n_stations: int) -> Scenario:
        """N such stations on one channel."""
        station = Station(
            cw_min=self.cw_min,
            cw_max=self.cw_max,
            eca_backoff_slots=self.eca_backoff_slots,
            policy=self.policy,
            name=self.name,
        )
        scenario = Scenario.uniform(station, n_stations, countdown=self.countdown)
        if self.load is None:
            return scenario
        if isinstance(self.load, bool) or not isinstance(self.load, int | float) or not 0 < self.load <= MAX_LOAD:
            raise ValueError(
                f"load must be None (saturated) or the offered load, above 0 and at most {MAX_LOAD:g}; "
                f"got {self.load!r}"
            )
        return replace(scenario, traffic=Poisson(self.load / (n_stations * scenario.tx_slots)))


def label_of_load(load: float | None) -> str:
    """`saturated`, or `Poisson, G = 0.6`."""
    return "saturated" if load is None else f"Poisson, G = {load:g}"
