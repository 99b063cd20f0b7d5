import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import partitioning

from flaxformer.components import token_embedding
from flaxformer.components.token_embedding import Embed

TABLE = np.arange(20, dtype=np.float32).reshape(5, 4) / 3
VARIABLES = {"params": {"embedding": jnp.asarray(TABLE)}}


def test_gather_and_one_hot_agree_on_valid_ids():
    ids = jnp.array([[0, 4], [2, 2]])
    gathered = Embed(5, 4).apply(VARIABLES, ids)
    np.testing.assert_array_equal(gathered, TABLE[np.asarray(ids)])
    np.testing.assert_array_equal(Embed(5, 4, one_hot=True).apply(VARIABLES, ids), gathered)


def test_out_of_range_ids_clamp_when_gathered_and_vanish_when_one_hot():
    ids = jnp.array([-1, 5, 99, -9])
    np.testing.assert_array_equal(Embed(5, 4).apply(VARIABLES, ids), TABLE[[4, 4, 4, 0]])
    assert not Embed(5, 4, one_hot=True).apply(VARIABLES, ids).any()


@pytest.mark.parametrize("shape", [(), (3,), (2, 1, 3), (0, 4)])
def test_ids_of_any_rank(shape):
    assert Embed(5, 4).apply(VARIABLES, jnp.zeros(shape, jnp.int32)).shape == (*shape, 4)


@pytest.mark.parametrize("one_hot", [False, True])
def test_parameters_stay_float32_and_results_take_the_named_dtype(one_hot):
    embed = Embed(5, 4, dtype="bfloat16", one_hot=one_hot)
    y, variables = embed.init_with_output(jax.random.key(0), jnp.array([1]))
    assert y.dtype == jnp.bfloat16
    assert variables["params"]["embedding"].dtype == jnp.float32
    assert variables["params_axes"]["embedding_axes"].names == ("vocab", "embed")


def test_attend_is_the_product_with_every_row():
    query = jnp.ones((2, 3, 4), jnp.bfloat16)
    scores = Embed(5, 4, dtype="bfloat16", attend_dtype="float32").apply(VARIABLES, query, method="attend")
    np.testing.assert_allclose(scores, jnp.ones((2, 3, 4)) @ TABLE.T, rtol=1e-6)
    assert scores.dtype == jnp.float32


def test_gradient_is_the_same_gathered_or_one_hot():
    ids, weights = jnp.array([1, 1, 3]), jnp.arange(12.0).reshape(3, 4)

    def gradient(one_hot):
        embed = Embed(5, 4, one_hot=one_hot)
        return jax.grad(lambda v: (embed.apply(v, ids) * weights).sum())(VARIABLES)["params"]["embedding"]

    np.testing.assert_allclose(gradient(False), gradient(True), rtol=1e-6)


def test_float_ids_need_a_cast():
    np.testing.assert_array_equal(Embed(5, 4, cast_input_dtype="int32").apply(VARIABLES, jnp.array([2.0])), TABLE[[2]])
    with pytest.raises(ValueError, match="ids have dtype float32; expected an integer"):
        Embed(5, 4).apply(VARIABLES, jnp.array([2.0]))


@pytest.mark.parametrize(
    ("options", "call", "expected"),
    [
        ({}, {}, [("batch", "length", "embed")]),
        ({"one_hot": True}, {}, [("batch", "length", "vocab"), ("batch", "length", "embed")]),
        ({}, {"input_axis_names": ["rows", "columns"]}, [("rows", "columns", "embed")]),
        ({"input_axis_names": None}, {}, []),
    ],
)
def test_activations_are_constrained_by_the_names_of_the_ids(monkeypatch, options, call, expected):
    seen = []
    monkeypatch.setattr(
        token_embedding.partitioning, "with_sharding_constraint", lambda x, names, **_: seen.append(tuple(names)) or x
    )
    Embed(5, 4, **options).apply(VARIABLES, jnp.zeros((1, 2), jnp.int32), **call)
    assert [names for names in seen if names != ("vocab", "embed")] == expected


def test_the_lookup_is_the_same_sharded_over_eight_devices():
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    ids = jnp.arange(8).reshape(4, 2) % 5
    embed = Embed(8, 4)
    variables = {"params": {"embedding": jnp.asarray(np.arange(32, dtype=np.float32).reshape(8, 4))}}
    with jax.set_mesh(mesh), partitioning.axis_rules([("batch", "data"), ("vocab", "model"), ("embed", None)]):
        sharded = jax.jit(embed.apply)(variables, ids)
    np.testing.assert_array_equal(sharded, embed.apply(variables, ids))
