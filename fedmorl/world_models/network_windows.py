"""Windows of H epochs out of logs, as the tensors that NetWorld learns from.

Letters: R rows (one agent of one network each), T epochs, H horizon, D latent, B batch.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedmorl.data.dataset import DatasetError
from fedmorl.data.network_logs import NetworkLog
from fedmorl.tasks.networks import code_of
from fedmorl.world_models.latent_codec import SD_FLOOR, TASKS, LatentCodec, task_code

H = 16
RETURNS = ("own", "mean_field", "own_minus_externality")
# what guides a task if nothing else is asked for: on a shared channel the own return empties it for all
DEFAULT_RETURNS = {"cw": "mean_field", "ua": "own_minus_externality", "pc": "own_minus_externality"}


class Windows(NamedTuple):
    """B windows. `condition` (B, 36): task code 3, mean field 16, whether it is there 1, first latent 16."""

    x: Tensor  # (B, H, D) latents over their standard deviation
    actions: Tensor  # (B, H) codes in [-1, 1]
    condition: Tensor  # (B, 36)
    returns: Tensor  # (B,) z-scored


class TaskRows:
    """All that logs of one task say, row by row; windows are cut from it when they are asked for."""

    def __init__(self, logs: Sequence[NetworkLog], codec: LatentCodec, returns: str) -> None:
        self.task = logs[0].task
        parts = [_rows(log, codec, returns) for log in logs]
        self.z, self.m, self.codes, self.g = (torch.cat(some) for some in zip(*parts, strict=True))
        self.n_starts = self.g.shape[1]

    def __len__(self) -> int:
        return self.g.numel()

    def draw(self, n: int, generator: torch.Generator, without: float = 0.25) -> Windows:
        """`n` windows drawn evenly; with probability `without` the message is left out."""
        index = torch.randint(len(self), (n,), generator=generator)
        heard = (torch.rand(n, generator=generator) >= without).float()
        return self.take(index, heard)

    def take(self, index: Tensor, heard: Tensor) -> Windows:
        """The windows of these numbers, with the message where `heard` (B,) is 1."""
        row, start = index // self.n_starts, index % self.n_starts
        span = start[:, None] + torch.arange(H)
        x = self.z[row[:, None], span]
        condition = conditions(self.task, x[:, 0], self.m[row, start], heard)
        return Windows(x, self.codes[row[:, None], span], condition, self.g[row, start])


def conditions(task: str, z0: Tensor, received: Tensor, heard: Tensor) -> Tensor:
    """(B, 36) of first latents (B, D), mean fields (B, D) and whether they were heard (B,)."""
    code = task_code(task).expand(len(z0), -1)
    return torch.cat([code, received * heard[:, None], heard[:, None], z0], -1)


CONDITION = len(TASKS) + 16 + 1 + 16


def check_logs(logs: Sequence[NetworkLog], codec: LatentCodec) -> None:
    """DatasetError, one sentence, if a log cannot be learned from with this encoder."""
    for log in logs:
        if log.received is None:
            raise DatasetError(f"a log of {log.task} holds no messages; add them: with_messages(log, codec)")
        if log.encoder_hash != codec.content_hash:
            raise DatasetError(
                f"encoder_hash of a log of {log.task} is {log.encoder_hash} and the encoder's is {codec.content_hash}: "
                "messages of another encoder mean nothing; make them again with with_messages(log, codec)"
            )
        if log.actions.shape[1] < H:
            raise DatasetError(f"a log must have {H} epochs or more, one horizon; got {log.actions.shape[1]}")


def rewards_for(log: NetworkLog, returns: str) -> np.ndarray:
    """(E, T, N): the z-scored rewards whose mean over a window is its return.

    own : what the agent alone got. mean_field : the mean of all agents' rewards, which travel in the messages.
    own_minus_externality : what it got less what that cost the others.
    """
    if returns not in RETURNS:
        raise ValueError(f"returns must be one of {', '.join(RETURNS)}; got {returns!r}")
    if returns == "own_minus_externality" and log.credit is None:
        raise ValueError(
            f"returns is own_minus_externality and {log.task} does not log what an agent costs the others; "
            "take mean_field or own"
        )
    if returns == "mean_field":
        team = zscored(log.rewards).mean(-1, keepdims=True)
        return np.broadcast_to(team, log.rewards.shape)
    return zscored(log.own if returns == "own" else np.asarray(log.credit))


def zscored(x: np.ndarray) -> np.ndarray:
    """Mean 0, standard deviation 1."""
    return (x - x.mean()) / max(float(x.std()), SD_FLOOR)


def _rows(log: NetworkLog, codec: LatentCodec, returns: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """z and m (R, T + 1, D), codes (R, T), returns of each start (R, T - H + 1)."""
    z = codec.encode(log.task, log.observations) / codec.latent_sd
    m = torch.tensor(np.asarray(log.received)) / codec.latent_sd
    reward = rewards_for(log, returns).astype(np.float64)
    sums = np.cumsum(np.pad(reward, ((0, 0), (1, 0), (0, 0))), 1)
    g = zscored((sums[:, H:] - sums[:, :-H]) / H)
    codes = code_of(log.actions, log.n_levels)
    return _by_row(z), _by_row(m), _by_row(torch.tensor(codes)), _by_row(torch.tensor(g))


def _by_row(x: Tensor) -> Tensor:
    """(E, T, N, ...) -> (E N, T, ...) float32."""
    return x.float().transpose(1, 2).flatten(0, 1)
