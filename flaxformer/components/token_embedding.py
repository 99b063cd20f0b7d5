"""One table of vectors, read by id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.linen import partitioning
from flax.linen.linear import default_embed_init
from jaxtyping import Float, Shaped

from flaxformer.components.dense import DenseGeneral
from flaxformer.components.embedder import Embedder, checked_ids
from flaxformer.components.products import rows_times_weights
from flaxformer.parameters import parameter
from flaxformer.types import Array, DType, Initializer


class Embed(nn.Module, Embedder[Array]):
    """Reads rows of a learned table: `y[..., :] = embedding[ids[...]]`.

    Ids outside the table: gathering wraps negatives once and clamps to the ends; `one_hot` gives zeros.

    Attributes:
      num_embeddings: rows V of the table.
      features: width D of the table.
      cast_input_dtype: type to cast ids to first, so that ids may arrive as floats. None: they must be integers.
      dtype: type of the result.
      attend_dtype: type of the table inside `attend`; `dtype` when None.
      embedding_init: initializer of the table.
      one_hot: multiplies with a one-hot matrix instead of gathering. The same numbers at V times the arithmetic; for
        tables that are sharded over their rows.
      axes: logical names of the table's axes.
      input_axis_names: logical names of the ids' axes, for sharding.
      scale: a factor on what is read, such as √D; `attend` does not know it.

    >>> import jax
    >>> embed = Embed(num_embeddings=5, features=3)
    >>> y, variables = embed.init_with_output(jax.random.key(0), jnp.array([[1, 4]]))
    >>> y.shape, embed.apply(variables, y, method=embed.attend).shape
    ((1, 2, 3), (1, 2, 5))
    """

    num_embeddings: int
    features: int
    cast_input_dtype: DType | None = None
    dtype: DType = jnp.float32
    attend_dtype: DType | None = None
    embedding_init: Initializer = default_embed_init
    one_hot: bool = False
    axes: Sequence[str] = ("vocab", "embed")
    input_axis_names: Sequence[str] = ("batch", "length")
    scale: float | None = None

    def setup(self) -> None:
        self.embedding = parameter(
            self,
            "embedding",
            self.embedding_init,
            (self.num_embeddings, self.features),
            axes=tuple(self.axes) or None,
        )

    def __call__(
        self,
        inputs: Shaped[Array, "*ids"],
        *,
        segment_ids: Array | None = None,
        decode: bool = False,
        enable_dropout: bool = True,
        input_axis_names: Sequence[str] | None = None,
    ) -> Float[Array, "*ids D"]:
        """Embeds ids of any rank.

        Args:
          inputs: the ids.
          segment_ids: not used, nor are `decode` and `enable_dropout`.
          input_axis_names: instead of the attribute, for this call.

        Raises:
          ValueError: for ids that are not integers after the optional cast.
        """
        ids = checked_ids(inputs, self.cast_input_dtype)
        names = self.input_axis_names if input_axis_names is None else input_axis_names
        if not self.one_hot:
            # Rows are cast after reading: casting the table costs V rows, this costs as many as there are ids.
            return self._constrained(self._scaled(self.embedding[ids].astype(self.dtype)), names, 1)
        rows = nn.one_hot(ids, self.num_embeddings, dtype=self.dtype)  # [*ids V]
        rows = self._constrained(rows, names, 0)
        return self._constrained(self._scaled(rows @ self.embedding.astype(self.dtype)), names, 1)

    def attend(self, query: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """Scores `query` against every row: `query @ embedding.T`, as tied output logits need."""
        table = self.embedding.astype(self.attend_dtype or self.dtype)
        return rows_times_weights(query, table.T)

    def _scaled(self, x: Array) -> Array:
        return x if self.scale is None else x * jnp.asarray(self.scale, x.dtype)

    def _constrained(self, x: Array, names: Sequence[str] | None, axis: int) -> Array:
        if names is None or not self.axes:
            return x
        return partitioning.with_sharding_constraint(x, (*names, self.axes[axis]))  # pyright: ignore


class ProjectedEmbed(Embed):
    """A table narrower than the model, projected to its width when read; `attend` takes the table's own width.

    Attributes:
      num_embeddings, ...: as in `Embed`.
      projected_features: width of the model.
    """

    projected_features: int = 0

    def setup(self) -> None:
        super().setup()
        self.projection = DenseGeneral(
            self.projected_features, False, dtype=self.dtype, kernel_axis_names=("mlp", "embed")
        )

    def __call__(self, inputs: Shaped[Array, "*ids"], **options: Any) -> Float[Array, "*ids D"]:
        """Embeds ids and projects; arguments as for `Embed`."""
        return self.projection(super().__call__(inputs, **options))
