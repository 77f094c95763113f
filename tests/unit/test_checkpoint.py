import functools
import json
import math
import os
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from data_pipeline.base.errors import InputError, WriteError
from hrm_dist.checkpoint.carry import carry_shards, load_carry
from hrm_dist.checkpoint.pointer import point
from hrm_dist.checkpoint.reader import FORMAT, CheckpointState, open_checkpoint, previous_complete, read_state
from hrm_dist.checkpoint.writer import CheckpointWriter, finish, prune, write_files
from hrm_dist.distributed.process_group import World
from hrm_dist.model.act import Carry, inner_carry_type
from hrm_dist.tensor_shards import TensorShard, partition_by_size, replicated

WEIGHT = torch.arange(6.0).reshape(2, 3)


def state(step: int, best_score: float | None = None) -> CheckpointState:
    return CheckpointState(
        format=FORMAT, step=step, num_updates=step, world_size=1, config={}, dataset={}, environment={},
        metric_sums=[0.1 + 0.2], best_score=best_score,
    )  # fmt: skip


def save(folder: Path, step: int, *names: str, best_score: float | None = None) -> Path:
    shards = [replicated("model.weight", WEIGHT), replicated("carry.steps", torch.arange(4))]
    writer = CheckpointWriter(folder, keep=100, in_background=False)
    writer.write(state(step, best_score), shards, names or ("latest",))
    return folder / f"step_{step}"


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_is_read_back_exactly(tmp_path: Path) -> None:
    path = save(tmp_path, 5, best_score=0.1)
    read = read_state(tmp_path / "latest")
    assert (read.step, read.metric_sums, read.best_score) == (5, [0.1 + 0.2], 0.1)
    assert torch.equal(open_checkpoint(path).tensor("model.weight"), WEIGHT)
    assert torch.equal(load_file(path / "model-00000.safetensors")["weight"], WEIGHT)
    assert entries(tmp_path) == ["latest", "step_5"]


