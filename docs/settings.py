"""Write docs/settings.md, the page of all settings, from the code that reads them.

python -m docs.settings > docs/settings.md
"""

import re
import types
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from data_pipeline.build_spec import BuildSpec
from data_pipeline.kinds import KINDS
from hrm_dist.checkpoint import config_changes
from hrm_dist.config import ArchConfig, TrainConfig
from hrm_dist.config.aliases import ALIASES
from hrm_dist.config.architectures import ARCHITECTURES, Architecture
from hrm_dist.config.loader import Value
from launch.jobs.cluster import Cluster

INTRODUCTION = """\
# Settings

Every key of a training's configuration, of its `dataset:` section, and of a cluster profile. `python -m docs.settings`
writes this page from the code.

A configuration is a YAML file; `key=value` on the command line goes over it, with a dot for a section:

```
python -m hrm_dist.train configs/debug.yaml global_batch_size=16 arch.L_cycles=4 --dry-run
```

Unknown keys and bad values are refused with a line each. `--dry-run` prints every setting as it is understood.
"""
# Values by which an alias shows what it sets.
_SAMPLES: tuple[Value, ...] = (["x"], "x", "true")
_ESCAPED = re.compile("[|<]")
_SIGNS = {Ge: "≥", Gt: ">", Le: "≤", Lt: "<"}


def page() -> str:
    """Return the page."""
    return "\n".join([INTRODUCTION, *_training(), *_architectures(), *_datasets(), *_clusters()]) + "\n"


def _training() -> Iterator[str]:
    yield "## Training\n"
    yield (
        "*On resume*: when a run that is started again may have another value. Where steps remain, these are\n"
        "trained with it. Nothing under `arch` may change.\n"
    )
    keys = [key for key in TrainConfig.model_fields if key not in ("arch", "dataset")]
    rows = [(*_row(key, TrainConfig.model_fields[key]), _on_resume(key)) for key in keys]
    order = ("key", "values", "default", "on resume", "meaning")
    yield from _table(order, ((*before, resume, meaning) for *before, meaning, resume in rows))
    yield "\nPublished spellings that mean the same:\n"
    yield from _table(("published", "here"), _spellings())
    without = [f"`{key}`" for key, alias in ALIASES.items() if alias is None]
    yield f"\nRead and ignored with a warning: {', '.join(without)}."
    refused = [f"`{key}`" for key, alias in ALIASES.items() if alias is not None and not _targets(key)]
    yield f"Accepted only with the value that changes nothing here: {', '.join(refused)}.\n"


def _on_resume(key: str) -> str:
    """Return when a setting may change."""
    if key in config_changes.FIXED:
        return "never"
    return "if steps remain" if key in config_changes.OF_THE_RESULT else "any time"


def _architectures() -> Iterator[str]:
    yield "## The network: `arch.*`\n"
    yield "`arch.name` sets the defaults. A key without effect for an architecture is refused or ignored there.\n"
    rows: list[Sequence[str]] = []
    for key, field in ArchConfig.model_fields.items():
        name, values, default, meaning = _row(f"arch.{key}", field)
        defaults = [
            f"{arch}: {_value(own)}" for arch, known in ARCHITECTURES.items()
            if (own := known.defaults.get(key, field.default)) != field.default and _has_effect(key, known)
        ]  # fmt: skip
        users = [arch for arch, known in ARCHITECTURES.items() if key == "name" or _has_effect(key, known)]
        used_by = "all" if len(users) == len(ARCHITECTURES) else ", ".join(users)
        rows.append((name, values, "; ".join([default, *defaults]), used_by, meaning))
    yield from _table(("key", "values", "default", "used by", "meaning"), rows)
    yield ""


def _has_effect(key: str, arch: Architecture) -> bool:
    """Return whether a key can change anything in an architecture."""
    if key in arch.fixed:
        return False
    counts = {level.num_layers for known in ARCHITECTURES.values() for level in known.levels.values()}
    if key in counts:
        return key in {level.num_layers for level in arch.levels.values()}
    if key in ("halting", "halt_exploration_prob", "act_continue"):
        return arch.fixed.get("halt_max_steps") != 1
    return key != "gradient" or "L_cycles" not in arch.fixed


