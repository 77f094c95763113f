"""run.json in a run folder: how the run came about, which neither config.yaml nor metrics.jsonl says.

With these two it is what a table of results is made from (tools.results). It is written when the run starts and with
every checkpoint, and nothing of the training depends on it: one that is damaged begins anew.
"""

import logging
import platform
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data_pipeline.base.errors import InputError
from data_pipeline.base.files import replace_file
from data_pipeline.base.models import reason_of
from data_pipeline.base.revision import git_revision
from data_pipeline.schema import Subsets, load_dataset_info
from hrm_dist.config import TrainConfig

if TYPE_CHECKING:
    from hrm_dist.distributed.process_group import World

logger = logging.getLogger(__name__)

FILE = "run.json"


class _Part(BaseModel):
    """Keys of later versions are ignored."""

    model_config = ConfigDict(frozen=True)


class Hardware(_Part):
    """What the processes of a run computed on."""

    cpu: str
    """Its model, on the machine of rank 0."""
    num_processes: int
    num_threads: int
    """Of a process, that compute on the CPU."""
    num_nodes: int
    gpus: dict[str, int]
    """Model and number; none where the processes compute on CPUs."""

    def __str__(self) -> str:
        gpus = [f"{num} x {name}" if num > 1 else name for name, num in self.gpus.items()]
        threads = self.num_processes * self.num_threads
        words = " and ".join(gpus) or f"{threads} thread{'s' * (threads > 1)} on {self.cpu}"
        return words + (f", {self.num_nodes} nodes" if self.num_nodes > 1 else "")


class Start(_Part):
    """How a run was started."""

    command: str
    git_revision: str | None
    """Of the code; ends in `-dirty` where the working tree had changes, None outside of git."""
    hardware: Hardware
    versions: dict[str, str]


class Dataset(_Part):
    """What a run was trained on."""

    data_path: str
    kind: str
    canvas: int = 0
    """Side of its grids."""
    sources: tuple[str, ...] = ()
    options: dict[str, Any] = Field(default_factory=dict)
    """With which it was built."""
    sha256: str
    """In its dataset.json, of all the rest of that."""
    train_groups: int
    test_groups: int
    test_examples: int
    """Held out, whether or not evaluations take all of them."""
    subsets: Subsets | None = None
    """As in dataset.json."""


class RunRecord(_Part):
    """The content of run.json."""

    starts: tuple[Start, ...]
    """In the order in which they came first; equal ones are one."""
    dataset: Dataset
    num_parameters: int | None = None
    """Without the puzzle table."""
    first_step: int
    """Where the record begins: 0, or the step of another run's checkpoint, or of an earlier version's."""
    step: int
    """Of the last checkpoint."""
    last_step: int
    is_finished: bool
    """Whether the last step, and its evaluation, are done."""
    seconds_at: dict[int, float] = Field(default_factory=dict)
    """By the step of a checkpoint: seconds of training since `first_step`, over all starts, without evaluations and
    checkpoints, and without steps that were made again. The first step of a start may have compiled the model."""
    saved_at: datetime | None = None
    """When the checkpoint of `step` was written, in UTC; file times change where a run is copied. None before the
    first, and in records of earlier versions."""

    @property
    def seconds_trained(self) -> float:
        """Return the seconds up to `step`."""
        return self.seconds_at.get(self.step, 0.0)


def read_record(run_dir: Path) -> RunRecord | None:
    """Return a run's record; None if it has none. Raise InputError for one that is damaged."""
    path = run_dir / FILE
    try:
        return RunRecord.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise InputError(f"{path}: damaged ({reason_of(error)}); delete it.") from error


