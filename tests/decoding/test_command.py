"""`flaxformer generate` on a tiny recorded model; the text side with a tokenizer of bytes, which needs no package."""

import io
import json
import re
import shutil

import pytest

from flaxformer import cli
from flaxformer.data.tokenizers import load_tokenizer
from flaxformer.decoding import command
from tests.parity.recorded import Recorded


@pytest.fixture(scope="module")
def recorded():
    return json.loads((Recorded("t5_1_1").folder / "generate.json").read_text())


@pytest.fixture(scope="module")
def folder(recorded, tmp_path_factory):
    place = tmp_path_factory.mktemp("model") / "folder"
    shutil.copytree(Recorded("t5_1_1").folder, place)
    special = {name: recorded[name] for name in ("eos_token_id", "pad_token_id", "decoder_start_token_id")}
    (place / "generation_config.json").write_text(json.dumps({**special, "num_beams": 4}))
    return place


def printed(capsys, *arguments):
    assert cli.main(["generate", *map(str, arguments)]) == 0
    return capsys.readouterr().out.splitlines()


def without_padding(row, recorded):
    row = row[1:]
    end = recorded["eos_token_id"]
    return row[: row.index(end) + 1] if end in row else row


def sources(recorded):
    names = [name for name in recorded["inputs"] if name == "input_ids"]
    rows = recorded["inputs"][names[0]]
    return [" ".join(str(x) for x in row if x != recorded["pad_token_id"]) for row in rows]


def test_ids_in_recorded_ids_out(folder, recorded, capsys):
    greedy = next(case for case in recorded["cases"] if case["name"] == "greedy")
    lines = printed(capsys, folder, *sources(recorded), "--max-new-tokens", 12)
    expected = [without_padding(row, recorded) for row in greedy["sequences"]]
    assert [[int(x) for x in line.split()] for line in lines] == expected


def test_text_in_text_out_from_standard_input(folder, monkeypatch, capsys, tmp_path):
    place = tmp_path / "folder"
    shutil.copytree(folder, place)
    (place / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    monkeypatch.setattr("sys.stdin", io.StringIO("1 + 1\n(2)\n"))
    lines = printed(capsys, place, "--max-new-tokens", 3)
    ids = " ".join(map(str, load_tokenizer(place).encode("1 + 1")))
    again = printed(capsys, place, ids, "--ids", "--max-new-tokens", 3)
    written = [int(x) for x in again[0].split()]
    end = json.loads((place / "generation_config.json").read_text())["eos_token_id"]
    assert len(lines) == 2
    assert lines[0] == load_tokenizer(place).decode([x for x in written if x != end])


def test_beams_print_their_scores_best_first(folder, recorded, capsys):
    lines = printed(capsys, folder, sources(recorded)[0], "--beams", 3, "--n-best", 2, "--max-new-tokens", 4)
    scores = [float(line.split("\t")[0]) for line in lines]
    assert len(lines) == 2 and scores == sorted(scores, reverse=True)


def test_draws_repeat_with_their_seed(folder, recorded, capsys):
    flags = (sources(recorded)[0], "--temperature", 2.0, "--top-k", 20, "--max-new-tokens", 6)
    first, second, other = (printed(capsys, folder, *flags, "--seed", seed) for seed in (1, 1, 2))
    assert first == second != other


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["5", "--temperature", "1.0", "--beams", "2"], "--temperature came with --beams or --n-best"),
        (["five"], r"'five' came; expected ids with spaces between, since .* holds no tokenizer"),
        (["", "--ids"], "there are 1 texts, some without a token"),
    ],
)
def test_what_does_not_fit_is_refused(folder, arguments, message, capsys):
    assert cli.main(["generate", str(folder), *arguments]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_folder_without_an_end_is_refused(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    assert cli.main(["generate", str(tmp_path), "5"]) == 2
    assert "names no eos_token_id" in capsys.readouterr().err


def test_a_folder_may_name_several_ends(tmp_path):
    (tmp_path / "config.json").write_text('{"eos_token_id": 5, "bos_token_id": 2}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 7]}')
    assert command._settings(tmp_path) == {"eos_id": [5, 7], "pad_id": 5, "bos_id": 2}
    assert command._before([3, 5, 7], [5, 7]) == [3, 5]
    assert command._before([3, 4], [5, 7]) == [3, 4]
