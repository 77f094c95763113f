import json
from pathlib import Path

import pytest
from pydantic import ConfigDict, Field, ValidationError, model_validator

from data_pipeline.base.errors import InputError
from data_pipeline.base.models import Strict, problems, read_json, reason_of


class Inner(Strict):
    size: float = Field(default=1, gt=0)


class Outer(Strict):
    name: str
    inner: Inner = Inner()

    @model_validator(mode="after")
    def _check(self) -> "Outer":
        if self.name == "bad":
            raise ValueError("name=bad: is bad; choose another\nname: has three letters")
        return self


def refused(**content: object) -> ValidationError:
    with pytest.raises(ValidationError) as error:
        Outer.model_validate(content)
    return error.value


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({}, "name: is missing"),
        ({"name": "x", "inner": {"size": 0}}, "inner.size: Input should be greater than 0 (got 0)"),
        ({"name": "x", "inner": {"size": float("inf")}}, "inner.size: Input should be a finite number (got inf)"),
        ({"name": "x", "inner": 3}, "inner: Input should be a section of `key: value` lines (got 3)"),
        ({"name": "x", "sise": "3"}, "sise: is not known here (got 3)"),
        ({"name": "bad"}, "name=bad: is bad; choose another, and 1 more"),
        ({"inner": {"size": "x"}, "also": None}, "name: is missing, and 2 more"),
    ],
)  # fmt: skip
def test_a_reason_names_key_value_and_why(content: dict[str, object], reason: str) -> None:
    assert reason_of(refused(**content)) == reason


def test_the_lines_of_a_check_are_problems_of_their_own() -> None:
    assert [why for _, _, why in problems(refused(name="bad"))] == [
        "name=bad: is bad; choose another",
        "name: has three letters",
    ]


def test_a_long_value_is_cut() -> None:
    assert len(reason_of(refused(name=["x"] * 1000))) < 200


def test_a_reason_is_no_more_than_what_is_wrong() -> None:
    with pytest.raises(ValidationError) as error:
        Outer.model_validate_json('{"name":')
    assert reason_of(error.value).startswith("Invalid JSON: EOF while parsing")
    assert reason_of(FileNotFoundError(2, "No such file or directory", "x")) == "No such file or directory"
    assert reason_of(OSError("of its own")) == "of its own"
    assert reason_of(ValueError("not this")) == "not this"


def test_a_model_may_be_less_strict_in_one_point() -> None:
    class Sums(Strict):
        model_config = ConfigDict(allow_inf_nan=True)
        value: float

    assert Sums(**json.loads('{"value": NaN}'))
    with pytest.raises(ValidationError, match="Extra inputs"):
        Sums.model_validate({"value": 1, "other": 2})


def test_a_file_of_a_model_is_read_or_not_there_or_refused_with_a_remedy(tmp_path: Path) -> None:
    path = tmp_path / "outer.json"
    assert read_json(path, Outer, "delete it") is None
    assert read_json(path / "below", Outer, "delete it") is None
    path.write_text('{"name": "good"}')
    assert read_json(path, Outer, "delete it") == Outer(name="good")
    assert read_json(path / "below", Outer, "delete it") is None
    path.write_text('{"nam": "good"}')
    with pytest.raises(
        InputError, match=r"outer\.json: unreadable \(name: is missing, and 1 more\); delete it\.$"
    ):
        read_json(path, Outer, "delete it")
