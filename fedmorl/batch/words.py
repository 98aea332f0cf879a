"""How a sweep says numbers."""


def counted(count: int, noun: str) -> str:
    """A count and its noun: `1 run`, `3 runs`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
