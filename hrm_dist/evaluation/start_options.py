"""How many starts an input has, what is random in them, and which answers: options, and what cannot be. No torch."""

import argparse
from typing import Any, Literal, get_args

from data_pipeline.base.errors import InputError
from hrm_dist.config import ArchConfig

Choice = Literal["q", "vote", "first", "residual"]
"""See starts.py."""
MAX_STARTS = 1000
RANDOMNESS = ("initial_states", "segment_noise", "update_noise")
"""Fields of the architecture that an evaluation may change."""
_MAX_NOISE = 10.0
"""That of ArchConfig."""


def add_start_options(parser: argparse.ArgumentParser) -> None:
    """Let a command line have them."""
    add = parser.add_argument
    add("--starts", type=int, default=1, metavar="K",
        help="tries per example, one of which answers (%(default)s)")  # fmt: skip
    add("--choose", choices=get_args(Choice), help="which of several tries answers (q)")
    add("--initial-states", choices=("fixed", "random"), help="what a try begins with (as trained)")
    add("--segment-noise", type=float, metavar="X",
        help="standard deviation of what is added to the answer's state before every segment (as trained)")  # fmt: skip
    add("--update-noise", type=float, metavar="X",
        help="standard deviation of what every update adds to its state (as trained)")  # fmt: skip
    add("--noise-seed", type=int, default=0, metavar="N", help="other numbers give other tries (%(default)s)")


def check_start_options(options: argparse.Namespace) -> None:
    """Settle which of several tries answers; raise InputError for what cannot be, whatever the model."""
    if not 1 <= options.starts <= MAX_STARTS:
        raise InputError(f"--starts {options.starts}: must be from 1 to {MAX_STARTS:,}.")
    for name in ("segment_noise", "update_noise"):
        value = getattr(options, name)
        if value is not None and not 0 <= value <= _MAX_NOISE:
            raise InputError(
                f"--{name.replace('_', '-')} {value:g}: must be from 0 to {_MAX_NOISE:g}; the states have a root mean "
                "square of about 1."
            )
    if not 0 <= options.noise_seed < 2**63:
        raise InputError(f"--noise-seed {options.noise_seed}: must be from 0 to 2^63 - 1.")
    if options.starts == 1:
        if options.choose is not None:
            raise InputError(
                f"--choose {options.choose}: there is one try of each example to choose from; give --starts K."
            )
        return
    options.choose = options.choose or "q"
    if options.choose == "first" and options.halting.kind == "none":
        raise InputError(
            "--choose first: with --halting none no try halts before the others; give a rule, such as --halting "
            "learned, or choose by something else."
        )


def changed_randomness(options: argparse.Namespace, arch: ArchConfig) -> dict[str, Any]:
    """Return the fields that are not as in training; raise InputError for what cannot be of this architecture."""
    asked_for = {name: getattr(options, name) for name in RANDOMNESS}
    changed = {name: value for name, value in asked_for.items() if value not in (None, getattr(arch, name))}
    if not arch.description.states and (changed or options.choose == "residual"):
        option = f"--{next(iter(changed)).replace('_', '-')}" if changed else "--choose residual"
        raise InputError(
            f"{option}: architecture {arch.name} carries no state from one segment to the next; leave it out."
        )
    is_random = ArchConfig.model_validate({**arch.model_dump(), "num_chains": 1, **changed}).is_random
    if not is_random and (options.starts > 1 or options.noise_seed):
        option = f"--starts {options.starts}" if options.starts > 1 else f"--noise-seed {options.noise_seed}"
        raise InputError(
            f"{option}: nothing is random, so that all tries of an example would be the same; give --segment-noise X, "
            "--update-noise X or --initial-states random."
        )
    if options.choose == "residual" and (options.max_segments or arch.halt_max_steps) == 1:
        raise InputError(
            "--choose residual: one segment has no change against one before it; give more --max-segments, or choose "
            "by something else."
        )
    return changed
