"""Fine-tuning any model of this library, in any training loop: train some parameters only, or adapters beside them.

>>> from flaxformer import finetuning
>>> finetuning.matching({"encoder": {"kernel": 0}, "decoder": {"kernel": 0}}, ["decoder/.*"])
{'decoder': {'kernel': True}, 'encoder': {'kernel': False}}
"""

from flaxformer.finetuning.freezing import join, split, train_only
from flaxformer.finetuning.lora import LoRA, load_adapters, save_adapters
from flaxformer.finetuning.paths import matching

__all__ = ["LoRA", "join", "load_adapters", "matching", "save_adapters", "split", "train_only"]
