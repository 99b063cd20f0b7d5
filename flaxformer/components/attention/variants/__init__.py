"""Attention functions for the layers' `attention_fn`, one idea per file; `docs/attention.md` lists them.

An object has no parameters, a Linen module owns its own. Each is called with the keywords of
`flaxformer.components.attention.attention_functions.dot_product_attention`, and tells its weights by `weights`.
"""

from flaxformer.components.attention.variants.attend import Attend
from flaxformer.components.attention.variants.differential import Differential
from flaxformer.components.attention.variants.lsh import Lsh
from flaxformer.components.attention.variants.qk_norm import UnitNorm
from flaxformer.components.attention.variants.sigmoid import Sigmoid
from flaxformer.components.attention.variants.sinks import Sinks
from flaxformer.components.attention.variants.talking_heads import TalkingHeads

__all__ = ["Attend", "Differential", "Lsh", "Sigmoid", "Sinks", "TalkingHeads", "UnitNorm"]
