"""Images as sequences: patches in, hidden states and heads out."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Float

from flaxformer.architectures.example_inputs import stack_input
from flaxformer.architectures.heads import EncoderWithHeads
from flaxformer.components.dense import DenseGeneral
from flaxformer.errors import ShapeError
from flaxformer.parameters import parameter
from flaxformer.types import Array, DType, Initializer


class PatchEmbed(nn.Module):
    """Cuts images into patches and embeds each, behind a learned first token, with learned positions.

    A patch is a vector of its pixels, row by row, with channels last; one dense layer maps it.

    Attributes:
      features: width D.
      patch: height and width of a patch.
      grid: patches per column and per row; other images are refused.
      channels: of a pixel.
      use_bias: of the dense layer.
      first_token: puts a learned vector in front.
      kernel_init: of the dense layer.
      embedding_init: of the first token and the positions.
      dtype: of the computation.

    Source: Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", arXiv:2010.11929.
    """

    features: int
    patch: Sequence[int]
    grid: Sequence[int]
    channels: int = 3
    use_bias: bool = True
    first_token: bool = True
    kernel_init: Initializer = nn.initializers.lecun_normal()
    embedding_init: Initializer = nn.initializers.normal(0.02)
    dtype: DType = jnp.float32

    rank = 4  # of what it embeds

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Height, width and channels of an image."""
        return *(patch * count for patch, count in zip(self.patch, self.grid, strict=True)), self.channels

    @property
    def length(self) -> int:
        """Tokens per image."""
        return self.grid[0] * self.grid[1] + self.first_token

    @nn.compact
    def __call__(self, images: Float[Array, "B height width channels"]) -> Float[Array, "B T D"]:
        """Embeds images.

        Raises:
          ShapeError: a `ValueError`, for images of another size, or with other channels.
        """
        if images.shape[1:] != self.input_shape:
            raise ShapeError(
                f"images have shape {images.shape}; expected [batch, {', '.join(map(str, self.input_shape))}]. Resize "
                "them, or move their channels to the end."
            )
        rows, columns = self.patch
        patches = rearrange(images, "b (y r) (x c) channels -> b (y x) (r c channels)", r=rows, c=columns)
        dense = DenseGeneral(
            self.features,
            self.use_bias,
            dtype=self.dtype,
            kernel_init=self.kernel_init,
            kernel_axis_names=("unmodeled", "embed"),
            name="patches",
        )
        x = dense(patches)
        if self.first_token:
            first = parameter(self, "first", self.embedding_init, (self.features,), axes=("embed",))
            first = jnp.broadcast_to(first.astype(x.dtype), (len(x), 1, self.features))
            x = jnp.concatenate([first, x], axis=1)
        positions = parameter(
            self,
            "positions",
            self.embedding_init,
            (self.length, self.features),
            axes=("abspos_buckets", "embed"),
        )
        return x + positions.astype(x.dtype)


class ImageEncoder(EncoderWithHeads):
    """An encoder of images with heads. The attributes are those of `EncoderWithHeads`.

    The encoder's token embedder is a `PatchEmbed`.
    """

    @nn.nowrap
    def example_inputs(self, length: int | None = None) -> dict[str, jax.ShapeDtypeStruct]:
        """One image; `length` is of tokens, and says nothing here."""
        del length
        return {"images": stack_input(self.encoder_factory)}

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, images: Float[Array, "B height width channels"], *, enable_dropout: bool = True
    ) -> dict[str, Array]:
        """The hidden states, as `hidden`, and every head's output by its name.

        Args:
          images: pixels as the model was trained with, channels last.
          enable_dropout: False switches dropout off.
        """
        length = self.encoder.embedder.embedders["token_ids"].length
        valid = jnp.ones((len(images), length), bool)
        return super().__call__(images, encoder_valid=valid, enable_dropout=enable_dropout)
