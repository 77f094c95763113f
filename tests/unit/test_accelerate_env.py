"""What `accelerate launch` would put into the environment of its processes, by its own code."""

import os
import re
from pathlib import Path

import pytest
from accelerate.commands import launch as accelerate_launch

from hrm_dist.config import ConfigError
from hrm_dist.distributed.accelerate_env import refuse_accelerate_settings

TWO = ("--multi_gpu", "--num_processes", "2")
DEEPSPEED = ("--use_deepspeed", "--num_processes", "2")
CONFIGS = Path(__file__).parents[2] / "configs" / "accelerate"
FSDP = ("--use_fsdp", "--num_processes", "2")


def environment_of(*options: str) -> dict[str, str]:
    arguments = ["--num_cpu_threads_per_process", "1", *options, "script.py"]
    args = accelerate_launch.launch_command_parser().parse_args(arguments)
    args, _, _ = accelerate_launch._validate_launch_command(args)
    if args.use_deepspeed:
        args.deepspeed_fields_from_accelerate_config = ""  # set where it goes on from here
        made = accelerate_launch.prepare_deepspeed_cmd_env(args)[1]
    elif args.multi_gpu or args.use_fsdp:
        made = accelerate_launch.prepare_multi_gpu_env(args)
    else:
        made = accelerate_launch.prepare_simple_launcher_cmd_env(args)[1]
    return {name: value for name, value in made.items() if os.environ.get(name) != value}


@pytest.mark.parametrize(
    ("options", "found", "ours"),
    [
        ((*TWO, "--mixed_precision", "bf16"), "ACCELERATE_MIXED_PRECISION=bf16", "precision=bf16"),
        (("--mixed_precision", "fp16"), "ACCELERATE_MIXED_PRECISION=fp16", "precision=bf16 or precision=fp32"),
        ((*TWO, "--dynamo_backend", "inductor"), "ACCELERATE_DYNAMO_BACKEND=INDUCTOR", "compile=true"),
        (DEEPSPEED, "ACCELERATE_USE_DEEPSPEED=true", "engine=zero1, engine=zero2"),
        ((*DEEPSPEED, "--zero_stage", "3"), "ACCELERATE_DEEPSPEED_ZERO_STAGE=3", "engine=zero3"),
        (
            (*DEEPSPEED, "--gradient_accumulation_steps", "4"),
            "ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4",
            "gradient_accumulation_steps=N",
        ),
        ((*DEEPSPEED, "--gradient_clipping", "1.0"), "ACCELERATE_GRADIENT_CLIPPING=1.0", "nothing"),
        (FSDP, "ACCELERATE_USE_FSDP=true", "engine=fsdp2"),
        ((*FSDP, "--fsdp_version", "2"), "FSDP_", "engine=fsdp2"),
        (
            (*FSDP, "--fsdp_activation_checkpointing", "true"),
            "FSDP_ACTIVATION_CHECKPOINTING=true",
            "activation_checkpointing=true",
        ),
        (
            (*FSDP, "--fsdp_version", "2", "--use_parallelism_config"),
            "ACCELERATE_USE_PARALLELISM_CONFIG=true",
            "engine=zero3",
        ),
        (("--cpu", "--num_processes", "2"), "ACCELERATE_USE_CPU=True", "device=cpu (and --multi_gpu"),
    ],
)  # fmt: skip
def test_a_setting_of_accelerate_is_refused_with_ours(
    options: tuple[str, ...], found: str, ours: str
) -> None:
    with pytest.raises(ConfigError, match="accelerate launch only starts the processes") as refused:
        refuse_accelerate_settings(environment_of(*options))
    [line] = [line for line in str(refused.value).splitlines() if line.startswith(found)]
    assert ours in line.split("no effect; use ")[1]


@pytest.mark.parametrize(
    "options", [TWO, ("--num_processes", "1"), (*TWO, "--mixed_precision", "no", "--dynamo_backend", "no")]
)
def test_what_accelerate_sets_unasked_passes(options: tuple[str, ...]) -> None:
    environment = environment_of(*options)
    assert "ACCELERATE_MIXED_PRECISION" in environment
    refuse_accelerate_settings(environment)


def test_all_settings_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as refused:
        refuse_accelerate_settings(
            {"ACCELERATE_MIXED_PRECISION": "fp8", "ACCELERATE_DYNAMO_BACKEND": "EAGER"}
        )
    assert "precision=bf16" in str(refused.value)
    assert "compile=true" in str(refused.value)


@pytest.mark.parametrize(
    ("name", "num_processes", "visible"), [("cpu", 2, "-1,-1"), ("gpu_1", 1, "0"), ("gpu_n", 8, None)]
)
def test_a_configuration_of_ours_starts_its_processes_and_asks_for_nothing_else(
    name: str, num_processes: int, visible: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    path = CONFIGS / f"{name}.yaml"
    arguments = ["--config_file", str(path), "-m", "hrm_dist.train", "config.yaml"]
    args, _, _ = accelerate_launch._validate_launch_command(
        accelerate_launch.launch_command_parser().parse_args(arguments)
    )
    assert args.num_processes == num_processes
    assert args.multi_gpu == (num_processes > 1)  # the launcher is torchrun's
    environment = environment_of("--config_file", str(path))
    assert environment["ACCELERATE_MIXED_PRECISION"] == "no"
    assert environment.get("CUDA_VISIBLE_DEVICES") == visible
    refuse_accelerate_settings(environment)
    [command] = re.findall(r"^#   accelerate launch (.*)$", path.read_text(), re.MULTILINE)
    named = re.findall(r"configs/\S+", command)
    assert named[0] == f"configs/accelerate/{name}.yaml"
    assert all((CONFIGS.parents[1] / other).exists() for other in named)


def test_the_readme_starts_with_a_configuration_of_ours() -> None:
    readme = (CONFIGS.parents[1] / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"accelerate launch --config_file (\S+) -m hrm_dist\.train", readme)
    assert named
    assert all((CONFIGS.parents[1] / path).exists() for path in named)
