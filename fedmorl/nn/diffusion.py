"""Denoising diffusion: the cosine schedule, noising, and the deterministic step back from a guess of the clean sample.

Letters: x_t = sqrt(ab_t) x_0 + sqrt(1 - ab_t) eps, ab the cumulative product `alpha_bar`. Networks guess x_0.
Sources: Ho et al. (2020), NeurIPS (noising); Nichol and Dhariwal (2021), ICML (cosine schedule); Song et al. (2021),
ICLR (DDIM); Salimans and Ho (2022), ICLR (guessing x_0).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

N_NOISE = 100  # levels
MAX_BETA = 0.999


def cosine_alpha_bar(n_noise: int = N_NOISE) -> Tensor:
    """ab_0 .. ab_{n-1}, float32: beta_i = min(1 - f((i+1)/n) / f(i/n), 0.999), f(s) = cos^2(pi/2 (s + .008)/1.008)."""

    def f(s: float) -> float:
        return math.cos((s + 0.008) / 1.008 * math.pi / 2) ** 2

    beta = [min(1 - f((i + 1) / n_noise) / f(i / n_noise), MAX_BETA) for i in range(n_noise)]
    return (1 - torch.tensor(beta)).cumprod(0)


def trailing_levels(n_steps: int, n_noise: int = N_NOISE) -> list[int]:
    """The levels that `n_steps` steps visit, noisiest first: 99, 79, 59, 39, 19 for 5 of 100."""
    if n_steps < 1 or n_noise % n_steps:
        divisors = ", ".join(str(k) for k in range(1, n_noise + 1) if n_noise % k == 0)
        raise ValueError(f"ddim_steps must divide the {n_noise} noise levels, so be one of {divisors}; got {n_steps}")
    return list(range(n_noise - 1, -1, -(n_noise // n_steps)))


def noised(x0: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """x_t of x_0 and eps (B, ...), with ab of each row (B,)."""
    ab = alpha_bar.view(-1, *[1] * (x0.ndim - 1))
    return ab.sqrt() * x0 + (1 - ab).sqrt() * eps


def implied_noise(x: Tensor, x0: Tensor, ab: Tensor) -> Tensor:
    """eps such that x = sqrt(ab) x_0 + sqrt(1 - ab) eps."""
    return (x - ab.sqrt() * x0) / (1 - ab).sqrt()


def ddim_step(x0: Tensor, eps: Tensor, ab_next: Tensor) -> Tensor:
    """To the next level without noise (eta = 0): sqrt(ab') x_0 + sqrt(1 - ab') eps."""
    return ab_next.sqrt() * x0 + (1 - ab_next).sqrt() * eps


def ddpm_posterior(x: Tensor, x0: Tensor, t: int, alpha_bar: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of x_{t-1} given x_t and x_0: Ho et al. (2020), Eqs. (6) and (7)."""
    ab, before = alpha_bar[t], alpha_bar[t - 1] if t else torch.ones(())
    alpha = ab / before
    mean = before.sqrt() * (1 - alpha) / (1 - ab) * x0 + alpha.sqrt() * (1 - before) / (1 - ab) * x
    return mean, (1 - before) / (1 - ab) * (1 - alpha)


Guess = Callable[[Tensor, int], Tensor]  # (x, level) -> x_0
Guide = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]  # (x, x_0, level) -> (x_0, eps)


def ddim(x: Tensor, guess: Guess, n_steps: int, alpha_bar: Tensor, known: Tensor, guide: Guide | None = None) -> Tensor:
    """From noise x (B, H, D) to a sample whose first row is `known` (B, D), put in unnoised before each step.

    `guide`, if given, turns the guess of a level into the guess and the noise that are gone on with.
    """
    levels = trailing_levels(n_steps, len(alpha_bar))
    for level, after in zip(levels, [*levels[1:], None], strict=True):
        x = torch.cat([known[:, None], x[:, 1:]], 1)
        ab = alpha_bar[level]
        ab_next = torch.ones(()) if after is None else alpha_bar[after]
        x0 = guess(x, level)
        x0, eps = (x0, implied_noise(x, x0, ab)) if guide is None else guide(x, x0, level)
        x = ddim_step(x0, eps, ab_next)
    return torch.cat([known[:, None], x[:, 1:]], 1)
