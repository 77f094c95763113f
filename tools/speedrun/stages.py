"""The stages of a speedrun: build the data, train against the clock, evaluate, write the record."""

import datetime
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from data_pipeline.base import jsonl, locks
from data_pipeline.base.errors import InputError, unwritable
from data_pipeline.base.files import make_folder
from data_pipeline.base.progress import duration
from data_pipeline.base.revision import git_revision
from data_pipeline.schema import load_dataset_info
from hrm_dist import run_lock
from hrm_dist.checkpoint.reader import read_state
from hrm_dist.evaluation.intervals import interval_text, share_interval
from hrm_dist.evaluation.scores import SCORES_FILE
from hrm_dist.run_record import RunRecord, command_text, cpu_model, installed_version
from hrm_dist.run_record import read_record as read_run
from hrm_dist.schedule import Schedule
from tools.adapt.children import Commands
from tools.speedrun import page
from tools.speedrun.asked import Speedrun
from tools.speedrun.metrics_tail import MetricsTail
from tools.speedrun.puzzles import build_if_missing, settle
from tools.speedrun.record import End, Final, Machine, Point, Record, Start, Stopwatch, is_at

LOG = "speedrun.log"
_SHOW_EVERY_S = 30.0
_RELEASED_WITHIN_S = 150.0
"""A training that was told to stop, as its parent was killed, has saved by then."""
_LEAST_BATCH = 64
"""Of evaluations at the end."""
_NOISE = 0.1
"""Before every segment of several tries, where the model has no randomness of its own (docs/benchmarks/breadth.md)."""


class Evaluation(NamedTuple):
    """A way to evaluate the last weights."""

    name: str
    title: str
    options: list[str]


