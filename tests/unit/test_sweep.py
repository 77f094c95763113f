"""Sweeps: which settings a file means, which runs are one, and what is said of their scores."""

import json
import re
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import tools.sweep.__main__ as sweep_command
from data_pipeline.base.errors import InputError
from data_pipeline.base.parallel import Part
from data_pipeline.schema import load_dataset_info
from hrm_dist.config import as_found, load_config
from hrm_dist.dry_run import metadata_of
from hrm_dist.evaluation.intervals import difference_interval, difference_text, interval_text, mean_interval
from hrm_dist.evaluation.scores import headline
from hrm_dist.run_lock import locked
from hrm_dist.run_record import RunRecord, Start
from hrm_dist.schedule import Schedule
from launch.jobs import spec as jobs
from launch.jobs.cluster import Cluster
from tools.sweep import plot, pool, results
from tools.sweep.__main__ import main
from tools.sweep.cost import operations_per_step
from tools.sweep.running import last_error
from tools.sweep.spec import Sweep, digest, folder_name, load_sweep

SWEEPS = Path(__file__).parents[2] / "configs" / "sweeps"

WriteSweep = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, config: Path) -> WriteSweep:
    """Write a sweep's file, with a pool and an output of this test."""

    def write_sweep(name: str = "sweep", **entries: Any) -> Path:
        path = tmp_path / f"{name}.yaml"
        places = {"config": str(config), "pool": str(tmp_path / "pool"), "out": str(tmp_path / "out")}
        entries["set"] = {"max_steps": 4, "eval_interval": 1000, **entries.get("set", {})}
        path.write_text(yaml.safe_dump({**places, **entries}, sort_keys=False))
        return path

    return write_sweep


def pretend(sweep: Sweep, name: str, seed: int, *scores: float, **row: float) -> Path:
    """Make the folder of a run whose last evaluations had these scores."""
    [run] = [run for run in sweep.runs if (run.setting.name, run.seed) == (name, seed)]
    folder = pool.make_run_folder(sweep.pool, run)
    steps = range(5 - len(scores), 5)
    lines = [
        {"step": step, "eval/exact_accuracy": score, **row} for step, score in zip(steps, scores, strict=True)
    ]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as refused:
        load_sweep(path)
    return str(refused.value)


# What a file means


def test_a_matrix_makes_every_combination_with_names_of_what_differs(write: WriteSweep) -> None:
    sweep = load_sweep(write(matrix={"arch.L_cycles": [1, 2], "lr": ["1e-3", "1e-4"], "epochs": [900]}))
    names = [setting.name for setting in sweep.settings]
    assert names == [f"arch.L_cycles={cycles}, lr={lr}" for cycles in (1, 2) for lr in ("1e-3", "1e-4")]
    values = {(s.config.arch.L_cycles, s.config.lr, s.config.epochs) for s in sweep.settings}
    assert values == {(cycles, lr, 900) for cycles in (1, 2) for lr in (1e-3, 1e-4)}


def test_settings_are_multiplied_by_the_matrix(write: WriteSweep) -> None:
    sweep = load_sweep(write(settings={"a": None, "b": {"lr": "1e-4"}}, matrix={"weight_decay": [0, 1]}))
    assert [s.name for s in sweep.settings] == [
        f"{name}, weight_decay={value}" for name in "ab" for value in (0, 1)
    ]
    assert (sweep.settings[-1].config.lr, sweep.settings[-1].config.weight_decay) == (1e-4, 1.0)


def test_a_setting_counts_before_what_all_have_and_that_before_the_file(write: WriteSweep) -> None:
    sweep = load_sweep(write(set={"lr": 0.5, "beta1": 0.5}, settings={"a": {"lr": 0.25}}))
    config = sweep.settings[0].config
    assert (config.lr, config.beta1, config.lr_warmup_steps) == (0.25, 0.5, 5)


