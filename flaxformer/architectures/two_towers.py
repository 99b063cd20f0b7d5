"""Two encoders whose vectors are compared: texts and images.

    tokens -> text encoder  -> pooled -> projection -> unit length  \\
                                                                     product · exp(logit_scale)
    images -> image encoder -> pooled -> projection -> unit length  /

Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", arXiv:2103.00020.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, Num

from flaxformer.parameters import parameter
from flaxformer.types import Array


class TwoTowers(nn.Module):
    """Similarities between texts and images.

    Attributes:
      text_factory: makes the encoder of texts, which gives `pooled`, as `EncoderWithHeads` does.
      image_factory: makes the encoder of images, likewise, such as an `ImageEncoder`.
      projection_factory: makes the projection of each to a common width.
      initial_scale: what the learned logarithm of the scale starts from.
    """

    text_factory: Callable[[], Any]
    image_factory: Callable[[], Any]
    projection_factory: Callable[[], nn.Module]
    initial_scale: float = 2.6592

    def setup(self) -> None:
        self.text = self.text_factory()
        self.image = self.image_factory()
        self.text_projection = self.projection_factory()
        self.image_projection = self.projection_factory()
        self.scale = parameter(self, "logit_scale", nn.initializers.constant(self.initial_scale), (), axes=())

    @nn.nowrap
    def example_inputs(self, length: int | None = None) -> dict[str, jax.ShapeDtypeStruct]:
        """A text of `length` tokens, and an image."""
        text, image = self.text_factory().example_inputs(length), self.image_factory().example_inputs()
        return {"tokens": text["encoder_input_tokens"], "images": image["images"]}

    def encode_text(
        self, tokens: Num[Array, "B T"], *, valid: Bool[Array, "B T"] | None = None, enable_dropout: bool = True
    ) -> dict[str, Array]:
        """What the encoder of texts gives, and `embeds [B P]` of unit length."""
        outputs: dict[str, Any] = self.text(tokens, encoder_valid=valid, enable_dropout=enable_dropout)
        return {**outputs, "embeds": _unit(self.text_projection(outputs["pooled"]))}

    def encode_images(
        self, images: Float[Array, "B height width channels"], *, enable_dropout: bool = True
    ) -> dict[str, Array]:
        """What the encoder of images gives, and `embeds [B P]` of unit length."""
        outputs: dict[str, Any] = self.image(images, enable_dropout=enable_dropout)
        return {**outputs, "embeds": _unit(self.image_projection(outputs["pooled"]))}

    def __call__(
        self,
        tokens: Num[Array, "Btext T"],
        images: Float[Array, "Bimage height width channels"],
        *,
        valid: Bool[Array, "Btext T"] | None = None,
        enable_dropout: bool = True,
    ) -> dict[str, Any]:
        """Compares every text with every image.

        Returns:
          `text` and `image`, the outputs of both encoders, and `logits_per_text [Btext Bimage]`.
        """
        text = self.encode_text(tokens, valid=valid, enable_dropout=enable_dropout)
        image = self.encode_images(images, enable_dropout=enable_dropout)
        return {
            "text": text,
            "image": image,
            "logits_per_text": jnp.exp(self.scale) * text["embeds"] @ image["embeds"].T,
        }


class EndPooler(nn.Module):
    """The hidden state of the token that ends a text.

    Attributes:
      end_id: the first token of this id ends it; None: the one with the largest id does.
    """

    end_id: int | None = None

    def __call__(self, hidden: Float[Array, "B T D"], *, tokens: Int[Array, "B T"]) -> Float[Array, "B D"]:
        """Pools."""
        marked = tokens if self.end_id is None else (tokens == self.end_id).astype(jnp.int32)
        return jnp.take_along_axis(hidden, jnp.argmax(marked, axis=1)[:, None, None], axis=1)[:, 0]


class FirstPooler(nn.Module):
    """The norm of the first hidden state.

    Attributes:
      layer_norm_factory: makes the norm.
    """

    layer_norm_factory: Callable[[], nn.Module]

    def setup(self) -> None:
        self.layer_norm = self.layer_norm_factory()

    def __call__(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B D"]:
        """Pools."""
        return self.layer_norm(hidden[:, 0])


class Projector(nn.Module):
    """The pooled vector in the width that both towers have in common, of any length, for one tower alone.

    Attributes:
      projection_factory: makes the projection.
    """

    projection_factory: Callable[[], nn.Module]

    def setup(self) -> None:
        self.projection = self.projection_factory()

    def __call__(self, pooled: Float[Array, "B D"]) -> Float[Array, "B P"]:
        """Projects."""
        return self.projection(pooled)


def _unit(x: Float[Array, "B P"]) -> Float[Array, "B P"]:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
