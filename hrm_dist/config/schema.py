"""Configuration: typed fields with their ranges, and the loader.

Nothing here imports torch, so that a bad configuration is refused within a moment.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, cast

import yaml
from pydantic import BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from data_pipeline.base.errors import InputError
from data_pipeline.base.models import Strict
from data_pipeline.base.paths import PathText, local_path
from data_pipeline.build_spec import BuildSpec
from data_pipeline.sampler import check_divisible
from data_pipeline.schema import load_dataset_info
from hrm_dist.config.aliases import ALIASES
from hrm_dist.config.architectures import ARCHITECTURES, Architecture, level_runs, problems
from hrm_dist.config.hints import HINTS, other_notation
from hrm_dist.config.loader import Settings, TextKey

if TYPE_CHECKING:
    from data_pipeline.schema import DatasetMetadata

    ArchName = str
else:
    ArchName = Literal[tuple(ARCHITECTURES)]

_SECTIONS = ("arch", "dataset")
_DTYPE_OF_PRECISION = {"bf16": "bfloat16", "fp32": "float32"}


def _on_or_off(value: object) -> object:
    """Return the word for what YAML makes of on and off."""
    return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value


OnOff = Annotated[Literal["auto", "on", "off"], BeforeValidator(_on_or_off)]


class ConfigError(InputError):
    """Every problem of a configuration, one per line."""


class ArchConfig(Strict):
    """The network and its halting; the defaults are the published ones of the chosen `name`."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    name: ArchName = "hrm"
    """One of those that hrm_dist/config/architectures.py describes, whose defaults differ from those below."""
    H_cycles: int = Field(default=2, ge=1)
    """Slow updates per segment (N in the paper)."""
    L_cycles: int = Field(default=2, ge=1)
    """Fast updates per slow one (T in the paper)."""
    H_layers: int = Field(default=4, ge=0)
    """Transformer blocks of H_level; ignored where there is none."""
    L_layers: int = Field(default=4, ge=1)
    """Transformer blocks of L_level, or of the only level of URM; ignored where there is none."""
    hidden_size: int = Field(default=512, ge=1)
    """Width of the residual stream (D)."""
    num_heads: int = Field(default=8, ge=1)
    """Attention heads (N); a head is hidden_size / num_heads wide. Ignored with mlp_t."""
    expansion: float = Field(default=4.0, gt=0)
    """SwiGLU's inner width, as the multiple of hidden_size that a plain MLP of equal size would have."""
    pos_encodings: Literal["rope", "learned", "none"] = "rope"
    """How positions enter: rotated queries and keys, an added table, or not at all."""
    puzzle_emb_ndim: int | None = Field(default=None, ge=0)
    """Numbers in a puzzle's embedding row; null: hidden_size; 0: no puzzle embeddings."""
    puzzle_emb_len: int = Field(default=0, ge=0)
    """Prefix positions the row is spread over, zero-padded; 0: as few as hold it."""
    halt_max_steps: int = Field(default=16, ge=1)
    """Most segments a sequence may run before it is halted (M_max in the paper)."""
    halting: Literal["learned", "fixed"] = "learned"
    """Whether the Q-head ends a sequence in training; fixed: each runs halt_max_steps segments (no ACT)."""
    halt_exploration_prob: float = Field(default=0.1, ge=0, le=1)
    """Chance that a sequence must run a random minimum of segments (epsilon in the paper)."""
    forward_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of activations and residual stream; master weights are float32. Also set by `precision`."""
    mlp_t: bool = False
    """TRM only: mix positions by an MLP over the sequence in place of attention."""
    act_continue: bool = True
    """Learn the value of continuing from a bootstrapped target, which costs a second forward."""
    gradient: Literal["one_step", "last_cycle", "bptt"] = "one_step"
    """What of a segment carries gradient: the last update of each level, the last H cycle, or all."""
    loss_type: Literal["stablemax_cross_entropy", "softmax_cross_entropy"] = "stablemax_cross_entropy"
    """Loss per token; stablemax is computed in float64."""
    initial_states: Literal["fixed", "random"] = "fixed"
    """What a sequence begins with: one vector at every position (published), or random numbers, anew for each sequence
    (EqR, arXiv 2605.21488)."""
    segment_noise: float = Field(default=0.0, ge=0, le=10)
    """Standard deviation of what is added to the state that answers are read from, before every segment (PTRM, arXiv
    2605.19943)."""
    update_noise: float = Field(default=0.0, ge=0, le=10)
    """Standard deviation of what every update adds to its state (EqR: 0.01)."""
    damping: float = Field(default=1.0, gt=0, le=1)
    """Share of an update's result in the new state; the rest stays as it was (EqR's lambda: 0.95)."""
    num_chains: int = Field(default=1, ge=1, le=64)
    """Chains of states that a sequence has in training; in each segment the one whose answer has the lowest loss is
    trained, and no other (winner takes all, arXiv 2601.19085). Each costs a forward; above 1 needs something random."""
    rope_theta: float = Field(default=10000.0, gt=0)
    """Base of RoPE's wavelengths."""
    rms_norm_eps: float = Field(default=1e-5, gt=0)
    """Added to the mean square in RMSNorm."""

    @property
    def description(self) -> Architecture:
        """Return what is particular to the architecture of this name."""
        return ARCHITECTURES[self.name]

    @property
    def puzzle_emb_width(self) -> int:
        """Return the numbers in a puzzle's embedding row: puzzle_emb_ndim, or hidden_size where that is null."""
        return self.hidden_size if self.puzzle_emb_ndim is None else self.puzzle_emb_ndim

    @property
    def prefix_len(self) -> int:
        """Return the positions of the puzzle-embedding prefix (P)."""
        return self.puzzle_emb_len or -(-self.puzzle_emb_width // self.hidden_size)

    @property
    def has_q_target(self) -> bool:
        """Return whether a segment in training is followed by a forward of the next, to value it."""
        return self.act_continue and self.halt_max_steps > 1

    @property
    def is_random(self) -> bool:
        """Return whether a segment draws random numbers, for which it needs keys."""
        return self.initial_states == "random" or self.segment_noise > 0 or self.update_noise > 0

    @model_validator(mode="before")
    @classmethod
    def _fill_defaults_of_name(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        given = cast("dict[str, object]", data)
        known = ARCHITECTURES.get(str(given.get("name", "hrm")))
        return {**known.defaults, **known.fixed, **given} if known else given

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        lines = problems(self)
        if not self.mlp_t:
            if self.hidden_size % self.num_heads:
                lines.append(
                    f"arch.hidden_size={self.hidden_size} is not divisible by "
                    f"arch.num_heads={self.num_heads}; set arch.hidden_size to a multiple of "
                    f"{self.num_heads}, or change arch.num_heads"
                )
            elif self.pos_encodings == "rope" and self.hidden_size // self.num_heads % 2:
                lines.append(
                    f"arch.pos_encodings=rope turns pairs of numbers, but a head is {self.hidden_size} / "
                    f"{self.num_heads} = {self.hidden_size // self.num_heads} wide; make that even by "
                    "arch.hidden_size or arch.num_heads, or set arch.pos_encodings to learned or none"
                )
        if self.num_chains > 1 and not self.is_random:
            lines.append(
                f"arch.num_chains={self.num_chains}: chains that begin alike and draw no noise stay alike; set "
                "arch.initial_states=random (or arch.segment_noise or arch.update_noise above 0), or leave "
                "arch.num_chains out"
            )
        if self.puzzle_emb_ndim == 0 and self.puzzle_emb_len > 0:
            lines.append(
                f"arch.puzzle_emb_len={self.puzzle_emb_len} keeps positions for a puzzle embedding, but "
                "arch.puzzle_emb_ndim=0 turns it off; set arch.puzzle_emb_len=0 too (TRM's default is 16), "
                "or leave arch.puzzle_emb_ndim out"
            )
        elif self.prefix_len * self.hidden_size < self.puzzle_emb_width:
            needed = -(-self.puzzle_emb_width // self.hidden_size)
            lines.append(
                f"arch.puzzle_emb_len={self.puzzle_emb_len} positions of arch.hidden_size={self.hidden_size} "
                f"cannot hold arch.puzzle_emb_ndim={self.puzzle_emb_width}; set arch.puzzle_emb_len to 0 "
                f"(derived) or to {needed} or more"
            )
        if lines:
            raise ValueError("\n".join(lines))
        return self


class TrainConfig(Strict):
    """A training run. `epochs` and `eval_interval` count passes (every group once)."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    data_path: PathText
    """Folder of a built dataset."""
    arch: ArchConfig = Field(default_factory=ArchConfig)
    """The network."""
    dataset: BuildSpec | None = None
    """How to build data_path if it is missing; null: never build."""

    global_batch_size: int = Field(default=768, ge=1)
    """Examples per step, over all processes."""
    epochs: int = Field(default=100_000, ge=1)
    """Length of the run and of the learning rate schedule, in passes."""
    max_steps: int | None = Field(default=None, ge=1)
    """Stop after this many steps, on the same schedule; null: run to the end."""
    lr: float = Field(default=1e-4, gt=0)
    """Peak learning rate of the weights."""
    lr_min_ratio: float = Field(default=1.0, ge=0, le=1)
    """Last learning rate as a share of the peak (cosine); 1: constant after warm-up."""
    lr_warmup_steps: int = Field(default=2000, ge=0)
    """Steps of linear warm-up."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of AdamATan2's mean of gradients."""
    beta2: float = Field(default=0.95, ge=0, lt=1)
    """Decay of AdamATan2's mean of squared gradients."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled weight decay of the weights, multiplied by the learning rate."""
    puzzle_emb_lr: float = Field(default=1e-2, ge=0)
    """Peak learning rate of the puzzle table's sign-SGD."""
    puzzle_emb_weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled weight decay of the rows that a step touches."""
    table_only_steps: int = Field(default=0, ge=0)
    """Steps at the beginning in which only the puzzle table is trained; the weights' warm-up and decay come after."""
    ema: bool = False
    """Keep a moving average of the weights and evaluate with it."""
    ema_rate: float = Field(default=0.999, ge=0, lt=1)
    """Share of the old average that a step keeps."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of initial weights, data order and halting exploration."""

    engine: Literal["ddp", "zero1", "zero2", "zero3", "fsdp2"] = "ddp"
    """How processes share the work."""
    gather_unit: Literal["loop", "level", "layer"] = "loop"
    """zero3, fsdp2: what is gathered at a time. loop: once per segment; level, layer: more often, in less memory."""
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    """Micro-batches of a step, which a process computes one after the other; the result is the same."""
    attention: Literal["auto", "cudnn", "flash", "efficient", "math"] = "auto"
    """The kernel that computes attention; auto: the fastest that can run on the GPU, on a CPU torch's own choice."""
    fused_swiglu: OnOff = "auto"
    """Compute SiLU x up within its product where no gradient is recorded; auto: in bf16 on GPUs from Hopper on."""
    padding: Literal["keep", "skip"] = "keep"
    """skip: compute no more of an ARC canvas than its task's window, which is another model than keep, the published
    one, and several times cheaper; see docs/benchmarks/windows.md."""
    activation_checkpointing: bool = False
    """Keep only the input of each block for the backward pass and compute the block again there."""
    puzzle_emb_shard: bool | None = None
    """Split the puzzle table's rows over the processes; null: where it is larger than 1 GiB."""
    puzzle_emb_device: Literal["auto", "cpu"] = "auto"
    """cpu: the puzzle table stays in host memory; auto: where the model is."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """The same choice as arch.forward_dtype: either sets the other."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where there is one."""
    compile: bool | None = None
    """Run torch.compile: a slow first step, faster ones after; null: where the device is a GPU."""
    cuda_graph: OnOff = "auto"
    """Record a training step as one CUDA graph, which costs the host one launch; auto: on a GPU, with one process."""
    num_threads: int | None = Field(default=None, ge=1)
    """CPU threads per process; null: left to torch."""

    checkpoint_path: PathText = "runs/train"
    """Run folder. A file that leaves it out gets runs/NAME, with run_name or else the file's own name."""
    checkpoint_interval: int | None = Field(default=1000, ge=1)
    """Steps between checkpoints; null: only at the end or when stopped."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Latest checkpoints kept beside the best one."""
    async_checkpoint: bool = True
    """Write checkpoints in the background, from a copy of the state."""
    save_carry: bool = True
    """Store the carry too (1.4 GB for ARC at batch 768); without it a resume restarts every sequence."""
    resume: PathText = "auto"
    """auto: from the run folder's latest checkpoint, if any; never; or the path of a checkpoint."""

    max_skipped_updates: int | None = Field(default=10, ge=1)
    """Stop when this many updates in a row were skipped because loss or gradient was not finite; null: never."""
    timeout_s: float = Field(default=1800.0, gt=0)
    """Seconds that a process waits for the others before it gives up."""

    eval_interval: int | None = Field(default=10_000, ge=1)
    """Passes between evaluations; null: never."""
    eval_max_groups: int | None = Field(default=None, ge=1)
    """Groups evaluated during training; null: all."""
    eval_num_aug: int | None = Field(default=None, ge=0)
    """Augmentations per group evaluated during training, beside the original; null: all."""
    eval_batch_size: int | None = Field(default=None, ge=1)
    """Examples per evaluation batch, over all processes; null: global_batch_size."""

    log_interval: int = Field(default=10, ge=1)
    """Steps between rows of metrics."""
    project_name: str | None = None
    """Project in wandb."""
    run_name: str | None = None
    """Run in wandb, and the name of the default run folder."""
    wandb_mode: Literal["disabled", "offline", "online"] = "disabled"
    """Whether metrics also go to wandb; offline writes to the run folder only."""
    tensorboard: bool = False
    """Whether metrics also go to files in the run folder that TensorBoard reads."""

    @model_validator(mode="before")
    @classmethod
    def _derive_precision(cls, data: object) -> object:
        """Let whichever of `precision` and `arch.forward_dtype` is given set the other."""
        if not isinstance(data, dict):
            return data
        values = dict(cast("dict[str, object]", data))
        arch = values.get("arch", {})
        if isinstance(arch, ArchConfig):
            arch = arch.model_dump(exclude_unset=True)
        if isinstance(arch, dict):
            arch = dict(cast("dict[str, object]", arch))
            dtype_of = _DTYPE_OF_PRECISION
            if values.get("precision") is None:
                dtype = arch.get("forward_dtype")
                values["precision"] = next((p for p, d in dtype_of.items() if d == dtype), "bf16")
            elif values["precision"] in dtype_of:
                arch.setdefault("forward_dtype", dtype_of[str(values["precision"])])
            values["arch"] = arch
        return values

    def compiles_on(self, device_type: str) -> bool:
        """Return whether torch.compile is used on a type of device, such as `cuda`."""
        return device_type == "cuda" and not self._gathers_in_blocks if self.compile is None else self.compile

    @property
    def _gathers_in_blocks(self) -> bool:
        """Return whether an engine gathers weights one by one, in the midst of what is compiled together."""
        carries_once = all(runs.with_gradient == 1 for runs in level_runs(self.arch).values())
        return self.engine == "zero3" and self.gather_unit != "loop" and not carries_once

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.table_only_steps and not self.arch.puzzle_emb_width:
            raise ValueError(
                f"table_only_steps={self.table_only_steps}: arch.puzzle_emb_ndim=0 leaves no puzzle table to train; "
                "set table_only_steps=0"
            )
        if self.gather_unit != "loop" and self.engine not in ("zero3", "fsdp2"):
            raise ValueError(
                f"gather_unit={self.gather_unit} means nothing to engine={self.engine}, whose weights are whole all "
                "the time; leave it out, or set engine to zero3 or fsdp2"
            )
        if self.padding == "skip" and self.arch.mlp_t:
            raise ValueError(
                "padding=skip: arch.mlp_t=true mixes all positions of the canvas by a matrix, so none can be left out; "
                "set padding=keep, or arch.mlp_t=false"
            )
        if self.padding == "skip" and self.attention != "auto":
            raise ValueError(
                f"attention={self.attention}: padding=skip has sequences of different length, for which there is one "
                "kernel; set attention=auto, or padding=keep"
            )
        if self.compile and self._gathers_in_blocks:
            raise ValueError(
                f"compile=true: engine=zero3 with gather_unit={self.gather_unit} gathers weights one by one where they "
                "carry gradient several times in a segment, which cannot be compiled; set gather_unit=loop, or leave "
                "compile out"
            )
        if self.wandb_mode != "disabled":
            _check_name_for_wandb(self.project_name or "")
        dtype = _DTYPE_OF_PRECISION[self.precision]
        if self.arch.forward_dtype != dtype:
            raise ValueError(
                f"precision={self.precision} and arch.forward_dtype={self.arch.forward_dtype} contradict "
                f"each other; leave one of them out, or set arch.forward_dtype={dtype}"
            )
        return self


def _check_name_for_wandb(name: str) -> None:
    bad = sorted(set(name) & set("/\\#?%:"))
    if bad or len(name) > 128:
        why = f"may not hold {' '.join(bad)}" if bad else f"may have 128 characters, not {len(name)}"
        raise ValueError(
            f"project_name={name}: a project of W&B {why}; choose another name, or set wandb_mode=disabled"
        )


def as_found(config: TrainConfig) -> TrainConfig:
    """Return the configuration without a `dataset` section that does not describe what data_path holds."""
    path = Path(config.data_path)
    if config.dataset is None or not (path / "dataset.json").exists():
        return config
    return (
        config
        if config.dataset.describes(load_dataset_info(path))
        else config.model_copy(update={"dataset": None})
    )


def total_steps(config: TrainConfig, metadata: "DatasetMetadata") -> int:
    """Return the steps of the whole schedule, by the published formula; `max_steps` may stop earlier."""
    return int(
        config.epochs * metadata.total_groups * metadata.mean_puzzle_examples / config.global_batch_size
    )


def sequences_per_process(config: TrainConfig, world_size: int) -> int:
    """Return how many sequences of a batch a process gets. Raise InputError unless all get as many, in equal parts."""
    check_divisible(config.global_batch_size, world_size)
    size, num = config.global_batch_size // world_size, config.gradient_accumulation_steps
    if size % num:
        raise ConfigError(
            f"gradient_accumulation_steps={num}: the {size} sequences of a process (global_batch_size="
            f"{config.global_batch_size} over {world_size}) do not divide into as many micro-batches; choose a divisor "
            f"of {size}."
        )
    return size


def flat_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a dumped configuration by dotted key."""
    flat = {key: value for key, value in config.items() if key not in _SECTIONS}
    for section in _SECTIONS:
        entries = cast("Mapping[str, Any]", config.get(section) or {})
        flat |= {f"{section}.{key}": value for key, value in entries.items()}
    return flat


def to_yaml(config: TrainConfig) -> str:
    """Spell out every value; loads back to an equal configuration."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


_VALID_KEYS = frozenset(
    {*TrainConfig.model_fields}
    | {f"arch.{name}" for name in ArchConfig.model_fields}
    | {f"dataset.{name}" for name in BuildSpec.all_keys()}
)

_TEXT_KEYS = {
    **dict.fromkeys(("data_path", "checkpoint_path", "resume"), TextKey()),
    **dict.fromkeys(("project_name", "run_name"), TextKey(empty=None)),
    "dataset.source": TextKey(is_list=True),
}


def load_config(path: str | Path, overrides: Sequence[str] = (), origin: str = "command line") -> TrainConfig:
    """Read a YAML file, put `key=value` overrides over it, and report every problem at once.

    origin: where the overrides come from, in words for messages.
    """
    settings = Settings(ALIASES, _VALID_KEYS, _TEXT_KEYS, HINTS)
    settings.read_file(Path(path))
    for override in overrides:
        settings.read_override(override, origin)
    if settings.file_unusable:
        raise ConfigError("\n".join(settings.errors))
    tree = settings.tree()
    if tree.get("checkpoint_path") is None:
        name = str(tree.get("run_name") or Path(path).stem)
        tree["checkpoint_path"] = f"runs/{name}"
        if not _is_below(name):
            settings.errors.append(
                f"run_name={name}: gives the run no folder of its own below `runs`; give checkpoint_path too"
            )
            tree["checkpoint_path"] = "runs/train"
    try:
        config = TrainConfig.model_validate(tree)
    except ValidationError as invalid:
        settings.add_invalid(invalid, f"{path} with the {origin}" if overrides else str(path))
    else:
        if not settings.errors:
            return config
    raise ConfigError("\n".join(settings.errors))


def _is_below(name: str) -> bool:
    """Return whether `runs/NAME` is a folder below `runs`, and as a path means what it says."""
    try:
        is_literal = local_path(f"runs/{name}") == f"runs/{name}"
    except ValueError:
        return False
    parts = Path(name).parts
    return is_literal and bool(parts) and ".." not in parts and not Path(name).is_absolute()


def check_notation(words: Sequence[str], command: str) -> None:
    """Raise ConfigError unless the words behind a command are a configuration file and key=value."""
    if problem := other_notation(words, {*_VALID_KEYS, *ALIASES}, command):
        raise ConfigError(problem)
