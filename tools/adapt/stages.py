"""The stages of an adaptation: build the data, measure, train in chunks, predict; and a submission at all times.

RUN/  adapt.json         what was asked for, measured and planned, and how much of the budget is used (record.py)
      submission.json    valid from the first seconds on (votes.py)
      data/              the dataset: demonstrations train, test inputs are held out
      training.yaml      the settings of the training
      config.yaml, metrics.jsonl, checkpoints/, ...      a run folder as hrm_dist.train makes it
      predictions/       pilot (the measurement), then step_N: what the weights of that step have predicted
      adapt.log          what the commands have printed
"""

import json
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from data_pipeline.base import locks
from data_pipeline.base.errors import InputError, unwritable
from data_pipeline.base.files import make_folder, replace_file
from data_pipeline.base.progress import duration, speed_text
from data_pipeline.build import build
from data_pipeline.schema import load_dataset_info
from hrm_dist import run_lock
from hrm_dist.checkpoint.reader import read_state
from hrm_dist.config import TrainConfig, to_yaml
from hrm_dist.evaluation.output_dir import read_evaluation, rows_per_file
from hrm_dist.model.kernels import require_c_compiler
from tools.adapt import votes
from tools.adapt.asked import Adaptation
from tools.adapt.children import CommandError, Commands
from tools.adapt.plan import (
    MOST_SEQUENCES,
    PREDICTION_SLACK,
    STOP_S,
    PredictionRate,
    TrainingRate,
    Work,
    epochs_of,
    fitting_ema_rate,
    make_plan,
    prediction_rate,
    steps_rate,
    time_text,
    vote_s,
)
from tools.adapt.record import Clock, Record, read_record
from tools.adapt.start import start_from
from tools.sweep.pool import step_of

LOG, TRAINING = "adapt.log", "training.yaml"
_MEASURE_SHARE = 0.1
"""Of the budget, that each of the two measurements takes at most."""
_COMPILE_SHARE = 0.3
"""That the training takes at most, where it compiles for so long."""
_PILOT_ROWS = 512
_MEASURED_STEPS, _LOGGED_EVERY, _SKIPPED_STEPS = 200, 5, {"cpu": 5, "cuda": 25}
"""On a GPU, the first steps compile and are recorded."""
_ENOUGH_INTERVALS = 5
_SAVE_EVERY_S = 120.0
_SHOW_EVERY_S = 30.0
_VOTE_EVERY_S, _VOTE_SHARE = 20.0, 0.1
"""Least time between two votes; votes take no more than that share of the time."""
_RELEASED_WITHIN_S = 150.0
"""A training that was told to stop, as its parent was killed, has saved by then."""