def test_runs_come_seed_by_seed(write: WriteSweep) -> None:
    sweep = load_sweep(write(settings={"a": {}, "b": {"lr": 0.5}}, seeds=[3, 1]))
    assert [(run.setting.name, run.seed, run.config.seed) for run in sweep.runs] == [
        ("a", 3, 3), ("b", 3, 3), ("a", 1, 1), ("b", 1, 1),
    ]  # fmt: skip


@given(st.integers(1, 9), st.integers(1, 20))
def test_parts_share_the_runs_without_overlap(num_parts: int, num_runs: int) -> None:
    shares = [Part(number, num_parts).share(range(num_runs)) for number in range(num_parts)]
    assert sorted(run for share in shares for run in share) == list(range(num_runs))


def test_a_dataset_section_replaces_that_of_the_file(write: WriteSweep, tmp_path: Path) -> None:
    data = {
        "data_path": str(tmp_path / "d"),
        "dataset": {"preset": "sudoku", "side": 4, "num_train": 8, "num_test": 4},
    }
    arc = {"dataset.preset": "arc", "dataset.canvas": "6", "dataset.holdout": "all"}
    sweep = load_sweep(write(set=arc, settings={"a": data}))
    assert sweep.settings[0].config.dataset is not None
    assert sweep.settings[0].config.dataset.preset == "sudoku"


def test_every_problem_is_said_at_once_with_its_setting(write: WriteSweep) -> None:
    path = write(
        settings={"ok": {}, "x": {"arch.halt_max_steps": 0}, "y": {"hidden": 3}, "z": {"lr": -1}},
        baseline="none",
    )
    text = refusal(path)
    assert f"setting 'x' of {path}: arch.halt_max_steps=0: " in text
    assert "greater than or equal to 1 (got 0)" in text
    assert f"setting 'y' of {path}: hidden=3: unknown key 'hidden'" in text
    assert f"setting 'z' of {path}: lr=-1: " in text
    assert "baseline: 'none' is none of the settings: ok, x, y, z" in text
    assert "setting 'ok'" not in text


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ({}, "there is nothing to compare; give `settings`, `matrix` or both"),
        ({"settings": {"a": {"seed": 4}}}, "a: seed is set by the sweep; leave it out"),
        ({"set": {"resume": "never"}, "settings": {"a": {}}}, "set: resume is set by the sweep"),
        ({"settings": {"a": {}}, "seeds": [1, 2, 1]}, "seeds: [1, 2, 1] has one of them twice"),
        ({"settings": {"a": {}}, "seeds": []}, "seeds: "),
        ({"settings": {"a": {}}, "seeds": [-1]}, "greater than or equal to 0 (got -1)"),
        ({"settings": {"a": {}}, "score": "exact"}, "score: "),
        ({"settings": {"a": {}}, "sedes": [1]}, "unknown key 'sedes'; did you mean 'seeds'?"),
        ({"matrix": {"lr": ["1e-3", "1e-3"]}}, "two settings have one name"),
        ({"settings": {"a": {"lr": 1}}, "matrix": {"lr": [1, 2]}}, "a: lr is in matrix too"),
        ({"settings": {"a": {"eval_interval": None}}}, "eval_interval=null: there would be no scores"),
        ({"settings": {"a": {"epochs": 1, "global_batch_size": 8000}}}, "fills no batch"),
        ({"settings": {"a": {"data_path": "nowhere"}}}, "setting 'a'"),
    ],
)
def test_what_cannot_be_compared_is_refused(write: WriteSweep, entries: dict[str, Any], why: str) -> None:
    assert why in refusal(write(**entries))


def test_a_configuration_that_starts_from_another_run_is_refused(write: WriteSweep, tmp_path: Path) -> None:
    config = tmp_path / "from.yaml"
    config.write_text("data_path: x\nresume: runs/x/checkpoints/best\n")
    assert f"{config}: resume=runs/x/checkpoints/best: " in refusal(
        write(config=str(config), settings={"a": {}})
    )


