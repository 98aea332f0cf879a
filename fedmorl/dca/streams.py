"""Random streams of the channel: one xoshiro256** per (seed, replication, station, purpose).

A stream is four `uint64` words in an array that the caller owns, so kernels carry their own generator
state, the answer does not depend on the number of threads, and adding a station or an option leaves
every other stream as it was.

Sources: Blackman & Vigna (2021), "Scrambled linear pseudorandom number generators" (xoshiro256**);
Steele, Lea & Flood (2014), "Fast splittable pseudorandom number generators" (SplitMix64).
"""

import numpy as np

from fedmorl.dca.compiled import compiled

ARRIVAL, BACKOFF, POLICY, CHANNEL, HEARING = range(5)
N_PURPOSES = 5

_MASK = (1 << 64) - 1
_U7, _U11, _U17, _U19, _U32, _U45, _U57 = (np.uint64(k) for k in (7, 11, 17, 19, 32, 45, 57))
_FIVE, _NINE, _ONE = np.uint64(5), np.uint64(9), np.uint64(1)


def _splitmix64(x: int) -> tuple[int, int]:
    """One SplitMix64 step on Python integers: (next state, output)."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    z = x
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return x, z ^ (z >> 31)


def make_streams(seed: int, replication: int, n_stations: int) -> np.ndarray:
    """Stream states, uint64 of shape (N, 5 purposes, 4 words).

    The key (seed, replication, station, purpose) is absorbed word by word, each step mixed by SplitMix64,
    so that neighbouring keys give unrelated states.
    """
    states = np.empty((n_stations, N_PURPOSES, 4), dtype=np.uint64)
    run_key = _absorb(_absorb(0, seed), replication)
    for station in range(n_stations):
        station_key = _absorb(run_key, station)
        for purpose in range(N_PURPOSES):
            x = _absorb(station_key, purpose)
            for word in range(4):
                x, states[station, purpose, word] = _splitmix64(x)
    return states


def _absorb(key: int, word: int) -> int:
    return _splitmix64(key ^ (word & _MASK))[1]


@compiled(inline="always")
def next_u64(s):
    """Advance a stream `s` (uint64[4]) and return 64 random bits."""
    x = s[1] * _FIVE
    result = ((x << _U7) | (x >> _U57)) * _NINE
    t = s[1] << _U17
    s[2] ^= s[0]
    s[3] ^= s[1]
    s[1] ^= s[2]
    s[0] ^= s[3]
    s[2] ^= t
    s[3] = (s[3] << _U45) | (s[3] >> _U19)
    return result


@compiled(inline="always")
def next_word(streams, i):
    """Advance row `i` (uint64) of `streams` (N, 4) and return 32 random bits as uint64; as `next_u64` >> 32."""
    s0, s1, s2, s3 = streams[i, 0], streams[i, 1], streams[i, 2], streams[i, 3]
    x = s1 * _FIVE
    s2 ^= s0
    s3 ^= s1
    streams[i, 0], streams[i, 1] = s0 ^ s3, s1 ^ s2
    streams[i, 2], streams[i, 3] = s2 ^ (s1 << _U17), (s3 << _U45) | (s3 >> _U19)
    return (((x << _U7) | (x >> _U57)) * _NINE) >> _U32


@compiled
def step_back(s):
    """Undo one step of a stream, uint64[4]: a word drawn ahead and not used goes back."""
    a3 = (s[3] >> _U45) | (s[3] << _U19)  # s3 ^ s1 before the step
    s0 = s[0] ^ a3
    c = s[1] ^ s[2]  # = s1 ^ (s1 << 17)
    s1 = c
    for _ in range(3):
        s1 = c ^ (s1 << _U17)
    s2 = s[1] ^ s1 ^ s0
    s[0], s[1], s[2], s[3] = s0, s1, s2, a3 ^ s1


@compiled(inline="always")
def draw_backoff(s, cw):
    """Uniform integer on {0, ..., cw}; exact when cw + 1 is a power of two, bias below 2^-22 otherwise."""
    return np.int64(((next_u64(s) >> _U32) * np.uint64(cw + 1)) >> _U32)


@compiled(inline="always")
def draw_uniform(s):
    """Uniform float64 on [0, 1), 53 bits."""
    return np.float64(next_u64(s) >> _U11) * 2.0**-53


@compiled(inline="always")
def draw_exponential(s, rate):
    """Exponential float64 with mean 1 / rate."""
    return -np.log1p(-draw_uniform(s)) / rate
