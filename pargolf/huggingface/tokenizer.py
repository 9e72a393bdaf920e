"""A SentencePiece BPE tokenizer as the tokenizer.json of the tokenizers library, with the same ids.

Pieces are written with plain spaces, where SentencePiece writes U+2581: a U+2581 in a text then
falls back to bytes, as it does in `data.tokenizer.Tokenizer`, and no space is ever taken for one.
"""

import base64
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from pargolf.data.tokenizer import SPACE, Tokenizer
from pargolf.system.errors import UserError, require


class Kind(IntEnum):
    """Kinds of pieces, by the numbers of sentencepiece_model.proto."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Piece:
    """A token, its score (merges into pieces of a higher one come first) and its kind."""

    text: str
    score: float
    kind: Kind


@dataclass(frozen=True)
class SentencePieceModel:
    """What a SentencePiece model file holds, as far as encoding depends on it."""

    pieces: tuple[Piece, ...]
    is_bpe: bool
    byte_fallback: bool
    charsmap: bytes
    """The compiled table of the normalization, empty where that is the identity."""
    dummy_prefix: bool
    """A space is put before every text."""
    strips_spaces: bool
    """Spaces at either end of a text vanish, and all but one of several in a row."""


def tokenizer_files(tokenizer: Tokenizer, max_tokens: int) -> dict[str, Any]:
    """Content of tokenizer.json and tokenizer_config.json, by file name.

    Encoding puts BOS before a text, as the data has it before each document. Text that looks like a
    control piece ("<s>") stays text. Raises UserError if the tokenizer is of another kind than BPE
    with byte fallback.
    """
    model = read_model(tokenizer.path)
    bos = model.pieces[tokenizer.bos_id].text
    by_kind = {kind: [p.text for p in model.pieces if p.kind is kind] for kind in Kind}
    for kind in (Kind.USER_DEFINED, Kind.UNUSED):
        require(
            not by_kind[kind],
            f"{tokenizer.path} has {kind.name} pieces, such as {by_kind[kind][:1]}, which no tokenizer.json"
            " can treat as SentencePiece does; export --format safetensors",
        )
    require(
        model.is_bpe and model.byte_fallback,
        f"{tokenizer.path} is no BPE tokenizer with byte fallback; export --format safetensors",
    )
    (unknown,) = by_kind[Kind.UNKNOWN]
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": bos,  # a document ends where the next one begins
        "unk_token": unknown,
        # With byte fallback no text has the unknown piece: it is free to stand for nothing.
        "pad_token": "<pad>" if "<pad>" in by_kind[Kind.CONTROL] else unknown,
        "padding_side": "left",  # so that every text of a batch can go on
        "model_max_length": max_tokens,
        "model_input_names": ["input_ids", "attention_mask"],
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
    }
    return {"tokenizer.json": _tokenizer_json(model, bos, unknown), "tokenizer_config.json": config}


def _tokenizer_json(model: SentencePieceModel, bos: str, unknown: str) -> dict[str, Any]:
    vocab = {_plain(piece): token for token, piece in enumerate(model.pieces)}
    strips = model.dummy_prefix or model.strips_spaces
    decoders: list[dict[str, Any]] = [{"type": "ByteFallback"}]
    if strips:
        decoders += [{"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": token, "content": piece.text, **special}
            for token, piece in enumerate(model.pieces)
            if piece.kind in (Kind.CONTROL, Kind.UNKNOWN)
        ],
        "normalizer": {"type": "Sequence", "normalizers": _normalizers(model)} if strips else None,
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [_special(bos, 0), _sequence("A", 0)],
            "pair": [_special(bos, 0), _sequence("A", 0), _special(bos, 1), _sequence("B", 1)],
            "special_tokens": {bos: {"id": bos, "ids": [vocab[bos]], "tokens": [bos]}},
        },
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": unknown,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": _merges(model),
        },
    }


def _special(token: str, type_id: int) -> dict[str, Any]:
    return {"SpecialToken": {"id": token, "type_id": type_id}}


def _sequence(name: str, type_id: int) -> dict[str, Any]:
    return {"Sequence": {"id": name, "type_id": type_id}}


def _plain(piece: Piece) -> str:
    return piece.text.replace(SPACE, " ") if piece.kind is Kind.NORMAL else piece.text


def _normalizers(model: SentencePieceModel) -> list[dict[str, Any]]:
    """What SentencePiece does to a text before it looks for pieces; there, U+2581 is a space."""
    steps: list[dict[str, Any]] = []
    if model.charsmap:
        charsmap = base64.b64encode(model.charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if model.strips_spaces:
        steps.append(_replace({"Regex": r"\A +| +\z|(?<= ) +"}, ""))
    if model.dummy_prefix:
        steps.append({"type": "Prepend", "prepend": " "})
    return [*steps, _replace({"String": SPACE}, " ")]


def _replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _merges(model: SentencePieceModel) -> list[list[str]]:
    """Every pair of pieces that together are a piece, those into pieces of a higher score first.

    SentencePiece merges by the score of the result alone, leftmost first. Here each pair has a rank
    of its own; pairs with the same result follow in the order of their left part.
    """
    scores = {_plain(piece): piece.score for piece in model.pieces if piece.kind is Kind.NORMAL}
    pairs = [
        [whole[:cut], whole[cut:]]
        for whole in sorted(scores, key=lambda text: -scores[text])
        for cut in range(1, len(whole))
    ]
    return [pair for pair in pairs if pair[0] in scores and pair[1] in scores]


# The model file. Field numbers: sentencepiece_model.proto of SentencePiece; encoding: Protocol Buffers.
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def read_model(path: Path) -> SentencePieceModel:
    """The model in a file that SentencePiece itself has read; UserError if this reader cannot."""
    try:
        model = list(_fields(path.read_bytes()))
        # A message in several pieces is one, its fields joined.
        trainer, normalizer = (
            dict(_fields(b"".join(data for field, data in model if field == (number, BYTES))))
            for number in (2, 3)
        )
        return SentencePieceModel(
            pieces=tuple(_piece(dict(_fields(data))) for field, data in model if field == (1, BYTES)),
            is_bpe=trainer.get((3, VARINT), 1) == 2,
            byte_fallback=trainer.get((35, VARINT), 0) == 1,
            charsmap=normalizer.get((2, BYTES), b""),
            dummy_prefix=normalizer.get((3, VARINT), 1) == 1,
            strips_spaces=normalizer.get((4, VARINT), 1) == 1,
        )
    except (ValueError, LookupError, TypeError, struct.error) as error:
        raise UserError(f"cannot read the SentencePiece model {path}: {error}") from None


def _piece(fields: dict[tuple[int, int], Any]) -> Piece:
    (score,) = struct.unpack("<f", fields.get((2, FIXED32), b"\0" * 4))
    return Piece(fields[1, BYTES].decode(), score, Kind(fields.get((3, VARINT), 1)))


def _fields(data: bytes) -> Iterator[tuple[tuple[int, int], Any]]:
    """((number, wire type), value) of every field of a message: varints as int, all others as bytes.

    A number with another wire type than its field has is, to Protocol Buffers, a field it does not know.
    """
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            value |= (byte & 127) << shift
            at, shift = at + 1, shift + 7
            if byte < 128:
                return value

    while at < len(data):
        tag = varint()
        number, wire_type = tag >> 3, tag & 7
        if wire_type == VARINT:
            yield (number, wire_type), varint()
            continue
        if wire_type not in (FIXED64, BYTES, FIXED32):
            raise ValueError(f"unknown wire type {wire_type}")
        size = varint() if wire_type == BYTES else 8 if wire_type == FIXED64 else 4
        yield (number, wire_type), data[at : at + size]
        at += size
