"""What every public part promises: jit, gradients, bfloat16, vmap, scan, remat, and that each field means something."""

import dataclasses
import importlib
import pkgutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxformer
from tests.contracts.parts import PARTS, UNUSED, Part

KEY = jax.random.key(0)
RNGS = {"params": KEY, "dropout": jax.random.key(1)}
WITH_FLOATS = [
    name for name, part in PARTS.items() if hasattr(part.args[0], "dtype") and part.args[0].dtype == "float32"
]
SAME_SHAPE = ["MlpBlock", "T5LayerNorm", "Depthwise1dConv", "MultiHeadDotProductAttention", "EncoderLayer"]


def arguments(part: Part, x=None):
    first = part.args[0] if x is None else x
    return [first if isinstance(arg, str) else arg for arg in (first, *part.args[1:])]


def fingerprint(part: Part, overrides: dict) -> str:
    """Everything that initialising and training the part would do, without doing it."""
    module, axes = part.module(**overrides), {}

    def run(rngs):
        output, variables = module.init_with_output(rngs, *arguments(part), mutable=True, **part.keywords)
        axes["params_axes"] = jax.tree.map(str, variables.pop("params_axes", {}), is_leaf=lambda x: hasattr(x, "names"))
        axes["shapes"] = str(jax.tree.map(lambda x: (x.shape, str(x.dtype)), variables))
        return output, variables

    program = jax.make_jaxpr(run)(RNGS)
    axes["outputs"] = str(jax.tree.structure(jax.eval_shape(run, RNGS)[0]))
    constants = [np.asarray(c).tobytes() for c in program.consts]
    return f"{program.jaxpr}{axes}{constants}"


@pytest.mark.parametrize("name", PARTS)
def test_every_field_changes_something(name):
    part = PARTS[name]
    fields = {f.name for f in dataclasses.fields(part.make) if f.name not in ("parent", "name")}
    assert fields == set(part.fields), "the table and the class must list the same fields"
    for field, value in part.fields.items():
        if value is UNUSED:
            continue
        value, context = value if isinstance(value, tuple) and isinstance(value[-1], dict) else (value, {})
        before, after = fingerprint(part, context), fingerprint(part, {**context, field: value})
        assert before != after, f"{name}.{field}={value!r} changes nothing"


@pytest.mark.parametrize("name", WITH_FLOATS)
def test_compiled_equals_eager_and_every_parameter_learns(name):
    part = PARTS[name]
    module = part.module()
    params = module.init(RNGS, *arguments(part), **part.keywords).get("params", {})

    def run(params, x):
        output = module.apply({"params": params}, *arguments(part, x), rngs={"dropout": KEY}, **part.keywords)
        return jnp.sum(output.astype(jnp.float32) ** 2), output

    eager = run(params, part.args[0])[1]
    (_, compiled), gradients = jax.jit(jax.value_and_grad(run, (0, 1), has_aux=True))(params, part.args[0])
    np.testing.assert_allclose(compiled, eager, atol=2e-5, rtol=2e-5)
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(gradient).all() and np.any(gradient != 0), jax.tree_util.keystr(path)


@pytest.mark.parametrize("name", WITH_FLOATS)
def test_bfloat16_is_close_and_keeps_parameters_in_float32(name):
    part = PARTS[name]
    if "dtype" not in part.fields or part.fields["dtype"] is UNUSED:
        pytest.skip("computes in the type of its parts")
    rngs = {"dropout": KEY}
    variables = part.module().init(RNGS, *arguments(part))
    half = part.module(dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(half.init(RNGS, *arguments(part))["params"])} == {jnp.dtype("float32")}
    output = half.apply({"params": variables["params"]}, *arguments(part), rngs=rngs)
    expected = part.module().apply({"params": variables["params"]}, *arguments(part), rngs=rngs)
    assert output.dtype == jnp.bfloat16
    np.testing.assert_allclose(output.astype(np.float32), expected, atol=0.05 * float(jnp.abs(expected).max()))


@pytest.mark.parametrize("name", WITH_FLOATS)
def test_vmap_equals_one_by_one(name):
    part = PARTS[name]
    module = part.module()
    params = module.init(RNGS, *arguments(part)).get("params", {})
    batch = jnp.stack([part.args[0], part.args[0][::-1] * 0.5])

    def run(x):
        return module.apply({"params": params}, *arguments(part, x), rngs={"dropout": KEY})

    mapped = jax.vmap(run)(batch)
    for x, y in zip(batch, mapped, strict=True):
        np.testing.assert_allclose(y, run(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", SAME_SHAPE)
def test_scanned_and_rematerialised_equals_repeated(name):
    part = PARTS[name]

    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x):
            def body(module, x):
                return module(*arguments(part, x)), None

            scanned = nn.scan(
                nn.remat(body),
                variable_axes={"params": 0},
                variable_broadcast="params_axes",
                split_rngs={"params": True, "dropout": False},
                length=2,
            )
            return scanned(part.module(), x)[0]

    x = part.args[0]
    params = Stack().init(RNGS, x)["params"]
    (inner,) = params.values()

    def one(x, i):
        layer = jax.tree.map(lambda p: p[i], inner)
        return part.module().apply({"params": layer}, *arguments(part, x), rngs={"dropout": KEY})

    stacked = Stack().apply({"params": params}, x, rngs={"dropout": KEY})
    if name in ("MlpBlock", "EncoderLayer"):  # dropout keys are folded differently inside a scan
        assert stacked.shape == x.shape and np.isfinite(stacked).all()
        return
    np.testing.assert_allclose(stacked, one(one(x, 0), 1), atol=2e-5, rtol=2e-5)


def modules():
    return [
        info.name for info in pkgutil.walk_packages(flaxformer.__path__, "flaxformer.") if "__main__" not in info.name
    ]


@pytest.mark.parametrize("name", modules())
def test_every_module_says_what_it_is_for(name):
    assert importlib.import_module(name).__doc__
