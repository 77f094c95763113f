"""Winner takes all: of several chains of states the one with the lowest loss is trained, as if it were alone."""

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from hrm_dist.config import ArchConfig
from hrm_dist.config.architectures import ARCHITECTURES
from hrm_dist.evaluation.segment import EvaluationSegment
from hrm_dist.model import build_model
from hrm_dist.model.act import ACTModel, Batch, Carry
from hrm_dist.model.losses import LOSSES, act_loss
from hrm_dist.model.noise import key_of
from tests.unit.models import METADATA, arch_of, let_halting_vary, random_batch
from tests.unit.test_packing import GRID_METADATA, WINDOWS, grid_batch

NUM_CHAINS, SIZE = 3, 6
WITH_STATES = [name for name, known in ARCHITECTURES.items() if known.states]
RANDOM = {"initial_states": "random", "segment_noise": 0.3, "update_noise": 0.1, "damping": 0.8}
KEYS = [key_of(7, segment, torch.arange(SIZE)) for segment in range(2)]
FREE = torch.zeros(SIZE, dtype=torch.int32)


def model_of(name: str, *, packed: bool = False, **fields: object) -> ACTModel:
    arch = arch_of(name, **{**RANDOM, "num_chains": NUM_CHAINS, "halt_max_steps": 4, **fields})
    if packed:
        return build_model(arch, GRID_METADATA, seed=1, windows=WINDOWS)
    model = build_model(arch, METADATA, seed=1)
    let_halting_vary(model)
    return model


def batch_of(model: ACTModel, seed: int = 0) -> Batch:
    return random_batch(SIZE, seed) if model.windows is None else grid_batch(SIZE, seed)


def chain_by_chain(
    model: ACTModel, carries: list[Carry], batch: Batch, keys: Tensor
) -> tuple[list[Carry], Tensor]:
    """Every chain a segment further as if it were alone, and the losses of their answers, [B, K]."""
    losses: list[Tensor] = []
    for chain in range(NUM_CHAINS):
        carries[chain], outputs = model(carries[chain], batch, FREE, noise_keys=key_of(keys, chain))
        labels = carries[chain].current_data["labels"]
        of_cells = LOSSES[model.arch.loss_type].cross_entropy(outputs["logits"], labels)
        losses.append(of_cells.sum(1) / (labels >= 0).sum(1).clamp_min(1))
    return carries, torch.stack(losses, 1)


def begun(model: ACTModel, batch: Batch) -> tuple[Carry, list[Carry]]:
    """All chains in one carry, and each in one of its own, after a segment in which none halts."""
    goes_on = torch.full((SIZE,), 4, dtype=torch.int32)
    with torch.no_grad():
        carry, _ = model(model.initial_carry(batch, NUM_CHAINS), batch, goes_on, noise_keys=KEYS[0])
        alone = [model.initial_carry(batch)] * NUM_CHAINS
        alone, _ = chain_by_chain(model, alone, batch, KEYS[0])
    return carry, [one._replace(halted=carry.halted) for one in alone]


CASES = [
    *((name, False, {}) for name in WITH_STATES),
    ("trm", True, {}),
    ("hrm", True, {}),
    ("trm", False, {"initial_states": "fixed", "update_noise": 0.0}),
    ("trm", False, {"segment_noise": 0.0, "update_noise": 0.0, "damping": 1.0, "mlp_t": True}),
]
each_case = pytest.mark.parametrize(("name", "packed", "fields"), CASES)


@each_case
def test_each_chain_goes_its_way_as_if_it_were_alone(
    name: str, packed: bool, fields: dict[str, object]
) -> None:
    model = model_of(name, packed=packed, **fields)
    batch = batch_of(model)
    carry, alone = begun(model, batch)
    with torch.no_grad():
        carry, _ = model(carry, batch, FREE, noise_keys=KEYS[1])
        alone, _ = chain_by_chain(model, alone, batch, KEYS[1])
    for state, chains in carry.inner_carry._asdict().items():
        assert chains.shape[:2] == (SIZE, NUM_CHAINS)
        for chain, one in enumerate(alone):
            torch.testing.assert_close(chains[:, chain], getattr(one.inner_carry, state))
        assert not torch.allclose(chains[:, 0], chains[:, 1], atol=1e-3)


