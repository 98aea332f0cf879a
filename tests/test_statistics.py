"""Summaries and intervals of scores, held against closed forms, scipy, and the coverage they claim."""

import doctest
import re
from itertools import product

import numpy as np
import pytest
from scipy import stats

from fedmorl.evaluation import statistics
from fedmorl.evaluation.statistics import (
    Estimate,
    Paired,
    bootstrap_interval,
    difference,
    iqm,
    mean,
    mean_interval,
    paired,
    performance_profile,
    probability_of_improvement,
    probability_of_improvement_interval,
)

Z = stats.norm.ppf(0.975)


def generator(seed=0):
    return np.random.default_rng(seed)


def normal_scores(n_runs=10, n_tasks=8, seed=0):
    """Tasks of different level and spread, so that a mix-up of tasks shows."""
    levels, spreads = np.arange(n_tasks), 1 + np.arange(n_tasks) / 2
    return levels + spreads * generator(seed).standard_normal((n_runs, n_tasks))


def monte_carlo_sd(standard_error, n_resamples):
    """Of the 2.5 % quantile of `n_resamples` normal draws: sqrt(q (1 - q) / n) over the density there."""
    return np.sqrt(0.025 * 0.975 / n_resamples) / (stats.norm.pdf(Z) / standard_error)


def test_examples_in_the_docstrings_hold():
    result = doctest.testmod(statistics)
    assert result.attempted >= 2
    assert result.failed == 0


# ------------------------------------------------------------------------------------------- summaries


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 10, 11, 100])
def test_interquartile_mean_of_the_first_integers_is_half_the_last(n):
    assert iqm(generator().permutation(n + 1)) == n / 2  # symmetric: whatever is cut, the middle stays


def test_interquartile_mean_drops_a_quarter_rounded_down_at_each_end():
    squares = np.arange(10) ** 2  # 10 scores: 2 go at each end, 4 9 16 25 36 49 stay
    assert iqm(squares[::-1]) == 139 / 6
    assert iqm([0, 0, 90]) == 30  # 3 scores: all stay


@pytest.mark.parametrize("shape", [(3,), (10,), (10, 1), (5, 3), (10, 8), (7, 9)])
def test_interquartile_mean_equals_scipys_trimmed_mean_of_the_pool(shape):
    scores = generator().gumbel(size=shape)
    assert iqm(scores) == pytest.approx(stats.trim_mean(scores, 0.25, axis=None), rel=1e-14)


def test_summaries_take_leading_axes_and_reduce_runs_and_tasks():
    scores = generator().gumbel(size=(4, 3, 10, 8))
    for summary in (mean, iqm):
        assert summary(scores).shape == (4, 3)
        assert summary(scores)[2, 1] == summary(scores[2, 1])
    assert mean(scores)[1, 2] == pytest.approx(scores[1, 2].sum() / 80, rel=1e-14)
    assert mean([1, 2, 6]) == 3


def test_performance_profile_counts_runs_above_tau():
    scores = np.array([[1, 2], [3, 2], [5, 2]])
    np.testing.assert_allclose(performance_profile(scores, [0, 1, 2, 2.5, 5]), [1, 5 / 6, 2 / 6, 2 / 6, 0], rtol=1e-15)


# --------------------------------------------------------------------------------------- t intervals


def test_mean_interval_of_five_known_numbers():
    # 1..5: sd = sqrt(2.5), standard error sqrt(0.5), t(0.975, 4) = 2.776445 in any table
    got = mean_interval([5, 3, 1, 4, 2])
    assert (got.value, got.n) == (3, 5)
    assert got.high - 3 == pytest.approx(2.776445 * np.sqrt(0.5), abs=1e-6)  # the table's six decimals
    assert got.low + got.high == pytest.approx(6, rel=1e-15)


