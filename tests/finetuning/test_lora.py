"""Adapters on every kind of kernel of one tiny model, listed and scanned."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.linen import partitioning
from safetensors.numpy import save_file

from flaxformer import configs
from flaxformer.finetuning import LoRA, load_adapters, save_adapters
from flaxformer.finetuning.paths import flatten

LORA = LoRA([".*attention/(query|value|out)/kernel", ".*/mlp/wo/kernel"], rank=2, alpha=4.0)
TOKENS = jnp.arange(1, 9).reshape(2, 4)
CALL = (TOKENS, TOKENS, TOKENS)


@pytest.fixture(scope="module")
def model():
    return configs.load("t5_1_1/tiny", bindings=["DROPOUT_RATE = 0.0", "ACTIVATION_DTYPE = 'float32'"])


@pytest.fixture(scope="module")
def variables(model):
    return jax.jit(lambda: model.init(jax.random.key(0), *CALL, enable_dropout=False))()


@pytest.fixture(scope="module")
def adapters(variables):
    return LORA.init(jax.random.key(1), variables)


def random_like(adapters):
    leaves, structure = jax.tree.flatten(adapters)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    return jax.tree.unflatten(structure, [jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)])


def test_new_adapters_change_nothing(variables, adapters):
    merged = LORA.merge(variables["params"], adapters)
    jax.tree.map(np.testing.assert_array_equal, merged, dict(variables["params"]))


def test_training_the_adapters_lowers_the_loss_and_leaves_the_parameters(model, variables, adapters):
    optimizer = optax.adam(1e-2)

    def loss(adapters):
        logits = model.apply({"params": LORA.merge(variables["params"], adapters)}, *CALL, enable_dropout=False)
        return optax.softmax_cross_entropy_with_integer_labels(logits, TOKENS).mean()

    @jax.jit
    def step(adapters, state):
        value, gradients = jax.value_and_grad(loss)(adapters)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(adapters, updates), state, value

    state, losses = optimizer.init(adapters), []
    for _ in range(5):
        adapters, state, value = step(adapters, state)
        losses.append(float(value))
    assert losses[-1] < losses[0]
    before, after = (flatten(tree) for tree in (variables["params"], LORA.merge(variables["params"], adapters)))
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    assert changed == set(adapters)


def test_the_merged_kernel_is_the_sum_and_unmerging_takes_it_out(variables, adapters):
    adapters = random_like(adapters)
    merged = LORA.merge(variables["params"], adapters)
    path = "decoder/layers_0/self_attention/query/kernel"
    a, b = (np.asarray(adapters[path][name], np.float64)[0] for name in "ab")
    kernel = flatten(variables["params"])[path]
    expected = kernel + 4.0 / 2 * (a @ b).reshape(kernel.shape)
    np.testing.assert_allclose(flatten(merged)[path], expected, rtol=1e-5, atol=1e-5)
    back = LORA.unmerge(merged, adapters)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-6), back, dict(variables["params"]))


def test_stacked_layers_have_adapters_of_their_own():
    kernel = jnp.zeros((3, 2, 4))  # [embed layers mlp]
    axes = {"wi": {"kernel_axes": partitioning.AxisMetadata(names=("embed", "layers", "mlp"))}}
    lora = LoRA(["wi/kernel"], rank=1)
    adapters = lora.init(jax.random.key(0), {"params": {"wi": {"kernel": kernel}}, "params_axes": axes})
    assert adapters["wi/kernel"]["a"].shape == (2, 3, 1) and adapters["wi/kernel"]["b"].shape == (2, 1, 4)
    adapters = random_like(adapters)
    merged = lora.merge({"wi": {"kernel": kernel}}, adapters)["wi"]["kernel"]
    for layer in range(2):
        a, b = (adapters["wi/kernel"][name][layer] for name in "ab")
        np.testing.assert_allclose(merged[:, layer], a @ b, rtol=1e-6)


def test_kernels_by_head_are_folded_at_the_model_width():
    shapes = {"query": ((4, 2, 3), ("embed", "heads", "kv")), "out": ((2, 3, 4), ("heads", "kv", "embed"))}
    variables = {
        "params": {name: {"kernel": jnp.ones(shape)} for name, (shape, _) in shapes.items()},
        "params_axes": {name: {"kernel_axes": partitioning.AxisMetadata(names=n)} for name, (_, n) in shapes.items()},
    }
    adapters = LoRA([".*"], rank=1).init(jax.random.key(0), variables)
    assert adapters["query/kernel"]["a"].shape == (1, 4, 1) and adapters["query/kernel"]["b"].shape == (1, 1, 6)
    assert adapters["out/kernel"]["a"].shape == (1, 6, 1) and adapters["out/kernel"]["b"].shape == (1, 1, 4)


def test_adapters_are_saved_apart_bit_for_bit(tmp_path, adapters):
    adapters = random_like(adapters)
    save_adapters(tmp_path / "adapters.safetensors", LORA, adapters)
    assert [path.name for path in tmp_path.iterdir()] == ["adapters.safetensors"]
    lora, loaded = load_adapters(tmp_path / "adapters.safetensors")
    assert lora == LORA
    jax.tree.map(np.testing.assert_array_equal, loaded, adapters)


def test_a_foreign_or_damaged_file_is_refused(tmp_path, adapters):
    save_file({"x": np.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match=r"foreign.safetensors says nothing of adapters"):
        load_adapters(tmp_path / "foreign.safetensors")
    save_adapters(tmp_path / "whole", LORA, adapters)
    (tmp_path / "cut").write_bytes((tmp_path / "whole").read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"cut cannot be read"):
        load_adapters(tmp_path / "cut")


def test_what_does_not_fit_is_refused(variables, adapters):
    with pytest.raises(ValueError, match="rank is 0; expected at least 1"):
        dataclasses.replace(LORA, rank=0)
    with pytest.raises(ValueError, match=r"encoder/encoder_norm/scale has shape .*; expected a kernel"):
        LoRA(["encoder/encoder_norm/scale"]).init(jax.random.key(0), variables)
    with pytest.raises(ValueError, match=r"x has shape \(2, 2, 2\) and no axis names"):
        LoRA(["x"]).init(jax.random.key(0), {"params": {"x": jnp.ones((2, 2, 2))}})
    with pytest.raises(ValueError, match="expected stacked layers on axis 1"):
        axes = {"x_axes": partitioning.AxisMetadata(names=("layers", "embed", "mlp"))}
        LoRA(["x"]).init(jax.random.key(0), {"params": {"x": jnp.ones((2, 2, 2))}, "params_axes": axes})
    with pytest.raises(ValueError, match="adapters for other/kernel, which the parameters lack"):
        LORA.merge(variables["params"], {"other/kernel": next(iter(adapters.values()))})
    small = {path: jnp.ones((3, 3)) for path in adapters}
    with pytest.raises(ValueError, match=r"has shape \(3, 3\), its adapters fit"):
        LORA.merge(small, adapters)
