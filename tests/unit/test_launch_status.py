"""launch.status: states from the record of jobs, the queue, the lock and progress; and of real runs."""

import json
import os
import shlex
import signal
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import submitit
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.base.errors import InputError
from launch.jobs import log as job_log
from launch.jobs.job_state import Queue, State
from launch.jobs.last_error import last_error
from launch.jobs.log import Ended, Event, Failed, Started, Submitted
from launch.jobs.slurm import QueuedJob
from launch.status import __main__ as status
from launch.status.collect import known_folders, summaries_of
from launch.status.run_state import Progress, part_states, run_state, state_of_parts, summary
from tests.training import command_line, num_rows, saved_step, start_train, train

T0 = datetime(2026, 11, 25, 12, tzinfo=UTC)
HOST = socket.gethostname()


def at(minutes: float) -> datetime:
    return T0 + timedelta(minutes=minutes)


def submitted(minute: float = 0, job_id: str = "7", **changes: Any) -> Submitted:
    values: dict[str, Any] = {
        "cluster": "slurm", "host": "login", "kind": "train", "resources": {},
        "command": ["hrm_dist.train", "runs/x/jobs/config.yaml"],
    }  # fmt: skip
    return Submitted(time=at(minute), job_id=job_id, **(values | changes))


def started(minute: float = 1, job_id: str = "7") -> Started:
    return Started(time=at(minute), job_id=job_id, hosts=["n1"], restarts=0)


def ended(exit_code: int, minute: float = 9, job_id: str = "7", *, requeued: bool = False) -> Ended:
    return Ended(time=at(minute), job_id=job_id, exit_code=exit_code, requeued=requeued)


def slurm_says(state: str = "", reason: str = "None", job_id: str = "7") -> Queue:
    """Slurm's answer: a job in a state, or nothing known."""
    return Queue({job_id: QueuedJob(job_id, state, reason, "n1")} if state else {}, True, HOST)


NO_SLURM = Queue({}, False, HOST)
HALF = Progress(step=50, saved_step=40, last_step=100, time=at(8))
DONE = Progress(step=100, saved_step=100, last_step=100, time=at(8))
STARTED, REQUEUED = [submitted(), started()], [submitted(), started(), ended(75, requeued=True)]
NEVER_RUN = Progress(last_step=100)