@pytest.mark.parametrize("shape", [(2,), (10,), (10, 8)])
def test_mean_interval_equals_scipys_over_runs(shape):
    scores = generator(1).gumbel(size=shape)
    over_runs = scores.reshape(shape[0], -1).mean(axis=1)
    got, known = mean_interval(scores), stats.ttest_1samp(over_runs, 0).confidence_interval(0.95)
    assert (got.value, got.low, got.high) == pytest.approx((over_runs.mean(), *known), rel=1e-12)
    assert got.n == shape[0]


@pytest.mark.parametrize("shape", [(3,), (10, 4)])
def test_mean_interval_covers_the_mean_of_normal_scores_in_95_percent(shape):
    n_sets, rng = 4_000, generator(2)
    found = [mean_interval(rng.standard_normal(shape)) for _ in range(n_sets)]
    covered = np.mean([e.low <= 0 <= e.high for e in found])
    assert abs(covered - 0.95) < 4 * np.sqrt(0.95 * 0.05 / n_sets)


# ----------------------------------------------------------------------------------------- bootstrap


@pytest.mark.parametrize("summary", [mean, iqm])
@pytest.mark.parametrize("n_tasks", [1, 4])
def test_bootstrap_interval_equals_scipys_percentiles_of_independent_tasks(summary, n_tasks):
    scores, n_resamples = normal_scores(10, n_tasks), 20_000
    got = bootstrap_interval(scores, summary, generator(3), n_resamples=n_resamples)
    known = stats.bootstrap(
        tuple(scores.T),  # several samples: scipy resamples each on its own, which is a stratum
        lambda *tasks, axis: summary(np.stack(tasks, axis=-1)),
        n_resamples=n_resamples,
        method="percentile",
        rng=generator(4),
        vectorized=True,
    )
    four_sigma = 4 * np.sqrt(2) * monte_carlo_sd(known.standard_error, n_resamples)
    assert got.value == pytest.approx(float(summary(scores)), rel=1e-14)
    assert abs(got.low - known.confidence_interval.low) < four_sigma
    assert abs(got.high - known.confidence_interval.high) < four_sigma
    assert four_sigma < 0.06 * (got.high - got.low)  # or the comparison would say little


def test_bootstrap_interval_of_two_runs_has_the_three_means_of_their_resamples():
    # (0, 0), (0, 1) or (1, 0), (1, 1): both ends hold a quarter of the resamples
    assert bootstrap_interval([0, 1], mean, generator()) == Estimate(0.5, 0, 1, n=2)


@pytest.mark.parametrize("n_runs, n_tasks, documented", [(5, 1, 0.839), (10, 1, 0.899), (10, 8, 0.928)])
def test_bootstrap_interval_covers_as_little_as_documented(n_runs, n_tasks, documented):
    n_sets, rng = 2_000, generator(5)
    sets = rng.standard_normal((n_sets, n_runs, n_tasks))
    found = [bootstrap_interval(scores, mean, rng, n_resamples=500) for scores in sets]
    covered = np.mean([e.low <= 0 <= e.high for e in found])
    # to first order the bounds are mean -+ 1.96 sd sqrt((R - 1) / R) / sqrt(R M): a t variable of (R - 1) M degrees
    first_order = 1 - 2 * stats.t.sf(Z * np.sqrt(1 - 1 / n_runs), (n_runs - 1) * n_tasks)
    four_sigma = 4 * np.sqrt(documented * (1 - documented) / n_sets)
    assert abs(documented - first_order) < 0.01  # the docstring's "to 1 point"
    assert abs(covered - documented) < four_sigma
    assert f"{100 * documented:.1f}" in bootstrap_interval.__doc__
    if n_runs == 10:
        assert 0.88 - four_sigma < covered < 0.95


def test_a_task_without_spread_adds_no_width():
    scores = normal_scores(10, 1)
    alone = bootstrap_interval(scores, mean, generator(6), n_resamples=20_000)
    beside = np.hstack([scores, np.full((10, 1), 50.0)])  # drawn across tasks it would add about 15 to the width
    shared = bootstrap_interval(beside, mean, generator(7), n_resamples=20_000)
    tolerance = 4 * np.sqrt(2) * monte_carlo_sd(scores.std() / np.sqrt(10), 20_000)
    for end in ("low", "high"):
        assert abs(2 * getattr(shared, end) - 50 - getattr(alone, end)) < tolerance
    constant = np.tile(np.arange(8.0), (10, 1))
    assert bootstrap_interval(constant, mean, generator()) == Estimate(3.5, 3.5, 3.5, n=10)
    assert bootstrap_interval(constant, iqm, generator()) == Estimate(3.5, 3.5, 3.5, n=10)