@pytest.mark.parametrize("kind", ["model", "ema"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_no_finite_numbers_are_not_read(kind: str, value: float, tmp_path: Path) -> None:
    lost = WEIGHT.clone()
    lost[1, 1] = value
    shards = [replicated(f"{kind}.weight", lost), replicated("carry.z_H", lost)]
    CheckpointWriter(tmp_path, keep=1, in_background=False).write(state(1), shards)
    opened = open_checkpoint(tmp_path / "latest")
    with pytest.raises(InputError, match=rf"step_1: {kind}\.weight has values that are no finite numbers"):
        opened.tensor(f"{kind}.weight")
    assert opened.read(f"{kind}.weight", 0, 4).tolist() == [0, 1, 2, 3]
    assert opened.tensor("carry.z_H").isfinite().sum() == 5  # of a segment, which training begins anew


def test_a_run_that_diverged_still_has_readable_checkpoints(tmp_path: Path) -> None:
    diverged = state(1).model_copy(update={"metric_sums": [math.nan, math.inf]})
    CheckpointWriter(tmp_path, keep=1, in_background=False).write(diverged, [])
    sums = read_state(tmp_path / "latest").metric_sums
    assert math.isnan(sums[0])
    assert sums[1] == math.inf


def test_what_a_killed_save_left_behind_is_swept_away_by_the_next(tmp_path: Path) -> None:
    (tmp_path / ".step_3.tmp").mkdir()
    (tmp_path / ".step_3.tmp" / "model.safetensors").write_bytes(b"half")
    (tmp_path / ".step_1.deleted").mkdir()
    (tmp_path / ".latest.tmp").symlink_to("step_1")
    save(tmp_path, 4)
    assert entries(tmp_path) == ["latest", "step_4"]


def test_a_step_that_is_saved_again_replaces_the_first(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    point(tmp_path / "latest", tmp_path / "step_1")  # rewound
    save(tmp_path, 2, best_score=0.5)
    assert read_state(tmp_path / "latest").best_score == 0.5
    assert entries(tmp_path) == ["latest", "step_1", "step_2"]


def test_pruning_keeps_the_last_k_the_latest_and_the_best(tmp_path: Path) -> None:
    save(tmp_path, 2, "best", "latest")
    for step in (4, 6, 10):
        save(tmp_path, step)
    prune(tmp_path, keep=2)
    assert entries(tmp_path) == ["best", "latest", "step_10", "step_2", "step_6"]


def test_pruning_counts_no_steps_beyond_the_latest(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    point(tmp_path / "latest", tmp_path / "step_2")
    prune(tmp_path, keep=2)
    assert entries(tmp_path) == ["latest", "step_1", "step_2", "step_3", "step_4"]


def test_files_can_be_read_by_whoever_the_umask_lets(tmp_path: Path) -> None:
    previous = os.umask(0o027)
    try:
        path = save(tmp_path, 1)
    finally:
        os.umask(previous)
    assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {0o640}


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    (path / "model-00000.safetensors").unlink()
    with pytest.raises(
        InputError, match=r"step_1/model-00000\.safetensors: missing, though state\.json lists it"
    ):
        open_checkpoint(path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 1}', '{"format": 1, "step": "x"}', "\0"])
def test_a_damaged_state_file_is_named(tmp_path: Path, content: str) -> None:
    path = save(tmp_path, 1)
    (path / "state.json").write_text(content)
    with pytest.raises(InputError, match=r"step_1/state\.json: .*choose another checkpoint"):
        read_state(path)


def test_another_format_is_refused_by_number(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    content = json.loads((path / "state.json").read_text()) | {"format": 99}
    (path / "state.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="format 99, this version reads 2"):
        read_state(path)


def test_any_number_changed_in_the_state_file_is_noticed(tmp_path: Path) -> None:
    path = save(tmp_path, 1) / "state.json"
    path.write_text(path.read_text().replace('"num_updates": 1', '"num_updates": 2'))
    with pytest.raises(InputError, match=r"state\.json: unreadable \(its sha256 is not that of its content"):
        read_state(path.parent)


def test_the_last_complete_checkpoint_beside_a_damaged_one_is_found(tmp_path: Path) -> None:
    for step in (2, 4, 10):
        save(tmp_path, step)
    (tmp_path / "step_10" / "state.json").write_text("")
    assert previous_complete(tmp_path / "latest") == tmp_path / "step_4"
    (tmp_path / "step_4" / "model-00000.safetensors").unlink()
    assert previous_complete(tmp_path / "latest") == tmp_path / "step_2"
    (tmp_path / "step_2" / "state.json").unlink()
    assert previous_complete(tmp_path / "latest") is None


@given(st.data())
def test_what_ranks_wrote_in_shards_is_read_as_a_whole_and_in_any_part(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    temporary = folder / "temporary"
    temporary.mkdir()
    num_ranks = data.draw(st.integers(1, 4))
    tensors: dict[str, torch.Tensor] = {}
    shards: list[list[TensorShard]] = [[] for _ in range(num_ranks)]
    for index, kind in enumerate(
        data.draw(st.lists(st.sampled_from(["model", "ema", "exp_avg", "carry"]), max_size=5))
    ):
        shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
        dtype = data.draw(
            st.sampled_from([torch.float32, torch.bfloat16, torch.int32, torch.bool, torch.uint8])
        )
        key = f"{kind}.tensor_{index}"
        tensors[key] = torch.randint(0, 2, shape).to(dtype)
        size = tensors[key].numel()
        cuts = sorted(data.draw(st.lists(st.integers(0, size), max_size=3)))
        for start, stop in zip([0, *cuts], [*cuts, size], strict=True):
            if start < stop:
                shard = TensorShard(key, tuple(shape), start, tensors[key].reshape(-1)[start:stop])
                shards[data.draw(st.integers(0, num_ranks - 1))].append(shard)
    written = [write_files(temporary, of_rank, rank) for rank, of_rank in enumerate(shards)]
    finish(temporary, folder / "step_3", state(3), written)

    opened = open_checkpoint(folder / "step_3")
    assert opened.shapes == {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    for key, tensor in tensors.items():
        assert torch.equal(opened.tensor(key), tensor)
        assert opened.tensor(key).dtype == tensor.dtype
        start, stop = sorted(data.draw(st.tuples(*[st.integers(0, tensor.numel())] * 2)))
        assert torch.equal(opened.read(key, start, stop).to(tensor.dtype), tensor.reshape(-1)[start:stop])


@pytest.mark.parametrize("num_renamed", range(2))
def test_a_run_killed_while_it_notes_an_evaluation_in_its_latest_checkpoint_still_has_it(
    num_renamed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two files change: the link to the best one, and then state.json."""
    save(tmp_path, 3, "latest", best_score=0.25)
    left = num_renamed

    def replace_or_die(*arguments: Any) -> None:
        nonlocal left
        if not left:
            raise Killed
        left -= 1
        replace(*arguments)

    replace = os.replace
    monkeypatch.setattr(os, "replace", replace_or_die)
    with pytest.raises(Killed):
        save(tmp_path, 3, "best", best_score=0.5)
    monkeypatch.undo()
    assert open_checkpoint(tmp_path / "latest").state.best_score == 0.25
    save(tmp_path, 3, "best", best_score=0.5)
    assert open_checkpoint(tmp_path / "latest").state.best_score == 0.5
    assert torch.equal(open_checkpoint(tmp_path / "best").tensor("model.weight"), WEIGHT)
    assert entries(tmp_path) == ["best", "latest", "step_3"]


class Killed(BaseException):
    pass


def test_a_tensor_of_which_a_part_is_missing_is_refused(tmp_path: Path) -> None:
    shard = TensorShard("model.weight", (2, 3), 2, torch.ones(4))
    CheckpointWriter(tmp_path, keep=1, in_background=False).write(state(1), [shard])
    opened = open_checkpoint(tmp_path / "latest")
    assert torch.equal(opened.read("model.weight", 2, 6), torch.ones(4))
    with pytest.raises(InputError, match=r"does not say where all of model\.weight is"):
        opened.tensor("model.weight")
    with pytest.raises(InputError, match=r"has no tensor model\.bias"):
        opened.tensor("model.bias")


@given(st.dictionaries(st.text(), st.integers(0, 1000)), st.integers(1, 5))
def test_partitions_are_complete_and_no_two_differ_by_more_than_the_largest_item(
    sizes: dict[str, int], num: int
) -> None:
    partition_of = partition_by_size(sizes, num)
    assert partition_of.keys() == sizes.keys()
    totals = [
        sum(size for name, size in sizes.items() if partition_of[name] == partition)
        for partition in range(num)
    ]
    assert max(totals) - min(totals) <= max(sizes.values(), default=0)


def test_in_the_background_the_state_of_the_moment_is_written_and_errors_come_with_the_next_call(
    tmp_path: Path,
) -> None:
    writer = CheckpointWriter(tmp_path / "checkpoints", keep=2, in_background=True)
    weight = torch.ones(3)
    writer.write(state(1), [replicated("model.weight", weight)])
    weight.zero_()
    writer.wait()
    assert torch.equal(open_checkpoint(tmp_path / "checkpoints/latest").tensor("model.weight"), torch.ones(3))
    with mock.patch("hrm_dist.checkpoint.writer.write_tensors", side_effect=OSError(28, "No space left")):
        writer.write(state(2), [replicated("model.weight", weight)])
        with pytest.raises(
            WriteError, match=r"model-00000\.safetensors: cannot be written on rank 0 \(No space left"
        ):
            writer.write(state(3), [replicated("model.weight", weight)])
        writer.write(state(4), [replicated("model.weight", weight)])
        while not writer.is_idle():
            time.sleep(0.001)
        with pytest.raises(WriteError):
            writer.raise_failure()
    writer.close()
    assert open_checkpoint(tmp_path / "checkpoints/latest").state.step == 1


def carry_of(rows: torch.Tensor) -> Carry:
    states = inner_carry_type("hrm")(rows[:, None].to(torch.bfloat16), rows[:, None].to(torch.bfloat16) + 1)
    return Carry(states, rows[:, 0].to(torch.int32), rows[:, 1] > 9, {"inputs": rows.to(torch.int32)})


@pytest.mark.parametrize(("saved", "now"), [(1, 2), (2, 1), (2, 4), (4, 2)])
def test_the_carry_is_sliced_anew_for_other_numbers_of_ranks(tmp_path: Path, saved: int, now: int) -> None:
    everything = torch.arange(24.0).reshape(8, 3)
    world = functools.partial(World, device=torch.device("cpu"))
    (tmp_path / "temporary").mkdir()
    written = []
    for rank, rows in enumerate(everything.chunk(saved)):
        shards = carry_shards(carry_of(rows), world(rank, saved))
        written.append(write_files(tmp_path / "temporary", list(shards), rank))
    finish(tmp_path / "temporary", tmp_path / "step_1", state(1), written)
    opened = open_checkpoint(tmp_path / "step_1")
    carries = [carry_of(torch.zeros(8 // now, 3)) for _ in range(now)]
    for rank, carry in enumerate(carries):
        load_carry(opened, carry, world(rank, now))
    expected = carry_of(everything)
    assert torch.equal(torch.cat([carry.inner_carry.z_L for carry in carries]), expected.inner_carry.z_L)
    assert torch.equal(torch.cat([carry.halted for carry in carries]), expected.halted)
    assert torch.equal(
        torch.cat([carry.current_data["inputs"] for carry in carries]), expected.current_data["inputs"]
    )
