"""The S4 layer: H linear state spaces side by side, trained as a convolution and played as a recurrence.

`fedmorl.nn.hippo` says where it starts, `fedmorl.nn.s4_kernels` how it is computed, this module what is trained, and
`fedmorl.nn.s4_blocks` stacks it. Letters: B batch, L length, H channels, N states of a channel, M = N / 2 kept of the
conjugate pairs, R outputs of a channel (its own and the read-outs).

    layer = S4Layer(96, 96, generator=torch.Generator().manual_seed(0))
    y = layer(u)                                       # (B, L, H) -> (B, L, H)
    state = layer.initial_state(batch)
    y_t, state = layer.step(u_t, state)                # (B, H) -> (B, H), in O(H N)
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fedmorl.nn.hippo import KINDS, initial_matrices
from fedmorl.nn.s4_kernels import (
    Recurrence,
    causal_convolution,
    diagonal_discretisation,
    diagonal_kernel,
    dot,
    dplr_kernel,
    dplr_recurrence,
    real_row,
    recover,
    summed_convolution,
    truncate,
)

METHODS = ("bilinear", "zoh")
S4_PARAMETERS = ("log_re", "im", "P", "B", "log_dt")  # their own group of the optimiser, without weight decay
DT_RANGE = (0.001, 0.1)  # log-uniform at the start; MADS4 prints none, so ours


class S4State(NamedTuple):
    """Where a recurrence is: x (B, H, M), complex, and the step that moves it on.

    The step belongs to the parameters as they were when the state was made. After an update of the parameters take
    `state._replace(recurrence=layer.recurrence())`, or begin anew.
    """

    x: Tensor
    recurrence: Recurrence


class S4Layer(nn.Module):
    """u (B, L, H) -> y (B, L, H): a linear state space of N states in each of H channels, and a skip D u.

    Parameters
    ----------
    H, N : int
        Channels, and states of each; N is even.
    kind : str
        "nplr" (HiPPO-LegS whole, A = diag(Lambda) - P P*; MADS4, section 4.1), or the diagonal "s4d-legs", "s4d-lin",
        "s4d-inv".
    length : int
        For "nplr": the length L of the sequences trained on. What is trained then is Ct = C (I - Abar^L) in the place
        of C, so L belongs to the weights and stands in the state dict as `length`. 0 trains C itself. Sequences of
        other lengths are fine; longer ones need C back, which is dense and slow.
    tied : bool
        One Lambda, P and B for all channels. By default each has its own.
    discretisation : str, optional
        "bilinear" or "zoh" (zero-order hold); bilinear for "nplr", which has no other, "zoh" for the diagonal kinds.
    readout : int
        Linear outputs besides y, each summed over all channels: what an agent tells the next of its state. See `read`.
    generator : torch.Generator
        Draws dt, C and D.

    Notes
    -----
    Re(Lambda) = -exp(log_re) stays negative and dt = exp(log_dt) positive. Parameters are float32 by default; kernels
    and steps are computed in float64 from them and rounded at the end. C starts complex normal, D normal.

    Source: MADS4, eqs. (2) to (4) and section 4.1; S4, section 3.4; S4D, section 4. Departs from source: P P* for
    P Q*, as S4's authors advise in section 3.4.
    """

    length: Tensor

    def __init__(
        self,
        H: int = 96,
        N: int = 96,
        *,
        kind: str = "nplr",
        length: int = 500,
        tied: bool = False,
        discretisation: str | None = None,
        readout: int = 0,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        discretisation = discretisation or ("bilinear" if kind == "nplr" else "zoh")
        _check(kind, discretisation, length)
        self.H, self.N, self.kind, self.discretisation = H, N, kind, discretisation
        copies = 1 if tied else H
        Lambda, P, B = (x.expand(copies, -1) for x in initial_matrices(kind, N))  # (H or 1, M)
        self.log_re = _parameter(torch.log(-Lambda.real))
        self.im = _parameter(Lambda.imag)
        self.P = _parameter(torch.view_as_real(P.resolve_conj())) if kind == "nplr" else None
        self.B = _parameter(torch.view_as_real(B.resolve_conj()))
        low, high = map(math.log, DT_RANGE)
        self.log_dt = _parameter(low + (high - low) * torch.rand(H, generator=generator))
        C = torch.randn(1 + readout, H, N // 2, 2, generator=generator) * 0.5**0.5
        C[1:] *= H**-0.5  # a read-out sums H channels
        self.C = _parameter(C)
        self.D = _parameter(torch.randn(H, generator=generator))
        self.register_buffer("length", torch.tensor(0))
        if kind == "nplr":
            self.set_length(length)

    # -------------------------------------------------------------------------------------- convolution

    def forward(self, u: Tensor, kernel: Tensor | None = None) -> Tensor:
        """(B, L, H) -> (B, L, H); `kernel` is `self.kernel(L)`, which a caller of many sequences makes once."""
        _check_input(u, 3, self.H, "u must have shape (B, L, H")
        kernel = self.kernel(u.shape[1]) if kernel is None else kernel
        return causal_convolution(u, kernel[0]) + self.D * u

    def read_sequence(self, u: Tensor, kernel: Tensor | None = None) -> Tensor:
        """What `read` says after each step, from the input: (B, L, H) -> (B, L, readout); no state is stored."""
        kernel = self.kernel(u.shape[1]) if kernel is None else kernel
        return summed_convolution(u, kernel[1:])

    def kernel(self, length: int) -> Tensor:
        """(R, H, length): K_l = C Abar^l Bbar for y, and then for each read-out. Differentiable."""
        Lambda, P, B, C, dt = self.matrices()
        if self.kind != "nplr":
            log_Abar, Bbar = diagonal_discretisation(Lambda, B, dt, self.discretisation)
            kernel = diagonal_kernel(log_Abar, Bbar, C, length)
        elif length <= int(self.length):
            kernel = dplr_kernel(Lambda, P, B, C, dt, int(self.length))[..., :length]
        else:
            Ct = truncate(self.output(), Lambda, P, B, dt, length)
            kernel = dplr_kernel(Lambda, P, B, Ct, dt, length)
        return kernel.to(self.D.dtype)

    # --------------------------------------------------------------------------------------- recurrence

    def initial_state(self, batch: int, recurrence: Recurrence | None = None) -> S4State:
        """x = 0 for a batch, with the step of the present parameters; made once a checkpoint, it can be handed in."""
        recurrence = self.recurrence() if recurrence is None else recurrence
        Abar = recurrence.Abar
        return S4State(torch.zeros(batch, *Abar.shape, dtype=Abar.dtype, device=Abar.device), recurrence)

    def step(self, u_t: Tensor, state: S4State) -> tuple[Tensor, S4State]:
        """One step: u_t (B, H) -> y_t (B, H) and the next state. O(H N), whatever has gone before."""
        _check_input(u_t, 2, self.H, "u_t must have shape (B, H")
        Abar, left, right, Bbar, C = state.recurrence
        x = Abar * state.x + Bbar * u_t[..., None]  # (B, H, M)
        if left is not None and right is not None:
            x = x - left * dot(right, state.x)[..., None]
        y = torch.addcmul(dot(C[0], x), self.D, u_t)
        return y, state._replace(x=x)

    def read(self, state: S4State) -> Tensor:
        """The read-outs 2 Re sum_{h,n} C_r,h,n x_h,n of the state, (B, readout); the state h of MADS4, eq. (5)."""
        return torch.view_as_real(state.x).flatten(1) @ state.recurrence.C[1:].flatten(1).mT

    def recurrence(self) -> Recurrence:
        """The step of the present parameters, rounded to their precision. Differentiable; "nplr" solves for C."""
        Lambda, P, B, _, dt = self.matrices()
        if self.kind == "nplr":
            step = dplr_recurrence(Lambda, P, B, self.output(), dt)
        else:
            log_Abar, Bbar = diagonal_discretisation(Lambda, B, dt, self.discretisation)
            step = Recurrence(torch.exp(log_Abar), None, None, Bbar, real_row(self.output()))
        return step.rounded(self.D.dtype)

    # --------------------------------------------------------------------------------------- parameters

    def matrices(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Lambda, P, B (H, M) or (1, M), C as trained (R, H, M), dt (H,), in complex128 and float64."""
        Lambda = torch.complex(-torch.exp(self.log_re.double()), self.im.double())
        P = torch.zeros_like(Lambda) if self.P is None else torch.view_as_complex(self.P.double())
        B, C = (torch.view_as_complex(x.double()) for x in (self.B, self.C))
        return Lambda, P, B, C, torch.exp(self.log_dt.double())

    def output(self) -> Tensor:
        """C itself, (R, H, M), complex128: recovered from the trained Ct where `length` is not 0."""
        Lambda, P, B, C, dt = self.matrices()
        return recover(C, Lambda, P, B, dt, int(self.length)) if int(self.length) else C

    @torch.no_grad()
    def set_length(self, length: int) -> None:
        """Trains on at another length, or on C itself (0, which suits training by recurrence); y stays the same."""
        _check(self.kind, self.discretisation, length)
        C = self.output()
        if length and self.kind == "nplr":
            Lambda, P, B, _, dt = self.matrices()
            C = truncate(C, Lambda, P, B, dt, length)
            self.length.fill_(length)
        else:
            self.length.fill_(0)
        self.C.copy_(torch.view_as_real(C))


