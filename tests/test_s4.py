"""S4: closed forms, SciPy, dense matrices, and the recurrence against the convolution."""

import numpy as np
import pytest
import torch
from scipy.signal import cont2discrete
from scipy.special import eval_legendre
from torch import nn

from fedmorl.nn import s4_kernels
from fedmorl.nn.hippo import KINDS, hippo_legs, initial_matrices, nplr
from fedmorl.nn.s4 import S4Layer, S4State, parameter_groups
from fedmorl.nn.s4_blocks import MaskedBatchNorm, S4Block, S4Stack, dropped

KIND_AND_METHOD = [("nplr", "bilinear"), *((kind, m) for kind in KINDS[1:] for m in ("zoh", "bilinear"))]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moved(module: nn.Module, by: float = 0.1) -> nn.Module:
    """With every parameter off its starting point, as after training."""
    draws = generator(9)
    with torch.no_grad():
        for p in module.parameters():
            p += by * torch.randn(p.shape, generator=draws, dtype=p.dtype)
    return module


def dense(layer: S4Layer) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Abar (H, N, N), Bbar (H, N) and the rows C (R, H, N) of a layer: the slow route to everything."""
    Lambda, P, B, _, dt = layer.matrices()
    A, B_real = s4_kernels.real_form(Lambda, P, B)
    Abar, Bbar = s4_kernels.discretise(A, B_real, dt, layer.discretisation)
    return Abar, Bbar, s4_kernels.real_row(layer.output())


def played(layer, u, state=None):
    """The outputs step by step, (B, L, H), and the last state."""
    state, outputs = state or layer.initial_state(len(u)), []
    for u_t in u.unbind(1):
        y, state = layer.step(u_t, state)
        outputs.append(y)
    return torch.stack(outputs, 1), state


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


# --- HiPPO and its diagonalisation ----------------------------------------------------------------------


def test_hippo_remembers_in_legendre_polynomials_of_the_exponential_of_age():
    """exp(tA) B has the closed form sqrt(2n+1) exp(-t) P_n(2 exp(-t) - 1)."""
    A, B, _ = hippo_legs(12)
    n = np.arange(12)
    for t in (0.0, 0.3, 2.0):
        remembered = (torch.linalg.matrix_exp(t * A) @ B).numpy()
        expected = np.sqrt(2 * n + 1) * np.exp(-t) * eval_legendre(n, 2 * np.exp(-t) - 1)
        np.testing.assert_allclose(remembered, expected, atol=1e-10)


@pytest.mark.parametrize("N", [2, 8, 96])
def test_the_kept_half_and_its_conjugates_make_hippo_again(N):
    A, B, _ = hippo_legs(N)
    legs = nplr(N)
    V = torch.cat([legs.half, legs.half.conj()], dim=1)
    Lambda, P, rotated = (torch.cat([x, x.conj()]) for x in (legs.Lambda, legs.P, legs.B))
    assert (V @ V.conj().mT - torch.eye(N)).abs().max() < 1e-10
    assert (V @ (torch.diag(Lambda) - P[:, None] * P.conj()) @ V.conj().mT - A).abs().max() < 1e-10
    assert (V @ rotated - B).abs().max() < 1e-10


def test_inverse_frequencies_of_s4d_follow_those_of_hippo():
    """S4D-Inv fits the spectrum of the normal part: of 48 frequencies the first within 2 %, ten within 15 %."""
    legs, inverse = (initial_matrices(kind, 96)[0].imag.sort().values[-10:] for kind in ("s4d-legs", "s4d-inv"))
    assert abs(inverse[-1] / legs[-1] - 1) < 0.02 and ((inverse / legs - 1).abs() < 0.15).all()
    linear = initial_matrices("s4d-lin", 96)[0].imag
    np.testing.assert_allclose(linear.diff(), np.full(47, np.pi))


# --- discretisation -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["bilinear", "zoh"])
def test_discretisation_is_scipy_s(method):
    Lambda, P, B = (x[None] for x in initial_matrices("nplr", 8))
    A, B_real = s4_kernels.real_form(Lambda, P, B)
    dt = torch.tensor([0.003, 0.4], dtype=torch.float64)
    Abar, Bbar = s4_kernels.discretise(A.expand(2, -1, -1), B_real.expand(2, -1), dt, method)
    for k in range(2):
        system = (A[0].numpy(), B_real[0, :, None].numpy(), np.zeros((1, 8)), np.zeros((1, 1)))
        expected = cont2discrete(system, dt[k].item(), method=method)
        np.testing.assert_allclose(Abar[k], expected[0], atol=1e-12)
        np.testing.assert_allclose(Bbar[k], expected[1][:, 0], atol=1e-12)


def test_the_real_form_is_hippo_in_another_basis():
    """Same eigenvalues, -1 to -N, which no diagonal part or low-rank part has alone."""
    A, _ = s4_kernels.real_form(*(x[None] for x in initial_matrices("nplr", 8)))
    np.testing.assert_allclose(np.sort(torch.linalg.eigvals(A[0]).real), np.arange(-8.0, 0), atol=1e-6)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_starts_where_its_kind_says(kind, tied):
    layer = S4Layer(3, 16, kind=kind, tied=tied, generator=generator())
    for ours, start in zip(layer.matrices()[:3], initial_matrices(kind, 16), strict=True):
        assert ours.shape == (1 if tied else 3, 8) and (ours - start).abs().max() < 1e-5  # single precision of up to 80
    dt = layer.matrices()[4]
    assert ((dt >= 0.001) & (dt <= 0.1)).all()


def test_a_layer_stays_stable_wherever_training_takes_it():
    layer = moved(S4Layer(8, 16, generator=generator()), by=3.0)
    assert torch.linalg.eigvals(dense(layer)[0]).abs().max() < 1


# --- kernels --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 49, 50])
@pytest.mark.parametrize("kind,method", KIND_AND_METHOD)
def test_fast_kernels_are_the_dense_kernel(kind, method, length):
    layer = S4Layer(4, 16, kind=kind, discretisation=method, length=length, readout=2, generator=generator())
    layer = moved(layer.double())
    assert relative(layer.kernel(length), s4_kernels.dense_kernel(*dense(layer), length)) < 1e-11


def test_at_minus_one_the_generating_function_takes_its_limit():
    """sum_l (-1)^l K_l, where 2 (1 - w) / (1 + w) is infinite, is Re sum(Ct B dt)."""
    layer = moved(S4Layer(4, 16, length=50, generator=generator()).double())
    _, _, B, Ct, dt = layer.matrices()
    alternating = (layer.kernel(50) * (-1.0) ** torch.arange(50)).sum(-1)
    assert relative(alternating, (Ct * B * dt[:, None]).real.sum(-1)) < 1e-12


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_recurrence_is_convolution_in_single_precision(kind, tied):
    """500 steps of H = N = 96, after training: within 1e-4 of the largest output."""
    layer = moved(S4Layer(96, 96, kind=kind, tied=tied, readout=16, generator=generator()), by=0.02)
    u = torch.randn(2, 500, 96, generator=generator(1))
    with torch.no_grad():
        y, state = played(layer, u)
        assert y.dtype == torch.float32 and state.x.dtype == torch.complex64
        assert relative(y, layer(u)) < 1e-4
        assert relative(layer.read(state), layer.read_sequence(u)[:, -1]) < 1e-4


def test_the_convolution_looks_at_no_later_step():
    layer = S4Layer(4, 16, length=40, generator=generator())
    u = torch.randn(1, 40, 4, generator=generator(1))
    later = torch.cat([u[:, :25], 100 + u[:, 25:]], dim=1)
    assert (layer(later)[:, :25] - layer(u)[:, :25]).abs().max() < 1e-3 * layer(later).abs().max() * 1e-2


# --- the length that the weights belong to --------------------------------------------------------------


def test_c_is_recovered_from_what_is_trained():
    layer = moved(S4Layer(4, 16, length=50, generator=generator()).double())
    Lambda, P, B, Ct, dt = layer.matrices()
    C = layer.output()
    assert relative(C, Ct) > 0.1
    assert relative(s4_kernels.truncate(C, Lambda, P, B, dt, 50), Ct) < 1e-12


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [20, 50, 120])
def test_sequences_of_any_length_are_played_as_they_are_trained(kind, length):
    layer = moved(S4Layer(4, 16, kind=kind, length=50, generator=generator()).double())
    u = torch.randn(1, length, 4, dtype=torch.float64, generator=generator(1))
    assert relative(layer(u), played(layer, u)[0]) < 1e-10


def test_moving_to_another_length_changes_the_weights_and_no_output():
    layer = moved(S4Layer(4, 16, length=50, readout=1, generator=generator()).double())
    u = torch.randn(1, 30, 4, dtype=torch.float64, generator=generator(1))
    before, weights = (layer(u), layer.read_sequence(u)), layer.C.clone()
    for length in (80, 0, 50):
        layer.set_length(length)
        assert int(layer.length) == length
        assert relative(layer(u), before[0]) < 1e-10 and relative(layer.read_sequence(u), before[1]) < 1e-10
        assert (relative(layer.C, weights) < 1e-10) == (length == 50)


def test_a_checkpoint_brings_its_length_along():
    layer = moved(S4Layer(4, 16, length=50, generator=generator()))
    other = S4Layer(4, 16, length=200, generator=generator(1))
    other.load_state_dict(layer.state_dict())
    u = torch.randn(1, 60, 4, generator=generator(1))
    assert int(other.length) == 50 and torch.equal(other(u), layer(u))


# --- gradients ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind,method", KIND_AND_METHOD)
def test_gradients_are_the_finite_differences(kind, method):
    layer = moved(S4Layer(2, 4, kind=kind, discretisation=method, length=5, readout=1, generator=generator()).double())
    names, values = zip(*layer.named_parameters(), strict=True)
    u = torch.randn(1, 5, 2, dtype=torch.float64, generator=generator(1), requires_grad=True)

    def convolved(u, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (u,))

    assert torch.autograd.gradcheck(convolved, (u, *values))


@pytest.mark.parametrize("kind", KINDS)
def test_both_views_have_the_same_gradients(kind):
    layer = moved(S4Layer(3, 8, kind=kind, length=12, readout=2, generator=generator()).double())
    u = torch.randn(2, 12, 3, dtype=torch.float64, generator=generator(1))
    weigh = torch.randn(2, 12, 3, dtype=torch.float64, generator=generator(2))
    y, state = played(layer, u)
    convolution = (layer(u) * weigh).sum() + layer.read_sequence(u)[:, -1].sum()
    recurrence = (y * weigh).sum() + layer.read(state).sum()
    parameters = list(layer.parameters())
    for a, b in zip(
        torch.autograd.grad(convolution, parameters), torch.autograd.grad(recurrence, parameters), strict=True
    ):
        assert relative(a, b) < 1e-9


# --- playing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_holds_nothing_larger_than_the_state(kind):
    step = S4Layer(4, 64, kind=kind, generator=generator()).recurrence()
    assert max(x.numel() for x in step if x is not None) <= 4 * 64


def test_a_step_leaves_the_state_it_was_given():
    layer = S4Layer(4, 16, generator=generator())
    _, state = played(layer, torch.randn(1, 3, 4, generator=generator(1)))
    kept, u = state.x.clone(), torch.ones(1, 4)
    first, _ = layer.step(u, state)
    assert torch.equal(state.x, kept)
    assert torch.equal(layer.step(u, state)[0], first)


def test_a_recorded_state_goes_on_with_new_parameters():
    """What fine-tuning on single steps does: the state as recorded, the step anew, gradients through it."""
    layer = S4Layer(4, 16, generator=generator())
    with torch.no_grad():
        _, state = played(layer, torch.randn(1, 3, 4, generator=generator(1)))
        moved(layer)
    y, _ = layer.step(torch.ones(1, 4), S4State(state.x, layer.recurrence()))
    y.sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in layer.parameters())


# --- blocks ---------------------------------------------------------------------------------------------


def padded(lengths=(7, 3, 5), H=6, seed=1) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences with noise for padding, and the mask of what was played."""
    u = torch.randn(len(lengths), max(lengths), H, generator=generator(seed))
    return u, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def test_the_masked_norm_is_the_norm_of_what_was_played():
    u, mask = padded()
    masked, plain = MaskedBatchNorm(6), nn.BatchNorm1d(6)
    for _ in range(3):
        normed, expected = masked(u, mask), plain(torch.cat([u[k, :n] for k, n in enumerate(mask.sum(1))]))
        assert torch.equal(normed[mask], expected) and not normed[~mask].any()
    assert torch.equal(masked.mean[0], plain.running_mean)
    assert torch.equal(masked.variance[0], plain.running_var)
    assert torch.allclose(masked.step(u[:, 0]), plain.eval()(u[:, 0]), atol=1e-6)
    assert torch.equal(masked(u)[0], plain.train()(u.flatten(0, 1))[:7])


