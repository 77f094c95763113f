"""The training loop: batch -> segment -> loss -> engine -> checkpoint. Nothing here knows a model's inside."""

import logging
import platform
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data_pipeline.reader import TestReader, TrainReader
from data_pipeline.sampler import rank_slice
from hrm_dist import checkpoint, distributed, evaluation
from hrm_dist.config import ConfigError, TrainConfig, to_yaml, total_steps
from hrm_dist.distributed import StopRequest, World
from hrm_dist.engines.base import Engine
from hrm_dist.engines.ddp import DDPEngine
from hrm_dist.engines.fsdp import FSDPEngine
from hrm_dist.metrics import MetricSums, Row, RunLog
from hrm_dist.model.act import Batch, Carry, build_model, explore_halting
from hrm_dist.model.cost import flops_per_sequence, matmul_rate
from hrm_dist.model.hrm import InnerCarry
from hrm_dist.model.layers import recompute_blocks
from hrm_dist.model.losses import act_loss
from hrm_dist.model.puzzle_embedding import SignSGD
from hrm_dist.optim import learning_rate
from hrm_dist.predictions import replace_file

logger = logging.getLogger(__name__)


def _deepspeed_engine(network: nn.Module, config: TrainConfig) -> Engine:
    from hrm_dist.engines.deepspeed import DeepSpeedEngine

    return DeepSpeedEngine(network, config)


ENGINES: dict[str, Callable[[nn.Module, TrainConfig], Engine]] = {
    "ddp": DDPEngine,
    "zero1": _deepspeed_engine,
    "zero2": _deepspeed_engine,
    "zero3": _deepspeed_engine,
    "fsdp2": FSDPEngine,
}

# A resumed run goes on with the same batches and carry, so these must be what they were, and all of `arch`.
_FIXED_ON_RESUME = ("global_batch_size", "seed")


