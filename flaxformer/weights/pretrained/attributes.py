"""`config.json`, read attribute by attribute, so that none goes unnoticed."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from flaxformer.weights.errors import CheckpointError

# What says nothing about the numbers of a forward pass: bookkeeping, initialisation, the training loop, defaults of
# generation (which `generate` is given explicitly), and which outputs Hugging Face returns.
HARMLESS = frozenset(
    """
    _attn_implementation _name_or_path _num_labels architectures attn_implementation auto_map bad_words_ids
    begin_suppress_tokens bos_token_id chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id
    directionality diversity_penalty do_sample dtype early_stopping encoder_no_repeat_ngram_size eos_token_id
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id gradient_checkpointing
    id2label init_std initializer_factor initializer_range is_encoder_decoder keys_to_ignore_at_inference label2id
    language length_penalty max_length min_length model_type no_repeat_ngram_size num_beam_groups num_beams
    num_return_sequences output_attentions output_hidden_states output_past output_scores pad_token_id prefix
    problem_type remove_invalid_values repetition_penalty return_dict return_dict_in_generate sep_token_id
    suppress_tokens task_specific_params temperature tf_legacy_loss tie_encoder_decoder tie_weights_ tokenizer_class
    top_k top_p torch_dtype torchscript transformers.js_config transformers_version typical_p use_bfloat16 use_cache
    """.split()
)


@dataclasses.dataclass
class Attributes:
    """The attributes of a published configuration; what has been asked for is remembered.

    Attributes:
      values: the content of config.json.
      where: the file, for messages.
    """

    values: Mapping[str, Any]
    where: str
    read: set[str] = dataclasses.field(default_factory=set)
    parts: dict[str, Attributes] = dataclasses.field(default_factory=dict)

    def get(self, name: str, default: Any = None) -> Any:
        """The value, or `default` where it is missing or null."""
        self.read.add(name)
        value = self.values.get(name)
        return default if value is None else value

    def has(self, name: str) -> bool:
        """Whether the file says anything about it; null counts."""
        self.read.add(name)
        return name in self.values

    def need(self, name: str) -> Any:
        """The value.

        Raises:
          CheckpointError: a `ValueError`, when it is missing.
        """
        value = self.get(name)
        if value is None:
            raise CheckpointError(f"{self.where} does not say {name!r}; expected a value. Is the file complete?")
        return value

    def one_of(self, name: str, default: Any, *implemented: Any) -> Any:
        """The value, which must be among those implemented; `default` always is.

        Raises:
          CheckpointError: a `ValueError`, for any other.
        """
        value = self.get(name, default)
        if value not in (default, *implemented):
            options = ", ".join(dict.fromkeys(map(repr, (default, *implemented))))
            raise CheckpointError(
                f"{self.where} has {name}={value!r}, which is not implemented; expected {options}. "
                "Nothing was loaded, since the numbers would not be those of this checkpoint."
            )
        return value

    def part(self, name: str) -> Attributes:
        """The attributes of a part of the model, which stand under `name`."""
        self.read.add(name)
        if name not in self.parts:
            self.parts[name] = Attributes(self.values.get(name) or {}, f"{name} in {self.where}")
        return self.parts[name]

    def without_effect(self, *names: str) -> None:
        """Declares attributes that this family has and that say nothing about its numbers."""
        self.read.update(names)

    def check_all_read(self) -> None:
        """Refuses what nobody asked for.

        Raises:
          CheckpointError: a `ValueError`, naming every such attribute.
        """
        for part in self.parts.values():
            part.check_all_read()
        if not self.values.get("pruned_heads"):
            self.read.add("pruned_heads")  # old files have an empty one
        unknown = sorted(set(self.values) - self.read - HARMLESS)
        if unknown:
            near = [difflib.get_close_matches(name, self.read, 1) for name in unknown]
            hint = "".join(f" Did you mean {found[0]!r}?" for found in near if found)
            shown = ", ".join(f"{name}={self.values[name]!r}" for name in unknown)
            raise CheckpointError(
                f"{self.where} has attributes that are not known for model_type "
                f"{self.values.get('model_type')!r}: {shown}; expected only known ones, since they might change the "
                f"numbers.{hint} Take out of the file what does not."
            )


_ACTIVATIONS = {
    "gelu": "gelu_exact", "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu_fast": "gelu",
    "gelu_python": "gelu_exact", "quick_gelu": "quick_gelu", "relu": "relu", "silu": "silu", "swish": "silu",
    "tanh": "tanh", "sigmoid": "sigmoid", "leaky_relu": "leaky_relu", "linear": "linear",
}  # fmt: skip


def activation(attributes: Attributes, name: str, default: str) -> str:
    """Our name of the activation that the attribute `name` names."""
    return _ACTIVATIONS[attributes.one_of(name, default, *_ACTIVATIONS)]


def our_activation(attributes: Attributes, theirs: str, source: str) -> str:
    """Our name of the activation `theirs`, which was part of the attribute `source`."""
    if theirs not in _ACTIVATIONS:
        raise CheckpointError(
            f"{attributes.where} has {source} with the activation {theirs!r}, which is not implemented; expected one "
            f"of {', '.join(_ACTIVATIONS)}."
        )
    return _ACTIVATIONS[theirs]