def test_tasks_are_resampled_independently_of_each_other():
    column = normal_scores(10, 1)
    twins = bootstrap_interval(np.repeat(column, 4, axis=1), mean, generator(8), n_resamples=20_000)
    single = bootstrap_interval(column, mean, generator(9), n_resamples=20_000)
    # rows drawn whole would leave the width as it is; four independent tasks halve it. Monte Carlo: two bounds each,
    # 0.019 standard errors a bound, over a width of 3.9 standard errors
    ratio = (twins.high - twins.low) / (single.high - single.low)
    assert ratio == pytest.approx(0.5, abs=0.5 * 4 * np.sqrt(4) * 0.019 / 3.9 + 0.01)  # 0.01: tails not quite normal


def test_order_of_runs_within_a_task_does_not_matter_to_the_bit():
    x, y = normal_scores(seed=10), normal_scores(seed=11)
    shuffled = generator(12).permuted(x, axis=0)
    assert (shuffled != x).any()
    for summary in (mean, iqm):
        assert bootstrap_interval(shuffled, summary, generator()) == bootstrap_interval(x, summary, generator())
    for a, b in ((shuffled, y), (y, shuffled)):
        same = (x, y) if a is shuffled else (y, x)
        assert probability_of_improvement_interval(a, b, generator()) == probability_of_improvement_interval(
            *same, generator()
        )


def test_same_stream_same_answer_and_another_stream_another():
    x, y = normal_scores(20, 3, seed=13), normal_scores(20, 3, seed=14)
    for answer in (
        lambda rng: bootstrap_interval(x, mean, rng),
        lambda rng: probability_of_improvement_interval(x, y, rng),
        lambda rng: paired(x, y, rng),
    ):
        assert answer(generator(1)) == answer(generator(1)) != answer(generator(2))


def test_own_statistics_are_bootstrapped_as_they_are():
    scores = normal_scores()
    got = bootstrap_interval(scores, lambda x: x.max(axis=(-2, -1)), generator())
    assert got.value == got.high == scores.max() > got.low
    profile = bootstrap_interval(scores, lambda x: (x > 3).mean(axis=(-2, -1)), generator())
    assert profile.low < profile.value == performance_profile(scores, [3])[0] < profile.high
    scores[:, 1:] += 100  # a task keeps its column: the first one's mean knows nothing of the others
    first = bootstrap_interval(scores, lambda x: x[..., 0].mean(axis=-1), generator())
    assert scores[:, 0].min() < first.low < first.value < first.high < scores[:, 0].max()


# ------------------------------------------------------------------------- probability of improvement


@pytest.mark.parametrize("n_tasks", [1, 3])
def test_probability_of_improvement_is_u_over_pairs_with_ties(n_tasks):
    x, y = (generator(s).integers(5, size=(n, n_tasks)) / 4 for s, n in ((15, 7), (16, 11)))
    u = stats.mannwhitneyu(x, y, axis=0).statistic
    assert probability_of_improvement(x, y) == pytest.approx(np.mean(u / 77), rel=1e-14)
    assert probability_of_improvement(y, x) == pytest.approx(1 - np.mean(u / 77), rel=1e-14)


def test_probability_of_improvement_of_known_normals():
    x, y = 1 + generator(17).standard_normal(1_000), 2 * generator(18).standard_normal(1_500)
    p = stats.norm.cdf(1 / np.sqrt(1 + 4))
    assert abs(probability_of_improvement(x, y) - p) < 4 * np.sqrt(p * (1 - p) / 1_000)  # U's variance is below this


