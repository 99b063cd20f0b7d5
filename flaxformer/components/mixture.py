"""Mixtures of experts: of many MLPs each token passes through the few that a router chooses for it.

Words: E experts, of which a token chooses k; a *gate* is the weight of a chosen expert's output; an expert's *capacity*
is how many tokens of a row it takes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from flaxformer.components.activations import Activation
from flaxformer.components.dense import DenseGeneral, MlpBlock
from flaxformer.parameters import parameter
from flaxformer.step import Step
from flaxformer.types import Array, DType, Initializer

Gates = Callable[[Float[Array, "*B E"], Int[Array, "*B k"]], Float[Array, "*B k"]]


def gates_of_all(logits: Float[Array, "*B E"], chosen: Int[Array, "*B k"]) -> Float[Array, "*B k"]:
    """The probabilities of the chosen experts among all; they sum to less than one.

    Source: Fedus et al. 2021, "Switch Transformers", equation 2, https://arxiv.org/abs/2101.03961.
    """
    return jnp.take_along_axis(jax.nn.softmax(logits), chosen, axis=-1)


def gates_of_chosen(logits: Float[Array, "*B E"], chosen: Int[Array, "*B k"]) -> Float[Array, "*B k"]:
    """The probabilities of the chosen experts among themselves; they sum to one.

    Source: Jiang et al. 2024, "Mixtral of Experts", section 2.1, https://arxiv.org/abs/2401.04088.
    """
    return jax.nn.softmax(jnp.take_along_axis(logits, chosen, axis=-1))


def within_capacity(chosen: Int[Array, "*B T k"], num_experts: int, capacity: int) -> Bool[Array, "*B T k"]:
    """Which choices their experts have room for: all first choices in the order of tokens, then all second ones, ...

    Args:
      chosen: the experts that each token of a row chooses, best first.
      num_experts: E.
      capacity: tokens that an expert takes from each row.

    >>> within_capacity(jnp.array([[0], [1], [0], [0]]), num_experts=2, capacity=2)[:, 0]
    Array([ True,  True,  True, False], dtype=bool)
    """
    queue = jnp.swapaxes(chosen, -1, -2)  # [*B k T]
    taken = jax.nn.one_hot(queue.reshape(*queue.shape[:-2], -1), num_experts, dtype=jnp.int32)  # [*B k*T E]
    places = jnp.sum(jnp.cumsum(taken, axis=-2) * taken, axis=-1).reshape(queue.shape)
    return jnp.swapaxes(places, -1, -2) <= capacity


def load_balancing_loss(
    logits: Float[Array, "*R T E"], chosen: Int[Array, "*R T k"], valid: Bool[Array, "*R T"] | None = None
) -> Float[Array, ""]:
    """How unevenly rows use the experts: `E · Σ_e (choices of e per token) · (mean probability of e)`, mean over rows.

    It is k where all experts are used alike, and more otherwise. Mixtral takes all tokens as one row.

    Source: Fedus et al. 2021, equations 4 to 6.
    """
    weights = jnp.ones(logits.shape[:-1]) if valid is None else valid.astype(jnp.float32)
    weights = (weights / jnp.maximum(weights.sum(-1, keepdims=True), 1))[..., None]
    choices = jnp.sum(jax.nn.one_hot(chosen, logits.shape[-1]), axis=-2)  # [*R T E]
    shares, means = (jnp.sum(weights * x, axis=-2) for x in (choices, jax.nn.softmax(logits)))
    return logits.shape[-1] * jnp.mean(jnp.sum(shares * means, axis=-1))


def router_z_loss(logits: Float[Array, "*B E"]) -> Float[Array, ""]:
    """How large logits are: the mean of the squared logarithm of their sum of exponentials.

    Source: Zoph et al. 2022, "ST-MoE", equation 5, https://arxiv.org/abs/2202.08906.
    """
    return jnp.mean(jnp.square(jax.nn.logsumexp(logits, axis=-1)))


def grouped_product(
    rows: Float[Array, "M D"], kernel: Float[Array, "E D F"], sizes: Int[Array, " E"]
) -> Float[Array, "M F"]:
    """The first `sizes[0]` rows times the first kernel, and so on: one product per row on GPU and TPU.

    On CPU XLA has no such product, and its stand-in, which multiplies all rows by all kernels, cannot be mapped.
    """
    if jax.default_backend() != "cpu":
        return jax.lax.ragged_dot(rows, kernel, sizes)
    products = jnp.einsum("md,edf->emf", rows, kernel)
    return jnp.take_along_axis(products, _groups(sizes, len(rows))[None, :, None], axis=0)[0]


def _groups(sizes: Int[Array, " E"], count: int) -> Int[Array, " M"]:
    return jnp.repeat(jnp.arange(len(sizes)), sizes, total_repeat_length=count)


class GroupedDense(nn.Module):
    """A dense layer with a kernel of its own for each group of consecutive rows.

    Attributes:
      sizes: `[E]` int, how many rows each group has.
      features: F.
      use_bias: adds a bias of each group.
      dtype: of the computation. Parameters are float32.
      kernel_init: called with the shape `[D F]` of each group's kernel.
      bias_init: called with the shape `[E F]`.
      kernel_axis_names: logical names of D and F; E is "expert".
    """

    sizes: Int[Array, " E"]
    features: int
    use_bias: bool = False
    dtype: DType = jnp.float32
    kernel_init: Initializer = nn.linear.default_kernel_init
    bias_init: Initializer = nn.initializers.zeros_init()
    kernel_axis_names: Sequence[str] = ("embed", "mlp")

    @nn.compact
    def __call__(self, rows: Float[Array, "M D"]) -> Float[Array, "M F"]:
        """Multiplies the first `sizes[0]` rows by the first kernel, and so on."""

        def init(key: Array, shape: Sequence[int], dtype: DType) -> Array:
            return jax.vmap(lambda key: self.kernel_init(key, shape[1:], dtype))(jax.random.split(key, shape[0]))

        groups, (inputs, outputs) = len(self.sizes), self.kernel_axis_names
        shape, names = (groups, rows.shape[-1], self.features), ("expert", inputs, outputs)
        kernel = parameter(self, "kernel", init, shape, axes=names)
        output = grouped_product(jnp.asarray(rows, self.dtype), jnp.asarray(kernel, self.dtype), self.sizes)
        if self.use_bias:
            shape, names = (groups, self.features), ("expert", outputs)
            bias = parameter(self, "bias", self.bias_init, shape, axes=names)
            output += jnp.asarray(bias, self.dtype)[_groups(self.sizes, len(rows))]
        return output


class MixtureOfExperts(nn.Module):
    """In the place of a layer's MLP: `Σ over the k experts e with the best logits of gate_e(x) · MLP_e(x)`.

    The router computes in float32; its logits are sown as `intermediates/router_logits`, `[B T E]`, for
    `load_balancing_loss` and `router_z_loss`. Tokens are sorted by expert and pass through k MLPs each on GPU and TPU,
    by `jax.lax.ragged_dot`; on CPU through all E.

    Attributes:
      num_experts: E.
      intermediate_dim: F, of each expert.
      num_selected: k.
      gates: from logits and choices to gates: `gates_of_all` or `gates_of_chosen`.
      capacity: how many tokens of a row an expert takes, in their order, padding included; others get nothing from it.
        None: all. Tokens of branches of a search stand alone.
      activations: of the experts, as those of `MlpBlock`.
      use_bias: biases in the experts.
      router_bias: a bias on the logits.
      jitter: training multiplies what the router reads by random factors between `1 - jitter` and `1 + jitter`.
      intermediate_dropout_rate: of the experts' hidden layer.
      dtype: of the experts' computation. Parameters are float32.
      kernel_init: of the experts, called with the shape of each one's kernels.
      router_init: of the router's kernel `[D E]`.
      bias_init: of the biases.

    >>> layer = MixtureOfExperts(num_experts=4, intermediate_dim=8, num_selected=2, gates=gates_of_chosen)
    >>> variables = layer.init(jax.random.key(0), jnp.ones((1, 3, 2)))
    >>> variables["params"]["expert"]["wi"]["kernel"].shape, variables["params"]["router"]["kernel"].shape
    ((4, 2, 8), (2, 4))

    Source: Shazeer et al. 2017, https://arxiv.org/abs/1701.06538; Fedus et al. 2021, https://arxiv.org/abs/2101.03961,
    for capacity and jitter; Gale et al. 2022, "MegaBlocks", https://arxiv.org/abs/2211.15841, for sorting by expert.
    """

    num_experts: int
    intermediate_dim: int
    num_selected: int = 1
    gates: Gates = gates_of_all
    capacity: int | None = None
    activations: Sequence[str | Activation] = ("relu",)
    use_bias: bool = False
    router_bias: bool = False
    jitter: float = 0.0
    intermediate_dropout_rate: float = 0.0
    dtype: DType = jnp.float32
    kernel_init: Initializer = nn.linear.default_kernel_init
    router_init: Initializer = nn.initializers.normal(stddev=0.02)
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(
        self, inputs: Float[Array, "B T D"], *, enable_dropout: bool = True, step: Step | None = None
    ) -> Float[Array, "B T D"]:
        """Applies to each token the experts that it chooses.

        Args:
          inputs: `[B T D]`.
          enable_dropout: whether dropout and jitter are active.
          step: where the tokens stand.

        Raises:
          ValueError: for more choices than experts, or a capacity below 1.
        """
        self._check()
        logits = self._route(inputs, enable_dropout)  # [B T E]
        _, chosen = jax.lax.top_k(logits, self.num_selected)  # [B T k]
        gates = self.gates(logits, chosen)
        alone = step is not None and step.visible is not None
        if self.capacity is not None and not alone:
            gates = jnp.where(within_capacity(chosen, self.num_experts, self.capacity), gates, 0)
        order = jnp.argsort(chosen.reshape(-1), stable=True)  # [B·T·k], by expert
        sizes = jnp.bincount(chosen.reshape(-1), length=self.num_experts)
        rows = inputs.reshape(-1, inputs.shape[-1])[order // self.num_selected]
        outputs = self._experts(sizes)(rows, enable_dropout=enable_dropout)[jnp.argsort(order)]  # by token again
        outputs = outputs.reshape(*chosen.shape, -1) * gates[..., None].astype(outputs.dtype)
        return jnp.sum(outputs, axis=-2)

    @nn.nowrap
    def _check(self) -> None:
        if not 1 <= self.num_selected <= self.num_experts:
            raise ValueError(
                f"num_selected is {self.num_selected} with num_experts={self.num_experts}; expected 1 to "
                f"{self.num_experts}, the experts that each token passes through."
            )
        if self.capacity is not None and self.capacity < 1:
            raise ValueError(
                f"capacity is {self.capacity}; expected at least 1 token per row and expert, or None for all."
            )

    @nn.nowrap
    def _experts(self, sizes: Int[Array, " E"]) -> MlpBlock:
        return MlpBlock(
            intermediate_dim=self.intermediate_dim,
            activations=self.activations,
            use_bias=self.use_bias,
            intermediate_dropout=nn.Dropout(self.intermediate_dropout_rate),  # of each row its own
            final_dropout_rate=0.0,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
            dtype=self.dtype,
            activation_partitioning_dims=None,
            dense_general_factory=functools.partial(GroupedDense, sizes),
            name="expert",
        )

    @nn.nowrap
    def _route(self, inputs: Float[Array, "B T D"], enable_dropout: bool) -> Float[Array, "B T E"]:
        read = inputs.astype(jnp.float32)
        if enable_dropout and self.jitter:
            low, high = 1 - self.jitter, 1 + self.jitter
            read *= jax.random.uniform(self.make_rng("dropout"), read.shape, minval=low, maxval=high)
        router = DenseGeneral(
            self.num_experts,
            self.router_bias,
            kernel_init=self.router_init,
            bias_init=self.bias_init,
            kernel_axis_names=("embed", "unmodeled"),
            name="router",
        )
        logits = router(read)
        self.sow("intermediates", "router_logits", logits)
        return logits
