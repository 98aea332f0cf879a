"""How the channel's functions are compiled: by numba, without the GIL, kept on disk.

Numba keeps a compiled function until its own file changes, though it has swallowed the functions it calls
from other files. Here an edit to any file of `fedmorl.dca` makes every kept function of the package new.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import njit


def _sources_hash() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


_STAMP = _sources_hash()


def compiled(function: Callable | None = None, **options: Any) -> Any:
    """`numba.njit(cache=True, nogil=True)` whose kept code is bound to the sources of the whole package."""
    if function is None:
        return lambda f: compiled(f, **options)
    dispatcher = njit(cache=True, nogil=True, **options)(function)
    kept = getattr(dispatcher, "_cache", None)  # absent under NUMBA_DISABLE_JIT
    if kept is not None:
        kept._cache_file._source_stamp = _STAMP
    return dispatcher
