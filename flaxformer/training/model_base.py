"""What T5X's models have in common: loss, scoring, and the call of a decode function."""

from __future__ import annotations

import abc
import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from flaxformer.decoding.generation import generate
from flaxformer.decoding.scores import target_log_probs
from flaxformer.decoding.strategies.base import Strategy
from flaxformer.decoding.t5x import DecodingState
from flaxformer.training import losses
from flaxformer.training.batches import Batch
from flaxformer.training.metrics import Metric, base_metrics
from flaxformer.types import Array, PRNGKey

Predictions = tuple[Array, dict[str, Array]]


@dataclasses.dataclass(frozen=True)
class DecoderParams:
    """What `predict_batch` does when it is not told.

    Attributes:
      return_all_decodes: return every decode of an item, or only the best.
      num_decodes: decodes per item.
    """

    return_all_decodes: bool = False
    num_decodes: int = 1


class BaseModel(abc.ABC):
    """Loss, prediction and scoring of batches, given parameters."""

    FEATURE_CONVERTER_CLS: Callable[..., Any] | None = None

    def __init__(self, optimizer_def: Any):
        self.optimizer_def = optimizer_def

    @abc.abstractmethod
    def loss_fn(
        self, params: Any, batch: Batch, dropout_rng: PRNGKey | None
    ) -> tuple[Float[Array, ""], dict[str, Metric]]:
        """The loss that training minimises, and metrics. Dropout is on exactly when there is a key for it."""

    def eval_fn(self, params: Any, batch: Batch) -> tuple[Float[Array, ""], dict[str, Metric]]:
        """The loss without dropout."""
        return self.loss_fn(params, batch, None)

    def predict_batch(self, params: Any, batch: Batch, rng: PRNGKey | None = None) -> Array:
        """The sequences of `predict_batch_with_aux`."""
        return self.predict_batch_with_aux(params, batch, rng)[0]

    @abc.abstractmethod
    def predict_batch_with_aux(self, params: Any, batch: Batch, rng: PRNGKey | None = None) -> Predictions:
        """Decoded sequences, and `{"scores": ...}`."""

    @abc.abstractmethod
    def score_batch(self, params: Any, batch: Batch, return_intermediates: bool = False) -> Any:
        """The log-probability of each row's targets `[B]`."""

    @abc.abstractmethod
    def get_initial_variables(
        self, rng: PRNGKey, input_shapes: Mapping[str, Any], input_types: Mapping[str, Any] | None = None
    ) -> Any:
        """The module's variables, freshly drawn."""


class BaseTransformerModel(BaseModel):
    """What encoder-decoder and decoder-only models share.

    Args:
      module: the Linen module.
      input_vocabulary: of what it reads.
      output_vocabulary: of what it writes; its `eos_id` ends decoding.
      optimizer_def: kept for the training loop.
      decode_fn: `beam_search`, `temperature_sample` or a function like them; or a strategy of `flaxformer.decoding`.
      label_smoothing, z_loss, loss_normalizing_factor: see `flaxformer.training.losses`.
    """

    def __init__(
        self,
        module: nn.Module,
        input_vocabulary: Any,
        output_vocabulary: Any,
        optimizer_def: Any,
        decode_fn: Callable[..., Any] | Strategy | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        loss_normalizing_factor: losses.LossNormalizingFactor = None,
    ):
        super().__init__(optimizer_def)
        self.module = module
        self._input_vocabulary = input_vocabulary
        self._output_vocabulary = output_vocabulary
        self._decode_fn = decode_fn
        self._label_smoothing = label_smoothing
        self._z_loss = z_loss
        self._loss_normalizing_factor = loss_normalizing_factor

    @property
    def input_vocabulary(self) -> Any:
        return self._input_vocabulary

    @property
    def output_vocabulary(self) -> Any:
        return self._output_vocabulary

    @property
    def decode_fn(self) -> Callable[..., Any] | Strategy | None:
        return self._decode_fn

    @abc.abstractmethod
    def _compute_logits(
        self, params: Any, batch: Batch, dropout_rng: PRNGKey | None = None, mutable: Any = False
    ) -> Any:
        """Logits of one pass over the batch, and the changed collections if some are mutable."""

    def loss_fn(
        self, params: Any, batch: Batch, dropout_rng: PRNGKey | None
    ) -> tuple[Float[Array, ""], dict[str, Metric]]:
        logits = self._compute_logits(params, batch, dropout_rng)
        targets = batch["decoder_target_tokens"]
        factor, weights = losses.get_loss_normalizing_factor_and_weights(self._loss_normalizing_factor, batch)
        loss, z_loss, _ = losses.compute_weighted_cross_entropy(
            logits, targets, weights, self._label_smoothing, self._z_loss, factor
        )
        return loss, base_metrics(logits, targets, weights, loss, z_loss, batch)

    def score_batch(self, params: Any, batch: Batch, return_intermediates: bool = False) -> Any:
        targets, weights = batch["decoder_target_tokens"], batch["decoder_loss_weights"]
        changed: Any = {}
        if return_intermediates:
            logits, changed = self._compute_logits(params, batch, mutable=["intermediates"])
        else:
            logits = self._compute_logits(params, batch)
        token_scores = target_log_probs(logits, targets, weights)
        scores = jnp.sum(token_scores, axis=-1)
        if not return_intermediates:
            return scores
        found = flax.core.unfreeze(changed).get("intermediates", {})
        added = {"target_tokens": (targets,), "loss_weights": (weights,), "token_scores": (token_scores,)}
        return scores, {**found, "decoder": {**found.get("decoder", {}), **added}}

    def _apply(self, params: Any, *args: Any, dropout_rng: PRNGKey | None, **options: Any) -> Any:
        rngs = {} if dropout_rng is None else {"dropout": dropout_rng}
        return self.module.apply(
            {"params": params}, *args, **options, decode=False, enable_dropout=dropout_rng is not None, rngs=rngs
        )

    def _decode(
        self,
        prompt: Int[Array, "B L"],
        cache: Any,
        step: Callable[[DecodingState], tuple[Array, Any]],
        rng: PRNGKey | None,
        decoder_params: Mapping[str, Any] | None,
        **options: Any,
    ) -> tuple[Array, Array]:
        """The decode function's results, with its options put together."""
        decoder_params = dict(decoder_params or {})
        if rng is not None:
            if decoder_params.get("decode_rng") is not None:
                raise ValueError(
                    "rng was given twice, as rng and as decoder_params['decode_rng']; expected at most one of them."
                )
            decoder_params["decode_rng"] = rng
        if not callable(self.decode_fn):
            raise ValueError("this model has no decode_fn; expected one to predict with. Pass decode_fn=beam_search.")
        defaults = {
            "eos_id": getattr(self.output_vocabulary, "eos_id", None) or 1,
            "cache_offset": int(bool(getattr(self.module, "scan_layers", False))),
        }
        return self.decode_fn(
            inputs=prompt, cache=cache, tokens_to_logits=step, **(defaults | options | decoder_params)
        )


