"""The decision transformer: actions as the continuation of returns-to-go, observations and past actions.

Letters: B sequences, L steps, O observation, A actions, W width, D = W / heads. A step t is three tokens: return-to-go
R_t, observation o_t and action a_t, each mapped to W numbers, plus a learned vector of the step t within the episode.
The action is read off the observation's token, so a_t is given R_t, o_t and the steps before.

A token attends to itself and to what came before it in the last `context` steps. Three routes lead to the same action:

    logits = model(returns_to_go, observations, actions, steps)[:, t]             whole episode, attention in a band
    logits, cache = model.step(return_to_go, observation, previous_action, cache)       one step, keys and values kept
    logits, window = model.recompute(return_to_go, observation, previous_action, window)    the last `context` steps

The second equals the first at every step. The third equals them for as long as the episode has no more than `context`
steps, and for ever if there is one layer; otherwise the keys of an old step remember what that step saw and the window
has lost. The models here are trained on windows: to them the third is exact, and the cache an approximation.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

TOKENS = 3  # of a step: return-to-go, observation, action
INITIAL_SD = 0.02  # of weights; GPT-2's


class KVCache(NamedTuple):
    """Keys and values of the last `context` steps; never written to, as `step` returns another."""

    layers: tuple[Tensor, ...]  # of each layer, (2, B, heads, tokens, D)
    n_steps: int  # of the episode so far


class Window(NamedTuple):
    """The last `context` steps as they were: what `recompute` begins from anew each time."""

    returns_to_go: Tensor  # (B, L)
    observations: Tensor  # (B, L, O)
    actions: Tensor  # (B, L - 1)
    n_steps: int  # of the episode so far


class AttentionBlock(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)) with GELU and 4 W hidden units; nothing is dropped."""

    def __init__(self, width: int, n_heads: int, generator: torch.Generator) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value = _linear(width, 3 * width, generator)
        self.attended = _linear(width, width, generator)
        self.widen, self.narrow = _linear(width, 4 * width, generator), _linear(4 * width, width, generator)

    def forward(self, x: Tensor, mask: Tensor | None, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (B, T, W) after `past` (2, B, heads, P, D): the next x, and keys and values of past and present.

        `mask` (T, P + T) is True where a token may look; None is all that is not later.
        """
        qkv = self.query_key_value(self.norm_attention(x)).unflatten(-1, (3, self.n_heads, -1))  # (B, T, 3, heads, D)
        qkv = qkv.permute(2, 0, 3, 1, 4)
        query, present = qkv[0], qkv[1:]
        if past is not None:
            present = torch.cat([past, present], dim=-2)
        key, value = present
        seen = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None)
        x = x + self.attended(seen.transpose(1, 2).flatten(-2))
        return x + self.narrow(functional.gelu(self.widen(self.norm_mlp(x)))), present


class DecisionTransformer(nn.Module):
    """Logits of a_t given R_t, o_t and the steps before, `context` in all.

    Parameters
    ----------
    observation_size, n_actions : int
        O and A.
    context : int
        Steps that a token sees, its own included; 1 is a network of R_t and o_t alone.
    n_steps : int
        Steps of the longest episode: each has an embedding of its own.
    width, n_layers, n_heads : int
        W is a multiple of the heads. The defaults are MADT's; 192, 4 and 4 make 1.9 M parameters.
    generator : torch.Generator
        Draws the initial weights.

    Notes
    -----
    Source: Chen et al. (2021), Decision Transformer; Meng et al. (2023), MADT, for several agents.
    Departs from source: norms before attention and MLP, and one more norm at the end, as in GPT-2.
    """

    step_mask: Tensor

    def __init__(
        self,
        observation_size: int,
        n_actions: int,
        *,
        context: int,
        n_steps: int,
        width: int = 32,
        n_layers: int = 2,
        n_heads: int = 2,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        if context < 1 or n_layers < 1 or n_heads < 1:
            raise ValueError(f"context, n_layers and n_heads must be >= 1; got {context}, {n_layers} and {n_heads}")
        if width % n_heads:
            raise ValueError(f"width must be a multiple of n_heads = {n_heads}; got {width}")
        self.observation_size, self.context, self.n_steps = observation_size, context, n_steps
        self.embed_return = _linear(1, width, generator)
        self.embed_observation = _linear(observation_size, width, generator)
        self.embed_action = _table(n_actions, width, generator)
        self.embed_step = _table(n_steps, width, generator)
        self.norm_tokens, self.norm_out = nn.LayerNorm(width), nn.LayerNorm(width)
        self.blocks = nn.ModuleList(AttentionBlock(width, n_heads, generator) for _ in range(n_layers))
        self.head = _linear(width, n_actions, generator)
        step_mask = band(TOKENS * (context + 1) - 1, context)[-TOKENS:]  # the action before, and the step's two tokens
        self.register_buffer("step_mask", step_mask, persistent=False)

    def forward(self, returns_to_go: Tensor, observations: Tensor, actions: Tensor, steps: Tensor) -> Tensor:
        """Logits (B, L, A) of every step; see `features` for the arguments."""
        return self.head(self.features(returns_to_go, observations, actions, steps))

    def features(self, returns_to_go: Tensor, observations: Tensor, actions: Tensor, steps: Tensor) -> Tensor:
        """(B, L, W): what the head reads.

        returns_to_go (B, L), observations (B, L, O), steps within the episode (B, L); actions (B, L) or (B, L - 1), as
        the last one has no part in it.
        """
        length = returns_to_go.shape[1]
        past_actions = functional.pad(self.embed_action[actions[:, : length - 1]], (0, 0, 0, 1))
        tokens = (self.embed_return(returns_to_go[..., None]), self.embed_observation(observations), past_actions)
        x = torch.stack(tokens, dim=2) + self.embed_step[steps][:, :, None]  # (B, L, 3, W)
        x = x.flatten(1, 2)[:, :-1]  # (B, 3 L - 1, W)
        mask = band(x.shape[1], self.context).to(x.device) if length > self.context else None
        x, _ = self._through(x, mask)
        return self.norm_out(x[:, 1::TOKENS])

    def initial_cache(self) -> KVCache:
        """Before the first step."""
        return KVCache((), 0)

    def step(
        self, return_to_go: Tensor, observation: Tensor, previous_action: Tensor, cache: KVCache
    ) -> tuple[Tensor, KVCache]:
        """One step for return_to_go (B,), observation (B, O), previous_action (B,): logits (B, A) and the next cache.

        Three tokens are computed, whatever has gone before. The first step does not look at the previous action.
        """
        t = cache.n_steps
        tokens = [self.embed_return(return_to_go[:, None]), self.embed_observation(observation)]
        x = torch.stack(tokens, dim=1) + self.embed_step[t]
        if t > 0:
            late = self.embed_action[previous_action] + self.embed_step[t - 1]
            x = torch.cat([late[:, None], x], dim=1)
        kept = TOKENS * self.context - 1  # the last `context` steps, but for the action that comes now
        past = tuple(layer[..., -kept:, :] for layer in cache.layers)
        n_new, n_seen = x.shape[1], x.shape[1] + (past[0].shape[-2] if past else 0)
        x, layers = self._through(x, self.step_mask[-n_new:, -n_seen:], past)
        return self.head(self.norm_out(x[:, -1])), KVCache(layers, t + 1)

    def initial_window(self, batch: int) -> Window:
        """Before the first step."""
        return Window(torch.zeros(batch, 0), torch.zeros(batch, 0, self.observation_size), torch.zeros(batch, 0), 0)

    def recompute(
        self, return_to_go: Tensor, observation: Tensor, previous_action: Tensor, window: Window
    ) -> tuple[Tensor, Window]:
        """As `step`, from all that the last `context` steps were: about 3 `context` tokens."""
        before, t = self.context - 1, window.n_steps
        actions = previous_action[:, None] if t > 0 else torch.zeros(len(previous_action), 0, dtype=torch.long)
        window = Window(
            torch.cat([_last(window.returns_to_go, before), return_to_go[:, None]], dim=1),
            torch.cat([_last(window.observations, before), observation[:, None]], dim=1),
            _last(torch.cat([window.actions.long(), actions], dim=1), before),
            t + 1,
        )
        steps = torch.arange(t + 1 - window.returns_to_go.shape[1], t + 1).expand_as(window.returns_to_go)
        return self(*window[:3], steps)[:, -1], window

    def _through(
        self, x: Tensor, mask: Tensor | None, past: tuple[Tensor, ...] = ()
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        x, layers = self.norm_tokens(x), []
        for k, block in enumerate(self.blocks):
            x, layer = block(x, mask, past[k] if past else None)
            layers.append(layer)
        return x, tuple(layers)


def band(n_tokens: int, context: int) -> Tensor:
    """(n_tokens, n_tokens), True where row looks at column: not later, and at most `context` - 1 steps ago."""
    token = torch.arange(n_tokens)
    step = token // TOKENS
    return (token <= token[:, None]) & (step[:, None] - step < context)


def _last(x: Tensor, n: int) -> Tensor:
    """The last n of axis 1, or all there are."""
    return x[:, max(x.shape[1] - n, 0) :]


def _linear(n_in: int, n_out: int, generator: torch.Generator) -> nn.Linear:
    linear = nn.Linear(n_in, n_out)
    with torch.no_grad():
        linear.weight.copy_(INITIAL_SD * torch.randn(n_out, n_in, generator=generator))
        linear.bias.zero_()
    return linear


def _table(rows: int, width: int, generator: torch.Generator) -> nn.Parameter:
    return nn.Parameter(INITIAL_SD * torch.randn(rows, width, generator=generator))
