"""How much chance there is in when a station sends: the least that any prediction of its log can cost.

A station that counts down by the rules is random in its draws only. A draw is uniform on the CW + 1 integers 0 .. CW,
so no predictor, whatever it remembers, pays less than ln(CW + 1) nats for the transmission that the draw leads to. The
mean over the log's transmissions, H, is therefore the best negative log-likelihood per attempt, and an exact answer to
hold learned policies against. A station in step of CSMA/ECA draws nothing: H = 0.

All of it follows from what the station itself did and heard. Arrays are (..., T), T successive decisions of a station;
`actions` is 1 where it sent, `outcomes` the index into `fedmorl.dca.logs.OUTCOMES` of what came of each decision.
"""

from typing import NamedTuple

import numpy as np

from fedmorl.dca.scenario import Saturated, Scenario

IDLE, _, COLLISION, ACK = range(4)  # see fedmorl.dca.logs.OUTCOMES


class DrawRule(NamedTuple):
    """From what a station draws: windows as in `fedmorl.dca.Station`, and CSMA/ECA's counter after a success."""

    cw_min: int
    cw_max: int
    eca_backoff_slots: int | None = None

    @classmethod
    def of(cls, scenario: Scenario, station: int = 0) -> "DrawRule":
        """The rule of one station, where H is known.

        Raises
        ------
        ValueError
            Unless the station is saturated, follows a rule without a retry limit, and counts every idle contention slot
            and no other: countdown="frozen", AIFS equal to DIFS, no EIFS.
        """
        own, fields = scenario.stations[station], (("retry_limit", 0), ("aifs_slots", scenario.difs_slots))
        wrong = [f"{name}={getattr(own, name)}" for name, wanted in fields if getattr(own, name) != wanted]
        wrong += [f'countdown="{scenario.countdown}"'] if scenario.countdown != "frozen" else []
        wrong += [f"eifs_extra_slots={scenario.eifs_extra_slots}"] if scenario.eifs_extra_slots else []
        wrong += ["a policy"] if own.policy is not None else []
        wrong += [] if scenario.station_traffic(station) == Saturated() else [str(scenario.station_traffic(station))]
        if wrong:
            raise ValueError(
                f"scenario must have a saturated station {station} that counts down by a rule, frozen while the medium "
                f"is busy and without retry limit or extra deferral; got {', '.join(wrong)}"
            )
        return cls(own.cw_min, own.cw_max, own.eca_backoff_slots)


class Progress(NamedTuple):
    """Where a station stands in its countdown at each decision, as far as its own past tells; each (..., T)."""

    known: np.ndarray  # bool: it had a success before, so its stage is known
    failures: np.ndarray  # attempts failed since its last success
    counted: np.ndarray  # idle slots since its last attempt
    held: np.ndarray  # bool: the slot before was somebody else's, so that its counter is above 0


def progress(actions: np.ndarray, outcomes: np.ndarray) -> Progress:
    """Progress of each decision, (..., T), from the decisions before it."""
    sent, idle = np.asarray(actions) == 1, np.asarray(outcomes) == IDLE
    acknowledged, failed = sent & (outcomes == ACK), sent & (outcomes == COLLISION)
    return Progress(
        known=_before(acknowledged) > 0,
        failures=_since(failed, acknowledged),
        counted=_since(idle, sent),
        held=_shifted(~sent & ~idle).astype(bool),
    )


def transmit_hazard(actions: np.ndarray, outcomes: np.ndarray, rule: DrawRule) -> np.ndarray:
    """P(the station sends | its own past), (..., T) float64; NaN before its first success, which tells its stage.

    After k idle slots since the draw the counter is uniform on k .. CW, so the hazard is 1 / (CW + 1 - k); it is 0 in
    the first slot after somebody else's busy period, for who had counted to 0 would have been part of that.
    """
    known, failures, counted, held = progress(actions, outcomes)
    hazard = 1 / np.maximum(windows(failures, rule) + 1.0 - counted, 1)  # below 1 only where the stage is not known
    if rule.eca_backoff_slots is not None:
        hazard = np.where(failures == 0, counted == rule.eca_backoff_slots, hazard)
    return np.where(known, np.where(held, 0.0, hazard), np.nan)