def test_probability_of_improvement_at_its_ends_and_in_its_middle():
    x = normal_scores(5, 3)
    assert probability_of_improvement(x, x) == 0.5
    assert probability_of_improvement(x + 100, x) == 1
    assert probability_of_improvement(x - 100, x) == 0
    assert probability_of_improvement_interval(x + 100, x, generator()) == Estimate(1, 1, 1, n=5)
    one_task_won = np.column_stack([x[:, 0] + 100, x[:, 1] - 100, x[:, 2] - 100])
    assert probability_of_improvement(one_task_won, x) == pytest.approx(1 / 3, rel=1e-15)


@pytest.mark.parametrize("n_tasks", [1, 3])
def test_interval_of_the_probability_of_improvement_equals_scipys(n_tasks):
    x, y = generator(19).integers(12, size=(9, n_tasks)), generator(20).integers(10, size=(12, n_tasks))
    n_resamples = 5_000

    def by_resampled_scores(*columns, axis):
        """The plain route: every resample compared run by run."""
        a, b = np.stack(columns[:n_tasks]), np.stack(columns[n_tasks:])
        a, b = a[..., :, None], b[..., None, :]
        return ((a > b) + (a == b) / 2).mean(axis=(0, -2, -1))

    got = probability_of_improvement_interval(x, y, generator(21), n_resamples=n_resamples)
    known = stats.bootstrap(
        (*x.T, *y.T),
        by_resampled_scores,
        n_resamples=n_resamples,
        method="percentile",
        rng=generator(22),
        vectorized=True,
    )
    four_sigma = 4 * np.sqrt(2) * monte_carlo_sd(known.standard_error, n_resamples)
    assert (got.value, got.n) == (pytest.approx(probability_of_improvement(x, y), rel=1e-14), 9)
    assert abs(got.low - known.confidence_interval.low) < four_sigma
    assert abs(got.high - known.confidence_interval.high) < four_sigma


# -------------------------------------------------------------------------------------------- paired


@pytest.mark.parametrize("n_tasks", [1, 4])
def test_paired_interval_equals_scipys_paired_t(n_tasks):
    x, y = normal_scores(10, n_tasks, seed=23), normal_scores(10, n_tasks, seed=24)
    got = paired(x, y, generator()).difference
    known = stats.ttest_rel(x.mean(axis=1), y.mean(axis=1)).confidence_interval(0.95)
    assert (got.low, got.high) == pytest.approx(tuple(known), rel=1e-12)
    assert (got.value, got.n) == (pytest.approx(x.mean() - y.mean(), rel=1e-12), 10)


@pytest.mark.parametrize(
    "difference, p",
    [
        ([1, 1], 2 / 4),
        ([1, 2, 3, 4, 5], 2 / 32),  # five seeds, all better: not below 0.05
        ([-1, -2, -3, -4, -5, -6], 2 / 64),
        ([-1, 2, 3], 4 / 8),  # |sums| 4 4 0 0 2 2 6 6: 4 or more in four
        ([1, -1], 1),
        ([0, 0, 0], 1),
        ([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], 2 / 4096),
    ],
)
def test_sign_flip_p_by_hand(difference, p):
    base = generator(25).integers(100, size=len(difference))
    assert paired(base + difference, base, generator()).p_value == p
    assert paired(base, base + difference, generator()).p_value == p


@pytest.mark.parametrize("n_runs", [4, 7, 12])
def test_sign_flip_p_equals_scipys_exact_permutation_test(n_runs):
    x, y = generator(26).integers(6, size=(2, n_runs))  # small integers: many ties among the sums
    known = stats.permutation_test(
        (x, y),
        lambda a, b, axis: (a - b).sum(axis=axis),
        permutation_type="samples",
        n_resamples=np.inf,
        vectorized=True,
    )
    assert paired(x, y, generator()).p_value == pytest.approx(known.pvalue, rel=1e-14)


