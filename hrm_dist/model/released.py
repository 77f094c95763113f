"""Names of published weights, and ours.

Published: `model.inner.L_level.layers.0.mlp.down_proj.weight`, behind `_orig_mod.` when compiled.
Ours:      `network.recurrence.L_level.layers.0.mlp.down_proj.weight`.
A level that has no name in the published weights (`model.inner.layers.0. ...`) is called `level` in ours.
"""

import re

from torch import Tensor

_OURS_OF_PUBLISHED = (
    (r"^(_orig_mod\.)?model\.inner\.", ""),
    (r"^layers\.", "level.layers."),
    (r"^(\w*level)\.", r"network.recurrence.\1."),
    (r"^(embed_tokens|embed_pos|lm_head|q_head)\.", r"network.\1."),
)


def convert_released(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename a published state dict to our names; tensors become float32.

    The rotation tables that old versions stored are dropped: they are computed.
    """
    converted: dict[str, Tensor] = {}
    for published, tensor in state_dict.items():
        if ".rotary_emb." in published or published.endswith((".local_weights", ".local_ids")):
            continue
        name = published
        for pattern, ours in _OURS_OF_PUBLISHED:
            name = re.sub(pattern, ours, name)
        converted[name] = tensor.float()
    return converted


def published_name(name: str) -> str:
    """Return the published name of one of our tensors (uncompiled form)."""
    return "model.inner." + re.sub(r"^network\.(recurrence\.(level\.)?)?", "", name)
