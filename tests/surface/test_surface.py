"""Every import path, class, attribute, default and call keyword that users of google/flaxformer hold is there."""

import ast
import dataclasses
import enum
import importlib
import inspect
import operator
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer import retired
from flaxformer.architectures.t5 import t5_architecture
from flaxformer.components import dense, embedding, initializers
from flaxformer.components.attention import dense_attention
from tests.contracts import models
from tests.contracts.parts import PARTS

TEXT = (pathlib.Path(__file__).parent / "surface.txt").read_text()
NAMES = {
    "float32": jnp.float32,
    "bfloat16": jnp.bfloat16,
    "np": np,
    "sum": sum,
    "multiply": jnp.multiply,
    "lecun_normal": nn.linear.default_kernel_init,
    "xavier_uniform": nn.initializers.xavier_uniform(),
    "zeros": nn.initializers.zeros,
    "ones": nn.initializers.ones,
    "normal_1e_6": nn.initializers.normal(stddev=1e-6),
    "embed_init": embedding.default_embed_init,
    "linear_embed_init": nn.linear.default_embed_init,
    "sinusoidal": initializers.sinusoidal(),
    "SUM": embedding.EmbedCombineMethod.SUM,
    "LEGACY": t5_architecture.LayerRemat.LEGACY,
    "DenseGeneral": dense.DenseGeneral,
    "dot_product_attention": dense_attention.dot_product_attention,
    "dot_product_attention_multiquery": dense_attention.dot_product_attention_multiquery,
}
INITIALIZERS = [value for name, value in NAMES.items() if "init" in name or name in (
    "lecun_normal", "xavier_uniform", "zeros", "ones", "normal_1e_6", "sinusoidal")]  # fmt: skip


class Entry(NamedTuple):
    """One line of the table: the module, `class`, `def`, `names` or `const`, and the rest of the line."""

    module: str
    kind: str
    text: str


def entries() -> Iterator[Entry]:
    module = ""
    for line in TEXT.splitlines():
        kind, _, text = line.partition(" ")
        if kind == "module":
            module = text
        elif line and kind != "#":
            yield Entry(module, kind, text)


ENTRIES = list(entries())


def of_kind(kind):
    found = [(entry.module, entry.text) for entry in ENTRIES if entry.kind == kind]
    return [pytest.param(*pair, id=f"{pair[0].rpartition('.')[2]}.{pair[1].partition('(')[0]}") for pair in found]


def signature(text) -> tuple[str, list[tuple[str, Any]], list[tuple[str, Any]]]:
    """The dotted name, and the positional and keyword-only parameters with their defaults."""
    name, _, parameters = text.partition("(")
    found = ast.parse(f"def f({parameters}: ...".replace("*)", ")")).body[0].args
    missing = [None] * (len(found.args) - len(found.defaults))
    positional = [(a.arg, _default(d)) for a, d in zip(found.args, [*missing, *found.defaults], strict=True)]
    return name, positional, [(a.arg, _default(d)) for a, d in zip(found.kwonlyargs, found.kw_defaults, strict=True)]


def _default(node):
    return inspect.Parameter.empty if node is None else eval(ast.unparse(node), dict(NAMES))


def same(ours, recorded):
    """Equal defaults; initialisers are equal when they draw the same numbers."""
    if isinstance(ours, staticmethod):
        ours = ours.__func__
    if any(recorded is initializer for initializer in INITIALIZERS) and ours is not recorded:
        draw = [np.asarray(f(jax.random.PRNGKey(0), (4, 6), jnp.float32)) for f in (ours, recorded)]
        return np.array_equal(*draw)
    if recorded in (jnp.float32, jnp.bfloat16) and recorded is not inspect.Parameter.empty:
        return jnp.dtype(ours) == jnp.dtype(recorded)
    if isinstance(recorded, dict):
        return dict(ours) == recorded if ours is not None else recorded == {}
    return ours is recorded or ours == recorded


def found_at(module, dotted):
    return operator.attrgetter(dotted)(importlib.import_module(module))


@pytest.mark.parametrize(("module", "text"), of_kind("class"))
def test_constructor_attributes_are_there_in_order_with_their_defaults(module, text):
    name, recorded, _ = signature(text)
    ours = [field for field in dataclasses.fields(found_at(module, name)) if field.name not in ("parent", "name")]
    assert [field.name for field in ours[: len(recorded)]] == [attribute for attribute, _ in recorded]
    for field, (attribute, default) in zip(ours, recorded, strict=False):
        made = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        if default is inspect.Parameter.empty:
            assert made is dataclasses.MISSING, attribute
        else:
            assert same(made, default), (attribute, made)
    assert all(field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
               for field in ours[len(recorded):])  # fmt: skip


