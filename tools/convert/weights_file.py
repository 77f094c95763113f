"""Files of weights as people have them: a state dict, alone or within what a training saved around it."""

import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, cast

import torch
from safetensors.torch import load_file
from torch import Tensor

from data_pipeline.base.errors import InputError
from hrm_dist.inference.exported import CONFIG, IDENTIFIERS, WEIGHTS
from hrm_dist.model.released import convert_released, is_computed, is_model

SUFFIX = ".safetensors"
_AVERAGES = ("ema", "shadow", "average", "averaged")
_MAX_DEPTH = 4
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")


def identifiers_beside(weights: Path) -> Path:
    """Return where an export puts the names of the puzzle table's rows."""
    if weights.name == WEIGHTS and (weights.parent / CONFIG).is_file():
        return weights.with_name(IDENTIFIERS)
    return weights.with_name(f"{weights.name.removesuffix(SUFFIX)}.identifiers.json")


class Weights(NamedTuple):
    """Tensors by our names."""

    tensors: dict[str, Tensor]
    found_in: str
    """Which of the file's entries they are; empty where they are all of it."""


def read_weights(path: Path) -> Weights:
    """Read the weights of one model from a torch or safetensors file, on the CPU; no code in it is run.

    Averaged weights, where the file has them too, take the place of the others.
    """
    models = {where: tensors for where, tensors in _state_dicts(_load(path)) if is_model(tensors)}
    averaged = [where for where in models if _is_average(where)]
    plain = [where for where in models if where not in averaged]
    if not models:
        raise InputError(
            f"{path}: holds no published model (nothing in it is named ...lm_head.weight); give published weights, or "
            "the file of an export."
        )
    if len(averaged) > 1 or len(plain) > 1:
        some = (averaged if len(averaged) > 1 else plain)[0]
        raise InputError(
            f"{path}: holds several models ({', '.join(models)}); save one of them in a file of its own, with "
            f"torch.save(torch.load({str(path)!r}, weights_only=True){_as_index(some)}, FILE), and give that file."
        )
    tensors: dict[str, Tensor] = {}
    for where in (*plain, *averaged):  # averages are of the parameters, and may lack the rest
        _refuse_other_numbers(path, models[where])
        tensors |= convert_released(models[where])
    return Weights(tensors, " and ".join(where for where in (*plain, *averaged) if where))


def _refuse_other_numbers(path: Path, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not is_computed(name) and (not tensor.is_floating_point() or tensor.is_sparse or tensor.is_meta):
            kind = "sparse" if tensor.is_sparse else "without values" if tensor.is_meta else str(tensor.dtype)
            raise InputError(
                f"{path}: {name} is {kind}, but weights are dense floating-point numbers; give the weights as they "
                "were before they were quantized or taken apart."
            )


def _load(path: Path) -> object:
    try:
        with path.open("rb") as file:
            head = file.read(20)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a file of weights.") from error
    try:
        if head[8:9] == b"{":
            return load_file(path)
        return cast(
            object,
            torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)),
        )
    except Exception as error:  # of whatever kind: these are foreign bytes
        # What torch says goes on with the advice to trust the file, which nobody should follow.
        if foreign := _GLOBAL.search(str(error)):
            raise InputError(
                f"{path}: holds more than tensors ({foreign[1]}), and to read that could run code of its maker; where "
                "it was made, save the weights alone, with torch.save(model.state_dict(), FILE), and give that file."
            ) from error
        reason = str(error).partition("\n")[0]
        if not reason or "weights_only" in str(error):
            reason = f"its first bytes are {head!r}"
        raise InputError(
            f"{path}: is neither a safetensors file nor a torch file of tensors alone ({reason}); give the published "
            "file as it was downloaded."
        ) from error


def _state_dicts(content: object, where: str = "") -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield the tensors directly within each mapping, and the path to it."""
    if not isinstance(content, Mapping) or where.count("/") >= _MAX_DEPTH:
        return
    entries = {str(name): value for name, value in cast(Mapping[object, object], content).items()}
    yield where, {name: value for name, value in entries.items() if isinstance(value, Tensor)}
    for name, value in entries.items():
        yield from _state_dicts(value, f"{where}/{name}" if where else name)


def _is_average(where: str) -> bool:
    return any(word in _AVERAGES for word in re.split(r"[^a-z]+", where.lower()))


def _as_index(where: str) -> str:
    return "".join(f"[{name!r}]" for name in where.split("/"))
