"""SentencePiece tokenizers: training one, encoding and decoding, and how many bytes each token stands for."""

import hashlib
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import sentencepiece

from pargolf.data import caseops
from pargolf.data.caseops import ALLCAPS, ESC, OPERATOR_BYTES, OPERATORS, TITLE
from pargolf.system.errors import UserError
from pargolf.system.files import write_atomic

MIN_VOCAB_SIZE = 300  # 256 bytes, 3 control pieces, and some room for letters
SPACE = "\u2581"  # how SentencePiece writes a space inside its pieces
# What text goes through before it becomes tokens. Fused, the space before a word and the operator between
# them are one piece (challenge thread 2109), the text is the same.
Transform = Literal["none", "caseops", "caseops-fused"]
FUSED = (SPACE + TITLE, SPACE + ALLCAPS)
PROBES = ("a", "the cat sat")  # tokens of these must count as many bytes


def symbols_of(transform: Transform) -> tuple[str, ...]:
    """The pieces by which a vocabulary shows that it is of transformed text."""
    return {"none": (), "caseops": OPERATORS, "caseops-fused": OPERATORS + FUSED}[transform]


def train_tokenizer(
    documents: Sequence[str], vocab_size: int, path: Path, transform: Transform = "none"
) -> None:
    """Train a BPE tokenizer of exactly `vocab_size` pieces on `documents` and write its model to `path`.

    It reproduces every text byte for byte: unknown characters fall back to bytes, nothing is
    normalized, no space is added or removed. The same documents give the same file. With a `transform` it
    learns from the transformed documents, and the operators are the ids from 4 on, as published. Raises
    UserError if `vocab_size` is too small for the alphabet or larger than the text supports.
    """
    if not MIN_VOCAB_SIZE <= vocab_size <= 65_536:
        raise UserError(f"vocabulary size {vocab_size} is outside {MIN_VOCAB_SIZE} .. 65536")
    # One sentence a line: newlines become byte pieces, so no piece ever spans two lines.
    written = documents if transform == "none" else map(caseops.encode, documents)
    lines = [line for document in written for line in document.split("\n") if line]
    if not any(line.strip() for line in lines):
        raise UserError("no text to train a tokenizer on")
    operators: dict[str, Any] = {}
    if transform != "none":  # as in the published vocabulary with operators
        operators = {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3}
        operators["user_defined_symbols"] = list(symbols_of(transform))
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            split_digits=True,  # numbers of any length are then spelled alike
            character_coverage=0.9995,  # rare letters cost fewer bytes as bytes than as pieces
            required_chars=SPACE,  # a text without spaces must not lose those of later texts
            max_sentence_length=max(len(line.encode()) for line in lines) + 1,  # longer ones are skipped
            minloglevel=2,
            **operators,
        )
    except (RuntimeError, OSError) as error:
        raise UserError(_training_fault(str(error), vocab_size)) from None
    write_atomic(path, model.getvalue())


def _training_fault(message: str, vocab_size: int) -> str:
    if limit := re.search(r"too high.*<= (\d+)", message):
        return f"vocabulary size {vocab_size} is too large for this text; it supports at most {limit[1]}"
    if limit := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return f"vocabulary size {vocab_size} is too small for this text's letters: over {limit[1]} needed"
    return f"no tokenizer of {vocab_size} pieces can be trained on this text: {' '.join(message.split())}"


