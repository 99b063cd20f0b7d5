"""One table of the public parts: how to make each, what to call it with, and what every field of it can be set to."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from flaxformer.architectures.layers import DecoderLayer, EncoderLayer, PostNorm
from flaxformer.architectures.t5.parallel_fused_decoder import ParallelFusedDecoderLayer
from flaxformer.components import convolution, dense, embedding, layer_norm, mixture, relative_position_biases
from flaxformer.components.attention import dense_attention, latent_attention, masks, variants
from flaxformer.components.attention.caches import RingCache
from flaxformer.components.positions.rotary import Rotary
from tests.contracts import models

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(2, 6, models.WIDTH)), jnp.float32)
HEADS = tuple(jnp.asarray(x, jnp.float32) for x in RNG.normal(size=(3, 2, 6, 4, 4)))  # query, key, value [B T N H]
IDS = jnp.asarray(RNG.integers(0, models.VOCABULARY, (2, 6)))
ONES = nn.initializers.ones
UNUSED = object()  # a field that is accepted for old configurations and changes nothing


@dataclasses.dataclass(frozen=True)
class Part:
    """A module class, its least settings, a call, and for every other field a value that must make a difference.

    Attributes:
      make: the class.
      settings: constructor arguments.
      args: call arguments; an entry may be the string "same" for the very object before it.
      fields: field -> another value; or (value, settings under which it matters); or UNUSED.
      keywords: call keywords.
      differentiable: whether the call has parameters and a float input worth differentiating.
    """

    make: Callable[..., nn.Module]
    settings: Mapping[str, Any]
    args: tuple
    fields: Mapping[str, Any]
    keywords: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def module(self, **overrides: Any) -> nn.Module:
        return self.make(**{**self.settings, **overrides})


ATTENTION_FIELDS = {
    "num_heads": (2, {"head_dim": 4}),
    "use_bias": True,
    "dtype": "bfloat16",
    "qkv_features": (8, {"head_dim": None}),
    "head_dim": 2,
    "out_features": 3,
    "broadcast_dropout": (False, {"dropout_rate": 0.5}),
    "dropout_rate": 0.5,
    "precision": "highest",
    "kernel_init": ONES,
    "q_kernel_init": ONES,
    "bias_init": (ONES, {"use_bias": True}),
    "rescale_logits": True,
    "use_extra_logit": True,
    "float32_logits": (True, {"dtype": "bfloat16"}),
    "use_rotary_embedding": True,
    "rotary_embedding_max_timescale": (50.0, {"use_rotary_embedding": True}),
    "split_head_kernel": True,
    "positions": Rotary(),
    "q_norm": nn.RMSNorm(),
    "k_norm": nn.RMSNorm(),
    "reach": masks.Window(left=1, right=0),
    "cache": RingCache(window=2),
}


def _first_value(query, key, value, bias=None, **options):
    first = value[:, :1, :1] if value.ndim == 4 else value[:, :1, None]
    return jnp.broadcast_to(first, (*query.shape[:-1], value.shape[-1]))


FUSABLE = {"split_head_kernel": True, "rescale_logits": True}
RETIRED = dict.fromkeys(("use_aqt", "weight_params", "act_params", "possibly_use_quantized_vars"), UNUSED)
FOUR = {"q_chunk_width": 4, "q_chunk_stride": 4, "kv_chunk_width": 4, "kv_chunk_stride": 4}
LAYER_FIELDS = {
    "mlp": nn.Dense(models.WIDTH),
    "dropout_factory": lambda: nn.Dropout(0.5),
    "layer_norm_factory": nn.LayerNorm,
    "relative_position_bias_factory": models.relative_bias,
    "shared_relative_position_bias": models.relative_bias(),
    "activation_partitioning_dims": UNUSED,
    "sow_intermediates": True,
    "scanned": True,
}
LAYER = {"dropout_factory": models.dropout, "layer_norm_factory": models.layer_norm_factory()}

PARTS = {
    "DenseGeneral": Part(
        dense.DenseGeneral,
        {"features": (3, 4), "use_bias": False},
        (X,),
        {
            "features": 5,
            "use_bias": True,
            "axis": (-2, -1),
            "dtype": "bfloat16",
            "kernel_init": ONES,
            "bias_init": (ONES, {"use_bias": True}),
            "precision": "highest",
            "kernel_axis_names": ["embed", "heads", "kv"],
            "reshaped_kernel_axis_name_map": (
                {"heads * kv": "other"},
                {"kernel_axis_names": ["embed", "heads", "kv"]},
            ),
            "reshape_kernel": False,
        },
    ),
    "MixtureOfExperts": Part(
        mixture.MixtureOfExperts,
        {"num_experts": 3, "intermediate_dim": 8},
        (X,),
        {
            "num_experts": 4,
            "intermediate_dim": 6,
            "num_selected": 2,
            "gates": (mixture.gates_of_chosen, {"num_selected": 2}),
            "capacity": 2,
            "activations": ("relu", "linear"),
            "use_bias": True,
            "router_bias": True,
            "jitter": 0.1,
            "intermediate_dropout_rate": 0.5,
            "dtype": "bfloat16",
            "kernel_init": ONES,
            "router_init": ONES,
            "bias_init": (ONES, {"use_bias": True}),
        },
    ),
    "MlpBlock": Part(
        dense.MlpBlock,
        {"use_bias": False, "intermediate_dim": models.MLP},
        (X,),
        {
            "use_bias": True,
            "intermediate_dim": 8,
            "activations": ("gelu", "linear"),
            "kernel_init": ONES,
            "wi_fused_kernel_init": (ONES, {"fuse_kernels": True}),
            "bias_init": (ONES, {"use_bias": True}),
            "intermediate_dropout_rate": 0.5,
            "final_dropout_rate": 0.5,
            "intermediate_dropout": nn.Dropout(0.7),
            "final_dropout": nn.Dropout(0.7),
            "dtype": "bfloat16",
            "out_dim": 3,
            "intermediate_conv": models.convolve(1),
            "precomputed_intermediates": (True, {"out_dim": 3, "fuse_kernels": True, "activations": ("relu",) * 6}),
            "fuse_kernels": True,
            "input_axis_name": "other",
            "activations_axis_name": ("other", {"fuse_kernels": True}),
            "intermediate_axis_name": "other",
            "output_axis_name": "other",
            "data_sharding_constraints": UNUSED,  # says where an array lies, not what it holds
            "activation_partitioning_dims": UNUSED,
            "dense_general_factory": functools.partial(dense.DenseGeneral, precision="highest"),
            **RETIRED,
        },
    ),
    "T5LayerNorm": Part(
        layer_norm.T5LayerNorm,
        {},
        (X,),
        {
            "epsilon": 0.1,
            "dtype": "bfloat16",
            "scale_init": nn.initializers.zeros,
            "use_scale": False,
            "conv": models.convolve(1),
            "center_scale_at_zero": True,
            "scale_axis_name": "other",
        },
    ),
    "Depthwise1dConv": Part(
        convolution.Depthwise1dConv,
        {"axis_names": ["embed"]},
        (X,),
        {
            "axis_names": ["other"],
            "radius": 1,
            "autoregressive": False,
            "dtype": UNUSED,
            "length_dim": 0,
            "num_feature_dims": (2, {"axis_names": ["length", "embed"], "length_dim": 0}),
            "use_in_mlp_parallel_fused_layer": UNUSED,
        },
    ),
    "Embed": Part(
        embedding.Embed,
        {"num_embeddings": models.VOCABULARY, "features": 4},
        (IDS,),
        {
            "num_embeddings": 20,
            "features": 5,
            "cast_input_dtype": "int16",
            "dtype": "bfloat16",
            "attend_dtype": UNUSED,  # concerns `attend`
            "scale": 2.0,
            "embedding_init": ONES,
            "one_hot": True,
            "axes": ("other", "embed"),
            "input_axis_names": UNUSED,  # says where an array lies, not what it holds
        },
    ),
    "PositionEmbed": Part(
        embedding.PositionEmbed,
        {"num_embeddings": 8, "features": 4},
        (IDS % 8,),
        {"num_embeddings": 9, "features": 5, "dtype": UNUSED, "embedding_init": ONES, "offset": 1},
    ),
    "HashEmbed": Part(
        embedding.HashEmbed,
        {"features": 8, "num_embeddings_per_table": 7, "num_tables": 2},
        (IDS,),
        {
            "features": 4,
            "num_embeddings_per_table": 5,
            "num_tables": 4,
            "cast_input_dtype": "int16",
            "dtype": "bfloat16",
            "embedding_init": ONES,
            "one_hot": True,
        },
    ),
    "NgramHashEmbed": Part(
        embedding.NgramHashEmbed,
        {"ngram_orders": [1, 2], "padding_id": 0, "features": 8, "num_embeddings_per_table": 7, "num_tables": 2},
        (IDS,),
        {
            "ngram_orders": [1, 3],
            "padding_id": 1,
            "features": 4,
            "num_embeddings_per_table": 5,
            "num_tables": 4,
            "cast_input_dtype": "int16",
            "dtype": "bfloat16",
            "embedding_init": ONES,
            "one_hot": True,
        },
    ),
    "RelativePositionBiases": Part(
        relative_position_biases.RelativePositionBiases,
        {"num_buckets": 8, "max_distance": 16, "num_heads": 4, "dtype": "float32"},
        (6, 6),
        {
            "num_buckets": 6,
            "max_distance": (4, {"on_device_computation": True}),
            "num_heads": 2,
            "dtype": "bfloat16",
            "embedding_init": ONES,
            "head_axis_name": "other",
            "on_device_computation": True,
        },
    ),
    "MultiHeadDotProductAttention": Part(
        dense_attention.MultiHeadDotProductAttention,
        {"num_heads": 4, "head_dim": 4, "use_bias": False},
        (X, "same"),
        ATTENTION_FIELDS
        | {
            "qkv_kernel_init": (ONES, {"kernels_to_fuse": "qkv"} | FUSABLE),
            "kv_kernel_init": (ONES, {"kernels_to_fuse": "kv"} | FUSABLE),
            "attention_fn": _first_value,
            "output_projection": False,
            "sow_intermediates": UNUSED,
            "kernels_to_fuse": ("kv", FUSABLE),
            "sharding_over_head_dimension": UNUSED,  # says where an array lies, not what it holds
            "q_conv": models.convolve(),
            "k_conv": models.convolve(),
            "v_conv": models.convolve(),
            "dense_general_factory": functools.partial(dense.DenseGeneral, reshaped_kernel_axis_name_map={}),
            "num_kv_heads": 2,
        },
    ),
    "MultiQueryDotProductAttention": Part(
        dense_attention.MultiQueryDotProductAttention,
        {"num_heads": 4, "head_dim": 4, "use_bias": False},
        (X, "same"),
        ATTENTION_FIELDS
        | {
            "attention_fn": _first_value,
            "q_conv": models.convolve(),
            "k_conv": models.convolve(1),
            "v_conv": models.convolve(1),
            **RETIRED,
        },
    ),
    "MultiHeadLatentAttention": Part(
        latent_attention.MultiHeadLatentAttention,
        {"num_heads": 4, "latent_width": 6, "head_dim": 4, "rotary_dim": 2},
        (X, "same"),
        {
            "num_heads": 2,
            "latent_width": 5,
            "head_dim": 3,
            "rotary_dim": 4,
            "value_dim": 3,
            "query_latent_width": 5,
            "out_features": 3,
            "use_bias": True,
            "dtype": "bfloat16",
            "broadcast_dropout": (False, {"dropout_rate": 0.5}),
            "dropout_rate": 0.5,
            "precision": "highest",
            "kernel_init": ONES,
            "bias_init": (ONES, {"use_bias": True}),
            "scale": 1.0,
            "attention_fn": _first_value,
            "use_extra_logit": True,
            "float32_logits": (True, {"dtype": "bfloat16"}),
            "positions": Rotary(interleaved=True),
            "reach": masks.Window(left=1, right=0),
            "epsilon": 0.1,
            "absorb": True,
            "cache": RingCache(window=2),
            "dense_general_factory": functools.partial(dense.DenseGeneral, reshaped_kernel_axis_name_map={}),
        },
    ),
    "Sinks": Part(variants.Sinks, {}, HEADS, {"attend": variants.Attend(softcap=1.0), "sinks_init": ONES}),
    "TalkingHeads": Part(variants.TalkingHeads, {}, HEADS, {"logits_init": ONES, "weights_init": ONES}),
    "Differential": Part(
        variants.Differential,
        {},
        HEADS,
        {"attend": variants.Attend(softcap=1.0), "lambda_init": 0.2, "epsilon": 0.1},
    ),
    "UnitNorm": Part(variants.UnitNorm, {"scale": 2.0}, (X,), {"scale": 3.0, "epsilon": 0.1, "dtype": "bfloat16"}),
    "LocalAttentionLayer": Part(
        dense_attention.LocalAttentionLayer,
        {
            "localized_attention": models.attention(),
            "q_chunk_width": 2,
            "q_chunk_stride": 2,
            "kv_chunk_width": 2,
            "kv_chunk_stride": 2,
        },
        (X, "same"),
        {
            "localized_attention": models.attention("grouped"),
            "q_chunk_width": (4, {"q_chunk_stride": 2}),
            "q_chunk_stride": (3, FOUR),
            "kv_chunk_width": 3,
            "kv_chunk_stride": (3, FOUR),
            "always_attend_to_first_position": True,
            "first_position_attends_to_all": (
                True,
                {"q_chunk_width": 6, "q_chunk_stride": 6, "kv_chunk_width": 6, "kv_chunk_stride": 6},
            ),  # fmt: skip
        },
    ),
    "EncoderLayer": Part(
        EncoderLayer,
        {"attention": models.attention(), "mlp": models.mlp()} | LAYER,
        (X,),
        LAYER_FIELDS | {"attention": models.attention("grouped"), "parallel": True, "residual": PostNorm()},
    ),
    "DecoderLayer": Part(
        DecoderLayer,
        {"self_attention": models.attention(), "encoder_decoder_attention": models.attention(), "mlp": models.mlp()}
        | LAYER,
        (X, X),
        LAYER_FIELDS
        | {
            "self_attention": models.attention("grouped"),
            "encoder_decoder_attention": models.attention("grouped"),
            "parallel": True,
            "residual": PostNorm(),
        },
    ),
    "ParallelFusedDecoderLayer": Part(
        ParallelFusedDecoderLayer,
        {
            "self_attention": models.attention("multi_query", out_features=models.WIDTH),
            "mlp": models.mlp(precomputed_intermediates=True, out_dim=models.WIDTH),
        }
        | LAYER,
        (X,),
        LAYER_FIELDS
        | {
            "self_attention": models.attention("multi_query", out_features=models.WIDTH, use_bias=True),
            "mlp": models.mlp(precomputed_intermediates=True, out_dim=models.WIDTH, activations=("relu",)),
            "q_wi_fused_kernel_init": ONES,
            "kv_fused_kernel_init": ONES,
            "o_wo_fused_kernel_init": ONES,
            "dense_general_cls_factory": lambda: functools.partial(dense.DenseGeneral, precision="highest"),
            "is_quant_finetune_mode": UNUSED,
            **RETIRED,
        },
    ),
}
