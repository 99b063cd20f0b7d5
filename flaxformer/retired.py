"""Old names that no longer mean anything, and what to write now.

Configurations written for google/flaxformer may still bind these names. A harmless value, one that asks for nothing, is
accepted; any other is refused with the sentence of the table, before anything is computed with the wrong meaning.
"""

from collections.abc import Mapping
from typing import Any

from flaxformer.errors import UnsupportedError

_QUANTIZE = (
    "Quantised computation is retired: remove the binding, and compute in half precision with dtype='bfloat16', "
    "or pass a quantising module as dense_general_factory where the part has one."
)
_QUANTIZED_CHECKPOINT = (
    "Kernels stored as int8 (`qkernel`, `qscale`) are retired: remove the binding, and convert the checkpoint once to "
    "float32 with kernel = qkernel / qscale."
)

RETIRED: Mapping[str, str] = {
    "use_aqt": _QUANTIZE,
    "weight_params": _QUANTIZE,
    "act_params": _QUANTIZE,
    "possibly_use_quantized_vars": _QUANTIZED_CHECKPOINT,
    "is_quant_finetune_mode": _QUANTIZED_CHECKPOINT,
}

_RULES = (
    "Set it to None and give logical axis rules: flax.linen.partitioning.axis_rules(rules). 1 and 2 still mean what "
    "they did without rules; 2 beside rules is refused."
)

ACCEPTED: Mapping[str, str] = {
    "spmd_annotations": "Leave it out: parameters carry axis names in params_axes, also when scanned.",
    "activation_partitioning_dims": _RULES,
    "sow_intermediates": "On attention: ask for mutable=['attention'] to get weights. On layers and stacks it means "
    "what it did.",
    "use_in_mlp_parallel_fused_layer": "Leave it out: which axes are features is num_feature_dims.",
    "one_hot": "Leave it out: tables are gathered from. On Embed it still chooses a product, of the same result.",
    "inner_scan_spmd": "Leave it out: the compiler keeps parameters of a scan where they are.",
}
"""Old names that are accepted whatever their value, and what to write now."""


class RetiredError(UnsupportedError):
    """A retired name was given a value that asks for something."""


def refuse_retired(owner: object, **values: Any) -> None:
    """Refuses values of retired names that ask for something; `None`, `False` and their like pass.

    Args:
      owner: the module that was given the values; its class is named in the message.
      **values: retired name -> the value it was given. Every name must stand in `RETIRED`.

    Raises:
      RetiredError: quoting the table's sentence for the first value that is not harmless.

    >>> refuse_retired(object(), use_aqt=False, weight_params=None)
    """
    for name, value in values.items():
        sentence = RETIRED[name]
        if value is not None and value is not False:
            raise RetiredError(
                f"{name}={value!r} was given to {type(owner).__name__}; expected it unset, None or False. {sentence}"
            )
