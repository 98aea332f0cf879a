"""Two-hot codes and denoising diffusion: against formulas written here in another way, and against a public library."""

import math

import numpy as np
import pytest
import torch

from fedmorl.nn.diffusion import (
    cosine_alpha_bar,
    ddim,
    ddim_step,
    ddpm_posterior,
    implied_noise,
    noised,
    trailing_levels,
)
from fedmorl.nn.two_hot import TwoHot


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- two-hot --------------------------------------------------------------------------------------------


def by_loop(x, code):
    """The two-hot code of one number, bin by bin (the form of TD-MPC2's: floor, offset, scatter)."""
    step = (code.high - code.low) / (code.n_bins - 1)
    x = min(max(x, code.low), code.high)
    index = math.floor((x - code.low) / step)
    offset = (x - code.low) / step - index
    weights = [0.0] * code.n_bins
    weights[index] = 1 - offset
    weights[(index + 1) % code.n_bins] += offset
    return weights


def test_a_code_is_the_formula_of_one_number():
    code, x = TwoHot(-4, 4, 41), 3 * drawn(200, seed=1).double()
    expected = torch.tensor([by_loop(float(v), code) for v in x], dtype=torch.float64)
    assert torch.allclose(code.encode(x), expected, atol=1e-12)


@pytest.mark.parametrize("code", [TwoHot(-1, 1, 21), TwoHot(-4, 4, 41)])
def test_a_number_comes_back_from_its_code(code):
    x = torch.linspace(code.low, code.high, 1001)
    assert (code.encode(x) @ code.bins - x).abs().max() <= 1e-6
    assert torch.allclose(code.mean((code.encode(x.double()) + 1e-300).log()), x.double(), atol=1e-6)


def test_two_neighbours_share_the_weight_and_the_ends_take_what_is_outside():
    code = TwoHot(-1, 1, 21)
    weights = code.encode(torch.tensor([-7.0, 7.0, 0.03]))
    assert torch.allclose(weights.sum(-1), torch.ones(3))
    assert weights[0, 0] == 1 and weights[1, -1] == 1
    assert weights[2].nonzero().ravel().tolist() == [10, 11]


def test_the_least_loss_is_at_the_code_itself():
    code, x = TwoHot(-1, 1, 21), torch.tensor([0.234])
    best = code.loss((code.encode(x) + 1e-30).log(), x)
    entropy = -(code.encode(x)[code.encode(x) > 0] * code.encode(x)[code.encode(x) > 0].log()).sum()
    assert best == pytest.approx(float(entropy), abs=1e-5)
    assert all(code.loss(drawn(1, 21, seed=k), x) > best for k in range(20))


@pytest.mark.parametrize("n_levels", [4, 8, 10])
def test_a_level_is_picked_from_its_own_code(n_levels):
    code = TwoHot(-1, 1, 21)
    levels = torch.linspace(-1, 1, n_levels)
    log_p = code.pick((code.encode(levels) + 1e-6).log(), n_levels)
    assert log_p.argmax(-1).tolist() == list(range(n_levels))
    assert torch.allclose(log_p.exp().sum(-1), torch.ones(n_levels))


def test_a_code_without_room_is_refused():
    with pytest.raises(ValueError, match="low must be below high and n_bins >= 2; got 1, 1, 5"):
        TwoHot(1, 1, 5)


# --- diffusion ------------------------------------------------------------------------------------------


