import numpy as np
import pytest

from flaxformer.decoding import Greedy, bucketed, generate
from flaxformer.decoding.buckets import bucket_size, pad_rows
from tests.decoding.tiny import TinyLanguageModel, tiny


def test_sizes_are_powers_of_two_or_those_given():
    assert [bucket_size(n) for n in (0, 1, 2, 3, 4, 5)] == [1, 1, 2, 4, 4, 8]
    assert bucket_size(5, (16, 6)) == 6
    with pytest.raises(ValueError, match="longest row has 7 tokens; expected at most 6"):
        bucket_size(7, (3, 6))


def test_rows_are_filled_up_to_bucket_and_batch():
    tokens, valid = pad_rows([[5], [6, 7, 8]], pad_id=9, batch=3)
    np.testing.assert_array_equal(tokens, [[5, 9, 9, 9], [6, 7, 8, 9], [6, 7, 8, 9]])
    np.testing.assert_array_equal(valid.sum(axis=1), [1, 3, 3])


def test_lengths_of_one_bucket_share_a_compilation_and_results_do_not_change():
    traced = []

    class Traced(TinyLanguageModel):
        def __call__(self, *args, **kwargs):
            traced.append(1)
            return super().__call__(*args, **kwargs)

    _, variables = tiny()
    options = {"strategy": Greedy(), "max_new_tokens": 3, "eos_id": 1}
    first = generate(Traced(), variables, bucketed([[3, 4, 5], [5]], buckets=(4, 8)), **options)
    count = len(traced)
    for prompts in ([[3, 4, 5, 2], [5, 2, 3, 4]], [[], [5]], [[3, 4, 5], [6, 7]]):
        last = generate(Traced(), variables, bucketed(prompts, buckets=(4, 8)), **options)
    assert len(traced) == count > 0
    np.testing.assert_array_equal(first.tokens[0], last.tokens[0])


def test_what_cannot_work_is_refused():
    with pytest.raises(ValueError, match="there are 0 rows; expected at least one"):
        pad_rows([])
    with pytest.raises(ValueError, match="there are 2 rows; expected at least one and at most 1"):
        pad_rows([[1], [2]], batch=1)
    with pytest.raises(ValueError, match="None prompts and None sources were given"):
        bucketed()
    with pytest.raises(ValueError, match="1 prompts and 2 sources were given"):
        bucketed([[1]], [[1], [2]])