def test_each_turn_is_played_with_the_statistics_of_that_turn():
    u, mask = padded()
    norm = MaskedBatchNorm(6, n_turns=2)
    norm(5 + 3 * u, mask, turn=1)
    assert torch.equal(norm.mean[0], torch.zeros(6)) and torch.equal(norm.variance[0], torch.ones(6))
    steps = u[:2, 0]
    mixed = norm.step(steps, torch.tensor([0, 1]))
    apart = torch.stack([norm.step(steps, 0)[0], norm.step(steps, 1)[1]])
    assert torch.allclose(mixed, apart, atol=1e-6) and not torch.allclose(apart[1], norm.step(steps, 0)[1], atol=0.1)
    assert torch.allclose(norm.eval()(u, turn=1)[:2, 0], norm.step(steps, 1), atol=1e-6)


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_what_stands_in_the_padding_reaches_no_played_step(norm):
    stack = S4Stack(6, 8, norm=norm, dropout=0.0, length=7, generator=generator())
    u, mask = padded()
    other = torch.where(mask[..., None], u, torch.nan)
    assert torch.allclose(stack(u, mask)[mask], stack(other.nan_to_num(1e3), mask)[mask], atol=1e-5)


@pytest.mark.parametrize(
    "kind,norm,H", [("nplr", "batch", 96), ("s4d-lin", "batch", 96), ("nplr", "layer", 8), ("s4d-inv", "layer", 8)]
)
def test_a_stack_plays_as_it_was_trained(kind, norm, H):
    """500 steps in single precision, the first of MADS4's size, with the message that the state gives."""
    stack = S4Stack(H, H, kind=kind, norm=norm, readout=16, generator=generator())
    u = torch.randn(2, 500, H, generator=generator(1))
    with torch.no_grad():
        stack(u, generator=generator(2))  # moves the running statistics
        recurrence = stack.recurrence()
        played_in_training, _ = played(stack, u[:, :3], stack.initial_state(2, recurrence))
        stack.eval()
        steps, state = played(stack, u, stack.initial_state(2, recurrence))
        assert torch.equal(played_in_training, steps[:, :3])
        z, message = stack.forward_and_read(u)
        assert torch.equal(stack(u), z)
        assert relative(steps, z) < 1e-4
        assert relative(stack.read(state), message[:, -1]) < 1e-4


