"""The training loop: batch -> segment -> loss -> engine -> checkpoint. Nothing here knows a model's inside."""

import functools
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor, nn

from data_pipeline.base.files import replace_file
from data_pipeline.reader import TestReader, TrainReader
from data_pipeline.sampler import rank_slice
from hrm_dist.checkpoint import config_changes, resume
from hrm_dist.checkpoint import reader as checkpoint
from hrm_dist.checkpoint.carry import carry_pieces, read_carries
from hrm_dist.checkpoint.reader import Checkpoint, CheckpointState
from hrm_dist.checkpoint.writer import CheckpointWriter, set_back
from hrm_dist.config import ConfigError, TrainConfig, to_yaml
from hrm_dist.distributed import collectives
from hrm_dist.distributed.preemption import PreemptionHandler
from hrm_dist.distributed.process_group import World, report_step
from hrm_dist.engines.base import PREFIX, Copy
from hrm_dist.engines.build import build_engine
from hrm_dist.evaluation import evaluate as evaluation
from hrm_dist.metrics import MetricSums, Row, RunLog
from hrm_dist.model.act import ACTModel, Batch, Carry, explore_halting
from hrm_dist.model.flops import flops_per_sequence, matmul_rate
from hrm_dist.model.initialization import initialize_module
from hrm_dist.model.layers import checkpoint_activations
from hrm_dist.model.losses import act_loss, finite_sequences
from hrm_dist.model.network import Network
from hrm_dist.model.puzzle_embedding import SignSGD, place_table
from hrm_dist.schedule import Schedule
from hrm_dist.skipped_updates import SkippedUpdates
from hrm_dist.tensor_shards import Piece, Place, fill, whole

logger = logging.getLogger(__name__)


class TrainingError(Exception):
    """The run cannot usefully go on; its state is saved. The message is shown as it is."""


