"""A trace replayed by the channel's rules: what each station counts at every phase, and a sentence on it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

TRACE_COLUMNS = ("slot", "end_slot", "station", "event", "cw", "counter", "retries", "dropped")
OUTCOMES = {"success": "success", "collision": "collision", "error": "frame error"}
Step = dict[str, Any]
_State = list[int | None]  # a value per station; None: no packet
_Draw = tuple[int, int, int, int]  # slot, station, cw, counter


def timeline_steps(
    trace: pd.DataFrame,
    n_stations: int,
    *,
    difs_slots: int = 4,
    countdown: str = "frozen",
    aifs_slots: Sequence[int] | None = None,
    eifs_extra_slots: int = 0,
    eca: Sequence[bool] | None = None,
    start_slot: int = 0,
    max_steps: int | None = None,
) -> list[Step]:
    """Replay a trace and return what happens, phase by phase: an idle slot, a busy period or a DIFS.

    Parameters
    ----------
    trace : DataFrame
        `Trace.to_frame()` of a run recorded from slot 0, its rows in order of time.
    aifs_slots : sequence of int, shape (N,)
        Idle slots each station waits after a busy period; default: DIFS for everybody.
    eca : sequence of bool, shape (N,)
        Whose counter after a success is fixed and not drawn (it only changes the wording).
    start_slot, max_steps
        Phases that begin before `start_slot`, or after `max_steps` phases, are left out.

    Returns
    -------
    list of dict
        `kind` (idle, success, collision, error, difs), `slot` and `end` [slots]; per station `counters` and
        `cw` as the phase begins (None: no packet); `text`, one sentence. A busy phase has `senders` (indices
        from 0) and `after` = {counters, cw}; an idle one `wait`, the AIFS/EIFS slots each station still lets
        pass, where there are any.

    Raises
    ------
    ValueError
        If the trace lacks a column or holds NaN, or if a counter reaches 0 and its station does not send (or
        the reverse): then it is not a trace of these stations under these rules.
    """
    draws, busy_periods = _events(trace, n_stations)
    deferral = [a - difs_slots for a in aifs_slots or [difs_slots] * n_stations]
    replay = _Replay(draws, n_stations, countdown, eca or [False] * n_stations)
    steps: list[Step] = []
    for busy in busy_periods:
        steps += replay.idle_until(busy.slot)
        steps.append(replay.send(busy))
        eifs = eifs_extra_slots if busy.event != "success" else 0
        replay.wait = [own + eifs * (i not in busy.rows) for i, own in enumerate(deferral)]
        if difs_slots:
            steps.append(replay.difs(difs_slots))
        steps = [step for step in steps if step["slot"] >= start_slot]
        if max_steps is not None and len(steps) >= max_steps:
            break
    return steps[:max_steps]


@dataclass(frozen=True)
class _Busy:
    slot: int
    end: int
    event: str
    rows: dict[int, tuple[int | None, int | None, bool]]  # station -> cw, counter, dropped: after the event

    def forget(self, station: int) -> None:
        """The station has no packet left: what the trace holds as its window and counter is void."""
        self.rows[station] = (None, None, self.rows[station][2])


def _events(trace: pd.DataFrame, n_stations: int) -> tuple[list[_Draw], list[_Busy]]:
    """The draws and the busy periods, both in order of time."""
    missing = [name for name in TRACE_COLUMNS if name not in trace.columns]
    if missing:
        raise ValueError(f"the trace has no column {missing}; pass simulate(..., trace=True).trace")
    if trace[list(TRACE_COLUMNS)].isna().to_numpy().any():
        raise ValueError("the trace holds NaN; each row needs a value in every column")
    draws: list[_Draw] = []
    busy: dict[int, _Busy] = {}
    last: dict[int, _Busy] = {}  # station -> its last busy period, no draw since
    for row in trace.itertuples(index=False):
        slot, station = int(row.slot), int(row.station)
        if not 0 <= station < n_stations:
            raise ValueError(f"the trace names station {station}; they should be 0 to {n_stations - 1}")
        if row.event == "draw":
            draws.append((slot, station, int(row.cw), int(row.counter)))
            if station in last:
                last.pop(station).forget(station)
        elif row.event in OUTCOMES:
            period = busy.setdefault(slot, _Busy(slot, int(row.end_slot), str(row.event), {}))
            period.rows[station] = (int(row.cw), int(row.counter), bool(row.dropped))
            last[station] = period
        else:
            raise ValueError(f"the trace has the event {row.event!r}; known are draw, {', '.join(OUTCOMES)}")
    periods = [busy[slot] for slot in sorted(busy)]
    for station, period in last.items():  # it holds 0 and yet does not send again
        if period is not periods[-1] and period.rows[station][1] == 0:
            period.forget(station)
    return sorted(draws), periods


class _Replay:
    """The state of all stations at one boundary, moved forward from event to event.

    The rules are the simulator's: an idle slot lowers the counter of each station that has a packet and does
    not defer; a busy period freezes the others, or under `bianchi` lowers them once; then all wait for DIFS.
    """

    def __init__(self, draws: list[_Draw], n: int, countdown: str, eca: Sequence[bool]) -> None:
        self.draws, self.countdown, self.eca = draws, countdown, eca
        self.slot = 0
        self.counters: _State = [None] * n
        self.cw: _State = [None] * n
        self.wait = [0] * n  # AIFS and EIFS slots still to let pass
        self.news: list[str] = []

    def idle_until(self, slot: int) -> list[Step]:
        """The idle phases up to a boundary: one slot each, or a stretch in which no station has a packet."""
        steps = []
        while self.slot < slot:
            self._take_draws()
            if self._expired():
                self._refuse(self._expired(), [])
            end, text = self.slot + 1, self._idle_text()
            if all(c is None for c in self.counters):
                end = min([slot, *(draw[0] for draw in self.draws[:1])])
                text = "idle; no station has a packet"
            length = end - self.slot
            steps.append(self._step("idle", end, text, **({"wait": self.wait} if any(self.wait) else {})))
            for i in self._counting():
                self.counters[i] = (self.counters[i] or 0) - 1
            self.wait = [max(w - length, 0) for w in self.wait]
        return steps

    def send(self, busy: _Busy) -> Step:
        """One busy period; afterwards its senders have a new window and a new counter."""
        self._take_draws()
        senders = sorted(busy.rows)
        if self.slot != busy.slot or senders != self._expired():
            self._refuse(self._expired(), senders)
        after, cw = list(self.counters), list(self.cw)
        if self.countdown == "bianchi":
            after = [c if c is None or i in busy.rows else c - 1 for i, c in enumerate(after)]
        for i, (new_cw, counter, _) in busy.rows.items():
            after[i], cw[i] = counter, new_cw
        text = self._send_text(busy, senders, after, cw)
        step = self._step(busy.event, busy.end, text, senders=senders, after={"counters": after, "cw": cw})
        self.counters, self.cw = list(after), list(cw)
        return step

    def difs(self, difs_slots: int) -> Step:
        """The wait of everybody after a busy period."""
        self._take_draws()
        end = self.slot + difs_slots
        return self._step("difs", end, f"DIFS; nobody counts until slot {end}")

    def _take_draws(self) -> None:
        while self.draws and self.draws[0][0] <= self.slot:
            slot, station, cw, counter = self.draws.pop(0)
            self.counters[station], self.cw[station] = counter, cw
            if slot > 0:
                self.news.append(f"station {station + 1} gets a packet and draws {counter}")

    def _counting(self) -> list[int]:
        return [i for i, c in enumerate(self.counters) if c is not None and not self.wait[i]]

    def _expired(self) -> list[int]:
        return [i for i in self._counting() if self.counters[i] == 0]

    def _step(self, kind: str, end: int, text: str, **more: Any) -> Step:
        when = f"Slot {self.slot}" if end - self.slot == 1 else f"Slots {self.slot}–{end - 1}"
        step = {"kind": kind, "slot": self.slot, "end": end, "counters": [*self.counters], "cw": [*self.cw]}
        step |= more | {"text": f"{when}: {'; '.join([*self.news, text])}."}
        self.slot, self.news = end, []
        return step

    def _refuse(self, expired: list[int], senders: list[int]) -> None:
        raise ValueError(
            f"the trace breaks the rules at slot {self.slot}: stations {expired} have counted to 0, stations "
            f"{senders} send (indices from 0); check countdown, difs_slots, and that it starts at slot 0"
        )

    def _idle_text(self) -> str:
        counting = self._counting()
        if not counting:
            return "idle; every station with a packet still defers"
        before = [self.counters[i] or 0 for i in counting]
        of = "" if len(counting) == len(self.counters) else f" of {_stations(counting)}"
        many = len(counting) > 1
        falls = f"counter{'s' * many}{of} {'fall' if many else 'falls'}"
        return f"idle; the {falls} from {_join(before)} to {_join(c - 1 for c in before)}"

    def _send_text(self, busy: _Busy, senders: list[int], after: _State, cw: _State) -> str:
        how = "sends alone" if len(senders) == 1 else "send together"
        head = f"{_stations(senders)} {how}: {OUTCOMES[busy.event]}"
        alike = len({(self.cw[i], cw[i], busy.rows[i][2]) for i in senders}) == 1
        if len(senders) == 1 or not alike or busy.rows[senders[0]][2] or after[senders[0]] is None:
            return "; ".join([head, *(self._own_text(i, busy, after, cw) for i in senders)])
        they = "both" if len(senders) == 2 else "all"
        return f"{head}; {they} {self._window(senders[0], cw)} and draw {_join(after[i] for i in senders)}"

    def _own_text(self, i: int, busy: _Busy, after: _State, cw: _State) -> str:
        who = "it" if len(busy.rows) == 1 else f"station {i + 1}"
        who += " gives the packet up," if busy.rows[i][2] else ""
        if after[i] is None:
            return f"{who} has no packet left"
        verb = "counts again from" if self.eca[i] and busy.event == "success" else "draws"
        return f"{who} {self._window(i, cw, 's')} and {verb} {after[i]}"

    def _window(self, i: int, cw: _State, s: str = "") -> str:
        old, new = self.cw[i] or 0, cw[i] or 0
        if new > old:
            return f"{'double' if new == 2 * old + 1 else 'raise'}{s} CW to {new}"
        return f"keep{s} CW {new}" if new == old else f"return{s} to CW {new}"


def _join(words: Iterable[Any]) -> str:
    *head, last = [str(word) for word in words]
    return f"{', '.join(head)} and {last}" if head else last


def _stations(indices: Sequence[int]) -> str:
    return f"station{'s' if len(indices) > 1 else ''} {_join(i + 1 for i in indices)}"