class Run:
    """A speedrun under way."""

    def __init__(self, given: Speedrun, watch: Stopwatch, device: str) -> None:
        self._given, self._watch, self._device = given, watch, device
        self._folder, self._checkpoints = given.run, given.run / "checkpoints"
        self._commands = Commands(given.run / LOG, 1, given.config.num_threads)
        self._shown_at = time.monotonic()

    def finish(self) -> None:
        """Go through the stages that are left."""
        self._wait_for_training()
        share_interval(0, 1)  # loads scipy, for which the clock would not be looked at for seconds
        with self._watch.counting("build"):
            build_if_missing(self._given)
        self._train()
        self._note_training()
        with self._watch.counting("evaluate"):
            self._evaluate()
        self._watch.note(result=self._watch.record.to_result())
        page.write(self._folder, self._watch.record)
        self._say(page.verdict(self._watch.record))
        self._say(f"the record: {self._folder / page.FILE}")

    # Training

    def _train(self) -> None:
        """Train until the target is reached, the budget is used up or the last step is done."""
        self._drop_lost_points()
        self._note_points([row for row in _rows(self._folder) if row["step"] <= self._step()])
        if self._why_enough() or self._is_finished():
            return
        command = ["hrm_dist.train", str(self._given.config_path), *self._overrides()]
        here, machines = machine(self._device), self._watch.record.machines
        machines = machines if here in machines else (*machines, here)
        self._watch.note(train_command=shlex.join(["python", "-m", *command]), machines=machines, result=None)
        self._say(f"train from step {self._step():,}; what it prints is in {self._folder / LOG}")
        self._run_training(command)
        self._drop_lost_points()  # a training that did not save in time was killed

    def _run_training(self, command: Sequence[str]) -> None:
        """Run a training until it is enough, watch its evaluations, and note it as a start."""
        starts, began = self._watch.record.starts, self._watch.seconds("train")
        start = Start(began=_now(), from_step=self._step())
        tail = MetricsTail(self._folder / "metrics.jsonl", skips_present=True)
        why: list[End] = []

        def note_start(end: End | None = None) -> None:
            nonlocal start
            start = start.model_copy(update={"seconds": self._watch.seconds("train") - began, "end": end})
            self._watch.record = self._watch.record.model_copy(update={"starts": (*starts, start)})

        def on_tick(seconds: float) -> None:
            nonlocal start
            rows = tail.rows()
            if start.until_first_row_s is None and any(row["step"] > start.from_step for row in rows):
                start = start.model_copy(update={"until_first_row_s": seconds})
            self._note_points(rows)
            note_start()
            self._watch.tick()
            self._show(rows)

        def is_enough() -> bool:
            why[:] = why or filter(None, [self._why_enough()])
            return bool(why)

        with self._watch.counting("train"):
            try:
                self._commands.run(command[0], command[1:], is_enough, on_tick)
            except KeyboardInterrupt:
                note_start("stopped")
                raise
            self._note_points(tail.rows())
            note_start(why[0] if why else self._why_enough() or "last step")

    def _overrides(self) -> list[str]:
        """Return the settings over those of the configuration's file."""
        given = self._given
        other = [] if given.asked.data == "configuration" else [f"data_path={given.data}", "dataset=null"]
        return [*given.overrides, *other]

    def _note_points(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Put evaluations that are new on the curve, and say what they found."""
        for row in rows:
            curve, score = self._watch.record.curve, row.get("eval/exact_accuracy")
            if score is None or any(point.step == row["step"] for point in curve):
                continue
            point = Point(
                step=row["step"], seconds=self._watch.seconds("train"),
                exact_accuracy=score, examples=round(row["eval/examples"]),
            )  # fmt: skip
            self._watch.note(curve=(*curve, point))
            interval = interval_text(share_interval(point.num_right, point.examples))
            reached = "; the target is reached" if is_at(point, self._given.target) else ""
            self._say(f"step {point.step:,}: {interval} of {point.examples:,} puzzles{reached}")

    def _drop_lost_points(self) -> None:
        """Drop evaluations of weights that a crash has taken: they are made again."""
        curve, step = self._watch.record.curve, self._step()
        self._watch.note(curve=tuple(point for point in curve if point.step <= step))

    def _why_enough(self) -> End | None:
        record = self._watch.record
        if record.reached is not None:
            return "target"
        budget_s = record.budget_s
        return "budget" if budget_s is not None and self._watch.seconds("train") >= budget_s else None

    def _step(self) -> int:
        latest = self._checkpoints / "latest"
        return read_state(latest).step if latest.exists() else 0

    def _is_finished(self) -> bool:
        run = self._run_record()
        metadata = load_dataset_info(self._given.data).metadata("train")
        last_step = Schedule(self._given.config, metadata).last_step
        return run is not None and run.is_finished and run.step >= last_step

    def _run_record(self) -> RunRecord | None:
        with suppress(InputError):
            return read_run(self._folder)
        return None

    def _note_training(self) -> None:
        """Note what the training's own records say of it."""
        run, step = self._run_record(), self._step()
        if not step or run is None:
            raise InputError(
                f"{self._folder}: no step was trained in {duration(self._watch.seconds('train'))}; give a larger "
                "--budget-min."
            )
        rates = [row["examples_per_s"] for row in _rows(self._folder) if row.get("examples_per_s")]
        self._watch.note(
            steps=step,
            batch_size=self._given.config.global_batch_size,
            cells=load_dataset_info(self._given.data).seq_len,
            dataset=run.dataset,
            hardware=tuple(dict.fromkeys(str(start.hardware) for start in run.starts)),
            num_parameters=run.num_parameters,
            steps_s=run.seconds_trained,
            examples_per_s=statistics.median(rates) if rates else None,
        )

    # Evaluation

    def _evaluate(self) -> None:
        """Evaluate the weights of the step that reached the target, or else the last ones, without choosing."""
        step, checkpoint = self._last_weights()
        known = {final.name: final for final in self._watch.record.finals if final.step == step}
        finals: list[Final] = []
        for evaluation in evaluations(self._given):
            final = known.get(evaluation.name) or self._evaluated(evaluation, step, checkpoint)
            finals.append(final)
            self._watch.note(finals=tuple(finals))

    def _last_weights(self) -> tuple[int, Path]:
        reached = self._watch.record.reached
        if reached is not None:
            exact = self._checkpoints / f"step_{reached.step}"
            checkpoint = exact if exact.exists() else self._checkpoints / "best"
        else:
            checkpoint = self._checkpoints / "latest"
        return read_state(checkpoint).step, checkpoint

    def _evaluated(self, evaluation: Evaluation, step: int, checkpoint: Path) -> Final:
        out = self._folder / "predictions" / f"step_{step}-{evaluation.name}"
        batch = self._given.config.eval_batch_size or self._given.config.global_batch_size
        arguments = [
            str(checkpoint), "--data", str(self._given.data), "--out", str(out),
            "--batch-size", str(max(batch, _LEAST_BATCH)), "--device", self._device, *evaluation.options,
        ]  # fmt: skip
        if self._given.config.compile is not None:
            arguments.append("--compile" if self._given.config.compile else "--no-compile")
        self._say(f"evaluate {evaluation.title}")
        ended = self._commands.run("tools.evaluate", arguments, lambda: False, lambda _: self._watch.tick())
        summary = jsonl.read(out / SCORES_FILE)[0]
        [(name, scores)] = summary["scores"].items()
        low, high = summary["intervals"][name]["exact_accuracy"]
        return Final(
            name=evaluation.name,
            title=evaluation.title,
            step=step,
            command=shlex.join(["python", "-m", "tools.evaluate", *arguments]),
            exact_accuracy=scores["exact_accuracy"],
            low=low,
            high=high,
            examples=round(scores["examples"]),
            said=tuple(
                line for line in ended.said.splitlines() if " per input" in line or "inputs/s" in line
            ),
        )

    # What is said

    def _wait_for_training(self) -> None:
        """Wait until a training that an earlier command has left behind has saved."""
        until = time.monotonic() + _RELEASED_WITHIN_S
        while run_lock.holder(self._folder) is not None and time.monotonic() < until:
            time.sleep(0.5)

    def _show(self, rows: Sequence[Mapping[str, Any]]) -> None:
        if rows and time.monotonic() - self._shown_at > _SHOW_EVERY_S:
            self._say(f"step {rows[-1]['step']:,}")

    def _say(self, what: str) -> None:
        self._shown_at = time.monotonic()
        with suppress(OSError, ValueError):  # nobody reads it
            print(f"[{page.clock_text(self._watch.seconds('train'))}] {what}", file=sys.stderr, flush=True)


def evaluations(given: Speedrun) -> list[Evaluation]:
    """Return the evaluations at the end: as trained, with halting, with several tries."""
    arch, starts = given.config.arch, given.starts
    halting = ["--halting", "unchanged:2", "--max-segments", str(given.max_segments)]
    # q tells right answers from wrong ones where a model was trained with what is random.
    noise = [] if arch.is_random else ["--segment-noise", f"{_NOISE:g}"]
    return [
        Evaluation("one-start", f"one start, {arch.halt_max_steps} segments, as in training", []),
        Evaluation(
            f"halting-{given.max_segments}",
            f"one start that halts once its answer stays (unchanged:2), at most {given.max_segments} segments",
            halting,
        ),
        Evaluation(
            f"{starts}-starts-{given.max_segments}",
            f"{starts} starts that halt likewise; the one with the highest q answers",
            ["--starts", str(starts), "--choose", "q", *halting, *noise],
        ),
    ]


def machine(device: str) -> Machine:
    """Return what computes here, and with which versions."""
    versions = {
        "hrm-dist": installed_version("hrm-dist"),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    is_gpu = device == "cuda"
    if is_gpu:
        versions |= {"CUDA": str(torch.version.cuda), "cuDNN": str(torch.backends.cudnn.version())}
    return Machine(
        name=torch.cuda.get_device_name() if is_gpu else cpu_model(),
        driver=_driver() if is_gpu else None,
        git_revision=git_revision(),
        versions=versions,
    )


def _driver() -> str | None:
    """Return the version of the GPU's driver."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.check_output(query, text=True, timeout=30).splitlines()[0].strip()
    return None


def _rows(folder: Path) -> list[dict[str, Any]]:
    return MetricsTail(folder / "metrics.jsonl", skips_present=False).rows()


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def speedrun(given: Speedrun, device: str) -> bool:
    """Run, or go on with it; return whether the target is reached.

    Raise KeyboardInterrupt when a signal asks to stop, with everything saved, and CommandError where a command fails.
    """
    try:
        make_folder(given.run)
    except OSError as error:
        raise unwritable(f"checkpoint_path={given.run}", error) from error
    try:
        with locks.hold(given.run / ".speedrun.lock"):
            given = settle(given)
            fresh = Record(asked=given.asked, command="", target=given.target)
            record = (given.known or fresh).model_copy(
                update={
                    "command": command_text(sys.orig_argv),
                    "target": given.target,
                    "budget_s": given.budget_s,
                }
            )
            watch = Stopwatch(given.run, record)
            watch.note()
            Run(given, watch, device).finish()
            return watch.record.reached is not None
    except locks.LockedError as error:
        raise InputError(
            f"checkpoint_path={given.run}: another command races here ({error}); wait for its end."
        ) from error
