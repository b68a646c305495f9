"""The test of the gate: its size by exact sums and by simulation, its power as it is printed, against
plain references.
"""

import math

import numpy as np
import pytest
from scipy import optimize, special, stats

from titer.scoring.noninferiority import (
    EXACT,
    JudgeCounts,
    Paired,
    count_pairs,
    count_to_decide,
    limits,
    power,
    quantile,
    score,
)
from titer.scoring.statistics import effective, wilson

ALPHA, MARGIN, DRAWS = 0.05, 0.08, 2000
# of 2000 draws, as many passes at the margin as a rate of 5 % shows in 99 of 100 simulations
ALLOWED = int(stats.binom.ppf(0.99, DRAWS, ALPHA))


def plain(worse, better, size):
    """Prompts that do not repeat."""
    return Paired(worse, better, size, round(size), round(size))


def likelihood(q, margin, worse, better, n):
    return (
        special.xlogy(worse, q + margin)
        + special.xlogy(better, q)
        + special.xlogy(n - worse - better, 1 - 2 * q - margin)
    )


@pytest.mark.parametrize("margin", [0.03, 0.1, -0.04])
@pytest.mark.parametrize(
    ("worse", "better", "n"), [(4, 9, 100), (12, 1, 60), (0, 3, 40), (3, 0, 40), (30, 25, 80)]
)
def test_the_score_is_that_of_the_likeliest_shares_at_the_margin(worse, better, n, margin):
    found = optimize.minimize_scalar(
        lambda q: -likelihood(q, margin, worse, better, n),
        bounds=(max(0.0, -margin), (1 - margin) / 2),
        method="bounded",
        options={"xatol": 1e-10},
    )
    apart = 2 * found.x + margin  # the share of prompts that tell the models apart
    spread = math.sqrt(n * (apart - margin**2))
    step = (1 + (worse + better) / n) / 2
    expected = (worse - better - n * margin + step) / spread
    assert score(plain(worse, better, n), margin) == pytest.approx(expected, abs=2e-3)


def passes(n, margin, alpha):
    """All pairs of counts with which a candidate is within the margin."""
    worse, better = np.meshgrid(np.arange(n + 1), np.arange(n + 1), indexing="ij")
    kept = [
        (b, c)
        for b, c in zip(worse.ravel().tolist(), better.ravel().tolist(), strict=True)
        if b + c <= n and score(plain(b, c, n), margin) < -quantile(alpha)
    ]
    return np.array(kept or [(0, n + 1)]).T


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.1])
@pytest.mark.parametrize("n", [30, 47, 60, 100])
@pytest.mark.parametrize("margin", [0.02, 0.05, 0.1])
def test_at_most_alpha_of_the_candidates_at_the_margin_pass_whatever_the_base_is(n, margin, alpha):
    """Exact sums over all counts, at many shares of prompts on which the base alone is bad."""
    b, c = passes(n, margin, alpha)
    if c.max() > n:
        return  # so few prompts show nothing
    coefficient = (
        special.gammaln(n + 1)
        - special.gammaln(b + 1)
        - special.gammaln(c + 1)
        - special.gammaln(n - b - c + 1)
    )
    for better in np.linspace(0, (1 - margin) / 2, 40):
        logs = special.xlogy(b, better + margin) + special.xlogy(c, better)
        logs += special.xlogy(n - b - c, max(1 - 2 * better - margin, 0.0))
        assert np.exp(coefficient + logs).sum() <= alpha * 1.001, better


def test_without_the_correction_it_would_be_more():
    """One at 300 prompts and two points: of six bad answers that are expected, two pass."""
    assert stats.binom.cdf(2, 300, 0.02) > 0.06
    bare = (2 - 6) / math.sqrt(300 * 0.02 * 0.98)
    assert bare < -quantile(ALPHA) < score(plain(2, 0, 300), 0.02)


