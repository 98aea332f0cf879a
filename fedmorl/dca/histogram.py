"""Delay histograms with log-spaced bins: exact below 256 slots, 128 bins an octave above (bin ratio <= 1.008).

Histograms of replications add up, so percentiles of many runs come from one merged array.
"""

from collections.abc import Sequence

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from fedmorl.dca.compiled import compiled

_U7, _U128 = np.uint64(7), np.uint64(128)
N_BINS = 128 * 32 + 256  # delays up to 2^40 slots


@intrinsic
def _ctlz(typingctx, x):
    def codegen(context, builder, signature, args):
        return builder.ctlz(args[0], ir.Constant(ir.IntType(1), 0))

    return types.uint64(types.uint64), codegen


def bit_length(x):
    """Number of bits of a positive integer."""
    return int(x).bit_length()


@overload(bit_length, inline="always")
def _bit_length_jitted(x):
    return lambda x: np.int64(np.uint64(64) - _ctlz(np.uint64(x)))


@compiled(inline="always")
def bin_index(value):
    """Bin of a delay >= 0 [slots]."""
    if value < 256:
        return np.int64(value)
    shift = bit_length(value) - 8
    return min(128 * shift + (np.int64(value) >> shift), N_BINS - 1)


@compiled(inline="always")
def bin_index_unsigned(value):
    """`bin_index` of a uint64 below 2^40, without a branch."""
    octave = np.uint64(bit_length(value | _U128) - 8)
    return (octave << _U7) + (value >> octave)


def bin_centres() -> np.ndarray:
    """Middle of each bin [slots], shape (N_BINS,)."""
    index = np.arange(N_BINS)
    shift = np.maximum(index // 128 - 1, 0)
    low = (index - 128 * shift).astype(float) * 2.0**shift
    return low + (2.0**shift - 1) / 2


def percentiles(counts: np.ndarray, percents: Sequence[float]) -> dict[float, float]:
    """Percentiles [slots] of a histogram of shape (N_BINS,), NaN where it is empty.

    The p-th percentile is the centre of the first bin at which the cumulative count reaches p %.
    """
    for p in percents:
        if not 0 < p <= 100:
            raise ValueError(f"percentiles must lie in (0, 100]; got {p!r}")
    cumulative = np.cumsum(counts)
    if cumulative[-1] == 0:
        return {p: float("nan") for p in percents}
    centres = bin_centres()
    return {p: float(centres[np.searchsorted(cumulative, cumulative[-1] * p / 100)]) for p in percents}
