"""Dense projections along any axes, and the feed-forward block made of them."""

import functools
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import FrozenDict
from flax.linen import partitioning as flax_partitioning
from jaxtyping import Int, Shaped

from flaxformer import activation_partitioning
from flaxformer.components.activations import resolve_activation
from flaxformer.components.calling import call_part
from flaxformer.components.int8_matrix import Int8Matrix
from flaxformer.components.products import rows_times_weights
from flaxformer.parameters import parameter
from flaxformer.retired import refuse_retired
from flaxformer.step import Step
from flaxformer.types import Activation, Array, DType, Initializer, Precision

_JOINED_AXES = FrozenDict({"heads * kv": "joined_kv"})


class DenseGeneral(nn.Module):
    """A linear map from some axes of the input to new trailing axes.

    The kernel contracts the axes `axis`, in the order listed, and appends the axes `features`:
    `[B T D] -> [B T N H]` for `features=(N, H)`, and `[B T N H] -> [B T D]` for `axis=(-2, -1), features=D`.
    Stored, it is a matrix `[contracted, features]` unless `reshape_kernel=False`; optimizers that factor matrices and
    initializers that count fan-in see that shape.

    Attributes:
      features: sizes of the new axes.
      use_bias: adds a bias, stored flat.
      axis: the axes to contract; negative values count from the end.
      dtype: of the computation. Parameters are float32.
      kernel_init: called with the stored shape of the kernel.
      bias_init: called with the flat shape of the bias.
      precision: of the contraction, as `jax.lax.dot_general` takes it.
      kernel_axis_names: a logical name for each contracted axis, then for each new one. None: all "unmodeled".
      reshaped_kernel_axis_name_map: a name for axes stored as one, from their names joined by " * ".
      reshape_kernel: stores the kernel as a matrix.
    """

    features: Iterable[int] | int
    use_bias: bool
    axis: Iterable[int] | int = -1
    dtype: DType = jnp.float32
    kernel_init: Initializer = nn.linear.default_kernel_init
    bias_init: Initializer = nn.initializers.zeros_init()
    precision: Precision = None
    kernel_axis_names: Sequence[str] | None = None
    reshaped_kernel_axis_name_map: Mapping[str, str] = _JOINED_AXES
    reshape_kernel: bool = True

    @nn.compact
    def __call__(self, inputs: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
        """Maps the axes `axis` of `inputs` to `features`, behind the axes that remain.

        Raises:
          ValueError: for an axis that `inputs` lacks or that is listed twice, and for a wrong count of axis names.
        """
        features = _as_tuple(self.features)
        axes = _normalize_axes(_as_tuple(self.axis), jnp.ndim(inputs))
        contracted = tuple(jnp.shape(inputs)[a] for a in axes)
        shape = contracted + features
        stored_shape = (math.prod(contracted), math.prod(features)) if self.reshape_kernel else shape
        names = self._stored_axis_names(len(contracted), len(features))
        kernel = parameter(self, "kernel", self.kernel_init, stored_shape, axes=names)

        x = jnp.asarray(inputs, self.dtype)
        kernel = kernel if isinstance(kernel, Int8Matrix) else jnp.asarray(kernel, self.dtype)
        rest = tuple(size for a, size in enumerate(x.shape) if a not in axes)
        if self.reshape_kernel:
            # A product of two matrices: its weight gradient then reads both operands as they lie. With [B T D] inputs
            # XLA first transposes the output's gradient, 125 MiB for T5's logits at 1024 tokens, and the step of
            # T5 1.1 small took 1.3 times as long on CPU. Axes that may be sharded apart are not merged. A kernel stored
            # split stays so for the same reason.
            rows = rest if flax_partitioning.get_axis_rules() else (-1,)
            x = jnp.moveaxis(x, axes, range(-len(axes), 0)).reshape(*rows, math.prod(contracted))
            x = rows_times_weights(x, kernel, self.precision)
        else:
            kernel = jnp.asarray(kernel, self.dtype)
            x = jax.lax.dot_general(x, kernel, ((axes, tuple(range(len(axes)))), ((), ())), precision=self.precision)
        x = x.reshape(rest + features)
        if self.use_bias:
            bias_shape = (math.prod(features),)
            bias = parameter(self, "bias", self.bias_init, bias_shape, axes=names[-1:])
            x = x + jnp.asarray(bias, self.dtype).reshape(features)
        return x

    @nn.nowrap
    def _stored_axis_names(self, num_contracted: int, num_features: int) -> tuple[str, ...]:
        if self.kernel_axis_names is None:
            return ("unmodeled",) * (2 if self.reshape_kernel else num_contracted + num_features)
        names = tuple(self.kernel_axis_names)
        if len(names) != num_contracted + num_features:
            raise ValueError(
                f"kernel_axis_names is {names}; expected {num_contracted + num_features} names: {num_contracted} for "
                f"the contracted axes, then {num_features} for the features. The names are those before reshaping."
            )
        if not self.reshape_kernel:
            return names
        joined = (" * ".join(names[:num_contracted]), " * ".join(names[num_contracted:]))
        return tuple(self.reshaped_kernel_axis_name_map.get(name, name) for name in joined)


class MlpBlock(nn.Module):
    """The feed-forward block: `wo(act_0(wi_0 x) · act_1(wi_1 x) · ...)`.

    One activation makes the plain block, `('gelu', 'linear')` a gated one; the branches are multiplied.

    Attributes:
      use_bias: biases on all projections.
      intermediate_dim: width F of the hidden layer.
      activations: one per branch: a name in `flax.linen` (there `gelu` is the tanh approximation) or in
        `flaxformer.components.activations`, "linear" for the identity, or a function.
      kernel_init: of every kernel.
      wi_fused_kernel_init: of the fused kernel, which has shape `[D n F]`. None: `kernel_init`.
      bias_init: of every bias.
      intermediate_dropout_rate: dropout of the hidden layer, shared along the length; see `intermediate_dropout`.
      final_dropout_rate: dropout of the output, shared along the length; see `final_dropout`.
      intermediate_dropout: a module in place of the hidden layer's dropout.
      final_dropout: a module in place of the output's dropout.
      dtype: of the computation. Parameters are float32.
      out_dim: width of the output. None: that of the input.
      intermediate_conv: a module applied to the first branch behind its activation, such as `Depthwise1dConv`.
      precomputed_intermediates: the input holds the branches before activation, and the caller projects the result.
      fuse_kernels: projects all branches with one kernel.
      input_axis_name: logical name of the input's width.
      activations_axis_name: logical name of the fused kernel's axis over branches.
      intermediate_axis_name: logical name of the hidden width.
      output_axis_name: logical name of the output's width.
      data_sharding_constraints: logical names of the hidden layer's axes. None: by rank.
      activation_partitioning_dims: how many axes of the hidden layer to shard on a mesh without logical axis rules.
      use_aqt: retired, see `flaxformer.retired`; so are `weight_params`, `act_params`, `possibly_use_quantized_vars`.
      dense_general_factory: makes the projections; called with DenseGeneral's keywords and a name.

    Source: Shazeer 2020, "GLU Variants Improve Transformer", equation 6; So et al. 2021, "Primer", for the convolution.
    """

    use_bias: bool
    intermediate_dim: int = 2048
    activations: Sequence[str | Activation] = ("relu",)
    kernel_init: Initializer = nn.initializers.xavier_uniform()
    wi_fused_kernel_init: Initializer | None = None
    bias_init: Initializer = nn.initializers.normal(stddev=1e-6)
    intermediate_dropout_rate: float = 0.1
    final_dropout_rate: float = 0.1
    intermediate_dropout: nn.Module | None = None
    final_dropout: nn.Module | None = None
    dtype: DType = jnp.float32
    out_dim: int | None = None
    intermediate_conv: nn.Module | None = None
    precomputed_intermediates: bool = False
    fuse_kernels: bool = False
    input_axis_name: str = "embed"
    activations_axis_name: str = "mlp_activations"
    intermediate_axis_name: str = "mlp"
    output_axis_name: str = "embed"
    data_sharding_constraints: tuple[str, ...] | None = None
    activation_partitioning_dims: int | None = 2
    use_aqt: bool | None = False
    weight_params: Any = None
    act_params: Any = None
    possibly_use_quantized_vars: bool = False
    dense_general_factory: Callable[..., nn.Module] = DenseGeneral

    @nn.compact
    def __call__(
        self,
        inputs: Shaped[Array, "*batch D"] | Sequence[Shaped[Array, "*batch F"]],
        decode: bool = False,
        prefill: bool = False,
        prefill_lengths: Int[Array, " B"] | None = None,
        *,
        enable_dropout: bool = True,
        step: Step | None = None,
    ) -> Shaped[Array, "*batch out"]:
        """Applies the block to the last axis of `inputs`.

        Args:
          inputs: `[*batch D]`. With `precomputed_intermediates`: a sequence of one `[*batch F]` per activation, or,
            with `fuse_kernels` too, `[*batch n F]`.
          decode: T5X's one-token step, for `intermediate_conv`; a `step` takes precedence over these keywords.
          prefill: T5X's prefill, for `intermediate_conv`.
          prefill_lengths: `[B]`, real tokens per row of the prefill.
          enable_dropout: whether dropout is active.
          step: where the tokens stand, for `intermediate_conv`.

        Returns:
          `[*batch out_dim]`, or the hidden layer `[*batch F]` with `precomputed_intermediates`.

        Raises:
          ValueError: for an activation that is neither known nor a function, for precomputed branches that do not
            match, for a rank without a sharding constraint under axis rules, and for retired attributes.
        """
        self._refuse_retired()
        step = step or Step.from_keywords(decode, prefill, prefill_lengths)
        functions = [resolve_activation(a) for a in self.activations]
        branches = self._given_branches(inputs) if self.precomputed_intermediates else self._project(inputs)
        branches = [function(branch) for function, branch in zip(functions, branches, strict=True)]
        if self.intermediate_conv is not None:
            branches[0] = call_part(self.intermediate_conv, branches[0], step=step)
        hidden = functools.reduce(operator.mul, branches)  # [*batch F]
        hidden = self._drop(
            self.intermediate_dropout, self.intermediate_dropout_rate, hidden, step=step, enable_dropout=enable_dropout
        )
        hidden = self._constrain(hidden)
        if self.precomputed_intermediates:
            return hidden
        width = inputs.shape[-1] if self.out_dim is None else self.out_dim  # pyright: ignore[reportAttributeAccessIssue]
        output = self._dense("wo", width, (self.intermediate_axis_name, self.output_axis_name))(hidden)
        return self._drop(self.final_dropout, self.final_dropout_rate, output, step=step, enable_dropout=enable_dropout)

    @nn.nowrap
    def _refuse_retired(self) -> None:
        refuse_retired(
            self,
            use_aqt=self.use_aqt,
            weight_params=self.weight_params,
            act_params=self.act_params,
            possibly_use_quantized_vars=self.possibly_use_quantized_vars,
        )

    @nn.nowrap
    def _dense(self, name: str, features: Any, axis_names: tuple[str, ...], **kwargs: Any) -> nn.Module:
        kwargs = {"kernel_init": self.kernel_init} | kwargs
        return self.dense_general_factory(
            features=features,
            use_bias=self.use_bias,
            dtype=self.dtype,
            bias_init=self.bias_init,
            kernel_axis_names=axis_names,
            name=name,
            **kwargs,
        )

    @nn.nowrap
    def _project(self, inputs: Any) -> list[Array]:
        """The branches before activation, one `[*batch F]` per activation."""
        count = len(self.activations)
        names = (self.input_axis_name, self.intermediate_axis_name)
        if not self.fuse_kernels:
            scopes = ["wi"] if count == 1 else [f"wi_{i}" for i in range(count)]
            return [self._dense(scope, self.intermediate_dim, names)(inputs) for scope in scopes]
        fused = self._dense(
            "wi_fused",
            (count, self.intermediate_dim),
            (self.input_axis_name, self.activations_axis_name, self.intermediate_axis_name),
            kernel_init=self.wi_fused_kernel_init or self.kernel_init,
            reshape_kernel=False,
        )(inputs)  # [*batch n F]
        return [fused[..., i, :] for i in range(count)]

    @nn.nowrap
    def _given_branches(self, inputs: Any) -> list[Array]:
        count = len(self.activations)
        if self.out_dim is None:
            raise ValueError(
                "precomputed_intermediates=True needs out_dim, the width that the caller's projection gives; got None."
            )
        got = jnp.shape(inputs)[-2] if self.fuse_kernels else len(inputs)
        if got != count:
            raise ValueError(
                f"inputs hold {got} precomputed branches; expected {count}, one for each of activations "
                f"{tuple(self.activations)}."
            )
        return [inputs[..., i, :] for i in range(count)] if self.fuse_kernels else list(inputs)

    @nn.nowrap
    def _drop(self, dropout: nn.Module | None, rate: float, x: Array, **offered: Any) -> Array:
        if dropout is None:
            dropout = nn.Dropout(rate, broadcast_dims=(-2,) if x.ndim > 1 else ())
        return call_part(dropout, x, **offered)

    @nn.nowrap
    def _constrain(self, hidden: Array) -> Array:
        if not flax_partitioning.get_axis_rules():
            dims = self.activation_partitioning_dims
            return hidden if dims is None else activation_partitioning.with_sharding(hidden, dims)
        names = self.data_sharding_constraints or _HIDDEN_AXES.get(hidden.ndim)
        if names is None:
            raise ValueError(
                f"the hidden layer has rank {hidden.ndim}; expected rank 2, 3 or 4 under logical axis rules. "
                "Name its axes with data_sharding_constraints."
            )
        return flax_partitioning.with_sharding_constraint(hidden, names)


_HIDDEN_AXES: Mapping[int, tuple[str, ...]] = {
    2: ("length", "mlp"),
    3: ("batch", "length", "mlp"),
    4: ("batch", "length", "heads", "mlp_per_head"),
}


def _as_tuple(x: Iterable[int] | int) -> tuple[int, ...]:
    return tuple(x) if isinstance(x, Iterable) else (x,)


def _normalize_axes(axes: tuple[int, ...], rank: int) -> tuple[int, ...]:
    normalized = tuple(a + rank if a < 0 else a for a in axes)
    if any(not 0 <= a < rank for a in normalized) or len(set(normalized)) != len(normalized):
        raise ValueError(
            f"axis is {axes} for inputs of rank {rank}; expected distinct axes between {-rank} and {rank - 1}."
        )
    return normalized


def dense_with_biases(*, biased: Sequence[str] = (), **options: Any) -> DenseGeneral:
    """A `dense_general_factory` that gives a bias to some projections of a layer only, whatever `use_bias` says.

    Args:
      biased: the names of those, for example `("query", "key", "value")`.
      **options: as the layer gives them.
    """
    return DenseGeneral(**{**options, "use_bias": options["name"] in biased})
