"""Evaluation: what the papers claim, and what we find."""

from fedmorl.evaluation.claims import (
    COLUMNS,
    KINDS,
    OPEN,
    PAPERS,
    UNTESTABLE,
    VERDICTS,
    check_claims,
    count,
    read_claims,
    settle,
    write_claims,
)

__all__ = [
    "COLUMNS",
    "KINDS",
    "OPEN",
    "PAPERS",
    "UNTESTABLE",
    "VERDICTS",
    "check_claims",
    "count",
    "read_claims",
    "settle",
    "write_claims",
]