def test_the_example_of_the_help_can_be_read(tmp_path: Path) -> None:
    assert sweep_command.__doc__
    example = sweep_command.__doc__.split("and seeds:\n")[1].split("\n\nEverything")[0]
    path = tmp_path / "example.yaml"
    path.write_text(textwrap.dedent(example))
    sweep = load_sweep(path)
    assert (len(sweep.settings), sweep.baseline) == (4, "baseline, lr=1e-4")


def test_a_dataset_that_is_not_what_a_setting_says_is_refused(write: WriteSweep) -> None:
    path = write(settings={"a": {"dataset": {"preset": "sudoku", "num_train": 8, "num_test": 4}}})
    assert "is not what `dataset` says" in refusal(path)


def test_two_datasets_in_one_place_are_refused(write: WriteSweep, tmp_path: Path) -> None:
    sudoku = {"preset": "sudoku", "side": 4, "num_test": 4}
    settings = {name: {"dataset": {**sudoku, "num_train": 2**i}} for i, name in enumerate("ab", 3)}
    text = refusal(write(set={"data_path": str(tmp_path / "d")}, settings=settings))
    assert "is that of a too, whose `dataset` says something else" in text


@pytest.mark.parametrize("path", sorted(SWEEPS.rglob("architectures*.yaml")), ids=lambda path: path.stem)
def test_architectures_are_compared_at_equal_operations(path: Path) -> None:
    sweep = load_sweep(path)
    operations: list[int] = []
    for setting in sweep.settings:
        metadata = metadata_of(sweep.config, as_found(setting.config), [])
        assert metadata is not None
        steps = Schedule(setting.config, metadata).last_step
        operations.append(steps * operations_per_step(setting.config, metadata))
    assert max(operations) < 1.1 * min(operations)


# Which runs are one


def keys(path: Path) -> list[str]:
    return [digest(run.config) for run in load_sweep(path).runs]


def test_operations_are_those_of_the_padding_that_is_computed(config: Path, tmp_path: Path) -> None:
    def operations(*settings: str) -> int:
        loaded = load_config(config, settings)
        return operations_per_step(
            loaded, load_dataset_info(Path(load_config(config).data_path)).metadata("train")
        )

    keep = operations()
    assert 0.2 * keep < operations("padding=skip") < keep
    assert operations("padding=skip", f"data_path={tmp_path / 'not built'}") == keep


def test_two_sweeps_have_one_key_for_what_they_share(write: WriteSweep) -> None:
    one = keys(write("one", settings={"a": {"lr": 0.5}, "b": {"lr": 0.25}}, seeds=[0, 1]))
    other = keys(write("other", matrix={"lr": ["0.25", "5e-1"]}, seeds=[1, 0]))
    assert len(set(one)) == 4
    assert set(one) == set(other)


@pytest.mark.parametrize(
    ("key", "value", "is_same"),
    [
        ("num_threads", 2, True),
        ("checkpoint_interval", 7, True),
        ("compile", False, True),
        ("keep_checkpoints", 5, True),
        ("arch.halt_max_steps", 2, False),
        ("max_steps", 9, False),
        ("eval_max_groups", 2, False),
        ("ema", True, False),
        ("precision", "bf16", False),
    ],
)
def test_the_key_of_a_run_follows_what_decides_its_scores(
    write: WriteSweep, key: str, value: object, is_same: bool
) -> None:
    plain, changed = keys(write(settings={"a": {}, "b": {key: value}}, seeds=[0]))
    assert (plain == changed) == is_same


