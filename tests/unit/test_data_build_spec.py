"""One declaration of an option is its flag, its key in a `dataset:` section, and its entry in dataset.json."""

from pathlib import Path

import pytest

from data_pipeline.build import build, parse_arguments
from data_pipeline.build_spec import BuildSpec
from data_pipeline.kinds import KIND_OF_PRESET, KINDS
from data_pipeline.schema import load_dataset_info
from hrm_dist.config import ConfigError, TrainConfig, as_found, load_config, to_yaml
from hrm_dist.train import build_if_missing, main
from tests.unit.test_data_build import checksums

# Of each preset what a tiny dataset needs: the flags, and the same in a section.
TINY = {
    "arc-agi-1": (
        "--limit-groups 2 --num-aug 1 --canvas 6 --holdout all",
        "limit_groups: 2, num_aug: 1, canvas: 6, holdout: all",
    ),
    "sudoku": (
        "--side 4 --num-train 9 --num-test 5 --num-aug 2",
        "side: 4, num_train: 9, num_test: 5, num_aug: 2",
    ),
    "maze-unique": (
        "--side 6 --min-steps 6 --max-steps 9 --num-train 9 --num-test 5 --num-aug 7",
        "side: 6, min_steps: 6, max_steps: 9, num_train: 9, num_test: 5, num_aug: 7",
    ),
    "maze": (
        "--side 6 --min-steps 8 --num-train 9 --num-test 5",
        "side: 6, min_steps: 8, num_train: 9, num_test: 5",
    ),
}


def config_of(tmp_path: Path, section: str) -> TrainConfig:
    path = tmp_path / "run.yaml"
    path.write_text(f"data_path: {tmp_path / 'data'}\ndataset: {{{section}}}\n")
    return load_config(path)


@pytest.mark.parametrize("preset", TINY)
def test_a_section_builds_what_the_same_flags_build(preset: str, tmp_path: Path) -> None:
    flags, section = TINY[preset]
    build(parse_arguments([preset, *flags.split(), "--out", str(tmp_path / "flags"), "--quiet"]))
    build_if_missing(config_of(tmp_path, f"preset: {preset}, {section}"))
    assert checksums(tmp_path / "data") == checksums(tmp_path / "flags")


def test_a_section_builds_from_sources(tmp_path: Path) -> None:
    solved = "1234341221434321"
    rows = [f"made,{'.' * k + solved[k:]},{solved},{k}" for k in range(1, 5)]
    (tmp_path / "train.csv").write_text("\n".join(["source,question,answer,rating", *rows, ""]))
    build_if_missing(
        config_of(tmp_path, f"preset: sudoku, source: {tmp_path}/train.csv, min_difficulty: 3, leaks: keep")
    )
    info = load_dataset_info(tmp_path / "data")
    assert (info.splits.train.num_examples, info.sources[0].num_tasks) == (2, 4)
    assert info.options["generator"] is None


@pytest.mark.parametrize("preset", KIND_OF_PRESET)
@pytest.mark.parametrize("source", [[], ["a.csv", "b:train"]])
def test_a_resolved_section_loads_back(preset: str, source: list[str], tmp_path: Path) -> None:
    config = TrainConfig(data_path="d", checkpoint_path="r", dataset=BuildSpec(preset=preset, source=source))  # type: ignore[arg-type]
    (tmp_path / "resolved.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "resolved.yaml") == config


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_option_has_a_meaning_and_a_default(kind) -> None:  # type: ignore[no-untyped-def]
    options = kind.options()
    for name, (field, _) in kind.options.by_name().items():
        assert field.description, name
        assert not field.is_required(), name
    assert list(kind.options.model_validate(options.model_dump()).model_dump()) == list(options.model_dump())


@pytest.mark.parametrize(
    ("section", "problems"),
    [
        ("preset: arc-agi-1, side: 4", ["dataset.side: is no option of this kind of puzzles"]),
        (
            "preset: maze, source: a.csv, side: 9, num_aug: 8",
            [
                "dataset.side: only for new puzzles; leave it out or leave out dataset.source (got 9)",
                "dataset.num_aug: Input should be less than or equal to 7 (got 8)",
            ],
        ),
        (
            "preset: sudoku, subsample: 3",
            ["dataset.subsample: only for puzzles of a source; leave it out or add dataset.source (got 3)"],
        ),
        ("preset: sudoku, side: 5", ["dataset.side: Input should be 4, 6 or 9 (got 5)"]),
        ("preset: chess", ["dataset.preset: Input should be 'arc-agi-1', 'arc-agi-2', 'arc', 'sudoku'"]),
        ("num_aug: 1", ["dataset.preset: is missing; add `preset: ...`"]),
    ],
)
def test_a_wrong_section_is_refused_with_key_and_value(
    section: str, problems: list[str], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        config_of(tmp_path, section)
    lines = str(caught.value).splitlines()
    assert len(lines) == len(problems)
    assert all(problem in line for problem, line in zip(problems, lines, strict=True)), lines


def test_a_dry_run_assumes_the_sizes_that_the_section_will_build(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config_of(tmp_path, "preset: maze, side: 12, min_steps: 20")
    assert main([str(tmp_path / "run.yaml"), "--dry-run"]) == 0
    assert "assume maze: 144 tokens, a vocabulary of 6, no puzzle identifiers" in capsys.readouterr().out
    assert not (tmp_path / "data").exists()


def test_a_dataset_of_another_kind_than_the_section_is_used_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build_if_missing(config_of(tmp_path, f"preset: sudoku, {TINY['sudoku'][1]}"))
    build_if_missing(config_of(tmp_path, f"preset: sudoku, {TINY['sudoku'][1]}"))
    assert not caplog.records
    build_if_missing(config_of(tmp_path, "preset: maze, side: 4"))
    assert "(kind sudoku, of new puzzles, with num_aug=2" in caplog.text


@pytest.mark.parametrize(
    ("section", "is_described"),
    [
        ("preset: arc-agi-1, num_aug: 8, holdout: all, canvas: 6, limit_groups: 8, seed: 0", True),
        ("preset: arc-agi-2, num_aug: 8, holdout: all, canvas: 6, limit_groups: 8, seed: 0", False),
        ("preset: arc, source: x, num_aug: 8, holdout: all, canvas: 6, limit_groups: 8, seed: 0", False),
        (
            "preset: arc-agi-1, source: x, num_aug: 8, holdout: all, canvas: 6, limit_groups: 8, seed: 0",
            False,
        ),
        ("preset: arc-agi-1, num_aug: 8, holdout: all, canvas: 6, limit_groups: 8, seed: 1", False),
        ("preset: sudoku", False),
    ],
)
def test_a_section_stays_in_the_record_only_where_it_describes_the_dataset(
    section: str, is_described: bool, dataset: Path, tmp_path: Path
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"data_path: {dataset}\ndataset: {{{section}}}")
    config = as_found(load_config(path))
    assert (config.dataset is not None) == is_described
    assert config.data_path == str(dataset)
