"""Datasets, runs and checkpoints that an earlier version wrote still work; tests/golden/README.md says which."""

import json
import os
import shutil
from pathlib import Path

import pytest

from data_pipeline.reader import TestReader, TrainReader
from data_pipeline.schema import load_dataset_info
from tests.training import command_line, rows, train

pytestmark = pytest.mark.e2e

EARLIER = Path(__file__).parents[1] / "golden" / "earlier"
CHECKPOINT_STEP, LAST_STEP = 8, 27


@pytest.fixture
def earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, as the current folder, since the runs name their dataset by a relative path."""
    shutil.copytree(EARLIER, tmp_path / "earlier")
    monkeypatch.chdir(tmp_path / "earlier")
    return tmp_path / "earlier"


@pytest.mark.parametrize("name", ["hrm", "trm"])
def test_a_run_begun_by_an_earlier_version_ends_the_same(name: str, earlier: Path) -> None:
    run = earlier / f"run_{name}"
    uninterrupted = rows(run)
    assert len(uninterrupted) == LAST_STEP
    os.symlink(f"step_{CHECKPOINT_STEP}", run / "checkpoints" / "latest")
    finished = train(run / "config.yaml", run)
    assert finished.exit_code == 0, finished.output
    assert f"at step {CHECKPOINT_STEP} of {LAST_STEP}" in finished.output
    for row, before in zip(rows(run), uninterrupted, strict=True):
        known = {key: row[key] for key in before}  # rows tell more than they did
        assert known == pytest.approx(before, rel=1e-4, abs=1e-6), before["step"]


@pytest.mark.parametrize("kind", ["arc", "sudoku", "maze"])
def test_a_dataset_of_an_earlier_version_is_sound_and_readable(kind: str, earlier: Path) -> None:
    done = command_line("-m", "data_pipeline.inspect", earlier / kind)
    assert done.exit_code == 0, done.output
    batch = TrainReader(str(earlier / kind), 0, 4, 0, 1).batch(0)
    assert batch["inputs"].shape[0] == 4
    assert len(TestReader(str(earlier / kind))) > 0


BUILDS = {
    "arc": ["arc", "--source", "my_tasks", "--holdout", "all", "--num-aug", 3, "--canvas", 5],
    "sudoku": ["sudoku", "--side", 4, "--num-train", 8, "--num-test", 4, "--num-aug", 2],
    "maze": ["maze", "--side", 6, "--min-steps", 6, "--num-train", 6, "--num-test", 3, "--num-aug", 2],
}


@pytest.mark.parametrize("kind", BUILDS)
def test_a_build_makes_the_bytes_of_an_earlier_version(kind: str, earlier: Path) -> None:
    made = earlier / "made"
    done = command_line("-m", "data_pipeline.build", *BUILDS[kind], "--workers", 1, "--out", made)
    assert done.exit_code == 0, done.output
    assert _digests(made) == _digests(earlier / kind)
    again = command_line("-m", "data_pipeline.build", *BUILDS[kind], "--out", earlier / kind)
    assert "already built" in again.output


@pytest.mark.parametrize("kind", BUILDS)
def test_a_rebuilt_dataset_is_the_same_for_a_checkpoint(kind: str, earlier: Path) -> None:
    # Datasets tell more of their making than they did; a checkpoint knows its dataset by the rest.
    before = (earlier / kind / "dataset.json").read_bytes()
    assert load_dataset_info(earlier / kind).content() == before
    made = earlier / "made"
    done = command_line("-m", "data_pipeline.build", *BUILDS[kind], "--workers", 1, "--out", made)
    assert done.exit_code == 0, done.output
    depends_on_zstd = {"documents": None, "sha256": None}
    assert (
        json.loads(load_dataset_info(made).content()) | depends_on_zstd
        == json.loads(before) | depends_on_zstd
    )


def _digests(dataset: Path) -> dict[str, str]:
    """Checksums of the uncompressed shards and of the documents that were there from the first version on.

    Compressed bytes differ between releases of zstd.
    """
    info = json.loads((dataset / "dataset.json").read_bytes())
    digests = {name: info["documents"][name] for name in ("identifiers.json", "test_puzzles.json")}
    for split in ("train", "test"):
        index = json.loads((dataset / split / "index.json").read_bytes())
        digests |= {f"{split}/{shard['file']}": shard["tar_sha256"] for shard in index["shards"]}
    return digests
