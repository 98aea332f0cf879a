"""The claims ledger as a page reads it: a table a place in a paper, folded, with filters where a script runs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from fedmorl.embed.block import Block, make_block
from fedmorl.evaluation.claims import KINDS, PAPERS, VERDICTS, check_claims

if TYPE_CHECKING:
    import pandas as pd

_HEAD = "".join(f'<th scope="col">{name}</th>' for name in ("Claim", "Paper", "Ours", "Verdict"))
_PLACES = ("Abstract", "Sec.", "Fig.", "Table", "Algorithm", "Eq.", "Theorem", "Appendix")


def claims_ledger(claims: pd.DataFrame) -> Block:
    """The ledger as tables that read, unfold and can be searched without a script, a kernel or a network.

    Parameters
    ----------
    claims : DataFrame
        What `fedmorl.evaluation.read_claims` returns.

    Notes
    -----
    One `<details>` a paper and place, all folded. The row of a claim has the id `claim-ID`, for links to it. The
    filters are in the page too, hidden until `claims.js` runs.
    """
    check_claims(claims)
    rows = list(claims.itertuples(index=False))
    papers = [paper for paper in PAPERS if any(row.paper == paper for row in rows)]
    sections = (_section(paper, [row for row in rows if row.paper == paper]) for paper in papers)
    filters = _filters(papers, sorted({row.where for row in rows}, key=_place_order))
    return make_block("claims", {"n_claims": len(rows)}, filters + "".join(sections))


def _place_order(place: str) -> tuple[Any, ...]:
    """Abstract first, then sections, what stands apart from the text, and the appendix; within a kind by number."""
    word, _, rest = place.partition(" ")
    rank = _PLACES.index(word) if word in _PLACES else len(_PLACES) - 1
    return rank, word, [(int(digits or 0), letters) for digits, letters in re.findall(r"(\d+)|([^\W\d_]+)", rest)]


def _filters(papers: Iterable[str], places: Iterable[str]) -> str:
    named = {paper: PAPERS[paper] for paper in papers}
    return (
        '<form class="fm-filters" hidden>'
        '<label class="fm-wide">Words <input type="search" name="words" autocomplete="off"></label>'
        + _select("paper", "Paper", named)
        + _select("verdict", "Verdict", {name: name for name in VERDICTS})
        + _select("kind", "Kind", {name: name for name in KINDS})
        + _select("where", "Place", {place: place for place in places})
        + '<button type="reset">Clear</button><output aria-live="polite"></output></form>'
    )


def _select(name: str, label: str, choices: dict[str, str]) -> str:
    options = "".join(f'<option value="{escape(value)}">{escape(text)}</option>' for value, text in choices.items())
    return f'<label>{label} <select name="{name}"><option value="">all</option>{options}</select></label>'


def _section(paper: str, rows: Sequence[Any]) -> str:
    places = sorted({row.where for row in rows}, key=_place_order)
    groups = (_group(paper, place, [row for row in rows if row.where == place]) for place in places)
    return f'<section><h3 id="claims-of-{paper}">{PAPERS[paper]}</h3>{"".join(groups)}</section>'


def _group(paper: str, place: str, rows: Sequence[Any]) -> str:
    n_claims = f"{len(rows)} claim{'s' * (len(rows) != 1)}"
    verdicts = [row.verdict for row in rows]
    tally = ", ".join(f"{verdicts.count(name)} {name}" for name in VERDICTS if name in verdicts)
    return (
        f'<details data-paper="{paper}" data-where="{escape(place)}">'
        f'<summary><b>{escape(place)}</b> <span class="fm-shown">{n_claims}</span><small>{tally}</small></summary>'
        f'<table class="fm-claim-table"><caption>{PAPERS[paper]}, {escape(place)}</caption>'
        f"<thead><tr>{_HEAD}</tr></thead><tbody>{''.join(map(_row, rows))}</tbody></table></details>"
    )


def _row(row: Any) -> str:
    unit = f" <small>{escape(row.unit)}</small>" if row.unit else ""
    return (
        f'<tr id="claim-{row.id}" data-kind="{row.kind}" data-verdict="{row.verdict}">'
        f'<th scope="row">{escape(row.quantity)} <small>{row.kind}</small></th>'
        f"<td>{escape(row.paper_value)}{unit}</td><td>{_ours(row)}</td>"
        f'<td><span class="fm-verdict">{row.verdict}</span></td></tr>'
    )


def _ours(row: Any) -> str:
    """Our value, its interval and seeds, what was run and how; empty for an open claim."""
    interval = f"[{row.ci_low}, {row.ci_high}]" if row.ci_low else ""
    seeds = f"{row.n_seeds} seed{'s' * (row.n_seeds != '1')}" if row.n_seeds else ""
    spread = ", ".join(part for part in (interval, seeds) if part)
    parts = [
        escape(row.our_value),
        f"<small>{spread}</small>" if spread else "",
        f"<small>{escape(row.scale)}</small>" if row.scale else "",
        f"<code>{escape(row.command)}</code>" if row.command else "",
    ]
    return " ".join(part for part in parts if part)
