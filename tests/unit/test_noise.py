"""Noise from keys: what it depends on, and that it is normal."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hrm_dist.model.initialization import CUT, CUT_STD
from hrm_dist.model.initialization import truncated_normal as initial_values
from hrm_dist.model.noise import key_of, normal, truncated_normal

ROWS = torch.arange(64)
MASK = 2**64 - 1


def mixed(x: int) -> int:
    """SplitMix64's finalizer, on Python's integers."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


@given(seed=st.integers(0, 2**62), fields=st.lists(st.integers(0, 2**40), min_size=1, max_size=4))
@settings(max_examples=50)
def test_keys_and_draws_are_those_of_splitmix64(seed: int, fields: list[int]) -> None:
    golden = 0x9E3779B97F4A7C15
    key = seed
    for field in fields:
        key = mixed((mixed((key + golden) & MASK) + field) & MASK)
    ours = key_of(seed, *(torch.tensor([field]) for field in fields))
    assert int(ours) % 2**64 == key
    bits = mixed((key + 1 * golden) & MASK)
    first, second = ((bits >> 40) + 1) / 2**24, (bits & (2**24 - 1)) / 2**24
    expected = np.sqrt(-2 * np.log(first)) * np.array(
        [np.cos(2 * np.pi * second), np.sin(2 * np.pi * second)]
    )
    np.testing.assert_allclose(normal(ours, 2)[0], expected, rtol=1e-4, atol=2e-6)


def test_a_draw_depends_on_its_key_alone() -> None:
    key = key_of(3, ROWS, 1, 2)
    some = torch.tensor([9, 2, 2, 63])
    for draw in (normal, truncated_normal):
        assert torch.equal(draw(key[some].view(2, 2), 7), draw(key, 7)[some].view(2, 2, 7))


@pytest.mark.parametrize("other", [(4, 1, 2), (3, 2, 1), (3, 1, 3), (3, 1)])
def test_whatever_tells_draws_apart_gives_other_draws(other: tuple[int, ...]) -> None:
    seed, *fields = other
    one, two = normal(key_of(3, ROWS, 1, 2), 100), normal(key_of(seed, ROWS, *fields), 100)
    assert abs(np.corrcoef(one.flatten(), two.flatten())[0, 1]) < 0.05
    assert not (one == two).any(1).all()


def test_draws_are_standard_normal_and_independent() -> None:
    draws = normal(key_of(0, torch.arange(200)), 1000)
    assert draws.shape == (200, 1000)
    flat = draws.flatten().double().numpy()
    assert stats.kstest(flat, "norm").pvalue > 0.01
    rows = draws.double().numpy()
    between_rows = np.corrcoef(rows[:40])
    assert np.abs(between_rows - np.eye(40)).max() < 0.16  # five standard errors of 1,000 numbers
    for lag in (1, 20, 500):
        assert abs(np.corrcoef(rows[:, lag:].ravel(), rows[:, :-lag].ravel())[0, 1]) < 0.01
    assert stats.kurtosis(flat) == pytest.approx(0, abs=0.05)


def test_an_odd_number_of_draws_is_the_first_of_more() -> None:
    key = key_of(0, ROWS)
    assert truncated_normal(key, 7).shape == normal(key, 7).shape == (64, 7)
    assert torch.equal(normal(key, 7)[:, :4], normal(key, 8)[:, :4])


def test_initial_states_have_the_distribution_of_initial_weights() -> None:
    draws = truncated_normal(key_of(0, torch.arange(200)), 1000).flatten()
    weights = torch.empty(200_000)
    initial_values(1.0)(weights, torch.Generator().manual_seed(0))
    assert stats.ks_2samp(draws.numpy(), weights.numpy()).pvalue > 0.01
    assert draws.std() == pytest.approx(1, abs=0.01)
    assert draws.abs().max() == pytest.approx(CUT / CUT_STD, abs=1e-3)


@pytest.mark.filterwarnings("default")
def test_compiled_draws_are_the_same_to_rounding() -> None:
    key = key_of(5, ROWS)
    compiled = torch.compile(normal, fullgraph=True, dynamic=False)
    torch.testing.assert_close(compiled(key, 6), normal(key, 6), rtol=1e-5, atol=1e-5)
