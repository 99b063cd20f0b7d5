"""Text to ids and back, by the tokenizer files that lie in a published model's folder.

| files                                       | read by         | special ids                         |
|---------------------------------------------|-----------------|-------------------------------------|
| `tokenizer.json`                            | `tokenizers`    | as the file says                    |
| `source.spm`, `target.spm` and `vocab.json` | `sentencepiece` | of Marian                           |
| a sentencepiece model (`_MODELS`)           | `sentencepiece` | by family: `SENTENCEPIECE`          |
| `vocab.json` and `merges.txt`               | `tokenizers`    | of GPT-2 (none), OPT, RoBERTa, BART |
| `vocab.txt`                                 | `tokenizers`    | `[CLS] ... [SEP]`                   |
| none, ByT5                                  | this library    | end of sequence                     |

Both packages come with the extra `tokenizers`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, SupportsInt

from flaxformer.data.vocabularies import ByteVocabulary
from flaxformer.extras import require

_EXTRA = "tokenizers"
_MODELS = ("spiece.model", "tokenizer.model", "spm.model", "sentencepiece.bpe.model")


class Tokenizer(Protocol):
    """Text to the ids that a model reads, and ids to text."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text, with the special ids that the model expects around it."""
        ...

    def decode(self, ids: Iterable[SupportsInt]) -> str:
        """The text of ids; special ids leave no trace."""
        ...


def load_tokenizer(folder: str | os.PathLike[str]) -> Tokenizer | None:
    """The tokenizer of a published model's folder, or None if there are no files of one.

    Raises:
      ValueError: for files that this library cannot read, or whose special ids it does not know.
      ImportError: naming the extra, when a package is missing.
    """
    place = pathlib.Path(folder)
    for names, load in _FORMS:
        if all((place / name).is_file() for name in names):
            return load(place)
    return _Bytes() if _kind(place) == "byt5" else None


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a family numbers the pieces of its sentencepiece model.

    Attributes:
      before: pieces put before every text.
      after: pieces put behind it.
      offset: added to the ids of the model.
      moved: pieces whose ids do not follow the offset.
    """

    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    offset: int = 0
    moved: Mapping[str, int] = dataclasses.field(default_factory=dict)


# By `model_type` of config.json, or the class in tokenizer_config.json in lower case without "Tokenizer" and "Fast".
SENTENCEPIECE = {
    **dict.fromkeys(("t5", "mt5", "umt5", "longt5", "switch_transformers"), Layout(after=("</s>",))),
    **dict.fromkeys(("llama", "mistral", "mixtral"), Layout(before=("<s>",))),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text", "t5gemma"), Layout(before=("<bos>",))),
    "pegasus": Layout(after=("</s>",), offset=103, moved={"<pad>": 0, "</s>": 1}),
    **dict.fromkeys(
        ("xlmroberta", "xlm-roberta"),
        Layout(before=("<s>",), after=("</s>",), offset=1, moved={"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}),
    ),
    **dict.fromkeys(("albert", "deberta-v2", "debertav2"), Layout(before=("[CLS]",), after=("[SEP]",))),
}


class _Pieces:
    """A sentencepiece model with a family's numbering."""

    def __init__(self, path: pathlib.Path, layout: Layout):
        self._model = _processor(path)
        self._layout = layout
        self._special = set(layout.moved.values()) | {self._id(piece) for piece in layout.before + layout.after}

    def encode(self, text: str) -> list[int]:
        pieces = [*self._layout.before, *self._model.encode(text, out_type=str), *self._layout.after]
        return [self._id(piece) for piece in pieces]

    def decode(self, ids: Iterable[SupportsInt]) -> str:
        plain = (int(index) - self._layout.offset for index in ids if int(index) not in self._special)
        return self._model.decode([index for index in plain if 0 <= index < self._model.get_piece_size()])

    def _id(self, piece: str) -> int:
        if piece in self._layout.moved:
            return self._layout.moved[piece]
        index = self._model.piece_to_id(piece)
        if index == self._model.unk_id() and "<unk>" in self._layout.moved:
            return self._layout.moved["<unk>"]
        return index + self._layout.offset


class _Marian:
    """Two sentencepiece models, for the text read and the text written, over one list of numbered pieces."""

    def __init__(self, folder: pathlib.Path):
        self._source, self._target = (_processor(folder / name) for name in ("source.spm", "target.spm"))
        self._ids: dict[str, int] = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        self._pieces = {index: piece for piece, index in self._ids.items()}

    def encode(self, text: str) -> list[int]:
        pieces = [*self._source.encode(text, out_type=str), "</s>"]
        return [self._ids.get(piece, self._ids["<unk>"]) for piece in pieces]

    def decode(self, ids: Iterable[SupportsInt]) -> str:
        pieces = [self._pieces.get(int(index), "") for index in ids]
        return self._target.decode([piece for piece in pieces if piece not in ("", "</s>", "<pad>", "<unk>")])


