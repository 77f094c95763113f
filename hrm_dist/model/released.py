"""Names of published weights, and ours.

Published: `model.inner.L_level.layers.0.mlp.down_proj.weight`, whatever wrappers' names stand before or within it.
Ours:      `network.recurrence.L_level.layers.0.mlp.down_proj.weight`.
A level that has no name in the published weights (`model.inner.layers.0. ...`) is called `level` in ours.
"""

import re
from collections.abc import Iterable

from torch import Tensor

_LM_HEAD = re.compile(r"(.*\.|)lm_head\.weight")
# torch.compile, data parallelism, FSDP and checkpointed activations put these between the names of modules.
_WRAPPER = re.compile(r"(?<![^.])(_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_OURS_OF_PUBLISHED = (
    (r"^layers\.", "level.layers."),
    (r"^(\w*level)\.", r"network.recurrence.\1."),
    (r"^(embed_tokens|embed_pos|lm_head|q_head)\.", r"network.\1."),
)
_COMPUTED = (".local_weights", ".local_ids", "n_averaged")


def is_model(names: Iterable[str]) -> bool:
    """Return whether tensors of these names are a model."""
    return any(_LM_HEAD.fullmatch(name) for name in names)


def is_computed(name: str) -> bool:
    """Return whether a published tensor is none of the weights: it is computed, or counts something."""
    return ".rotary_emb." in name or name.endswith(_COMPUTED)


def convert_released(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename a published state dict to our names; tensors become float32.

    The names of wrappers are left out, and so is whatever comes before the network's own names. The rotation tables
    that old versions stored are dropped: they are computed.
    """
    unwrapped = {_WRAPPER.sub("", name): tensor for name, tensor in state_dict.items()}
    root = next((match[1] for name in unwrapped if (match := _LM_HEAD.fullmatch(name))), "")
    root = root.removesuffix("network.")  # of our own names
    converted: dict[str, Tensor] = {}
    for published, tensor in unwrapped.items():
        if is_computed(published):
            continue
        name = published.removeprefix(root)
        for pattern, ours in _OURS_OF_PUBLISHED:
            name = re.sub(pattern, ours, name)
        converted[name] = tensor.float()
    return converted


def published_name(name: str) -> str:
    """Return the published name of one of our tensors (uncompiled form)."""
    return "model.inner." + re.sub(r"^network\.(recurrence\.(level\.)?)?", "", name)