@pytest.mark.parametrize(
    ("events", "queue", "progress", "expected"),
    [
        ([submitted()], slurm_says("PENDING", "Priority"), NEVER_RUN, "queued (Priority)"),
        ([submitted()], slurm_says("PENDING"), NEVER_RUN, "queued"),
        ([submitted()], slurm_says("CONFIGURING"), NEVER_RUN, "queued (CONFIGURING)"),
        ([submitted()], slurm_says("RUNNING"), NEVER_RUN, "running (starting)"),
        ([submitted()], slurm_says("CANCELLED"), NEVER_RUN, "vanished (CANCELLED, never started)"),
        ([submitted()], slurm_says(), NEVER_RUN, "vanished (never started)"),
        ([submitted()], NO_SLURM, NEVER_RUN, "queued (by the record; no word from Slurm here)"),
        (STARTED, slurm_says("RUNNING"), HALF, "running"),
        (STARTED, slurm_says("SUSPENDED"), HALF, "running (SUSPENDED)"),
        (STARTED, slurm_says("PENDING", "BeginTime"), HALF, "queued (BeginTime)"),  # its node was lost
        (STARTED, slurm_says(), HALF, "vanished (killed)"),
        (STARTED, slurm_says("OUT_OF_MEMORY"), HALF, "vanished (OUT_OF_MEMORY, killed)"),
        (STARTED, slurm_says(), DONE, "finished"),  # killed after its last checkpoint
        (STARTED, NO_SLURM, HALF, "vanished (no process has its lock)"),
        (STARTED, NO_SLURM, HALF._replace(holder="host n1, pid 5"), "running (host n1, pid 5)"),
        (STARTED, slurm_says("RUNNING"), HALF._replace(holder="host n1, pid 5"), "running"),
        (REQUEUED, slurm_says("COMPLETING"), HALF, "going back to the queue"),
        (REQUEUED, slurm_says("RUNNING"), HALF, "going back to the queue"),
        (REQUEUED, slurm_says("PENDING", "BeginTime"), HALF, "queued (BeginTime)"),
        (REQUEUED, slurm_says(), HALF, "interrupted (its job has left the queue)"),
        (REQUEUED, NO_SLURM, HALF, "going back to the queue (no word from Slurm here)"),
        ([*REQUEUED, started(12)], slurm_says("RUNNING"), HALF, "running"),
        ([*STARTED, ended(0)], slurm_says(), DONE, "finished"),
        ([*STARTED, ended(0)], slurm_says("COMPLETING"), DONE, "finished"),
        ([*STARTED, ended(0)], NO_SLURM, DONE, "finished"),
        ([*STARTED, ended(0)], slurm_says(), HALF._replace(last_step=None), "finished"),
        ([*STARTED, ended(75)], slurm_says(), HALF, "interrupted"),
        ([*STARTED, ended(1)], slurm_says(), HALF, "failed (exit code 1)"),
        ([*STARTED, ended(1)], slurm_says("RUNNING"), HALF, "failed (exit code 1)"),  # Slurm is a moment late
        ([*STARTED, ended(1)], slurm_says("PENDING", "held"), HALF, "queued (held)"),  # scontrol requeuehold
        ([*STARTED, ended(1), submitted(12, "8")], slurm_says("PENDING", "Priority", "8"), HALF, "queued (Priority)"),
        ([*STARTED, ended(1), submitted(12, "8"), started(13, "8")], slurm_says(), HALF, "vanished (killed)"),
        # Gone on with by hand after its job.
        ([*STARTED, ended(1)], slurm_says(), HALF._replace(holder="host a, pid 5"), "running (host a, pid 5)"),
        ([*STARTED, ended(1)], slurm_says(), DONE._replace(time=at(20)), "finished"),
        ([*STARTED, ended(1)], slurm_says(), HALF._replace(time=at(20)), "interrupted"),
        ([*STARTED, ended(1)], slurm_says(), DONE, "failed (exit code 1)"),  # at its last step
        # Without any job.
        ([], NO_SLURM, NEVER_RUN, "not started"),
        ([], NO_SLURM, HALF, "interrupted"),
        ([], NO_SLURM, HALF._replace(lock_file="host a, pid 5"), "vanished (killed: host a, pid 5)"),
        ([], NO_SLURM, HALF._replace(holder="host a, pid 5", lock_file="-"), "running (host a, pid 5)"),
        ([], NO_SLURM, DONE, "finished"),
        ([], NO_SLURM, DONE._replace(holder="host a, pid 5"), "running (host a, pid 5)"),
    ],
)  # fmt: skip
def test_the_state_follows_from_record_queue_lock_and_progress(
    events: list[Event], queue: Queue, progress: Progress, expected: str
) -> None:
    assert str(run_state(events, queue, progress, at(60))) == expected


def test_a_job_that_has_just_started_is_not_taken_for_dead_before_it_has_the_lock() -> None:
    assert run_state(STARTED, NO_SLURM, NEVER_RUN, at(2)).name == "running"
    assert run_state(STARTED, NO_SLURM, NEVER_RUN, at(10)).name == "vanished"


