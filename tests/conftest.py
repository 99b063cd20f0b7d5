"""Tests run on the CPU, seen as eight devices so that sharding is real."""

import contextlib
import functools
import gc
import os
import pathlib
import subprocess
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # there is none, and making its keys takes time
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()

# Most of the time goes into compiling, and the programs are tiny: LLVM's costly passes are left out, and so are fusions
# by MLIR and code split for parallel compilation, which take half of what remains.
LIGHT_COMPILATION = [
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
]


def known_flags(flags: list[str]) -> list[str]:
    """Those that this XLA knows; it ends the process at the first that it does not."""

    def works(some: list[str]) -> bool:
        environment = os.environ | {"XLA_FLAGS": " ".join(some)}
        command = [sys.executable, "-c", "import jax; jax.devices()"]
        return subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 0

    return flags if works(flags) else [flag for flag in flags if works([flag])]


if "xla_backend_optimization_level" not in os.environ["XLA_FLAGS"]:  # workers find what their parent found
    os.environ["XLA_FLAGS"] = " ".join([os.environ["XLA_FLAGS"], *known_flags(LIGHT_COMPILATION)])

import jax  # noqa: E402
import pytest  # noqa: E402

gc.set_threshold(100_000, 20, 100)  # traced programs are many objects and little garbage
MOST_MAPPINGS = 20_000  # of memory per process; Linux allows 65,530, and each compiled program takes a few


@pytest.fixture(autouse=True, scope="module")
def one_mlir_context_per_file():
    """JAX makes and frees an MLIR context for every program, which takes longer than compiling a small one."""
    with pytest.MonkeyPatch.context() as patch:
        with contextlib.suppress(ImportError, AttributeError):  # a private place: without it, tests are only slower
            from jax._src.interpreters import mlir

            patch.setattr(mlir, "make_ir_context", functools.cache(mlir.make_ir_context))
        yield


@pytest.fixture(autouse=True, scope="module")
def bounded_number_of_compiled_programs():
    """Lets go of compiled programs before the process runs out of memory mappings, at which LLVM would crash."""
    yield
    mappings = pathlib.Path("/proc/self/maps")
    if mappings.exists() and mappings.read_text().count("\n") > MOST_MAPPINGS:
        jax.clear_caches()