def draw(rng, questions, wordings, worse, better, alike):
    """Pairs of answers: wordings of a question fare alike with correlation `alike`."""
    own, common = rng.random((questions, wordings)), rng.random((questions, 1))
    luck = np.where(rng.random((questions, wordings)) < math.sqrt(alike), common, own).ravel()
    names = np.repeat(np.arange(questions), wordings).tolist()
    base = (luck >= worse) & (luck < worse + better)
    return list(zip(base.tolist(), (luck < worse).tolist(), names, strict=True))


@pytest.mark.parametrize(
    ("questions", "wordings", "alike", "better"),
    [
        *((150, 1, 0.0, 0.05), (48, 3, 0.5, 0.0), (48, 3, 0.5, 0.05)),
        *((48, 3, 1.0, 0.02), (20, 6, 0.5, 0.0), (30, 6, 0.3, 0.0)),
    ],
)
def test_at_most_alpha_pass_at_the_margin_where_prompts_repeat(questions, wordings, alike, better):
    rng = np.random.default_rng([1, questions, wordings, int(10 * alike), int(100 * better)])
    passed = 0
    for _ in range(DRAWS):
        pairs = draw(rng, questions, wordings, better + MARGIN, better, alike)
        passed += score(count_pairs(pairs), MARGIN) < -quantile(ALPHA)
    assert passed <= ALLOWED
    assert passed <= DRAWS * ALPHA * 1.1


def test_repeats_that_are_taken_as_prompts_of_their_own_pass_too_often():
    rng = np.random.default_rng(2)
    passed = 0
    for _ in range(DRAWS):
        pairs = [(x, y, i) for i, (x, y, _) in enumerate(draw(rng, 48, 3, 0.1, 0.02, 1.0))]
        passed += score(count_pairs(pairs), MARGIN) < -quantile(ALPHA)
    assert passed > 2 * ALLOWED


@pytest.mark.parametrize(
    ("questions", "wordings", "alike", "apart"),
    [(70, 1, 0.0, 0.02), (150, 1, 0.0, 0.06), (300, 1, 0.0, 0.2), (80, 3, 0.5, 0.06)],
)
def test_the_power_is_that_of_candidates_as_good_as_the_base(questions, wordings, alike, apart):
    rng = np.random.default_rng([3, questions, int(100 * apart)])
    printed, passed = [], 0
    for _ in range(600):
        paired = count_pairs(draw(rng, questions, wordings, apart / 2, apart / 2, alike))
        passed += limits(paired, ALPHA).high < MARGIN
        printed.append(power(paired, MARGIN, ALPHA))
    # where hardly any prompt tells them apart it promises too little rather than too much
    assert -0.05 < passed / 600 - np.mean(printed) < (0.12 if apart * questions < 5 else 0.06)
    assert 0.3 < passed / 600 < 0.999


@pytest.mark.parametrize(("worse", "better"), [(0.03, 0.03), (0.05, 0.02), (0.2, 0.04), (0.3, 0.1)])
def test_so_many_prompts_decide_in_four_of_five_trials(worse, better):
    n = 200
    seen = plain(worse * n, better * n, n)
    many = int(count_to_decide(seen, MARGIN, ALPHA, 0.01))
    rng = np.random.default_rng([4, int(100 * worse)])
    within = worse - better <= MARGIN
    decided = 0
    for _ in range(500):
        b, c, _ = rng.multinomial(many, [worse, better, 1 - worse - better])
        paired = plain(int(b), int(c), many)
        decided += (
            limits(paired, ALPHA).high < MARGIN if within else limits(paired, 0.01).low > MARGIN
        )
    assert 0.72 < decided / 500 < 0.92


def test_a_difference_at_the_margin_is_never_decided():
    assert count_to_decide(plain(20, 12, 100), 0.08, ALPHA, 0.01) == math.inf
    assert count_to_decide(plain(0, 0, 0), 0.08, ALPHA, 0.01) == math.inf


def test_prompts_that_repeat_are_needed_in_the_same_proportion():
    once = count_to_decide(Paired(3, 3, 100, 100, 100), MARGIN, ALPHA, 0.01)
    thrice = count_to_decide(Paired(3, 3, 100, 300, 100), MARGIN, ALPHA, 0.01)
    assert thrice == pytest.approx(3 * once, abs=3)