def _datasets() -> Iterator[str]:
    yield "## Data: `dataset.*`\n"
    yield (
        "With this section a training builds `data_path` if it is missing. The same options are flags of\n"
        "`python -m data_pipeline.build PRESET` (`num_aug: 8` is `--num-aug 8`). [data.md](data.md) says what is read "
        "from a source.\n"
    )
    heads = ("key", "values", "default", "meaning")
    rows = [_row(key, field) for key, field in BuildSpec.model_fields.items() if key != "options"]
    presets = ", ".join(f"`{preset}`" for kind in KINDS for preset in kind.presets)
    yield from _table(heads, [(rows[0][0], presets, *rows[0][2:]), *rows[1:]])
    for kind in KINDS:
        yield f"\n### {', '.join(kind.presets)}\n"
        whose = {"any": "", "source": "Only with a source. ", "new": "Only for new puzzles. "}
        rows = [
            _row(key, option.field, whose[option.scope]) for key, option in kind.options.by_name().items()
        ]
        yield from _table(heads, rows)


def _clusters() -> Iterator[str]:
    yield "\n## Cluster profiles\n"
    yield (
        "Keys of `--profile FILE` of `python -m launch.submit` (`configs/cluster/gpu.yaml`), and its flags. "
        "[cluster.md](cluster.md) uses them.\n"
    )
    rows = [_row(key, field) for key, field in Cluster.model_fields.items()]
    yield from _table(
        ("key", "values", "default", "meaning"), [(*row, text or "as sbatch") for *row, text in rows]
    )


def _spellings() -> Iterator[Sequence[str]]:
    for key in ALIASES:
        for target in _targets(key):
            if target != key:
                yield f"`{key}`", f"`{target}`"
    for name, known in ARCHITECTURES.items():
        for published in known.published_names:
            yield f"`arch.name={published}`", f"`arch.name={name}`"


def _targets(key: str) -> list[str]:
    """Return our keys that an alias sets."""
    alias = ALIASES[key]
    for sample in _SAMPLES if alias is not None else ():
        try:
            if found := alias(sample):  # pyright: ignore[reportOptionalCall]
                return list(found)
        except ValueError:
            continue
    return []


# One row of a table


def _row(key: str, field: FieldInfo, before: str = "") -> tuple[str, str, str, str]:
    default = field.get_default(call_default_factory=True)
    shown = "required" if default is PydanticUndefined else _value(default)
    text = before + " ".join((field.description or "").split())
    return f"`{key}`", _values(field.annotation, field.metadata), shown, text


def _value(value: object) -> str:
    if value is None or isinstance(value, bool):
        return f"`{str(value).lower()}`".replace("none", "null")
    if isinstance(value, list | tuple):
        return "none" if not value else f"`{value}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _values(annotation: Any, metadata: Sequence[object] = ()) -> str:
    """Return what a type and its limits allow, in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner, *more = arguments
        limits = [limit for one in more for limit in (one.metadata if isinstance(one, FieldInfo) else [one])]
        return _values(inner, [*metadata, *limits])
    if origin in (Union, types.UnionType):
        rest = [_values(one, metadata) for one in arguments if one is not type(None)]
        return " or ".join([*rest, "`null`"] if type(None) in arguments else rest)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (list, tuple):
        return f"list of {_values(arguments[0])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    name = {bool: "`true`, `false`", int: "whole number", float: "number", str: "text"}[annotation]
    limits = [
        f"{sign} {_limit(one, kind)}"
        for one in metadata
        for kind, sign in _SIGNS.items()
        if isinstance(one, kind)
    ]
    return " ".join([name, ", ".join(limits)]).strip()


def _limit(limit: object, kind: type) -> str:
    value = getattr(limit, kind.__name__.lower())
    exponent = int(value).bit_length() - 1
    return f"2^{exponent}" if exponent > 30 and value == 2**exponent else f"{value:,.15g}"


def _table(heads: Sequence[str], rows: Any) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield "|" + "---|" * len(heads)
    for row in rows:
        cells = [_ESCAPED.sub(r"\\\g<0>", cell) for cell in row]
        yield f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    print(page(), end="")
