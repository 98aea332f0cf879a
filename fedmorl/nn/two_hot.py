"""Two-hot codes: a number as weights on the two bins around it, so that a softmax can learn it.

Source: Imani and White (2018), ICML; the form is that of Hafner et al. (2023), arXiv 2301.04104.
Departs from source: bins are even and there is no symlog, as codes here are bounded.
"""

import torch
from torch import Tensor
from torch.nn import functional


class TwoHot:
    """`n_bins` even bins from `low` to `high`."""

    def __init__(self, low: float, high: float, n_bins: int) -> None:
        if not low < high or n_bins < 2:
            raise ValueError(f"low must be below high and n_bins >= 2; got {low}, {high}, {n_bins}")
        self.low, self.high, self.n_bins = low, high, n_bins
        self.bins = torch.linspace(low, high, n_bins)

    def encode(self, x: Tensor) -> Tensor:
        """(...) -> (..., n_bins): the weights of two neighbours add up to 1; outside the range the last bin has 1."""
        place = (x.clamp(self.low, self.high) - self.low) / (self.high - self.low) * (self.n_bins - 1)
        below = place.floor().clamp(max=self.n_bins - 2)
        share = (place - below)[..., None]
        index = below.long()[..., None]
        code = torch.zeros(*x.shape, self.n_bins, dtype=x.dtype)
        return code.scatter(-1, index, 1 - share).scatter(-1, index + 1, share)

    def mean(self, logits: Tensor) -> Tensor:
        """(..., n_bins) -> (...): the expectation over bins."""
        return logits.softmax(-1) @ self.bins.to(logits.dtype)

    def loss(self, logits: Tensor, x: Tensor) -> Tensor:
        """(..., n_bins), (...) -> (...): cross-entropy of the two-hot code."""
        return -(self.encode(x) * functional.log_softmax(logits, -1)).sum(-1)

    def pick(self, logits: Tensor, n_levels: int) -> Tensor:
        """(..., n_bins) -> (..., n_levels): log-probabilities of `n_levels` even codes from `low` to `high`.

        A code between two bins has their weighted log-probability; the levels' probabilities add up to 1.
        """
        codes = self.encode(torch.linspace(self.low, self.high, n_levels))  # (A, n_bins)
        return functional.log_softmax(functional.log_softmax(logits, -1) @ codes.T.to(logits.dtype), -1)
