"""tools.evaluate with several starts of each input: what it writes, resumes and refuses."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.base.errors import exit_code
from hrm_dist.evaluation import output_dir
from hrm_dist.evaluation.output_dir import read_evaluation
from hrm_dist.evaluation.predictions import read_prediction_file
from hrm_dist.evaluation.trajectories import read_trajectories, segments_file
from hrm_dist.train import main as train
from tests.training import Started, evaluating, train_briefly
from tools import evaluate, vote

Run = Callable[..., int]
NOISE = ("--starts", 3, "--segment-noise", 0.5)
FIRST = (*NOISE, "--halting", "unchanged:1", "--choose", "first")
SETTLES = ("--vote-until", "confident:0.05:1")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, config: Path) -> Path:
    return train_briefly(config, tmp_path_factory.mktemp("trained") / "run")


@pytest.fixture(scope="module")
def run(checkpoint: Path, dataset: Path) -> Run:
    return evaluating(checkpoint, dataset)


@pytest.fixture(scope="module")
def first(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("first") / "out"
    assert run(out, *FIRST) == 0
    return out


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("*.npz")}


def test_a_folder_tells_how_many_starts_answered_and_how(
    run: Run, first: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = read_evaluation(first)
    assert known is not None
    assert (known.starts, known.choose, known.segment_noise, known.noise_seed) == (3, "first", 0.5, 0)
    assert (known.initial_states, known.update_noise) == (None, None)  # as trained
    assert run(first, *FIRST, "--segment-noise", 0.4) == 2
    assert "another evaluation (segment_noise 0.5, now 0.4); choose another --out" in capsys.readouterr().err
    assert run(first, "--halting", "unchanged:1") == 2
    assert "(starts 3, now 1, choose 'first', now None, segment_noise 0.5" in capsys.readouterr().err


def test_scores_tell_of_starts_where_there_are_several(first: Path, dataset: Path, tmp_path: Path) -> None:
    assert vote.main([str(first), "--data", str(dataset), "--out", f"{tmp_path}/submission.json"]) == 0
    rules = json.loads((first / "scores.json").read_text())["rules"]
    assert {name: rules[name] for name in ("starts", "choose", "segment_noise")} == {
        "starts": 3, "choose": "first", "segment_noise": 0.5,
    }  # fmt: skip
    assert "update_noise" not in rules


def test_the_highest_q_of_all_starts_answers(run: Run, dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(out, *NOISE, "--every-segment", "--max-groups", 3) == 0
    [path] = out.glob("*.npz")
    predictions, kept = read_prediction_file(path), read_trajectories(segments_file(path))
    num_rows = len(predictions.preds)
    np.testing.assert_array_equal(kept.start_index, np.tile(np.arange(3), num_rows))
    np.testing.assert_array_equal(kept.rows, np.repeat(np.arange(num_rows), 3))
    q = kept.by_segment("q_halt_logits")[:, -1].reshape(-1, 3)
    np.testing.assert_array_equal(predictions.q_halt_logits, q.max(1))
    assert len(np.unique(q.argmax(1))) == 3
    *_, last = kept.answers()
    np.testing.assert_array_equal(
        predictions.preds, last.reshape(num_rows, 3, -1)[np.arange(num_rows), q.argmax(1)]
    )


def test_keeping_every_segment_changes_no_answer(run: Run, first: Path, tmp_path: Path) -> None:
    """Though then no start is dropped."""
    assert run(tmp_path / "out", *FIRST, "--every-segment") == 0
    assert contents(tmp_path / "out") == contents(first)


def test_other_seeds_give_other_answers_and_the_same_one_the_same(run: Run, tmp_path: Path) -> None:
    options = (*NOISE, "--max-groups", 1, "--noise-seed")
    for name, seed in (("a", 1), ("b", 2), ("c", 1)):
        assert run(tmp_path / name, *options, seed) == 0
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert a == c
    assert a != b


def test_what_is_random_can_be_changed_for_one_start(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model's own settings are no change; random states that it has never seen are told of."""
    options = ("--max-groups", 1)
    changes = ((), ("--initial-states", "fixed", "--segment-noise", 0), ("--initial-states", "random"),
               ("--update-noise", 0.1))  # fmt: skip
    for number, changed in enumerate(changes):
        assert run(tmp_path / str(number), *options, *changed) == 0
        assert ("trained with initial_states: fixed" in capsys.readouterr().err) == ("random" in changed)
    plain, same, *others = (contents(tmp_path / str(number)) for number in range(4))
    assert same == plain
    assert all(other != plain for other in others)
    assert run(tmp_path / "0", *options, *changes[1]) == 0