def test_three_blocks_and_mads4_s_encoders_have_the_stated_number_of_parameters():
    """MADS4, table 3: 12 % of 1.8 M; the layout with 71 observations, 2 agents and 5 actions has 212,933."""
    stack = S4Stack(96, 96, n_blocks=3, generator=generator())
    maps = [(71 + 2, 96), (5, 96), (1, 96), (96, 96), (4 * 96, 96), (96, 96), (96, 5), (96, 96)]
    encoders = sum(n_in * n_out + n_out for n_in, n_out in maps)
    total = sum(p.numel() for p in stack.parameters()) + encoders
    assert total == 212_933 and round(100 * total / 1.8e6) == 12


def test_kernels_made_once_serve_every_agent():
    stack = S4Stack(6, 8, length=9, readout=2, generator=generator()).eval()
    u = torch.randn(3, 9, 6, generator=generator(1))
    kernels = stack.kernels(9)
    for once, each in zip(stack.forward_and_read(u, kernels=kernels), stack.forward_and_read(u), strict=True):
        assert torch.equal(once, each)
    assert torch.equal(stack(u, kernels=kernels), stack(u))


def test_without_residual_a_block_is_its_maps_alone():
    block = S4Block(6, 8, residual=False, norm="layer", dropout=0.0, length=9, generator=generator())
    u = torch.randn(2, 9, 6, generator=generator(1))
    alone = nn.functional.gelu(block.mix(block.s4(nn.functional.layer_norm(u, (6,)))))
    assert torch.allclose(block(u), alone, atol=1e-6)
    block.residual = True
    assert torch.allclose(block(u), u + alone, atol=1e-6)


