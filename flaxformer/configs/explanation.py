"""What a configuration builds, found out by tracing: no array is made and no device is needed."""

import dataclasses
import inspect
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
from flaxformer.configs.loading import chosen_root
from flaxformer.configs.parsing import read
from flaxformer.configs.values import Bound, brief, short

TOKENS = ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens")


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
      length: the tokens of each input that `flops` counts.
      flops: operations of all products of one forward pass over one example.
      tokens: tokens of that example: those encoded and those decoded.
      bindings: macros first, then the parameters bound per class.
    """

    root: str
    model: str
    files: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    length: int
    flops: int
    tokens: int
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
        """Forward operations per token; a training step takes about three times as many."""
        return self.flops / self.tokens


def explain(
    name: PathLike | Sequence[PathLike],
    bindings: Sequence[str] = (),
    search_paths: Sequence[PathLike] = (),
    *,
    root: str | None = None,
    length: int = 512,
) -> Explanation:
    """Reads, checks and builds a configuration, and traces one forward pass of it.

    Args:
      name: as `flaxformer.configs.load` takes it, like `bindings`, `search_paths` and `root`.
      length: tokens per input in the traced pass.

    Raises:
      ConfigurationError: for whatever is wrong in the files, for a root that is no model over tokens, and for a model
        that cannot be initialised.

    >>> explain("t5_1_1/tiny", ["NUM_EMBEDDINGS = 100"], length=8).model
    'EncoderDecoder'
    """
    configuration = read(name, bindings, search_paths, macros=[root] if root else [])
    root = chosen_root(configuration, root)
    model = _module(configuration.build(root), root)
    tokens = _token_arguments(model, length)
    variables = _abstract_variables(model, tokens)
    traced = jax.make_jaxpr(lambda v: model.apply(v, **_zeros(tokens), enable_dropout=False))(variables)
    processed = [argument for argument in tokens if argument != "decoder_target_tokens"]
    return Explanation(
        root=root,
        model=type(model).__name__,
        files=tuple(map(str, configuration.files)),
        parameters=tuple(parameter_table(variables)),
        length=length,
        flops=matmul_flops(traced),
        tokens=length * len(processed),
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


def _token_arguments(model: nn.Module, length: int) -> dict[str, tuple[int, int]]:
    """The shapes of the token arrays that calling `model` needs."""
    signature = inspect.signature(type(model).__call__).parameters
    required = [name for name, p in signature.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    unknown = [name for name in required[1:] if name not in TOKENS]
    wanted = [name for name in signature if name in TOKENS]
    if unknown or not wanted:
        raise ConfigurationError(
            f"{type(model).__name__} is called with {', '.join(required[1:]) or 'nothing'}; expected a model over "
            f"tokens, called with some of {', '.join(TOKENS)}. Name another macro with root=...."
        )
    return dict.fromkeys(wanted, (1, length))


def _abstract_variables(model: nn.Module, tokens: Mapping[str, tuple[int, int]]) -> Any:
    """The model's variables without their numbers."""
    try:
        return jax.eval_shape(lambda: model.init(jax.random.key(0), **_zeros(tokens), enable_dropout=False))
    except ValueError:
        raise
    except Exception as error:
        raise ConfigurationError(
            f"the files are read, but the {type(model).__name__} that they describe cannot be initialised: "
            f"{type(error).__name__}: {error} Is a value bound to something of another type than it takes?"
        ) from error


def _zeros(tokens: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    return {name: jnp.zeros(shape, jnp.int32) for name, shape in tokens.items()}


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
