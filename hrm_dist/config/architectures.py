"""The architectures, one description each.

All code but an architecture's own module reads the description in place of the name.

Configuration, carry, checkpoints, engines, cost and conversion follow from it. A new one is a description here, a
recurrence in a module of its own, and its line in `RECURRENCES` (hrm_dist/model/network.py). No torch.
"""
# pyright: strict

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from hrm_dist.config.schema import ArchConfig


class LevelInfo(NamedTuple):
    """A stack of blocks in the recurrence: how many, and which updates run it."""

    num_layers: str
    """The field of ArchConfig that counts its blocks."""
    is_fast: bool = True
    """Runs in every L cycle."""
    is_slow: bool = False
    """Runs at the end of every H cycle."""


@dataclass(frozen=True)
class Architecture:
    """What is particular to an architecture, apart from its computation."""

    levels: Mapping[str, LevelInfo]
    """By the name of the module; published keys have the same, but for `level`, which they leave out."""
    states: Mapping[str, str]
    """Names of the states carried from one segment to the next -> names of the buffers that they begin with."""
    published_names: tuple[str, ...] = ()
    """Other spellings of `arch.name`."""
    published_fields: Mapping[str, str | None] = field(default_factory=dict[str, str | None])
    """Fields under `arch` of its published configurations -> ours; None: without effect, there or here."""
    defaults: Mapping[str, object] = field(default_factory=dict[str, object])
    """What differs from the field defaults of ArchConfig."""
    fixed: Mapping[str, object] = field(default_factory=lambda: {"mlp_t": False})
    """Fields that can have no other value."""


ARCHITECTURES: dict[str, Architecture] = {
    "hrm": Architecture(
        # Two networks: a fast one, L, that a slow one, H, follows.
        levels={
            "H_level": LevelInfo("H_layers", is_fast=False, is_slow=True),
            "L_level": LevelInfo("L_layers"),
        },
        states={"z_H": "H_init", "z_L": "L_init"},
        published_names=(
            "hrm_v1",
            "hrm.hrm_act_v1@HierarchicalReasoningModel_ACTV1",
            "recursive_reasoning.hrm@HierarchicalReasoningModel_ACTV1",
        ),
    ),
    "trm": Architecture(
        # One network in both of HRM's roles, gradient in the last cycle.
        levels={"L_level": LevelInfo("L_layers", is_slow=True)},
        states={"z_H": "H_init", "z_L": "L_init"},
        published_names=("recursive_reasoning.trm@TinyRecursiveReasoningModel_ACTV1",),
        # EqR's, a TRM with these.
        published_fields={"lambda_": "damping", "noise_scale": "update_noise"},
        defaults={
            "H_cycles": 3,
            "L_cycles": 6,
            "H_layers": 0,
            "L_layers": 2,
            "puzzle_emb_len": 16,
            "act_continue": False,
            "gradient": "last_cycle",
        },
        fixed={},
    ),
    "urm": Architecture(
        # One network and one state, with a convolution in every block.
        levels={"level": LevelInfo("L_layers")},
        states={"current_hidden": "init_hidden"},
        published_names=("urm.urm@URM",),
        published_fields={
            "loops": "halt_max_steps",
            "num_layers": "L_layers",
            # Never read there: neither by the model, nor, at this place, by the trainer.
            **dict.fromkeys(("attn_dropout", "mlp_dropout", "causal", "loop_deltas", "profile")),
            **dict.fromkeys(("ema", "ema_rate", "eval_interval", "checkpoint_every_eval", "checkpoint_path")),
        },
        defaults={
            "H_cycles": 4,
            "L_cycles": 3,
            "H_layers": 0,
            "L_layers": 8,
            "act_continue": False,
            "gradient": "last_cycle",
        },
        fixed={"mlp_t": False, "pos_encodings": "rope"},
    ),
    "transformer": Architecture(
        # Direct prediction: one pass, and nothing carried to another.
        levels={"H_level": LevelInfo("H_layers")},
        states={},
        defaults={"H_layers": 8, "act_continue": False},
        fixed={
            "mlp_t": False,
            "H_cycles": 1,
            "L_cycles": 1,
            "halt_max_steps": 1,
            # There is no state for them.
            "initial_states": "fixed",
            "segment_noise": 0.0,
            "update_noise": 0.0,
            "damping": 1.0,
            "num_chains": 1,
        },
    ),
    "looped_transformer": Architecture(
        # HRM's outer loop around one stack of blocks, which runs once per segment.
        levels={"H_level": LevelInfo("H_layers")},
        states={"z_H": "H_init"},
        published_names=(
            "hrm.hrm_act_v2@HierarchicalReasoningModel_ACTV2",
            "transformers_baseline",
            "recursive_reasoning.transformers_baseline@Model_ACTV2",
        ),
        defaults={"H_layers": 8},
        fixed={"mlp_t": False, "H_cycles": 1, "L_cycles": 1},
    ),
}


def problems(arch: "ArchConfig") -> list[str]:
    """Return what the architecture of that name cannot have, a line with a remedy each."""
    lines = [
        f"arch.{level.num_layers}=0 leaves arch.name={arch.name} without its {name}; set it to 1 or more"
        for name, level in arch.description.levels.items()
        if getattr(arch, level.num_layers) == 0
    ]
    for key, only in arch.description.fixed.items():
        if (value := getattr(arch, key)) != only:
            others = [name for name, other in ARCHITECTURES.items() if other.fixed.get(key, value) == value]
            lines.append(
                f"arch.{key}={_spelled(value)}: with arch.name={arch.name} it can only be {_spelled(only)}; "
                f"leave it out, or set arch.name={' or '.join(others)}"
            )
    return lines


def _spelled(value: object) -> str:
    """Spell a value as YAML does."""
    return str(value).lower() if isinstance(value, bool) else str(value)


# How often a segment runs what


class Runs(NamedTuple):
    """How often a segment runs something."""

    total: int
    with_gradient: int


def num_updates_with_gradient(arch: "ArchConfig") -> int:
    """Return how many of a segment's H_cycles * L_cycles fast updates carry gradient, counted from its end."""
    counts = {"one_step": 1, "last_cycle": arch.L_cycles, "bptt": arch.H_cycles * arch.L_cycles}
    return counts[arch.gradient]


def level_runs(arch: "ArchConfig") -> dict[str, Runs]:
    """Return how often a segment runs each level."""
    fast = Runs(arch.H_cycles * arch.L_cycles, num_updates_with_gradient(arch))
    slow = Runs(arch.H_cycles, -(-fast.with_gradient // arch.L_cycles))
    return {
        name: Runs(*(level.is_fast * f + level.is_slow * s for f, s in zip(fast, slow, strict=True)))
        for name, level in arch.description.levels.items()
    }