def test_sign_flip_p_counts_ties_that_rounding_hides():
    x, y = np.array([0.3, 0.2, 0.8]), np.array([0.2, 0.1, 0.9])  # tenths: 0.1, 0.1, -0.1, three numbers in binary
    assert len(set((x - y).tolist())) == 3
    assert paired(x, y, generator()).p_value == 1
    tasks = np.array([[0.1, 0.2, 0.3], [0.7, 0.1, 0.1], [0.2, 0.6, 0.1]])  # means 0.2, 0.3, 0.3
    assert paired(tasks, np.full((3, 3), 0.4), generator()).p_value == 2 / 8
    assert paired(tasks, tasks[:, ::-1], generator()).p_value == 1
    assert paired(np.zeros(3), np.zeros(3), generator()).p_value == 1


def test_sign_flip_p_is_enumerated_to_twelve_pairs_and_drawn_beyond():
    x, y = generator(27).standard_normal((2, 13))
    x = x + 0.5
    assert len({paired(x[:12], y[:12], generator(seed)).p_value for seed in range(3)}) == 1
    assert len({paired(x, y, generator(seed)).p_value for seed in range(3)}) > 1
    sums = np.abs(np.array(list(product((-1, 1), repeat=13))) @ (x - y))
    exact = np.mean(sums >= abs((x - y).sum()) * (1 - 1e-12))  # continuous: no ties but the pattern and its mirror
    n_resamples = 50_000
    drawn = paired(x, y, generator(28), n_resamples=n_resamples).p_value
    assert abs(drawn - exact) < 4 * np.sqrt(exact * (1 - exact) / n_resamples)
    # 2^-39 of the patterns are as extreme: none is drawn, and p is still not 0
    assert paired(np.arange(1, 41), np.zeros(40), generator(), n_resamples=999).p_value == 1 / 1_000


def test_sign_flip_test_rejects_a_true_null_at_its_rate():
    # R = 6 continuous: p takes the values k / 32, each equally often, so p <= 4/32 has odds 1/8
    n_sets, differences = 4_000, generator(29).standard_normal((4_000, 6))
    rejected = np.mean([paired(d, np.zeros(6), generator()).p_value <= 4 / 32 for d in differences])
    assert abs(rejected - 1 / 8) < 4 * np.sqrt(1 / 8 * 7 / 8 / n_sets)


# ------------------------------------------------------------------------------------- words and edges


@pytest.mark.parametrize(
    "estimate, text",
    [
        (Estimate(0.79512, 0.79011, 0.80092, n=10), "0.795 [0.790, 0.801], n = 10"),
        (Estimate(0.5, 0.25, 0.75, n=2), "0.50 [0.25, 0.75], n = 2"),
        (Estimate(12_345.6, 12_300.2, 12_390.9, n=3), "12346 [12300, 12391], n = 3"),
        (Estimate(-0.00012345, -0.000131, -0.000115, n=5), "-0.000123 [-0.000131, -0.000115], n = 5"),
        (Estimate(0.1 + 0.2, 0.3, 0.3, n=4), "0.3 [0.3, 0.3], n = 4"),
    ],
)
def test_an_estimate_reads_to_two_digits_of_its_width(estimate, text):
    assert str(estimate) == text
    assert str(Paired(estimate, 0.03125)) == f"{text}, p = 0.031"


