"""The tests' own Slurm, and training in its jobs."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from hrm_dist.checkpoint.reader import open_checkpoint
from tests.slurm.cluster import Cluster
from tests.training import losses, train

pytestmark = pytest.mark.slurm

SETTINGS = ["max_steps=6", "global_batch_size=16", "lr=1e-4", "lr_warmup_steps=0"]


def test_each_node_answers_by_its_own_name(slurm: Cluster) -> None:
    output = slurm.command("srun", "--nodes=2", "--ntasks-per-node=1", "hostname")
    assert sorted(output.split()) == ["n1", "n2"]


def test_a_task_sees_the_pretend_gpus_that_it_asked_for(slurm: Cluster) -> None:
    output = slurm.command("srun", "--gpus-per-node=2", "printenv", "CUDA_VISIBLE_DEVICES")
    assert output.strip() == "0,1"


def test_srun_trains_on_two_nodes_as_one_process_does(slurm: Cluster, config: Path, tmp_path: Path) -> None:
    alone = train(config, tmp_path / "alone", *SETTINGS)
    assert alone.exit_code == 0, alone.output
    nodes = tmp_path / "nodes"
    srun = ["srun", "--nodes=2", "--ntasks-per-node=1", "--mem=0"]
    command = [sys.executable, "-m", "hrm_dist.train", config, f"checkpoint_path={nodes}", *SETTINGS]
    done = subprocess.run([*srun, *command], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}{slurm.log_tail()}"
    assert open_checkpoint(nodes / "checkpoints" / "latest").state.world_size == 2
    expected = losses(tmp_path / "alone")
    assert len(expected) == 6
    assert losses(nodes) == pytest.approx(expected, rel=1e-5)


def test_the_job_of_a_node_that_dies_is_requeued(slurm: Cluster, tmp_path: Path) -> None:
    output = tmp_path / "output"
    script = 'echo "start ${SLURM_RESTART_COUNT:-0} on $(hostname)"; sleep 600'
    options = ["--parsable", "--requeue", "--nodelist=n2", "--open-mode=append", f"--output={output}"]
    job_id = slurm.command("sbatch", *options, "--wrap", script).strip()
    wait_for_line(output, "start 0 on n2", slurm)
    slurm.kill_node("n2")
    slurm.wait_for_job(job_id, {"PENDING"})
    slurm.start_node("n2")
    wait_for_line(output, "start 1 on n2", slurm)
    assert slurm.job(job_id)["Restarts"] == "1"
    slurm.command("scancel", job_id)
    slurm.wait_for_job(job_id, {"CANCELLED"})


def wait_for_line(path: Path, line: str, slurm: Cluster) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() or line not in path.read_text().splitlines():
        assert time.monotonic() < deadline, slurm.log_tail()
        time.sleep(0.1)
