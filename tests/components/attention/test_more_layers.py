"""Linear and disentangled attention keep what `tests/contracts` asks of every public part."""

import flax.linen as nn
import pytest

from flaxformer.components.attention.disentangled_attention import DisentangledAttention
from flaxformer.components.attention.feature_maps import EluFeatures, FavorFeatures
from flaxformer.components.attention.linear_attention import LinearAttention
from flaxformer.components.positions.disentangled import DistanceTable
from tests.contracts import models, test_parts
from tests.contracts.parts import ATTENTION_FIELDS, PARTS, UNUSED, Part, X


def table(**options):
    return DistanceTable(4, models.WIDTH, embedding_init=nn.initializers.normal(1.0), **options)


ATTENTION = PARTS["MultiHeadDotProductAttention"]
NOT_SERVED = ("rescale_logits", "use_rotary_embedding", "rotary_embedding_max_timescale", "positions", "num_kv_heads")
FUSED = ("kernels_to_fuse", "qkv_kernel_init", "kv_kernel_init")
MORE = {
    "LinearAttention": Part(
        LinearAttention,
        {"num_heads": 4, "head_dim": 4, "use_bias": False, "features": FavorFeatures(6)},
        (X, "same"),
        {
            field: ATTENTION_FIELDS[field]
            for field in (
                "num_heads use_bias dtype qkv_features head_dim out_features precision kernel_init q_kernel_init "
                "bias_init rescale_logits split_head_kernel positions"
            ).split()
        }
        | {"num_kv_heads": 2, "features": EluFeatures(), "chunk_size": 2},
    ),
    "DisentangledAttention": Part(
        DisentangledAttention,
        {"num_heads": 4, "head_dim": 4, "use_bias": False, "distances": table(), "max_distance": 5},
        (X, "same"),
        {
            **{field: value for field, value in ATTENTION.fields.items() if field not in NOT_SERVED + FUSED},
            **dict.fromkeys(NOT_SERVED + FUSED, UNUSED),  # refused
            "distances": table(norm=nn.LayerNorm()),
            "max_distance": 9,
            "share_projections": False,
            "content_to_position": False,
            "position_to_content": False,
        },
    ),
}


@pytest.fixture(autouse=True)
def more_parts(monkeypatch):
    for name, part in MORE.items():
        monkeypatch.setitem(PARTS, name, part)


@pytest.mark.parametrize("name", MORE)
def test_every_field_changes_something(name):
    test_parts.test_every_field_changes_something(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_compiled_equals_eager_and_every_parameter_learns(name):
    test_parts.test_compiled_equals_eager_and_every_parameter_learns(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_bfloat16_is_close_and_keeps_parameters_in_float32(name):
    test_parts.test_bfloat16_is_close_and_keeps_parameters_in_float32(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_vmap_equals_one_by_one(name):
    test_parts.test_vmap_equals_one_by_one(name)
