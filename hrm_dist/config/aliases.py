"""Keys and values of the published configurations, and what they mean here. All of them are listed in `ALIASES`."""
# pyright: strict

from collections.abc import Callable, Sequence

from data_pipeline.base.models import shown
from hrm_dist.config.architectures import ARCHITECTURES
from hrm_dist.config.loader import Alias, Entries, Value

_NAME_OF_PUBLISHED_ARCH = {
    published: name for name, known in ARCHITECTURES.items() for published in known.published_names
}


def _arch_name(value: Value) -> Entries:
    return {"arch.name": _NAME_OF_PUBLISHED_ARCH.get(value, value) if isinstance(value, str) else value}


def _flag(value: Value) -> bool:
    if str(value).lower() not in ("true", "false"):
        raise ValueError(f"should be true or false (got {shown(value)})")
    return str(value).lower() == "true"


def _only(accepted: Sequence[Value], reason: str) -> Callable[[Value], Entries]:
    """Accept of a published key only the values that change nothing; flags are spelled in any way."""

    def check(value: Value) -> Entries:
        if (_flag(value) if isinstance(accepted[0], bool) else value) not in accepted:
            raise ValueError(f"{reason} (got {shown(value)})")
        return {}

    return check


def _one_data_path(value: Value) -> Entries:
    if not isinstance(value, list) or len(value) != 1:
        raise ValueError(
            "should be a list of one folder: a run reads one dataset; build one from several sources with "
            f"--source, then give data_path=FOLDER (got {shown(value)})"
        )
    return {"data_path": value[0]}


def _composed(value: Value) -> Entries:
    """Read Hydra's defaults list, as at the top of the published files: it chooses the architecture."""
    groups = value if isinstance(value, list) else [value]
    names = [group["arch"] for group in groups if isinstance(group, dict) and set(group) == {"arch"}]
    if len(names) > 1 or len(names) + groups.count("_self_") != len(groups):
        raise ValueError(f"may hold `arch: NAME` and `_self_` only (got {shown(value)})")
    return _arch_name(names[0]) if names else {}


def _renamed(field: str | None) -> Alias:
    return None if field is None else lambda value: {f"arch.{field}": value}


# Published key -> our keys and values, or a ValueError saying why not; None: ignored with a warning.
ALIASES: dict[str, Alias] = {
    "defaults": _composed,
    "arch": lambda value: _arch_name(value) if value else {},
    "arch.name": _arch_name,
    "arch.loss.name": _only(
        ["losses@ACTLossHead"], "should be losses@ACTLossHead, the only one; leave it out"
    ),
    "arch.loss.loss_type": lambda value: {"arch.loss_type": value},
    "arch.no_ACT_continue": lambda value: {"arch.act_continue": not _flag(value)},
    "arch.puzzle_emb_ndim": lambda value: {
        "arch.puzzle_emb_ndim": None if value == "${.hidden_size}" else value
    },
    **{
        f"arch.{published}": _renamed(field)
        for known in ARCHITECTURES.values()
        for published, field in known.published_fields.items()
    },
    "data_paths": _one_data_path,
    "data_paths_test": _only(
        [[], None], "should be empty: a dataset brings its own test split; leave it out"
    ),
    "load_checkpoint": lambda value: {"resume": value} if value else {},
    "freeze_weights": _only([False], "is not supported; leave it out"),
    "load_strict": _only([True], "should be true, as weights that do not fit are refused; leave it out"),
    "load_optimizer_state": _only(
        [True], "should be true; to start from weights alone, export and import them with tools.convert"
    ),
    "use_muon": _only([False], "should be false, as AdamATan2 trains all weights; leave it out"),
    "grad_accum_steps": _only(
        ["1"],
        "multiplies the batch; raise global_batch_size, and set gradient_accumulation_steps to split it",
    ),
    "hydra.output_subdir": None,
    "evaluators": None,
    "checkpoint_every_eval": None,
    "eval_save_outputs": None,
    "min_eval_interval": None,
    "target_q_update_every": None,
    "loop_deltas": None,
}
