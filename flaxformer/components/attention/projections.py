"""The projections room: model width to heads and back.

N query heads and K key/value heads come from one path. The parameters are `query`, `key`, `value` and `out`; fused
kernels are `qkv_fused` or `kv_fused`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.linen import partitioning

from flaxformer.components import dense
from flaxformer.types import Array, DType, Initializer, Precision


def scaled_init(init: Initializer, head_dim: int, dtype: DType) -> Initializer:
    """`init` divided by √head_dim: the logits then start as if they were scaled, at no cost per call."""

    def init_scaled(key, shape, kind=jnp.float32):
        return init(key, shape, kind) / jnp.sqrt(jnp.float32(head_dim)).astype(dtype)

    return init_scaled


class HeadProjections(nn.Module):
    """What attention modules share to project `[... T D]` to heads `[... T N H]` and back; owns no fields."""

    if TYPE_CHECKING:
        num_heads: int
        use_bias: bool
        dtype: DType
        qkv_features: int | None
        head_dim: int | None
        out_features: int | None
        precision: Precision
        kernel_init: Initializer
        q_kernel_init: Initializer | None
        bias_init: Initializer
        rescale_logits: bool
        split_head_kernel: bool

    # Defaults for modules that do not make these a field.
    num_kv_heads = None
    qkv_kernel_init = None
    kv_kernel_init = None
    kernels_to_fuse = None
    output_projection = True
    dense_general_factory = dense.DenseGeneral

    @nn.nowrap
    def _head_dim(self, width: int) -> int:
        if not isinstance(self.num_heads, int | np.integer) or self.num_heads < 1:
            raise ValueError(f"num_heads is {self.num_heads!r}; expected an integer of at least 1.")
        total = self.qkv_features or width
        if self.head_dim is None and total % self.num_heads:
            raise ValueError(
                f"num_heads={self.num_heads} does not divide the {total} features to project to; "
                "expected a divisor, or head_dim to be given."
            )
        return self.head_dim or total // self.num_heads

    @nn.nowrap
    def _kv_heads(self) -> int:
        heads = self.num_kv_heads or self.num_heads
        if self.num_heads % heads:
            raise ValueError(
                f"num_kv_heads={heads} does not divide num_heads={self.num_heads}; expected a divisor, "
                "so that every key head serves the same number of query heads."
            )
        return heads

    @nn.nowrap
    def _check_fusing(self, inputs_q: Array, inputs_kv: Array) -> None:
        if self.kernels_to_fuse is None:
            return
        if self.kernels_to_fuse not in ("qkv", "kv"):
            raise ValueError(f"kernels_to_fuse is {self.kernels_to_fuse!r}; expected None, 'qkv' or 'kv'.")
        if not (self.split_head_kernel and self.rescale_logits):
            raise ValueError(
                f"kernels_to_fuse={self.kernels_to_fuse!r} needs split_head_kernel=True and rescale_logits=True, "
                f"got {self.split_head_kernel} and {self.rescale_logits}: a fused kernel is stored by head, and its "
                "query part cannot be initialised to a scale of its own."
            )
        if self.kernels_to_fuse == "qkv" and inputs_q is not inputs_kv:
            raise ValueError(
                "kernels_to_fuse='qkv' needs inputs_q and inputs_kv to be the same array object; expected "
                "self-attention. Use 'kv' where the keys come from elsewhere."
            )
        if self.kernels_to_fuse == "qkv" and self._kv_heads() != self.num_heads:
            raise ValueError(
                f"kernels_to_fuse='qkv' stacks equal kernels, but num_kv_heads={self._kv_heads()} differs from "
                f"num_heads={self.num_heads}; use kernels_to_fuse='kv'."
            )

    @nn.nowrap
    def _dense(self, name: str, features: tuple[int, ...], kernel_init: Initializer, names: list[str], **options):
        options = {"axis": -1, "reshape_kernel": not self.split_head_kernel} | options
        return self.dense_general_factory(
            bias_init=self.bias_init,
            use_bias=self.use_bias,
            dtype=self.dtype,
            precision=self.precision,
            kernel_init=kernel_init,
            features=features,
            kernel_axis_names=names,
            name=name,
            **options,
        )

    @nn.nowrap
    def _project_query(self, inputs_q: Array) -> Array:
        head_dim = self._head_dim(inputs_q.shape[-1])
        init = self.q_kernel_init or self.kernel_init
        if not self.rescale_logits:
            init = scaled_init(init, head_dim, self.dtype)
        return self._dense("query", (self.num_heads, head_dim), init, ["embed", "heads", "kv"])(inputs_q)

    @nn.nowrap
    def _project_key_value(self, inputs_kv: Array, head_dim: int) -> tuple[Array, Array]:
        features, names = (self._kv_heads(), head_dim), ["embed", "heads", "kv"]
        if self.kernels_to_fuse == "kv":
            fused = self._fused("kv_fused", 2, features, self.kv_kernel_init)(inputs_kv)
            return fused[..., 0, :, :], fused[..., 1, :, :]
        key = self._dense("key", features, self.kernel_init, names)(inputs_kv)
        return key, self._dense("value", features, self.kernel_init, names)(inputs_kv)

    @nn.nowrap
    def _project_all(self, inputs_q: Array) -> tuple[Array, Array, Array]:
        features = (self.num_heads, self._head_dim(inputs_q.shape[-1]))
        fused = self._fused("qkv_fused", 3, features, self.qkv_kernel_init)(inputs_q)  # [... T 3 N H]
        return fused[..., 0, :, :], fused[..., 1, :, :], fused[..., 2, :, :]

    @nn.nowrap
    def _fused(self, name: str, count: int, features: tuple[int, ...], init: Initializer | None) -> Callable:
        names = ["embed", "stack", "heads", "kv"]
        return self._dense(name, (count, *features), init or self.kernel_init, names, reshape_kernel=False)

    @nn.nowrap
    def _project_out(self, x: Array, width: int) -> Array:
        features = self.out_features or width
        return self._dense("out", (features,), self.kernel_init, ["heads", "kv", "embed"], axis=(-2, -1))(x)


def constrain_heads(x: Array) -> Array:
    """A sharding hint for `[B T N H]`; no effect without logical axis rules."""
    if x.ndim != 4:
        return x
    heads = "heads" if x.shape[-2] > 1 else None  # one head cannot be split
    return partitioning.with_sharding_constraint(x, ("batch", "length", heads, "kv"))
