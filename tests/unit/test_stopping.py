"""When a vote is settled: the exact rule against every continuation, the confident one against drawn votes."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from data_pipeline.base.errors import InputError
from hrm_dist.evaluation.stopping import VoteRule, missed_share, parse_vote_rule

EXACT = VoteRule("exact")
RULES = (VoteRule(), EXACT, VoteRule("confident", 0.02, 1.5))

supports = st.lists(st.integers(1, 30), max_size=6).map(lambda counts: sorted(counts, reverse=True))


@st.composite
def nearly_settled(draw: st.DrawFn) -> tuple[list[int], int]:
    """Return the votes of some candidates, leads of which are about as large as the votes left; and these."""
    votes_left = draw(st.integers(1, 6))
    lead = st.integers(votes_left, votes_left + 3)
    third = draw(st.integers(0, 4))
    second = third + draw(lead)
    first = second + draw(lead)
    others = draw(st.lists(st.integers(1, third), max_size=3)) if third else []
    return [votes for votes in (first, second, third, *sorted(others, reverse=True)) if votes], votes_left


@given(vote=nearly_settled(), data=st.data())
def test_no_continuation_changes_what_is_exactly_settled(
    vote: tuple[list[int], int], data: st.DataObject
) -> None:
    support, votes_left = vote
    assume(EXACT.is_settled(support, votes_left, sum(support) + votes_left))
    candidates = range(len(support) + 2)  # two that nobody has voted for
    drawn = data.draw(st.lists(st.sampled_from(candidates), min_size=votes_left, max_size=votes_left))
    for chosen in (drawn, *([candidate] * votes_left for candidate in candidates)):
        final = np.bincount(chosen, minlength=len(candidates))
        final[: len(support)] += support
        assert final[0] > final[1] > final[2:].max()


@given(vote=nearly_settled())
def test_what_is_not_exactly_settled_may_still_change_or_draw_level(vote: tuple[list[int], int]) -> None:
    support, votes_left = vote
    assume(not EXACT.is_settled(support, votes_left, sum(support) + votes_left))
    first, second, third = (*support, 0, 0, 0)[:3]
    assert second + votes_left >= first or third + votes_left >= second


def test_a_unanimous_vote_is_not_exactly_settled_before_its_end() -> None:
    assert not EXACT.is_settled([99], 1, 100)
    assert EXACT.is_settled([98, 2], 0, 100)


@given(support=supports, rule=st.sampled_from(RULES))
def test_a_vote_with_none_left_is_settled(support: list[int], rule: VoteRule) -> None:
    assert rule.is_settled(support, 0, sum(support))


@given(support=supports, votes_left=st.integers(1, 1000))
def test_without_a_rule_a_vote_goes_to_its_end(support: list[int], votes_left: int) -> None:
    assert not VoteRule().is_settled(support, votes_left, sum(support) + votes_left)


@given(support=supports, votes_left=st.integers(1, 200), limits=st.tuples(*[st.floats(0, 1)] * 2).map(sorted))
def test_a_laxer_limit_settles_whatever_a_stricter_one_does(
    support: list[int], votes_left: int, limits: list[float]
) -> None:
    strict, lax = (
        VoteRule("confident", limit).is_settled(support, votes_left, sum(support) + votes_left)
        for limit in limits
    )
    assert lax or not strict


@given(support=supports, votes_left=st.integers(0, 1000), design_effect=st.floats(1, 50))
def test_the_missed_share_is_a_share(support: list[int], votes_left: int, design_effect: float) -> None:
    assert 0 <= missed_share(support, votes_left, sum(support) + votes_left, design_effect) <= 1


@given(support=supports, votes_left=st.integers(1, 200), scale=st.floats(0.01, 1))
def test_the_missed_share_does_not_depend_on_the_unit_of_weights(
    support: list[int], votes_left: int, scale: float
) -> None:
    num_votes = sum(support) + votes_left
    scaled = [scale * votes for votes in support]
    assert missed_share(scaled, votes_left, num_votes) == pytest.approx(
        missed_share(support, votes_left, num_votes), abs=1e-9
    )


@pytest.mark.parametrize(
    ("support", "votes_left"),
    [([10], 90), ([3, 2], 95), ([3, 2, 1], 94), ([30, 20, 15, 3], 32), ([1] * 10, 7), ([8, 8, 7, 5, 2], 970)],
)
def test_the_missed_share_is_that_of_drawn_votes(support: list[int], votes_left: int) -> None:
    votes = np.array([*support, *[0] * max(0, 2 - len(support)), 0])
    prior = np.array([*np.maximum(votes[:-1], 1e-9), 1])
    rng = np.random.default_rng(0)
    final = votes + rng.multinomial(votes_left, rng.dirichlet(prior, size=20_000))
    missed = np.maximum(final[:, 2:] - final[:, 1:2], 0).sum(axis=1) / (sum(support) + votes_left)
    assert missed_share(support, votes_left, sum(support) + votes_left) == pytest.approx(
        missed.mean(), rel=0.1
    )


@pytest.mark.parametrize("support", [[20], [20, 10, 3], [12, 11, 10]])
def test_votes_that_err_together_tell_less(support: list[int]) -> None:
    alone, together = (missed_share(support, 100, sum(support) + 100, effect) for effect in (1.0, 4.0))
    assert together > alone


def test_a_unanimous_vote_is_soon_confident_of_its_attempts() -> None:
    rule = VoteRule("confident", limit=0.02)
    assert [rule.is_settled([votes], 1000 - votes, 1000) for votes in (20, 40, 60)] == [False, False, True]


@given(
    rule=st.sampled_from(RULES[:2])
    | st.builds(VoteRule, st.just("confident"), st.floats(0, 1, exclude_max=True), st.floats(1, 100))
)
def test_a_rule_is_read_as_it_is_spelled(rule: VoteRule) -> None:
    assert parse_vote_rule(str(rule)) == rule


@pytest.mark.parametrize(
    "text", ["", "half", "exact:1", "confident", "confident:0.1", "confident:x:1", "confident:nan:1",
             "confident:1:1", "confident:-0.1:1", "confident:0.1:0.5", "confident:0.1:inf"],
)  # fmt: skip
def test_a_rule_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"no such rule .* give none, exact, confident"):
        parse_vote_rule(text)


def test_a_file_that_is_no_calibration_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "scores.json"
    file.write_text('{"scores": 1}')
    with pytest.raises(InputError, match=r"scores\.json: is no calibration of a vote"):
        parse_vote_rule(str(file))
