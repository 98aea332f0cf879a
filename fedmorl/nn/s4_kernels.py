"""Two ways from a continuous state space to a sequence: its convolution kernel, and its recurrence.

    x'(t) = A x(t) + B u(t),  y(t) = C x(t)              S4 eq. (1), MADS4 eq. (2)
    x_k = Abar x_{k-1} + Bbar u_k,  y_k = C x_k          S4 eq. (3), MADS4 eq. (3)
    y = K * u,  K_l = C Abar^l Bbar                      S4 eqs. (4) and (5), MADS4 eq. (4)

with A = diag(Lambda) - P P*. The dense functions say what is meant; the others are fast and must agree with them.
Letters as in `fedmorl.nn.hippo`, and R outputs of each channel. dt is (H,), Lambda, P and B are (H, M) or (1, M), C is
(R, H, M). All is float64 and complex128: roots of unity in single precision alone cost 3e-6 (N = 96, L = 500).
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

CHANNELS_AT_ONCE = 8  # of a kernel's table of fractions: N = 96 and L = 500 make it 1.5 MB


class Recurrence(NamedTuple):
    """One step: x' = Abar x - left (right . x) + Bbar u, then y = C . x'.

    Abar, left and Bbar are complex, (H, M). A dot is with a real row, of the state as N real numbers (see `dot`): right
    is (H, N), C is (R, H, N). Abar is the diagonal part of the discrete state matrix, left and right are its part of
    rank one, None where there is none.
    """

    Abar: Tensor
    left: Tensor | None
    right: Tensor | None
    Bbar: Tensor
    C: Tensor

    def rounded(self, dtype: torch.dtype) -> "Recurrence":
        """The same in a lower precision, named by its real type."""
        return Recurrence._make(x if x is None else x.to(dtype.to_complex() if x.is_complex() else dtype) for x in self)


# ------------------------------------------------------------------------------------------------- dense


def real_form(Lambda: Tensor, P: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """A (H, N, N) and B (H, N) for the state as real numbers (Re x_1, Im x_1, Re x_2, ...).

    With the conjugates written out, x' = (diag(Lambda) - p p*) x - (p p^T) conj(x) + B u.
    """
    own = torch.diag_embed(Lambda) - P[..., :, None] * P[..., None, :].conj()  # (H, M, M)
    other = -P[..., :, None] * P[..., None, :]
    to_real = torch.stack([own.real + other.real, other.imag - own.imag], dim=-1)  # (H, M, M, 2)
    to_imaginary = torch.stack([own.imag + other.imag, own.real - other.real], dim=-1)
    A = torch.stack([to_real, to_imaginary], dim=-3)  # (H, M, 2, M, 2)
    return A.flatten(-4, -3).flatten(-2), torch.view_as_real(B.resolve_conj()).flatten(-2)


def real_row(C: Tensor) -> Tensor:
    """(..., M) -> (..., N): the row whose product with the real state is 2 Re sum(C x)."""
    return torch.view_as_real((2 * C.conj()).resolve_conj()).flatten(-2)


def complex_row(row: Tensor) -> Tensor:
    """(..., N) -> (..., M): the inverse of `real_row`."""
    return torch.view_as_complex(row.unflatten(-1, (-1, 2)).contiguous()).conj() / 2


def dot(row: Tensor, x: Tensor) -> Tensor:
    """2 Re sum(C x) for `row` = real_row(C): (..., N) and (..., M) -> (...)."""
    return (row * torch.view_as_real(x).flatten(-2)).sum(-1)


def discretise(A: Tensor, B: Tensor, dt: Tensor, method: str) -> tuple[Tensor, Tensor]:
    """Abar (H, N, N) and Bbar (H, N) of dense A, B at step sizes dt (H,).

    bilinear  Abar = (I - dt A / 2)^-1 (I + dt A / 2),  Bbar = (I - dt A / 2)^-1 dt B     S4, eq. (3)
    zoh       Abar = exp(dt A),  Bbar = A^-1 (Abar - I) B        input held constant for a step
    """
    eye, step = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device), dt[:, None, None] * A
    if method == "bilinear":
        solved = torch.linalg.solve(eye - step / 2, torch.cat([eye + step / 2, (dt[:, None] * B)[..., None]], dim=-1))
        return solved[..., :-1], solved[..., -1]
    Abar = torch.linalg.matrix_exp(step)
    return Abar, torch.linalg.solve(A, (Abar - eye) @ B[..., None])[..., 0]


def dense_kernel(Abar: Tensor, Bbar: Tensor, C: Tensor, length: int) -> Tensor:
    """K_l = C Abar^l Bbar by one multiplication after the other, (R, H, L) from dense rows C (R, H, N)."""
    x, kernel = Bbar, []
    for _ in range(length):
        kernel.append((C * x).sum(-1))
        x = (Abar @ x[..., None])[..., 0]
    return torch.stack(kernel, dim=-1)


# ------------------------------------------------------------------------------------- kernels: training


def dplr_kernel(Lambda: Tensor, P: Tensor, B: Tensor, Ct: Tensor, dt: Tensor, length: int) -> Tensor:
    """The kernel of A = diag(Lambda) - P P*, bilinear, from its truncated generating function: (R, H, L).

    At the roots of unity w = exp(-2 pi i k / L) and with Ct = C (I - Abar^L),

        sum_l K_l w^l = Ct (I - w Abar)^-1 Bbar = 2 dt Ct (2 (1 - w) - (1 + w) dt A)^-1 B,

    and the inverse Fourier transform brings K back. Woodbury's identity leaves the inverse of a diagonal matrix.

    Source: S4, lemmas C.3 and C.4, algorithm 1; MADS4, eq. (4). Departs from source: both sides are divided by 1 + w
    there, so that w = -1 is a limit of its own. Here half angles stand instead: with s, c = sin, cos of pi k / L,

        sum_l K_l w^l = exp(i pi k / L) (g(Ct, B) - c g(Ct, P) g(P*, B) / (1 + c g(P*, P))),
        g(a, b) = sum over all N of a_n b_n dt / (2 i s - dt Lambda_n c),

    and w = -1 is the point c = 0, where Re sum(Ct B dt) remains.
    """
    half_angle = torch.pi * torch.arange(length // 2 + 1, dtype=torch.float64, device=dt.device) / length
    products = [Ct * B, Ct * P, (P.conj() * B)[None], (P.conj() * P)[None]]
    numerators = torch.cat([torch.broadcast_to(p, (len(p), *Ct.shape[1:])) for p in products]) * dt[:, None]
    g = cauchy_sums(numerators, Lambda * dt[:, None], half_angle)  # (2 R + 2, H, F)
    CB, CP, PB, PP = g.split([len(Ct), len(Ct), 1, 1])
    cosine = half_angle.cos()
    spectrum = torch.exp(1j * half_angle) * (CB - cosine * CP * PB / (1 + cosine * PP))
    return torch.fft.irfft(spectrum, n=length)


def cauchy_sums(numerators: Tensor, poles: Tensor, half_angle: Tensor) -> Tensor:
    """sum over n of v_n / (2 i s - lambda_n c) + conj(v_n) / (2 i s - conj(lambda_n) c): (Q, H, M) -> (Q, H, F).

    The two fractions of a pair have one denominator, |lambda|^2 c^2 - 4 s^2 - 4 i s c Re(lambda), and the numerator
    4 i s Re(v) - 2 c Re(v conj(lambda)): two real sums over one table, whatever Q is.
    """
    weights = torch.cat([4 * numerators.real, -2 * (numerators * poles.conj()).real])  # (2 Q, H, M)
    size, decay = (x.expand(weights.shape[1], -1) for x in (poles.real**2 + poles.imag**2, poles.real))
    sums = _PairFractions.apply(weights.transpose(0, 1), size, decay, half_angle)  # (H, 2 Q, 2, F)
    rising, level = torch.complex(sums[..., 0, :], sums[..., 1, :]).transpose(0, 1).chunk(2)
    return 1j * half_angle.sin() * rising + half_angle.cos() * level


class _PairFractions(torch.autograd.Function):
    """sum over n of w_n / (|lambda_n|^2 c^2 - 4 s^2 - 4 i s c Re(lambda_n)), its two parts: (H, W, M) -> (H, W, 2, F).

    Most of a kernel's cost. Of the table of fractions T = 1 / d the gradient needs dT = -T^2 dd alone, where autograd
    would keep and pass through every factor of T. A few channels at a time, so that the table stays in the cache.
    """

    @staticmethod
    def forward(ctx: Any, weights: Tensor, size: Tensor, decay: Tensor, half_angle: Tensor) -> Tensor:
        ctx.save_for_backward(weights, size, decay, half_angle)
        few = zip(*(x.split(CHANNELS_AT_ONCE) for x in (weights, size, decay)), strict=True)
        return torch.cat([(w @ _fractions(a, b, half_angle).flatten(-2)).unflatten(-1, (2, -1)) for w, a, b in few])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        *of, half_angle = ctx.saved_tensors
        few = zip(*(x.split(CHANNELS_AT_ONCE) for x in (gradient.flatten(-2), *of)), strict=True)
        parts = [_fractions_backward(half_angle, g, w, a, b) for g, w, a, b in few]
        return *(torch.cat(part) for part in zip(*parts, strict=True)), None  # type: ignore[return-value]


def _fractions(size: Tensor, decay: Tensor, half_angle: Tensor) -> Tensor:
    """The table T of `_PairFractions`, real and imaginary part: (H, M) -> (H, M, 2, F)."""
    s, c = half_angle.sin(), half_angle.cos()
    table = size.new_empty(*size.shape, 2, len(half_angle))
    real = torch.addcmul(-4 * s**2, size[..., None], c**2)
    imaginary = decay[..., None] * (4 * s * c)  # of the conjugate
    norm = torch.addcmul(real**2, imaginary, imaginary).reciprocal_()
    torch.mul(real, norm, out=table[..., 0, :])
    torch.mul(imaginary, norm, out=table[..., 1, :])
    return table


def _fractions_backward(
    half_angle: Tensor, gradient: Tensor, weights: Tensor, size: Tensor, decay: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of weights, size and decay, from that of the sums (H, W, 2 F)."""
    s, c = half_angle.sin(), half_angle.cos()
    table = _fractions(size, decay, half_angle)
    real, imaginary = table.unbind(-2)
    into_real, into_imaginary = (weights.mT @ gradient).unflatten(-1, (2, -1)).unbind(-2)  # gradient of T
    square_real = torch.addcmul(real**2, imaginary, imaginary, value=-1)
    square_imaginary = 2 * real * imaginary
    along = torch.addcmul(into_real * square_real, into_imaginary, square_imaginary)
    across = torch.addcmul(into_imaginary * square_real, into_real, square_imaginary, value=-1)
    return gradient @ table.flatten(-2).mT, along @ -(c**2), across @ (4 * s * c)


