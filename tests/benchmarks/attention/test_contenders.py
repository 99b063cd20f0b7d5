import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.attention import contenders
from benchmarks.attention.contenders import Function, HeadsModule, Layer
from benchmarks.attention.workload import Workload
from flaxformer.components.attention.dense_attention import MultiHeadDotProductAttention
from flaxformer.components.attention.kernels.biases import TableBias
from flaxformer.components.attention.masks import Causal

SMALL = {"length": 16, "batch": 2, "heads": 4, "head_dim": 8}
WORKLOADS = [
    Workload("forward", kv_heads=1, **SMALL),
    Workload("forward", mask="window:5", bias="t5", **SMALL),
    Workload("forward", mask="segments:3", bias="array", **SMALL),
    Workload("decode", mask="window:5", bias="alibi", kv_heads=2, **SMALL),
]


def output(contender, workload):
    learned, given = contender.inputs(workload, workload.arrays())
    return jax.jit(lambda learned, given: contender.attend(workload, learned, given))(learned, given)


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_kernels_and_other_libraries_compute_the_same(workload):
    expected = output(contenders.kernel("reference"), workload)
    for contender in contenders.PEERS.values():
        np.testing.assert_allclose(output(contender, workload), expected, atol=1e-5, err_msg=contender.name)


def test_only_a_learned_bias_is_learned():
    for bias, learns in (("t5", True), ("alibi", False)):
        workload = Workload("backward", bias=bias, **SMALL)
        learned, given = contenders.kernel("auto").inputs(workload, workload.arrays())
        assert ("bias" in learned, "bias" in given) == (learns, not learns)


def test_decoding_reads_keys_as_the_caches_hold_them():
    workload = Workload("decode", **SMALL)
    learned, _ = contenders.kernel("auto").inputs(workload, workload.arrays())
    assert learned["key"].shape == (2, 4, 8, 16)


class Tempered(nn.Module):
    @nn.compact
    def __call__(self, query, key, value, *, mask=None, bias=None, enable_dropout=True):
        assert not enable_dropout
        query = query * self.param("temperature", nn.initializers.ones, (query.shape[-2], 1))
        return contenders.attend_linen(query, key, value, mask=mask, bias=bias)


def test_a_module_over_heads_gets_parameters():
    contender = HeadsModule("tempered", Tempered())
    learned, _ = contender.inputs(WORKLOADS[0], WORKLOADS[0].arrays())
    assert learned["variables"]["params"]["temperature"].shape == (4, 1)
    expected = output(contenders.PEERS["linen"], WORKLOADS[0])
    np.testing.assert_array_equal(output(contender, WORKLOADS[0]), expected)


def test_a_layer_decodes_what_it_computes_at_once():
    layer = Layer("layer", MultiHeadDotProductAttention(num_heads=4, head_dim=8, use_bias=False))
    whole = output(layer, Workload("forward", **SMALL))
    step = output(layer, Workload("decode", **SMALL))
    np.testing.assert_allclose(step, whole[:, -1:], atol=1e-5)


def test_a_layer_counts_its_projections():
    layer, workload = Layer("layer", nn.Dense(8)), Workload("backward", **SMALL)
    variables = {"params": {"kernel": jnp.ones((32, 8)), "bias": jnp.ones(8)}}
    assert layer.flops(workload, {"variables": variables}) == workload.flops() + 3 * 2 * 32 * 8 * 2 * 16


def test_a_layer_that_takes_no_step_does_not_decode():
    class Plain(nn.Module):
        def __call__(self, inputs_q, inputs_kv, mask=None):
            return inputs_q

    with pytest.raises(ValueError, match="plain takes no step; expected a layer that decodes"):
        Layer("plain", Plain()).inputs(WORKLOADS[-1], WORKLOADS[-1].arrays())


class Configuration(dict):
    """As much of a configuration as is asked for."""

    files = ("a.gin",)

    def build(self, macro):
        return self[macro]


def test_a_gin_file_adds_functions_modules_and_layers():
    layer = MultiHeadDotProductAttention(num_heads=4, head_dim=8, use_bias=False)
    variants = {"heads": Tempered(), "layer": layer, "function": contenders.attend_linen}
    found = contenders.from_gin(Configuration(VARIANTS=variants, KERNELS={"kernel": contenders.attend_linen}))
    assert {name: type(contender) for name, contender in found.items()} == {
        "heads": HeadsModule,
        "layer": Layer,
        "function": Function,
        "kernel": Function,
    }
    exact = {name: contender.exact for name, contender in found.items()}
    assert exact == {"heads": "itself", "layer": None, "function": "itself", "kernel": "definition"}


def test_variants_get_biases_as_layers_would_give_them():
    seen = []

    def mine(query, key, value, *, mask, bias):
        seen.append(bias)
        return query

    found = contenders.from_gin(Configuration(VARIANTS={"variant": mine}, KERNELS={"kernel": mine}))
    workload = Workload("forward", bias="t5", **SMALL)
    for contender in found.values():
        contender.attend(workload, *contender.inputs(workload, workload.arrays()))
    assert seen[0].shape == (1, 4, 16, 16)
    assert isinstance(seen[1], TableBias)


@pytest.mark.parametrize(
    ("macros", "message"),
    [
        ({}, "a.gin define neither VARIANTS nor KERNELS; expected a dictionary"),
        ({"VARIANTS": {"auto": Tempered()}}, "VARIANTS has 'auto', which is taken; expected another name than auto, "),
        ({"VARIANTS": {"mine": Tempered}}, "mine is a type; expected a function @module.function, or a module"),
        ({"KERNELS": {"mine": Causal()}}, "mine is a Causal; expected a function"),
    ],
)
def test_what_cannot_attend_is_refused(macros, message):
    with pytest.raises(ValueError, match=message):
        contenders.from_gin(Configuration(macros))


def test_names_are_looked_up():
    mine = Function("mine", contenders.attend_linen)
    assert list(contenders.from_names(["mine", "auto", "torch"], {"mine": mine})) == ["mine", "auto"]
    with pytest.raises(ValueError, match="contenders has 'cudn'; expected some of auto, reference"):
        contenders.from_names(["cudn"], {})
