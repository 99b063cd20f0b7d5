"""Every embedder at the address of google/flaxformer.

The parts live in files of one idea each: `embedder` (the interfaces), `token_embedding`, `embedding_combiners`,
`hash_embedding` and `positions` (sinusoidal, learned, rotary).
"""

from flax.linen.linear import default_embed_init

from flaxformer.components.embedder import (
    Embedder,
    EmbedderWithDecode,
    EmbedderWithDeterministic,
    InspectableMultiEmbedder,
)
from flaxformer.components.embedding_combiners import DictEmbedder, EmbedCombineMethod, MultiEmbed
from flaxformer.components.hash_embedding import HashEmbed, NgramHashEmbed
from flaxformer.components.positions.learned import PositionEmbed
from flaxformer.components.positions.rotary import (
    apply_rotary_embedding,
    generate_fixed_pos_embedding,
    rotate_half,
)
from flaxformer.components.positions.sinusoidal import FixedEmbed
from flaxformer.components.token_embedding import Embed

__all__ = [
    "DictEmbedder",
    "Embed",
    "EmbedCombineMethod",
    "Embedder",
    "EmbedderWithDecode",
    "EmbedderWithDeterministic",
    "FixedEmbed",
    "HashEmbed",
    "InspectableMultiEmbedder",
    "MultiEmbed",
    "NgramHashEmbed",
    "PositionEmbed",
    "apply_rotary_embedding",
    "default_embed_init",
    "generate_fixed_pos_embedding",
    "rotate_half",
]