def diagonal_kernel(log_Abar: Tensor, Bbar: Tensor, C: Tensor, length: int) -> Tensor:
    """K_l = 2 Re sum_n C_n Bbar_n Abar_n^l of a diagonal matrix, (R, H, L); log_Abar and Bbar (H, M).

    Source: S4D, its Vandermonde product. Departs from source: l = q m + r with m near sqrt(L), so that 2 sqrt(L) powers
    and one product of matrices do for L powers; same numbers, a tenth of the time.
    """
    m = math.isqrt(length - 1) + 1
    r, q = (torch.arange(n, dtype=torch.float64, device=C.device) for n in (m, -(-length // m)))
    small = torch.exp(log_Abar[..., None] * r)  # (H, M, m)
    large = (C * Bbar)[..., None] * torch.exp(log_Abar[..., None] * (m * q))  # (R, H, M, L / m)
    left = torch.cat([2 * large.real, -2 * large.imag], dim=-2)  # (R, H, N, L / m)
    return (left.mT @ torch.cat([small.real, small.imag], dim=-2)).flatten(-2)[..., :length]


# ----------------------------------------------------------------------------------- recurrence: playing


def dplr_recurrence(Lambda: Tensor, P: Tensor, B: Tensor, C: Tensor, dt: Tensor) -> Recurrence:
    """The bilinear step of A = diag(Lambda) - P P* in O(N).

    With E = 1 / (2/dt - Lambda) and q = 1 + P* E P, Woodbury's identity gives (2/dt - A)^-1 = E - E P P* E / q. As
    Abar = -I + (4/dt) (2/dt - A)^-1 and Bbar = 2 (2/dt - A)^-1 B, Abar is diagonal plus rank one as A is:

        Abar = E (2/dt + Lambda) - (4 / (dt q)) E P P* E.

    Source: S4, theorem 2 and appendix C.2, whose two factors are multiplied out here.
    """
    rate = 2 / dt[:, None]
    E = 1 / (rate - Lambda)  # (H, M)
    q = 1 + pair_sum(P.conj() * E * P)
    solved = E * (B - P * pair_sum(P.conj() * E * B) / q)  # (2/dt - A)^-1 B
    return Recurrence(E * (rate + Lambda), 2 * rate / q * E * P, real_row(P.conj() * E), 2 * solved, real_row(C))


def diagonal_discretisation(Lambda: Tensor, B: Tensor, dt: Tensor, method: str) -> tuple[Tensor, Tensor]:
    """log(Abar) and Bbar, (H, M) each, of a diagonal matrix; the methods are those of `discretise`."""
    step = Lambda * dt[:, None]
    if method == "bilinear":
        return torch.log((1 + step / 2) / (1 - step / 2)), dt[:, None] * B / (1 - step / 2)
    return step, B * (torch.exp(step) - 1) / Lambda


def pair_sum(x: Tensor) -> Tensor:
    """The real sum over all N of what is given for one of each pair: (..., M) -> (..., 1)."""
    return 2 * x.real.sum(-1, keepdim=True)


# -------------------------------------------------------------------------------------------- truncation


def truncate(C: Tensor, Lambda: Tensor, P: Tensor, B: Tensor, dt: Tensor, length: int) -> Tensor:
    """Ct = C (I - Abar^L), (R, H, M) -> (R, H, M): what the kernel of length L is made of."""
    return complex_row((real_row(C)[..., None, :] @ _tail(Lambda, P, B, dt, length))[..., 0, :])


def recover(Ct: Tensor, Lambda: Tensor, P: Tensor, B: Tensor, dt: Tensor, length: int) -> Tensor:
    """C = Ct (I - Abar^L)^-1, the inverse of `truncate`: what the recurrence reads out.

    Dense, O(H N^3 log L), so once for a trained layer and never in a step.
    """
    tail = _tail(Lambda, P, B, dt, length)
    return complex_row(torch.linalg.solve(tail.mT, real_row(Ct)[..., None])[..., 0])


def _tail(Lambda: Tensor, P: Tensor, B: Tensor, dt: Tensor, length: int) -> Tensor:
    A, B_real = real_form(Lambda, P, B)
    Abar, _ = discretise(A, B_real, dt, "bilinear")
    return torch.eye(A.shape[-1], dtype=A.dtype, device=A.device) - torch.linalg.matrix_power(Abar, length)  # (H, N, N)


def causal_convolution(u: Tensor, kernel: Tensor) -> Tensor:
    """y_k = sum_{l <= k} K_l u_{k-l} in each channel: u (B, L, H), kernel (H, L) -> (B, L, H). MADS4, eq. (4).

    Zeros up to 2 L keep the Fourier transform's circle from closing.
    """
    return _CausalConvolution.apply(u.mT.contiguous(), kernel).mT


class _CausalConvolution(torch.autograd.Function):
    """The same for u (B, H, L). Its gradients are correlations, at half the cost of autograd's own."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, kernel: Tensor) -> Tensor:
        length = u.shape[-1]
        spectra = torch.fft.rfft(u, n=2 * length), torch.fft.rfft(kernel, n=2 * length)
        ctx.save_for_backward(*spectra)
        return torch.fft.irfft(spectra[0] * spectra[1], n=2 * length)[..., :length]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        length, (u, kernel) = gradient.shape[-1], ctx.saved_tensors
        spectrum = torch.fft.rfft(gradient, n=2 * length)
        for_u = torch.fft.irfft(spectrum * kernel.conj(), n=2 * length)[..., :length]
        for_kernel = torch.fft.irfft((spectrum * u.conj()).sum(0), n=2 * length)[..., :length]
        return for_u, for_kernel


def summed_convolution(u: Tensor, kernel: Tensor) -> Tensor:
    """The same summed over the channels, for R kernels: u (B, L, H), kernel (R, H, L) -> (B, L, R)."""
    length = u.shape[1]
    spectra = torch.fft.rfft(u, n=2 * length, dim=1), torch.fft.rfft(kernel, n=2 * length)
    return torch.fft.irfft(torch.einsum("bfh,rhf->bfr", *spectra), n=2 * length, dim=1)[:, :length]