class Trainer:
    """One process's part of a training run; `fit` takes it from wherever it is to the end."""

    def __init__(self, config: TrainConfig, world: World, reader: TrainReader | None = None) -> None:
        self.config, self.world = config, world
        self.run_dir = Path(config.checkpoint_path)
        self.reader = reader or TrainReader(
            config.data_path, config.seed, config.global_batch_size, world.rank, world.world_size
        )
        self.total_steps = total_steps(config, self.reader.metadata)
        if self.total_steps < 1:
            raise ConfigError(
                f"epochs={config.epochs}: so few passes over {self.reader.metadata.total_groups} groups fill no "
                f"batch of global_batch_size={config.global_batch_size}; raise epochs or lower the batch size."
            )
        self.last_step = min(self.total_steps, config.max_steps or self.total_steps)

        self.model = build_model(config.arch, self.reader.metadata, config.seed).to(world.device)
        if config.activation_checkpointing:
            recompute_blocks(self.model.network)
        if config.compile:
            for name, module in self.model.network.named_modules():
                if name.endswith("_level"):
                    module.compile()
        self.engine: Engine = ENGINES[config.engine](self.model.network, config)
        self.model.network = self.engine.network
        self.table_optimizer = None
        if self.model.puzzle_emb is not None:
            self.table_optimizer = SignSGD(self.model.puzzle_emb, config.puzzle_emb_weight_decay)

        # Nothing in training draws from it, but its state is part of a checkpoint, and torch seeds it at random.
        torch.manual_seed(config.seed)
        self.step = 0  # completed steps
        self.carry: Carry | None = None
        self.sums = MetricSums(world.device)
        self.best_score: float | None = None
        self._set_back_to: Path | None = None

    def fit(self, stop: StopRequest) -> bool:
        """Train to the last step; gives False if a signal ended the run early, with its state saved."""
        self._resume()
        if self.step < self.last_step:
            self.reader.batch(self.step)  # a damaged dataset is found before anything is written
        distributed.on_main(self._start_run_folder)
        device = self.world.device
        # The measurement draws random numbers, and a resumed run makes it once more.
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            peak = matmul_rate(device, self.model.dtype) * self.world.world_size
        eval_every = self._eval_every()
        flops_per_step = self.config.global_batch_size * flops_per_sequence(
            self.config.arch, self.reader.metadata, self.config.activation_checkpointing
        )
        log = RunLog(self.config, self.run_dir, self.step, self.last_step, flops_per_step / peak)
        stopping = False
        with closing(log):
            for batch in self._batches():
                self.train_step(batch)
                self.step += 1
                log.advance()
                evaluates, is_best = self._due(eval_every), False
                if evaluates or self._due(self.config.log_interval):
                    row = self._row() | log.speed()
                    if evaluates:
                        scores, is_best = self._evaluate()
                        row |= scores
                    log.write(row)
                stopping = stop.agreed()
                if stopping or evaluates or self._due(self.config.checkpoint_interval) or self._is_last():
                    self.save(is_best)
                if stopping:
                    break
        stop.finish_vote()
        distributed.barrier()  # a launcher ends all processes when one leaves, and the main one may still log
        return not stopping

    def train_step(self, batch: Batch) -> None:
        """One segment over the global batch, and one update."""
        config, arch = self.config, self.config.arch
        batch = {name: tensor.to(self.world.device, non_blocking=True) for name, tensor in batch.items()}
        if self.carry is None:
            self.carry = self.model.initial_carry(batch)
        min_halt_steps = explore_halting(arch, config.seed, self.step, config.global_batch_size)
        own = rank_slice(min_halt_steps, self.world.rank, self.world.world_size)
        carry, outputs = self.model(self.carry, batch, torch.from_numpy(own).to(self.world.device))
        loss, metrics = act_loss(carry, outputs, arch.loss_type)
        self.carry = carry
        self.engine.backward(loss / config.global_batch_size)
        self.sums.add(metrics)
        self.engine.step(self._lr(config.lr))
        if self.table_optimizer is not None:
            self.table_optimizer.step(self._lr(config.puzzle_emb_lr))

    def save(self, is_best: bool = False) -> None:
        """Write a checkpoint of the present step."""
        folder = self.run_dir / "checkpoints"
        state = checkpoint.CheckpointState(
            format=checkpoint.FORMAT,
            step=self.step,
            world_size=self.world.world_size,
            config=self.config.model_dump(mode="json"),
            dataset=checkpoint.dataset_identity(Path(self.config.data_path), self.reader.metadata),
            environment=self._environment(),
            metric_sums=distributed.sum_over_ranks(self.sums.values).tolist(),
            best_score=self.best_score,
            sha256={},
        )
        # `latest` moves last: a run killed before that goes on before this step, and comes to `best` again.
        names = ("best", "latest") if is_best else ("latest",)
        checkpoint.save(folder, state, self._shared_tensors(), self._own_tensors(), names)
        distributed.on_main(lambda: checkpoint.prune(folder, self.config.keep_checkpoints))

    # Parts of the loop

    def _batches(self) -> Iterator[Batch]:
        """This rank's slices of the global batches that remain; the next is read while one is in use."""
        with ThreadPoolExecutor(max_workers=1) as reading:
            upcoming = reading.submit(self.reader.batch, self.step)
            for step in range(self.step, self.last_step):
                batch = upcoming.result()
                if step + 1 < self.last_step:
                    upcoming = reading.submit(self.reader.batch, step + 1)
                yield batch

    def _due(self, interval: int | None) -> bool:
        return interval is not None and (self.step % interval == 0 or self._is_last())

    def _is_last(self) -> bool:
        return self.step == self.last_step

    def _eval_every(self) -> int | None:
        if self.config.eval_interval is None:
            return None
        every = max(1, round(self.total_steps * self.config.eval_interval / self.config.epochs))
        # On a logged step where that is near, so that no row of metrics covers only a few steps.
        interval = self.config.log_interval
        return every if every < interval else round(every / interval) * interval

    def _lr(self, base_lr: float) -> float:
        config = self.config
        return learning_rate(
            self.step + 1, base_lr, config.lr_warmup_steps, self.total_steps, config.lr_min_ratio
        )

    def _row(self) -> Row:
        config = self.config
        # The rate of the step just completed.
        lr = learning_rate(
            self.step, config.lr, config.lr_warmup_steps, self.total_steps, config.lr_min_ratio
        )
        row = {"step": self.step, **self.sums.row(config.global_batch_size), "train/lr": lr}
        return row

    def _evaluate(self) -> tuple[Row, bool]:
        """Scores of the (averaged) model on the configured part of the test split; whether they are the best."""
        config = self.config
        reader = TestReader(config.data_path, config.eval_max_groups, config.eval_num_aug)
        batch_size = config.eval_batch_size or config.global_batch_size
        with self.engine.averaged():
            scores = evaluation.evaluate(
                self.model, reader, Path(config.data_path), batch_size, self.world.device
            )
        score = evaluation.headline(scores)
        is_best = score is not None and (self.best_score is None or score > self.best_score)
        if is_best:
            self.best_score = score
        return {f"eval/{name}": value for name, value in scores.items()}, is_best

    # State

    def _shared_tensors(self) -> dict[str, dict[str, Tensor]]:
        """Tensors that are the same on every rank, by checkpoint file."""
        files: dict[str, dict[str, Tensor]] = {"model": self._buffers(), "optimizer": {}, "ema": {}}
        for key, tensor in self.engine.full_state().items():
            kind, name = key.split(".", 1)
            if kind == "weights":
                files["model"][f"network.{name}"] = tensor
            elif kind == "ema":
                files["ema"][f"network.{name}"] = tensor
            else:
                files["optimizer"][key] = tensor
        return {stem: tensors for stem, tensors in files.items() if tensors}

    def _buffers(self) -> dict[str, Tensor]:
        """What the model holds outside the network: initial states and the puzzle table."""
        return dict(self.model.named_buffers())

    def _own_tensors(self) -> dict[str, Tensor]:
        """This rank's random state and, if it is to be saved, slice of the carry."""
        tensors = {"rng.cpu": torch.get_rng_state()}
        if self.world.device.type == "cuda":
            tensors["rng.cuda"] = torch.cuda.get_rng_state(self.world.device)
        if self.config.save_carry and self.carry is not None:
            carry = self.carry
            tensors |= {"carry.z_H": carry.inner_carry.z_H, "carry.z_L": carry.inner_carry.z_L}
            tensors |= {"carry.steps": carry.steps, "carry.halted": carry.halted}
            tensors |= {f"carry.current_data.{name}": data for name, data in carry.current_data.items()}
        return tensors

    def _environment(self) -> dict[str, str | int | bool]:
        device = self.world.device
        return {
            "torch": torch.__version__,
            "python": platform.python_version(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
            "threads": torch.get_num_threads(),
            "compile": self.config.compile,
            "world_size": self.world.world_size,
        }

    def _start_run_folder(self) -> None:
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"checkpoint_path={self.run_dir}: cannot be made ({error.strerror}); choose another folder."
            ) from error
        replace_file(self.run_dir / "config.yaml", to_yaml(self.config).encode())
        if self._set_back_to is not None:  # `latest` goes back with the run, like metrics.jsonl
            checkpoint.link(self._set_back_to.parent / "latest", self._set_back_to)

    # Resuming

    def _resume(self) -> None:
        """Take over the checkpoint that `resume` names: `auto` (the run's latest, if any), `never`, or a path.

        A checkpoint of another run is where this one starts; having checkpoints of its own, it goes on from
        those, so that the same command continues it. One of its own sets the run back.
        """
        latest = self.run_dir / "checkpoints" / "latest"
        has_latest = latest.is_symlink()  # even if what it points to is gone, which is an error
        if self.config.resume == "never":
            if has_latest:
                raise ConfigError(
                    f"resume=never: {self.run_dir} already holds a run ({latest.resolve().name}); continue it with "
                    "resume=auto, choose another checkpoint_path, or delete the folder."
                )
            return
        path = latest
        if self.config.resume != "auto":
            given = Path(self.config.resume)
            is_own = given.resolve().parent == latest.parent.resolve()
            if is_own or not has_latest:
                path = given
            if is_own:
                self._set_back_to = given.resolve()
        elif not has_latest:
            return
        state = checkpoint.read_state(path)
        self._check_same_run(path, state)
        self._load(path, state)
        logger.info("resumed from %s at step %d", path.resolve(), self.step)

    def _check_same_run(self, path: Path, state: checkpoint.CheckpointState) -> None:
        now, then = _fixed_settings(self.config.model_dump(mode="json")), _fixed_settings(state.config)
        problems = [
            f"{key} is {now.get(key)!r}, the checkpoint has {then.get(key)!r}"
            for key in sorted(now | then)
            if now.get(key) != then.get(key)
        ]
        if state.dataset != checkpoint.dataset_identity(Path(self.config.data_path), self.reader.metadata):
            problems.append(f"data_path={self.config.data_path} is not the dataset it was trained on")
        if problems:
            raise ConfigError(
                f"{path}: cannot go on with another run's checkpoint: {'; '.join(problems)}. Set them back, or "
                "start a new run with another checkpoint_path."
            )
        if state.step > self.last_step:
            raise ConfigError(
                f"{path}: is at step {state.step}, beyond the last step {self.last_step}; raise epochs or max_steps."
            )
        changed = {k: v for k, v in self._environment().items() if state.environment.get(k) != v}
        if changed:
            logger.warning("not bit for bit: %s differ from the checkpoint's %s", changed, state.environment)

    def _load(self, path: Path, state: checkpoint.CheckpointState) -> None:
        model = checkpoint.read_tensors(path, "model")
        full = {
            f"weights.{n.removeprefix('network.')}": t for n, t in model.items() if n.startswith("network.")
        }
        full |= checkpoint.read_tensors(path, "optimizer")
        if self.config.ema:
            averages = checkpoint.read_tensors(path, "ema") if "ema.safetensors" in state.sha256 else model
            full |= {f"ema.{n.removeprefix('network.')}": t for n, t in averages.items()}
        self.engine.load_full_state(full, num_updates=state.step)
        for name, buffer in self._buffers().items():
            buffer.copy_(model[name])
        own = checkpoint.read_own(path, state, self.world.rank, self.world.world_size)
        if "carry.steps" in own:
            self.carry = _carry(own, self.world.device)
        if "rng.cpu" in own:
            torch.set_rng_state(own["rng.cpu"])
        if "rng.cuda" in own and self.world.device.type == "cuda":
            torch.cuda.set_rng_state(own["rng.cuda"], self.world.device)
        self.step, self.best_score = state.step, state.best_score
        if self.world.is_main:  # one rank takes the sums of all
            self.sums.values.copy_(torch.tensor(state.metric_sums, dtype=torch.float64))


def _fixed_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Settings that a resumed run must share with its checkpoint, with dotted keys."""
    arch = {f"arch.{key}": value for key, value in config["arch"].items()}
    return arch | {key: config[key] for key in _FIXED_ON_RESUME}


def _carry(tensors: dict[str, Tensor], device: torch.device) -> Carry:
    """The carry from its tensors in a checkpoint."""
    part = {
        name.removeprefix("carry."): t.to(device) for name, t in tensors.items() if name.startswith("carry.")
    }
    data = {n.removeprefix("current_data."): t for n, t in part.items() if n.startswith("current_data.")}
    return Carry(InnerCarry(part["z_H"], part["z_L"]), part["steps"], part["halted"], data)
