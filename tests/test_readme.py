"""The code of the README runs, its links lead somewhere, and its commands exist."""

import pathlib
import re
import shlex

import pytest

from flaxformer import cli, configs
from tests import pages

ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_code_blocks_run_one_after_the_other():
    printed = pages.run(ROOT / "README.md").splitlines()
    promised = re.search(r"print\(logits.shape.*\)  # (.*)", TEXT)[1]
    assert printed[0] == promised
    assert re.fullmatch(r"[\d,]+ parameters, [\d,]+ FLOPs per token", printed[-1])


def test_the_first_screen_is_code():
    assert TEXT.index("```python") < 200


def test_links_and_folders_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", TEXT) if "://" not in link]
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]


def test_the_commands_exist():
    targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert {"demo", "test"} <= set(re.findall(r"^    make (\S+)", TEXT, flags=re.MULTILINE)) <= set(targets)
    for line in re.findall(r"^    flaxformer (.*)$", TEXT, flags=re.MULTILINE):
        arguments = cli.parse(shlex.split(line, comments=True))
        for name in [*getattr(arguments, "files", []), *getattr(arguments, "gin_file", [])]:
            configs.find(name)


def test_the_version_is_in_the_changelog_or_unreleased():
    assert re.search(r"^## \[(Unreleased|\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("family", ["t5_1_0", "t5_1_1", "mt5", "byt5", "umt5"])
def test_the_families_that_the_readme_names_are_shipped(family):
    assert f"{family}/base" in configs.shipped()


def test_its_table_of_families_is_that_of_the_page_on_published_weights():
    page = (ROOT / "docs" / "pretrained.md").read_text(encoding="utf-8").replace("(../architectures", "(architectures")

    def rows(text):
        return [
            [cell.strip() for cell in line.split("|")] for line in re.findall(r"^\|(.*\.py\).*)\|$", text, re.MULTILINE)
        ]

    def told(row):
        return [row[0], *row[-4:]]  # all but the model types

    there = [told(row) for row in rows(page) if len(row) == 6]
    here = [told(row) for row in rows(TEXT) if len(row) == 5]
    assert len(there) > 30 and here == there
