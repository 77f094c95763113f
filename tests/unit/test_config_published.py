"""Configuration: the shipped files, and the published command lines and spellings that they stand for."""

import logging
from pathlib import Path

import pytest

from data_pipeline.build_spec import BuildSpec
from hrm_dist.config import ArchConfig, ConfigError, TrainConfig, load_config
from hrm_dist.config.aliases import ALIASES

CONFIGS = Path(__file__).parents[2] / "configs"


def load(tmp_path: Path, text: str, *overrides: str) -> TrainConfig:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return load_config(path, overrides)


def value_at(config: TrainConfig, key: str) -> object:
    section, _, name = key.rpartition(".")
    return getattr(getattr(config, section) if section else config, name)


# Files that we ship


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_config_loads_and_holds_only_differences(path: Path) -> None:
    config = load_config(path)
    assert config.checkpoint_path == f"runs/{path.stem}"
    given_keys = [
        line.split(":")[0].strip() for line in path.read_text().splitlines() if line[0] not in "#\n"
    ]
    defaults = TrainConfig(data_path="x", arch=ArchConfig(name=config.arch.name), checkpoint_path="runs/demo")
    differing = {k for k, v in config if v != getattr(defaults, k)}
    differing |= {k for k, v in config.arch if v != getattr(defaults.arch, k)}
    allowed = differing | {"data_path", "checkpoint_path", "arch", "name"} | BuildSpec.all_keys()
    assert set(given_keys) <= allowed


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_config_says_how_to_get_data_and_start(path: Path) -> None:
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for field in ("Data:", "Launch:", "Hardware:"):
        assert any(line.startswith(f"# {field}") for line in header), field
    assert any(f"configs/{path.stem}.yaml" in line for line in header)


def test_the_debug_config_can_build_its_dataset() -> None:
    config = load_config(CONFIGS / "debug.yaml")
    assert config.dataset == BuildSpec(preset="arc-agi-1", num_aug=8, holdout="all", canvas=6, limit_groups=8)


# Published commands and files

SUDOKU_1K = (
    "epochs=20000 eval_interval=2000 lr=1e-4 puzzle_emb_lr=1e-4 weight_decay=1.0 puzzle_emb_weight_decay=1.0"
)
TRM_SUDOKU = (
    "evaluators=[] epochs=50000 eval_interval=5000 lr=1e-4 puzzle_emb_lr=1e-4 weight_decay=1.0 "
    "puzzle_emb_weight_decay=1.0"
)
URM = "arch=urm arch.loops=16 arch.H_cycles=2 arch.L_cycles=6 arch.num_layers=4 +ema=True"
EQR = (
    "arch=trm arch.puzzle_emb_ndim=0 arch.puzzle_emb_len=0 arch.initial_states=random arch.lambda_=0.95 "
    "arch.noise_scale=0.01 eval_interval=3840 lr=1e-4 weight_decay=1.0 ema=True"
)
PUBLISHED_COMMANDS = {
    "arc1": "data_path=data/arc1-aug-1000 eval_num_aug=32",
    "arc2": "data_path=data/arc2-aug-1000 eval_num_aug=32",
    "sudoku_extreme_1k": f"data_path=data/sudoku-extreme-1k-aug-1000 {SUDOKU_1K}",
    "sudoku_full": (
        "data_path=data/sudoku-extreme-full epochs=100 eval_interval=10 lr_min_ratio=0.1 "
        "global_batch_size=2304 lr=3e-4 puzzle_emb_lr=3e-4 weight_decay=0.1 puzzle_emb_weight_decay=0.1 "
        "arch.loss.loss_type=softmax_cross_entropy arch.L_cycles=8 arch.halt_max_steps=8 "
        "arch.pos_encodings=learned"
    ),
    "maze_hard": f"data_path=data/maze-30x30-hard-1k {SUDOKU_1K}",
    "transformer_sudoku": f"arch=transformer data_path=data/sudoku-extreme-1k-aug-1000 {SUDOKU_1K}",
    "looped_transformer_sudoku": f"arch=looped_transformer data_path=data/sudoku-extreme-1k-aug-1000 {SUDOKU_1K}",
    "trm_arc1": (
        "arch=trm data_paths=[data/arc1-aug-1000] arch.L_layers=2 arch.H_cycles=3 arch.L_cycles=4 ema=True "
        "eval_num_aug=32"
    ),
    "trm_arc2": (
        "arch=trm data_paths=[data/arc2-concept-aug-1000] arch.L_layers=2 arch.H_cycles=3 arch.L_cycles=4 "
        "ema=True eval_num_aug=32"
    ),
    "trm_sudoku_mlp": (
        f"arch=trm data_paths=[data/sudoku-extreme-1k-aug-1000] {TRM_SUDOKU} arch.mlp_t=True "
        "arch.pos_encodings=none arch.L_layers=2 arch.H_cycles=3 arch.L_cycles=6 ema=True"
    ),
    "trm_sudoku_attention": (
        f"arch=trm data_paths=[data/sudoku-extreme-1k-aug-1000] {TRM_SUDOKU} arch.L_layers=2 arch.H_cycles=3 "
        "arch.L_cycles=6 ema=True"
    ),
    "trm_maze_hard": (
        f"arch=trm data_paths=[data/maze-30x30-hard-1k] {TRM_SUDOKU} arch.L_layers=2 arch.H_cycles=3 "
        "arch.L_cycles=4 ema=True"
    ),
    "urm_arc1": (
        f"{URM} data_path=data/arc1-aug-1000 epochs=200000 eval_interval=2000 puzzle_emb_lr=1e-2 weight_decay=0.1 "
        "eval_num_aug=32"
    ),
    # Published with use_muon=True too, which is refused.
    "urm_arc2": (
        f"{URM} data_path=data/arc2-concept-aug-1000 epochs=200000 eval_interval=2000 puzzle_emb_lr=1e-2 "
        "weight_decay=0.1 eval_num_aug=32"
    ),
    "urm_sudoku": (
        f"{URM} data_path=data/sudoku-extreme-1k-aug-1000 epochs=50000 eval_interval=2000 lr=1e-4 "
        "puzzle_emb_lr=1e-4 weight_decay=1.0 puzzle_emb_weight_decay=1.0 global_batch_size=128"
    ),
    # Published with epochs of one step each, 50000 and 100000, where a pass has 1.3.
    "eqr_sudoku": f"{EQR} data_path=data/sudoku-extreme-1k-aug-1000 epochs=38400 arch.mlp_t=True",
    "eqr_maze_unique": (
        f"{EQR} data_path=data/maze-30x30-unique-1k epochs=76800 arch.L_layers=1 arch.L_cycles=4 arch.hidden_size=128"
    ),
}