def least_nats(actions: np.ndarray, outcomes: np.ndarray, rule: DrawRule) -> np.ndarray:
    """-ln P(action) of who knows the rule but no draw, (..., T); over a whole draw it adds up to ln(CW + 1)."""
    hazard = transmit_hazard(actions, outcomes, rule)
    with np.errstate(divide="ignore"):  # what the rule never does costs infinitely much
        return -np.log(np.where(np.asarray(actions) == 1, hazard, 1 - hazard))


def draw_nats(actions: np.ndarray, outcomes: np.ndarray, rule: DrawRule) -> np.ndarray:
    """ln(CW + 1) of the draw behind each attempt, 0 where CSMA/ECA sets the counter; NaN at all other decisions.

    The mean over a log (np.nanmean) is H [nats an attempt].
    """
    known, failures, *_ = progress(actions, outcomes)
    nats = np.log(windows(failures, rule) + 1.0)
    if rule.eca_backoff_slots is not None:
        nats = np.where(failures == 0, 0.0, nats)
    return np.where(known & (np.asarray(actions) == 1), nats, np.nan)


class Excess(NamedTuple):
    """What a predictor of a station's actions pays above the least, per attempt [nats]."""

    least: float  # H
    overall: float  # all decisions of the sequences, above H
    settled: float  # those after a sequence's first own success, above what the rule's own hazard pays for them


def excess_nats(nats: np.ndarray, actions: np.ndarray, outcomes: np.ndarray, rule: DrawRule) -> Excess:
    """Excess of a predictor that pays `nats` (E, L) for the actions of E sequences.

    A sequence begins in the middle of a draw of unknown stage. What nobody can know there is in `overall`, spread over
    the attempts of a sequence; `settled` leaves it out, and an excess of 0 means: as good as knowing the rule.

    Raises
    ------
    ValueError
        If no sequence has an attempt after a success.
    """
    sent, least = np.asarray(actions) == 1, least_nats(actions, outcomes, rule)
    settled = np.isfinite(least)
    if not (sent & settled).any():
        raise ValueError("actions must hold an attempt after a success; take longer sequences")
    entropy = float(np.nanmean(draw_nats(actions, outcomes, rule)))
    return Excess(
        least=entropy,
        overall=float(nats.sum() / sent.sum()) - entropy,
        settled=float((nats - least)[settled].sum() / (sent & settled).sum()),
    )


def windows(failures: np.ndarray, rule: DrawRule) -> np.ndarray:
    """CW after so many failures in a row: CW <- min(2 CW + 1, CWmax) at each (rule 7)."""
    table = [rule.cw_min]
    while table[-1] < rule.cw_max:
        table.append(min(2 * table[-1] + 1, rule.cw_max))
    return np.array(table)[np.minimum(failures, len(table) - 1)]


def expected_draw_entropy(cw_min: int, cw_max: int, collision_rate: float) -> float:
    """H = ln(CWmin + 1) + ln 2 p (1 - p^m) / (1 - p), p the collision rate, m = log2((CWmax + 1) / (CWmin + 1)).

    A draw follows s failures with probability p^s (1 - p), whatever the stage: Bianchi's assumption.
    Departs from source: Bianchi (2000) does not print the entropy; it is the mean of ln(CW + 1) over his stages.
    """
    m, p = np.log2((cw_max + 1) / (cw_min + 1)), collision_rate
    if not 0 <= p < 1:
        raise ValueError(f"collision_rate must be at least 0 and below 1; got {p}")
    return float(np.log(cw_min + 1) + np.log(2) * p * (1 - p**m) / (1 - p))


def _shifted(x: np.ndarray) -> np.ndarray:
    """What held one decision earlier; 0 before the first."""
    return np.concatenate([np.zeros_like(x[..., :1]), x[..., :-1]], axis=-1)


def _before(events: np.ndarray) -> np.ndarray:
    """How many events there were before each decision."""
    return _shifted(np.cumsum(events, axis=-1))


def _since(events: np.ndarray, resets: np.ndarray) -> np.ndarray:
    """How many events there were before each decision and after the last reset."""
    total = _before(events)
    return total - np.maximum.accumulate(np.where(_shifted(resets), total, 0), axis=-1)