def test_a_copy_of_a_dataset_makes_no_other_run(write: WriteSweep, dataset: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.symlink_to(dataset)
    plain, moved = keys(write(settings={"a": {}, "b": {"data_path": str(copy)}}, seeds=[0]))
    assert plain == moved


def test_folders_are_named_for_people_and_by_the_key(write: WriteSweep) -> None:
    run = load_sweep(write(settings={"no ACT / x": {}}, seeds=[7])).runs[0]
    assert folder_name(run) == f"no-ACT-x-seed7-{digest(run.config)}"


def test_a_run_is_found_under_the_name_that_another_sweep_gave_it(write: WriteSweep) -> None:
    one, other = (load_sweep(write(name, settings={name: {}}, seeds=[0])) for name in ("one", "other"))
    folder = pretend(one, "one", 0, 0.5)
    assert pool.find(other.pool, other.runs[0]).folder == folder
    assert pool.make_run_folder(other.pool, other.runs[0]) == folder


def test_a_run_is_done_once_its_last_step_is_scored(write: WriteSweep) -> None:
    sweep = load_sweep(write(settings={"a": {}}, seeds=[0]))
    folder = pretend(sweep, "a", 0, 0.25, 0.5)
    assert pool.find(sweep.pool, sweep.runs[0]).state == "done"
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text(lines[0] + '{"step": 4, "train/loss": 1.0}\n')
    assert pool.find(sweep.pool, sweep.runs[0]).state == "stopped"
    with locked(folder):
        pass  # which makes and removes the lock, and leaves the run
    assert pool.find(sweep.pool, sweep.runs[0]).step == 4


# What is said of scores


@pytest.fixture
def finished(write: WriteSweep) -> Sweep:
    """Three settings, of which the last has one seed of three."""
    sweep = load_sweep(
        write(settings={"a": {}, "b": {"lr": 0.5}, "c": {"lr": 0.25}}, seeds=[2, 0, 1], baseline="b")
    )
    for seed, (a, b) in {0: (0.2, 0.1), 1: (0.5, 0.3), 2: (0.9, 0.8)}.items():
        pretend(sweep, "a", seed, 0.95, a)
        pretend(sweep, "b", seed, 0.0, b)
    pretend(sweep, "c", 0, 0.7)
    return sweep


def test_means_and_differences_are_those_of_the_seeds(finished: Sweep) -> None:
    a, b, c = results.collect(finished).settings
    assert a.mean == mean_interval([0.9, 0.2, 0.5])
    assert b.mean == mean_interval([0.8, 0.1, 0.3])
    assert a.difference == difference_interval([0.9, 0.2, 0.5], [0.8, 0.1, 0.3])
    assert b.difference is None
    assert c.difference is not None
    assert c.difference.value == pytest.approx(0.7 - 0.1)  # of the seed that both have


def test_the_best_evaluation_counts_only_where_that_is_asked_for(finished: Sweep) -> None:
    best = results.collect(finished._replace(at="best"))
    assert best.settings[0].values == {2: 0.95, 0: 0.95, 1: 0.95}
    assert results.collect(finished).settings[0].values == {2: 0.9, 0: 0.2, 1: 0.5}
    assert "those of the best evaluation of each run" in results.as_table(best)
    assert "those of the last step" in results.as_table(results.collect(finished))


def test_the_table_says_how_much_it_is_made_of(finished: Sweep, dataset: Path) -> None:
    heads, _, a, b, c, *notes = results.as_table(results.collect(finished)).splitlines()
    assert cells(heads)[:4] == ["setting", "exact_accuracy", "difference", "seeds"]
    of_a, of_b = [0.9, 0.2, 0.5], [0.8, 0.1, 0.3]
    difference = difference_text(difference_interval(of_a, of_b))
    assert cells(a)[:4] == ["a", interval_text(mean_interval(of_a)), difference, "3 of 3"]
    assert cells(b)[:4] == ["b", interval_text(mean_interval(of_b)), "(baseline)", "3 of 3"]
    assert cells(c)[:4] == ["c", "70.0 %", "+60.0 points", "1 of 3"]
    text = "\n".join(notes)
    assert "7 of 9 runs are done" in text
    assert "Student's at 95 %, over seeds" in text
    assert f"108 held-out inputs of {dataset}" in text


def cells(line: str) -> Sequence[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_settings_whose_runs_are_the_same_are_told(write: WriteSweep) -> None:
    sweep = load_sweep(write(settings={"a": {}, "b": {"lr": 0.5}, "c": {"num_threads": 3}}, seeds=[0]))
    pretend(sweep, "a", 0, 0.5)
    table = results.as_table(results.collect(sweep))
    assert "c has the runs of a, time included" in table
    assert "b has the runs" not in table


def test_runs_of_several_commits_are_told(write: WriteSweep) -> None:
    sweep = load_sweep(write(settings={"a": {}}, seeds=[0, 1]))
    pretend(sweep, "a", 0, 0.5)
    pretend(sweep, "a", 1, 0.5)
    found = results.collect(sweep)

    def trained_by(*commits: str) -> str:
        records = [
            RunRecord.model_construct(
                starts=(Start.model_construct(git_revision=commit),), first_step=0, step=0
            )
            for commit in commits
        ]
        [setting] = found.settings
        runs = [run._replace(record=record) for run, record in zip(setting.runs, records, strict=True)]
        return results.as_table(found._replace(settings=[setting._replace(runs=runs)]))

    assert "several commits" not in trained_by("c0ffee", "c0ffee")
    assert "Runs are of several commits of the code: c0ffee, decade." in trained_by("decade", "c0ffee")


def test_the_speed_of_a_run_is_that_of_the_steps_whose_time_is_known(write: WriteSweep) -> None:
    sweep = load_sweep(write(settings={"a": {}}, seeds=[0]))
    pretend(sweep, "a", 0, 0.5)  # at step 4, killed before its checkpoint was noted
    record = RunRecord.model_construct(first_step=1, step=3, seconds_at={3: 4.0})
    found = pool.find(sweep.pool, sweep.runs[0])._replace(record=record)
    assert results.figures(found)["examples_per_s"] == 2 / 4 * sweep.runs[0].config.global_batch_size


def test_the_inputs_of_an_arc_score_are_the_test_inputs(write: WriteSweep) -> None:
    sweep = load_sweep(write(settings={"a": {}}, seeds=[0]))
    pretend(sweep, "a", 0, 0.5, **{"eval/task/pass@2": 0.25, "eval/inputs": 12})
    table = results.as_table(results.collect(sweep))
    assert "task/pass@2" in table
    assert "12 held-out inputs" in table


def test_results_have_every_figure(finished: Sweep) -> None:
    found = results.collect(finished)
    results.write(found)
    content = json.loads((finished.out / "results.json").read_text())
    assert (content["runs_done"], content["runs"], content["baseline"]) == (7, 9, "b")
    a = content["settings"]["a"]
    assert a["mean"]["value"] == pytest.approx(16 / 30)
    assert a["operations"] > 0
    assert a["dataset"]["inputs"] == 108
    assert [run["score"] for run in a["runs"]] == [0.9, 0.2, 0.5]
    assert a["runs"][0]["curve"] == [[3, 0.95], [4, 0.9]]
    assert content["settings"]["c"]["mean"] == {"value": 0.7, "low": None, "high": None}
    assert (finished.out / "table.md").read_text() == f"{results.as_table(found)}\n"


def test_a_score_that_runs_do_not_have_is_named_with_those_that_they_have(finished: Sweep) -> None:
    found = results.collect(finished._replace(score="eval/exact"))
    assert len(found.problems) == 7
    assert found.problems[0].endswith("has no score=eval/exact; it has eval/exact_accuracy")


@given(st.sets(st.sampled_from(["task/pass@1", "task/pass@2", "exact_accuracy", "cell_accuracy"])))
def test_the_score_compared_is_the_one_that_checkpoints_are_compared_by(names: set[str]) -> None:
    scores = {name: float(i) for i, name in enumerate(sorted(names))}
    first = next((name for name in pool.HEADLINES if name.removeprefix("eval/") in scores), None)
    assert headline(scores) == (None if first is None else scores[first.removeprefix("eval/")])


def test_the_plot_is_drawn_of_what_is_there(finished: Sweep, write: WriteSweep) -> None:
    plot.draw(results.collect(finished))
    assert (finished.out / "plot.png").read_bytes().startswith(b"\x89PNG")
    empty = load_sweep(write("empty", settings={"z": {"lr": 0.125}}, out=str(finished.out / "empty")))
    plot.draw(results.collect(empty))
    assert not empty.out.exists()


def test_a_mean_curve_has_the_steps_that_all_seeds_have(finished: Sweep) -> None:
    pretend(finished, "a", 0, 0.1, 0.2, 0.3)
    a = results.collect(finished).settings[0]
    steps, means = plot.mean_curve(a, "eval/exact_accuracy")
    assert steps == [3, 4]
    assert means == pytest.approx([(0.95 + 0.2 + 0.95) / 3, (0.9 + 0.3 + 0.5) / 3])


# The command


def test_a_table_trains_nothing(
    write: WriteSweep, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main([str(write(settings={"a": {}})), "--table"]) == 0
    assert "0 of 3 runs are done" in capsys.readouterr().out
    assert not (tmp_path / "pool").exists()


def test_a_dry_run_says_what_is_left_and_writes_nothing(
    write: WriteSweep, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = write(settings={"a": {}, "b": {"lr": 0.5}, "same": {}}, seeds=[0, 1])
    pretend(load_sweep(path), "a", 0, 0.5)
    assert main([str(path), "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "3 settings x 2 seeds" in text
    assert "1 of 4 runs are done" in text
    assert "as above" in text
    assert "timed here just now" in text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("log", "line"),
    [
        ("error: no\nlast\n", "error: no"),
        ("a bar\rTraceback:\n  x\nValueError: what\n\n", "ValueError: what"),
        ("", None),
    ],
)
def test_the_last_error_of_a_log_is_found(tmp_path: Path, log: str, line: str | None) -> None:
    path = tmp_path / "log"
    path.write_text("error: of an earlier start\n" + log)
    assert last_error(path, len("error: of an earlier start\n")) == line


# As an array


def test_a_part_is_missing_as_long_as_one_of_its_runs_is(finished: Sweep) -> None:
    spec = jobs.sweep([str(finished.path)], 2, Cluster())
    assert [part[-2:] for part in spec.parts] == [["--part", "0/2"], ["--part", "1/2"]]
    assert spec.missing == [0]  # which has the third and the ninth run
    alone = jobs.sweep([str(finished.path)], None, Cluster())
    assert len(alone.parts) == 9
    assert alone.missing == [2, 8]
    assert alone.join == ["tools.sweep", str(finished.path), "--table"]


@pytest.mark.parametrize(
    ("rest", "num_parts", "cluster", "why"),
    [
        (["--part", "0/2"], None, {}, "--part: the launcher numbers the parts"),
        (["--table"], None, {}, "--table: the last job makes the table"),
        ([], 10, {}, "--parts 10: there are 9 runs"),
        ([], None, {"nodes": 2}, "nodes=2: a part runs on one node"),
        ([], None, {"tasks_per_node": 2}, "a run of a sweep is one process"),
        ([], None, {"gpus_per_node": 1}, "device=cpu: gpus_per_node=1 would idle"),
        ([], None, {"cluster": "local"}, "python -m tools.sweep itself trains on this machine"),
    ],
)
def test_what_no_array_can_train_is_refused(
    finished: Sweep, rest: list[str], num_parts: int | None, cluster: dict[str, Any], why: str
) -> None:
    with pytest.raises(InputError, match=re.escape(why)):
        jobs.sweep([str(finished.path), *rest], num_parts, Cluster.model_validate(cluster))
