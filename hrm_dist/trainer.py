"""The training loop: batch -> segment -> loss -> engine -> checkpoint. It knows nothing of a model's internals."""

import functools
import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data_pipeline.reader import TestReader, TrainReader
from data_pipeline.schema import DatasetMetadata, load_dataset_info
from data_pipeline.windows import windows_of_puzzles
from hrm_dist.checkpoint import resume
from hrm_dist.checkpoint.reader import dataset_identity
from hrm_dist.checkpoint.train_state import TrainState
from hrm_dist.checkpoint.writer import CheckpointWriter
from hrm_dist.config import ConfigError, TrainConfig, sequences_per_process
from hrm_dist.cuda_graph import step_text, why_plain
from hrm_dist.distributed import collectives
from hrm_dist.distributed.preemption import PreemptionHandler
from hrm_dist.distributed.process_group import World, report_step
from hrm_dist.engines.base import PREFIX, CopyFn, Engine
from hrm_dist.engines.build import build_engine
from hrm_dist.evaluation import evaluate as evaluation
from hrm_dist.evaluation.scores import evaluation_text, headline, last_scores
from hrm_dist.model.act import ACTModel, Batch
from hrm_dist.model.attention_kernel import use_attention_kernel
from hrm_dist.model.flops import flops_per_sequence, matmul_rate
from hrm_dist.model.initialization import initialize_module
from hrm_dist.model.kernels import require_c_compiler, use_fused_swiglu
from hrm_dist.model.layers import checkpoint_activations
from hrm_dist.model.memory_estimate import num_parameters
from hrm_dist.model.network import Network
from hrm_dist.model.puzzle_embedding import place_table
from hrm_dist.packed_sizes import PackedSize, training_lengths, training_sizes
from hrm_dist.run_log.draw_answers import AnswerPictures
from hrm_dist.run_log.run_log import RunLog
from hrm_dist.run_log.sinks import facts_of, open_sinks, shows_pictures
from hrm_dist.run_log.wandb_run import WandB
from hrm_dist.run_record import Hardware, RunRecorder, dataset_of, hardware_of, this_start
from hrm_dist.run_summary import print_summary
from hrm_dist.schedule import Schedule
from hrm_dist.skipped_updates import SkippedUpdates
from hrm_dist.thread_crowding import Crowding
from hrm_dist.train_step import TrainStep

logger = logging.getLogger(__name__)


class TrainingError(Exception):
    """The run cannot usefully continue; its state is saved. The message is shown as it is."""