@pytest.mark.parametrize(("module", "text"), of_kind("def"))
def test_functions_and_methods_take_their_arguments(module, text):
    name, positional, named = signature(text)
    function = found_at(module, name)
    ours = dict(inspect.signature(function).parameters)
    if inspect.isfunction(function) and "." in name and next(iter(ours), None) == "self":
        del ours["self"]
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)
    order = [parameter for parameter in ours.values() if parameter.kind in kinds]
    assert [parameter.name for parameter in order[: len(positional)]] == [argument for argument, _ in positional]
    for argument, default in [*positional, *named]:
        assert argument in ours, argument
        if default is inspect.Parameter.empty:
            continue  # what had to be given may be left out here
        assert ours[argument].default is not inspect.Parameter.empty, argument
        assert same(ours[argument].default, default), (argument, ours[argument].default)
    given = {argument for argument, _ in [*positional, *named]}
    open_kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    extra = [p for p in ours.values() if p.name not in given and p.kind not in open_kinds]
    assert all(parameter.default is not inspect.Parameter.empty for parameter in extra), extra


@pytest.mark.parametrize(("module", "text"), of_kind("names"))
def test_names_are_there(module, text):
    for name in text.split():
        assert found_at(module, name) is not None, name


@pytest.mark.parametrize(("module", "text"), of_kind("const"))
def test_constants_have_their_values(module, text):
    name, _, value = text.partition(" = ")
    found = found_at(module, name)
    found = found.value if isinstance(found, enum.Enum) else found
    assert found == ast.literal_eval(value)


# Legacy arguments, and a value of each that asks for nothing or is still understood.
HARMLESS = {
    "use_aqt": False, "weight_params": None, "act_params": None, "possibly_use_quantized_vars": False,
    "is_quant_finetune_mode": False, "spmd_annotations": {"encoder": None, "decoder": None},
    "activation_partitioning_dims": 1, "sow_intermediates": True, "use_in_mlp_parallel_fused_layer": True,
    "one_hot": True,
}  # fmt: skip


def test_every_legacy_argument_is_in_a_table_that_says_what_to_write_now():
    assert set(retired.RETIRED) | set(retired.ACCEPTED) == set(HARMLESS) | {"inner_scan_spmd"}
    assert all(len(sentence) > 30 for sentence in (*retired.RETIRED.values(), *retired.ACCEPTED.values()))


def holders():
    """Every class of the surface with every legacy argument that it has."""
    for module, text in [(e.module, e.text) for e in ENTRIES if e.kind == "class"]:
        name, recorded, _ = signature(text)
        for attribute in sorted(HARMLESS.keys() & dict(recorded).keys()):
            yield pytest.param(module, name, attribute, id=f"{name}.{attribute}")


@pytest.mark.parametrize(("module", "name", "attribute"), list(holders()))
def test_legacy_arguments_are_accepted_where_they_stood(module, name, attribute):
    kind = found_at(module, name)
    fields = [field for field in dataclasses.fields(kind) if field.name not in ("parent", "name")]
    missing = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING]
    made = kind(**{**dict.fromkeys(missing), attribute: HARMLESS[attribute]})
    assert getattr(made, attribute) == HARMLESS[attribute]


@pytest.mark.parametrize("attribute", ["use_aqt", "weight_params", "act_params", "possibly_use_quantized_vars"])
@pytest.mark.parametrize("part", ["MlpBlock", "MultiQueryDotProductAttention", "ParallelFusedDecoderLayer"])
def test_retired_arguments_that_ask_for_something_are_refused_with_the_sentence(part, attribute):
    x = jnp.ones((1, 2, 16))
    modules = {
        "MlpBlock": (models.mlp(), (x,)),
        "MultiQueryDotProductAttention": (models.attention("multi_query"), (x, x)),
        "ParallelFusedDecoderLayer": (PARTS["ParallelFusedDecoderLayer"].module(), (x, None)),
    }
    module, args = modules[part]
    with pytest.raises(retired.RetiredError) as error:
        jax.eval_shape(lambda: module.clone(**{attribute: True}).init(jax.random.key(0), *args, enable_dropout=False))
    assert retired.RETIRED[attribute] in str(error.value) and part in str(error.value)
