"""T5X's models: a module with its vocabularies, loss, decoding and scoring behind one interface.

They exist for code and gin files written against `t5x.models`, drive modules by T5X's keyword protocol (`decode`,
`prefill`, `prefill_lengths`), and return T5X's conventions (beams ascend, the best is last). New code has less to learn
with `flaxformer.training.step` and `flaxformer.decoding.generate`.
"""

from flaxformer.decoding.t5x import remove_prefix
from flaxformer.training.model_base import BaseModel, BaseTransformerModel, DecoderParams
from flaxformer.training.model_decoder_only import DecoderOnlyModel
from flaxformer.training.model_encoder_decoder import EncoderDecoderModel

__all__ = [
    "BaseModel",
    "BaseTransformerModel",
    "DecoderOnlyModel",
    "DecoderParams",
    "EncoderDecoderModel",
    "remove_prefix",
]