def build_distributed_model(
    config: TrainConfig, metadata: DatasetMetadata, world: World
) -> tuple[ACTModel, Engine]:
    """Return the model with its initial weights, and the engine that holds its network: this rank's share of both."""
    with torch.device("meta"):
        network = Network(config.arch, metadata)
    if config.activation_checkpointing:
        checkpoint_activations(network)
    network.recurrence.casts_once = config.gather_unit == "loop" and world.device.type == "cuda"
    use_attention_kernel(network, config.attention, config.arch, network.seq_len, world.device)
    use_fused_swiglu(network, config.fused_swiglu, network.dtype, world.device)

    def init_module(name: str, module: nn.Module, copy: CopyFn) -> None:
        initialize_module(f"{PREFIX}.{name}", module, copy, config.seed)

    engine = build_engine(network, config, world.device, init_module)
    table = place_table(config, metadata, world)
    windows = None
    if config.padding == "skip":
        path = config.data_path
        windows = torch.from_numpy(windows_of_puzzles(path, load_dataset_info(path))).to(world.device)
    with world.device:
        model = ACTModel(config.arch, metadata, table, engine.network, windows)
    if config.compiles_on(world.device.type):
        model.compile_parts()
        network.compile_parts(with_ends=config.engine == "ddp", by_block=config.gather_unit == "layer")
    for name, module in (("", model), ("puzzle_emb", model.puzzle_emb)):
        if module is not None:
            initialize_module(name, module, Tensor.copy_, config.seed)
    return model, engine


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
        # Of the whole batch, and so on all ranks the same.
        self._lengths = collectives.run_on_rank0(lambda: training_lengths(config))
        self.model, self.engine = build_distributed_model(config, self.reader.metadata, world)
        # Nothing in training draws from it, but its state is part of a checkpoint, and torch seeds it at random.
        torch.manual_seed(config.seed)
        self.state = TrainState(config, world, self.model, self.engine)
        self.skipped = SkippedUpdates(len(self.state.carry.steps), world.device)
        self._step = TrainStep(
            config,
            world,
            self.model,
            self.engine,
            self.state,
            self.skipped,
            self.reader.metadata.pad_id,
            self._packed_sizes(),
        )
        self._wandb: WandB | None = None  # on the main process, if asked for
        self._facts: dict[str, Any] = {}
        self._recorder: RunRecorder | None = None  # on the main process, once the run has begun
        self.crowding = Crowding(world.device)
        self.writer = CheckpointWriter(
            self.run_dir / "checkpoints",
            config.keep_checkpoints,
            in_background=config.async_checkpoint,
            timeout_s=config.timeout_s,
        )

    def _check_sizes(self) -> None:
        config = self.config
        if self.schedule.total_steps < 1:
            raise ConfigError(
                f"epochs={config.epochs}: so few passes over {self.reader.metadata.total_groups} groups fill no "
                f"batch of global_batch_size={config.global_batch_size}; raise epochs or lower the batch size."
            )
        sequences_per_process(config, self.world.world_size)
        why_plain(config, self.world.device.type, self.world.world_size)
        if config.compiles_on(self.world.device.type):
            require_c_compiler(self.world.device, "set compile=false")

    def _packed_sizes(self) -> tuple[PackedSize, ...]:
        """Return the sizes of packed batches; none where padding is computed."""
        if self._lengths is None:
            return ()
        num_sequences = sequences_per_process(self.config, self.world.world_size)
        return training_sizes(self.config, self._lengths, self.model.seq_len, num_sequences)

    # The loop

    def fit(self, stop: PreemptionHandler) -> bool:
        """Train to the last step; return False if a signal ended the run early, with its state saved."""
        start = self._resume()
        # A damaged dataset is found before anything is written.
        if not self.schedule.is_last(self.state.step):
            self._announce_first_step()
            self.warm_up()
        hardware = hardware_of(self.world)
        collectives.run_on_rank0(lambda: self._begin_run(start, hardware))
        with closing(self._open_log()) as log, closing(self.writer):
            is_behind = self.state.row_is_due or self.state.evaluation_is_due
            stopping = is_behind and self._complete_step(log, stop)
            for batch in () if stopping else self._batches():
                self.train_step(batch)
                log.advance()
                self._check_threads()
                self.state.row_is_due = self.schedule.logs(self.state.step)
                self.state.evaluation_is_due = self.schedule.evaluates(self.state.step)
                if self._complete_step(log, stop):
                    break
            self.writer.wait()
        stop.finish_vote()
        is_done = self.schedule.is_last(self.state.step) and not self.state.evaluation_is_due
        if is_done:
            if self._recorder is not None:
                self._recorder.finish()
            print_summary(self.config, self.state.step, log.describe_work(), is_resumed=start is not None)
        collectives.barrier()  # a launcher ends all processes when one leaves, and rank 0 may still log
        return is_done

    def warm_up(self) -> None:
        """Let the engine prepare and, where it can, compile every size of a packed batch, without making a step."""
        self._step.warm_up_backward(self.reader.batch(self.state.step))

    def train_step(self, batch: Batch) -> None:
        """Make one step: a segment over the global batch, and an update, skipped if anything is not finite."""
        self.state.step += 1
        step = self.state.step
        self._step(batch, step, self.schedule.lr(step), self.schedule.table_lr(step))
        report_step(step)

    def _complete_step(self, log: RunLog, stop: PreemptionHandler) -> bool:
        """Write the row, the scores and the checkpoint of the step reached, as they are due; return whether to stop."""
        is_best = False
        if self.state.row_is_due:
            self.state.row_is_due = False
            sums = self.state.sums.row(self.config.global_batch_size)
            log.write_row(self.state.step, {**sums, "train/lr": self.schedule.lr(self.state.step)})
            self._check_skipped(log)
            self.writer.raise_failure()
        with log.untimed():
            if self.state.evaluation_is_due:
                is_best = self._evaluate(log, stop)
            stopping = self.state.evaluation_is_due or stop.agreed()
            if stopping or self.schedule.saves(self.state.step):
                self._save_with_records(log, is_best)
        return stopping

    def _save_with_records(self, log: RunLog, is_best: bool = False, *, prunes: bool = True) -> None:
        """Write a checkpoint, after the records of the run that tell of its step."""
        log.flush()
        if self._recorder is not None:
            self._recorder.save(self.state.step, log.seconds_trained())
        self.save(is_best, prunes=prunes)

    def save(self, is_best: bool = False, *, prunes: bool = True) -> None:
        """Write a checkpoint of the present step, and delete old ones if it `prunes`."""
        names = ("best", "latest") if is_best else ("latest",)
        self.writer.write(self.state.summary(self._dataset), self.state.tensor_shards(), names, prunes=prunes)

    # Parts of the loop

    def _resume(self) -> resume.Start | None:
        """Load the checkpoint that the run resumes from, if any."""
        state, schedule = self.state, self.schedule
        start = resume.find_start(self.config, self.run_dir, self._dataset, schedule, self.world.device)
        if start is None:
            return None
        opened = start.checkpoint
        state.load(opened)
        report_step(state.step)
        # Earlier versions, whose rows had the scores too, wrote the row only after the evaluation.
        state.row_is_due = schedule.logs(state.step) and any(opened.state.metric_sums)
        state.evaluation_is_due |= state.row_is_due
        state.evaluation_is_due &= schedule.evaluates(state.step)
        collectives.log_once(
            logger.info, f"resumed from {opened.path.resolve()} at step {state.step} of {schedule.last_step}"
        )
        return start

    def _announce_first_step(self) -> None:
        device_type, world_size = self.world.device.type, self.world.world_size
        if self.config.compiles_on(device_type):
            collectives.log_once(logger.info, "compiling: the first step takes a minute or so")
        if device_type == "cuda":
            how = step_text(self.config, device_type, world_size)
            collectives.log_once(logger.info, f"a training step is {how}")

    def _begin_run(self, start: resume.Start | None, hardware: Hardware) -> None:
        """Note how the run starts: in W&B, which may refuse it before anything is written, and in the run folder."""
        config, step = self.config, self.state.step
        about, dataset = this_start(hardware), dataset_of(config)
        size = num_parameters(config.arch, self.reader.metadata)
        self._facts = facts_of(about, dataset, size)
        if config.wandb_mode != "disabled":
            continues = start is not None and not start.rewinds
            self._wandb = WandB(config, self.run_dir, step, self._facts, continues=continues)
        resume.start_run_folder(config, self.run_dir, start)
        self._recorder = RunRecorder(self.run_dir, about, dataset, step, self.schedule.last_step, size)

    def _open_log(self) -> RunLog:
        device = self.world.device
        # The measurement draws random numbers, and a resumed run makes it once more.
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            rate = matmul_rate(device, self.model.dtype) * self.world.world_size
        flops = self.config.global_batch_size * flops_per_sequence(
            self.config.arch, self.reader.metadata, self.config.activation_checkpointing, self._lengths
        )
        due = {"train/": self.state.row_is_due, "eval/": self.state.evaluation_is_due}
        redone = tuple(prefix for prefix, is_due in due.items() if is_due)
        sinks = []
        if self.world.is_main:
            sinks = open_sinks(self.config, self.run_dir, self.state.step, redone, self._facts, self._wandb)
        return RunLog(self.config, sinks, self.state.step, self.schedule.last_step, flops / rate)

    def _batches(self) -> Iterator[Batch]:
        """Yield this rank's slices of the global batches that remain; the next is read while one is in use."""
        first, last_step = self.state.step, self.schedule.last_step
        with ThreadPoolExecutor(max_workers=1) as reading:
            upcoming = reading.submit(self.reader.batch, first)
            for step in range(first, last_step):
                batch = upcoming.result()
                if step + 1 < last_step:
                    upcoming = reading.submit(self.reader.batch, step + 1)
                yield batch

    def _check_threads(self) -> None:
        warning = self.crowding.warning()
        if warning is not None:
            collectives.log_once(logger.warning, warning)

    def _check_skipped(self, log: RunLog) -> None:
        """Report updates that were skipped; raise TrainingError, with the state saved, after too many in a row."""
        skipped = self.skipped.report()
        if skipped is None:
            return
        step, message = self.state.step, skipped.describe(Path(self.config.data_path))
        collectives.log_once(logger.warning, f"step {step}: {message}")
        limit = self.config.max_skipped_updates
        if limit is None or skipped.in_a_row < limit:
            return
        self._save_with_records(log, prunes=False)  # an older checkpoint may be what helps
        self.writer.wait()
        raise TrainingError(
            f"stopped at step {step}: {message}. That makes {skipped.in_a_row} in a row, max_skipped_updates="
            f"{limit}. Weights and optimizer are saved as they were before the first of them. If the last updates had "
            "spoiled them already, go back further: resume=CHECKPOINT with one of "
            f"{self.run_dir / 'checkpoints'}, and lower lr or puzzle_emb_lr; or look at the data."
        )

    def _evaluate(self, log: RunLog, stop: PreemptionHandler) -> bool:
        """Score the (averaged) model on the configured part of the test split; return whether it is the best so far.

        A signal may stop that; the evaluation then stays due.
        """
        config, state = self.config, self.state
        reader = TestReader(config.data_path, config.eval_max_groups, config.eval_num_aug)
        batch_size = config.eval_batch_size or config.global_batch_size
        began = time.perf_counter()
        pictures = AnswerPictures(reader)
        with self.engine.ema_weights():
            scores = evaluation.evaluate(
                self.model,
                reader,
                Path(config.data_path),
                batch_size,
                self.world.device,
                stop.agreed,
                look_at=pictures.take if shows_pictures(config) else None,
            )
        if scores is None:
            return False
        state.evaluation_is_due = False
        seconds = time.perf_counter() - began
        before = last_scores(self.run_dir / "metrics.jsonl") if self.world.is_main else None
        subset = reader.info.evaluated(config.eval_max_groups)
        log.write_evaluation(state.step, scores, subset, pictures.draw)
        text = evaluation_text(state.step, scores, seconds, before, state.best_score, subset)
        collectives.log_once(logger.info, text)
        if not scores and len(reader):
            collectives.log_once(
                logger.warning,
                f"step {state.step}: all outputs in the test split are hidden, so nothing is scored and no checkpoint "
                f"is the best; take {self.run_dir / 'checkpoints' / 'latest'}",
            )
        score = headline(scores)
        # Of equal scores the last: where nothing is solved yet, it has trained most.
        is_best = score is not None and (state.best_score is None or score >= state.best_score)
        if is_best:
            state.best_score = score
        return is_best

    @functools.cached_property
    def _dataset(self) -> dict[str, object]:
        return dataset_identity(Path(self.config.data_path), self.reader.metadata)