def judged(rng, truth, bad, fine):
    """What a judge calls bad."""
    called = rng.random(len(truth))
    return np.where(truth, called < bad, called >= fine)


@pytest.mark.parametrize(("sensitivity", "specificity"), [(0.8, 0.95), (0.7, 0.9)])
def test_at_most_alpha_pass_at_the_margin_where_the_judge_errs(sensitivity, specificity):
    """The judge's error is known from 150 labelled answers of each kind, drawn anew each time."""
    rng = np.random.default_rng([5, int(100 * sensitivity)])
    n, labelled, margin = 400, 150, 0.1
    passed = blind = 0
    for _ in range(DRAWS):
        luck = rng.random(n)
        base, candidate = luck < 0.1, luck < 0.1 + margin  # the candidate is at the margin
        pairs = zip(
            judged(rng, base, sensitivity, specificity).tolist(),
            judged(rng, candidate, sensitivity, specificity).tolist(),
            range(n),
            strict=True,
        )
        paired = count_pairs(pairs)
        right = (int(rng.binomial(labelled, share)) for share in (sensitivity, specificity))
        caught, cleared = right
        judge = JudgeCounts(labelled, caught, labelled, cleared)
        passed += limits(paired, ALPHA, judge).high < margin
        blind += limits(paired, ALPHA).high < margin
    assert passed <= ALLOWED
    assert blind > 2 * ALLOWED  # as if the judge were right


def test_the_limits_under_a_judge_are_where_both_sides_of_the_formula_meet():
    judge = JudgeCounts(100, 90, 200, 190)
    for paired in (plain(3, 1, 100), plain(20, 1, 100), plain(2, 30, 100)):
        seen, found = limits(paired, ALPHA), limits(paired, ALPHA, judge)
        j = 0.9 + 0.95 - 1
        assert found.value == pytest.approx(seen.value / j)
        z = quantile(ALPHA)
        for limit, side, sign in ((found.high, seen.high, 1), (found.low, seen.low, -1)):
            up = (limit > 0) == (sign < 0)  # towards which limit of J it lies
            reach = math.hypot(
                *(abs(wilson(right, n, z)[up] - right) for right, n in ((0.9, 100), (0.95, 200)))
            )
            there = seen.value - limit * j + sign * math.hypot(side - seen.value, limit * reach)
            assert there == pytest.approx(0, abs=1e-9)
        assert found.low < seen.low / j + 1e-12 or seen.low > 0
        assert found.high - found.low > seen.high - seen.low


def test_the_limits_are_those_at_which_the_score_is_the_quantile():
    for paired in (plain(3, 1, 100), plain(20, 1, 100), plain(0, 0, 50), plain(2, 30, 100)):
        found = limits(paired, ALPHA)
        assert score(paired, found.high) == pytest.approx(-quantile(ALPHA))
        assert score(paired.mirror, -found.low) == pytest.approx(-quantile(ALPHA))
        assert found.low < found.value < found.high
        assert limits(paired, 0.01).low < found.low


def test_a_candidate_that_is_bad_everywhere_has_no_limit_below_all():
    assert limits(plain(40, 0, 40), ALPHA).high == 1.0
    assert limits(plain(0, 40, 40), ALPHA).low == -1.0
    assert 0.8 < limits(plain(40, 0, 40), ALPHA).low < 1


def test_an_answer_of_the_candidate_that_cannot_be_judged_counts_as_bad():
    pairs = [(False, None, 0), (True, None, 1), (None, False, 2), (None, True, 3), (True, False, 4)]
    found = count_pairs([*pairs, *((False, False, i) for i in range(5, 10))])
    assert (found.worse, found.better, found.size, found.prompts) == (1, 1, 8, 8)
    assert (found.unscored, found.questions) == (2, 8)
    nothing = count_pairs([(None, True, 0)])
    assert (nothing.prompts, nothing.unscored) == (0, 1)
    assert (limits(nothing, ALPHA).low, limits(nothing, ALPHA).high) == (-1, 1)
    assert power(nothing, MARGIN, ALPHA) == 0