def test_dropout_comes_from_its_generator_and_keeps_the_mean():
    x = torch.ones(200, 500)
    kept = dropped(x, 0.2, generator())
    share = (kept == 0).float().mean().item()
    assert abs(share - 0.2) < 4 * np.sqrt(0.2 * 0.8 / x.numel())
    assert kept[kept > 0].unique().item() == pytest.approx(1.25)
    stack = S4Stack(6, 8, length=9, generator=generator())
    u = torch.randn(2, 9, 6, generator=generator(1))
    first, same, other = (stack(u, generator=generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, same) and not torch.equal(first, other)
    with pytest.raises(ValueError, match="generator must be given for training with dropout"):
        stack(u)


def test_layers_repeat_with_the_seed():
    first, same, other = (S4Stack(6, 8, length=9, generator=generator(seed)).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["blocks.0.s4.C"], other["blocks.0.s4.C"])


# --- optimiser ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_parameter_groups_hold_every_parameter_once_and_decay_spares_the_state_matrix(kind):
    stack = S4Stack(6, 8, kind=kind, generator=generator())
    own, rest = parameter_groups(stack, lr=2e-3, s4_lr=1e-3, weight_decay=0.05)
    assert (own["weight_decay"], own["lr"], rest["weight_decay"], rest["lr"]) == (0.0, 1e-3, 0.05, 2e-3)
    names = {id(p): name for name, p in stack.named_parameters()}
    in_own, in_rest = (sorted(names.pop(id(p)) for p in group["params"]) for group in (own, rest))
    spared = ["B", "P", "im", "log_dt", "log_re"] if kind == "nplr" else ["B", "im", "log_dt", "log_re"]
    assert in_own == [f"blocks.{k}.s4.{name}" for k in range(3) for name in spared]
    assert not names and {"blocks.0.s4.C", "blocks.0.s4.D", "blocks.0.mix.weight"} <= set(in_rest)


# --- bad input ------------------------------------------------------------------------------------------


def test_bad_input_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match="N must be an even number of states"):
        S4Layer(4, 7, generator=generator())
    with pytest.raises(ValueError, match="kind must be one of nplr, s4d-legs, s4d-lin, s4d-inv; got 's5'"):
        S4Layer(4, 8, kind="s5", generator=generator())
    with pytest.raises(ValueError, match="discretisation of kind 'nplr' must be bilinear; got 'zoh'"):
        S4Layer(4, 8, discretisation="zoh", generator=generator())
    with pytest.raises(ValueError, match="length must be >= 0"):
        S4Layer(4, 8, length=-1, generator=generator())
    with pytest.raises(ValueError, match="norm must be one of batch, layer"):
        S4Block(4, 8, norm="group", generator=generator())
    with pytest.raises(ValueError, match="n_blocks must be >= 1"):
        S4Stack(4, 8, n_blocks=0, generator=generator())
    with pytest.raises(ValueError, match="dropout must be a share"):
        S4Block(4, 8, dropout=1.0, generator=generator())
    layer = S4Layer(4, 8, generator=generator())
    with pytest.raises(ValueError, match=r"u must have shape \(B, L, H = 4\); got \(2, 5, 3\)"):
        layer(torch.zeros(2, 5, 3))
    with pytest.raises(ValueError, match=r"u_t must have shape \(B, H = 4\); got \(2, 5, 4\)"):
        layer.step(torch.zeros(2, 5, 4), layer.initial_state(2))
