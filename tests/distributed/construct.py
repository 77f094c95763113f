"""A command for tests: construct an engine's network and print the most bytes of weights that this rank held meanwhile.

RANK=... WORLD_SIZE=... python -m tests.distributed.construct CONFIG.yaml [key=value ...]
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from data_pipeline.schema import load_dataset_info
from hrm_dist.config import load_config
from hrm_dist.distributed.process_group import process_group
from hrm_dist.engines.build import build_engine
from hrm_dist.model.initialization import initialize_module
from hrm_dist.model.network import Network


def main() -> int:
    config = load_config(sys.argv[1], sys.argv[2:])
    metadata = load_dataset_info(config.data_path).metadata("train")
    with process_group("cpu", even_alone=True) as world:
        with torch.device("meta"):
            network = Network(config.arch, metadata)
        sizes = [param.numel() * 4 for param in network.parameters()]
        held: list[int] = []

        def init_module(name: str, module: nn.Module, copy: Callable[[Tensor, Tensor], None]) -> None:
            initialize_module(name, module, copy, config.seed)
            held.append(sum(map(held_bytes, network.parameters())))

        engine = build_engine(network, config, world.device, init_module)
        own = sum(shard.data.nbytes for shard in engine.tensor_shards() if shard.key.startswith("model."))
        print(json.dumps({"whole": sum(sizes), "largest": max(sizes), "peak": max(held), "own": own}))
    return 0


def held_bytes(param: Any) -> int:
    """Bytes that this rank has of a parameter, whole or its share."""
    if param.is_meta:
        return 0
    if isinstance(param, DTensor):
        return param.to_local().nbytes
    share = getattr(param, "ds_tensor", None)  # what stage 3 of DeepSpeed leaves in place of the whole
    return param.data.nbytes + (0 if share is None else share.nbytes)


if __name__ == "__main__":
    sys.exit(main())
