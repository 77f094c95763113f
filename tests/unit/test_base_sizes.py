"""Sizes in units that suit them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.base.sizes import size_text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0"),
        (999, "999 bytes"),
        (1000, "1.00 kB"),
        (340e6, "340 MB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (9_999_999, "10.0 MB"),
        (1.474e9, "1.47 GB"),
        (159e9, "159 GB"),
        (5e15, "5000 TB"),
    ],
)
def test_a_size_has_three_digits_and_its_unit(size: float, text: str) -> None:
    assert size_text(size) == text


@given(st.integers(1, 10**15))
def test_a_size_is_told_to_half_a_percent(size: int) -> None:
    number, unit = size_text(size).split()
    told = float(number) * {"bytes": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}[unit]
    assert told == pytest.approx(size, rel=0.00501)