def test_a_judge_must_be_shown_to_tell_answers_apart():
    with pytest.raises(ValueError, match="right on 6 of 10 bad answers and on 5 of 10 others"):
        limits(plain(1, 1, 50), ALPHA, JudgeCounts(10, 6, 10, 5))
    with pytest.raises(ValueError, match="0 to all"):
        JudgeCounts(10, 11, 10, 5)
    with pytest.raises(ValueError, match="0 to all"):
        JudgeCounts(10, 5, 10, -1)
    for counts in ((0, 0, 10, 10), (10, 10, 0, 0)):
        with pytest.raises(ValueError, match="labelled answers of both kinds"):
            JudgeCounts(*counts)
    assert JudgeCounts(10, 0, 10, 10).youden == 0
    assert EXACT.youden == 1


def test_a_poorly_known_judge_costs_power_and_may_leave_no_number_that_would_do():
    paired = plain(2, 2, 200)
    sharp, poor = JudgeCounts(1000, 900, 1000, 950), JudgeCounts(20, 18, 20, 19)
    known = [power(paired, MARGIN, ALPHA, 0.0, judge) for judge in (EXACT, sharp, poor)]
    assert known == sorted(known, reverse=True)
    assert known[0] > known[1] > known[2]
    needs = [count_to_decide(paired, MARGIN, ALPHA, 0.01, judge) for judge in (EXACT, sharp, poor)]
    assert needs[0] < needs[1] < needs[2]
    near = plain(14, 2, 200)  # six points worse: the judge must be known to a quarter
    assert count_to_decide(near, MARGIN, ALPHA, 0.01, EXACT) < math.inf
    assert count_to_decide(near, MARGIN, ALPHA, 0.01, poor) == math.inf


@pytest.mark.parametrize("alpha", [0, 0.5, -1, 2])
def test_an_error_rate_is_between_0_and_a_half(alpha):
    with pytest.raises(ValueError, match="alpha="):
        quantile(alpha)