def test_starts_are_counted_in_what_is_told(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "q", *NOISE, "--max-groups", 1) == 0
    said = capsys.readouterr().out
    assert "27 starts, of which 0.0% were dropped early; over all starts 12.00 segments per input" in said
    assert run(tmp_path / "first", *FIRST, "--max-groups", 1) == 0
    said = capsys.readouterr().out
    assert "27 starts, of which" in said
    assert "of which 0.0%" not in said


# Interruptions and shares


def test_after_a_kill_the_same_files_come(run: Run, checkpoint: Path, dataset: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = (*FIRST, "--batch-size", 3, "--max-groups", 3)
    for out in (whole, killed):
        assert run(out, *options, "--part", "3/9") == 0
    assert run(whole, *options) == 0
    arguments = [checkpoint, "--data", dataset, "--out", killed, *options]
    started = Started(tmp_path / "log", "tools.evaluate", arguments, {})
    assert started.wait_until(lambda: len(contents(killed)) > 2)
    started.process.kill()
    started.process.join()
    assert len(contents(killed)) < len(contents(whole))
    assert run(killed, *options) == 0
    assert contents(killed) == contents(whole)


def test_parts_of_the_inputs_give_the_same_files(run: Run, tmp_path: Path) -> None:
    options = (*FIRST, "--max-groups", 3)
    for out, rest in (
        ("one", ("--part", "1/2")),
        ("one", ()),
        ("two", ("--part", "1/2")),
        ("two", ("--part", "0/2")),
    ):
        assert run(tmp_path / out, *options, *rest) == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_an_adaptive_vote_over_starts_that_lost_files_gives_the_same(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_dir, "_MOST_ROWS", 24)
    options = (*NOISE, "--choose", "vote", *SETTLES)
    assert run(tmp_path / "whole", *options) == 0
    whole = contents(tmp_path / "whole")
    num_answers = sum(len(read_prediction_file(path).preds) for path in (tmp_path / "whole").glob("*.npz"))
    assert 0 < num_answers < 108
    out = tmp_path / "out"
    assert run(out, *options) == 0
    sorted(out.glob("*.npz"))[-1].unlink()
    for record in (out / "rounds").iterdir():
        record.unlink()
    assert run(out, *options) == 0
    assert contents(out) == whole


def test_inputs_left_out_free_their_starts_where_every_segment_is_kept(run: Run, tmp_path: Path) -> None:
    # So many slots that rounds are begun that prove not to be needed, which halt at different times.
    options = (*NOISE, "--choose", "vote", *SETTLES, "--halting", "unchanged:1", "--batch-size", 64)
    for name, more in (("plain", ()), ("kept", ("--every-segment",))):
        assert run(tmp_path / name, *options, *more) == 0
    assert contents(tmp_path / "kept") == contents(tmp_path / "plain")


# Bad input


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--starts", 0), "--starts 0: must be from 1 to 1,000"),
        (("--starts", 1001), "--starts 1001: must be from 1 to 1,000"),
        (("--starts", 4), "--starts 4: nothing is random, so that all tries of an example would be the same; give"),
        (("--starts", 4, "--segment-noise", 0), "--starts 4: nothing is random"),
        ((*NOISE, "--segment-noise", -0.1), "--segment-noise -0.1: must be from 0 to 10"),
        ((*NOISE, "--segment-noise", "nan"), "--segment-noise nan: must be from 0 to 10"),
        ((*NOISE, "--update-noise", "inf"), "--update-noise inf: must be from 0 to 10"),
        ((*NOISE, "--noise-seed", -1), "--noise-seed -1: must be from 0"),
        (("--noise-seed", 1), "--noise-seed 1: nothing is random"),
        (("--choose", "q"), "--choose q: there is one try of each example to choose from; give --starts K"),
        ((*NOISE, "--choose", "first"), "--choose first: with --halting none no try halts before the others"),
        ((*NOISE, "--choose", "residual", "--max-segments", 1), "--choose residual: one segment has no change"),
    ],
)  # fmt: skip
def test_tries_that_cannot_be_are_refused_and_write_nothing(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[object, ...], reason: str
) -> None:
    assert run(tmp_path / "out", *options) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", [("--segment-noise", 0.1), ("--initial-states", "random")])
def test_a_model_without_states_has_nothing_to_vary(
    config: Path,
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    option: tuple[object, ...],
) -> None:
    text = config.read_text().replace("arch: {", "arch: {name: transformer, ")
    for absent in (" L_layers: 1,", ", halt_max_steps: 4"):
        text = text.replace(absent, "")
    (tmp_path / "config.yaml").write_text(text)
    assert train([f"{tmp_path}/config.yaml", f"checkpoint_path={tmp_path}/run", "max_steps=1"]) == 0
    arguments = [f"{tmp_path}/run/checkpoints/latest", "--data", dataset, "--out", tmp_path / "out", *option]
    assert exit_code(lambda: evaluate.main([*map(str, arguments)])) == 2
    assert f"{option[0]}: architecture transformer carries no state" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
