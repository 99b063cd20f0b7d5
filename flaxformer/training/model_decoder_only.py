"""T5X's `DecoderOnlyModel`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxformer.decoding.strategies.base import Strategy
from flaxformer.decoding.t5x import DecodingState, remove_prefix, temperature_sample
from flaxformer.training import losses
from flaxformer.training.batches import Batch
from flaxformer.training.model_base import (
    BaseTransformerModel,
    Predictions,
    best_of,
    ones_of,
    place_behind,
    write_by_strategy,
)
from flaxformer.types import Array, PRNGKey


class DecoderOnlyModel(BaseTransformerModel):
    """A language model with T5X's interface.

    Args:
      vocabulary: of what it reads and writes.
      inputs_bidirectional_attention: the inputs part of a row (`decoder_causal_attention`) sees itself in both
        directions.
      module, optimizer_def, ...: see `BaseTransformerModel`.
    """

    def __init__(
        self,
        module: nn.Module,
        vocabulary: Any,
        optimizer_def: Any,
        decode_fn: Callable[..., Any] | Strategy = temperature_sample,
        inputs_bidirectional_attention: bool = False,
        feature_converter_cls: Callable[..., Any] | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        loss_normalizing_factor: losses.LossNormalizingFactor = None,
    ):
        super().__init__(
            module,
            vocabulary,
            vocabulary,
            optimizer_def,
            decode_fn,
            label_smoothing,
            z_loss,
            loss_normalizing_factor,
        )
        self.FEATURE_CONVERTER_CLS = feature_converter_cls or self.FEATURE_CONVERTER_CLS
        self._inputs_bidirectional_attention = inputs_bidirectional_attention

    def get_initial_variables(
        self, rng: PRNGKey, input_shapes: Mapping[str, Any], input_types: Mapping[str, Any] | None = None
    ) -> Any:
        names = ("decoder_input_tokens", "decoder_target_tokens")
        return self.module.init(
            rng, *(ones_of(input_shapes, input_types, name) for name in names), enable_dropout=False
        )

    def _causal_attention(self, batch: Batch) -> Array | None:
        if not self._inputs_bidirectional_attention:
            return None
        if "decoder_causal_attention" not in batch:
            raise ValueError(
                f"inputs_bidirectional_attention is on and the batch has {sorted(batch)}; expected "
                "'decoder_causal_attention' too, 1 on the inputs part. Make the batch with inputs and targets."
            )
        return batch["decoder_causal_attention"]

    def _compute_logits(
        self, params: Any, batch: Batch, dropout_rng: PRNGKey | None = None, mutable: Any = False
    ) -> Any:
        return self._apply(
            params,
            batch["decoder_input_tokens"],
            batch["decoder_target_tokens"],
            decoder_segment_ids=batch.get("decoder_segment_ids"),
            decoder_positions=batch.get("decoder_positions"),
            decoder_causal_attention=self._causal_attention(batch),
            dropout_rng=dropout_rng,
            mutable=mutable,
        )

    def predict_batch_with_aux(
        self,
        params: Any,
        batch: Batch,
        rng: PRNGKey | None = None,
        *,
        return_all_decodes: bool = False,
        num_decodes: int = 1,
        decoder_params: Mapping[str, Any] | None = None,
    ) -> Predictions:
        """Decodes what follows the inputs part of each row; inputs are removed from the result.

        Args:
          params: the module's parameters.
          batch: `decoder_input_tokens [B L]` and `decoder_causal_attention [B L]`, which marks the inputs part.
          rng: handed to the decode function.
          return_all_decodes: every decode of an item instead of the best.
          num_decodes: decodes per item, K.
          decoder_params: further keywords for the decode function; left unchanged.

        Returns:
          `[B K L]` and `{"scores": [B K]}`, the best last; or the best, `[B L]` and `[B]`.
        """
        if "decoder_causal_attention" not in batch:
            raise ValueError(
                f"the batch has {sorted(batch)}; expected 'decoder_causal_attention' too, which says how far the "
                "inputs reach. Make the batch with inputs and targets."
            )
        causal = batch["decoder_causal_attention"]
        prompt = batch["decoder_input_tokens"] * causal
        lengths = jnp.sum(prompt[:, 1:] != 0, axis=1, dtype=jnp.int32)
        length = prompt.shape[1]
        if isinstance(self.decode_fn, Strategy):
            inputs = {"decoder_prompt_tokens": prompt[:, 1:]}
            flags = self._causal_attention(batch)
            inputs |= {} if flags is None else {"decoder_causal_attention": flags[:, 1:]}
            wanted = None if num_decodes == 1 else num_decodes
            written, scores = write_by_strategy(self, params, inputs, length, rng, decoder_params, wanted)
            room = jnp.arange(length) < (length - lengths)[:, None, None]
            return best_of(jnp.where(room, written, 0), scores, return_all_decodes)

        def step(state: DecodingState) -> tuple[Array, Any]:
            logits, changed = self.module.apply(
                {"params": params, "cache": state.cache},
                state.cur_token,
                state.cur_token,
                enable_dropout=False,
                decode=True,
                max_decode_length=length,
                mutable=["cache"],
            )
            return logits[:, 0], changed["cache"]

        cache = self._prefilled_cache(params, prompt, lengths, causal, self._causal_attention(batch))
        cache = place_behind(cache, lengths, num_decodes)
        options = {"num_decodes": num_decodes, "initial_index": lengths}
        sequences, scores = self._decode(prompt, cache, step, rng, decoder_params, **options)
        sequences = jax.vmap(remove_prefix, in_axes=(1, None), out_axes=1)(sequences, lengths)
        return best_of(sequences, scores, return_all_decodes)

    def _prefilled_cache(
        self, params: Any, prompt: Array, lengths: Array, targets: Array, causal_attention: Array | None
    ) -> Any:
        """The cache with all but the last prompt token counted: the first step reads that one again."""
        ones = jnp.ones_like(prompt)
        _, made = self.module.apply(
            {"params": params}, ones, ones, enable_dropout=False, decode=True, mutable=["cache"]
        )
        _, filled = self.module.apply(
            {"params": params, "cache": made["cache"]},
            prompt,
            targets,
            decoder_causal_attention=causal_attention,
            enable_dropout=False,
            prefill=True,
            prefill_lengths=lengths,
            mutable=["cache"],
        )
        return filled["cache"]