def test_repeats_are_counted_with_a_whole_cluster_more_that_fares_alike():
    names = [i // 3 for i in range(60)]
    pairs = [(False, i % 7 == 0, name) for i, name in enumerate(names)]
    values = [float(y) - float(x) for x, y, _ in pairs]
    found = count_pairs(pairs)
    assert found.size == effective(values, names, 1.0) < effective(values, names)
    assert found.worse == pytest.approx(9 * found.size / 60)
    assert (found.better, found.prompts, found.questions, found.unscored) == (0, 60, 20, 0)


def normal_power(n, worse, better, margin, reach=0.0):
    """The power of the score at shares of prompts, as Tango's paper has it, with the correction."""
    q = optimize.minimize_scalar(
        lambda q: -likelihood(q, margin, worse, better, 1.0),
        bounds=(max(0.0, -margin), (1 - margin) / 2),
        method="bounded",
        options={"xatol": 1e-12},
    ).x
    null = 2 * q + margin - margin**2
    lost = math.hypot(quantile(ALPHA) * math.sqrt(n * null), n * reach) + (1 + worse + better) / 2
    spread = math.sqrt(n * (worse + better - (worse - better) ** 2))
    return special.ndtr((n * (margin - (worse - better)) - lost) / spread)


@pytest.mark.parametrize("truth", [0.0, 0.03, -0.05])
def test_the_power_is_that_of_the_normal_value_at_the_smoothed_shares(truth):
    apart = (6 + 1 + 1) / 101
    shares = (apart + truth) / 2, (apart - truth) / 2
    seen = plain(6, 1, 100)
    assert power(seen, 0.1, ALPHA, truth) == pytest.approx(
        normal_power(100, *shares, 0.1), abs=1e-4
    )
    assert power(seen, 0.1, ALPHA, truth, size=400) == pytest.approx(
        normal_power(400, *shares, 0.1), abs=1e-4
    )
    judge = JudgeCounts(100, 90, 200, 190)
    shares = (apart + 0.85 * truth) / 2, (apart - 0.85 * truth) / 2
    reach = 0.1 * judge.reach(ALPHA)
    assert power(seen, 0.1, ALPHA, truth, judge) == pytest.approx(
        normal_power(100, *shares, 0.085, reach), abs=1e-4
    )


def test_a_truth_that_is_larger_than_what_was_seen_moves_more_prompts():
    apart = 0.2 + 1 / 101
    assert power(plain(0, 0, 100), 0.3, ALPHA, 0.2) == pytest.approx(
        normal_power(100, (apart + 0.2) / 2, (apart - 0.2) / 2, 0.3), abs=1e-4
    )
    almost = power(plain(0, 0, 100), 0.3, ALPHA, 1.0)
    assert almost == pytest.approx(0, abs=1e-12)


def test_the_reach_of_a_judge_is_that_of_both_of_its_rates():
    judge, z = JudgeCounts(50, 40, 80, 76), quantile(ALPHA)
    below = math.hypot(0.8 - wilson(0.8, 50, z)[0], 0.95 - wilson(0.95, 80, z)[0])
    above = math.hypot(wilson(0.8, 50, z)[1] - 0.8, wilson(0.95, 80, z)[1] - 0.95)
    assert judge.reach(ALPHA) == pytest.approx(below)
    assert judge.reach(ALPHA, up=True) == pytest.approx(above)
    assert below != pytest.approx(above)


@pytest.mark.parametrize("judge", [EXACT, JudgeCounts(4000, 3600, 8000, 7600)])
@pytest.mark.parametrize(("worse", "better"), [(2, 8), (5, 2), (30, 4), (17, 2)])
def test_the_number_that_decides_is_the_least_with_the_power(worse, better, judge):
    """One that is seen to be better is planned for as one that is as good."""
    seen = plain(worse, better, 200)
    truth = max((worse - better) / 200 / judge.youden, 0.0)
    need = count_to_decide(seen, MARGIN, ALPHA, 0.01, judge)

    def decides(size):
        if truth < MARGIN:
            return power(seen, MARGIN, ALPHA, truth, judge, size)
        return power(seen.mirror, -MARGIN, 0.01, -truth, judge, size)

    assert decides(need) >= 0.8 > decides(need - 1)


def test_many_prompts_may_be_needed():
    assert 1e6 < count_to_decide(plain(2001, 1200, 10000), 0.08, ALPHA, 0.01) < math.inf


def test_the_power_to_fail_has_the_upper_reach_of_the_judge():
    seen, judge = plain(30, 4, 100), JudgeCounts(100, 90, 200, 190)
    apart, shown = 35 / 101, 0.85 * 0.2
    shares = (apart - shown) / 2, (apart + shown) / 2
    assert power(seen.mirror, -0.1, ALPHA, -0.2, judge) == pytest.approx(
        normal_power(100, *shares, -0.085, 0.1 * judge.reach(ALPHA, up=True)), abs=1e-4
    )


def test_what_repeats_is_the_difference_and_not_the_answer():
    names = [i // 3 for i in range(90)]
    base = [name % 2 == 0 for name in names]  # alike within a question
    pairs = [
        (x, x != (i % 11 == 0), name) for i, (x, name) in enumerate(zip(base, names, strict=True))
    ]
    values = [float(y) - float(x) for x, y, _ in pairs]
    assert count_pairs(pairs).size == effective(values, names, 1.0)
    assert count_pairs(pairs).size > 1.2 * effective([float(y) for _, y, _ in pairs], names, 1.0)


@pytest.mark.parametrize("counts", [(10, -1, 10, 5), (10, 5, 10, 11)])
def test_a_judge_is_right_on_none_to_all_of_either_kind(counts):
    with pytest.raises(ValueError, match="0 to all"):
        JudgeCounts(*counts)
