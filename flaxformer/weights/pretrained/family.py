"""What a family of published models is to the loader: a gin file, its settings, and a table of names."""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flaxformer.weights.errors import CheckpointError
from flaxformer.weights.pretrained.attributes import Attributes
from flaxformer.weights.pretrained.rules import Rule


class Gin(str):
    """Gin text that stands on the right of a binding as it is, such as a reference."""


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of published models.

    Attributes:
      model_types: values of `model_type` in config.json.
      gin: the file that wires the model, `gin/<gin>.gin`.
      settings: from the configuration and the weights, which most only ask for names, to gin bindings: selector or
        macro to value.
      rules: the table, or what makes it from the configuration.
      renames: `(pattern, replacement)` for names of older files, each applied where it matches all of a name.
      unused: patterns of names that older files have and that carry nothing.
      prefix: what the names of the body begin with. Files of the body alone leave it out.
      heads: what the names that lack the prefix begin with.
      shares_bias: the layers of a stack share a relative position bias; scanned ones cannot, and get a copy each.
      scanned_gin: the file that scans the layers, if not that of all families, or of all that share a bias.
    """

    model_types: tuple[str, ...]
    gin: str
    settings: Callable[[Attributes, Any], Mapping[str, Any]]
    rules: Sequence[Rule] | Callable[[Attributes], Sequence[Rule]]
    renames: Sequence[tuple[str, str]] = ()
    unused: Sequence[str] = ()
    prefix: str = ""
    heads: tuple[str, ...] = ()
    shares_bias: bool = False
    scanned_gin: str | None = None

    def written(self, weights: Mapping[str, Any], attributes: Attributes) -> dict[str, Any]:
        """The weights as a folder of this architecture names them: a body alone has no prefix."""
        if not is_body(attributes):
            return dict(weights)
        return {name.removeprefix(self.prefix): weight for name, weight in weights.items()}

    @property
    def scanned(self) -> str:
        """The gin file that, read after `gin`, scans the layers."""
        return self.scanned_gin or ("t5_1_1/scanned" if self.shares_bias else "parts/scanned")

    def table(self, attributes: Attributes) -> Sequence[Rule]:
        """The rules for one configuration."""
        return self.rules(attributes) if callable(self.rules) else self.rules

    def renamed(self, weights: Mapping[str, Any]) -> dict[str, Any]:
        """The weights under the names of the table."""
        weights = {self._renamed(name): weight for name, weight in weights.items()}
        if not self.prefix or any(name.startswith(self.prefix) for name in weights):
            return weights
        return {name if name.startswith(self.heads) else self.prefix + name: w for name, w in weights.items()}

    def _renamed(self, name: str) -> str:
        for pattern, replacement in self.renames:
            match = re.fullmatch(pattern, name)
            name = match.expand(replacement) if match else name
        return name


# The modules under `families`; each has FAMILIES.
_MODULES = (
    "albert",
    "bart",
    "bert",
    "big_bird",
    "clip",
    "deberta",
    "fused",
    "gemma",
    "gpt2",
    "led",
    "llama",
    "longformer",
    "longt5",
    "opt",
    "t5",
    "t5gemma",
    "vit",
    "wav2vec2",
    "whisper",
)


def families() -> dict[str, Family]:
    """Every family by model type."""
    modules = [importlib.import_module(f"flaxformer.weights.pretrained.families.{name}") for name in _MODULES]
    return {kind: family for module in modules for family in module.FAMILIES for kind in family.model_types}


def find_family(attributes: Attributes) -> Family:
    """The family of a configuration.

    Raises:
      CheckpointError: a `ValueError`, for a model type that is not known.
    """
    known, kind = families(), attributes.need("model_type")
    if kind not in known:
        raise CheckpointError(
            f"{attributes.where} has model_type={kind!r}, which this library has no table for; expected one of "
            f"{', '.join(sorted(known))}. CONTRIBUTING.md shows how to add a family."
        )
    return known[kind]


def architecture(attributes: Attributes, default: str) -> str:
    """The class that the configuration names first, `BertForMaskedLM`; `default` where it names none."""
    named = attributes.get("architectures") or [default]
    return str(named[0])


def is_body(attributes: Attributes) -> bool:
    """Whether the architecture is a body without a head: `LlamaModel`, but not `GPT2LMHeadModel`."""
    named = architecture(attributes, "")
    return named.endswith("Model") and not named.endswith(("LMHeadModel", "MTModel"))


def without_logits(attributes: Attributes) -> dict[str, Any]:
    """Bindings for a body with a decoder, which ends in hidden states; none for other models."""
    return {"t5_architecture.Decoder.output_logits_factory": Gin("@logits.NoLogits")} if is_body(attributes) else {}


def bindings(settings: Mapping[str, Any]) -> list[str]:
    """Gin statements for settings."""
    return [f"{name} = {value if isinstance(value, Gin) else repr(value)}" for name, value in settings.items()]


def check_architecture(attributes: Attributes, *suffixes: str) -> None:
    """Refuses architectures that do not end in one of `suffixes`, the first of which is taken where none is named.

    Raises:
      CheckpointError: a `ValueError`.
    """
    named = architecture(attributes, suffixes[0])
    if not named.endswith(suffixes):
        raise CheckpointError(
            f"{attributes.where} has the architecture {named!r}, which is not implemented; expected one that ends in "
            f"{', '.join(suffixes)}."
        )