def reference_alpha_bar(n=100):
    """The cosine schedule in closed form, with its cap on beta, in double precision."""
    f = np.cos((np.arange(n + 1) / n + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.cumprod(np.maximum(f[1:] / f[:-1], 1 - 0.999))


def test_the_schedule_is_a_squared_cosine():
    found = cosine_alpha_bar().double().numpy()
    np.testing.assert_allclose(found, reference_alpha_bar(), rtol=2e-5)
    s = np.arange(1, 100) / 100  # below the cap it is f(s) / f(0)
    direct = np.cos((s + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(found[:-1], direct, rtol=2e-5)


def test_levels_trail():
    assert trailing_levels(5) == [99, 79, 59, 39, 19] and trailing_levels(1) == [99]
    with pytest.raises(ValueError, match="ddim_steps must divide the 100 noise levels"):
        trailing_levels(3)


def test_noise_is_recovered_and_a_step_to_no_noise_is_the_sample():
    x0, eps, ab = drawn(4, 3, 2), drawn(4, 3, 2, seed=1), cosine_alpha_bar()[torch.tensor([5, 30, 60, 90])]
    x = noised(x0, eps, ab)
    for k in range(4):
        assert torch.allclose(implied_noise(x[k], x0[k], ab[k]), eps[k], atol=1e-4)
    assert torch.equal(ddim_step(x0, eps, torch.ones(())), x0)


def step_as_published(x, x0, t, before, ab):
    """DDIM, Song et al. (2021), Eq. (12) with sigma = 0, in double precision and without our helpers."""
    a, b = ab[t], (ab[before] if before >= 0 else 1.0)
    eps = (x - a**0.5 * x0) / (1 - a) ** 0.5
    return b**0.5 * x0 + (1 - b) ** 0.5 * eps


def test_every_step_is_the_published_one():
    ab, known = reference_alpha_bar(), drawn(2, 3)
    seen, x = [], drawn(2, 4, 3, seed=2)

    def guess(x, level):
        seen.append((x.clone(), level))
        return torch.tanh(x) * 0.7

    last = ddim(x, guess, 5, cosine_alpha_bar(), known)
    after = [*(x for x, _ in seen[1:]), last]
    for (x, level), following in zip(seen, after, strict=True):
        expected = step_as_published(x.double(), torch.tanh(x.double()) * 0.7, level, level - 20, ab)
        assert (following[:, 1:] - expected[:, 1:]).abs().max() <= 1e-5
        assert torch.equal(following[:, 0], known)


def test_every_step_is_the_librarys():
    """diffusers' own scheduler; its default clips the sample and spaces levels otherwise."""
    scheduling = pytest.importorskip("diffusers", reason="needs the extra: pip install -e '.[oracle]'")
    scheduler = scheduling.DDIMScheduler(
        num_train_timesteps=100,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        clip_sample=False,
        timestep_spacing="trailing",
    )
    ours = cosine_alpha_bar()
    assert (scheduler.alphas_cumprod - ours).abs().max() <= 1e-5
    for n_steps in (5, 10, 20):
        scheduler.set_timesteps(n_steps)
        levels = trailing_levels(n_steps)
        assert scheduler.timesteps.tolist() == levels
        x = drawn(3, 16, 16)
        for level, after in zip(levels, [*levels[1:], None], strict=True):
            x0 = torch.tanh(x)
            theirs = scheduler.step(x0, level, x, eta=0.0).prev_sample
            ab_next = torch.ones(()) if after is None else ours[after]
            mine = ddim_step(x0, implied_noise(x, x0, ours[level]), ab_next)
            assert (mine - theirs).abs().max() <= 1e-5
            x = theirs


def test_the_posterior_is_bayes():
    """Mean and variance of x_{t-1} given x_t and x_0, from the product of two normal densities on a grid."""
    ab, t, x_t, x_0 = cosine_alpha_bar().double(), 40, torch.tensor(0.7).double(), torch.tensor(-0.4).double()
    mean, variance = ddpm_posterior(x_t, x_0, t, ab)
    alpha, grid = ab[t] / ab[t - 1], torch.linspace(-8, 8, 200_001, dtype=torch.float64)
    density = torch.exp(
        -((x_t - alpha.sqrt() * grid) ** 2) / (2 * (1 - alpha))
        - (grid - ab[t - 1].sqrt() * x_0) ** 2 / (2 * (1 - ab[t - 1]))
    )
    density = density / density.sum()
    found = (density * grid).sum()
    assert mean == pytest.approx(float(found), abs=1e-6)
    assert variance == pytest.approx(float((density * (grid - found) ** 2).sum()), rel=1e-5)


def test_a_perfect_guess_gives_the_sample_whatever_the_steps():
    x0 = drawn(2, 4, 3)
    for n_steps in (1, 5, 20):
        found = ddim(drawn(2, 4, 3, seed=9), lambda x, level: x0, n_steps, cosine_alpha_bar(), x0[:, 0])
        assert torch.allclose(found, x0, atol=1e-6)
