import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from zstandard import ZstdDecompressor

from data_pipeline.schema import MAX_GROUPS, GroupTable, ShardIndex, SplitIndex
from data_pipeline.shards.reader import read_shard
from data_pipeline.shards.sample_format import Samples, encode_tar
from data_pipeline.shards.writer import write_shard

SEQ_LEN = 9
GOLDEN_TAR = "2a309fb05ce4d9aee68427ba8568855e47f10f4e2a8449bc91a749a031ac55cb"


def make_samples(num_examples: list[int], seq_len: int = SEQ_LEN, first_group: int = 0) -> Samples:
    """Groups in a row with identifiers of all lengths, their cells drawn at random."""
    counts = np.array(num_examples, dtype=np.int64)
    numbers = np.arange(len(counts))
    bits = np.random.Philox(7).random_raw(int(counts.sum()) * 2 * seq_len) >> np.uint64(60)
    examples = bits.astype(np.uint8).reshape(-1, 2, seq_len)
    return Samples(first_group + numbers, 7 * 10 ** (numbers % 8), counts, examples)


def make_index(samples: Samples, shard: ShardIndex, seq_len: int = SEQ_LEN) -> SplitIndex:
    """The index of a split of one row."""
    ones = np.ones_like(samples.num_examples)
    groups = GroupTable(
        num_puzzles=ones, num_examples=samples.num_examples, first_identifier=ones, names=None
    )
    return SplitIndex(split="train", num_rows=1, canvas=3, seq_len=seq_len, groups=groups, shards=(shard,))


@given(st.lists(st.integers(1, 12), min_size=1, max_size=12), st.sampled_from([1, 9, 81, 900]))
def test_tarfile_and_numpy_read_the_samples(num_examples: list[int], seq_len: int) -> None:
    samples = make_samples(num_examples, seq_len, first_group=42)
    content = encode_tar(123456, samples).tobytes()
    assert len(content) % 10240 == 0
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
        members = tar.getmembers()
        arrays = [np.load(io.BytesIO(tar.extractfile(m).read()), allow_pickle=False) for m in members]  # type: ignore[union-attr]
    assert [member.name for member in members] == [
        f"r123456_g{group:07d}_p{identifier:08d}.npy"
        for group, identifier in zip(samples.groups, samples.identifiers, strict=True)
    ]
    assert {(m.mode, m.uid, m.gid, m.uname, m.gname, m.mtime, m.type) for m in members} == {
        (0o444, 0, 0, "", "", 0, tarfile.REGTYPE)
    }
    assert [len(array) for array in arrays] == num_examples
    np.testing.assert_array_equal(np.concatenate(arrays), samples.examples)


def test_the_bytes_of_a_tar_are_fixed_for_good() -> None:
    # A change here makes every dataset that was built before another one.
    tar = encode_tar(3, make_samples([1, 4, 2]))
    assert hashlib.sha256(tar.data).hexdigest() == GOLDEN_TAR


@given(num_examples=st.lists(st.integers(1, 5), min_size=1, max_size=8))
def test_what_is_written_is_read_back(
    num_examples: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("shard") / "row-0.tar.zst"
    samples = make_samples(num_examples)
    index = write_shard(path, 0, samples)
    shard = read_shard(path.parent, make_index(samples, index), index)
    np.testing.assert_array_equal(shard.identifiers, samples.identifiers)
    np.testing.assert_array_equal(shard.examples(slice(None)), samples.examples)
    last = shard.starts[1:] - 1
    np.testing.assert_array_equal(shard.examples(last), samples.examples[last])


def test_the_index_tells_the_checksums_of_the_file_and_of_the_tar_within(tmp_path: Path) -> None:
    index = write_shard(tmp_path / "row-0.tar.zst", 0, make_samples([3, 3]))
    content = (tmp_path / index.file).read_bytes()
    assert (len(content), hashlib.sha256(content).hexdigest()) == (index.size_bytes, index.sha256)
    assert hashlib.sha256(ZstdDecompressor().decompress(content)).hexdigest() == index.tar_sha256


@pytest.mark.parametrize(("row", "group", "identifier"), [(10**6, 0, 0), (0, 10**7, 0), (0, 0, 10**8)])
def test_a_number_too_long_for_the_key_is_refused(row: int, group: int, identifier: int) -> None:
    samples = make_samples([1], first_group=group)._replace(identifiers=np.array([identifier]))
    with pytest.raises(ValueError, match=f"{max(row, group, identifier)} does not fit"):
        encode_tar(row, samples)


columns = hnp.arrays(np.int32, st.shared(st.integers(0, 20), key="length"), elements=st.integers(1, 3))


@given(columns, columns, columns)
def test_columns_of_groups_survive_json(puzzles: np.ndarray, examples: np.ndarray, first: np.ndarray) -> None:
    table = GroupTable(num_puzzles=puzzles, num_examples=examples, first_identifier=first, names=None)
    again = GroupTable.model_validate_json(table.model_dump_json())
    assert len(again) == len(puzzles)
    np.testing.assert_array_equal(again.num_puzzles, puzzles)
    np.testing.assert_array_equal(again.num_examples, examples)
    np.testing.assert_array_equal(again.first_identifier, first)


def test_four_million_sudokus_take_a_few_bytes_of_the_index() -> None:
    ones = np.ones(4_000_000, dtype=np.int32)
    table = GroupTable(num_puzzles=ones, num_examples=ones, first_identifier=0 * ones, names=None)
    text = table.model_dump_json()
    assert len(text) < 200
    assert len(GroupTable.model_validate_json(text)) == len(ones)


def test_groups_that_cannot_be_are_refused() -> None:
    one = [[1, 1]]
    good = {"num_puzzles": one, "num_examples": one, "first_identifier": one, "names": ["a"]}
    assert len(GroupTable.model_validate(good)) == 1
    for bad in (
        {"num_examples": [[1, 2]]},
        {"names": ["a", "b"]},
        {"num_puzzles": [[0, 1]]},
        {"num_examples": [[-1, 1]]},
        {"num_examples": [[1, 0]]},
        {"num_examples": [[1, MAX_GROUPS + 1]]},
        {"first_identifier": [[2**31, 1]]},
    ):
        with pytest.raises(ValueError, match="GroupTable"):
            GroupTable.model_validate({**good, **bad})