@pytest.mark.parametrize("name", PUBLISHED_COMMANDS)
def test_a_published_command_line_means_the_shipped_config(name: str, tmp_path: Path) -> None:
    overrides = [*PUBLISHED_COMMANDS[name].split(), f"+run_name={name}"]
    expected = load_config(CONFIGS / f"{name}.yaml", [f"run_name={name}"])
    assert load(tmp_path, "", *overrides) == expected


def test_every_published_result_has_its_command_here() -> None:
    ours = {path.stem for path in CONFIGS.glob("*.yaml") if not path.stem.endswith("_skip")}
    assert ours == {*PUBLISHED_COMMANDS, "debug", "demo", "hrm_1b", "speedrun_sudoku"}


def test_configurations_that_skip_padding_differ_from_their_namesakes_in_that_alone() -> None:
    names = [path.stem.removesuffix("_skip") for path in CONFIGS.glob("*_skip.yaml")]
    assert sorted(names) == ["arc1", "arc2", "demo", "trm_arc1", "trm_arc2", "urm_arc1", "urm_arc2"]
    for name in names:
        skip = load_config(CONFIGS / f"{name}_skip.yaml", [f"checkpoint_path=runs/{name}", "padding=keep"])
        assert skip == load_config(CONFIGS / f"{name}.yaml")


def test_the_single_gpu_sudoku_command_parses() -> None:
    config = load_config(
        CONFIGS / "sudoku_extreme_1k.yaml", "global_batch_size=384 lr=7e-5 puzzle_emb_lr=7e-5".split()
    )
    assert (config.global_batch_size, config.lr, config.puzzle_emb_lr) == (384, 7e-5, 7e-5)


def test_a_published_file_loads_as_it_is(tmp_path: Path) -> None:
    text = """
defaults:
  - arch: trm
  - _self_
hydra:
  output_subdir: null
data_paths: ['data/arc-aug-1000']
data_paths_test: []
evaluators:
  - name: arc@ARC
global_batch_size: 768
eval_interval: 10000
checkpoint_every_eval: True
lr: 1e-4
min_eval_interval: 0
ema: False
freeze_weights: False
load_checkpoint: null
arch:
  loss:
    name: losses@ACTLossHead
    loss_type: stablemax_cross_entropy
  puzzle_emb_ndim: ${.hidden_size}
  no_ACT_continue: True
"""
    expected = TrainConfig(
        data_path="data/arc-aug-1000", arch=ArchConfig(name="trm"), checkpoint_path="runs/run"
    )
    assert load(tmp_path, text) == expected


URM_FILE = """
data_path: d
target_q_update_every: 4
use_muon: False
grad_accum_steps: 1
loop_deltas: [0, 8]
arch:
  name: urm.urm@URM
  loops: 16
  num_layers: 8
  H_cycles: 4
  L_cycles: 3
  puzzle_emb_ndim: ${.hidden_size}
  pos_encodings: rope
  profile: true
  ema: True
"""