class Trainer:
    """One process's part of a training run; `fit` takes it from wherever it is to the end."""

    def __init__(self, config: TrainConfig, world: World, reader: TrainReader | None = None) -> None:
        self.config, self.world = config, world
        self.run_dir = Path(config.checkpoint_path)
        self.reader = reader or TrainReader(
            config.data_path, config.seed, config.global_batch_size, world.rank, world.world_size
        )
        self.schedule = Schedule(config, self.reader.metadata)
        collectives.run_on_all_ranks(self._check_sizes)

        metadata, device = self.reader.metadata, world.device
        with torch.device("meta"):
            network = Network(config.arch, metadata)
        if config.activation_checkpointing:
            checkpoint_activations(network)
        if config.compile:
            for level in network.levels().values():
                level.compile()
        self.engine = build_engine(network, config, device, self._initialize)
        table = place_table(config, metadata, world)
        with device:
            self.model = ACTModel(config.arch, metadata, table, self.engine.network)
        for name, module in (("", self.model), ("puzzle_emb", self.model.puzzle_emb)):
            if module is not None:
                initialize_module(name, module, Tensor.copy_, config.seed)
        self.table_optimizer = None
        if self.model.puzzle_emb is not None:
            self.table_optimizer = SignSGD(self.model.puzzle_emb, config.puzzle_emb_weight_decay)

        # Nothing in training draws from it, but its state is part of a checkpoint, and torch seeds it at random.
        torch.manual_seed(config.seed)
        self.step = 0  # completed steps
        self.carries: list[Carry] = []  # one for each part of the batch
        self.sums = MetricSums(device)
        self.skipped = SkippedUpdates(device)
        self.best_score: float | None = None
        self._set_back_to: Path | None = None
        self.writer = CheckpointWriter(
            self.run_dir / "checkpoints",
            config.keep_checkpoints,
            in_background=config.async_checkpoint,
            timeout_s=config.timeout_s,
        )

    def fit(self, stop: PreemptionHandler) -> bool:
        """Train to the last step; gives False if a signal ended the run early, with its state saved."""
        resumed_from = self._resume()
        if not self.schedule.is_last(self.step):  # a damaged dataset is found before anything is written
            self._rehearse(self.reader.batch(self.step))
        collectives.run_on_rank0(lambda: self._start_run_folder(resumed_from))
        with closing(self._open_log()) as log, closing(self.writer):
            stopping = self._row_is_missing() and self._complete_step(log, stop)
            for batch in () if stopping else self._batches():
                self.train_step(batch)
                self.step += 1
                report_step(self.step)
                log.advance()
                if self._complete_step(log, stop):
                    break
            self.writer.wait()
        stop.finish_vote()
        is_done = self.schedule.is_last(self.step) and not self._row_is_missing()
        collectives.barrier()  # a launcher ends all processes when one leaves, and the main one may still log
        return is_done

    def train_step(self, batch: Batch) -> None:
        """One segment over the global batch, and one update, which is skipped if anything is not finite."""
        config, arch = self.config, self.config.arch
        parts = self._parts(batch)
        if not self.carries:
            self.carries = [self.model.initial_carry(part) for part in parts]
        drawn = explore_halting(arch, config.seed, self.step, config.global_batch_size)
        own_draws = torch.from_numpy(rank_slice(drawn, self.world.rank, self.world.world_size))
        min_halt_steps = self._to_device(own_draws).chunk(len(parts))
        sums: dict[str, Tensor] = {}
        finite: list[Tensor] = []  # by sequence
        loss_is_finite = torch.ones((), dtype=torch.bool, device=self.world.device)
        for index, part in enumerate(parts):
            self.engine.begin_micro_batch(is_last=index + 1 == len(parts))
            carry, outputs = self.model(self.carries[index], part, min_halt_steps[index])
            loss, metrics = act_loss(carry, outputs, arch.loss_type)
            self.engine.backward(loss / config.global_batch_size)
            finite.append(finite_sequences(outputs))
            loss_is_finite &= torch.isfinite(loss.detach())
            sums = {name: sums[name] + value if sums else value for name, value in metrics.items()}
            # A sequence whose state is not finite would stay so: its slot takes a new one.
            self.carries[index] = carry._replace(halted=carry.halted | ~finite[-1])
        sequences_are_finite = torch.cat(finite)
        if self.model.puzzle_emb is not None:
            sequences_are_finite &= self.model.puzzle_emb.finite_gradients()
        made = self.engine.step(self._lr(config.lr), loss_is_finite & sequences_are_finite.all())
        if self.table_optimizer is not None:
            self.table_optimizer.step(self._lr(config.puzzle_emb_lr), made)
        self.sums.add(sums, made)
        identifiers = torch.cat([carry.current_data["puzzle_identifiers"] for carry in self.carries])
        self.skipped.add(self.step + 1, made, sequences_are_finite, identifiers)

    def save(self, is_best: bool = False, *, prunes: bool = True) -> None:
        """Write a checkpoint of the present step, and delete old ones if it `prunes`."""
        state = CheckpointState(
            format=checkpoint.FORMAT,
            step=self.step,
            num_updates=self.engine.num_updates(),
            world_size=self.world.world_size,
            config=self.config.model_dump(mode="json"),
            dataset=self._dataset,
            environment=resume.environment(self.config, self.world.device),
            metric_sums=self.sums.total(),
            best_score=self.best_score,
        )
        names = ("best", "latest") if is_best else ("latest",)
        self.writer.write(state, self.pieces(), names, prunes=prunes)

    def _initialize(self, name: str, module: nn.Module, copy: Copy) -> None:
        initialize_module(f"{PREFIX}.{name}", module, copy, self.config.seed)

    # Parts of the loop

    def _check_sizes(self) -> None:
        config = self.config
        if self.schedule.total_steps < 1:
            raise ConfigError(
                f"epochs={config.epochs}: so few passes over {self.reader.metadata.total_groups} groups fill no "
                f"batch of global_batch_size={config.global_batch_size}; raise epochs or lower the batch size."
            )
        size, num_parts = (
            config.global_batch_size // self.world.world_size,
            config.gradient_accumulation_steps,
        )
        if size % num_parts:
            raise ConfigError(
                f"gradient_accumulation_steps={num_parts}: the {size} sequences of a process (global_batch_size="
                f"{config.global_batch_size} over {self.world.world_size}) do not divide into as many parts; choose "
                f"a divisor of {size}."
            )

    def _open_log(self) -> RunLog:
        device = self.world.device
        # The measurement draws random numbers, and a resumed run makes it once more.
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            rate = matmul_rate(device, self.model.dtype) * self.world.world_size
        flops = self.config.global_batch_size * flops_per_sequence(
            self.config.arch, self.reader.metadata, self.config.activation_checkpointing
        )
        # A process that ended between the row of a stopped evaluation and its checkpoint has left that row.
        last_row = self.step - 1 if self._row_is_missing() else self.step
        return RunLog(self.config, self.run_dir, self.step, self.schedule.last_step, last_row, flops / rate)

    def _rehearse(self, batch: Batch) -> None:
        def backward() -> None:
            part = self._parts(batch)[0]
            self.engine.begin_micro_batch(is_last=True)
            free_to_halt = torch.zeros_like(part["puzzle_identifiers"])
            carry, outputs = self.model(self.model.initial_carry(part), part, free_to_halt)
            self.engine.backward(act_loss(carry, outputs, self.config.arch.loss_type)[0])
            if self.model.puzzle_emb is not None:
                self.model.puzzle_emb.gradients = []

        self.engine.rehearse(backward)

    def _parts(self, batch: Batch) -> list[Batch]:
        """This rank's slice on the device, in the parts that are computed one after the other."""
        num_parts = self.config.gradient_accumulation_steps
        tensors = {name: self._to_device(tensor).chunk(num_parts) for name, tensor in batch.items()}
        return [{name: parts[index] for name, parts in tensors.items()} for index in range(num_parts)]

    def _to_device(self, tensor: Tensor) -> Tensor:
        """Copy to the device; from pinned memory, or the copy would wait for what the device does now."""
        if self.world.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.world.device, non_blocking=True)

    def _batches(self) -> Iterator[Batch]:
        """This rank's slices of the global batches that remain; the next is read while one is in use."""
        last_step = self.schedule.last_step
        with ThreadPoolExecutor(max_workers=1) as reading:
            upcoming = reading.submit(self.reader.batch, self.step)
            for step in range(self.step, last_step):
                batch = upcoming.result()
                if step + 1 < last_step:
                    upcoming = reading.submit(self.reader.batch, step + 1)
                yield batch

    def _complete_step(self, log: RunLog, stop: PreemptionHandler) -> bool:
        """Row, evaluation and checkpoint of the step reached, as they are due; gives whether to stop here.

        If the evaluation is stopped, the row is left to the process that goes on: the checkpoint has its sums.
        """
        scores: Row | None = {}
        is_best = False
        if self.schedule.logs(self.step):
            speed = log.speed()
            if self.schedule.evaluates(self.step):
                scores, is_best = self._evaluate(stop.agreed)
            if scores is not None:
                log.write(self._row() | speed | scores)
            self._check_skipped()
            self.writer.raise_failure()
        stopping = scores is None or stop.agreed()
        if stopping or self.schedule.saves(self.step):
            self.save(is_best)
        return stopping

    def _row_is_missing(self) -> bool:
        """Whether the row of the step reached is due and not made, as after a stopped evaluation; ask all ranks."""
        return self.schedule.logs(self.step) and not self.sums.are_empty()

    def _lr(self, base_lr: float) -> float:
        return self.schedule.lr(self.step + 1, base_lr)

    def _row(self) -> Row:
        """Metrics since the last row, and the rate of the step just completed."""
        sums = self.sums.row(self.config.global_batch_size)
        return {"step": self.step, **sums, "train/lr": self.schedule.lr(self.step, self.config.lr)}

    def _check_skipped(self) -> None:
        """Report updates that were skipped; raises TrainingError, with the state saved, after too many in a row."""
        skipped = self.skipped.report()
        if skipped is None:
            return
        message = skipped.describe(Path(self.config.data_path))
        collectives.log_once(logger.warning, f"step {self.step}: {message}")
        limit = self.config.max_skipped_updates
        if limit is None or skipped.in_a_row < limit:
            return
        self.save(prunes=False)  # an older checkpoint may be what helps
        self.writer.wait()
        raise TrainingError(
            f"stopped at step {self.step}: {message}. That makes {skipped.in_a_row} in a row, max_skipped_updates="
            f"{limit}. Weights and optimizer are saved as they were before the first of them. If the last updates had "
            "spoiled them already, go back further: resume=CHECKPOINT with one of "
            f"{self.run_dir / 'checkpoints'}, and lower lr or puzzle_emb_lr; or look at the data."
        )

    def _evaluate(self, should_stop: Callable[[], bool]) -> tuple[Row | None, bool]:
        """Scores of the (averaged) model on the configured part of the test split, and whether they are the best.

        No scores if the evaluation was stopped.
        """
        config = self.config
        reader = TestReader(config.data_path, config.eval_max_groups, config.eval_num_aug)
        batch_size = config.eval_batch_size or config.global_batch_size
        with self.engine.averaged():
            scores = evaluation.evaluate(
                self.model, reader, Path(config.data_path), batch_size, self.world.device, should_stop
            )
        if scores is None:
            return None, False
        score = evaluation.headline(scores)
        is_best = score is not None and (self.best_score is None or score > self.best_score)
        if is_best:
            self.best_score = score
        return {f"eval/{name}": value for name, value in scores.items()}, is_best

    # State

    @functools.cached_property
    def _dataset(self) -> dict[str, object]:
        return checkpoint.dataset_identity(Path(self.config.data_path), self.reader.metadata)

    def pieces(self) -> Iterator[Piece]:
        """This rank's share of everything that a resume needs."""
        yield from self.engine.pieces()
        table = self.model.puzzle_emb
        if table is not None:
            first, rows = table.own_rows()
            width = rows.shape[1]
            place = Place((table.num_identifiers, width), first * width)
            if len(rows):
                yield Piece("model.puzzle_emb.weights", place, rows.reshape(-1))
        for name, tensor in collectives.only_on_rank0(self.model.initial_states()).items():
            yield whole(f"model.{name}", tensor)
        yield from (whole(key, tensor) for key, tensor in self._states_of_rank().items())
        if self.config.save_carry:
            yield from carry_pieces(self.carries, self.world)

    def _states_of_rank(self) -> dict[str, Tensor]:
        rank, device = self.world.rank, self.world.device
        states = {f"rank.metric_sums.{rank}": self.sums.values, f"rank.rng_cpu.{rank}": torch.get_rng_state()}
        if device.type == "cuda":
            states[f"rank.rng_cuda.{rank}"] = torch.cuda.get_rng_state(device)
        return states

    def _start_run_folder(self, resumed_from: CheckpointState | None) -> None:
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"checkpoint_path={self.run_dir}: cannot be made ({error.strerror}); choose another folder."
            ) from error
        then = self.config.model_dump(mode="json") if resumed_from is None else resumed_from.config
        config_changes.record(
            self.run_dir, self.step, then, config_changes.changed_settings(then, self.config)
        )
        replace_file(self.run_dir / "config.yaml", to_yaml(self.config).encode())
        if self._set_back_to is not None:  # checkpoints go back with the run, like metrics.jsonl
            set_back(self._set_back_to)

    def _resume(self) -> CheckpointState | None:
        """Load the checkpoint that the run goes on from, if any; gives its state."""
        start = resume.find_start(self.config, self.run_dir)
        if start is None:
            return None
        opened = start.checkpoint
        state, path = opened.state, opened.path.resolve()
        resume.check_same_run(state, opened.path, self.config, self._dataset, self.schedule)
        resume.report_changes(config_changes.changed_settings(state.config, self.config), state.step)
        resume.warn_if_inexact(state, resume.environment(self.config, self.world.device))
        if start.sets_back:
            self._set_back_to = path
        self._load(opened)
        # A score is one to beat as long as `best` is there to show for it.
        best = self.run_dir / "checkpoints" / "best"
        self.best_score = state.best_score if checkpoint.is_up_to(best, path) else None
        collectives.log_once(
            logger.info, f"resumed from {path} at step {self.step} of {self.schedule.last_step}"
        )
        return state

    def _load(self, opened: Checkpoint) -> None:
        state = opened.state

        def read(key: str, start: int, stop: int) -> Tensor:
            kind, name = key.split(".", 1)
            if kind == "ema" and not opened.has("ema"):  # the average begins with the weights
                return opened.read(f"model.{name}", start, stop)
            if kind.startswith("exp_avg") and not opened.has(kind):  # weights that were not trained here
                return torch.zeros(stop - start)
            return opened.read(key, start, stop)

        self.engine.load(read, state.num_updates)
        for name, tensor in self.model.initial_states().items():
            fill(tensor, 0, f"model.{name}", read)
        table = self.model.puzzle_emb
        if table is not None:
            width = table.weights.shape[1]
            table.load_rows(
                lambda first, end: read("model.puzzle_emb.weights", first * width, end * width).view(
                    -1, width
                )
            )
        self.carries = read_carries(
            opened, self.config.arch, self.world, self.config.gradient_accumulation_steps
        )
        if state.world_size == self.world.world_size and opened.has("rank"):
            self._load_states_of_rank(opened)
        elif state.metric_sums:
            total = torch.tensor(state.metric_sums, dtype=torch.float64)
            self.sums.load(collectives.share_of_sum(total))
        self.step = state.step
        report_step(self.step)

    def _load_states_of_rank(self, opened: Checkpoint) -> None:
        rank, device = self.world.rank, self.world.device
        self.sums.load(opened.tensor(f"rank.metric_sums.{rank}"))
        torch.set_rng_state(opened.tensor(f"rank.rng_cpu.{rank}").clone())
        cuda = f"rank.rng_cuda.{rank}"
        if device.type == "cuda" and cuda in opened.shapes:
            torch.cuda.set_rng_state(opened.tensor(cuda).clone(), device)
