"""The pages under docs/ tell the truth: their code runs, their links lead somewhere, their commands exist."""

import importlib
import importlib.util
import re
import shlex
import sys

import pytest

from flaxformer import cli, configs
from flaxformer.components.attention import backends
from flaxformer.retired import ACCEPTED, RETIRED
from flaxformer.training.command import MACROS
from tests import pages

DOCS = pages.ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
TEXTS = {path.name: path.read_text(encoding="utf-8") for path in PAGES}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_code_runs_and_prints_what_the_page_says(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    pages.run(path)
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in sys.modules[name].__file__:
            del sys.modules[name]


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_to_files(name):
    broken = [link for link in pages.links(TEXTS[name]) if not (DOCS / link).exists()]
    assert not broken


@pytest.mark.parametrize("name", TEXTS)
def test_files_and_modules_that_a_page_names_exist(name):
    prose = re.sub(r"^```.*?^```", "", TEXTS[name], flags=re.DOTALL | re.MULTILINE)
    named = re.findall(r"`((?:flaxformer|gin|tests|architectures|docs)/[\w./]*)`", prose)
    assert not [path for path in named if "FAMILY" not in path and not (pages.ROOT / path).exists()]
    dotted = set(re.findall(r"`(flaxformer(?:\.\w+)+)`", prose))
    assert not [path for path in dotted if not _can_be_found(path)]


def _can_be_found(dotted):
    """Whether `dotted` is a module, or an attribute of one."""
    for cut in range(dotted.count(".") + 1, 0, -1):
        parts = dotted.split(".")
        with_module = ".".join(parts[:cut])
        try:
            value = importlib.import_module(with_module)
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            if not hasattr(value, part):
                return False
            value = getattr(value, part)
        return True
    return False


def test_every_page_is_in_the_index():
    assert {link for link in pages.links(TEXTS["README.md"]) if "/" not in link} == set(TEXTS) - {"README.md"}


def test_pages_are_short():
    assert {name: text.count("\n") for name, text in TEXTS.items() if text.count("\n") > 300} == {}


CONSOLE_LINES = [
    (name, line.partition(" #")[0].strip())
    for name, text in TEXTS.items()
    for block in pages.blocks(text)
    if block.language == "console"
    for line in block.text.replace("\\\n", " ").splitlines()
    if line.strip()
]


@pytest.mark.parametrize(("name", "line"), CONSOLE_LINES)
def test_commands_exist(name, line, tmp_path, monkeypatch):
    words = shlex.split(line)
    words = words[: words.index(">")] if ">" in words else words
    while "=" in words[0]:  # environment variables
        del words[0]
    match words:
        case ["flaxformer", *arguments]:
            _check_cli(cli.parse(arguments), TEXTS[name], tmp_path, monkeypatch)
        case ["python", "-m", module, *_]:
            assert importlib.util.find_spec(module) is not None
        case ["python", script, *_]:
            assert (pages.ROOT / script).exists()
        case ["make", target]:
            assert re.search(rf"^{target}:", (pages.ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        case ["pip", "install", package]:
            extra = re.fullmatch(r"flaxformer(?:\[(\w+)\])?", package)[1]
            assert extra is None or f'"{extra}":' in (pages.ROOT / "setup.py").read_text()
        case ["ls" | "cat", *_]:
            pass
        case _:
            pytest.fail(f"{name} shows {line!r}, which is no command of ours")


def _check_cli(arguments, text, tmp_path, monkeypatch):
    """The gin files are there, shipped or shown on the page, and know the names that the flags bind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for block in pages.blocks(text):
        if block.file:
            (tmp_path / block.file).write_text(block.text)
    if not hasattr(arguments, "gin_file"):
        return
    files = [*getattr(arguments, "files", []), *arguments.gin_file]
    configs.read(files, arguments.gin_bindings, arguments.gin_search_paths, macros=MACROS)


def test_the_retired_table_is_the_one_of_the_code():
    table = TEXTS["retired.md"].partition("| name | what to write now |\n")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", table, flags=re.MULTILINE)
    assert rows == list(RETIRED.items())
    accepted = TEXTS["retired.md"].partition("## Accepted\n")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \| (.*) \|$", accepted, flags=re.MULTILINE) == list(ACCEPTED.items())


def test_the_table_of_kernels_is_the_one_of_the_code():
    assert backends.support_table() in TEXTS["kernels.md"]
