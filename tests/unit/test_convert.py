import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from data_pipeline.base.errors import InputError, exit_code
from data_pipeline.schema import load_dataset_info
from hrm_dist.checkpoint import reader
from hrm_dist.checkpoint.writer import CheckpointWriter
from hrm_dist.config.architectures import ARCHITECTURES
from hrm_dist.evaluation.load_model import load_model
from hrm_dist.model.act import ACTModel
from hrm_dist.model.released import convert_released, published_name
from hrm_dist.tensor_shards import replicated
from hrm_dist.train import main as train
from tests.unit.golden import GOLDEN, arch_fields, assert_close, load_golden
from tests.unit.models import METADATA, arch_of
from tools.convert import __main__ as convert
from tools.convert.fit import problems
from tools.convert.import_ import UNMATCHED, match_rows, take_rows
from tools.convert.weights_file import read_weights

TABLE = "model.inner.puzzle_emb.weights"

Run = Callable[..., int]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["convert", *map(str, arguments)])
        return exit_code(convert.main)

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, config: Path) -> Path:
    """A checkpoint after three steps, with a moving average."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert train([str(config), f"checkpoint_path={folder}", "max_steps=3", "ema=true", "ema_rate=0.5"]) == 0
    return folder / "checkpoints" / "latest"


def model_tensors(path: Path, kind: str = "model") -> dict[str, Tensor]:
    return reader.open_checkpoint(path).tensors(kind)


# Export, and back


@pytest.mark.parametrize("weights", ["ema", "average", "raw"])
def test_export_and_import_give_the_same_bits(
    weights: str,
    run: Run,
    trained: Path,
    dataset: Path,
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, folder = tmp_path / "w.safetensors", tmp_path / "run"
    assert run("export", trained, "--out", file, "--weights", weights) == 0
    assert run("import", file, "--data", dataset, "--config", config, "--out", folder) == 0
    assert (
        "73 of 73 rows matched by name, 0 are zero; 0 of 73 published rows are unused"
        in capsys.readouterr().out
    )
    expected = model_tensors(trained)
    if weights != "raw":
        averages = model_tensors(trained, "ema")
        assert any(not torch.equal(average, expected[name]) for name, average in averages.items())
        expected |= averages
    got = model_tensors(folder / "checkpoints" / "latest")
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())


def test_an_export_has_published_names_and_says_what_it_is(
    run: Run, trained: Path, dataset: Path, tmp_path: Path
) -> None:
    file = tmp_path / "new" / "w.safetensors"
    assert run("export", trained, "--out", file) == 0
    names = set(load_file(file))
    assert names == {published_name(name) for name in model_tensors(trained)}
    assert {TABLE, "model.inner.H_level.layers.0.mlp.down_proj.weight"} <= names
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    assert json.loads(metadata["arch"])["hidden_size"] == 32
    assert "ema weights, step 3" in metadata["source"]
    rows = json.loads((tmp_path / "new" / "w.identifiers.json").read_text())
    assert rows == json.loads((dataset / "identifiers.json").read_text())
    assert sorted(path.name for path in file.parent.iterdir()) == ["w.identifiers.json", "w.safetensors"]


def test_training_starts_from_an_import(
    run: Run, trained: Path, dataset: Path, config: Path, tmp_path: Path
) -> None:
    file = tmp_path / "w.safetensors"
    assert run("export", trained, "--out", file, "--weights", "raw") == 0
    assert (
        run("import", file, "--data", dataset, "--config", config, "ema=true", "--out", tmp_path / "start")
        == 0
    )
    start = tmp_path / "start" / "checkpoints" / "latest"
    further = [f"checkpoint_path={tmp_path / 'run'}", f"resume={start}", "max_steps=1", "ema=true", "lr=1e-9"]
    assert train([str(config), *further]) == 0
    before, after = (model_tensors(path) for path in (start, tmp_path / "run" / "checkpoints" / "step_1"))
    name = "network.lm_head.weight"
    assert not torch.equal(after[name], before[name])
    torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-8)


# Published weights


@pytest.mark.parametrize("name", ["hrm", "trm", "urm"])
def test_imported_published_weights_give_the_published_logits(
    name: str, run: Run, dataset: Path, tmp_path: Path
) -> None:
    golden = load_golden(f"{name}_tiny")
    names = json.loads((dataset / "identifiers.json").read_text())
    ours = [0, 40, 3, 7, 1]  # the puzzles that the five published rows are of
    identifiers = tmp_path / "identifiers.json"
    identifiers.write_text(json.dumps([names[i].replace("|||", "_") for i in ours]))  # HRM's spelling
    torch.save(golden["state_dict"], tmp_path / "weights")
    arch = {"name": name, "loss_type": golden["loss_type"], **arch_fields(golden)}
    settings = {"data_path": "elsewhere", "arch": arch}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    given = ["--data", dataset, "--config", tmp_path / "c.yaml", "--identifiers", identifiers]
    assert run("import", tmp_path / "weights", *given, "--out", tmp_path / "run") == 0

    metadata = load_dataset_info(dataset).metadata("train")
    path = tmp_path / "run" / "checkpoints" / "latest"
    model = load_model(path, dataset, metadata, ema=True)
    batch = golden["batches"][0]
    batch["puzzle_identifiers"] = torch.tensor(ours, dtype=torch.int32)[batch["puzzle_identifiers"].long()]
    carry = model.initial_carry(batch)
    for segment in golden["eval_segments"]:
        with torch.no_grad():
            carry, outputs = model(carry, batch)
        assert_close(outputs["logits"], segment["logits"])
        assert_close(outputs["q_halt_logits"], segment["q_halt_logits"])

    file = tmp_path / "back.safetensors"
    assert run("export", path, "--out", file) == 0
    back, published = load_file(file), golden["state_dict"]
    assert back.keys() == published.keys()
    back[TABLE] = back[TABLE][ours]
    assert all(torch.equal(back[key], tensor) for key, tensor in published.items())


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "module.", "module._orig_mod.", "model.", "_orig_mod.module.model."]
)
def test_wrappers_names_before_the_published_ones_are_left_out(prefix: str) -> None:
    published = load_golden("hrm_tiny")["state_dict"]
    wrapped = {prefix + name: tensor for name, tensor in published.items()}
    assert convert_released(wrapped).keys() == convert_released(published).keys()


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."])
def test_wrappers_names_within_the_published_ones_are_left_out(wrapper: str) -> None:
    published = load_golden("hrm_tiny")["state_dict"]
    wrapped = {name.replace("layers.0.", f"layers.0.{wrapper}"): tensor for name, tensor in published.items()}
    assert wrapped.keys() != published.keys()
    assert convert_released(wrapped).keys() == convert_released(published).keys()


@pytest.mark.parametrize("where", ["model_state_dict", "state_dict", "model", "module", "state/model", "ema"])
def test_weights_are_found_within_what_a_training_saved(where: str, tmp_path: Path) -> None:
    published = load_golden("hrm_tiny")["state_dict"]
    saved: dict[str, Any] = published
    for key in reversed(where.split("/")):
        saved = {key: saved, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}}
    torch.save(saved, tmp_path / "w.pt")
    tensors, found_in = read_weights(tmp_path / "w.pt")
    assert tensors.keys() == convert_released(published).keys()
    assert found_in == where


def test_averaged_weights_take_the_place_of_the_others(tmp_path: Path) -> None:
    published = load_golden("hrm_tiny")["state_dict"]
    name = "model.inner.lm_head.weight"
    shadow = {"n_averaged": torch.tensor(5), f"module.{name}": published[name] + 1}
    torch.save({"model": published, "ema": {"shadow": shadow}}, tmp_path / "w.pt")
    tensors, found_in = read_weights(tmp_path / "w.pt")
    assert found_in == "model and ema/shadow"
    assert torch.equal(tensors["network.lm_head.weight"], published[name] + 1)
    assert tensors.keys() == convert_released(published).keys()


def test_a_file_of_two_models_is_refused_with_a_remedy_that_works(tmp_path: Path) -> None:
    published = load_golden("hrm_tiny")["state_dict"]
    file, out = tmp_path / "w.pt", tmp_path / "one.pt"
    torch.save({"last": published, "best": published}, file)
    with pytest.raises(InputError, match=r"holds several models \(last, best\)") as refused:
        read_weights(file)
    remedy = re.search(r"with (torch\.save.*), and", str(refused.value))
    assert remedy
    exec(remedy[1], {"torch": torch, "FILE": out})
    assert read_weights(out).tensors.keys() == convert_released(published).keys()


def test_weights_that_are_no_floating_point_numbers_are_refused(tmp_path: Path) -> None:
    published = load_golden("hrm_tiny")["state_dict"]
    torch.save({name: tensor.to(torch.int8) for name, tensor in published.items()}, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"is torch\.int8, but weights are dense floating-point numbers"):
        read_weights(tmp_path / "w.pt")


def test_rows_are_matched_by_name_in_either_spelling() -> None:
    published = ["<blank>", "a", "a_t3_0718293645", "b|||t1|||0123456789", "c", "a_b_t0_0123456789"]
    ours = ["<blank>", "a|||t3|||0718293645", "a", "b", "b_t1_0123456789", "a_b", "c|||t7|||0123456789"]
    assert match_rows(published, ours).tolist() == [0, 2, 1, UNMATCHED, 3, 5, UNMATCHED]


def test_of_two_rows_with_one_name_the_first_counts() -> None:
    assert match_rows(["<blank>", "a", "a"], ["a"]).tolist() == [1]


def test_unmatched_rows_are_zero_or_the_mean_without_the_blank_row() -> None:
    table = torch.tensor([[100.0, 100.0], [1.0, 2.0], [3.0, 6.0]])
    source = np.array([0, 2, UNMATCHED])
    assert take_rows(table, source, use_mean=False).tolist() == [[100, 100], [3, 6], [0, 0]]
    assert take_rows(table, source, use_mean=True).tolist() == [[100, 100], [3, 6], [2, 4]]


def test_what_was_matched_is_counted(
    run: Run, trained: Path, dataset: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "w.safetensors"
    assert run("export", trained, "--out", file) == 0
    names = json.loads((dataset / "identifiers.json").read_text())
    other = tmp_path / "other.json"
    other.write_text(json.dumps([*names[:70], "x", "y", "z"]))
    given = ["--data", dataset, "--config", config, "--identifiers", other, "--unmatched", "mean"]
    assert run("import", file, *given, "--out", tmp_path / "run") == 0
    assert (
        "70 of 73 rows matched by name, 3 have the mean of the published rows; 3 of 73 published rows are unused"
    ) in capsys.readouterr().out
    table = model_tensors(trained)["puzzle_emb.weights"]
    got = model_tensors(tmp_path / "run" / "checkpoints" / "latest")["puzzle_emb.weights"]
    assert torch.equal(got[:70], table[:70])
    torch.testing.assert_close(got[70:], table[1:].mean(0).expand(3, -1))


def test_an_import_that_knows_none_of_the_puzzles_says_so(
    run: Run, trained: Path, dataset: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "w.safetensors"
    assert run("export", trained, "--out", file) == 0
    other = tmp_path / "other.json"
    other.write_text(json.dumps(["<blank>", *(f"x{i}" for i in range(72))]))
    given = ["--data", dataset, "--config", config, "--identifiers", other]
    assert run("import", file, *given, "--out", tmp_path / "run") == 0
    assert "warning: the weights know no puzzle of" in capsys.readouterr().err


def test_equal_identifiers_need_no_names(
    run: Run, trained: Path, dataset: Path, config: Path, tmp_path: Path
) -> None:
    file = tmp_path / "w.safetensors"
    assert run("export", trained, "--out", file) == 0
    (tmp_path / "w.identifiers.json").unlink()
    given = ["--data", dataset, "--config", config, "--same-identifiers"]
    assert run("import", file, *given, "--out", tmp_path / "run") == 0
    got = model_tensors(tmp_path / "run" / "checkpoints" / "latest")["puzzle_emb.weights"]
    assert torch.equal(got, model_tensors(trained)["puzzle_emb.weights"])


# What does not fit


@pytest.mark.parametrize(
    ("override", "tensor", "remedy"),
    [
        (
            "arch.hidden_size=64",
            "model.inner.H_init is [32], the configuration wants [64]",
            "set arch.hidden_size=32",
        ),
        (
            "arch.H_layers=2",
            "model.inner.H_level.layers.1.mlp.down_proj.weight is missing, the configuration wants [32, 256]",
            "set arch.H_layers=1",
        ),
        (
            "arch.name=trm arch.puzzle_emb_len=1 arch.L_layers=1",
            "model.inner.H_level.layers.0.mlp.down_proj.weight [32, 256] has no place in the configuration",
            "set arch.name=hrm",
        ),
        (
            "arch.expansion=16",
            "model.inner.H_level.layers.0.mlp.down_proj.weight is [32, 256], the configuration wants [32, 512]",
            "set arch.expansion=1",
        ),
        (
            "arch.puzzle_emb_ndim=16",
            "model.inner.puzzle_emb.weights is [73, 32]",
            "set arch.puzzle_emb_ndim=32",
        ),
        (
            "arch.puzzle_emb_ndim=0",
            "model.inner.puzzle_emb.weights [73, 32] has no place",
            "set arch.puzzle_emb_ndim=32",
        ),
        (
            "arch.pos_encodings=learned",
            "model.inner.embed_pos.embedding_weight is missing",
            "set arch.pos_encodings=rope",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused_with_the_setting_that_would_make_them(
    override: str, tensor: str, remedy: str, run: Run, trained: Path, dataset: Path, config: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    file = tmp_path / "w.safetensors"
    assert run("export", trained, "--out", file) == 0
    out = tmp_path / "run"
    assert run("import", file, "--data", dataset, "--config", config, *override.split(), "--out", out) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {file}: {tensor}")
    assert line.endswith(f"; {remedy}")
    assert not out.exists()


TRM_BLOCK = "network.recurrence.L_level.layers.0."


@pytest.mark.parametrize(
    ("name", "found", "wanted", "remedy"),
    [
        ("network.lm_head.weight", (11, 8), (12, 8), "the weights have 11 tokens and the dataset 12"),
        (f"{TRM_BLOCK}mlp_t.gate_up_proj.weight", (512, 39), (512, 40), "set arch.puzzle_emb_len=3, or"),
        (
            f"{TRM_BLOCK}mlp_t.down_proj.weight",
            (25, 256),
            (40, 256),
            "give --data of a canvas with 25 cells or fewer",
        ),
        (f"{TRM_BLOCK}mlp_t.down_proj.weight", (40, 256), None, "set arch.mlp_t=true"),
        (f"{TRM_BLOCK}self_attn.o_proj.weight", (8, 8), None, "set arch.mlp_t=false"),
        ("network.embed_pos.embedding_weight", (37, 8), (38, 8), "set arch.puzzle_emb_len=1, or"),
        ("network.recurrence.H_level.layers.0.mlp.down_proj.weight", None, (8, 256), "set arch.name=trm"),
        ("network.q_head.bias", (3,), (2,), "give weights of the architecture"),
        ("network.something", (3,), None, "give weights of the architecture"),
    ],
)
def test_other_misfits_have_a_remedy_too(
    name: str, found: tuple[int, ...] | None, wanted: tuple[int, ...] | None, remedy: str
) -> None:
    common = {"network.lm_head.weight": (12, 8), f"{TRM_BLOCK}mlp.down_proj.weight": (8, 256)}
    ours = common | ({name: wanted} if wanted else {})
    theirs = common | ({name: found} if found else {})
    [line] = problems(theirs, ours, seq_len=36)
    assert line.startswith(published_name(name))
    assert remedy in line


def shapes_of(name: str, **fields: object) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        state = ACTModel(arch_of(name, **fields), METADATA).state_dict()
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


@pytest.mark.parametrize("wanted", ARCHITECTURES)
@pytest.mark.parametrize("found", ARCHITECTURES)
def test_weights_of_another_architecture_are_refused_with_its_name(found: str, wanted: str) -> None:
    lines = problems(shapes_of(found), shapes_of(wanted), METADATA.seq_len)
    assert all(line.endswith(f"; set arch.name={found}") for line in lines)
    assert bool(lines) == (found != wanted)


@pytest.mark.parametrize(
    ("fields", "remedy"),
    [
        ({"expansion": 16}, "set arch.expansion=1"),
        ({"L_layers": 2}, "set arch.L_layers=1"),
        ({"hidden_size": 512}, "set arch.hidden_size=32"),
    ],
)
def test_weights_of_urm_that_do_not_fit_need_one_setting(fields: dict[str, object], remedy: str) -> None:
    [line] = problems(shapes_of("urm"), shapes_of("urm", **fields), METADATA.seq_len)
    assert line.endswith(f"; {remedy}")


# Bad input


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("evil"),)


def test_bad_input_of_an_import_is_refused_and_writes_nothing(
    run: Run, trained: Path, dataset: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    file, bare = tmp_path / "w.safetensors", tmp_path / "bare.safetensors"
    assert run("export", trained, "--out", file) == 0
    shutil.copy(file, bare)
    (tmp_path / "text").write_text("no weights")
    (tmp_path / "cut.safetensors").write_bytes(file.read_bytes()[:-4])
    (tmp_path / "cut").write_bytes((GOLDEN / "hrm_tiny.pt").read_bytes()[:5000])
    torch.save({"model": {"x": torch.zeros(1)}}, tmp_path / "nested")
    torch.save({"x": Evil()}, tmp_path / "code")
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "short.json").write_text('["<blank>"]')
    (tmp_path / "full" / "checkpoints").mkdir(parents=True)
    (tmp_path / "full" / "checkpoints" / "latest").symlink_to("step_1")
    out = tmp_path / "out"
    cases: list[tuple[list[object], str]] = [
        ([tmp_path / "nowhere", "--out", out], "nowhere: cannot be read (No such file"),
        ([tmp_path / "text", "--out", out], "text: is neither a safetensors file nor a torch file"),
        ([tmp_path / "cut.safetensors", "--out", out], "cut.safetensors: is neither"),
        ([tmp_path / "cut", "--out", out], "cut: is neither"),
        ([tmp_path / "nested", "--out", out], "nested: holds no published model"),
        ([tmp_path / "code", "--out", out], "code: holds more than tensors (getattr)"),
        ([tmp_path / "other.safetensors", "--out", out], "holds no published model"),
        ([bare, "--out", out], "has 73 rows of puzzles, and nothing says of which; give --identifiers"),
        ([bare, "--identifiers", tmp_path / "short.json", "--out", out], "names 1 puzzles, "),
        ([file, "--out", tmp_path / "full"], "full: already holds a run"),
        ([file, "archh.x=1", "--out", out], "unknown key 'archh.x'"),
    ]
    for arguments, reason in cases:
        assert run("import", *arguments, "--data", dataset, "--config", config) == 2
        shown = capsys.readouterr().err
        assert reason in shown
        assert "weights_only" not in shown
        assert not out.exists()
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e39])
@pytest.mark.parametrize("name", ["model.inner.lm_head.weight", TABLE, "model.inner.H_init"])
def test_weights_that_are_no_finite_numbers_are_refused(
    name: str, value: float, run: Run, trained: Path, dataset: Path, config: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    file, out = tmp_path / "w.safetensors", tmp_path / "out"
    assert run("export", trained, "--out", file) == 0
    tensors = load_file(file)
    tensors[name] = tensors[name].double()
    tensors[name].view(-1)[-1] = value
    save_file(tensors, file)
    assert run("import", file, "--data", dataset, "--config", config, "--out", out) == 2
    assert f"{file}: {name} has 1 values that are no finite numbers" in capsys.readouterr().err
    assert not out.exists()


def test_rows_without_names_are_only_taken_for_as_many_puzzles(
    run: Run, dataset: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arch = "arch.hidden_size=64 arch.num_heads=4 arch.H_layers=2 arch.L_layers=2".split()
    given = ["--data", dataset, "--config", config, *arch, "--same-identifiers", "--out", tmp_path / "out"]
    torch.save(load_golden("hrm_tiny")["state_dict"], tmp_path / "weights")
    assert run("import", tmp_path / "weights", *given) == 2
    assert "has 5 rows of puzzles, " in capsys.readouterr().err


def test_bad_input_of_an_export_is_refused_and_writes_nothing(
    run: Run, trained: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(dataset, tmp_path / "other")
    (other / "train" / "index.json").write_text((other / "train" / "index.json").read_text() + " ")
    file = tmp_path / "out" / "w.safetensors"
    lost, opened = tmp_path / "lost" / "latest", reader.open_checkpoint(trained)
    values = opened.tensors("model") | {"puzzle_emb.weights": torch.full((73, 32), float("nan"))}
    shards = [replicated(f"model.{name}", tensor) for name, tensor in values.items()]
    CheckpointWriter(lost.parent, keep=1, in_background=False).write(opened.state, shards)
    cases: list[tuple[list[object], str]] = [
        ([tmp_path / "nowhere", "--out", file], "no checkpoint here"),
        ([trained, "--out", file.with_suffix(".pt")], "give a name ending in .safetensors"),
        (
            [trained, "--out", file, "--data", tmp_path / "nowhere"],
            "give the dataset of the training with --data",
        ),
        ([trained, "--out", file, "--data", other], "was trained on another dataset"),
        ([lost, "--out", file], "step_3: model.puzzle_emb.weights has values that are no finite numbers"),
        ([trained, "--out", trained / "state.json" / "w.safetensors"], "cannot be"),
    ]
    for arguments, reason in cases:
        assert run("export", *arguments) == 2
        assert reason in capsys.readouterr().err
        assert not list(file.parent.glob("*"))


def test_settings_are_for_imports_only(run: Run, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run("export", trained, "--out", "w.safetensors", "lr=1")
    assert stopped.value.code == 2
    assert "unrecognized arguments: lr=1" in capsys.readouterr().err
