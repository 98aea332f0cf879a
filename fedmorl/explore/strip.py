"""Who sends when, as a strip of SVG: a row a station, a box a transmission."""

from collections.abc import Iterable, Sequence
from html import escape

from fedmorl.explore.chart import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, key, y_ticks
from fedmorl.explore.sendings import Sending, captures


def strip(title: str, sendings: Sequence[Sending], n_stations: int, n_slots: int) -> str:
    """Who sends when: a row a station, a box a transmission; a collision is crossed out as well as coloured."""
    pitch = (HEIGHT - TOP - BOTTOM) / n_stations
    high = min(0.8 * pitch, 14)

    def boxes(outcome: str) -> list[tuple[float, float, float]]:
        """(left, top, width) of each box; a sliver of the gap between two is left free."""
        wide = (WIDTH - LEFT - RIGHT) / n_slots
        return [
            (
                LEFT + s.slot * wide,
                TOP + (s.station + 0.5) * pitch - high / 2,
                max((s.end_slot - s.slot) * wide - 0.5, 0.2),
            )
            for s in sendings
            if s.outcome == outcome
        ]

    parts = [*_rows(n_stations, pitch), *_clock(n_slots)]
    for outcome in ("success", "collision"):
        filled = "".join(f"M{x:.1f} {y:.1f}h{w:.1f}v{high:.1f}h{-w:.1f}z" for x, y, w in boxes(outcome))
        parts.append(f'<path class="{outcome}" d="{filled}"/>')
    crosses = (
        f"M{x:.1f} {y:.1f}l{w:.1f} {high:.1f}m0 {-high:.1f}l{-w:.1f} {high:.1f}" for x, y, w in boxes("collision")
    )
    parts.append(f'<path class="cross" d="{"".join(crosses)}"/>')
    said = told(sendings)
    return (
        f'<div class="strip"><p>{escape(title)}</p><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(f"{title}. {said}")}">{"".join(parts)}</svg><small>{said}</small></div>'
    )


def _rows(n_stations: int, pitch: float) -> Iterable[str]:
    """A line and a number a station; of many only some are numbered."""
    every = next(step for step in (1, 2, 5, 10, 20, 50, 100) if step * pitch >= 13)
    for i in range(n_stations):
        y = TOP + (i + 0.5) * pitch
        if (i + 1) % every == 0:
            yield f'<path class="rule" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
            yield f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{i + 1}</text>'


def _clock(n_slots: int) -> Iterable[str]:
    for slot in y_ticks(n_slots):
        x = LEFT + slot / n_slots * (WIDTH - LEFT - RIGHT)
        yield f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{slot:g}</text>'
    yield f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 5}" text-anchor="middle">time [slots]</text>'


def told(sendings: Sequence[Sending]) -> str:
    """What a strip shows, in two sentences."""
    again, after = captures(sendings)
    collided = len({s.slot for s in sendings if s.outcome == "collision"})
    winners = len({s.station for s in sendings if s.outcome == "success"})
    packets = sum(s.outcome == "success" for s in sendings)
    return (
        f"{packets} packet{'s' * (packets != 1)} of {winners} station{'s' * (winners != 1)}, {collided} "
        f"collision{'s' * (collided != 1)}. {again} of {after} successes follow one of the same station."
    )


def legend() -> str:
    """What the boxes of a strip are."""
    box, cross = "M1 1h26v10h-26z", "M1 1l26 10m0 -10l-26 10"
    collided = f'<path class="collision" d="{box}"/><path class="cross" d="{cross}"/>'
    keys = key(f'<path class="success" d="{box}"/>', "sends alone: success") + key(collided, "collision")
    return f'<div class="legend">{keys}</div>'
