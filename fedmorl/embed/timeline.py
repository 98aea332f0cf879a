"""The timeline player: a real trace that a reader can play, with a still picture of its first phases."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from fedmorl.embed.block import Block, make_block
from fedmorl.embed.replay import Step, timeline_steps

if TYPE_CHECKING:
    from fedmorl.dca import Scenario

FILL = {"success": "#009E73", "collision": "#D55E00", "error": "#CC79A7"}  # Okabe and Ito (2008)
_WIDTH = {"idle": 26, "difs": 40}  # of a column in the still picture; a busy period: 96
_ROW, _TOP, _LEFT = 36, 26, 104


def timeline(
    trace: Any,
    scenario: Scenario,
    *,
    start_slot: int = 0,
    max_steps: int = 240,
    title: str = "A trace of the channel",
) -> Block:
    """A player for a real trace: stations count down, send, collide and double their window.

    Parameters
    ----------
    trace : Trace or DataFrame
        `simulate(scenario, ..., trace=True).trace`, recorded from slot 0.
    scenario : Scenario
        The one that was simulated, with 2 to 6 stations that count down.
    start_slot : int
        The first phase shown is the first that begins at or after it.
    max_steps : int
        How many phases are shown: an idle slot, a busy period or a DIFS is one.
    title : str
        What the picture is called, for readers who do not see it.
    """
    stations = scenario.stations
    if not 2 <= len(stations) <= 6:
        raise ValueError(f"timeline draws 2 to 6 stations, got {len(stations)}; trace a smaller scenario")
    learned = [i + 1 for i, station in enumerate(stations) if station.policy is not None]
    if learned:
        raise ValueError(f"timeline draws stations that count down; stations {learned} follow a policy")
    steps = timeline_steps(
        trace.to_frame() if hasattr(trace, "to_frame") else trace,
        len(stations),
        difs_slots=scenario.difs_slots,
        countdown=scenario.countdown,
        aifs_slots=[s.aifs_slots for s in stations],
        eifs_extra_slots=scenario.eifs_extra_slots,
        eca=[s.eca_backoff_slots is not None for s in stations],
        start_slot=start_slot,
        max_steps=max_steps,
    )
    if not steps:
        raise ValueError(f"the trace has no busy period after slot {start_slot}; simulate more slots")
    kinds = [s.name for s in stations] if len({s.name for s in stations}) > 1 else [""] * len(stations)
    data = {"title": title, "kinds": kinds, "countdown": scenario.countdown, "steps": steps}
    return make_block("timeline", data, _still(data))


def _still(data: Mapping[str, Any], width: int = 720) -> str:
    """The first phases as SVG, in the player's own language."""
    n = len(data["kinds"])
    names = (
        f'<text y="{_TOP + _ROW * i + 23}">{escape(f"{i + 1} {kind}" if kind else f"Station {i + 1}")}</text>'
        for i, kind in enumerate(data["kinds"])
    )
    columns, told, x = [], [], _LEFT
    for step in data["steps"]:
        wide = _WIDTH.get(step["kind"], 96)
        if x + wide > width:
            break
        columns.append(_column(step, x, wide))
        told.append(step["text"])
        x += wide
    alt = escape(f"{data['title']}, {n} stations. " + " ".join(told))
    return (
        f'<svg viewBox="0 0 {width} {_TOP + _ROW * n + 4}" role="img" aria-label="{alt}" fill="currentColor" '
        f'style="width:100%;height:auto" font-family="sans-serif" font-size="13">'
        f"{''.join([*names, *columns])}</svg>"
        "<p><small>The first steps of the trace, with a busy period drawn shorter than it is. "
        "Where scripts run, it can be played.</small></p>"
    )


def _column(step: Step, x: int, wide: int) -> str:
    middle, kind, senders = x + wide / 2, step["kind"], step.get("senders", ())
    head = "DIFS" if kind == "difs" else step["slot"]
    parts = [f'<text x="{middle}" y="14" text-anchor="middle" font-size="11">{head}</text>']
    for i, counter in enumerate(step["counters"]):
        top = _TOP + _ROW * i
        word, ink = ("–" if counter is None else counter), ""
        if i in senders:
            word, ink = kind, ' fill="#000"'
            box = f'x="{x + 2}" y="{top + 4}" width="{wide - 4}" height="{_ROW - 8}" rx="4"'
            parts.append(f'<rect {box} fill="{FILL[kind]}"/>')
        parts.append(f'<text x="{middle}" y="{top + 23}" text-anchor="middle"{ink}>{word}</text>')
    return "".join(parts)
