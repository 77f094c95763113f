"""Whether published weights fit a configuration, and which setting would make them."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from hrm_dist.config.architectures import ARCHITECTURES
from hrm_dist.model.layers import swiglu_size
from hrm_dist.model.released import published_name

Shape = tuple[int, ...]
TABLE = "puzzle_emb.weights"
_LM_HEAD = "network.lm_head.weight"
_LAYER = re.compile(r"network\.recurrence\.(\w+)\.layers\.(\d+)\.(\w+)\..+")
_INITIAL_STATES = {buffer for known in ARCHITECTURES.values() for buffer in known.states.values()}
# End of a name -> which of its axes is hidden_size.
_HIDDEN_AXES = {
    "embedding_weight": 1, "lm_head.weight": 1, "q_head.weight": 1, "self_attn.qkv_proj.weight": 1,
    "self_attn.o_proj.weight": 1, "mlp.gate_up_proj.weight": 1, "mlp.down_proj.weight": 0,
} | dict.fromkeys(_INITIAL_STATES, 0)  # fmt: skip
_OTHER_MODEL = "give weights of the architecture that the configuration describes, or another configuration"


class _Misfit(NamedTuple):
    """A tensor that is not as the configuration wants it; None: not there."""

    name: str
    found: Shape | None
    wanted: Shape | None

    def __str__(self) -> str:
        name = published_name(self.name)
        if self.found is None:
            return f"{name} is missing, the configuration wants {list(self.wanted or ())}"
        if self.wanted is None:
            return f"{name} {list(self.found)} has no place in the configuration"
        return f"{name} is {list(self.found)}, the configuration wants {list(self.wanted)}"


def problems(found: Mapping[str, Shape], wanted: Mapping[str, Shape], seq_len: int) -> list[str]:
    """Return a line for each setting that has to change: a tensor, both shapes, and what to do; none if all fit.

    found, wanted: by our names; the number of rows of the puzzle table is free. seq_len: tokens of a puzzle.
    """
    if len(found.get(_LM_HEAD, ())) != 2:
        return [
            "holds no published model (there is no model.inner.lm_head.weight); give published weights, or the file of "
            "an export"
        ]
    by_remedy: dict[str, list[_Misfit]] = {}
    for name in sorted({*found, *wanted}):
        misfit = _Misfit(name, found.get(name), wanted.get(name))
        if not _fits(misfit):
            by_remedy.setdefault(_remedy(misfit, found, wanted, seq_len), []).append(misfit)
    lines: list[str] = []
    for remedy, (first, *others) in by_remedy.items():
        more = f" (and {len(others)} more tensors)" if others else ""
        lines.append(f"{first}{more}; {remedy}")
    return lines


def _fits(misfit: _Misfit) -> bool:
    if misfit.name == TABLE and misfit.found is not None and misfit.wanted is not None:
        return misfit.found[1:] == misfit.wanted[1:]
    return misfit.found == misfit.wanted


def _remedy(misfit: _Misfit, found: Mapping[str, Shape], wanted: Mapping[str, Shape], seq_len: int) -> str:
    name = misfit.name
    if misfit.found is None or misfit.wanted is None:
        return _remedy_of_presence(misfit, found, wanted)
    if len(misfit.found) != len(misfit.wanted):
        return _OTHER_MODEL
    axis = next((axis for end, axis in _HIDDEN_AXES.items() if name.endswith(end)), None)
    hidden_sizes = found[_LM_HEAD][1], wanted[_LM_HEAD][1]
    follows_hidden_size = (misfit.found[-1], misfit.wanted[-1]) == hidden_sizes
    of_convolution = ".dwconv." in name  # as wide as the layer inside, which follows hidden_size too
    if (
        (axis is not None and misfit.found[axis] != misfit.wanted[axis])
        or (name == TABLE and follows_hidden_size)
        or (of_convolution and hidden_sizes[0] != hidden_sizes[1])
    ):
        return f"set arch.hidden_size={hidden_sizes[0]}"
    if name == TABLE:
        return f"set arch.puzzle_emb_ndim={misfit.found[1]}"
    if name.endswith(("embed_tokens.embedding_weight", "lm_head.weight")):
        return (
            f"the weights have {misfit.found[0]} tokens and the dataset {misfit.wanted[0]}: give --data of the same "
            "kind of puzzles"
        )
    positions = _num_positions(name, misfit.found)
    if positions is not None and positions != _num_positions(name, misfit.wanted):
        if positions > seq_len:
            return f"set arch.puzzle_emb_len={positions - seq_len}, or give --data of another canvas"
        return f"give --data of a canvas with {positions} cells or fewer"
    if name.endswith("gate_up_proj.weight"):
        return f"set arch.expansion={_expansion(misfit.found[1], misfit.found[0] // 2)}"
    if of_convolution:
        return f"set arch.expansion={_expansion(hidden_sizes[0], misfit.found[0])}"
    if name.endswith("down_proj.weight"):
        return f"set arch.expansion={_expansion(*misfit.found)}"
    return _OTHER_MODEL


def _remedy_of_presence(misfit: _Misfit, found: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> str:
    """Say what to do about a tensor that one of the two does not have."""
    if misfit.name == TABLE:
        return f"set arch.puzzle_emb_ndim={misfit.found[1] if misfit.found else 0}"
    if "embed_pos" in misfit.name:
        return f"set arch.pos_encodings={'rope' if misfit.found is None else 'learned'}"
    of_found, of_wanted = _levels(found), _levels(wanted)
    layer = _LAYER.fullmatch(misfit.name)
    if misfit.name in _INITIAL_STATES or (layer and of_found.keys() != of_wanted.keys()):
        return _remedy_of_architecture(found)
    if layer is None:
        return _OTHER_MODEL
    level = layer[1]
    if of_found[level] != of_wanted[level]:
        field = next(
            known.levels[level].num_layers for known in ARCHITECTURES.values() if level in known.levels
        )
        return f"set arch.{field}={of_found[level]}"
    if layer[3] in ("mlp_t", "self_attn"):
        mixes_by_mlp = any(".mlp_t." in name for name in found)
        return f"set arch.mlp_t={'true' if mixes_by_mlp else 'false'}"
    return _OTHER_MODEL


def _remedy_of_architecture(found: Mapping[str, Shape]) -> str:
    """Name the architectures that have the weights' levels, and of these the one with their initial states."""
    levels, states = _levels(found).keys(), _INITIAL_STATES & found.keys()
    names = [name for name, known in ARCHITECTURES.items() if known.levels.keys() == levels]
    exact = [name for name in names if states == set(ARCHITECTURES[name].states.values())]
    return f"set arch.name={' or '.join(exact or names)}" if names else _OTHER_MODEL


def _levels(names: Mapping[str, Shape]) -> dict[str, int]:
    """Return the levels that tensors belong to, and the number of blocks of each."""
    layers = {(layer[1], layer[2]) for name in names if (layer := _LAYER.fullmatch(name))}
    return dict(Counter(level for level, _ in layers))


def _num_positions(name: str, shape: Shape) -> int | None:
    """Return the positions of a sequence, prefix included, where a tensor has an axis of them."""
    if name.endswith(("embed_pos.embedding_weight", "mlp_t.down_proj.weight")):
        return shape[0]
    return shape[1] if name.endswith("mlp_t.gate_up_proj.weight") else None


def _expansion(size: int, inner: int) -> float:
    """Return the expansion of a SwiGLU, a whole number if there is one."""
    return next((e for e in range(1, 17) if swiglu_size(size, e) == inner), round(1.5 * inner / size, 3))
