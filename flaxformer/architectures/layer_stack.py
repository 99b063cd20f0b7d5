"""What the stacks of encoders and decoders do alike: embed, make their layers, and run them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from flaxformer.architectures import repeat
from flaxformer.architectures.example_inputs import table_rows
from flaxformer.architectures.position_bias import self_attention_bias, takes_lazy_bias
from flaxformer.components import embedding
from flaxformer.components.attention.kernels.biases import Bias
from flaxformer.components.calling import call_part
from flaxformer.components.rich_attention_position_scores import RichAttentionApi
from flaxformer.errors import ShapeError
from flaxformer.step import Step
from flaxformer.types import Array


class LayerStack(nn.Module):
    """The shared part of `Encoder` and `Decoder`; owns no fields."""

    layer_order = None  # a field of those that may run a layer twice

    @nn.nowrap
    def _setup_common(self) -> None:
        if (self.token_embedder_factory is None) == (self.shared_token_embedder is None):
            raise ValueError(
                f"{type(self).__name__} got token_embedder_factory={self.token_embedder_factory} and "
                f"shared_token_embedder={self.shared_token_embedder}; expected exactly one of the two."
            )
        self.embedder = embedding.MultiEmbed(
            embedders=self._setup_embedders(),
            sow_intermediates=self.sow_intermediates,
            capture_gradients=self.capture_gradients,
        )
        transform = self.embedding_transform_factory
        self.embedding_transform = None if transform is None else transform()
        self.relpos_bias = self._setup_shared_bias()

    @nn.nowrap
    def _setup_embedders(self) -> dict[str, Any]:
        if self.token_embedder_factory is not None:
            self.token_embedder = self.token_embedder_factory()
            embedders = {"token_ids": self.token_embedder}
        else:
            embedders = {"token_ids": self.shared_token_embedder}
        if self.position_embedder_factory is not None:
            self.position_embedder = self.position_embedder_factory()
            embedders["position_ids"] = self.position_embedder
        if self.token_type_embedder_factory is not None:
            self.token_type_embedder = self.token_type_embedder_factory()
            embedders["token_type_ids"] = self.token_type_embedder
        return embedders

    @nn.nowrap
    def _setup_shared_bias(self) -> nn.Module | None:
        if self.shared_relative_position_bias_factory is None:
            return None
        if self.scan_layers:
            raise ValueError(
                f"{type(self).__name__} got shared_relative_position_bias_factory with scan_layers=True; expected a "
                "relative_position_bias_factory on the layer, since scanned layers own all they use."
            )
        return self.shared_relative_position_bias_factory()

    @nn.nowrap
    def _make_layer(self, index: int = 0) -> nn.Module:
        factories = self.layer_factory
        factory = factories[index % len(factories)] if isinstance(factories, Sequence) else factories
        layer = factory(shared_relative_position_bias=self.relpos_bias)
        scanned = getattr(layer, "scanned", self.scan_layers)
        if scanned != self.scan_layers:
            raise ValueError(
                f"{type(self).__name__}.scan_layers is {self.scan_layers} and {type(layer).__name__}.scanned is "
                f"{scanned}; expected the same of both. Set both, and scan_layers of the model too."
            )
        return layer

    @nn.nowrap
    def _embed(
        self, tokens: Array, positions: Array | None, name: str, *, segment_ids, decode: bool, token_types, valid
    ) -> Array:
        """The sum of token, position and type embeddings `[B T D]`, transformed as the stack says."""
        if tokens.ndim != getattr(self.embedder.embedders["token_ids"], "rank", 2):
            raise ShapeError(
                f"{type(self).__name__} got {name} of shape {tokens.shape}; expected rank 2, [batch, length]."
            )
        if 0 in tokens.shape:
            raise ShapeError(f"{type(self).__name__} got {name} of shape {tokens.shape}; expected at least one token.")
        inputs: dict[str, Any] = {"token_ids": tokens}
        if "position_ids" in self.embedder.embedders:
            inputs["position_ids"] = self._positions_of(tokens, name, valid) if positions is None else positions
        if "token_type_ids" in self.embedder.embedders:
            inputs["token_type_ids"] = jnp.zeros_like(tokens) if token_types is None else token_types
        elif token_types is not None:
            raise ValueError(
                f"{type(self).__name__} got token_types and embeds none; expected None. "
                "Give it a token_type_embedder_factory, or leave them out."
            )
        x = self.embedder(segment_ids=segment_ids, decode=decode, **inputs)
        return x if self.embedding_transform is None else call_part(self.embedding_transform, x)

    @nn.nowrap
    def _positions_of(self, tokens: Array, name: str, valid: Array | None) -> Array:
        """Positions where the caller names none: 0, 1, ... or as `number_tokens` says."""
        self._check_table(tokens.shape[-1], name)
        if self.number_tokens is None:
            return jnp.arange(tokens.shape[-1])[None]
        return self.number_tokens(tokens, jnp.ones_like(tokens, bool) if valid is None else valid)

    @nn.nowrap
    def _check_table(self, length: int, name: str) -> None:
        rows = table_rows(self.embedder.embedders["position_ids"])
        if rows is not None and length > rows:
            raise ValueError(
                f"{type(self).__name__} got {name} of {length} tokens; expected at most {rows}, the rows of its "
                "position table. Shorten the inputs or make the table longer."
            )

    @nn.nowrap
    def _shared_bias(
        self, x: Array, *, bidirectional: bool, step: Step, max_decode_length: int | None
    ) -> Array | Bias | None:
        """The bias of a module that all layers share: an array, computed once, unless all layers take a rule."""
        if self.relpos_bias is None or isinstance(self.relpos_bias, RichAttentionApi):
            return None
        return self_attention_bias(
            self.relpos_bias,
            x,
            bidirectional=bidirectional,
            step=step,
            max_decode_length=max_decode_length,
            lazy=takes_lazy_bias(*getattr(self, "layers", ())),
        )

    @nn.nowrap
    def _run(self, x: Array, args: tuple, arrays: Mapping[str, Any], statics: Mapping[str, Any]) -> Array:
        remat = repeat.resolve_remat(self.layer_remat, self.scan_layers)
        if self.scan_layers:
            layer = getattr(self, self._scan_name)
            if self._scans_itself:
                return repeat.call_layer(layer, x, args, arrays, statics)[0]
            return repeat.scan_layer(
                layer, x, args, arrays, statics, remat, length=self.num_layers, axis=self.scan_axis
            )
        order: Any = self.layer_order
        for layer in self.layers if order is None else [self.layers[index] for index in order]:
            x = repeat.run_layer(layer, x, args, arrays, statics, remat)
        return x

    @nn.nowrap
    def _setup_layers(self, construct_scanned: Callable[..., nn.Module]) -> None:
        if not self.scan_layers:
            self.layers = [self._make_layer(index) for index in range(self.num_layers)]
            return
        if isinstance(self.layer_factory, Sequence) or self.layer_order is not None:
            raise ValueError(
                f"{type(self).__name__} got several layer factories or a layer_order with scan_layers=True; expected "
                "one factory and no order, since scanned layers are all alike and run in turn."
            )
        made: list[nn.Module] = []

        def make_layer() -> nn.Module:
            made.append(self._make_layer())
            return made[-1]

        layer = construct_scanned(make_layer, self.num_layers)
        self._scans_itself = all(layer is not one for one in made)
        setattr(self, self._scan_name, layer)