@each_case
def test_the_chain_of_lowest_loss_is_trained_as_if_it_were_alone(
    name: str, packed: bool, fields: dict[str, object]
) -> None:
    model = model_of(name, packed=packed, **fields)
    batch = batch_of(model)
    carry, alone = begun(model, batch)
    with torch.no_grad():
        _, losses = chain_by_chain(model, [*alone], batch, KEYS[1])
    winners = losses.argmin(1)
    assert len(set(winners.tolist())) > 1

    def gradients(carry: Carry, keys: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        model.zero_grad()
        carry, outputs = model(carry, batch, FREE, noise_keys=keys)
        loss, metrics = act_loss(carry, outputs, model.arch.loss_type)
        loss.backward()
        said = {**outputs, **metrics, "loss": loss, "halted": carry.halted, "steps": carry.steps}
        found = {name: tensor.grad for name, tensor in model.named_parameters() if tensor.grad is not None}
        if model.puzzle_emb is not None:
            [(_, found["puzzle_emb"])] = model.puzzle_emb.gradients
            model.puzzle_emb.gradients = []
        return {key: value.clone() for key, value in found.items()}, said

    of_winners = [
        torch.stack([alone[chain].inner_carry[number][row] for row, chain in enumerate(winners.tolist())])
        for number in range(len(carry.inner_carry))
    ]
    expected = alone[0]._replace(inner_carry=type(carry.inner_carry)(*of_winners))
    found, said = gradients(carry, KEYS[1])
    alone_found, alone_said = gradients(expected, key_of(KEYS[1], winners))
    for ours, theirs in ((found, alone_found), (said, alone_said)):
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            torch.testing.assert_close(value, theirs[key], msg=lambda text, key=key: f"{key}: {text}")


def test_a_part_of_the_slots_is_computed_as_all_are() -> None:
    model = model_of("trm")
    batch = batch_of(model)
    carry, _ = begun(model, batch)
    some = slice(2, 5)
    part = Carry(
        type(carry.inner_carry)(*(state[some] for state in carry.inner_carry)),
        carry.steps[some],
        carry.halted[some],
        {key: value[some] for key, value in carry.current_data.items()},
    )
    with torch.no_grad():
        whole, outputs = model(carry, batch, FREE, noise_keys=KEYS[1])
        of_part = {key: value[some] for key, value in batch.items()}
        ended, found = model(part, of_part, FREE[some], noise_keys=KEYS[1][some])
    torch.testing.assert_close(found["logits"], outputs["logits"][some])
    torch.testing.assert_close(ended.inner_carry[0], whole.inner_carry[0][some])


def test_in_evaluation_there_is_one_chain() -> None:
    several, one = model_of("trm").eval(), model_of("trm", num_chains=1).eval()
    batch = batch_of(several) | {"noise_keys": KEYS[0]}
    answers: list[Tensor] = []
    for model in (several, one):
        segment = EvaluationSegment(model, SIZE, torch.device("cpu"))
        segment.refill(batch, torch.ones(SIZE, dtype=torch.bool))
        segment()
        answers.append(segment.q_halt_logits)
    assert torch.equal(*answers)


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("hrm", {"num_chains": 2}, "set arch.initial_states=random"),
        ("trm", {"num_chains": 2, "damping": 0.9}, "set arch.initial_states=random"),
        ("transformer", {"num_chains": 2}, "it can only be 1"),
        ("trm", {"num_chains": 0, "initial_states": "random"}, "greater than or equal to 1"),
    ],
)
def test_chains_that_would_stay_alike_are_refused(name: str, fields: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ArchConfig.model_validate({"name": name, **fields})
