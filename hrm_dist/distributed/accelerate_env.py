"""Settings of `accelerate launch` that have no effect here, and what to set instead.

It only starts the processes: its library, which would act on what it leaves in the environment, is not used. Ignoring
these settings would train something other than what was asked for, so they are refused.
"""

from collections.abc import Mapping
from fnmatch import fnmatchcase

from hrm_dist.config import ConfigError

# Environment variables of accelerate 1.15 by pattern, the values that ask for nothing, and the option of ours. It does
# not pass on --gradient_accumulation_steps without --use_deepspeed.
_SETTINGS = (
    ("ACCELERATE_MIXED_PRECISION", ("no", ""), "precision=bf16 or precision=fp32"),
    ("ACCELERATE_FP8_*", (), "precision=bf16; there is no fp8"),
    ("ACCELERATE_DYNAMO_BACKEND", ("no", ""), "compile=true"),
    ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", ("1", "none"), "gradient_accumulation_steps=N"),
    ("ACCELERATE_GRADIENT_CLIPPING", ("none",), "nothing: AdamATan2 does not depend on the gradient's scale"),
    ("ACCELERATE_USE_DEEPSPEED", ("false",), "engine=zero1, engine=zero2 or engine=zero3"),
    ("ACCELERATE_DEEPSPEED_*", (), "engine=zero1, engine=zero2 or engine=zero3; there is no offloading"),
    ("ACCELERATE_USE_FSDP", ("false",), "engine=fsdp2"),
    ("FSDP_ACTIVATION_CHECKPOINTING", ("false",), "activation_checkpointing=true"),
    ("FSDP_*", (), "engine=fsdp2, and gather_unit for what is gathered at a time"),
    ("ACCELERATE_USE_MEGATRON_LM", ("false",), "engine=zero3 or engine=fsdp2"),
    ("MEGATRON_LM_*", (), "engine=zero3 or engine=fsdp2; there is no model parallelism"),
    ("ACCELERATE_USE_PARALLELISM_CONFIG", ("false",), "engine=zero3 or engine=fsdp2"),
    ("PARALLELISM_CONFIG_*", (), "engine=zero3 or engine=fsdp2; there is no model parallelism"),
    ("ACCELERATE_USE_CPU", ("false",), "device=cpu (and --multi_gpu for several processes)"),
)  # fmt: skip


def refuse_accelerate_settings(environment: Mapping[str, str]) -> None:
    """Raise a ConfigError that names every setting in the environment, and ours."""
    problems: list[str] = []
    unseen = dict(sorted(environment.items()))
    for variables, harmless, ours in _SETTINGS:
        names = [name for name in unseen if fnmatchcase(name, variables)]
        values = {name: unseen.pop(name) for name in names}
        found = [f"{name}={value}" for name, value in values.items() if value.lower() not in harmless]
        if found:
            more = f" and {len(found) - 1} more {variables}" if len(found) > 1 else ""
            verb = "have" if more else "has"
            problems.append(f"{found[0]}{more} {verb} no effect; use {ours}")
    if problems:
        raise ConfigError(
            "accelerate launch only starts the processes; leave its other settings out of its command line and of "
            "the file that `accelerate config` writes:\n" + "\n".join(problems)
        )
