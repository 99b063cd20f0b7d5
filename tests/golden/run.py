"""Runs a recorded case and asserts that everything recorded about it holds."""

import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util

from tests.golden import compare
from tests.golden.build import Case, build, build_list, load, resolve

# Recorded gradients are held to 1e-5; the tests' own fast compilation rounds long sums differently, and so does a
# product split over threads, by as many as the machine has free.
AS_USERS_COMPILE = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
    "xla_cpu_multi_thread_eigen": False,
}


def run_case(name: str) -> None:
    """Runs the case `name`, whatever its kind."""
    case = load(name)
    _KINDS[case.description["kind"]](case)


def run_module(case: Case) -> None:
    """Parameter tree and axes; then each call's output, cache and other collections; then gradients."""
    module = resolve(case.description["target"])(**build(case.description["constructor"], case.arrays))
    check_parameters(case, module)
    params = _parameters(case)
    caches = {}
    for call in case.description["calls"]:
        if call.get("init"):
            initialised = module.init(init_rngs(), *_arguments(case, call), **_keywords(case, call))["params"]
            compare.assert_arrays_match(initialised, case.flat(f"outputs/{call['id']}"), case, call["id"])
        else:
            output, collections = _apply(case, module, params, call, caches)
            _check_call(case, call, output, collections)
            caches[call["id"]] = collections.get("cache")
    if "grads" in case.description:
        _check_gradients(case, module, params)


def run_functions(case: Case) -> None:
    """Each call of a plain function returns what is recorded."""
    for call in case.description["calls"]:
        function = resolve(call.get("target", case.description["target"]))
        output = function(*_arguments(case, call), **_keywords(case, call))
        if call.get("returns_none"):
            assert output is None
        else:
            compare.assert_output_matches(output, case, call["id"])


def run_initializer(case: Case) -> None:
    """Each initializer makes the recorded array."""
    seed = case.description.get("prng_seed")
    key = None if seed is None else jax.random.PRNGKey(seed)
    for call in case.description["calls"]:
        initializer = resolve(case.description["target"])(**call["factory_kwargs"])
        compare.assert_output_matches(initializer(key, tuple(call["shape"])), case, call["id"])


def run_bucket_table(case: Case) -> None:
    """The buckets of relative positions, from the NumPy and from the JAX path."""
    target = resolve(case.description["target"])
    positions = case.arrays["inputs/relative_position"]
    for call in case.description["calls"]:
        settings = {key: value for key, value in call.items() if key != "id"}
        compare.assert_output_matches(target(positions, **settings), case, call["id"])
        compare.assert_output_matches(target(jnp.asarray(positions), **settings), case, f"{call['id']}_jax")


def check_parameters(case: Case, module: nn.Module) -> None:
    """Initialisation, without running it, makes parameters of the recorded names, shapes, dtypes and axes."""
    calls = case.description["calls"]
    call = next((c for c in calls if "method" not in c and "cache_from" not in c), calls[0])
    args = _arguments(case, call)
    # Caches come from apply: decoding makes no parameters, and a relative bias refuses it inside init.
    keywords = {name: value for name, value in _keywords(case, call).items() if name != "decode"}
    variables = jax.eval_shape(lambda rngs: module.init(rngs, *args, **keywords), init_rngs())
    assert compare.shapes(variables.get("params", {})) == case.description.get("param_tree", {})
    assert compare.flatten_axes(variables.get("params_axes", {})) == case.description.get("params_axes", {})


def _apply(
    case: Case, module: nn.Module, params: Any, call: Mapping[str, Any], caches: Mapping[str, Any]
) -> tuple[Any, Mapping[str, Any]]:
    variables = {"params": params}
    source = call.get("cache_from")
    if source is not None:
        recorded = jax.tree.map(jnp.asarray, case.tree(source)) if source.startswith("inputs/") else None
        variables["cache"] = recorded or caches[source]
    mutable = call.get("mutable", [])
    output, collections = module.apply(
        variables,
        *_arguments(case, call),
        method=call.get("method"),
        mutable=mutable,
        rngs={stream: jax.random.PRNGKey(seed) for stream, seed in call.get("rngs", {}).items()},
        **_keywords(case, call),
    )
    return output, collections


def _check_call(case: Case, call: Mapping[str, Any], output: Any, collections: Mapping[str, Any]) -> None:
    name = call["id"]
    if not call.get("output_not_stored"):
        compare.assert_output_matches(output, case, name)
    if "cache_tree" in call:
        assert compare.shapes(collections["cache"]) == call["cache_tree"], f"cache of {name}"
    axes = {collection: compare.flatten_axes(collections[collection]) for collection in call.get("axes", {})}
    assert axes == call.get("axes", {})
    for collection in collections:
        recorded = case.flat(f"{collection}/{name}")
        if recorded and not (collection == "cache" and _caches_rotated_keys(case)):
            compare.assert_arrays_match(collections[collection], recorded, case, f"{collection} of {name}")


def _caches_rotated_keys(case: Case) -> bool:
    """Keys are cached rotated here, and were rotated at every step where the case was recorded."""
    return '"use_rotary_embedding": true' in json.dumps(case.description["constructor"])


def _check_gradients(case: Case, module: nn.Module, params: Any) -> None:
    call = case.description["calls"][0]
    args, keywords = _arguments(case, call), _keywords(case, call)
    weights = jnp.asarray(case.arrays["inputs/w"])
    # Compiled, unlike the calls: those share operations with other cases, and the backward pass has many of its own.
    gradient = jax.grad(lambda p: jnp.sum(module.apply({"params": p}, *args, **keywords) * weights))
    gradients = jax.jit(gradient, compiler_options=AS_USERS_COMPILE)(params)
    compare.assert_arrays_match(gradients, case.flat("grads"), case, "gradients")


def _parameters(case: Case) -> Any:
    arrays = {path: jnp.asarray(a, case.description["param_tree"][path][1]) for path, a in case.flat("params").items()}
    return traverse_util.unflatten_dict(arrays, sep="/")


def _arguments(case: Case, call: Mapping[str, Any]) -> list[Any]:
    return build_list(call.get("args", []), case.arrays)


def _keywords(case: Case, call: Mapping[str, Any]) -> dict[str, Any]:
    return build(call.get("kwargs", {}), case.arrays)


def init_rngs() -> dict[str, jax.Array]:
    """The keys that recorded initialisations used."""
    return {"params": jax.random.PRNGKey(0), "dropout": jax.random.PRNGKey(1)}


_KINDS = {
    "module": run_module,
    "function": run_functions,
    "initializer": run_initializer,
    "bucket_table": run_bucket_table,
}
