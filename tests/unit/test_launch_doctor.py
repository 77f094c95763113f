import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hrm_dist.distributed.launch_env import launch_env
from launch.doctor import __main__ as doctor
from launch.doctor import local_checks
from launch.doctor.group_checks import Exchange, clock_offset
from launch.doctor.results import CheckResult, MustMatch, merged, run
from launch.jobs.storage import mount_of
from tests.training import TIMEOUT, Finished, Started, command_line, rank_environments

QUIET = {"WANDB_MODE": "offline"}  # no network in tests
CHECKS = ["packages", "GPUs", "network", "limits", "wandb", "Slurm", "cores", "all-reduce", "clocks"]


def alone(*arguments: object) -> Finished:
    return command_line("-m", "launch.doctor", *arguments, environment=QUIET)


def start_two(folder: Path, log: Path) -> list[Started]:
    return [
        Started(log / f"rank{rank}.log", "launch.doctor", ["--json", "--dir", folder], QUIET | environment)
        for rank, environment in enumerate(rank_environments(2))
    ]


def report(output: str) -> dict[str, Any]:
    """The JSON object, which libraries may have written something before."""
    return json.loads(output[output.index("{\n") :])


def by_check(parsed: Mapping[str, Any], check: str) -> list[tuple[str, str]]:
    return [(line["level"], line["what"]) for line in parsed["findings"] if line["check"] == check]


def test_alone_every_check_has_a_line_and_nothing_fails(tmp_path: Path) -> None:
    finished = alone("--dir", tmp_path)
    assert finished.exit_code == 0, finished.output
    lines = re.findall(r"^(ok|warn)  +(.+?): .", finished.output, re.MULTILINE)
    assert list(dict.fromkeys(check for _, check in lines)) == [*CHECKS, f"folder {tmp_path}"]
    assert "0 FAIL" in finished.output
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_fails_and_the_other_is_still_checked(tmp_path: Path) -> None:
    finished = alone("--json", "--dir", tmp_path / "missing", "--dir", tmp_path)
    assert finished.exit_code == 1
    parsed = report(finished.output)
    assert parsed["failed"]
    [(level, what)] = by_check(parsed, f"folder {tmp_path / 'missing'}")
    assert (level, "No such file" in what) == ("FAIL", True)
    assert by_check(parsed, f"folder {tmp_path}")[0][0] in ("ok", "warn")


