"""Small models and random batches for them."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from data_pipeline.schema import IGNORE_LABEL_ID, DatasetMetadata, load_dataset_info
from hrm_dist.config import ArchConfig
from hrm_dist.config.architectures import ARCHITECTURES
from hrm_dist.model import build_model
from hrm_dist.model.act import ACTModel, Batch
from hrm_dist.model.layers import QHead, checkpoint_activations
from hrm_dist.model.losses import act_loss
from hrm_dist.model.network import Network

METADATA = DatasetMetadata(
    seq_len=20,
    vocab_size=12,
    pad_id=0,
    ignore_label_id=0,
    blank_identifier_id=0,
    num_puzzle_identifiers=5,
    total_groups=4,
    mean_puzzle_examples=1.0,
    sets=("all",),
)


def arch_of(name: str, **fields: object) -> ArchConfig:
    known = ARCHITECTURES[name]
    small = {"hidden_size": 32, "num_heads": 2, "L_layers": 1, "forward_dtype": "float32"}
    small |= {level.num_layers: 1 for level in known.levels.values()}
    prefix = {"puzzle_emb_len": 2} if "puzzle_emb_len" in known.defaults else {}
    return ArchConfig.model_validate({"name": name, **small, **prefix, **fields})


def random_batch(size: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def tokens() -> Tensor:
        shape = (size, METADATA.seq_len)
        return torch.randint(0, METADATA.vocab_size, shape, generator=generator, dtype=torch.int32)

    identifiers = torch.randint(0, METADATA.num_puzzle_identifiers, (size,), generator=generator)
    labels = torch.where(tokens() < 2, IGNORE_LABEL_ID, tokens())
    return {"inputs": tokens(), "labels": labels, "puzzle_identifiers": identifiers.to(torch.int32)}


def let_halting_vary(model: ACTModel) -> None:
    """Random Q-head and puzzle table; at first every Q-value is -5."""
    generator = torch.Generator().manual_seed(0)
    head = next(module for module in model.modules() if isinstance(module, QHead))
    nn.init.zeros_(head.get_parameter("bias"))
    assert model.puzzle_emb is not None
    for tensor in (head.get_parameter("weight"), model.puzzle_emb.weights):
        tensor.data.copy_(torch.randn(tensor.shape, generator=generator))


def halting_model(dataset: Path, **fields: object) -> ACTModel:
    """Return an HRM for a dataset, of at most four segments, whose Q-values vary; in evaluation mode."""
    metadata = load_dataset_info(dataset).metadata("train")
    model = build_model(arch_of("hrm", halt_max_steps=4, **fields), metadata, seed=3)
    let_halting_vary(model)
    return model.eval()


def segment_loss(model: ACTModel, batch: Batch) -> Tensor:
    carry = model.initial_carry(batch, model.arch.num_chains)
    carry, outputs = model(carry, batch, noise_keys=torch.arange(len(carry.steps)))
    return act_loss(carry, outputs, model.arch.loss_type)[0]


def saved_bytes(
    arch: ArchConfig, batch_size: int, checkpointing: bool = False, *, compiled: bool = False
) -> int:
    """Bytes of all storages, parameters apart, that the graph of one segment and its loss holds.

    compiled: as the levels keep them that Inductor compiles, whose partitioner decides that.
    """
    model = build_model(arch, METADATA)
    if checkpointing:
        checkpoint_activations(model)
    if compiled:
        torch._dynamo.reset()
        network = model.get_submodule("network")
        assert isinstance(network, Network)
        for level in network.levels().values():
            level.compile(backend="aot_eager_decomp_partition", fullgraph=True, dynamic=False)
    own = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = segment_loss(model, random_batch(batch_size, seed=0))
    total = sum(storage.nbytes() for storage in storages.values())
    del loss
    return total
