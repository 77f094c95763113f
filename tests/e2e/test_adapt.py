"""tools.adapt from a file of tasks to a submission: killed, stopped, started again, and from scratch."""

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from data_pipeline.arc.sources import from_path
from tests.training import Started, train
from tools.adapt.record import Record, read_record
from tools.check_submission import Truths, parse, refuse_faults

pytestmark = pytest.mark.e2e
OPTIONS = ["--num-aug", 4, "num_threads=1"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, config: Path) -> Path:
    run = tmp_path_factory.mktemp("base") / "run"
    finished = train(config, run, "max_steps=3", "ema=true", "arch.halt_max_steps=2")
    assert finished.exit_code == 0, finished.output
    return run / "checkpoints" / "latest"


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Path:
    """Three tasks of which the checkpoint knows one; all outputs are hidden."""
    known = json.loads((dataset / "test_puzzles.json").read_bytes())
    names = [*list(known)[:1], "aaaaaaaa", "bbbbbbbb"]
    content = {
        name: {"train": task["train"], "test": [{"input": pair["input"]} for pair in task["test"]]}
        for name, task in zip(names, known.values(), strict=False)
    }
    path = tmp_path_factory.mktemp("tasks") / "challenges.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def start() -> Iterator[Callable[..., Started]]:
    """Start an adaptation, `start(run, *words)`; none outlives its test."""
    all_started: list[Started] = []

    def start(run: Path, *words: object) -> Started:
        arguments = [*words, "--out", run, *OPTIONS]
        all_started.append(Started(run.with_name("adapt.log"), "tools.adapt", arguments, {}))
        return all_started[-1]

    yield start
    for one in all_started:
        one.process.kill()


def assert_valid(run: Path, tasks: Path) -> None:
    file = run / "submission.json"
    truths: Truths = {task.id: [None] * len(task.tests) for task in from_path(tasks, "evaluation").tasks}
    refuse_faults(parse(file.read_text(), file), file, truths, tasks)


def recorded(run: Path) -> Record:
    record = read_record(run)
    assert record is not None
    return record


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def has(run: Path, condition: Callable[[Record], object]) -> Callable[[], bool]:
    return lambda: bool((record := read_record(run)) and condition(record))


def test_a_killed_and_stopped_adaptation_goes_on_as_planned_with_a_valid_submission_at_all_times(
    checkpoint: Path, tasks: Path, start: Callable[..., Started], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = [checkpoint, "--tasks", tasks, "--budget-min"]
    started = start(run, *words, 60)
    assert started.wait_until((run / "submission.json").exists)
    assert_valid(run, tasks)
    assert started.wait_until(has(run, lambda record: record.prediction))
    assert started.wait_until(has(run, lambda record: record.training))
    assert started.wait_until(lambda: (run / "training.yaml").exists() and bool(started.children()))
    [child] = started.children()
    started.process.kill()
    started.process.join()
    assert_valid(run, tasks)
    first = recorded(run)
    assert first.plan is not None
    assert 0 < first.plan.table_only_steps < first.plan.num_steps
    assert first.prediction is not None
    assert first.prediction.start_s > 0

    started = start(run, *words, 60)
    assert started.wait_until(lambda: bool(started.children()))
    assert not runs(child), "what the killed command had started still trains"
    started.signal(signal.SIGTERM)
    assert started.finish().exit_code == 75
    assert_valid(run, tasks)
    second = recorded(run)
    assert second.seconds_used > first.seconds_used

    # Much less time than was planned with: training ends for the sake of the predictions.
    budget_s = second.seconds_used + first.plan.for_predictions_s + 10
    finished = start(run, *words, budget_s / 60).finish()
    assert finished.exit_code == 0, finished.output
    assert_valid(run, tasks)
    last = recorded(run)
    assert last.stage == "done"
    assert last.plan == first.plan
    assert "the weights of step" in last.submission
    assert "training stopped at step" in finished.output
    assert "not of the last weights" not in finished.output
    assert last.seconds_used < budget_s + 5


def test_where_training_fails_the_checkpoint_predicts_all_the_same(
    checkpoint: Path, tasks: Path, start: Callable[..., Started], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    spoiled = ["lr=1e30", "lr_warmup_steps=0", "max_skipped_updates=1"]
    finished = start(run, checkpoint, "--tasks", tasks, "--budget-min", 60, *spoiled).finish()
    assert finished.exit_code == 1, finished.output
    assert "the submission is of the weights there were" in finished.output
    assert_valid(run, tasks)
    assert "the weights of step 0" in recorded(run).submission


def test_from_scratch_the_tasks_alone_are_trained_on_by_one_command_at_a_time(
    config: Path, tasks: Path, start: Callable[..., Started], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    canvas = ["dataset.preset=arc", "dataset.canvas=6"]
    words = ["--config", config, *canvas, "arch.halt_max_steps=2", "--tasks", tasks, "--budget-min", 60]
    first = start(run, *words)
    assert first.wait_until((run / "submission.json").exists)
    second = start(run, *words).finish()
    assert second.exit_code == 2
    assert "another command adapts here" in second.output
    assert first.wait_until(has(run, lambda record: record.plan))
    first.signal(signal.SIGTERM)
    assert first.finish().exit_code == 75
    assert_valid(run, tasks)
    record = recorded(run)
    assert record.plan is not None
    assert record.plan.num_steps > record.plan.table_only_steps == 0
    assert "the first weights" in record.submission
