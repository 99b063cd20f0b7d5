"""The wheel is complete: installed elsewhere, it imports, and every gin file in it parses and builds."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import venv

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = ("flaxformer", "gin", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md")

IN_THE_WHEEL = """
import importlib, json, pkgutil
import flaxformer
from flaxformer import configs

modules = [module.name for module in pkgutil.walk_packages(flaxformer.__path__, "flaxformer.")]
for name in modules:
    importlib.import_module(name)
built, unbuilt, modelless = {}, [], []
for name in configs.shipped():
    configs.read(name)
    try:
        built[name] = type(configs.load(name)).__name__
    except configs.ConfigurationError as error:
        assert "required and not bound" in str(error) or "expected one of them" in str(error), error
        (unbuilt if "required and not bound" in str(error) else modelless).append(name)
sizes = {name: configs.explain(name, length=2).size for name in built if name.endswith("/tiny")}
print(json.dumps(dict(
    file=flaxformer.__file__, folder=str(configs.folder()), modules=modules,
    built=built, unbuilt=unbuilt, modelless=modelless, sizes=sizes,
)))
"""


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The interpreter of an environment in which only the wheel is installed, next to this environment's libraries."""
    folder = tmp_path_factory.mktemp("a wheel")
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, source / name)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder), ".", cwd=source)
    environment = folder / "environment"
    venv.create(environment, symlinks=True, with_pip=False)
    paths = {"base": str(environment), "platbase": str(environment)}
    packages = pathlib.Path(sysconfig.get_path("purelib", "venv", vars=paths))
    (packages / "libraries.pth").write_text("\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}))
    (wheel,) = folder.glob("flaxformer-*.whl")
    run(*pip, "install", "--no-deps", "--no-index", "--target", str(packages), str(wheel))
    return environment / "bin" / "python"


def test_the_installed_wheel_has_every_module_and_builds_every_gin_file(installed, tmp_path):
    variables = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "XLA_FLAGS")}
    found = json.loads(run(str(installed), "-c", IN_THE_WHEEL, cwd=tmp_path, env=variables))
    assert "a wheel" in found["file"] and "a wheel" in found["folder"]
    files = sorted(path.relative_to(ROOT / "gin").with_suffix("").as_posix() for path in (ROOT / "gin").rglob("*.gin"))
    assert sorted([*found["built"], *found["unbuilt"], *found["modelless"]]) == files
    assert all(name.endswith(("/parts", "/published")) for name in found["unbuilt"])
    assert all(name.startswith("t5x/") or name.endswith("/scanned") for name in found["modelless"])
    assert set(found["sizes"]) >= {f"{family}/tiny" for family in ("byt5", "mt5", "t5_1_0", "t5_1_1", "umt5")}
    sources = {path.relative_to(ROOT).with_suffix("") for path in (ROOT / "flaxformer").rglob("*.py")}
    expected = {".".join(path.parts).removesuffix(".__init__") for path in sources} - {"flaxformer"}
    assert set(found["modules"]) == expected
    assert found["built"]["t5_1_1/tiny"] == "EncoderDecoder"


def test_the_installed_wheel_brings_the_command(installed):
    assert "explain" in run(str(installed), "-m", "flaxformer.cli", "--help", env={"PATH": os.environ["PATH"]})


def test_no_file_makes_a_package_of_the_folder_of_gin_files():
    for folder in ("gin", "architectures"):
        assert not list((ROOT / folder).rglob("__init__.py"))
