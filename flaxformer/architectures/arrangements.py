"""Layers whose branches are arranged otherwise: side by side, or between two norms."""

from __future__ import annotations

import flax.linen as nn
from jaxtyping import Float

from flaxformer.architectures.layers import DecoderLayer, EncoderLayer
from flaxformer.types import Array


class ParallelDecoderLayer(DecoderLayer):
    """`x + attention(norm x) + mlp(norm x)`: both branches read the layer's input, and nothing is rescaled.

    Attributes:
      self_attention, mlp, ...: as in `DecoderLayer`; there is no attention to an encoder.
      own_mlp_norm: the MLP's branch has a norm of its own, `pre_mlp_layer_norm`.

    Source: Wang and Komatsuzaki 2021, "GPT-J-6B"; Black et al. 2022, "GPT-NeoX-20B", arXiv:2204.06745, with two norms.
    """

    own_mlp_norm: bool = False

    @nn.nowrap
    def _one_after_another(self, x, own, cross, feed_forward, logit_mask, step, enable_dropout, extra) -> Array:
        norm = self._norm(self.pre_self_attention_layer_norm, logit_mask, step)
        normalised = norm(x)
        residual, queries, _ = self._create_residuals_and_queries(x, normalised, logit_mask, **extra)
        attended = self.post_self_attention_dropout(own(queries, normalised), deterministic=not enable_dropout)
        read = self._norm(self.pre_mlp_layer_norm, logit_mask, step)(x) if self.own_mlp_norm else normalised
        fed = self.post_mlp_dropout(feed_forward(read), deterministic=not enable_dropout)
        return self._constrain(residual + attended + fed)


class SandwichDecoderLayer(DecoderLayer):
    """`x + norm_after(branch(norm_before x))` for every branch. The attributes are those of `DecoderLayer`.

    Source: Ding et al. 2021, "CogView", arXiv:2105.13290; Gemma Team 2024, "Gemma 2", arXiv:2408.00118.
    """

    def setup(self) -> None:
        super().setup()
        self.post_self_attention_layer_norm = self._make_norm()
        self.post_cross_attention_layer_norm = self._make_norm()
        self.post_mlp_layer_norm = self._make_norm()

    @nn.nowrap
    def _branches(self, encoded, decoder_mask, encoder_decoder_mask, bias, cross_bias, step, enable_dropout):
        own, cross, feed_forward = super()._branches(
            encoded, decoder_mask, encoder_decoder_mask, bias, cross_bias, step, enable_dropout
        )

        def after(norm: nn.Module, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
            return self._norm(norm, None, step)(x)

        return (
            lambda queries, x: after(self.post_self_attention_layer_norm, own(queries, x)),
            None if cross is None else lambda x: after(self.post_cross_attention_layer_norm, cross(x)),
            lambda x: after(self.post_mlp_layer_norm, feed_forward(x)),
        )


class SandwichEncoderLayer(EncoderLayer):
    """`SandwichDecoderLayer` for encoders. The attributes are those of `EncoderLayer`."""

    def setup(self) -> None:
        super().setup()
        self.post_attention_layer_norm = self._make_norm()
        self.post_mlp_layer_norm = self._make_norm()

    @nn.nowrap
    def _add(self, x, branch, norm, dropout, enable_dropout) -> Array:
        attending = dropout is self.post_attention_dropout
        after = self.post_attention_layer_norm if attending else self.post_mlp_layer_norm
        return super()._add(x, lambda y: self._constrain(after(branch(y))), norm, dropout, enable_dropout)
