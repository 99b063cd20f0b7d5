import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.hash_embedding import HashEmbed, NgramHashEmbed, first_primes

IDS = jnp.array([[5, 9, 2, 7]])


def test_primes():
    assert first_primes(9) == [2, 3, 5, 7, 11, 13, 17, 19, 23]


def test_each_table_is_read_at_its_own_hash():
    embed = HashEmbed(features=4, num_embeddings_per_table=7, num_tables=2)
    y, variables = embed.init_with_output(jax.random.key(0), IDS)
    tables = [variables["params"][f"hash_embedder_table_{i}"]["embedding"] for i in range(2)]
    expected = np.concatenate([tables[0][(IDS + 1) * 31 % 7], tables[1][(IDS + 1) * 43 % 7]], axis=-1)
    np.testing.assert_array_equal(y, expected)


def test_hashes_wrap_around_and_stay_inside_the_table():
    embed = HashEmbed(features=1, num_embeddings_per_table=7, num_tables=1, one_hot=True, embedding_init=nonzero)
    ids = jnp.array([2**31 - 2, -5, 2**30], jnp.int32)
    assert embed.init_with_output(jax.random.key(0), ids)[0].all()  # a one-hot lookup outside the table gives zeros


def nonzero(key, shape, dtype):
    return jnp.ones(shape, dtype)


def ngram_hashes(ids, order, prime, padding):
    """The definition, one position after another."""
    padded = [*ids, *[padding] * order]
    hashes = []
    for start in range(len(ids)):
        value = 0
        for token in padded[start : start + order]:
            value = (value + token) * prime
        hashes.append(value)
    return np.array(hashes)


def test_ngrams_follow_the_definition():
    embed = NgramHashEmbed([1, 3], padding_id=3, features=4, num_embeddings_per_table=11, num_tables=2)
    y, variables = embed.init_with_output(jax.random.key(0), IDS[0])
    expected = 0
    for order in (1, 3):
        tables = [variables["params"][f"{order}gram_hash_embed_table_{i}"]["embedding"] for i in range(2)]
        rows = [ngram_hashes(IDS[0].tolist(), order, prime, 3) % 11 for prime in (2, 3)]
        expected += np.concatenate([table[row] for table, row in zip(tables, rows, strict=True)], axis=-1)
    np.testing.assert_allclose(y, expected, rtol=1e-6)


def test_packed_sequences_embed_as_if_apart():
    embed = NgramHashEmbed([2, 3], padding_id=0, features=2, num_embeddings_per_table=11, num_tables=1)
    packed, segments = jnp.array([[5, 9, 2, 7]]), jnp.array([[1, 1, 2, 2]])
    variables = embed.init(jax.random.key(0), packed)
    apart = [embed.apply(variables, packed[:, :2]), embed.apply(variables, packed[:, 2:])]
    together = embed.apply(variables, packed, segment_ids=segments)
    np.testing.assert_array_equal(together, jnp.concatenate(apart, axis=1))
    assert (embed.apply(variables, packed) != together).any()


@pytest.mark.parametrize(
    "embed", [HashEmbed(7, 5, num_tables=2), NgramHashEmbed([1], 0, features=7, num_embeddings_per_table=5)]
)
def test_tables_must_share_the_features_evenly(embed):
    with pytest.raises(ValueError, match=r"features is 7, which \d tables cannot share.*multiple of num_tables"):
        embed.init(jax.random.key(0), IDS)


@pytest.mark.parametrize("embed", [HashEmbed(8, 5), NgramHashEmbed([1, 2], 0, features=8, num_embeddings_per_table=5)])
def test_float_ids_need_a_cast(embed):
    with pytest.raises(ValueError, match="ids have dtype float32; expected an integer"):
        embed.init(jax.random.key(0), jnp.ones((1, 2)))
    cast = embed.clone(cast_input_dtype="int32", dtype="bfloat16")
    assert cast.init_with_output(jax.random.key(0), jnp.ones((1, 2)))[0].dtype == jnp.bfloat16
