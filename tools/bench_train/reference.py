"""Take training steps of the published HRM, out of a checkout of it.

Written for sapientinc/HRM at commit 42410da, whose modules are imported unchanged. What they need beyond torch, two
CUDA extensions, is stood in for here: flash attention by torch's own attention, AdamATan2 by torch's foreach kernels.
"""

import importlib
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from data_pipeline.base.errors import InputError
from data_pipeline.reader import TrainReader
from data_pipeline.schema import IGNORE_LABEL_ID, DatasetMetadata
from hrm_dist.config import TrainConfig, total_steps
from hrm_dist.schedule import learning_rate

_SAME_NAMES = (
    "H_cycles L_cycles H_layers L_layers hidden_size num_heads expansion pos_encodings rms_norm_eps rope_theta "
    "halt_max_steps halt_exploration_prob forward_dtype"
).split()
"""Fields of ArchConfig that the published configuration has too."""
_TINY = torch.finfo(torch.float32).tiny


def flash_attn_func(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    """Return the attention of q, k and v, [B, S, heads, head_dim] each, as flash-attn's function of this name does."""
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return out.transpose(1, 2).contiguous()  # mostly without a copy: kernels write in this order


class AdamATan2(torch.optim.Optimizer):
    """Adam with the update atan2(m, sqrt(v)), as the published extension computes it, and decoupled weight decay."""

    def __init__(
        self, params: Iterable[Tensor], lr: float, betas: tuple[float, float], weight_decay: float
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "step": 0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Make one update with the learning rate of each group."""
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            grads = [param.grad for param in params]
            for param in params:
                if not self.state[param]:
                    self.state[param] = {"m": torch.zeros_like(param), "v": torch.zeros_like(param)}
            means = [self.state[param]["m"] for param in params]
            squares = [self.state[param]["v"] for param in params]
            group["step"] += 1
            lr, (beta1, beta2) = group["lr"], group["betas"]
            torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
            torch._foreach_lerp_(means, grads, 1 - beta1)
            torch._foreach_mul_(squares, beta2)
            torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
            roots = torch._foreach_sqrt(squares)
            torch._foreach_div_(roots, math.sqrt(1 - beta2 ** group["step"]))
            torch._foreach_add_(roots, _TINY)  # so that 0 / 0 is 0
            updates = torch._foreach_div(means, roots)
            torch._foreach_atan_(updates)
            torch._foreach_add_(params, updates, alpha=-lr / (1 - beta1 ** group["step"]))


class PublishedTraining:
    """What the published training script holds on one GPU, and its step."""

    def __init__(
        self,
        checkout: Path,
        config: TrainConfig,
        metadata: DatasetMetadata,
        device: torch.device,
        reader: TrainReader,
        compiles: bool,
    ) -> None:
        """compiles: run torch.compile on the model with its loss, as published."""
        code = _published_code(checkout)
        self._config, self._device = config, device
        self._total_steps = total_steps(config, metadata)
        self._step = 0
        self._carry: Any = None
        self._batch = published_batch(reader.batch(0), metadata, device)
        with device:
            network = code.model_class(published_arch(config, metadata))
            self.model: Any = code.loss_class(network, loss_type=config.arch.loss_type)
        self._step_model: Any = torch.compile(self.model, dynamic=False) if compiles else self.model
        self._optimizers: list[tuple[torch.optim.Optimizer, float]] = [
            (
                code.table_optimizer_class(
                    network.puzzle_emb.buffers(),
                    lr=0,
                    weight_decay=config.puzzle_emb_weight_decay,
                    world_size=1,
                ),
                config.puzzle_emb_lr,
            ),
            (
                AdamATan2(
                    self.model.parameters(),
                    lr=0,
                    betas=(config.beta1, config.beta2),
                    weight_decay=config.weight_decay,
                ),
                config.lr,
            ),
        ]

    def step(self) -> dict[str, float]:
        """Make one step and return its metrics, which the published script reads back after every step."""
        config = self._config
        self._step += 1
        batch = {name: tensor.to(self._device) for name, tensor in self._batch.items()}
        if self._carry is None:
            with self._device:
                self._carry = self.model.initial_carry(batch)
        self._carry, loss, metrics, _, _ = self._step_model(carry=self._carry, batch=batch, return_keys=[])
        (loss * (1 / config.global_batch_size)).backward()
        for optimizer, base_lr in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(
                    self._step, base_lr, config.lr_warmup_steps, self._total_steps, config.lr_min_ratio
                )
            optimizer.step()
            optimizer.zero_grad()
        names = sorted(metrics)
        values = torch.stack([metrics[name] for name in names]).tolist()
        return dict(zip(names, values, strict=True))


def published_arch(config: TrainConfig, metadata: DatasetMetadata) -> Mapping[str, object]:
    """Return the published model's configuration of the same network and shape."""
    return {
        **{name: getattr(config.arch, name) for name in _SAME_NAMES},
        "puzzle_emb_ndim": config.arch.puzzle_emb_width,
        "batch_size": config.global_batch_size,
        "seq_len": metadata.seq_len,
        "vocab_size": metadata.vocab_size,
        "num_puzzle_identifiers": metadata.num_puzzle_identifiers,
    }


def published_batch(
    batch: Mapping[str, Tensor], metadata: DatasetMetadata, device: torch.device
) -> dict[str, Tensor]:
    """Return a batch of ours as the published data loader gives it: in int32, padding not to be predicted as -100."""
    published = {name: tensor.to(torch.int32) for name, tensor in batch.items()}
    labels = published["labels"]
    published["labels"] = labels.masked_fill(labels == metadata.pad_id, IGNORE_LABEL_ID)
    if device.type == "cuda":
        published = {name: tensor.pin_memory() for name, tensor in published.items()}
    return published


def _published_code(checkout: Path) -> Any:
    """Import the published model, its loss, and the optimizer of its puzzle table."""
    attention: Any = ModuleType("flash_attn_interface")
    attention.flash_attn_func = flash_attn_func
    sys.modules[attention.__name__] = attention
    # Their package has no __init__.py: on sys.path, any other module called `models` would be found before it.
    package: Any = ModuleType("models")
    package.__path__ = [str((checkout / "models").resolve())]
    sys.modules[package.__name__] = package
    try:
        return SimpleNamespace(
            model_class=_published("models.hrm.hrm_act_v1", "HierarchicalReasoningModel_ACTV1"),
            loss_class=_published("models.losses", "ACTLossHead"),
            table_optimizer_class=_published(
                "models.sparse_embedding", "CastedSparseEmbeddingSignSGD_Distributed"
            ),
        )
    except (ImportError, AttributeError, SyntaxError) as error:
        raise InputError(
            f"--reference {checkout}: cannot be imported ({error}); give an unchanged checkout of sapientinc/HRM, "
            "commit 42410da."
        ) from None


def _published(module: str, name: str) -> Callable[..., Any]:
    return getattr(importlib.import_module(module), name)