EVENTS = st.lists(
    st.builds(
        lambda make, job_id, minute: make(minute, job_id),
        st.sampled_from([
            submitted, started,
            *(lambda minute, job_id, c=code, r=back: ended(c, minute, job_id, requeued=r)
              for code in (0, 1, 2, 75) for back in (False, True)),
        ]),
        st.sampled_from(["7", "8"]),
        st.integers(0, 20),
    ),
    max_size=6,
)  # fmt: skip
STEPS = st.none() | st.integers(0, 3)
PROGRESS = st.builds(
    Progress, step=STEPS, saved_step=STEPS, last_step=STEPS,
    time=st.none() | st.integers(0, 20).map(at), lock_file=st.none() | st.just("host a, pid 5"), holder=st.none(),
)  # fmt: skip


@given(EVENTS, PROGRESS)
def test_what_neither_slurm_nor_the_lock_knows_is_not_said_to_go_on(
    events: list[Event], progress: Progress
) -> None:
    assert not run_state(events, slurm_says(), progress, at(60)).is_live


@given(EVENTS, PROGRESS)
def test_who_holds_the_lock_runs(events: list[Event], progress: Progress) -> None:
    state = run_state(events, slurm_says(), progress._replace(holder="host a, pid 5"), at(60))
    assert state == State("running", "host a, pid 5")


@given(EVENTS, PROGRESS)
def test_only_a_complete_run_or_one_of_unknown_length_is_finished(
    events: list[Event], progress: Progress
) -> None:
    state = run_state(events, slurm_says(), progress, at(60))
    if state.name == "finished":
        assert progress.is_complete or progress.last_step is None


# Parts


BUILD_AGAIN = (
    "python -m launch.submit build arc-agi-2 --out data/x --parts 16 --mem-gb 8 --sbatch=--x=1 --retry-failed"
)


def parts_of(number: int, of: int, job_id: str, minute: float = 0) -> Submitted:
    command = ["data_pipeline.build", "arc-agi-2", "--out", "data/x", "--part", f"{number}/{of}"]
    return submitted(minute, job_id, kind="build", command=command, resubmit=BUILD_AGAIN.split()[3:])


def record_of_parts() -> list[Event]:
    """Of 16 parts 12 are done, 3 has failed, the others run; what joins them waits."""
    events: list[Event] = [parts_of(i, 16, f"20_{i}") for i in range(16)]
    merge = parts_of(0, 16, "21").model_copy(update={"command": ["data_pipeline.merge", "data/x"]})
    events.append(merge)
    events += [started(1, f"20_{i}") for i in range(16)]
    events += [ended(0, 2, f"20_{i}") for i in range(13) if i != 3]
    return [*events, ended(1, 2, "20_3").model_copy(update={"error": "error: no room on the disk"})]


def test_the_parts_of_an_array_are_counted() -> None:
    running = {f"20_{i}": QueuedJob(f"20_{i}", "RUNNING", "None", "n1") for i in range(13, 16)}
    waiting = {"21": QueuedJob("21", "PENDING", "Dependency", "")}
    parts = part_states(record_of_parts(), Queue(running | waiting, True, HOST))
    assert summary(parts) == "12 of 16 parts done, 1 failed (3), 3 running"
    assert state_of_parts(parts).name == "running"


def test_a_part_that_was_submitted_again_counts_once() -> None:
    events = [*record_of_parts(), parts_of(3, 16, "30_0", 3), started(4, "30_0"), ended(0, 5, "30_0")]
    events += [ended(0, 6, f"20_{i}") for i in range(13, 16)]
    queue = Queue({"21": QueuedJob("21", "PENDING", "Dependency", "")}, True, HOST)
    parts = part_states(events, queue)
    assert summary(parts) == "16 of 16 parts done, the joining of them is queued (Dependency)"
    parts = part_states([*events, started(7, "21"), ended(0, 8, "21")], slurm_says())
    assert state_of_parts(parts).name == "finished"
    assert {part.name: part.num_starts for part in parts}["3"] == 2


