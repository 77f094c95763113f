import numpy as np

from data_pipeline.base.random import random_bits, stream_key, words_at


def test_philox_gives_the_words_of_numpy() -> None:
    key = stream_key(3, "x")
    first = np.array([0, 5, 2**63, 2**64 - 2, 2**64 - 1], dtype=np.uint64)
    second = np.array([7, 0, 9, 2**64 - 1, 1], dtype=np.uint64)
    for f, s, words in zip(first, second, words_at(first, second, key), strict=True):
        numpy_philox = np.random.Philox(
            key=np.array(key, dtype=np.uint64), counter=np.array([f, s, 0, 0], dtype=np.uint64)
        )
        np.testing.assert_array_equal(numpy_philox.random_raw(4), words)
    np.testing.assert_array_equal(words_at(np.array([0]), 0, key)[0], random_bits(4, 3, "x"))