class _Huggingface:
    """A tokenizer of the package `tokenizers`."""

    def __init__(self, tokenizer: Any, before: Sequence[str] = (), after: Sequence[str] = ()):
        self._tokenizer = tokenizer
        self._before, self._after = ([self._id(piece) for piece in pieces] for pieces in (before, after))

    def encode(self, text: str) -> list[int]:
        return [*self._before, *self._tokenizer.encode(text).ids, *self._after]

    def decode(self, ids: Iterable[SupportsInt]) -> str:
        around = {*self._before, *self._after}
        kept = [int(index) for index in ids if int(index) not in around]
        return self._tokenizer.decode(kept, skip_special_tokens=True)

    def _id(self, piece: str) -> int:
        index = self._tokenizer.token_to_id(piece)
        if index is None:
            raise ValueError(f"the vocabulary has no {piece!r}; expected it in this family. Is the folder complete?")
        return index


class _Bytes:
    """ByT5: bytes and the end of sequence."""

    def encode(self, text: str) -> list[int]:
        return [*ByteVocabulary().encode(text), ByteVocabulary.eos_id]

    def decode(self, ids: Iterable[SupportsInt]) -> str:
        return ByteVocabulary(extra_ids=125).decode(ids)


def _from_tokenizer_json(folder: pathlib.Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    package = require("tokenizers", extra=_EXTRA)
    try:
        return _Huggingface(package.Tokenizer.from_file(str(path)))
    except Exception as error:  # the package raises bare exceptions
        raise ValueError(f"{path} cannot be read: {error}. Copy or download it again.") from error


def _from_merges(folder: pathlib.Path) -> Tokenizer:
    package = require("tokenizers", extra=_EXTRA)
    space = _settings(folder, "tokenizer_config.json").get("add_prefix_space", False)
    tokenizer = package.ByteLevelBPETokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), add_prefix_space=space
    )
    if _kind(folder) in ("roberta", "bart", "longformer", "led"):
        return _Huggingface(tokenizer, ["<s>"], ["</s>"])
    return _Huggingface(tokenizer, *((["</s>"], []) if _kind(folder) == "opt" else ()))


def _from_word_pieces(folder: pathlib.Path) -> Tokenizer:
    package = require("tokenizers", extra=_EXTRA)
    lower = _settings(folder, "tokenizer_config.json").get("do_lower_case", True)
    return _Huggingface(package.BertWordPieceTokenizer(str(folder / "vocab.txt"), lowercase=lower))


def _from_sentencepiece(name: str) -> Callable[[pathlib.Path], Tokenizer]:
    def load(folder: pathlib.Path) -> Tokenizer:
        kind = _kind(folder)
        if kind not in SENTENCEPIECE:
            raise ValueError(
                f"{folder / name} belongs to a tokenizer {kind!r}; expected one of {', '.join(sorted(SENTENCEPIECE))}, "
                "whose special ids are known. Add a tokenizer.json, which says its own."
            )
        return _Pieces(folder / name, SENTENCEPIECE[kind])

    return load


_FORMS: tuple[tuple[tuple[str, ...], Callable[[pathlib.Path], Tokenizer]], ...] = (
    (("tokenizer.json",), _from_tokenizer_json),
    (("source.spm", "target.spm", "vocab.json"), _Marian),
    *(((name,), _from_sentencepiece(name)) for name in _MODELS),
    (("vocab.json", "merges.txt"), _from_merges),
    (("vocab.txt",), _from_word_pieces),
)


def _processor(path: pathlib.Path) -> Any:
    try:
        return require("sentencepiece", extra=_EXTRA).SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a sentencepiece model. Copy or download it again.") from error


def _kind(folder: pathlib.Path) -> str:
    """The tokenizer's class where it is told, else the model's type."""
    name = _settings(folder, "tokenizer_config.json").get("tokenizer_class")
    if name:
        return name.removesuffix("Fast").removesuffix("Tokenizer").lower()
    return _settings(folder, "config.json").get("model_type", "")


def _settings(folder: pathlib.Path, name: str) -> Mapping[str, Any]:
    path = folder / name
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}). Copy or download it again.") from error
