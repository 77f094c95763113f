"""`tools.sweep` with real runs: interrupted and resumed, shared by sweeps, failing and trained elsewhere."""

import json
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from hrm_dist.run_lock import locked
from tests.training import TIMEOUT, Finished, Started, num_rows, rows
from tools.sweep import pool
from tools.sweep.spec import load_sweep

pytestmark = pytest.mark.e2e

STEPS = 16
SETTINGS = {"act": {}, "no ACT": {"arch.halt_max_steps": 1}}


class SweepOf:
    """A sweep of tiny runs in a folder of its own, whose pool others may share."""

    def __init__(
        self,
        folder: Path,
        config: Path,
        name: str,
        settings: Mapping[str, Any] = SETTINGS,
        seeds: Sequence[int] = (0, 1),
    ) -> None:
        self.path, self.out, self.pool = folder / f"{name}.yaml", folder / name, folder / "pool"
        entries = {
            "config": str(config),
            "set": {"max_steps": STEPS, "eval_interval": 1000, "num_threads": 1},
            "settings": dict(settings),
            "seeds": list(seeds),
            "out": str(self.out),
            "pool": str(self.pool),
        }
        self.path.write_text(yaml.safe_dump(entries, sort_keys=False))

    def start(self, *options: object) -> Started:
        log = self.path.with_suffix(".log")
        log.unlink(missing_ok=True)
        return Started(log, "tools.sweep", [self.path, *options], {})

    def run(self, *options: object) -> Finished:
        return finish(self.start(*options))

    def folders(self) -> list[Path]:
        return sorted(path for path in self.pool.iterdir() if path.is_dir())

    def results(self) -> dict[str, Any]:
        return json.loads((self.out / "results.json").read_text())


def finish(started: Started) -> Finished:
    """Wait for a sweep, which starts several processes one after the other."""
    started.process.join(3 * TIMEOUT)
    return started.finish()


def test_an_interrupted_sweep_resumes_and_nothing_is_trained_twice(config: Path, tmp_path: Path) -> None:
    sweep = SweepOf(tmp_path, config, "one")
    started = sweep.start("--jobs", 2)
    assert started.wait_until(
        lambda: sweep.pool.exists() and any(num_rows(folder) > 1 for folder in sweep.folders())
    )
    started.signal(signal.SIGINT)
    stopped = finish(started)
    assert stopped.exit_code == 75, stopped.output
    assert len(sweep.folders()) < 4  # those that had not begun were left
    assert any(0 < num_rows(folder) < STEPS for folder in sweep.folders())

    done = sweep.run("--jobs", 2)
    assert done.exit_code == 0, done.output
    assert "from step " in done.output
    folders = sweep.folders()
    assert len(folders) == 4
    for folder in folders:
        assert [row["step"] for row in rows(folder)] == list(range(1, STEPS + 1))
    found = sweep.results()
    assert found["runs_done"] == 4
    assert all(run["seconds"] > 0 for setting in found["settings"].values() for run in setting["runs"])
    assert (sweep.out / "plot.png").exists()

    before = {folder: (folder / "sweep.log").read_bytes() for folder in folders}
    again = sweep.run()
    other = SweepOf(tmp_path, config, "other", {"base": {}, "one segment": {"arch.halt_max_steps": "1"}})
    shared = other.run()
    assert (again.exit_code, shared.exit_code) == (0, 0), shared.output
    assert "4 of 4 runs are done" in shared.output
    assert {folder: (folder / "sweep.log").read_bytes() for folder in other.folders()} == before
    scores = [
        [[run["score"] for run in setting["runs"]] for setting in of["settings"].values()]
        for of in (found, other.results())
    ]
    assert scores[0] == scores[1]


def test_a_run_that_fails_is_named_and_the_others_are_trained(config: Path, tmp_path: Path) -> None:
    settings = {"good": {}, "bad": {"device": "cuda", "lr": 0.5}}
    done = SweepOf(tmp_path, config, "sweep", settings, [0]).run("--jobs", 1)
    assert done.exit_code == 1, done.output
    [line] = [line for line in done.output.splitlines() if line.startswith("error: bad, seed 0 failed: ")]
    assert "cuda" in line
    assert "1 of 2 runs are done" in done.output


def test_a_run_that_another_process_trains_is_left_to_it(config: Path, tmp_path: Path) -> None:
    sweep = SweepOf(tmp_path, config, "sweep", seeds=[0])
    first = load_sweep(sweep.path).runs[0]
    folder = pool.make_run_folder(sweep.pool, first)
    with locked(folder):
        done = sweep.run()
    assert done.exit_code == 0, done.output
    assert f"running elsewhere: act, seed 0, in {folder}" in done.output
    assert num_rows(folder) == 0
    assert sweep.results()["runs_done"] == 1


def test_parts_train_their_own_runs_and_build_data_once(config: Path, tmp_path: Path) -> None:
    data = {"preset": "sudoku", "side": 4, "num_train": 16, "num_test": 4}
    settings = {"4 x 4": {"data_path": str(tmp_path / "data"), "dataset": data}}
    sweep = SweepOf(tmp_path, config, "sweep", settings)
    others = [SweepOf(tmp_path, config, f"part{i}", settings) for i in range(2)]
    parts = [one.start("--part", f"{i}/2") for i, one in enumerate(others)]
    finished = [finish(part) for part in parts]
    assert [one.exit_code for one in finished] == [0, 0], finished
    assert [one.output.count("started in") for one in finished] == [1, 1]
    assert sum(one.output.count("16 groups") for one in finished) == 1
    joined = sweep.run("--table")
    assert "2 of 2 runs are done" in joined.output