class RunRecorder:
    """Keep a run's record up to date, on the main process alone. Whatever becomes of it, training goes on."""

    def __init__(
        self,
        run_dir: Path,
        start: Start,
        dataset: Dataset,
        step: int,
        last_step: int,
        num_parameters: int | None = None,
    ) -> None:
        """step: the one at which the run starts now, which is noted."""
        self._run_dir = run_dir
        starts, first_step, seconds_at, saved_at = (start,), step, dict[int, float](), None
        earlier = self._earlier(step)
        if earlier is not None:
            starts = earlier.starts if start in earlier.starts else (*earlier.starts, start)
            first_step, saved_at = earlier.first_step, earlier.saved_at
            seconds_at = {saved: seconds for saved, seconds in earlier.seconds_at.items() if saved <= step}
        self._seconds_before = seconds_at.get(step, 0.0)
        self._write(
            RunRecord(
                starts=starts,
                dataset=dataset,
                num_parameters=num_parameters,
                first_step=first_step,
                step=step,
                last_step=last_step,
                is_finished=False,
                seconds_at=seconds_at,
                saved_at=saved_at,
            )
        )

    def _earlier(self, step: int) -> RunRecord | None:
        """Return the record of earlier starts, if it reaches back from this step to where it began."""
        if step == 0:
            return None  # what they made is lost
        try:
            record = read_record(self._run_dir)
        except InputError as error:
            logger.warning("%s It begins anew", error)
            return None
        return record if record and step in (record.first_step, *record.seconds_at) else None

    def save(self, step: int, seconds: float) -> None:
        """Note a checkpoint that is about to be written; seconds: of training since this start."""
        seconds_at = self._record.seconds_at | {step: round(self._seconds_before + seconds, 3)}
        saved_at = datetime.now(UTC).replace(microsecond=0)
        changed = {"step": step, "seconds_at": seconds_at, "saved_at": saved_at}
        self._write(self._record.model_copy(update=changed))

    def finish(self) -> None:
        """Note that the last step and its evaluation are done."""
        self._write(self._record.model_copy(update={"is_finished": True}))

    def _write(self, record: RunRecord) -> None:
        self._record = record
        try:
            replace_file(self._run_dir / FILE, f"{record.model_dump_json(indent=1)}\n".encode())
        except InputError as error:
            logger.warning("%s Training goes on without it", error)


def this_start(hardware: Hardware) -> Start:
    """Return how this process was started."""
    import torch

    return Start(
        command=command_text(sys.orig_argv),
        git_revision=git_revision(),
        hardware=hardware,
        versions={
            "hrm-dist": installed_version("hrm-dist"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    )


def command_text(arguments: Sequence[str]) -> str:
    """Return a command of Python's as a person would type it."""
    words = list(arguments[1:])
    while words and words[0] != "-m" and words[0].startswith("-"):  # such as -u, which launchers add
        del words[0]
    return shlex.join(["python", *words])


def installed_version(package: str) -> str:
    """Return a package's version."""
    try:
        return version(package)
    except PackageNotFoundError:  # ours, where it is used without being installed
        return "unknown"


def hardware_of(world: "World") -> Hardware:
    """Return what the processes of a run compute on; call on all ranks."""
    import torch

    from hrm_dist.distributed import collectives

    gpu = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else None
    ranks = collectives.gather_objects((platform.node(), gpu))
    return Hardware(
        cpu=cpu_model(),
        num_processes=world.world_size,
        num_threads=torch.get_num_threads(),
        num_nodes=len({node for node, _ in ranks}),
        gpus=Counter(name for _, name in ranks if name is not None),
    )


def cpu_model() -> str:
    """Return the model of the CPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def dataset_of(config: TrainConfig) -> Dataset:
    """Return what a run trains on."""
    info = load_dataset_info(Path(config.data_path))
    return Dataset(
        data_path=config.data_path,
        kind=info.kind,
        canvas=info.canvas,
        sources=tuple(source.name for source in info.sources),
        options=dict(info.options),
        sha256=info.sha256,
        train_groups=info.splits.train.total_groups,
        test_groups=info.splits.test.total_groups,
        test_examples=info.splits.test.num_examples,
        subsets=info.subsets,
    )
