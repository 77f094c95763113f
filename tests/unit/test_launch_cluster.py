"""What a job asks of a cluster is checked as a whole, and reaches sbatch as it was asked for."""

import re
from pathlib import Path

import pytest
from submitit import SlurmExecutor

from hrm_dist.config import ConfigError
from launch.jobs import storage
from launch.jobs.cluster import Cluster, executor, load_cluster
from launch.jobs.slurm import explained
from tests.training import command_line

PROFILES = sorted((Path(__file__).parents[2] / "configs" / "cluster").glob("*.yaml"))


class Executor(SlurmExecutor):
    """submitit's own, where there is no srun to look for."""

    @classmethod
    def affinity(cls) -> int:
        return 2


def script(cluster: Cluster, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr("submitit.SlurmExecutor", Executor)
    made = executor(cluster, folder, "train-x")
    assert isinstance(made, Executor)
    return made._make_submission_file_text(made._submitit_command_str, "").splitlines()


@pytest.mark.parametrize("profile", PROFILES, ids=lambda path: path.stem)
def test_every_profile_loads_and_what_it_comments_out_is_known(profile: Path, tmp_path: Path) -> None:
    load_cluster(profile, {})
    text = re.sub(r"^# (?=[a-z_]+:( |$))", "", profile.read_text(), flags=re.MULTILINE)
    text = re.sub(r"^#   - ", "  - ", text, flags=re.MULTILINE)
    everything = tmp_path / "everything.yaml"
    everything.write_text(text)
    assert load_cluster(everything, {}).partition is not None


def test_the_command_line_goes_over_the_profile(tmp_path: Path) -> None:
    profile = tmp_path / "p.yaml"
    profile.write_text("partition: a\nnodes: 3\nsetup: [module load x]\n")
    cluster = load_cluster(profile, {"partition": "b,c", "setup": ["echo 'a: b'", "true"]})
    assert (cluster.partition, cluster.nodes, cluster.setup) == ("b,c", 3, ["echo 'a: b'", "true"])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"nodes": "0"}, ["nodes", "greater than 0", "0"]),
        ({"time_min": "2h"}, ["time_min", "2h"]),
        ({"cluster": "pbs"}, ["cluster", "slurm", "local", "pbs"]),
        ({"cluster": "local", "nodes": "2"}, ["nodes=2", "local"]),
        ({"gpus_per_node": "4", "tasks_per_node": "2"}, ["tasks_per_node=2", "gpus_per_node=4"]),
        ({"time_min": "1", "grace_s": "60"}, ["grace_s=60", "time_min=1"]),
        ({"sbatch": ["reservation=x"]}, ["sbatch", "reservation=x"]),
        ({"partition": "a\nb"}, ["partition"]),
        ({"sbatch": ["--parsable"]}, ["--parsable"]),
        ({"mem_gb": "inf"}, ["mem_gb", "inf"]),
    ],
)
def test_what_cannot_be_is_refused_by_key_and_value(given: dict[str, object], words: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        load_cluster(None, given)
    assert all(word in str(refused.value) for word in words), refused.value


def test_an_unknown_key_of_a_profile_is_refused_with_the_nearest_one(tmp_path: Path) -> None:
    profile = tmp_path / "p.yaml"
    profile.write_text("partitions: a\ngpus: 1\n")
    with pytest.raises(ConfigError, match=r"partitions.*did you mean 'partition'(.|\n)*'gpus'"):
        load_cluster(profile, {})


def test_all_that_was_asked_for_stands_in_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(
        nodes=2, gpus_per_node=8, cpus_per_task=4, mem_gb=1.5, time_min=90, grace_s=100, partition="p", account="a",
        qos="q", constraint="c", exclude="n[1-2]", setup=["module load x"], sbatch=["--reservation=r", "--exclusive"],
    )  # fmt: skip
    lines = script(cluster, tmp_path, monkeypatch)
    for option in (
        "nodes=2", "ntasks-per-node=8", "gpus-per-node=8", "cpus-per-task=4", "mem=1536M", "time=90", "signal=USR2@100",
        "partition=p", "account=a", "qos=q", "constraint=c", "exclude='n[1-2]'", "reservation=r", "exclusive",
        "requeue", "open-mode=append",
    ):  # fmt: skip
        assert f"#SBATCH --{option}" in lines
    assert lines.index("module load x") < len(lines) - 2
    [srun] = [line for line in lines if line.startswith("srun ")]
    assert "--cpus-per-task=4" in srun


def test_a_container_has_python_and_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    values = {"container": "x.sif", "container_mounts": ["/data"], "gpus_per_node": 1}
    apptainer = script(Cluster.model_validate(values), tmp_path, monkeypatch)[-1]
    inside = (
        f"apptainer exec --nv --bind {tmp_path} --bind /data --pwd {tmp_path} x.sif python -u -m submitit"
    )
    assert inside in apptainer
    pyxis = script(Cluster.model_validate({**values, "container_runtime": "pyxis"}), tmp_path, monkeypatch)[
        -1
    ]
    assert f"--container-image=x.sif --container-mounts={tmp_path}:{tmp_path},/data:/data" in pyxis
    assert " python -u -m submitit" in pyxis


def test_a_folder_that_only_this_machine_sees_is_refused(tmp_path: Path) -> None:
    lines = ("overlay / overlay", "nfs:/home /home nfs4", "tmpfs /run/x tmpfs", "nfs:/t /tmp/team nfs4")
    table = tmp_path / "mounts"
    table.write_text("".join(f"{line} rw 0 0\n" for line in lines))

    def why(path: str) -> str | None:
        return storage.why_private(Path(path), storage.mount_of(Path(path), table))

    assert all(map(why, ("/run/x/a", "/tmp/runs", "/dev/shm/a")))
    assert not any(map(why, ("/home/me/runs", "/tmp/team/runs", "/data")))


def test_the_words_of_slurm_are_kept_where_nothing_is_known_about_them() -> None:
    assert explained("sbatch: error: something new") == "sbatch: error: something new"
    assert "sacctmgr show assoc" in explained("Invalid account or account/partition combination specified")


def test_without_slurm_nothing_is_written_and_the_message_says_where_to_go(
    config: Path, tmp_path: Path
) -> None:
    command = ["-m", "launch.submit", "train", config, f"checkpoint_path={tmp_path / 'run'}"]
    refused = command_line(*command, environment={"PATH": str(tmp_path)})
    assert refused.exit_code == 2
    assert re.fullmatch(r"error: \w+: not found; .*login node.*--cluster local\.\n", refused.output), (
        refused.output
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("key", "ours"), [("time", "time_min"), ("gres", "gpus_per_node"), ("mem", "mem_gb")]
)
def test_a_key_as_sbatch_spells_it_gets_ours(key: str, ours: str, tmp_path: Path) -> None:
    profile = tmp_path / "gpu.yaml"
    profile.write_text(f"{key}: 1")
    with pytest.raises(ConfigError, match=f"unknown key '{key}'; here that is {ours}"):
        load_cluster(profile, {})
