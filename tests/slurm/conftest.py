"""One cluster for the tests of this folder, in each process of pytest that runs some of them."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.packages import SlurmMissingError, programs


@pytest.fixture(scope="package")
def slurm() -> Iterator[Cluster]:
    """A running cluster; srun, sbatch and so on find it, also in processes that a test starts."""
    # Not pytest's tmp_path, which only this user may enter: munge wants its socket where all may.
    parent = Path(tempfile.mkdtemp(prefix="hrm-slurm-", dir="/tmp"))
    parent.chmod(0o755)
    with pytest.MonkeyPatch.context() as environment:
        try:
            cluster = Cluster(parent / "cluster", programs(), dies_with_us=True)
        except SlurmMissingError as missing:
            parent.rmdir()
            pytest.skip(str(missing))
        try:
            cluster.start()
            for name, value in cluster.env.items():
                environment.setenv(name, value)
            yield cluster
        except SlurmMissingError as missing:
            pytest.skip(str(missing))
        finally:
            cluster.stop()
            parent.rmdir()