@pytest.mark.distributed
def test_two_processes_measure_an_all_reduce_and_see_the_shared_folder(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    finished = [rank.finish() for rank in start_two(shared, tmp_path)]
    assert [rank.exit_code for rank in finished] == [0, 0], finished
    parsed = report(finished[0].output)
    assert parsed["processes"] == 2
    [(_, what)] = by_check(parsed, "all-reduce")
    for size in (1, 16, 64):
        assert re.search(rf"gloo: .*{size} MB in [\d.]+ ms = [\d.]+ GB/s, bus [\d.]+", what), what
    what = " ".join(what for _, what in by_check(parsed, f"folder {shared}"))
    assert "all see a new file within" in what
    assert "file locks work between all" in what
    assert "packages" not in finished[1].output
    assert list(shared.iterdir()) == []


def can_be_another_node() -> bool:
    try:
        return subprocess.run(["unshare", "--mount", "--uts", "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.distributed
@pytest.mark.skipif(not can_be_another_node(), reason="may not give a process file systems of its own")
def test_a_folder_that_only_one_node_sees_fails_on_all_and_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "scratch"
    folder.mkdir()
    first, second = rank_environments(2)
    rank_0 = Started(tmp_path / "log", "launch.doctor", ["--json", "--dir", folder], QUIET | first)
    as_node = 'mount -t tmpfs none "$0" && hostname n2 && exec "$@"'
    command = [
        "unshare",
        "--mount",
        "--uts",
        "bash",
        "-c",
        as_node,
        folder,
        sys.executable,
        "-m",
        "launch.doctor",
    ]
    rank_1 = subprocess.run(
        [*command, "--dir", folder],
        env={**os.environ, **QUIET, **second},
        capture_output=True,
        timeout=TIMEOUT,
        check=False,
    )
    finished = rank_0.finish()
    assert (finished.exit_code, rank_1.returncode) == (1, 1), (finished.output, rank_1.stderr)
    parsed = report(finished.output)
    host = parsed["hosts"][0]
    assert parsed["hosts"] == [host, "n2"]
    whats = [what for level, what in by_check(parsed, f"folder {folder}") if level == "FAIL"]
    assert len(whats) == 1
    assert whats[0].startswith(f"this folder is on {host} alone: n2 did not see a new file of {host}")
    [(level, what)] = by_check(parsed, "clocks")
    assert (level, what.startswith("2 hosts within")) == ("ok", True)  # one kernel, one clock
    assert list(folder.iterdir()) == []


def in_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, environment: Mapping[str, str]) -> int:
    for name, value in {**QUIET, **environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["doctor", "--dir", str(tmp_path)])
    monkeypatch.setattr(doctor, "_TIMEOUT_S", 1.0)
    return doctor.main()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_whose_other_does_not_come_says_so(
    rank: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert in_process(monkeypatch, tmp_path, rank_environments(2)[rank]) == 1
    out, err = capsys.readouterr()
    text = out if rank == 0 else err
    assert f"FAIL  launcher: rank {rank} of 2 has not met the others at MASTER_ADDR=127.0.0.1" in text
    assert "within timeout_s=1:" in text
    assert ("packages: " in out) == (rank == 0)


def test_ranks_that_are_half_set_fail(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert in_process(monkeypatch, tmp_path, {"RANK": "0"}) == 1
    out = capsys.readouterr().out
    assert "FAIL  launcher: the environment has {'RANK': '0'} but not ['WORLD_SIZE', 'LOCAL_RANK']" in out


@given(
    skew_s=st.floats(-1e6, 1e6),
    ways=st.lists(st.tuples(st.floats(1e-5, 10), st.floats(1e-5, 10)), min_size=1),
)
def test_the_offset_of_a_clock_is_never_wronger_than_it_says(
    skew_s: float, ways: list[tuple[float, float]]
) -> None:
    exchanges = [Exchange(i, i + there + skew_s, i + there + back) for i, (there, back) in enumerate(ways)]
    seconds, error_s = clock_offset(exchanges)
    assert abs(seconds - skew_s) <= error_s + 1e-6
    assert error_s == pytest.approx(min(there + back for there, back in ways) / 2, abs=1e-6)


def test_a_check_that_fails_itself_is_a_failure_that_names_its_place() -> None:
    [finding] = run(lambda: [CheckResult("ok", str(1 / 0))])
    assert isinstance(finding, CheckResult)
    assert finding.level == "FAIL"
    assert re.search(r"ZeroDivisionError: division by zero \(line \d+ of .*test_launch_doctor", finding.what)


def test_what_is_wrong_on_some_hosts_is_said_with_them() -> None:
    little = CheckResult("warn", "little room", "remove files")
    hosts = ["n1", "n1", "n2", "n2", "n3"]
    fine = [CheckResult("ok", "much room")]
    assert merged("disk", [[little]] * 5, hosts) == [little._replace(check="disk")]
    assert merged("disk", [fine, fine, [little], [little], fine], hosts) == [
        CheckResult("ok", "much room", check="disk"),
        CheckResult("warn", "little room (on n2)", "remove files", "disk"),
    ]  # fmt: skip
    [_, line] = merged("disk", [fine, fine, fine, [little], [little]], hosts)
    assert line.what == "little room (on n2 (ranks 3), n3)"


def test_what_must_be_the_same_is_said_where_it_differs() -> None:
    versions = ["2.12", "2.12", "2.13"]
    by_rank = [
        [MustMatch("torch", version, "FAIL", "use one"), MustMatch("Python", "3.11", "FAIL", "")]
        for version in versions
    ]
    assert merged("packages", by_rank, ["n1", "n2", "n3"]) == [
        CheckResult("FAIL", "torch is 2.12 on n1, n2 and 2.13 on n3", "use one", "packages")
    ]
    assert merged("packages", by_rank[:2], ["n1", "n2"]) == []


def test_packages_that_are_missing_or_out_of_range_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "hrm_dist-9.dist-info"
    installed.mkdir()
    wanted = ["numpy>=1.26", "torch>=99", "no-such-package-of-ours>=2", 'not-wanted; extra == "dev"']
    metadata = ["Metadata-Version: 2.1", "Name: hrm-dist", "Version: 9", "Requires-Python: >=4"]
    metadata += [f"Requires-Dist: {requirement}" for requirement in wanted]
    (installed / "METADATA").write_text("\n".join(metadata))
    monkeypatch.syspath_prepend(tmp_path)
    findings = [finding for finding in local_checks.packages() if isinstance(finding, CheckResult)]
    assert [finding.level for finding in findings] == ["FAIL", "FAIL", "FAIL", "ok"]
    for finding, words in zip(
        findings,
        ["Python is 3.*, not >=4", "torch is .*, not >=99", "no-such.* is not installed", "numpy 2"],
        strict=True,
    ):
        assert re.search(words, finding.what)


def test_in_a_job_without_scontrol_requeueing_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert [finding.level for finding in local_checks.slurm(launch_env({}))] == ["ok"]
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    [finding] = local_checks.slurm(launch_env({}))
    assert finding.level == "warn"
    assert "cannot put itself back" in finding.what


def test_a_key_of_wandb_is_asked_for_but_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert not local_checks._has_key("api.wandb.ai")
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    assert local_checks._has_key("api.wandb.ai")
    assert not local_checks._has_key("wandb.example.org")


def test_wandb_that_does_not_answer_is_given_up_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setattr(local_checks, "_WANDB_TIMEOUT_S", 0.1)
    [finding] = local_checks.wandb(launch_env({}))
    assert finding.level == "warn"
    assert "wandb_mode=offline" in finding.todo


def test_the_file_system_of_a_folder_is_the_innermost() -> None:
    assert mount_of(Path("/proc/self")).kind == "proc"
    assert mount_of(Path("/dev/shm")).kind == "tmpfs"


def test_a_network_card_that_does_not_exist_is_not_ok(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "^lo,docker0")
    [result] = local_checks.network(launch_env({}))
    assert str(result).startswith("FAIL")
    assert "'^lo'" in str(result)