def test_failed_parts_are_shown_with_their_log_and_the_command_that_retries_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    for event in record_of_parts():
        job_log.append(tmp_path, event)
    (tmp_path / "jobs" / "20_3_0_log.err").write_text("")
    assert status.main([str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert "12 of 16 parts done, 1 failed (3), 3 running" in output
    assert "error: no room on the disk" in output
    assert str(tmp_path / "jobs" / "20_3_0_log.err") in output
    for event in (ended(0, 6, f"20_{i}") for i in range(13, 16)):
        job_log.append(tmp_path, event)
    job_log.append(tmp_path, ended(2, 6, "21"))
    assert status.main([str(tmp_path)]) == 0
    assert f"{BUILD_AGAIN}\n" in capsys.readouterr().out


# Errors


BAR = " 12%|#2        | 12/100 [00:03<00:21,  4.01step/s, loss 1.2, exact 0.0%, 31 examples/s]"
TRACEBACK = """\
Traceback (most recent call last):
  File "x.py", line 1, in <module>
    raise KeyError("a")
KeyError: 'a'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "x.py", line 3, in <module>
    f()
torch.OutOfMemoryError: CUDA out of memory. Tried to allocate
"""
OOM = (
    "slurmstepd: error: Detected 1 oom_kill event in StepId=5.0. Some of the step tasks have been OOM Killed."
)


def cancelled(minute: float, why: str) -> str:
    local = at(minute).astimezone().strftime("%Y-%m-%dT%H:%M:%S")
    return f"slurmstepd: error: *** STEP 5.0 ON n1 CANCELLED AT {local}{why} ***"


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        (f"INFO resumed\r{BAR}\n{TRACEBACK}", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate"),
        (f"{BAR}\nerror: no room\nsrun: error: n1: task 0: Exited with exit code 2\n", "error: no room"),
        (f"{BAR}error: no room\n", "error: no room"),
        (f"{BAR}srun: error: n1: task 0: Killed\n", "srun: error: n1: task 0: Killed"),
        (f"{BAR}   {OOM}\nsrun: error: n1: task 0: Out Of Memory\n", OOM),
        (f"{BAR}\nstopped by SIGTERM; the state is saved", "stopped by SIGTERM; the state is saved"),
        (f"{cancelled(6, ' DUE TO PREEMPTION')}\n{BAR}\nstopped by SIGTERM; the state is saved",
         cancelled(6, " DUE TO PREEMPTION")),
        (f"{BAR}\n{cancelled(6, '')}\n", cancelled(6, "")),
        (f"{BAR}\n{TRACEBACK}{cancelled(6, '')}\n", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate"),
        ("[rank1]: Traceback (most recent call last):\n[rank1]:   File\n[rank1]: KeyError: 'a'\n", "KeyError: 'a'"),
        ("INFO resumed\n", None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("before", ["", f"error: of an earlier start\n{TRACEBACK}{BAR}\n{OOM}\n"])
def test_the_line_that_explains_best_why_a_start_ended_is_found(
    before: str, log: str, expected: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "5_0_log.err"
    path.write_text(before + log)
    assert last_error(path, len(before)) == expected


ERROR_OF_RANK = Failed(job_id="7", rank=11, host="n2", exit_code=1, error="KeyError: 'a'")
ERROR_OF_RANK_0 = ended(69).model_copy(update={"error": "error: rank 11 is gone"})


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([ERROR_OF_RANK, ERROR_OF_RANK_0], "KeyError: 'a'"),
        ([ERROR_OF_RANK_0, ERROR_OF_RANK], "error: rank 11 is gone"),
        ([ERROR_OF_RANK, ERROR_OF_RANK_0, started(12)], OOM),  # it is over
        ([ended(75)], None),
        ([], OOM),
    ],
)
def test_the_first_error_on_record_is_shown_else_that_of_the_log(
    events: list[Event], expected: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = f"error: of the start before\n{TRACEBACK}"
    for event in [submitted(), started(), *events]:
        if isinstance(event, Started):
            event = event.model_copy(update={"log_start": len(old)})
        job_log.append(tmp_path, event)
    (tmp_path / "jobs" / "7_0_log.err").write_text(f"{old}{BAR}{OOM}\n")
    assert status_of(tmp_path, capsys)["last_error"] == expected


# Real runs


@pytest.fixture(autouse=True, scope="module")
def no_slurm() -> Any:
    """Where these tests run there may be a Slurm; what it says is not about them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "")
        yield


def status_of(run: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert status.main([str(run), "--json"]) == 0
    [one] = json.loads(capsys.readouterr().out)
    return one


def killed_run(config: Path, run: Path) -> Path:
    """A run that was killed after at least 5 steps, of which every second is saved."""
    process = start_train(config, run, "max_steps=2000", "checkpoint_interval=2")
    assert process.wait_until(lambda: num_rows(run) >= 5)
    process.process.kill()
    process.process.join()
    return run


def test_a_run_is_finished_at_its_last_step_even_without_its_dataset(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    settings = ["max_steps=6", "eval_interval=1", "eval_num_aug=0", "eval_max_groups=2"]
    assert train(config, run, *settings).exit_code == 0
    one = status_of(run, capsys)
    assert [one[key] for key in ("state", "step", "saved_step", "last_step")] == ["finished", 6, 6, 6]
    assert one["last_evaluation"]["step"] == 6
    assert (one["next"], one["eta_s"], one["restarts"]) == (None, None, 0)
    assert status.main([str(run)]) == 0
    block = capsys.readouterr().out
    assert block.startswith(f"{run}: finished\n")
    assert "6 of 6 (100%), saved up to 6\n" in block
    assert "evaluation at step 6: " in block

    path = run / "config.yaml"
    path.write_text(path.read_text().replace("data_path: ", "data_path: /missing"))
    assert status_of(run, capsys)["state"] == "finished"


def test_a_run_that_trains_is_running_and_one_that_is_killed_has_vanished(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    process = start_train(config, run, "max_steps=2000", "checkpoint_interval=2")
    assert process.wait_until(lambda: num_rows(run) >= 5)
    one = status_of(run, capsys)
    assert one["state"] == "running"
    assert f"pid {process.process.pid}" in one["detail"]
    assert one["last_step"] == 2000
    seconds_per_step = 8 / one["row"]["examples_per_s"]
    assert one["eta_s"] == pytest.approx((2000 - one["step"]) * seconds_per_step)
    process.process.kill()
    process.process.join()
    one = status_of(run, capsys)
    assert one["state"] == "vanished"
    assert one["saved_step"] == saved_step(run)
    assert one["step"] == num_rows(run)
    assert one["next"] == f"python -m hrm_dist.train {run}/config.yaml"


def test_a_run_that_was_stopped_is_interrupted(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    process = start_train(config, run, "max_steps=2000")
    assert process.wait_until(lambda: num_rows(run) >= 2)
    process.signal(signal.SIGTERM)
    assert process.finish().exit_code == 75
    one = status_of(run, capsys)
    assert (one["state"], one["saved_step"]) == ("interrupted", saved_step(run))


def test_rows_that_a_crash_cut_short_are_passed_over(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = killed_run(config, tmp_path / "run")
    rows = num_rows(run)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99\n{"step": 999, "train/loss": 0.')
    assert status_of(run, capsys)["step"] == rows
    (run / "metrics.jsonl").write_text('{"step": 1, "train/lo')
    (run / "checkpoints" / "latest" / "state.json").write_text('{"step": ')
    one = status_of(run, capsys)
    assert [one[key] for key in ("state", "step", "saved_step", "row")] == ["vanished", None, None, None]


def test_a_run_without_a_row_for_long_is_marked(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    process = start_train(config, run, "max_steps=2000")
    try:
        assert process.wait_until(lambda: num_rows(run) >= 2)
        process.signal(signal.SIGSTOP)
        assert not status_of(run, capsys)["is_stalled"]
        hour_ago = time.time() - 3600
        os.utime(run / "metrics.jsonl", (hour_ago, hour_ago))
        one = status_of(run, capsys)
        assert (one["state"], one["is_stalled"]) == ("running", True)
        assert status.main([str(run)]) == 0
        assert "60 min ago - stalled?" in capsys.readouterr().out
    finally:
        process.process.kill()
        process.process.join()


def test_all_shows_every_run_below_a_folder_in_a_table(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs" / "group").mkdir(parents=True)
    assert train(config, tmp_path / "runs" / "a", "max_steps=2").exit_code == 0
    killed_run(config, tmp_path / "runs" / "group" / "b")
    job_log.append(tmp_path / "runs" / "a" / "predictions", parts_of(0, 1, "20_0"))
    (tmp_path / "runs" / "empty").mkdir()
    root = tmp_path / "runs"
    assert known_folders(root) == [root / "a", root / "a" / "predictions", root / "group" / "b"]
    assert status.main(["--all", str(root)]) == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.split() == ["run", "state", "step", "loss", "examples/s", "left", "restarts"]
    states = [("a", "finished"), ("predictions", "queued"), ("b", "vanished")]
    for line, (name, state) in zip(lines, states, strict=True):
        assert line.split()[0].endswith(f"/{name}")
        assert line.split()[1] == state
    assert len({line.index(state) for line, (_, state) in zip(lines, states, strict=True)}) == 1


def test_the_job_that_is_submitted_again_is_named_with_what_it_asked_for(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = killed_run(config, tmp_path / "run")
    now = job_log.now()
    again = "train configs/x.yaml --nodes 2 --partition gpu --setup 'module load cuda' --setup 'export A=1'"
    early = submitted(resubmit=shlex.split(again))
    for event in (early, started(), started(5), ended(1).model_copy(update={"time": now})):
        job_log.append(run, event)
    (run / "jobs" / "7_0_log.err").write_text(f"{BAR}\nerror: the disk is full\n")
    one = status_of(run, capsys)
    assert (one["state"], one["exit_code"], one["restarts"]) == ("failed", 1, 1)
    assert one["last_error"] == "error: the disk is full"
    assert one["log"] == str(run / "jobs" / "7_0_log.err")
    assert one["next"] == f"python -m launch.submit {again}"


def test_a_local_job_runs_while_its_process_does(tmp_path: Path) -> None:
    executor = submitit.LocalExecutor(tmp_path / "jobs")
    job = executor.submit(time.sleep, 60)
    local = parts_of(0, 1, job.job_id).model_copy(update={"cluster": "local", "host": HOST})
    job_log.append(tmp_path, local)
    job_log.append(tmp_path, started(1, job.job_id))

    def state() -> str:
        [one], _ = summaries_of([tmp_path])
        return str(one.state)

    try:
        while not job.paths.stderr.exists():  # for a moment, a new process has no command line
            time.sleep(0.01)
        assert state() == "running"
    finally:
        job.cancel(check=False)
        job.wait()
    assert state() == "vanished (killed)"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda run: None, "no such folder"),
        (lambda run: run.mkdir(), "is not the folder of a run"),
    ],
)
def test_what_is_no_run_is_refused(make: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    make(tmp_path / "run")
    with pytest.raises(InputError, match=message):
        status.main([str(tmp_path / "run")])
    done = command_line("-m", "launch.status", tmp_path / "run")
    assert done.exit_code == 2
    assert done.output.startswith(f"error: {tmp_path / 'run'}: ")
    assert len(done.output.splitlines()) == 1


def test_torch_is_not_imported(tmp_path: Path) -> None:
    job_log.append(tmp_path, submitted())
    program = (
        f"from launch.status.__main__ import main, sys; main(['{tmp_path}']); print('torch' in sys.modules)"
    )
    assert command_line("-c", program).output.splitlines()[-1] == "False"
