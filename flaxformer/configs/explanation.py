"""What a configuration builds, found out by tracing: no array is made and no device is needed."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp

from flaxformer.configs.configuration import Configuration
from flaxformer.configs.errors import ConfigurationError, Location
from flaxformer.configs.files import PathLike
from flaxformer.configs.flops import matmul_flops
from flaxformer.configs.inputs import Given, Inputs, processed_tokens, required_inputs
from flaxformer.configs.loading import chosen_root
from flaxformer.configs.parsing import read
from flaxformer.configs.values import Bound, brief, short


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One array of a model: its path in the parameter tree, its shape, and the logical name of each axis."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    axes: tuple[str | None, ...] | None

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.size * jnp.dtype(self.dtype).itemsize


@dataclasses.dataclass(frozen=True)
class Binding:
    """One bound name: its gin text, where it was bound, and where what it replaced was bound (latest first)."""

    name: str
    value: str
    location: Location
    replaced: tuple[Location, ...] = ()


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What a set of gin files builds.

    Attributes:
      root: the macro that was built.
      model: the class of what it built.
      files: the files read, in order.
      parameters: every parameter, in the order of the tree.
      inputs: what the traced pass reads: the shape and type of each argument by its name.
      flops: operations of all products of that pass.
      tokens: tokens that it reads, those encoded and those decoded; None when it also reads what is no tokens.
      bindings: macros first, then the parameters bound per class.
    """

    root: str
    model: str
    files: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    inputs: Inputs
    flops: int
    tokens: int | None
    bindings: tuple[Binding, ...]

    @property
    def size(self) -> int:
        """The number of parameters."""
        return sum(parameter.size for parameter in self.parameters)

    @property
    def bytes(self) -> int:
        """The bytes of all parameters."""
        return sum(parameter.bytes for parameter in self.parameters)

    @property
    def flops_per_token(self) -> float:
        """Forward operations per token; a training step takes about three times as many.

        Raises:
          ValueError: for a model that does not read tokens alone.
        """
        if self.tokens is None:
            raise ValueError(
                f"flops_per_token was asked of {self.model}, which reads {', '.join(self.inputs)}; expected a model "
                "over tokens alone. Ask for flops, those of one pass over its inputs."
            )
        return self.flops / self.tokens


def explain(
    name: PathLike | Sequence[PathLike],
    bindings: Sequence[str] = (),
    search_paths: Sequence[PathLike] = (),
    *,
    root: str | None = None,
    length: int | None = None,
    inputs: Mapping[str, Given] | None = None,
) -> Explanation:
    """Reads, checks and builds a configuration, and traces one forward pass of it.

    Args:
      name: as `flaxformer.configs.load` takes it, like `bindings`, `search_paths` and `root`.
      length: tokens per input in the traced pass; 512 when None, or as many as the model has positions.
      inputs: what the traced pass reads instead of, or besides, one example of what the model says that it reads: for
        each argument its shape, or an array or `jax.ShapeDtypeStruct`. A shape alone is one of the type that the model
        says, of token ids if the argument is named like these, else of float32.

    Raises:
      ConfigurationError: for whatever is wrong in the files, for a root that is no model, for a model that does not say
        what it reads when `inputs` does not either, and for one that cannot be initialised.

    >>> explain("t5_1_1/tiny", ["NUM_EMBEDDINGS = 100"], length=8).model
    'EncoderDecoder'
    >>> explain("vit/tiny").inputs["images"].shape
    (1, 8, 12, 3)
    """
    configuration = read(name, bindings, search_paths, macros=[root] if root else [])
    root = chosen_root(configuration, root)
    model = _module(configuration.build(root), root)
    with _reported(model):
        reads = required_inputs(model, length, inputs or {})
        variables = jax.eval_shape(lambda: model.init(jax.random.key(0), **_zeros(reads), enable_dropout=False))
    traced = jax.make_jaxpr(lambda v: model.apply(v, **_zeros(reads), enable_dropout=False))(variables)
    return Explanation(
        root=root,
        model=type(model).__name__,
        files=tuple(map(str, configuration.files)),
        parameters=tuple(parameter_table(variables)),
        inputs=reads,
        flops=matmul_flops(traced),
        tokens=processed_tokens(reads),
        bindings=tuple(_bindings(configuration)),
    )


def parameter_table(variables: Mapping[str, Any]) -> Iterator[Parameter]:
    """The parameters in `variables`, which may be abstract, with the axis names of their `params_axes`."""
    axes: dict[str, Any] = flax.traverse_util.flatten_dict(dict(variables.get("params_axes", {})), sep="/")
    params: dict[str, Any] = flax.traverse_util.flatten_dict(dict(variables["params"]), sep="/")
    for name, value in params.items():
        metadata = axes.get(f"{name}_axes")
        yield Parameter(name, value.shape, str(value.dtype), None if metadata is None else tuple(metadata.names))


def _module(built: Any, root: str) -> nn.Module:
    """The Linen module that was built, or that a model object wraps in its attribute `module`."""
    module = built if isinstance(built, nn.Module) else getattr(built, "module", None)
    if not isinstance(module, nn.Module):
        raise ConfigurationError(
            f"{root} is a {type(built).__name__}; expected a Linen module, or an object with one as its attribute "
            "`module`. Name the macro that holds the model with root=..., on the command line --root."
        )
    return module


@contextlib.contextmanager
def _reported(model: nn.Module) -> Iterator[None]:
    """Says of what fails inside that it comes from the files."""
    try:
        yield
    except ValueError:
        raise
    except Exception as error:
        raise ConfigurationError(
            f"the files are read, but the {type(model).__name__} that they describe cannot be initialised: "
            f"{type(error).__name__}: {error} Is a value bound to something of another type than it takes?"
        ) from error


def _zeros(inputs: Inputs) -> dict[str, Any]:
    return {name: jnp.zeros(each.shape, each.dtype) for name, each in inputs.items()}


def _bindings(configuration: Configuration) -> Iterator[Binding]:
    for name, bound in configuration.macros.items():
        yield _binding(name, bound)
    paths = {target: short(path) for path, target in reversed(configuration.targets.items())}
    for (scope, target), found in configuration.bindings.items():
        for parameter, bound in found.items():
            yield _binding(f"{'/'.join((*scope, paths[target]))}.{parameter}", bound)


def _binding(name: str, bound: Bound) -> Binding:
    replaced, earlier = [], bound.replaced
    while earlier is not None:
        replaced.append(earlier.location)
        earlier = earlier.replaced
    return Binding(name, brief(bound.value), bound.location, tuple(replaced))
