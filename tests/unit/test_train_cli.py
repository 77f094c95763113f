import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

from data_pipeline.arc.dataset import ArcOptions
from data_pipeline.base.errors import InputError, exit_code
from data_pipeline.build import build
from data_pipeline.shards.plan import Request
from hrm_dist.checkpoint.config_changes import FILE
from hrm_dist.config import load_config
from hrm_dist.config.data_command import data_command
from hrm_dist.evaluation import evaluate as evaluation
from hrm_dist.train import main
from launch.jobs import spec
from launch.jobs.cluster import Cluster
from tests.training import command_line
from tools import evaluate

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
PARAMETERS = {"arc1": 27.3, "arc2": 27.3, "trm_arc1": 6.8, "trm_arc2": 6.8}  # millions


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, config: Path) -> Path:
    """The folder of a run of two steps; tests must not change it."""
    run = tmp_path_factory.mktemp("trained") / "run"
    assert main([str(config), f"checkpoint_path={run}", "max_steps=2", "checkpoint_interval=1"]) == 0
    return run


class Refusal:
    """Runs training that must be refused: exit code 2, one message, nothing written."""

    def __init__(self, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
        self._capsys, self._folder = capsys, folder

    def __call__(self, *arguments: object) -> str:
        """Give the message."""
        before = content(self._folder)
        self._capsys.readouterr()
        assert exit_code(lambda: main([str(argument) for argument in arguments])) == 2
        out, err = self._capsys.readouterr()
        assert out == ""
        assert err.startswith("error: ")
        assert err.count("error: ") == 1
        assert content(self._folder) == before
        return err


def content(folder: Path) -> dict[str, tuple[int, str]]:
    """What is in a folder and when it was written; of folders only that they are there, since a lock comes and goes."""
    return {
        str(path): (
            0 if path.is_dir() and not path.is_symlink() else path.lstat().st_mtime_ns,
            os.readlink(path) if path.is_symlink() else "",
        )
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Refusal:
    return Refusal(capsys, tmp_path)


def test_every_unknown_key_and_bad_value_is_named_at_once(
    refusal: Refusal, config: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(config.read_text() + "global_bach_size: 8\nkeep_checkpoints: 0\n")
    message = refusal(bad, f"checkpoint_path={tmp_path / 'run'}", "arch.H_cylces=2", "lr=fast")
    assert f"{bad}: unknown key 'global_bach_size'; did you mean 'global_batch_size'?" in message
    assert "arch.H_cylces=2: unknown key 'arch.H_cylces'; did you mean 'arch.H_cycles'?" in message
    assert f"{bad}: keep_checkpoints: Input should be greater than or equal to 1 (got 0)" in message
    assert "lr=fast: Input should be a valid number" in message


def test_trm_without_puzzle_embedding_but_with_its_positions_is_refused(
    refusal: Refusal, config: Path, tmp_path: Path
) -> None:
    message = refusal(
        config, f"checkpoint_path={tmp_path / 'run'}", "arch.name=trm", "arch.puzzle_emb_ndim=0"
    )
    assert "arch.puzzle_emb_len=16 keeps positions for a puzzle embedding" in message
    assert "set arch.puzzle_emb_len=0 too" in message


def test_a_run_too_short_for_a_single_step_is_refused(refusal: Refusal, config: Path, tmp_path: Path) -> None:
    message = refusal(config, f"checkpoint_path={tmp_path / 'run'}", "epochs=1", "global_batch_size=512")
    assert "epochs=1" in message
    assert "global_batch_size=512" in message


def test_a_missing_dataset_is_refused(refusal: Refusal, config: Path, tmp_path: Path) -> None:
    message = refusal(config, f"checkpoint_path={tmp_path / 'run'}", f"data_path={tmp_path / 'nowhere'}")
    assert f"{tmp_path / 'nowhere' / 'dataset.json'}: not found" in message
    assert "python -m data_pipeline.build" in message


def flip_a_byte(path: Path) -> None:
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)


@pytest.mark.parametrize(
    ("file", "damage", "reason"),
    [
        ("train/row-000000-0000.tar.zst", flip_a_byte, "sha256"),
        ("train/index.json", Path.unlink, "missing"),
        ("dataset.json", lambda path: path.write_text("{"), "not JSON"),
    ],
)
def test_a_damaged_dataset_is_refused(
    file: str, damage: Callable[[Path], None], reason: str,
    refusal: Refusal, dataset: Path, config: Path, tmp_path: Path,
) -> None:  # fmt: skip
    data = shutil.copytree(dataset, tmp_path / "data")
    damage(data / file)
    message = refusal(config, f"checkpoint_path={tmp_path / 'run'}", f"data_path={data}")
    assert str(data / file) in message
    assert reason in message
    assert "build" in message


def resume_in_a_copy(trained: Path, tmp_path: Path) -> tuple[Path, str]:
    run = shutil.copytree(trained, tmp_path / "run", symlinks=True)
    return run, f"checkpoint_path={run}"


@pytest.mark.parametrize(
    ("override", "difference"),
    [
        ("arch.hidden_size=64", "arch.hidden_size is 64, the checkpoint has 32"),
        ("seed=1", "seed is 1, the checkpoint has 0"),
        ("arch.update_noise=0.01", "arch.update_noise is 0.01, the checkpoint has 0.0"),
        ("arch.initial_states=random", "arch.initial_states is 'random', the checkpoint has 'fixed'"),
        ("global_batch_size=16", "global_batch_size is 16, the checkpoint has 8"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_with_what_differs(
    override: str, difference: str, refusal: Refusal, trained: Path, config: Path, tmp_path: Path
) -> None:
    run, own = resume_in_a_copy(trained, tmp_path)
    message = refusal(config, own, override)
    assert f"{run / 'checkpoints' / 'step_2'}: cannot resume from another run's checkpoint" in message
    assert f": {difference}. Set them back" in message
    assert "another checkpoint_path" in message


def test_a_checkpoint_trained_on_another_dataset_is_refused(
    refusal: Refusal, trained: Path, config: Path, tmp_path: Path
) -> None:
    options = ArcOptions(num_aug=1, holdout="all", canvas=6, limit_groups=2)
    build(Request("arc-agi-1", [], tmp_path / "other", options, seed=0, workers=1, quiet=True))
    _, own = resume_in_a_copy(trained, tmp_path)
    message = refusal(config, own, f"data_path={tmp_path / 'other'}", "max_steps=3")
    assert f"data_path={tmp_path / 'other'} is not the dataset it was trained on" in message


@pytest.mark.parametrize("name", ["model-00000", "optimizer-00000", "rank-00000"])
def test_a_damaged_checkpoint_is_refused_with_the_file_at_fault(
    name: str, refusal: Refusal, trained: Path, config: Path, tmp_path: Path
) -> None:
    run, own = resume_in_a_copy(trained, tmp_path)
    file = run / "checkpoints" / "step_2" / f"{name}.safetensors"
    flip_a_byte(file)
    message = refusal(config, own, "max_steps=3")
    assert f"{file}: its sha256 is not the one in state.json; the file is damaged" in message
    assert "choose another checkpoint" in message
    assert f"The last complete one beside it: resume={run / 'checkpoints' / 'step_1'}" in message
    assert main([str(config), own, f"resume={run / 'checkpoints' / 'step_1'}", "max_steps=3"]) == 0


@pytest.mark.parametrize("in_background", [False, True])
def test_a_run_whose_last_checkpoint_cannot_be_written_does_not_end_in_peace(
    in_background: bool, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [f"checkpoint_path={tmp_path / 'run'}", "max_steps=2", f"async_checkpoint={in_background}"]
    with mock.patch("hrm_dist.checkpoint.writer.write_tensors", side_effect=OSError(28, "No space left")):
        assert exit_code(lambda: main([str(config), *settings])) == 2
    assert "cannot be written on rank 0 (No space left); make room" in capsys.readouterr().err
    assert main([str(config), *settings]) == 0


def test_a_link_to_a_checkpoint_that_is_gone_is_refused_not_taken_for_a_new_run(
    refusal: Refusal, trained: Path, config: Path, tmp_path: Path
) -> None:
    run, own = resume_in_a_copy(trained, tmp_path)
    shutil.rmtree(run / "checkpoints" / "step_2")
    assert "no checkpoint here" in refusal(config, own, "max_steps=3")


def test_a_run_whose_link_got_lost_resumes_from_its_newest_checkpoint(
    trained: Path, config: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, own = resume_in_a_copy(trained, tmp_path)
    (run / "checkpoints" / "latest").unlink()
    assert main([str(config), own, "max_steps=3"]) == 0
    assert "the newest complete checkpoint is step_2" in caplog.text
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]


def test_a_copy_of_a_run_with_folders_in_place_of_links_resumes(
    trained: Path, config: Path, tmp_path: Path
) -> None:
    run, own = resume_in_a_copy(trained, tmp_path)
    checkpoints = run / "checkpoints"
    (checkpoints / "latest").unlink()
    shutil.copytree(checkpoints / "step_2", checkpoints / "latest")
    shutil.copytree(checkpoints / "step_1", checkpoints / "best")
    assert main([str(config), own, "max_steps=3"]) == 0
    assert (os.readlink(checkpoints / "latest"), os.readlink(checkpoints / "best")) == ("step_3", "step_1")


def test_another_checkpoint_in_place_of_the_link_is_refused_before_anything_is_written(
    refusal: Refusal, trained: Path, config: Path, tmp_path: Path
) -> None:
    run, own = resume_in_a_copy(trained, tmp_path)
    (run / "checkpoints" / "latest").unlink()
    shutil.copytree(run / "checkpoints" / "step_2", run / "checkpoints" / "latest")
    flip_a_byte(run / "checkpoints" / "latest" / "state.json")
    message = refusal(config, own, "max_steps=3")
    assert "latest: is a folder where a link should be" in message
    assert "delete it, and the run resumes from the newest" in message
    shutil.rmtree(run / "checkpoints" / "latest")
    assert main([str(config), own, "max_steps=3"]) == 0


def test_an_abandoned_checkpoint_is_refused_by_its_name(
    refusal: Refusal, trained: Path, config: Path, tmp_path: Path
) -> None:
    run, own = resume_in_a_copy(trained, tmp_path)
    abandoned = (run / "checkpoints" / "step_1").rename(run / "checkpoints" / "abandoned_step_1")
    assert "is no step_N of it; rename it" in refusal(config, own, f"resume={abandoned}", "max_steps=3")


def test_resume_never_is_refused_where_a_run_is(
    refusal: Refusal, trained: Path, config: Path, tmp_path: Path
) -> None:
    run, own = resume_in_a_copy(trained, tmp_path)
    message = refusal(config, own, "resume=never")
    assert f"resume=never: {run} already holds a run (step_2); continue it with resume=auto" in message


def test_a_checkpoint_beyond_the_last_step_is_refused(
    refusal: Refusal, trained: Path, config: Path, tmp_path: Path
) -> None:
    _, own = resume_in_a_copy(trained, tmp_path)
    assert "is at step 2, beyond the last step 1; raise" in refusal(config, own, "max_steps=1")


def test_changed_settings_of_a_resumed_run_are_shown_and_recorded(
    trained: Path, config: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, own = resume_in_a_copy(trained, tmp_path)
    assert main([str(config), own, "max_steps=4", "lr=1e-2"]) == 0
    assert "changed settings from step 2 on: " in caplog.text
    for change in ("max_steps: 2 -> 4", "lr: 0.001 -> 0.01", "checkpoint_interval: 1 -> null"):
        assert change in caplog.text
    assert load_config(run / "config.yaml").lr == 1e-2
    [line] = map(json.loads, (run / FILE).read_text().splitlines())
    assert line["step"] == 2
    assert line["changes"]["lr"] == [1e-3, 1e-2]
    caplog.clear()
    assert main([str(config), own, "max_steps=4", "lr=1e-2"]) == 0
    assert "changed settings" not in caplog.text
    assert len((run / FILE).read_text().splitlines()) == 1


def test_a_finished_run_refuses_settings_that_would_have_changed_it(
    refusal: Refusal, trained: Path, config: Path, tmp_path: Path
) -> None:
    run, own = resume_in_a_copy(trained, tmp_path)
    same = ["max_steps=2", "checkpoint_interval=1"]
    message = refusal(config, own, *same, "lr=1e-2", "weight_decay=0", "log_interval=5")
    assert f"{run / 'checkpoints' / 'step_2'}: is at the last step, 2" in message
    assert "(lr: 0.001 -> 0.01; weight_decay: 0.1 -> 0.0)" in message
    assert (
        "Put them back, train a new run with another checkpoint_path, or raise max_steps to resume" in message
    )
    for remedy in ([own, *same], [f"{own}2", *same, "lr=1e-2"], [own, "max_steps=3", "lr=1e-2"]):
        assert main([str(config), *remedy]) == 0


def test_a_run_that_its_epochs_end_goes_on_with_more_of_them(
    refusal: Refusal, config: Path, tmp_path: Path
) -> None:
    settings = [str(config), f"checkpoint_path={tmp_path / 'run'}"]
    assert main([*settings, "epochs=1"]) == 0  # 4 steps
    assert "or raise epochs to resume" in refusal(*settings, "epochs=1", "ema=true")
    assert "or raise max_steps and epochs to resume" in refusal(
        *settings, "epochs=1", "max_steps=4", "ema=true"
    )
    assert main([*settings, "epochs=2", "ema=true"]) == 0


@pytest.mark.parametrize(
    "settings",
    [
        ["log_interval=5", "eval_interval=1", "eval_num_aug=0"],
        ["gradient_accumulation_steps=2", "activation_checkpointing=true", "puzzle_emb_device=cpu"],
        [
            "run_name=other",
            "keep_checkpoints=1",
            "async_checkpoint=false",
            "timeout_s=60",
            "save_carry=false",
        ],
    ],
)
def test_a_finished_run_takes_settings_that_change_nothing_of_it(
    settings: list[str], trained: Path, config: Path, tmp_path: Path
) -> None:
    run, own = resume_in_a_copy(trained, tmp_path)
    assert main([str(config), own, "max_steps=2", *settings]) == 0
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2
    key = settings[0].partition("=")[0]
    assert json.loads((run / FILE).read_text())["changes"].keys() >= {key}


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("arch.L_cycles=3", "arch.L_cycles is 3, the checkpoint has 2"),
        ("precision=bf16", "arch.forward_dtype is 'bfloat16', the checkpoint has 'float32'; precision is"),
        ("seed=1", "seed is 1, the checkpoint has 0"),
        (
            "lr=1e-2",
            "is at the last step, 2, so nothing can be trained with changed settings (lr: 0.001 -> 0.01)",
        ),
        ("max_steps=1", "beyond the last step 1"),
    ],
)
def test_a_submission_is_refused_what_the_job_would_be(
    setting: str, reason: str, trained: Path, config: Path, tmp_path: Path
) -> None:
    run, own = resume_in_a_copy(trained, tmp_path)
    settings = [own, "max_steps=2", "checkpoint_interval=1", setting]
    before = content(tmp_path)
    with pytest.raises(InputError, match=re.escape(reason)):
        spec.training([str(config), *settings], Cluster(cluster="local"))
    others = ["resume=" + str(run / "checkpoints" / "step_2"), f"checkpoint_path={tmp_path / 'other'}"]
    with pytest.raises(InputError, match=re.escape(reason)):
        spec.training([str(config), *settings, *others], Cluster(cluster="local"))
    assert content(tmp_path) == before
    spec.training([str(config), own, "max_steps=3", "lr=1e-2"], Cluster(cluster="local"))


def test_the_record_of_a_run_names_no_dataset_that_it_does_not_train_on(config: Path, tmp_path: Path) -> None:
    sectioned, run = tmp_path / "c.yaml", tmp_path / "run"
    sectioned.write_text(config.read_text() + "dataset: {preset: arc-agi-2}\n")
    assert main([str(sectioned), f"checkpoint_path={run}", "max_steps=1"]) == 0
    assert load_config(run / "config.yaml").dataset is None
    assert "arc-agi-2" not in (run / "checkpoints" / "latest" / "state.json").read_text()


def test_of_equal_scores_the_later_is_best_across_a_resume(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "evaluate", lambda *_, **__: {"exact_accuracy": 0.0})
    run = tmp_path / "run"
    settings = [str(config), f"checkpoint_path={run}", "eval_interval=1", "keep_checkpoints=1"]
    for steps in (4, 8):
        assert main([*settings, f"max_steps={steps}"]) == 0
        assert os.readlink(run / "checkpoints" / "best") == f"step_{steps}"
        assert [path.name for path in (run / "checkpoints").glob("step_*")] == [f"step_{steps}"]


def test_where_nothing_can_be_scored_the_latest_checkpoint_is_named(
    config: Path,
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(evaluation, "evaluate", lambda *_, **__: {})
    checkpoints = tmp_path / "run" / "checkpoints"
    assert main([str(config), f"checkpoint_path={tmp_path / 'run'}", "eval_interval=1", "max_steps=1"]) == 0
    assert f"no checkpoint is the best; take {checkpoints / 'latest'}" in caplog.text
    words = [str(checkpoints / "best"), "--data", str(dataset), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["evaluate", *words])
    assert exit_code(evaluate.main) == 2
    assert f"no checkpoint is the best; take {checkpoints / 'latest'}" in capsys.readouterr().err


def test_a_run_folder_that_cannot_be_made_is_refused(refusal: Refusal, config: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for run in (tmp_path / "file", tmp_path / "file" / "run"):
        message = refusal(config, f"checkpoint_path={run}")
        assert f"checkpoint_path={run}: cannot be made" in message
        assert "choose another folder" in message


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_dry_runs_without_its_dataset(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([str(path), "--dry-run", "seed=3"]) == 0
    resolved, _, sizes = capsys.readouterr().out.partition("\n\n")
    (tmp_path / "resolved.yaml").write_text(resolved)
    assert load_config(tmp_path / "resolved.yaml") == load_config(path, ["seed=3"])
    parameters = next(line for line in sizes.splitlines() if line.startswith("parameters: "))
    millions = int(parameters.removeprefix("parameters: ").replace(",", "")) / 1e6
    if path.stem in PARAMETERS:
        assert round(millions, 1) == PARAMETERS[path.stem]
    assert "\nattention: " in sizes
    for purpose in ("weights", "optimizer", "puzzle table", "carry", "activations", "total"):
        assert f"  {purpose} " in sizes
    config = load_config(path)
    if config.dataset is None:
        command = data_command(path, config)
        assert command is not None
        assert command.request.out == Path(config.data_path)
        assert f"data: {config.data_path} is missing; this builds it: {command.text}\n" in sizes
        assert f"the figures below assume {command.request.preset}: " in sizes
    assert [entry.name for entry in tmp_path.iterdir()] == ["resolved.yaml"]


def test_a_dry_run_counts_the_steps_of_a_dataset_that_is_there(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(config), f"checkpoint_path={tmp_path / 'run'}", "--dry-run"]) == 0
    assert "steps: 4,000" in capsys.readouterr().out  # 1000 passes over 8 groups of 4 examples, 8 a step
    assert not any(tmp_path.iterdir())


def test_a_dry_run_tells_what_skipped_padding_saves(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(padding: str) -> str:
        run = f"checkpoint_path={tmp_path / 'run'}"
        assert main([str(config), run, "--dry-run", f"padding={padding}"]) == 0
        return capsys.readouterr().out

    assert "\npadding: skipped; " not in told("keep")
    skip = told("skip")
    assert re.search(r"padding: skipped; [\d.]+% of positions .* TFLOP a step in place of ", skip)
    assert re.search(
        r"rows of a packed batch: \d+.* \(with padding: 296\)", skip
    )  # 8 sequences of 37 positions


def test_a_dry_run_without_data_says_that_it_counts_padding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    [published] = [path for path in CONFIGS if path.stem == "arc1"]
    assert main([str(published), "--dry-run", "padding=skip"]) == 0
    assert (
        "padding: skipped; how much that saves is known once the dataset is there" in capsys.readouterr().out
    )


def test_a_dry_run_refuses_to_skip_padding_where_a_run_would(
    refusal: Refusal, config: Path, tmp_path: Path
) -> None:
    run = [f"checkpoint_path={tmp_path / 'run'}", "--dry-run", "padding=skip"]
    earlier = Path(__file__).parents[1] / "golden" / "earlier" / "arc"
    assert "has no windows.json, since an earlier version built it" in refusal(
        config, *run, f"data_path={earlier}"
    )
    [sudoku] = [path for path in CONFIGS if path.stem == "sudoku_extreme_1k"]
    assert "is of kind sudoku, whose puzzles fill the canvas" in refusal(
        sudoku, *run, f"data_path={tmp_path / 'nowhere'}"
    )


def test_a_file_or_a_run_in_place_of_a_dataset_or_a_checkpoint_is_named(
    refusal: Refusal, trained: Path, config: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "new").mkdir()
    run = [f"checkpoint_path={tmp_path / 'new'}", "device=cpu"]
    assert f"{tmp_path / 'file'}: is a file; give the folder" in refusal(
        config, *run, f"data_path={tmp_path / 'file'}"
    )
    assert f"such as {trained / 'checkpoints' / 'latest'})" in refusal(config, *run, f"resume={trained}")


def test_without_its_dataset_a_configuration_trains_on_nothing_but_says_what_builds_it(
    refusal: Refusal, tmp_path: Path
) -> None:
    published = next(path for path in CONFIGS if path.stem == "sudoku_extreme_1k")
    settings = [f"data_path={tmp_path / 'my data'}", f"checkpoint_path={tmp_path / 'run'}", "device=cpu"]
    (tmp_path / "run").mkdir()
    command = (
        "python -m data_pipeline.build sudoku --subset sudoku-extreme-1k --num-aug 1000 "
        f"--out '{tmp_path / 'my data'}'"
    )
    assert f"{tmp_path / 'my data'}: no dataset here; `{command}` builds it" in refusal(published, *settings)
    with pytest.raises(InputError, match=re.escape(command)):
        spec.training([str(published), *settings], Cluster(cluster="local"))


@pytest.mark.parametrize(
    "header", ["", "# Data: python -m data_pipeline.build nonsense --out x", "# a\n#b 'c"]
)
def test_a_dry_run_guesses_no_size_of_data_that_nothing_describes(
    header: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text(f"{header}\ndata_path: {tmp_path / 'nowhere'}\n")
    assert main([str(tmp_path / "c.yaml"), "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert "parameters and memory: known once the dataset is there" in out
    assert f"--out {tmp_path / 'nowhere'}" in out
    assert err == ""


def test_what_a_dry_run_says_of_gpus_is_what_it_says_of_memory(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    large = [
        "device=auto",
        "arch.hidden_size=4096",
        "arch.num_heads=8",
        "global_batch_size=16",
        "precision=bf16",
    ]
    arguments = [str(config), f"checkpoint_path={tmp_path / 'run'}", "--dry-run", *large, "arch.H_layers=8"]

    def total(*more: str) -> tuple[float, list[list[str]]]:
        assert main([*arguments, *more]) == 0
        lines = capsys.readouterr().out.splitlines()
        [size] = [line.split() for line in lines if line.startswith("  total")]
        table = [line.split() for line in lines if re.match(r" +\d+ GB ", line)]
        return float(size[1]) * {"MB": 1e6, "GB": 1e9}[size[2]], table

    as_it_is, table = total()
    assert [row[0] for row in table] == ["16", "24", "40", "80", "141"]
    for gigabytes, _, alone, _ in table:
        limit = 0.855 * int(gigabytes) * 1e9
        if alone == "yes":
            assert as_it_is <= limit
        elif alone == "no":
            assert total("gradient_accumulation_steps=16")[0] > 0.995 * 0.85 * int(gigabytes) * 1e9
        else:
            assert total(f"gradient_accumulation_steps={alone}")[0] <= limit
    assert {row[2] for row in table} >= {"yes", "no"}


def test_training_does_not_even_import_what_no_metrics_go_to(config: Path, tmp_path: Path) -> None:
    arguments = [str(config), f"checkpoint_path={tmp_path / 'run'}", "max_steps=1"]
    code = f"import sys; from hrm_dist.train import main; main({arguments!r}); print([*sys.modules])"
    finished = command_line("-c", code)
    assert finished.exit_code == 0, finished.output
    loaded = finished.output.splitlines()[-1]
    assert "'hrm_dist.run_log.sinks'" in loaded
    assert not {"'wandb'", "'tensorboard'"} & {*loaded.strip("[]").split(", ")}