def parameter_groups(
    module: nn.Module, *, lr: float = 1e-3, s4_lr: float = 1e-3, weight_decay: float = 0.01
) -> list[dict[str, Any]]:
    """Two groups for AdamW: Lambda, P, B and dt of every S4 layer inside, without decay, and the rest.

    Weight decay would pull Lambda to -1 and dt to 1, where nothing is remembered; C and D may shrink.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, S4Layer)]
    own = [p for layer in layers for name, p in layer.named_parameters() if name in S4_PARAMETERS]
    ids = {id(p) for p in own}
    rest = [p for p in module.parameters() if id(p) not in ids]
    return [
        {"params": own, "lr": s4_lr, "weight_decay": 0.0},
        {"params": rest, "lr": lr, "weight_decay": weight_decay},
    ]


def _parameter(x: Tensor) -> nn.Parameter:
    return nn.Parameter(x.detach().to(torch.get_default_dtype()).clone())


def _check(kind: str, discretisation: str, length: int) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")
    if discretisation not in METHODS or (kind == "nplr" and discretisation != "bilinear"):
        allowed = "bilinear" if kind == "nplr" else " or ".join(METHODS)
        raise ValueError(f"discretisation of kind {kind!r} must be {allowed}; got {discretisation!r}")
    if length < 0:
        raise ValueError(f"length must be >= 0 steps, 0 for a C that no length is tied to; got {length}")


def _check_input(u: Tensor, dimensions: int, H: int, rule: str) -> None:
    if u.ndim != dimensions or u.shape[-1] != H:
        raise ValueError(f"{rule} = {H}); got {tuple(u.shape)}")
