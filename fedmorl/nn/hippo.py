"""Where an S4 layer starts: HiPPO-LegS as a normal matrix plus one of rank one, and its diagonal relatives.

Letters in `fedmorl.nn`'s S4 modules: B batch, L length, H channels, N states of a channel, M = N / 2. A state matrix
here is real in some basis, so its eigenvalues come in conjugate pairs. One of each pair is kept, M numbers, and a sum
over all N is twice the real part of the sum over the kept. Everything is float64 and complex128.

Sources: Gu, Goel & Ré, "Efficiently Modeling Long Sequences with Structured State Spaces" (S4, arXiv 2111.00396);
Gu, Gupta, Goel & Ré, "On the Parameterization and Initialization of Diagonal State Space Models" (S4D, arXiv
2206.11893). MADS4 starts its layers from the first, section 4.1.
"""

from typing import NamedTuple

import torch
from torch import Tensor

KINDS = ("nplr", "s4d-legs", "s4d-lin", "s4d-inv")


class NPLR(NamedTuple):
    """A = V (diag(Lambda) - P P*) V*, with V = [half, conj(half)] unitary, and B rotated with it: V* B."""

    Lambda: Tensor  # (M,), Im > 0
    P: Tensor  # (M,)
    B: Tensor  # (M,)
    half: Tensor  # (N, M), the kept eigenvectors


def hippo_legs(N: int) -> tuple[Tensor, Tensor, Tensor]:
    """A (N, N), B (N,) and P (N,) of HiPPO-LegS.

    A_nk = -sqrt(2n+1) sqrt(2k+1) for n > k, -(n+1) for n = k, 0 for n < k;  B_n = sqrt(2n+1);  P_n = sqrt(n + 1/2).

    Source: S4, eq. (2); P from its appendix C.1. Under x' = A x + B u the state holds the coefficients of the past of
    u in Legendre polynomials of exp(-age).
    """
    n = torch.arange(N, dtype=torch.float64)
    B = (2 * n + 1).sqrt()
    A = -torch.tril(B[:, None] * B[None, :], diagonal=-1) - torch.diag(n + 1)
    return A, B, (n + 0.5).sqrt()


def nplr(N: int) -> NPLR:
    """HiPPO-LegS in the basis where its normal part is diagonal.

    A + P P^T = -I/2 + S with S skew-symmetric. So -i S is Hermitian, its eigenvectors V are unitary, and they
    diagonalise the normal part: Lambda = -1/2 + i eig(-i S). A itself is not diagonalised; its own eigenvectors have
    entries up to 2^(4N/3) (S4, lemma 3.2).

    Source: S4, theorem 1 and eq. (6), with P P* for P Q*, which keeps A stable whatever P becomes (S4, section 3.4).
    """
    _check_states(N)
    A, B, P = hippo_legs(N)
    skew = A + P[:, None] * P[None, :] + 0.5 * torch.eye(N, dtype=torch.float64)
    eigenvalues, V = torch.linalg.eigh(-1j * skew)  # ascending: the upper half has Im > 0
    half = V[:, N // 2 :]  # (N, M)
    rotate = half.conj().mT  # (M, N)
    return NPLR(-0.5 + 1j * eigenvalues[N // 2 :], rotate @ P.to(half.dtype), rotate @ B.to(half.dtype), half)


def initial_matrices(kind: str, N: int) -> tuple[Tensor, Tensor, Tensor]:
    """Lambda, P and B, (M,) each, from which a layer of this kind starts; P is zero for the diagonal kinds.

    nplr      HiPPO-LegS itself
    s4d-legs  the same Lambda and B, without P
    s4d-lin   Lambda_n = -1/2 + i pi n, B = 1
    s4d-inv   Lambda_n = -1/2 + i N/pi (N/(2n+1) - 1), B = 1

    Source: S4D, section 4 (S4D-LegS, S4D-Lin, S4D-Inv).
    """
    _check_states(N)
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")
    if kind in ("nplr", "s4d-legs"):
        legs = nplr(N)
        return legs.Lambda, legs.P if kind == "nplr" else torch.zeros_like(legs.P), legs.B
    n = torch.arange(N // 2, dtype=torch.float64)
    frequency = torch.pi * n if kind == "s4d-lin" else N / torch.pi * (N / (2 * n + 1) - 1)
    Lambda = torch.complex(torch.full_like(n, -0.5), frequency)
    return Lambda, torch.zeros_like(Lambda), torch.ones_like(Lambda)


def _check_states(N: int) -> None:
    if N < 2 or N % 2:
        raise ValueError(f"N must be an even number of states, for they come in conjugate pairs; got {N}")