class Run:
    """An adaptation under way."""

    def __init__(self, given: Adaptation, clock: Clock, num_processes: int, device: str) -> None:
        self._given, self._clock = given, clock
        self._folder, self._data = given.run, given.run / "data"
        self._submission = given.run / votes.FILE
        self._predictions = given.run / "predictions"
        self._commands = Commands(given.run / LOG, num_processes, given.config.num_threads)
        self._device = device
        self._shown_at = self._voted_at = time.monotonic()
        self._vote_took_s = 0.0
        folders = {"data_path": str(self._data), "checkpoint_path": str(given.run)}
        self._config = given.config.model_copy(
            update={**folders, "eval_interval": None, "keep_checkpoints": 1}
        )
        if device == "cuda" and self._config.compile is None and not _has_c_compiler():
            self._say("note: nothing is compiled, which takes longer, as there is no C compiler")
            self._config = self._config.model_copy(update={"compile": False})

    def finish(self) -> None:
        """Go through the stages that are left. If training fails the weights that are there predict all the same."""
        if not self._submission.exists():
            votes.write(self._submission, self._given.tasks)
        self._wait_for_training()
        self._build()
        failure: CommandError | None = None
        try:
            if self._clock.record.plan is None:
                self._measure()
            self._train()
        except CommandError as error:
            failure = error
            self._say(
                f"failed, as {self._folder / LOG} says; the weights that are there predict all the same"
            )
        self._predict()
        if failure is not None:
            raise failure
        self._clock.note(stage="done")
        holds, step = self._clock.record.submission, self._step()
        self._say(f"done; {self._submission} is of {holds}")
        if step and not holds.endswith(_weights_of(step)):
            self._say(
                f"warning: it is not of the last weights, those of step {step:,}: there was no time to predict every "
                "test input with them; the same command with a larger --budget-min goes on with that"
            )

    # Stages

    def _build(self) -> None:
        if not (self._data / "dataset.json").exists():
            self._say(f"build the data of {len(self._given.tasks)} tasks")
        build(self._given.request)
        info = load_dataset_info(self._data)
        if info.left_out_tests:
            self._say(
                f"note: {len(info.left_out_tests)} tasks have grids larger than the canvas of {info.canvas} and are "
                "answered by their inputs"
            )
        test = info.splits.test
        num_inputs, num_rounds = _num_inputs(self._data), max(1, test.num_rows)
        self._work = Work(
            rows_per_round=num_inputs,
            num_rounds=num_rounds,
            rows_per_file=self._commands.num_processes * rows_per_file(num_inputs * num_rounds, 1),
        )
        self._examples_per_pass = info.splits.train.total_groups * info.splits.train.mean_puzzle_examples
        if self._given.checkpoint is not None and not (self._folder / "checkpoints" / "latest").exists():
            summary = start_from(self._given.checkpoint, self._given.identifiers, self._config)
            self._say(f"begin with {self._given.checkpoint}: {summary}")

    def _measure(self) -> None:
        """Find out how fast this machine predicts and trains, and plan. From scratch a short training comes first."""
        self._clock.note(stage="measure")
        trial = self._folder / "measure"
        if self._latest.exists():
            self._measure_predictions(self._latest)
            self._measure_training(trial)
        else:
            self._measure_training(trial)
            self._measure_predictions(trial / "checkpoints" / "latest")
        record = self._clock.record
        if record.prediction is None or record.training is None:
            # With more budget measured anew: there was hardly time, and from scratch its weights are needed, too.
            self._clock.note(training=None)
            raise InputError(
                f"--budget-min {record.budget_s / 60:g}: too short: after {duration(self._clock.used_s())} nothing "
                "could be predicted; give several times as much (the same command goes on). "
                f"{self._submission} holds {record.submission}."
            )
        plan = make_plan(
            record.budget_s, self._clock.used_s(), record.training, record.prediction, self._work,
            self._given.asked.table_share,
        )  # fmt: skip
        self._clock.note(plan=plan)
        shutil.rmtree(trial, ignore_errors=True)
        speeds = (
            f"{speed_text(record.training.steps_per_s)} steps/s and {speed_text(record.prediction.rows_per_s)} "
            "predictions/s"
        )
        self._say(f"measured {speeds}; planned: {plan.text()}")

    def _measure_training(self, trial: Path) -> None:
        """Note the steps per second of a short training, 0 if it was too slow, and the time that its start took."""
        if self._clock.record.training is not None:
            return
        shutil.rmtree(trial, ignore_errors=True)
        config = self._config.model_copy(
            update={
                "checkpoint_path": str(trial), "epochs": epochs_of(MOST_SEQUENCES, self._examples_per_pass, 1),
                "log_interval": _LOGGED_EVERY, "max_steps": _MEASURED_STEPS, "checkpoint_interval": None,
            }
        )  # fmt: skip
        path = self._folder / "measure.yaml"
        replace_file(path, to_yaml(config).encode())
        first_row_s: list[float] = []
        until_s, latest_s = (
            self._clock.used_s() + share * self._clock.record.budget_s
            for share in (_MEASURE_SHARE, _COMPILE_SHARE)
        )

        def is_enough() -> bool:
            rows, used_s = _seconds_per_step(trial, config.global_batch_size), self._clock.used_s()
            num_timed = sum(step > _SKIPPED_STEPS[self._device] for step in rows)
            return num_timed >= _ENOUGH_INTERVALS or used_s > (until_s if rows else latest_s)

        def on_tick(seconds: float) -> None:
            self._tick("measure the training")
            if not first_row_s and step_of(trial):
                first_row_s.append(seconds)

        self._say("measure the training")
        ended = self._commands.run("hrm_dist.train", [path], is_enough, on_tick)
        path.unlink()
        rows = _seconds_per_step(trial, config.global_batch_size)
        timed = [seconds for step, seconds in rows.items() if step > _SKIPPED_STEPS[self._device]]
        rate = steps_rate(timed or list(rows.values())[-1:])
        started_s = first_row_s[0] - _LOGGED_EVERY / rate if first_row_s and rate else ended.seconds
        start_s = max(0.0, started_s) + ended.stopping_s
        self._clock.note(training=TrainingRate(steps_per_s=rate, start_s=start_s))

    def _measure_predictions(self, checkpoint: Path) -> None:
        """Predict some rounds and vote; note how fast that was, nothing if there was no time for anything."""
        if self._clock.record.prediction is not None or not checkpoint.exists():
            return
        shutil.rmtree(self._predictions / "pilot", ignore_errors=True)
        rounds = min(self._work.num_rounds, -(-_PILOT_ROWS // self._work.rows_per_round))
        budget_s = self._clock.record.budget_s
        until_s = self._clock.used_s() + _MEASURE_SHARE * budget_s

        def is_enough(num_files: int) -> bool:
            used_s = self._clock.used_s()
            return used_s > budget_s - STOP_S or (num_files > 0 and used_s > until_s)

        self._say("measure predictions")
        rate = self._evaluate(checkpoint, "pilot", rounds, is_enough)
        num_voted = self._vote("pilot", "the first weights")
        if rate is not None and num_voted:
            per_row_s = self._vote_took_s / num_voted
            self._clock.note(prediction=rate.model_copy(update={"vote_s_per_row": per_row_s}))

    def _train(self) -> None:
        record = self._clock.record
        assert record.plan is not None
        plan = record.plan
        if not plan.chunks:
            return
        self._clock.note(stage="train")
        replace_file(self._folder / TRAINING, to_yaml(self._planned_config()).encode())

        kept_s = plan.for_predictions_s

        def is_over() -> bool:
            return self._clock.left_s() < kept_s

        for number, end in enumerate(plan.chunks, start=1):
            if self._step() >= end:
                continue
            if is_over():
                break
            what = f"train, chunk {number} of {len(plan.chunks)}"
            self._say(f"{what}: to step {end:,} of {plan.num_steps:,}")
            self._commands.run(
                "hrm_dist.train",
                [self._folder / TRAINING, f"max_steps={end}"],
                is_over,
                lambda _, what=what: self._tick(
                    f"{what}: step {step_of(self._folder):,} of {plan.num_steps:,}"
                ),
            )
            if number < len(plan.chunks) and not is_over():
                name, began_s = f"step_{self._step()}", self._clock.used_s()
                self._evaluate(self._latest, name, plan.rounds_between, lambda _: is_over())
                self._vote(name, _weights_of(self._step()))
                # The machine may have become slower since it was measured.
                took_s = self._clock.used_s() - began_s
                kept_s = max(kept_s, PREDICTION_SLACK * took_s + 2 * STOP_S)
        if self._step() < plan.num_steps:
            self._say(
                f"training stopped at step {self._step():,} of {plan.num_steps:,}: this took longer than planned, or "
                f"the budget is less now, and the last {duration(kept_s)} are for predictions"
            )

    def _planned_config(self) -> TrainConfig:
        """Return the settings of the training with its length and what depends on that."""
        record, config = self._clock.record, self._config
        assert record.plan is not None
        assert record.training is not None
        num_steps = record.plan.num_steps
        planned = {
            "epochs": epochs_of(num_steps, self._examples_per_pass, config.global_batch_size),
            "max_steps": num_steps,
            "table_only_steps": record.plan.table_only_steps,
            "checkpoint_interval": max(1, round(record.training.steps_per_s * _SAVE_EVERY_S)),
            "lr_warmup_steps": min(config.lr_warmup_steps, num_steps // 20),
            "ema_rate": fitting_ema_rate(config.ema_rate, num_steps),
        }
        return config.model_copy(
            update={key: v for key, v in planned.items() if key not in self._given.given}
        )

    def _predict(self) -> None:
        """Predict round by round until the budget ends, and vote now and then over what there is."""
        record = self._clock.record
        if record.prediction is None or not self._latest.exists():
            return
        self._clock.note(stage="predict")
        for_vote_s = vote_s(record.prediction, self._work)
        name = f"step_{self._step()}"
        if self._clock.left_s() > for_vote_s:
            # What was predicted of these weights after a chunk has fewer rounds: a folder of another evaluation.
            what = _weights_of(self._step())
            self._say(f"predict with {what}")
            self._evaluate(
                self._latest, f"{name}_all", None, lambda _: self._clock.left_s() < for_vote_s,
                lambda: self._vote_if_due(f"{name}_all", what),
            )  # fmt: skip
        self._vote(f"{name}_all", _weights_of(self._step()))

    # What the stages are made of

    @property
    def _latest(self) -> Path:
        return self._folder / "checkpoints" / "latest"

    def _step(self) -> int:
        return read_state(self._latest).step if self._latest.exists() else 0

    def _evaluate(
        self,
        checkpoint: Path,
        name: str,
        num_rounds: int | None,
        is_enough: Callable[[int], bool],
        on_files: Callable[[], object] = lambda: None,
    ) -> PredictionRate | None:
        """Predict some rounds, or all; return how fast, None if no file was new.

        is_enough: given how many files are new. on_files: called whenever files may be there that were not voted on.
        """
        out = self._predictions / name
        before = set(out.glob("*.npz"))
        new = set[Path]()
        rounds = [] if num_rounds is None else ["--num-aug", num_rounds - 1]

        def on_tick(_: float) -> None:
            new.update(set(out.glob("*.npz")) - before)
            self._tick(f"predict into {out.name}, files there: {len(before) + len(new)}")
            on_files()

        how = ["--device", self._device]
        if self._config.compile is not None:
            how.append("--compile" if self._config.compile else "--no-compile")
        arguments = [checkpoint, "--data", self._data, "--out", out, *rounds, *how]
        ended = self._commands.run("tools.evaluate", arguments, lambda: is_enough(len(new)), on_tick)
        on_tick(ended.seconds)
        known = read_evaluation(out)
        if known is None:
            return None
        num_rows = sum(len(rows) for path, rows in known.files(out).items() if path in new)
        return prediction_rate(num_rows, ended.seconds, ended.said)

    def _vote_if_due(self, name: str, what: str) -> None:
        since_s = time.monotonic() - self._voted_at
        if since_s > max(_VOTE_EVERY_S, self._vote_took_s / _VOTE_SHARE):
            self._vote(name, what)

    def _vote(self, name: str, what: str) -> int:
        """Put a vote over a folder in the submission's place, once every test input has a prediction there.

        Return the number of votes.
        """
        folder = self._predictions / name
        num_voted, began = 0, time.monotonic()
        if any(folder.glob("*.npz")):
            found, test_puzzles = votes.count(folder, self._data)
            num_voted = found.counted
            if all(candidates for task in found.tasks.values() for candidates in task):
                votes.write(self._submission, self._given.tasks, found)
                text = f"{found.counted:,} predictions with {what}"
                if text != self._clock.record.submission:
                    self._clock.note(submission=text)
                    self._say(f"{self._submission}: of {text}{votes.score_text(found, test_puzzles)}")
        self._voted_at = time.monotonic()
        self._vote_took_s = self._voted_at - began
        return num_voted

    def _wait_for_training(self) -> None:
        """Wait until a training that an earlier command has left behind has saved."""
        until = time.monotonic() + _RELEASED_WITHIN_S
        while run_lock.holder(self._folder) is not None and time.monotonic() < until:
            time.sleep(0.5)

    def _tick(self, what: str) -> None:
        self._clock.tick()
        if time.monotonic() - self._shown_at > _SHOW_EVERY_S:
            self._say(what)

    def _say(self, what: str) -> None:
        """Say on stderr what is done, how much of the budget is used, and when it ends."""
        self._shown_at = time.monotonic()
        used_s, budget_s = self._clock.used_s(), self._clock.record.budget_s
        ends = time_text(time.time(), max(0.0, budget_s - used_s))
        with suppress(OSError, ValueError):  # nobody reads it
            print(
                f"[{used_s / 60:.1f} of {budget_s / 60:g} min, to {ends}] {what}", file=sys.stderr, flush=True
            )


def adapt(given: Adaptation, num_processes: int, device: str) -> None:
    """Adapt, or go on with it. Raises KeyboardInterrupt when a signal asks to stop, with everything saved."""
    run = given.run
    try:
        make_folder(run)
    except OSError as error:
        raise unwritable(f"--out {run}", error) from error
    try:
        with locks.hold(run / ".adapt.lock"):
            record = read_record(run) or Record(asked=given.asked, budget_s=given.budget_s)
            clock = Clock(run, record.model_copy(update={"budget_s": given.budget_s}))
            clock.note()
            try:
                Run(given, clock, num_processes, device).finish()
            finally:
                clock.note()
    except locks.LockedError as error:
        raise InputError(f"--out {run}: another command adapts here ({error}); wait for its end.") from error


def _weights_of(step: int) -> str:
    return f"the weights of step {step:,}"


def _seconds_per_step(run: Path, global_batch_size: int) -> dict[int, float]:
    """Return what each logged interval of a training took, by its last step."""
    with suppress(OSError, ValueError):  # it is being written
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return {
            row["step"]: global_batch_size / row["examples_per_s"] for row in rows if "examples_per_s" in row
        }
    return {}


def _has_c_compiler() -> bool:
    try:
        require_c_compiler(torch.device("cuda"), "")
    except InputError:
        return False
    return True


def _num_inputs(data: Path) -> int:
    """Return the test inputs of a dataset's tasks."""
    puzzles = json.loads((data / "test_puzzles.json").read_bytes())
    return sum(len(task["test"]) for task in puzzles.values())
