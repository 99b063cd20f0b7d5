"""Tokenizers read from folders that the tests make; those of other packages run with the heavy extras."""

import json

import pytest

from flaxformer.data.tokenizers import load_tokenizer

TEXTS = ["the cat sat on the mat", "a dog ran to the cat", "the dog and the cat sat", "on a mat a dog sat"] * 5


def write_json(folder, name, **content):
    (folder / name).write_text(json.dumps(content))


def train_pieces(path, **options):
    sentencepiece = pytest.importorskip("sentencepiece")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_prefix=str(path), vocab_size=20, minloglevel=2, **options
    )
    path.with_suffix(".vocab").unlink()
    return path.with_suffix(".model")


def test_a_folder_without_tokenizer_files_has_none(tmp_path):
    write_json(tmp_path, "config.json", model_type="t5")
    assert load_tokenizer(tmp_path) is None


def test_bytes_need_no_file(tmp_path):
    write_json(tmp_path, "tokenizer_config.json", tokenizer_class="ByT5Tokenizer")
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("hé") == [107, 198, 172, 1]
    assert tokenizer.decode([0, 107, 198, 172, 300, 1, 99]) == "hé"


def test_settings_that_are_no_json_are_refused(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer_config.json is no JSON"):
        load_tokenizer(tmp_path)


@pytest.mark.extras
def test_t5_ends_its_texts(tmp_path):
    train_pieces(tmp_path / "spiece", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    write_json(tmp_path, "config.json", model_type="t5")
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer.encode("the cat sat")
    assert ids[-1] == 1 and 1 not in ids[:-1]
    assert tokenizer.decode([0, *ids, 0, 9999]) == "the cat sat"


@pytest.mark.extras
def test_llama_begins_its_texts(tmp_path):
    train_pieces(tmp_path / "tokenizer")
    write_json(tmp_path, "config.json", model_type="llama")
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer.encode("a dog ran")
    assert ids[0] == 1 and tokenizer.decode(ids) == "a dog ran"


@pytest.mark.extras
def test_shifted_numberings_are_followed(tmp_path):
    path = train_pieces(tmp_path / "plain")
    plain = pytest.importorskip("sentencepiece").SentencePieceProcessor(model_file=str(path))
    inner = plain.encode("the dog")
    for name, kind, offset, around in (("pegasus", "Pegasus", 103, ([], [1])), ("xlm", "XLMRoberta", 1, ([0], [2]))):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "spiece.model").write_bytes(path.read_bytes())
        write_json(folder, "tokenizer_config.json", tokenizer_class=f"{kind}TokenizerFast")
        tokenizer = load_tokenizer(folder)
        ids = tokenizer.encode("the dog")
        assert ids == [*around[0], *(index + offset for index in inner), *around[1]]
        assert tokenizer.decode(ids) == "the dog"
    assert load_tokenizer(tmp_path / "xlm").encode("✗")[-2] == 3  # the unknown piece is not shifted


@pytest.mark.extras
def test_marian_numbers_pieces_by_a_list(tmp_path):
    model = train_pieces(tmp_path / "source").rename(tmp_path / "source.spm")
    (tmp_path / "target.spm").write_bytes(model.read_bytes())
    processor = pytest.importorskip("sentencepiece").SentencePieceProcessor(model_file=str(model))
    pieces = processor.encode("the cat", out_type=str)
    numbers = {piece: 10 + i for i, piece in enumerate(dict.fromkeys(["</s>", "<unk>", *pieces]))}
    write_json(tmp_path, "vocab.json", **numbers)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("the cat") == [*(numbers[piece] for piece in pieces), 10]
    assert tokenizer.decode([*tokenizer.encode("the cat"), 999]) == "the cat"


@pytest.mark.extras
def test_an_unknown_numbering_is_refused(tmp_path):
    train_pieces(tmp_path / "tokenizer")
    write_json(tmp_path, "config.json", model_type="other")
    with pytest.raises(ValueError, match=r"tokenizer.model belongs to a tokenizer 'other'; expected one of albert"):
        load_tokenizer(tmp_path)


@pytest.mark.extras
def test_files_of_the_tokenizers_package(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator(TEXTS, vocab_size=300, special_tokens=["<s>", "</s>", "<pad>"], show_progress=False)
    bpe.save(str(tmp_path / "tokenizer.json"))
    text = "the cat ran"
    inner = bpe.encode(text).ids
    assert load_tokenizer(tmp_path).encode(text) == inner

    merges = tmp_path / "merges"
    merges.mkdir()
    bpe.save_model(str(merges))
    for kind, expected in (("gpt2", inner), ("roberta", [0, *inner, 1]), ("opt", [1, *inner])):
        write_json(merges, "config.json", model_type=kind)
        tokenizer = load_tokenizer(merges)
        assert tokenizer.encode(text) == expected
        assert tokenizer.decode(expected) == text

    words = tmp_path / "words"
    words.mkdir()
    (words / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat"]))
    tokenizer = load_tokenizer(words)
    assert tokenizer.encode("The cat") == [2, 5, 6, 3]
    assert tokenizer.decode([2, 5, 6, 3]) == "the cat"


@pytest.mark.extras
def test_damaged_files_are_refused(tmp_path):
    pytest.importorskip("tokenizers"), pytest.importorskip("sentencepiece")
    write_json(tmp_path, "config.json", model_type="t5")
    (tmp_path / "spiece.model").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"spiece.model cannot be read as a sentencepiece model"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer.json cannot be read"):
        load_tokenizer(tmp_path)


@pytest.mark.extras
def test_a_vocabulary_without_its_special_pieces_is_refused(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator(TEXTS, vocab_size=280, show_progress=False)
    bpe.save_model(str(tmp_path))
    write_json(tmp_path, "config.json", model_type="bart")
    with pytest.raises(ValueError, match="the vocabulary has no '<s>'"):
        load_tokenizer(tmp_path)
