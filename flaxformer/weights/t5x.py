"""T5X's checkpoints: read in all their forms, written in T5X's own.

    state = load_t5x_checkpoint("models/t5_1_1_small")              # {"target": ..., "state": {"step": ..., ...}}
    params = restore_params(model, "models/t5_1_1_small")           # checked against the model, in its layout
    save_t5x_checkpoint("models/mine", {"target": params}, step=1000)

Glossary:

* *state*: nested dicts `target` (the parameters), `state` (`step`, and `param_states`: the optimizer's statistics per
  parameter) and, where the model has other collections, `flax_mutables`. Names are paths in it, joined by '/'.
* *native* form: `checkpoint_<step>/` with a msgpack document `checkpoint` and a zarr folder per large array.
* *early* and *present orbax* form: what later versions of T5X write. This library's own checkpoints have the latter.
* *save format*: parameters with the version of their layout beside them, see `architectures.common.param_remapping`.

T5X, TensorFlow and orbax are not needed. Arrays compressed by other than gzip need tensorstore
(`pip install 'flaxformer[weights]'`).
"""

from flaxformer.weights.arrays import StoredArray
from flaxformer.weights.assignment import apply_assignment_map, make_assignment_map_fn
from flaxformer.weights.errors import CheckpointError
from flaxformer.weights.finding import CheckpointType, detect_checkpoint_type, find_checkpoint
from flaxformer.weights.layouts import share_relative_bias, split_relative_bias, stack_layers, unstack_layers
from flaxformer.weights.loading import load_t5x_checkpoint
from flaxformer.weights.restoring import restore_params
from flaxformer.weights.retired_layouts import dequantize, join_heads
from flaxformer.weights.writing import save_t5x_checkpoint

__all__ = [
    "CheckpointError",
    "CheckpointType",
    "StoredArray",
    "apply_assignment_map",
    "dequantize",
    "detect_checkpoint_type",
    "find_checkpoint",
    "join_heads",
    "load_t5x_checkpoint",
    "make_assignment_map_fn",
    "restore_params",
    "save_t5x_checkpoint",
    "share_relative_bias",
    "split_relative_bias",
    "stack_layers",
    "unstack_layers",
]
