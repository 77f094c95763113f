import json
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.build_spec import BuildSpec
from hrm_dist.checkpoint.config_changes import (
    FILE,
    FIXED,
    NOT_IN_THE_RESULT,
    OF_THE_RESULT,
    changed_settings,
    described,
    of_the_result,
    record,
)
from hrm_dist.config import TrainConfig


def config(**values: Any) -> TrainConfig:
    return TrainConfig(data_path="data", **values)


def dumped(**values: Any) -> dict[str, Any]:
    return config(**values).model_dump(mode="json")


def lines(run: Path) -> list[Any]:
    return [json.loads(line) for line in (run / FILE).read_text().splitlines()]


def start(run: Path, step: int, then: dict[str, Any], **now: Any) -> None:
    record(run, step, then, changed_settings(then, config(**now)))


def test_every_changed_setting_is_named_with_both_values() -> None:
    changes = changed_settings(dumped(lr=1e-3), config(lr=1e-2, ema=True, max_steps=5))
    assert described(changes) == "max_steps: null -> 5; lr: 0.001 -> 0.01; ema: false -> true"


def test_a_section_that_comes_or_goes_is_named_by_its_keys() -> None:
    built = {"dataset": BuildSpec.model_validate({"preset": "arc-agi-1"})}
    coming = changed_settings(dumped(), config(**built))
    assert coming["dataset.preset"] == (None, "arc-agi-1")
    going = changed_settings(dumped(**built), config())
    assert going == {key: (new, old) for key, (old, new) in coming.items()}


def test_a_setting_that_a_checkpoint_does_not_know_had_its_default() -> None:
    older = dumped()
    del older["ema"]
    older["of_an_earlier_version"] = 1
    assert changed_settings(older, config()) == {}
    assert changed_settings(older, config(ema=True)) == {"ema": (False, True)}


def test_every_setting_has_declared_whether_it_may_change() -> None:
    declared = [*FIXED, *OF_THE_RESULT, *NOT_IN_THE_RESULT]
    assert sorted(declared) == sorted(TrainConfig.model_fields)


@pytest.mark.parametrize(
    "key", ["lr", "epochs", "ema", "weight_decay", "beta2", "lr_warmup_steps", "table_only_steps"]
)
def test_what_the_weights_depend_on_matters_to_the_result(key: str) -> None:
    assert of_the_result({key: (1, 2), "engine": (1, 2), "dataset.preset": (1, 2)}) == {key: (1, 2)}


def test_a_run_whose_settings_stay_has_no_record(tmp_path: Path) -> None:
    start(tmp_path, 0, dumped())
    start(tmp_path, 7, dumped())
    assert not (tmp_path / FILE).exists()


def test_each_start_with_other_settings_adds_a_line(tmp_path: Path) -> None:
    start(tmp_path, 4, dumped(lr=1.0), lr=2.0)
    start(tmp_path, 6, dumped(lr=2.0), lr=2.0)
    start(tmp_path, 8, dumped(lr=2.0), lr=3.0, ema=True)
    assert lines(tmp_path) == [
        {"step": 4, "changes": {"lr": [1.0, 2.0]}},
        {"step": 8, "changes": {"lr": [2.0, 3.0], "ema": [False, True]}},
    ]


def test_a_start_that_saved_nothing_leaves_no_line_behind(tmp_path: Path) -> None:
    start(tmp_path, 4, dumped(lr=1.0), lr=2.0)
    start(tmp_path, 4, dumped(lr=1.0), lr=2.0)
    assert lines(tmp_path) == [{"step": 4, "changes": {"lr": [1.0, 2.0]}}]
    start(tmp_path, 4, dumped(lr=1.0), lr=5.0)
    assert lines(tmp_path) == [{"step": 4, "changes": {"lr": [1.0, 5.0]}}]
    start(tmp_path, 4, dumped(lr=1.0), lr=1.0)
    assert lines(tmp_path) == []


def test_a_line_stays_whose_values_the_checkpoint_has(tmp_path: Path) -> None:
    start(tmp_path, 4, dumped(lr=1.0), lr=2.0)
    start(tmp_path, 4, dumped(lr=2.0), lr=2.0)  # step 4 was saved again, after its evaluation
    assert lines(tmp_path) == [{"step": 4, "changes": {"lr": [1.0, 2.0]}}]


def test_lines_beyond_the_step_that_a_run_is_rewound_to_are_dropped(tmp_path: Path) -> None:
    start(tmp_path, 4, dumped(lr=1.0), lr=2.0)
    start(tmp_path, 8, dumped(lr=2.0), lr=3.0)
    start(tmp_path, 6, dumped(lr=2.0), lr=2.0)
    assert lines(tmp_path) == [{"step": 4, "changes": {"lr": [1.0, 2.0]}}]
    start(tmp_path, 0, dumped(lr=9.0), lr=9.0)
    assert lines(tmp_path) == []


@pytest.mark.parametrize("damage", ["{", "[]", '{"step": 2}', '{"step": 2, "changes": {"lr": 1}}', "\udcff"])
def test_a_damaged_line_does_not_stop_a_run(damage: str, tmp_path: Path) -> None:
    start(tmp_path, 4, dumped(lr=1.0), lr=2.0)
    with (tmp_path / FILE).open("a", errors="surrogateescape") as file:
        file.write(f"{damage}\n")
    start(tmp_path, 6, dumped(lr=2.0), lr=3.0)
    assert [line["step"] for line in lines(tmp_path)] == [4, 6]