@dataclass(frozen=True)
class ByteTable:
    """UTF-8 bytes that each token stands for, given the token before it; arrays of shape (vocab,).

    The bytes of a whole document after its BOS sum to the length of the text it decodes to.
    """

    bytes_of: np.ndarray
    """int32: bytes of the piece without its leading space; 0 for control, unknown and unused pieces."""
    leading_space: np.ndarray
    """bool: the piece begins with a space."""
    boundary: np.ndarray
    """bool: after this token a leading space vanishes. These are the control, unknown and unused
    pieces where the tokenizer adds a space before every document and strips it again (the
    challenge's does); none where the first space of a document is really in its text."""
    escape: int = -1
    """The operator that escapes operators for capitals; -1 in a vocabulary without them."""
    escaped: np.ndarray | None = None
    """int32: bytes of each piece more if it is escaped, that is an operator of the text itself."""

    def count(self, previous: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """int64 bytes of each of `targets`; `previous` has the token before each, in the same shape.

        Along the last axis the tokens of both follow each other.
        """
        space = self.leading_space[targets] & ~self.boundary[previous]
        sizes = self.bytes_of[targets].astype(np.int64) + space
        if self.escaped is not None:
            # Escapes in a row escape each other: an odd number of them escapes what follows.
            place = np.arange(1, previous.shape[-1] + 1)
            row = place - np.maximum.accumulate(np.where(previous == self.escape, 0, place), axis=-1)
            sizes += self.escaped[targets] * (row % 2)
        return sizes


class Tokenizer:
    """A SentencePiece model read from a file.

    Its vocabulary shows which transform it is of. All that encodes and decodes here does and undoes that, so
    that everywhere else a text is the original one.

    Raises UserError if the file is missing or no such model, or if the model has no BOS or no piece for
    a space alone.
    """

    def __init__(self, path: Path) -> None:
        try:
            model = Path(path).read_bytes()
        except OSError as error:
            raise UserError(
                f"cannot read tokenizer {path}: {error.strerror}; make one with `pargolf data`"
            ) from None
        if not model:
            raise UserError(f"tokenizer {path} is empty; make it again with `pargolf data`")
        self.path = Path(path)
        self.sha256 = hashlib.sha256(model).hexdigest()
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
            self.vocab_size: int = self._processor.vocab_size()
            self.bos_id: int = self._processor.bos_id()
            for token in range(self.vocab_size):
                self._processor.id_to_piece(token)  # raises where a piece is no UTF-8
        except (RuntimeError, ValueError):
            raise UserError(f"{path} is not a SentencePiece model") from None
        if self.bos_id < 0:
            raise UserError(f"tokenizer {path} has no BOS token to put before documents")
        # Without it a space is spelled as the three bytes of U+2581, which would all be counted (the
        # challenge's thread 897).
        if not self._has_piece(SPACE):
            raise UserError(f"tokenizer {path} has no piece for a space alone (U+2581); train one that has")
        self._strips_first_space = self._strips()
        shown = [name for name in get_args(Transform) if all(map(self._has_piece, symbols_of(name)))]
        self.transform: Transform = shown[-1]

    def _has_piece(self, piece: str) -> bool:
        token = self._processor.piece_to_id(piece)
        return not self._is_boundary(token) and self._processor.id_to_piece(token) == piece

    def _strips(self) -> bool:
        for token in range(self.vocab_size):
            if self._processor.id_to_piece(token).startswith(SPACE) and not self._is_boundary(token):
                return not self._processor.decode([token]).startswith(" ")
        return False

    def _is_boundary(self, token: int) -> bool:
        p = self._processor
        return bool(p.is_control(token) or p.is_unknown(token) or p.is_unused(token))

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, no BOS; `decode` gives back the same text for tokenizers of `train_tokenizer`.

        Raises UserError if `text` has lone surrogates, which no UTF-8 text can hold.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"text has a lone surrogate at character {error.start}; it is not Unicode text"
            ) from None
        return self.encode_all([text])[0]

    def encode_all(self, texts: list[str], threads: int = 1) -> list[list[int]]:
        """`encode` of each text, on several threads."""
        if self.transform != "none":
            texts = [caseops.encode(text) for text in texts]
        plain = [text for text in texts if SPACE not in text or self._strips_first_space]
        encoded = iter(self._processor.encode(plain, num_threads=threads) if plain else [])
        return [
            next(encoded) if SPACE not in text or self._strips_first_space else self._encode_marks(text)
            for text in texts
        ]

    def _encode_marks(self, text: str) -> list[int]:
        # SentencePiece would take a literal U+2581 for a space; its three bytes are unambiguous.
        mark = self._spell(SPACE.encode())
        first, *rest = self._processor.encode(text.split(SPACE))
        return list(first) + [token for part in rest for token in mark + part]

    def decode_all(self, ids: list[list[int]], threads: int = 1) -> list[str]:
        """`decode` of each text, on several threads; ids must lie in the vocabulary."""
        texts = list(self._processor.decode(ids, num_threads=threads)) if ids else []
        return [self._original(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; control tokens give none. Raises UserError on an id outside the vocabulary."""
        tokens = [int(token) for token in ids]
        if tokens and not 0 <= min(tokens) <= max(tokens) < self.vocab_size:
            raise UserError(
                f"token ids outside 0 .. {self.vocab_size - 1}: tokens of another tokenizer than {self.path}"
            )
        return self.decode_all([tokens])[0]

    def piece_of(self, token: int) -> str:
        """How the vocabulary writes a token: "▁city" with its space, "<0xC3>" for a byte, "<TITLE>" for an
        operator."""
        piece = str(self._processor.id_to_piece(token))
        return piece if self.transform == "none" else piece.translate(caseops.NAMES)

    def is_fallback(self, token: int) -> bool:
        """Whether the token is one byte of a character that has no piece of its own."""
        return bool(self._processor.is_byte(token))

    def bytes_of(self, token: int) -> bytes:
        """What a token writes, its leading space included; nothing for control, unknown and unused tokens."""
        if self._is_boundary(token):
            return b""
        piece = self._processor.id_to_piece(token)
        if self.is_fallback(token):
            return bytes([int(piece[3:5], 16)])
        return str(piece).replace(SPACE, " ").encode()

    def texts_of(self, tokens: Iterable[int]) -> list[bytes]:
        """The text of each of `tokens`, of which the first begins a text: what `bytes_of` gives, without a
        leading space where that vanishes, and with capitals in the place of their operators."""
        boundary = self.boundaries()
        parts, begins = [], self._strips_first_space
        for token in tokens:
            parts.append(self._written[token].removeprefix(" ") if begins else self._written[token])
            begins = self._strips_first_space and bool(boundary[token])
        written = "".join(parts)
        original = iter(written if self.transform == "none" else caseops.restore(written))
        return ["".join(islice(original, len(part))).encode(errors="surrogateescape") for part in parts]

    def _original(self, written: str) -> str:
        """A text as it was before the transform."""
        return written if self.transform == "none" else "".join(caseops.restore(written))

    @cached_property
    def _written(self) -> list[str]:
        """`pieces` as text, in which a byte beyond ASCII that is a token of its own is a lone surrogate."""
        return [piece.decode(errors="surrogateescape") for piece in self.pieces]

    def encode_bytes(self, data: bytes) -> list[int]:
        """Token ids whose `decode_bytes` is exactly `data`, whatever bytes they are and whichever tokenizer.

        Text is encoded as text; what is no UTF-8, or would come back changed, is spelled in byte
        pieces. Raises UserError if the tokenizer lacks those pieces and they are needed.
        """
        ids: list[int] = []
        # Invalid bytes decode to lone surrogates, which no text holds: every second part is of these.
        parts = re.split("([\udc80-\udcff]+)", data.decode(errors="surrogateescape"))
        for index, part in enumerate(parts):
            if index % 2:
                ids += self._spell(part.encode(errors="surrogateescape"))
            else:
                ids += self._encode_exactly(part)
        if self.decode_bytes(ids) != data:
            raise UserError(f"tokenizer {self.path} has no byte pieces; it cannot write every file")
        return ids

    def _encode_exactly(self, text: str) -> list[int]:
        raw = text.encode()
        # Tokenizers that put a space before every text: it is then the text's own first space.
        for attempt in (text, text.removeprefix(" ")):
            ids = self.encode(attempt)
            if self.decode_bytes(ids) == raw:
                return ids
        middle = len(text) // 2
        cut = max(text.find(" ", max(middle, 1)), text.rfind(" ", 1, middle))
        if cut < 0:
            return self._spell(raw)
        return self._encode_exactly(text[:cut]) + self._encode_exactly(text[cut:])

    def _spell(self, data: bytes) -> list[int]:
        """One byte piece for each byte."""
        return [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in data]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of each token, one after the other; ids must lie in the vocabulary.

        Unlike `decode`, no space is stripped and bytes that are no UTF-8 are kept.
        """
        written = "".join([self._written[token] for token in ids])
        return self._original(written).encode(errors="surrogateescape")

    @cached_property
    def pieces(self) -> list[bytes]:
        """The bytes of every token, in the order of ids."""
        return [self.bytes_of(token) for token in range(self.vocab_size)]

    def unknown(self) -> np.ndarray:
        """bool (vocab,): the token stands for characters that the vocabulary cannot write."""
        return np.array([self._processor.is_unknown(token) for token in range(self.vocab_size)])

    def boundaries(self) -> np.ndarray:
        """bool (vocab,): the token is a control, unknown or unused piece, which stands for no text."""
        return np.array([self._is_boundary(token) for token in range(self.vocab_size)])

    def byte_table(self) -> ByteTable:
        """Bytes of each token, by the challenge's rules for SentencePiece tokens and for operators.

        Raises UserError where they do not hold: for a tokenizer that puts its spaces elsewhere than before
        words.
        """
        table = self._table()
        for text in PROBES:
            ids = np.array([self.bos_id, *self._processor.encode(text)])
            counted = int(table.count(ids[:-1], ids[1:]).sum())
            if not self.unknown()[ids].any() and counted != len(text):
                raise UserError(
                    f"tokenizer {self.path} writes spaces in a way whose bytes cannot be counted;"
                    " train one that writes them before words, as SentencePiece does by default"
                )
        return table

    def _table(self) -> ByteTable:
        bytes_of = np.zeros(self.vocab_size, np.int32)
        leading_space = np.zeros(self.vocab_size, bool)
        boundary = np.zeros(self.vocab_size, bool)
        for token in range(self.vocab_size):
            if self._is_boundary(token):
                boundary[token] = self._strips_first_space
            elif self._processor.is_byte(token):
                bytes_of[token] = 1
            else:
                piece = self._processor.id_to_piece(token)
                leading_space[token] = piece.startswith(SPACE)
                bytes_of[token] = len(piece.removeprefix(SPACE).replace(SPACE, " ").encode())
        if self.transform == "none":
            return ByteTable(bytes_of, leading_space, boundary)
        operators = [self._processor.piece_to_id(operator) for operator in symbols_of(self.transform)]
        bytes_of[operators] = 0
        escaped = np.zeros(self.vocab_size, np.int32)
        escaped[operators] = OPERATOR_BYTES
        return ByteTable(bytes_of, leading_space, boundary, self._processor.piece_to_id(ESC), escaped)
