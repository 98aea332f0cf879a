"""The decision transformer: torch's own encoder, and three routes to one action."""

import pytest
import torch
from torch import nn

from fedmorl.federated.clients import one_thread
from fedmorl.nn.transformer import AttentionBlock, DecisionTransformer, band

O, A = 6, 4  # noqa: E741


@pytest.fixture(autouse=True)
def quiet():
    with one_thread(), torch.no_grad():
        yield


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moved(module: nn.Module, by: float = 0.2) -> nn.Module:
    """With every parameter off its starting point, as after training: attention that is not flat."""
    draws = generator(9)
    for p in module.parameters():
        p += by * torch.randn(p.shape, generator=draws)
    return module


def model(context: int, n_layers: int = 2, n_steps: int = 24) -> DecisionTransformer:
    made = DecisionTransformer(
        O, A, context=context, n_steps=n_steps, width=16, n_layers=n_layers, n_heads=4, generator=generator()
    )
    return moved(made)


def episode(length: int, batch: int = 3) -> tuple[torch.Tensor, ...]:
    """Returns-to-go, observations, actions, steps."""
    draws = generator(1)
    return (
        torch.randn(batch, length, generator=draws),
        torch.randn(batch, length, O, generator=draws),
        torch.randint(A, (batch, length), generator=draws),
        torch.arange(length).expand(batch, length),
    )


def played(advance, memory, x) -> torch.Tensor:
    """Logits (B, L, A), step by step."""
    returns_to_go, observations, actions, _ = x
    logits = []
    for t in range(returns_to_go.shape[1]):
        now, memory = advance(returns_to_go[:, t], observations[:, t], actions[:, t - 1], memory)
        logits.append(now)
    return torch.stack(logits, 1)


def distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Largest difference at each step over the largest logit, (L,)."""
    return (a - b).abs().amax((0, 2)) / a.abs().max()


# --- what it computes -----------------------------------------------------------------------------------


def test_block_is_the_pre_norm_encoder_layer_of_torch():
    block = moved(AttentionBlock(16, 4, generator()))
    torchs = nn.TransformerEncoderLayer(16, 4, 64, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
    ours = {
        "self_attn.in_proj": block.query_key_value, "self_attn.out_proj.": block.attended,
        "linear1.": block.widen, "linear2.": block.narrow, "norm1.": block.norm_attention, "norm2.": block.norm_mlp,
    }  # fmt: skip
    names = {name: f"{name}{'_' if name.endswith('proj') else ''}" for name in ours}
    torchs.load_state_dict({f"{names[n]}{p}": getattr(ours[n], p) for n in ours for p in ("weight", "bias")})
    x = torch.randn(2, 11, 16, generator=generator(2))
    for allowed, mask in ((torch.ones(11, 11).tril().bool(), None), (band(11, 2), band(11, 2))):
        expected = torchs(x, src_mask=~allowed)
        assert (block(x, mask)[0] - expected).abs().max() < 1e-5 * expected.abs().max()


def test_band_lets_a_token_see_its_own_step_and_the_context_before():
    """Context 2, tokens R0 o0 a0 R1 o1 a1 R2 o2: the observation of step 2 sees steps 1 and 2, up to itself."""
    seen = band(8, 2)[7]
    assert seen.tolist() == [False, False, False, True, True, True, True, True]
    assert band(8, 2)[4].tolist() == [True, True, True, True, True, False, False, False]


def test_1_9_million_parameters_are_counted_by_hand():
    made = DecisionTransformer(73, 5, context=20, n_steps=500, width=192, n_layers=4, n_heads=4, generator=generator())
    W = 192
    layer = 4 * W * W + 4 * W + 8 * W * W + 5 * W + 4 * W  # attention, MLP, two norms
    embeddings = 2 * W + (73 + 1) * W + 5 * W + 500 * W
    assert sum(p.numel() for p in made.parameters()) == 4 * layer + embeddings + 2 * 2 * W + (W + 1) * 5 == 1_892_741


@pytest.mark.parametrize(("context", "n_layers"), [(1, 2), (3, 1), (3, 2)])
def test_an_action_is_given_what_came_before_within_reach_and_nothing_else(context, n_layers):
    """Reach: each layer looks `context` - 1 steps further back. Its own action is not among it, nor a later token."""
    made, x, t = model(context, n_layers), episode(10), 8
    reach = n_layers * (context - 1)
    for k, latest in ((0, t), (1, t), (2, t - 1)):  # return-to-go, observation, action
        felt = []
        for step in range(10):
            changed = [part.clone() for part in x]
            changed[k][:, step] = (changed[k][:, step] + 1) % A
            if (made(*x)[:, t] - made(*changed)[:, t]).abs().max() > 1e-6:
                felt.append(step)
        assert felt == list(range(max(t - reach, 0), latest + 1))


# --- three routes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", [1, 2, 5])
@pytest.mark.parametrize("n_layers", [1, 3])
def test_cached_steps_equal_banded_attention_over_the_whole_episode(context, n_layers):
    """At every step, long after the first was dropped; float32 rounding."""
    made, x = model(context, n_layers), episode(20)
    assert distance(made(*x), played(made.step, made.initial_cache(), x)).max() < 1e-5


@pytest.mark.parametrize("context", [1, 2, 5])
def test_cached_steps_equal_the_window_until_a_step_is_dropped_and_not_after(context):
    made, x = model(context, n_layers=2), episode(20)
    windowed = played(made.recompute, made.initial_window(3), x)
    far = distance(windowed, played(made.step, made.initial_cache(), x))
    assert far[:context].max() < 1e-5
    if context > 1:
        assert far[context:].min() > 1e-4, "the approximation that the module's text warns of"
    else:
        assert far.max() < 1e-5, "nothing but the present step is seen"


def test_with_one_layer_the_cache_is_the_window_for_ever():
    """Keys of an old step are then a function of that step alone."""
    made, x = model(4, n_layers=1), episode(20)
    windowed = played(made.recompute, made.initial_window(3), x)
    assert distance(windowed, played(made.step, made.initial_cache(), x)).max() < 1e-5


def test_recomputation_is_the_forward_pass_on_the_last_steps():
    made, x = model(4), episode(12)
    windowed = played(made.recompute, made.initial_window(3), x)
    for t in range(12):
        alone = made(*(part[:, max(t - 3, 0) : t + 1] for part in x))[:, -1]
        assert (alone - windowed[:, t]).abs().max() < 1e-5 * alone.abs().max()


def test_steps_leave_cache_and_window_as_they_were():
    made, x = model(3), episode(8)
    for advance, memory in ((made.step, made.initial_cache()), (made.recompute, made.initial_window(3))):
        for t in range(5):
            memory = advance(x[0][:, t], x[1][:, t], x[2][:, t - 1], memory)[1]
        one = advance(x[0][:, 5], x[1][:, 5], x[2][:, 4], memory)[0]
        advance(x[0][:, 6], x[1][:, 6], x[2][:, 1], memory)
        assert torch.equal(advance(x[0][:, 5], x[1][:, 5], x[2][:, 4], memory)[0], one)


def test_a_cache_holds_no_more_than_its_context():
    made, x = model(3), episode(20)
    cache = made.initial_cache()
    for t in range(20):
        _, cache = made.step(x[0][:, t], x[1][:, t], x[2][:, t - 1], cache)
    assert cache.n_steps == 20 and all(layer.shape == (2, 3, 4, 3 * 4 - 1, 4) for layer in cache.layers)


# --- how it begins, and what it refuses -----------------------------------------------------------------


def test_weights_come_from_the_generator_alone():
    torch.manual_seed(1)
    one = model(3).state_dict()
    torch.manual_seed(2)
    assert all(torch.equal(one[name], p) for name, p in model(3).state_dict().items())


def test_an_untrained_model_is_all_but_indifferent():
    """Weights of sd .02 and inputs of size one: logits of sd .02 sqrt(W) = .08, so NLL within .02 of ln A."""
    made = DecisionTransformer(O, A, context=3, n_steps=24, width=16, generator=generator())
    returns_to_go, observations, actions, steps = episode(20)
    nats = nn.functional.cross_entropy(
        made(returns_to_go, observations, actions, steps).flatten(0, 1), actions.flatten()
    )
    assert abs(nats.item() - torch.log(torch.tensor(float(A))).item()) < 0.05


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"context": 0}, "context, n_layers and n_heads must be >= 1; got 0, 2 and 2"),
        ({"width": 15}, "width must be a multiple of n_heads = 2; got 15"),
    ],
)
def test_sizes_that_cannot_be_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        DecisionTransformer(O, A, **{"context": 3, "n_steps": 24, "generator": generator()} | wrong)
