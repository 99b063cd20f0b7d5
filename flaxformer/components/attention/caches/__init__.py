"""Caches: what attention remembers of earlier tokens, one kind per file.

* A `Step` with a slot (`flaxformer.decoding`) goes to `Cache.append`: prefill, chunk and single step are one call.
* The keywords `decode` and `prefill` (T5X's loop) go to `t5x_cache.CountedCache`, which counts tokens by itself.
* The encoder's keys and values go to `remember`.
"""

from flaxformer.components.attention.caches.base import Cache
from flaxformer.components.attention.caches.full import FullCache
from flaxformer.components.attention.caches.memory import remember
from flaxformer.components.attention.caches.place import Place, offsets
from flaxformer.components.attention.caches.quantized import QuantizedCache
from flaxformer.components.attention.caches.ring import RingCache
from flaxformer.components.attention.caches.store import from_cache, to_cache

__all__ = [
    "Cache",
    "FullCache",
    "Place",
    "QuantizedCache",
    "RingCache",
    "from_cache",
    "offsets",
    "remember",
    "to_cache",
]