GOOD = np.arange(6.0).reshape(3, 2)
HOLED = np.where(GOOD == 3, np.nan, GOOD)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: mean([]), r"^scores must hold at least one number, .* got \[\]"),
        (lambda: iqm(3.0), r"^scores must hold at least one number, .* got 3\.0"),
        (lambda: iqm(HOLED), r"^scores must be finite, .*; scores\[1, 1\] is nan"),
        (lambda: mean([1, np.inf]), r"^scores must be finite, .*; scores\[1\] is inf"),
        (lambda: mean([[1, 2], [3]]), r"^scores must be numbers, as many runs for each task; "),
        (lambda: mean(["a"]), r"^scores must be numbers, .*'a'"),
        (lambda: mean_interval([1.0]), r"^scores must hold at least 2 runs, .* got 1"),
        (lambda: mean_interval([[1.0, 2.0]]), r"^scores must hold at least 2 runs, .* got 1"),
        (lambda: mean_interval(HOLED), r"^scores must be finite"),
        (lambda: mean_interval(np.ones((2, 2, 2))), r"^scores must have shape \(runs,\) or .* got \(2, 2, 2\)"),
        (lambda: performance_profile(HOLED, [1]), r"^scores must be finite"),
        (lambda: performance_profile(GOOD, [np.nan]), r"^taus must be finite.*taus\[0\] is nan"),
        (lambda: performance_profile(GOOD, [[1]]), r"^taus must be one list .* got shape \(1, 1\)"),
        (lambda: bootstrap_interval([1.0], mean, generator()), r"^scores must hold at least 2 runs"),
        (lambda: bootstrap_interval(HOLED, mean, generator()), r"^scores must be finite"),
        (lambda: bootstrap_interval(GOOD, mean, 0), r"^rng must be a numpy\.random\.Generator, .* got 0"),
        (
            lambda: bootstrap_interval(GOOD, mean, generator(), n_resamples=99),
            r"^n_resamples must .* >= 100, .* got 99",
        ),
        (lambda: bootstrap_interval(GOOD, mean, generator(), n_resamples=1e3), r"^n_resamples must .* got 1000\.0"),
        (
            lambda: bootstrap_interval(GOOD, np.mean, generator()),
            r"^statistic must reduce the last two axes, .* \(\) of",
        ),
        (lambda: bootstrap_interval(GOOD, lambda x: x.mean(-1), generator()), r"^statistic must .* \(2000, 3\) of"),
        (lambda: bootstrap_interval(GOOD, lambda x: np.nan * mean(x), generator()), r"^statistic must be finite"),
        (lambda: probability_of_improvement(GOOD, GOOD[:, :1]), r"^x and y must hold the same tasks, .* got 2 and 1"),
        (lambda: probability_of_improvement(GOOD, HOLED), r"^y must be finite"),
        (lambda: probability_of_improvement_interval(GOOD, GOOD[:1], generator()), r"^y must hold at least 2 runs"),
        (lambda: probability_of_improvement_interval(GOOD, GOOD, None), r"^rng must be .* got None"),
        (lambda: paired(GOOD, GOOD[:2], generator()), r"^x and y must pair row by row; .* \(3, 2\) and \(2, 2\)"),
        (lambda: paired(GOOD[:1], GOOD[:1], generator()), r"^x must hold at least 2 runs"),
        (lambda: paired(HOLED, GOOD, generator()), r"^x must be finite"),
        (lambda: paired(GOOD, GOOD, generator(), n_resamples=0), r"^n_resamples must"),
        (lambda: paired(GOOD, GOOD, np.random), r"^rng must be"),
    ],
)
def test_bad_input_gets_one_clear_sentence(call, message):
    with np.errstate(invalid="ignore"), pytest.raises(ValueError, match=message) as refusal:
        call()
    assert not re.search(r"\n", str(refusal.value))


def test_scores_are_left_as_they_were():
    x, y = normal_scores(seed=30), normal_scores(seed=31)
    x_before, y_before = x.copy(), y.copy()
    iqm(x), mean_interval(x), bootstrap_interval(x, iqm, generator()), performance_profile(x, [0])
    probability_of_improvement_interval(x, y, generator()), paired(x, y, generator())
    np.testing.assert_array_equal(x, x_before)
    np.testing.assert_array_equal(y, y_before)


def test_difference_equals_scipys_welch_interval():
    rng = np.random.default_rng(4)
    x, y = rng.normal(1, 2, 5), rng.normal(0, 0.5, 10)
    known = stats.ttest_ind(x, y, equal_var=False).confidence_interval(0.95)
    got = difference(x, y)
    assert (got.low, got.high) == pytest.approx((known.low, known.high), rel=1e-12)
    assert got.value == pytest.approx(x.mean() - y.mean()) and got.n == 15


def test_difference_without_spread_has_no_width():
    got = difference([2, 2], [1, 1, 1])
    assert (got.value, got.low, got.high) == (1, 1, 1)
