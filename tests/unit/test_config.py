"""Configuration: defaults, derived values, and what the errors say."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from data_pipeline.base.errors import InputError
from data_pipeline.build_spec import BuildSpec
from data_pipeline.schema import DatasetMetadata
from hrm_dist.config import (
    ArchConfig,
    ConfigError,
    TrainConfig,
    check_notation,
    load_config,
    to_yaml,
    total_steps,
)
from hrm_dist.config.aliases import ALIASES
from hrm_dist.config.architectures import ARCHITECTURES
from hrm_dist.config.hints import HINTS


def load(tmp_path: Path, text: str, *overrides: str) -> TrainConfig:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return load_config(path, overrides)


def errors_of(tmp_path: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, *overrides)
    return str(caught.value).replace(f"{tmp_path}/", "").splitlines()


# Values


def test_defaults_are_the_published_ones_of_each_arch() -> None:
    hrm, trm = ArchConfig(), ArchConfig(name="trm")
    assert (hrm.H_cycles, hrm.L_cycles, hrm.H_layers, hrm.L_layers) == (2, 2, 4, 4)
    assert (trm.H_cycles, trm.L_cycles, trm.H_layers, trm.L_layers) == (3, 6, 0, 2)
    assert (hrm.act_continue, trm.act_continue) == (True, False)
    assert (hrm.hidden_size, hrm.num_heads, hrm.expansion, hrm.halt_max_steps) == (512, 8, 4, 16)
    assert (hrm.prefix_len, trm.prefix_len) == (1, 16)


@pytest.mark.parametrize(
    ("ndim", "length", "prefix"), [(None, 0, 1), (0, 0, 0), (512, 0, 1), (513, 0, 2), (96, 3, 3)]
)
def test_prefix_len_is_the_fewest_positions_unless_given(ndim: int | None, length: int, prefix: int) -> None:
    assert ArchConfig(puzzle_emb_ndim=ndim, puzzle_emb_len=length).prefix_len == prefix


@pytest.mark.parametrize("name", ["007", "1e-4", "2024-01-01", "yes"])
def test_text_stays_text_whatever_yaml_would_make_of_it(name: str, tmp_path: Path) -> None:
    config = load(tmp_path, f"data_path: d\nrun_name: {name}")
    assert (config.run_name, config.checkpoint_path) == (name, f"runs/{name}")


@pytest.mark.parametrize("plus", ["", "+", "++"])
def test_hydra_plus_signs_are_dropped_and_the_last_override_wins(plus: str, tmp_path: Path) -> None:
    assert load(tmp_path, "data_path: d\nlr: 1", "lr=2", f"{plus}lr=7e-5").lr == 7e-5


def test_null_turns_a_section_off_and_a_key_turns_it_on_again(tmp_path: Path) -> None:
    text = "data_path: d\ndataset: {preset: arc-agi-1}"
    assert load(tmp_path, text, "dataset=null").dataset is None
    again = load(tmp_path, text, "dataset=null", "dataset.preset=arc-agi-2").dataset
    assert again == BuildSpec(preset="arc-agi-2")


def test_precision_and_forward_dtype_set_each_other(tmp_path: Path) -> None:
    assert load(tmp_path, "data_path: d").precision == "bf16"
    assert load(tmp_path, "data_path: d", "precision=fp32").arch.forward_dtype == "float32"
    assert load(tmp_path, "data_path: d", "arch.forward_dtype=float32").precision == "fp32"
    assert TrainConfig(data_path="d", arch=ArchConfig(), precision="fp32").arch.forward_dtype == "float32"
    (error,) = errors_of(tmp_path, "data_path: d", "precision=fp32", "arch.forward_dtype=bfloat16")
    assert "precision=fp32 and arch.forward_dtype=bfloat16 contradict" in error


def test_a_config_cannot_be_changed() -> None:
    config = TrainConfig(data_path="d")
    with pytest.raises(ValidationError, match="frozen"):
        config.lr = 1.0  # pyright: ignore[reportAttributeAccessIssue]


# Errors


def test_all_problems_are_reported_at_once_with_the_nearest_names(tmp_path: Path) -> None:
    text = "data_path: d\nlr: 0\narch:\n  num_heads: eight\n  H_cylces: 3\nglobal_batchsize: 4\nbeta1: 1.0\n"
    integer = "Input should be a valid integer, unable to parse string as an integer"
    number = "Input should be a valid number, unable to parse string as a number"
    assert errors_of(tmp_path, text, "puzzle_emb_lr=abc", "rms_norm_eps=1") == [
        "run.yaml: unknown key 'arch.H_cylces'; did you mean 'arch.H_cycles'?",
        "run.yaml: unknown key 'global_batchsize'; did you mean 'global_batch_size'?",
        "command line: rms_norm_eps=1: unknown key 'rms_norm_eps'; did you mean 'arch.rms_norm_eps'?",
        f"run.yaml: arch.num_heads: {integer} (got 'eight')",
        "run.yaml: lr: Input should be greater than 0 (got 0)",
        "run.yaml: beta1: Input should be less than 1 (got 1.0)",
        f"command line: puzzle_emb_lr=abc: {number} (got 'abc')",
    ]


@pytest.mark.parametrize(
    ("typo", "nearest"),
    [
        ("H_cycles", "arch.H_cycles"),
        ("arch.h_cycles", "arch.H_cycles"),
        ("arch.lr", "lr"),
        ("ach.num_heads", "arch.num_heads"),
        ("arch.rope_thetta", "arch.rope_theta"),
        ("lr.min_ratio", "lr_min_ratio"),
        ("--lr", "lr"),
        ("datset.preset", "dataset.preset"),
        ("arch.loss.los_type", "arch.loss.loss_type"),
        ("arch.noACT_continue", "arch.no_ACT_continue"),
    ],
)
def test_a_typo_gets_the_nearest_key(typo: str, nearest: str, tmp_path: Path) -> None:
    (error,) = errors_of(tmp_path, "data_path: d", f"{typo}=1")
    assert error == f"command line: {typo}=1: unknown key '{typo}'; did you mean '{nearest}'?"


def test_a_key_like_no_other_lists_the_valid_ones(tmp_path: Path) -> None:
    (error,) = errors_of(tmp_path, "data_path: d\ndataset: {preset: arc-agi-1, zzz: 1}")
    assert error == (
        "run.yaml: unknown key 'dataset.zzz'; valid keys are dataset.canvas, dataset.conflicts, dataset.holdout, "
        "dataset.leaks, dataset.limit_groups, dataset.max_steps, dataset.min_difficulty, dataset.min_steps, "
        "dataset.num_aug, dataset.num_test, dataset.num_train, dataset.preset, dataset.seed, dataset.side, "
        "dataset.source, dataset.subsample, dataset.subsample_test, dataset.subset"
    )


@pytest.mark.parametrize(
    "override",
    [
        "lr=nan",
        "lr=inf",
        "lr=",
        "lr=-1",
        "lr_min_ratio=1.5",
        "beta2=1",
        "weight_decay=-0.1",
        "ema_rate=1",
        "epochs=0",
        "epochs=1.5",
        "epochs=True",
        "seed=-1",
        "global_batch_size=0",
        "max_steps=0",
        "log_interval=0",
        "keep_checkpoints=0",
        "compile=perhaps",
        "wandb_mode=off",
        "engine=zero9",
        "data_path=",
        "arch.halt_exploration_prob=2",
        "arch.expansion=0",
        "arch.num_heads={a: 1}",
        "dataset=yes",
        "dataset={}",
        "checkpoint_path=",
        "resume=",
        "checkpoint_path=s3://bucket/run",
        "data_path=$(pwd)/data",
    ],
)
def test_a_value_out_of_range_or_type_is_one_plain_line(override: str, tmp_path: Path) -> None:
    (error,) = errors_of(tmp_path, "data_path: d", override)
    assert override.partition("=")[0] in error
    for jargon in ("pydantic", "http", "instance of", "Value error", "type="):
        assert jargon not in error


@pytest.mark.parametrize(
    ("overrides", "remedy"),
    [
        ("arch.num_heads=7", "set arch.hidden_size to a multiple of 7"),
        ("arch.hidden_size=24 arch.num_heads=8", "make that even"),
        ("arch=trm arch.puzzle_emb_ndim=0", "set arch.puzzle_emb_len=0 too"),
        ("arch.puzzle_emb_ndim=0 arch.puzzle_emb_len=2", "set arch.puzzle_emb_len=0 too"),
        ("arch.puzzle_emb_ndim=1100 arch.puzzle_emb_len=2", "to 0 (derived) or to 3 or more"),
        ("arch.H_layers=0", "set it to 1 or more"),
        ("arch.mlp_t=true", "set arch.name=trm"),
        (
            "arch=transformer arch.halt_max_steps=2",
            "can only be 1; leave it out, or set arch.name=hrm or trm",
        ),
        ("arch=urm arch.pos_encodings=none", "can only be rope; leave it out, or set arch.name=hrm or trm"),
    ],
)
def test_keys_that_contradict_each_other_are_refused_with_a_remedy(
    overrides: str, remedy: str, tmp_path: Path
) -> None:
    (error,) = errors_of(tmp_path, "data_path: d", *overrides.split())
    assert remedy in error


def test_an_mlp_over_the_sequence_needs_no_heads() -> None:
    assert ArchConfig(name="trm", mlp_t=True, num_heads=7).mlp_t


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lr: 1\nseed: 1\nlr: 2\ndata_path: d", "run.yaml:3: 'lr' is given twice"),
        ("data_path: d\narch:\n  H_cycles: 1\n  H_cycles: 1", "run.yaml:4: 'arch.H_cycles' is given twice"),
        ("data_path: d\ndata_paths: [e]", "run.yaml: data_paths: 'data_path' is given twice"),
        ("- lr", "run.yaml: should hold `key: value` lines"),
        ("lr", "run.yaml: should hold `key: value` lines"),
        ("data_path: d\nlr: [1", "run.yaml:2: not valid YAML"),
        ("a: &a [*a]", "run.yaml: not valid YAML"),
        ("", "run.yaml: data_path: is missing; add `data_path: ...` or give data_path=..."),
    ],
)
def test_a_damaged_file_is_refused_with_its_place(text: str, expected: str, tmp_path: Path) -> None:
    (error,) = errors_of(tmp_path, text)
    assert error.startswith(expected)


def test_a_file_that_cannot_be_read_is_bad_input(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "missing.yaml", tmp_path, binary):
        with pytest.raises(InputError, match=r"cannot be read .*; give the path of a YAML file"):
            load_config(path)


@pytest.mark.parametrize("override", ["lr", "=3", "+=3"])
def test_an_override_without_key_or_value_is_refused(override: str, tmp_path: Path) -> None:
    assert errors_of(tmp_path, "data_path: d", override) == [
        f"command line: {override}: should be written key=value"
    ]


def test_an_override_that_is_no_yaml_is_refused(tmp_path: Path) -> None:
    (error,) = errors_of(tmp_path, "data_path: d", "data_paths=[a")
    assert error.startswith("command line: data_paths=[a: not valid YAML")
    assert error.endswith("look at its brackets and quotes")


# Notation of other programs


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["c.yaml", "--lr=1e-3"], "write lr=1e-3"),
        (["c.yaml", "--lr", "1e-3"], "write lr=1e-3"),
        (["c.yaml", "--lr-warmup-steps", "5"], "write lr_warmup_steps=5"),
        (["c.yaml", "lr", "1e-3"], "write lr=1e-3"),
        (["c.yaml", "lr:", "1e-3"], "write lr=1e-3"),
        (["c.yaml", "lr:1e-3"], "write lr=1e-3"),
        (["c.yaml", "lr", "=", "1e-3"], "write lr=1e-3"),
        (["c.yaml", "lr=", "1e-3"], "write lr=1e-3"),
        (["c.yaml", "seed"], "write seed=VALUE"),
        (["c.yaml", "--learning_rate", "1e-3"], "here that is lr"),
        (["-c", "c.yaml"], "write train FILE.yaml key=value"),
        (["--config=c.yaml"], "write train FILE.yaml key=value"),
        (["--config-name", "arc1"], "write train FILE.yaml key=value"),
        (["lr=1e-3", "c.yaml"], "the configuration file comes first"),
        (["c.yaml", "d.yaml"], "leave one out"),
    ],
)
def test_the_notation_of_other_programs_gets_ours(words: list[str], remedy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_notation(words, "train")
    assert remedy in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        ["c.yaml"],
        ["c=1.yaml", "lr=1"],
        ["c.yaml", "run_name=", "lr=1"],
        ["c.yaml", "data_path=a b", "+ema=1"],
    ],
)
def test_our_own_notation_passes(words: list[str]) -> None:
    check_notation(words, "train")


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("learning_rate", "here that is lr"),
        ("optimizer.lr", "did you mean 'lr'?"),
        ("trainer.max_epochs", "here that is epochs"),
        ("per_device_train_batch_size", "global_batch_size, the examples of a step over all processes"),
        ("num_gpus", "torchrun --nproc-per-node N"),
        ("max_grad_norm", "nothing is clipped"),
        ("name", "here that is run_name"),
        ("arch.d_model", "here that is arch.hidden_size"),
        ("wd", "here that is weight_decay"),
    ],
)
def test_a_key_of_another_project_gets_ours(key: str, says: str, tmp_path: Path) -> None:
    (error,) = errors_of(tmp_path, "data_path: d", f"{key}=1")
    assert says in error


@pytest.mark.parametrize("key", ["num_hosts", "weight", "alpha", "tau"])
def test_a_key_that_is_like_none_gets_no_guess(key: str, tmp_path: Path) -> None:
    (error,) = errors_of(tmp_path, "data_path: d", f"{key}=1")
    assert "valid keys are" in error


def test_every_key_that_a_hint_names_is_ours() -> None:
    ours = {re.split("[:,]| and ", text)[0] for text in HINTS.values() if text.startswith("here")}
    for key in (text.removeprefix("here that is ") for text in ours):
        section = ArchConfig if key.startswith("arch.") else TrainConfig
        assert key.removeprefix("arch.") in section.model_fields


def test_no_hint_stands_before_a_key_or_an_alias_of_ours() -> None:
    assert not HINTS.keys() & {*TrainConfig.model_fields, *ALIASES}


# Text


text_keys = st.sampled_from(["data_path", "checkpoint_path", "resume", "project_name", "run_name"])


@given(key=text_keys, text=st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1))
@example(key="checkpoint_path", text="runs/exp #2")
@example(key="run_name", text=" a: {b")
@example(key="run_name", text="null")
@example(key="project_name", text="~")
@example(key="resume", text="[a, 'b']")
@example(key="data_path", text="1e5:")
def test_a_text_key_has_what_was_typed(key: str, text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    is_path = key.endswith("path") or key == "resume"
    assume(not is_path or (text.strip() and not re.search(r"^~|\$|%|://", text)))
    assume(not is_path or max(len(name.encode()) for name in text.split("/")) <= 255)
    folder = tmp_path_factory.getbasetemp()
    config = load(folder, "data_path: d", "checkpoint_path=r", f"{key}={text}")
    assert getattr(config, key) == text
    assert load(folder, to_yaml(config)) == config


def test_nothing_behind_the_equals_sign_is_null_where_a_key_can_be(tmp_path: Path) -> None:
    assert load(tmp_path, "data_path: d\nrun_name: a", "run_name=").run_name is None
    (error,) = errors_of(tmp_path, "data_path: d", "checkpoint_path=")
    assert error.startswith("command line: checkpoint_path=: is empty")


@pytest.mark.parametrize("name", ["..", ".", "../x", "a/../../b", "/tmp/x", "cost$HOME", "%A%", "$(date)"])
def test_a_run_name_that_names_no_folder_below_runs_needs_one(name: str, tmp_path: Path) -> None:
    (error,) = errors_of(tmp_path, "data_path: d", f"run_name={name}")
    assert error == (
        f"run_name={name}: gives the run no folder of its own below `runs`; give checkpoint_path too"
    )
    assert load(tmp_path, "data_path: d", f"run_name={name}", "checkpoint_path=r").run_name == name


def test_a_comment_is_no_part_of_a_number(tmp_path: Path) -> None:
    (error,) = errors_of(tmp_path, "data_path: d", "lr=1e-3 #2")
    assert "valid number" in error


def test_sources_on_the_command_line_are_text_or_a_list(tmp_path: Path) -> None:
    text = "data_path: d\ndataset: {preset: arc}"
    for typed, expected in (("a #1", ("a #1",)), ("[a, b]", ("a", "b")), ("a, b", ("a, b",))):
        dataset = load(tmp_path, text, f"dataset.source={typed}").dataset
        assert dataset is not None
        assert dataset.source == expected


# Derived


text = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=20)


@given(
    lr=st.floats(1e-30, 1e30),
    name=st.sampled_from(list(ARCHITECTURES)),
    run_name=st.none() | text | st.sampled_from(["null", "~", "1e-4", "true", "a: b", "- x", "${.y}", "''"]),
    precision=st.sampled_from(["bf16", "fp32"]),
    seed=st.integers(0, 2**63 - 1),
    max_steps=st.none() | st.integers(1, 10**9),
    dataset=st.none() | st.builds(BuildSpec, preset=st.just("arc-agi-2"), num_aug=st.integers(0, 9)),
)
def test_the_resolved_yaml_loads_back_equal(
    tmp_path_factory: pytest.TempPathFactory, **fields: object
) -> None:
    arch = ArchConfig.model_validate({"name": fields.pop("name")})
    config = TrainConfig.model_validate({"data_path": "d", "arch": arch, **fields})
    path = tmp_path_factory.getbasetemp() / "config.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(path) == config


def test_total_steps_is_the_published_arithmetic() -> None:
    metadata = DatasetMetadata(
        seq_len=900,
        vocab_size=12,
        pad_id=0,
        ignore_label_id=0,
        blank_identifier_id=0,
        num_puzzle_identifiers=876_412,
        total_groups=960,
        mean_puzzle_examples=4.137,
        sets=("all",),
    )
    config = TrainConfig(data_path="d", max_steps=5)
    assert total_steps(config, metadata) == int(100_000 * 960 * 4.137 / 768) == 517_124


def test_a_bad_config_costs_no_torch_import() -> None:
    code = "import sys, hrm_dist.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_steps_of_the_table_alone_are_refused_where_there_is_no_table() -> None:
    with pytest.raises(ValidationError, match=r"table_only_steps=3: .* leaves no puzzle"):
        TrainConfig.model_validate({"data_path": "x", "table_only_steps": 3, "arch": {"puzzle_emb_ndim": 0}})


def test_a_gather_unit_is_refused_where_nothing_is_gathered() -> None:
    with pytest.raises(ValidationError, match="gather_unit=layer means nothing to engine=zero2"):
        TrainConfig.model_validate({"data_path": "x", "engine": "zero2", "gather_unit": "layer"})
    assert TrainConfig.model_validate({"data_path": "x", "engine": "fsdp2", "gather_unit": "layer"})
