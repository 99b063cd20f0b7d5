import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.embedding import (
    DictEmbedder,
    Embed,
    EmbedCombineMethod,
    Embedder,
    EmbedderWithDecode,
    EmbedderWithDeterministic,
    MultiEmbed,
)

IDS = jnp.array([[0, 1, 2]])


class Recorder(nn.Module, Embedder):
    """Returns ids as vectors and notes the keywords it was called with."""

    def __call__(self, inputs, **keywords):
        self.sow("intermediates", "keywords", tuple(sorted(keywords)))
        return jnp.asarray(inputs)[..., None].astype(jnp.float32)


class DecodeRecorder(Recorder, EmbedderWithDecode):
    pass


class DeterministicRecorder(Recorder, EmbedderWithDeterministic):
    pass


def multi_embed(**options):
    return MultiEmbed({"b": Recorder(), "a": Recorder()}, **options)


def test_sum_adds_and_concat_follows_the_sorted_names():
    np.testing.assert_array_equal(multi_embed().apply({}, b=IDS, a=10 * IDS)[0, :, 0], [0, 11, 22])
    joined = multi_embed().apply({}, EmbedCombineMethod.CONCAT, b=IDS, a=10 * IDS)
    np.testing.assert_array_equal(joined[0], [[0, 0], [10, 1], [20, 2]])


def test_embedders_without_an_input_are_skipped():
    np.testing.assert_array_equal(multi_embed().apply({}, b=IDS)[0, :, 0], [0, 1, 2])


def test_an_embedder_named_segment_ids_is_fed_from_the_argument():
    embed = MultiEmbed({"token_ids": Recorder(), "segment_ids": Recorder()})
    np.testing.assert_array_equal(embed.apply({}, token_ids=IDS, segment_ids=10 * IDS)[0, :, 0], [0, 11, 22])
    np.testing.assert_array_equal(embed.apply({}, token_ids=IDS)[0, :, 0], [0, 1, 2])


@pytest.mark.parametrize(
    ("embedder", "keywords"),
    [
        (Recorder, ("segment_ids",)),
        (DecodeRecorder, ("decode", "segment_ids")),
        (DeterministicRecorder, ("deterministic", "segment_ids")),
    ],
)
def test_keywords_are_passed_by_the_kind_of_embedder(embedder, keywords):
    _, state = MultiEmbed({"x": embedder()}).apply({}, x=IDS, decode=True, mutable=["intermediates"])
    assert state["intermediates"]["embedders_x"]["keywords"] == (keywords,)


def test_plain_modules_and_functions_get_the_ids_alone():
    embed = MultiEmbed({"x": nn.Embed(3, 2), "y": lambda ids: jnp.ones((*ids.shape, 2))})
    y, variables = embed.init_with_output(jax.random.key(0), x=IDS, y=IDS, decode=True, segment_ids=IDS)
    np.testing.assert_allclose(y, variables["params"]["embedders_x"]["embedding"][IDS] + 1)


def test_gradient_variable_holds_the_gradient_of_the_embedded_input():
    embed = multi_embed(sow_intermediates=True, capture_gradients=True)
    variables = embed.init(jax.random.key(0), a=IDS)
    assert variables["grads_axes"]["output_grad_axes"].names == ("batch", "length", "embed")

    def loss(grads):
        y, _ = embed.apply({"grads": grads}, a=IDS, mutable=["grads", "intermediates"])
        return (y**2).sum()

    gradient = jax.grad(loss)(variables["grads"])["output_grad"]
    np.testing.assert_array_equal(gradient[0, :, 0], [0, 2, 4])


def test_gradient_variable_is_absent_where_grads_is_immutable():
    embed = multi_embed(sow_intermediates=True, capture_gradients=True)
    _, state = embed.apply({}, a=IDS, mutable=["intermediates"])
    assert set(state) == {"intermediates"}
    np.testing.assert_array_equal(state["intermediates"]["output"][0][0, :, 0], [0, 1, 2])


def test_unknown_inputs_are_refused_as_value_and_key_error():
    for error in (ValueError, KeyError):
        with pytest.raises(error, match=r"inputs \['z'\] have no embedder; expected names among \['a', 'b'\]"):
            multi_embed().apply({}, z=IDS)


def test_unknown_methods_are_refused():
    with pytest.raises(ValueError, match="combine_method is 'other'; expected EmbedCombineMethod.SUM"):
        multi_embed().apply({}, "other", a=IDS)


def test_nothing_to_combine_is_refused():
    with pytest.raises(ValueError, match=r"no embeddings to combine; expected at least one of \['a', 'b'\]"):
        multi_embed().apply({})


def test_capturing_gradients_needs_sowing():
    with pytest.raises(ValueError, match="capture_gradients=True came with sow_intermediates=False"):
        multi_embed(capture_gradients=True).apply({}, a=IDS)


def test_dict_embedder_combines_in_the_order_of_the_inputs():
    embed = DictEmbedder({"a": Embed(3, 2), "b": nn.Embed(3, 2)}, embeddings_combiner=jnp.concatenate)
    y, variables = embed.init_with_output(jax.random.key(0), {"b": IDS[0], "a": IDS[0]})
    tables = [variables["params"][f"embedders_{name}"]["embedding"] for name in ("b", "a")]
    np.testing.assert_array_equal(y, jnp.concatenate(tables))


def test_dict_embedder_passes_the_keywords_an_embedder_names():
    class Decoding(nn.Module):
        def __call__(self, inputs, *, decode, segment_ids, enable_dropout):
            return jnp.array([decode, enable_dropout, segment_ids.sum()])

    y = DictEmbedder({"a": Decoding()}).apply({}, {"a": IDS}, segment_ids=IDS, decode=True, enable_dropout=False)
    np.testing.assert_array_equal(y, [1, 0, 3])


def test_dict_embedder_refuses_other_names():
    with pytest.raises(ValueError, match=r"inputs are named \['c'\]; expected one for each embedder: \['a'\]"):
        DictEmbedder({"a": Embed(3, 2)}).init(jax.random.key(0), {"c": IDS})