def test_the_published_file_of_urm_has_its_defaults_and_no_average(tmp_path: Path) -> None:
    expected = TrainConfig(data_path="d", arch=ArchConfig(name="urm"), checkpoint_path="runs/run")
    assert load(tmp_path, URM_FILE) == expected


ALIAS_CASES = [
    ("arch=trm", "arch.name", "trm"),
    ("arch=hrm", "arch.name", "hrm"),
    ("arch=hrm_v1", "arch.name", "hrm"),
    ("arch.name=urm.urm@URM", "arch.name", "urm"),
    ("arch=transformers_baseline", "arch.name", "looped_transformer"),
    ("arch.name=hrm.hrm_act_v1@HierarchicalReasoningModel_ACTV1", "arch.name", "hrm"),
    ("arch.name=recursive_reasoning.hrm@HierarchicalReasoningModel_ACTV1", "arch.name", "hrm"),
    ("arch.name=recursive_reasoning.trm@TinyRecursiveReasoningModel_ACTV1", "arch.name", "trm"),
    ("arch.loss.name=losses@ACTLossHead", "arch", ArchConfig()),
    ("arch.loss.loss_type=softmax_cross_entropy", "arch.loss_type", "softmax_cross_entropy"),
    ("arch.no_ACT_continue=True", "arch.act_continue", False),
    ("arch.no_ACT_continue=false", "arch.act_continue", True),
    ("arch.puzzle_emb_ndim=${.hidden_size}", "arch.puzzle_emb_ndim", None),
    ("arch.puzzle_emb_ndim=96", "arch.puzzle_emb_ndim", 96),
    ("defaults=[{arch: trm}, _self_]", "arch.name", "trm"),
    ("data_paths=[data/x]", "data_path", "data/x"),
    ("data_paths_test=[]", "data_path", "d"),
    ("load_checkpoint=old/step_5", "resume", "old/step_5"),
    ("load_checkpoint=null", "resume", "auto"),
    ("freeze_weights=False", "data_path", "d"),
    ("load_strict=True", "data_path", "d"),
    ("load_optimizer_state=True", "data_path", "d"),
    ("use_muon=False", "data_path", "d"),
    ("grad_accum_steps=1", "gradient_accumulation_steps", 1),
    ("arch.loops=24", "arch.halt_max_steps", 24),
    ("arch.num_layers=3", "arch.L_layers", 3),
    ("arch.lambda_=0.95", "arch.damping", 0.95),
    ("arch.noise_scale=0.01", "arch.update_noise", 0.01),
]
IGNORED = [key for key, alias in ALIASES.items() if alias is None]


@pytest.mark.parametrize(("override", "key", "value"), ALIAS_CASES)
def test_a_published_spelling_sets_our_key(override: str, key: str, value: object, tmp_path: Path) -> None:
    assert value_at(load(tmp_path, "data_path: d", override), key) == value


@pytest.mark.parametrize("key", IGNORED)
def test_a_meaningless_published_key_is_ignored_with_one_warning(
    key: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        config = load(tmp_path, "data_path: d", f"{key}=True")
    assert config == TrainConfig(data_path="d", checkpoint_path="runs/run")
    assert [record.getMessage().count(f"'{key}'") for record in caplog.records] == [1]


def test_every_alias_has_a_case_here() -> None:
    assert {case[0].partition("=")[0] for case in ALIAS_CASES} | set(IGNORED) == set(ALIASES)


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("arch.loss.name=losses@Other", "losses@ACTLossHead"),
        (
            "arch=unet",
            "Input should be 'hrm', 'trm', 'urm', 'transformer' or 'looped_transformer' (got 'unet')",
        ),
        ("use_muon=True", "AdamATan2 trains all weights"),
        ("grad_accum_steps=2", "raise global_batch_size"),
        ("defaults=[{optim: adam}]", "`arch: NAME` and `_self_` only"),
        ("data_paths=[a,b]", "build one from several sources"),
        ("data_paths=a", "data_path=FOLDER"),
        ("data_paths_test=[a]", "should be empty"),
        ("freeze_weights=True", "is not supported"),
        ("arch.no_ACT_continue=maybe", "should be true or false (got 'maybe')"),
    ],
)
def test_a_published_value_that_we_lack_is_refused_with_a_reason(
    override: str, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "data_path: d", override)
    (error,) = str(caught.value).splitlines()
    assert error.startswith(f"command line: {override}: ")
    assert reason in error


def test_choosing_the_arch_resets_nothing_else(tmp_path: Path) -> None:
    arch = load(tmp_path, "data_path: d\narch: {hidden_size: 64, L_cycles: 5}", "arch=trm").arch
    assert arch == ArchConfig(name="trm", hidden_size=64, L_cycles=5)
