"""T5X's `EncoderDecoderModel`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import flax.linen as nn
import jax.numpy as jnp

from flaxformer.decoding.strategies.base import Strategy
from flaxformer.decoding.t5x import (
    DecodingState,
    beam_search,
    flat_batch_beam_expand,
    left_align_prompts,
    right_align_prompts,
)
from flaxformer.training import losses
from flaxformer.training.batches import Batch
from flaxformer.training.model_base import (
    BaseTransformerModel,
    DecoderParams,
    Predictions,
    best_of,
    ones_of,
    place_behind,
    takes,
    write_by_strategy,
)
from flaxformer.types import Array, PRNGKey


class EncoderDecoderModel(BaseTransformerModel):
    """An encoder-decoder with T5X's interface.

    Args:
      default_decoder_params: what `predict_batch_with_aux` does when it is not told.
      feature_converter_cls: makes batches of examples; kept for data pipelines.
      module, input_vocabulary, ...: see `BaseTransformerModel`.
    """

    def __init__(
        self,
        module: nn.Module,
        input_vocabulary: Any,
        output_vocabulary: Any,
        optimizer_def: Any,
        decode_fn: Callable[..., Any] | Strategy = beam_search,
        feature_converter_cls: Callable[..., Any] | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        loss_normalizing_factor: losses.LossNormalizingFactor = None,
        default_decoder_params: DecoderParams | None = None,
    ):
        super().__init__(
            module,
            input_vocabulary,
            output_vocabulary,
            optimizer_def,
            decode_fn,
            label_smoothing,
            z_loss,
            loss_normalizing_factor,
        )
        self.FEATURE_CONVERTER_CLS = feature_converter_cls or self.FEATURE_CONVERTER_CLS
        self._default_decoder_params = default_decoder_params or DecoderParams()

    def get_initial_variables(
        self, rng: PRNGKey, input_shapes: Mapping[str, Any], input_types: Mapping[str, Any] | None = None
    ) -> Any:
        tokens = ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens")
        optional = ("encoder_positions", "decoder_positions", "encoder_segment_ids", "decoder_segment_ids")
        options: dict[str, Any] = {
            name: ones_of(input_shapes, input_types, name) for name in optional if name in input_shapes
        }
        options |= {"decode": False, "enable_dropout": False}
        return self.module.init(rng, *(ones_of(input_shapes, input_types, name) for name in tokens), **options)

    def _compute_logits(
        self, params: Any, batch: Batch, dropout_rng: PRNGKey | None = None, mutable: Any = False
    ) -> Any:
        optional = ("encoder_segment_ids", "decoder_segment_ids", "encoder_positions", "decoder_positions")
        return self._apply(
            params,
            batch["encoder_input_tokens"],
            batch["decoder_input_tokens"],
            batch["decoder_target_tokens"],
            **{name: batch.get(name) for name in optional},
            dropout_rng=dropout_rng,
            mutable=mutable,
        )

    def predict_batch_with_aux(
        self,
        params: Any,
        batch: Batch,
        rng: PRNGKey | None = None,
        decoder_params: Mapping[str, Any] | None = None,
        return_all_decodes: bool | None = None,
        num_decodes: int | None = None,
        prompt_with_targets: bool = False,
    ) -> Predictions:
        """Decodes targets for the batch's `encoder_input_tokens`, as long as its `decoder_input_tokens`.

        Args:
          params: the module's parameters.
          batch: `encoder_input_tokens [B S]`; of `decoder_input_tokens [B L]` only the shape, or the prompt.
          rng: handed to the decode function.
          decoder_params: further keywords for the decode function; left unchanged.
          return_all_decodes: every decode of an item instead of the best. None: the default of the model.
          num_decodes: decodes per item, K. None: the default of the model.
          prompt_with_targets: start from the batch's `decoder_input_tokens`, without their EOS.

        Returns:
          `[B K L]` and `{"scores": [B K]}`, the best last; or the best, `[B L]` and `[B]`.
        """
        defaults = self._default_decoder_params
        count = defaults.num_decodes if num_decodes is None else num_decodes
        source, target = batch["encoder_input_tokens"], batch["decoder_input_tokens"]
        prompt = jnp.zeros_like(target)
        if prompt_with_targets:
            prompt = jnp.where(target == (getattr(self.output_vocabulary, "eos_id", None) or 1), 0, target)
        keep_all = defaults.return_all_decodes if return_all_decodes is None else return_all_decodes
        if isinstance(self.decode_fn, Strategy):
            inputs = {"encoder_input_tokens": source}
            if prompt_with_targets:
                inputs["decoder_prompt_tokens"] = prompt[:, 1:]
            written, scores = write_by_strategy(self, params, inputs, target.shape[1], rng, decoder_params, num_decodes)
            return best_of(_behind(prompt, written), scores, keep_all)
        encoded: Any = self.module.apply({"params": params}, source, enable_dropout=False, method="encode")
        cache, options = self._prefilled_cache(params, encoded, source, prompt, count)
        encoded, source = (flat_batch_beam_expand(x, count) for x in (encoded, source))

        def step(state: DecodingState) -> tuple[Array, Any]:
            logits, changed = self.module.apply(
                {"params": params, "cache": state.cache},
                encoded,
                source,
                state.cur_token,
                state.cur_token,
                enable_dropout=False,
                decode=True,
                max_decode_length=target.shape[1],
                mutable=["cache"],
                method="decode",
            )
            return logits[:, 0], changed["cache"]

        sequences, scores = self._decode(prompt, cache, step, rng, decoder_params, num_decodes=count, **options)
        return best_of(sequences, scores, keep_all)

    def _prefilled_cache(
        self, params: Any, encoded: Array, source: Array, prompt: Array, count: int
    ) -> tuple[Any, dict[str, Any]]:
        """The cache with the prompt in it, where the decode function and the module know how; else an empty one."""
        ones = jnp.ones_like(prompt)
        _, made = self.module.apply(
            {"params": params},
            jnp.ones_like(source),
            ones,
            ones,
            decode=True,
            enable_dropout=False,
            mutable=["cache"],
        )
        if not (
            takes(cast(Callable[..., Any], self.decode_fn), "initial_index") and takes(self.module.decode, "prefill")
        ):
            return made["cache"], {}
        lengths = jnp.sum(prompt != 0, axis=1, dtype=jnp.int32)
        _, filled = self.module.apply(
            {"params": params, "cache": made["cache"]},
            encoded,
            source,
            prompt,
            ones,
            enable_dropout=False,
            prefill=True,
            prefill_lengths=lengths,
            mutable=["cache"],
            method="decode",
        )
        return place_behind(filled["cache"], lengths, count), {"initial_index": lengths}


def _behind(prompt: Array, written: Array) -> Array:
    """Each row's prompt `[B L]` and then what was written `[B n L]`, as long as the prompt's row."""
    batch, count, length = written.shape
    rows = jnp.repeat(right_align_prompts(prompt), count, axis=0)
    joined = left_align_prompts(jnp.concatenate([rows, written.reshape(batch * count, length)], axis=1))
    return joined[:, :length].reshape(batch, count, length)