def write_by_strategy(
    model: BaseTransformerModel,
    params: Any,
    inputs: Mapping[str, Array],
    length: int,
    rng: PRNGKey | None,
    decoder_params: Mapping[str, Any] | None,
    num_decodes: int | None,
) -> tuple[Int[Array, "B n T"], Float[Array, "B n"]]:
    """What the model's strategy writes, in T5X's order: the best last.

    Args:
      model: with a `Strategy` as its `decode_fn`.
      params: the module's parameters.
      inputs: as `flaxformer.decoding.generate` takes them.
      length: tokens to write.
      rng: for strategies that draw.
      decoder_params: `decode_rng` and `eos_id` at most.
      num_decodes: what the caller asks for; None: what the strategy returns.

    Raises:
      ValueError: for options that are the strategy's own.
    """
    options = dict(decoder_params or {})
    rng = options.pop("decode_rng", None) if rng is None else rng
    strategy: Any = model.decode_fn
    eos_id = options.pop("eos_id", getattr(model.output_vocabulary, "eos_id", None) or 1)
    if options:
        raise ValueError(
            f"decoder_params has {sorted(options)}, and decode_fn is {model.decode_fn}; expected at most decode_rng "
            "and eos_id: a strategy holds its options. Set them there."
        )
    found = generate(
        model.module,
        {"params": params},
        inputs,
        strategy=strategy,
        max_new_tokens=length,
        eos_id=eos_id,
        rng=rng,
    )
    if num_decodes not in (None, found.tokens.shape[1]):
        raise ValueError(
            f"num_decodes is {num_decodes} and {model.decode_fn} returns {found.tokens.shape[1]}; expected the same. "
            "Set the number on the strategy."
        )
    return found.tokens[:, ::-1], found.scores[:, ::-1]


def best_of(sequences: Array, scores: Array, return_all: bool) -> Predictions:
    return (sequences, {"scores": scores}) if return_all else (sequences[:, -1], {"scores": scores[:, -1]})


def takes(function: Callable[..., Any] | None, name: str) -> bool:
    return function is not None and name in inspect.signature(function).parameters


def ones_of(shapes: Mapping[str, Any], types: Mapping[str, Any] | None, name: str) -> Array:
    return jnp.ones(shapes[name], (types or {}).get(name, jnp.float32))


def place_behind(cache: Any, lengths: Int[Array, " B"], count: int) -> Any:
    """The cache whose position embedders go on behind prompts of these lengths, in `count` rows per item.

    T5X's searches expand every other leaf, and leave this one alone.
    """
    index = jnp.repeat(lengths, count)

    def visit(path: tuple[Any, ...], leaf: Array) -> Array:
        return jnp.asarray(index, leaf.dtype) if getattr(path[-1], "key", None) == "position_embedder_index" else leaf

    return jax.tree_util.tree_map_with_path(visit, cache)
