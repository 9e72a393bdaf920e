"""SentencePiece tokenizers: training one, encoding and decoding, and how many bytes each token stands for."""

import hashlib
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sentencepiece

from pargolf.system.errors import UserError
from pargolf.system.files import write_atomic

MIN_VOCAB_SIZE = 300  # 256 bytes, 3 control pieces, and some room for letters
SPACE = "\u2581"  # how SentencePiece writes a space inside its pieces
# Operators that a CaseOps transform writes into the text (challenge thread 1729); they stand for no bytes.
OPERATORS = ("\ue001", "\ue002", "\ue003", "\ue004")
PROBES = ("a", "the cat sat")  # tokens of these must count as many bytes


def train_tokenizer(documents: Sequence[str], vocab_size: int, path: Path) -> None:
    """Train a BPE tokenizer of exactly `vocab_size` pieces on `documents` and write its model to `path`.

    It reproduces every text byte for byte: unknown characters fall back to bytes, nothing is
    normalized, no space is added or removed. The same documents give the same file. Raises
    UserError if `vocab_size` is too small for the alphabet or larger than the text supports.
    """
    if not MIN_VOCAB_SIZE <= vocab_size <= 65_536:
        raise UserError(f"vocabulary size {vocab_size} is outside {MIN_VOCAB_SIZE} .. 65536")
    # One sentence a line: newlines become byte pieces, so no piece ever spans two lines.
    lines = [line for document in documents for line in document.split("\n") if line]
    if not any(line.strip() for line in lines):
        raise UserError("no text to train a tokenizer on")
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

    def count(self, previous: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """int64 bytes of each of `targets`; `previous` has the token before each, in the same shape."""
        space = self.leading_space[targets] & ~self.boundary[previous]
        return self.bytes_of[targets].astype(np.int64) + space


class Tokenizer:
    """A SentencePiece model read from a file.

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

    def _has_piece(self, piece: str) -> bool:
        token = self._processor.piece_to_id(piece)
        return not self._is_boundary(token) and self.piece_of(token) == piece

    def _strips(self) -> bool:
        for token in range(self.vocab_size):
            if self._processor.id_to_piece(token).startswith(SPACE) and not self._is_boundary(token):
                return not self.decode([token]).startswith(" ")
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
        if SPACE not in text or self._strips_first_space:
            return list(self._processor.encode(text))
        # SentencePiece would take a literal U+2581 for a space; its three bytes are unambiguous.
        mark = self._spell(SPACE.encode())
        first, *rest = self._processor.encode(text.split(SPACE))
        return list(first) + [token for part in rest for token in mark + part]

    def encode_all(self, texts: list[str], threads: int) -> list[list[int]]:
        """`encode` of each text, on several threads."""
        plain = [text for text in texts if SPACE not in text or self._strips_first_space]
        encoded = iter(self._processor.encode(plain, num_threads=threads) if plain else [])
        return [
            next(encoded) if SPACE not in text or self._strips_first_space else self.encode(text)
            for text in texts
        ]

    def decode_all(self, ids: list[list[int]], threads: int) -> list[str]:
        """`decode` of each text, on several threads."""
        return list(self._processor.decode(ids, num_threads=threads)) if ids else []

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; control tokens give none. Raises UserError on an id outside the vocabulary."""
        tokens = [int(token) for token in ids]
        if tokens and not 0 <= min(tokens) <= max(tokens) < self.vocab_size:
            raise UserError(
                f"token ids outside 0 .. {self.vocab_size - 1}: tokens of another tokenizer than {self.path}"
            )
        return str(self._processor.decode(tokens))

    def piece_of(self, token: int) -> str:
        """How the vocabulary writes a token: "▁city" with its space, "<0xC3>" for a byte."""
        return str(self._processor.id_to_piece(token))

    def is_fallback(self, token: int) -> bool:
        """Whether the token is one byte of a character that has no piece of its own."""
        return bool(self._processor.is_byte(token))

    def bytes_of(self, token: int) -> bytes:
        """What a token writes, its leading space included; nothing for control, unknown and unused tokens."""
        if self._is_boundary(token):
            return b""
        piece = self.piece_of(token)
        if self.is_fallback(token):
            return bytes([int(piece[3:5], 16)])
        return piece.replace(SPACE, " ").encode()

    def text_bytes(self, token: int, size: int) -> bytes:
        """The text of a token that stands for `size` bytes (see `ByteTable.count`): without its leading
        space where that vanishes."""
        text = self.bytes_of(token)
        return text[len(text) - size :]

    def encode_bytes(self, data: bytes) -> list[int]:
        """Token ids whose `decode_bytes` is exactly `data`, whatever bytes they are and whichever tokenizer.

        Text is encoded as text; what is no UTF-8, or would come back changed, is spelled in byte
        pieces. Raises UserError if the tokenizer lacks those pieces and they are needed.
        """
        pieces = self.pieces()
        ids: list[int] = []
        # Invalid bytes decode to lone surrogates, which no text holds: every second part is of these.
        parts = re.split("([\udc80-\udcff]+)", data.decode(errors="surrogateescape"))
        for index, part in enumerate(parts):
            if index % 2:
                ids += self._spell(part.encode(errors="surrogateescape"))
            else:
                ids += self._encode_exactly(part, pieces)
        if b"".join(pieces[token] for token in ids) != data:
            raise UserError(f"tokenizer {self.path} has no byte pieces; it cannot write every file")
        return ids

    def _encode_exactly(self, text: str, pieces: list[bytes]) -> list[int]:
        raw = text.encode()
        # Tokenizers that put a space before every text: it is then the text's own first space.
        for attempt in (text, text.removeprefix(" ")):
            ids = self.encode(attempt)
            if b"".join(pieces[token] for token in ids) == raw:
                return ids
        middle = len(text) // 2
        cut = max(text.find(" ", max(middle, 1)), text.rfind(" ", 1, middle))
        if cut < 0:
            return self._spell(raw)
        return self._encode_exactly(text[:cut], pieces) + self._encode_exactly(text[cut:], pieces)

    def _spell(self, data: bytes) -> list[int]:
        """One byte piece for each byte."""
        return [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in data]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of each token, one after the other; ids must lie in the vocabulary.

        Unlike `decode`, no space is stripped and bytes that are no UTF-8 are kept.
        """
        pieces = self.pieces()
        return b"".join(pieces[token] for token in ids)

    def pieces(self) -> list[bytes]:
        """The bytes of every token, in the order of ids."""
        return [self.bytes_of(token) for token in range(self.vocab_size)]

    def unknown(self) -> np.ndarray:
        """bool (vocab,): the token stands for characters that the vocabulary cannot write."""
        return np.array([self._processor.is_unknown(token) for token in range(self.vocab_size)])

    def boundaries(self) -> np.ndarray:
        """bool (vocab,): the token is a control, unknown or unused piece, which stands for no text."""
        return np.array([self._is_boundary(token) for token in range(self.vocab_size)])

    @property
    def has_operators(self) -> bool:
        """Whether the vocabulary is of a text in which operators stand for capitals (CaseOps)."""
        return all(self._has_piece(operator) for operator in OPERATORS)

    def byte_table(self) -> ByteTable:
        """Bytes of each token, by the challenge's rule for SentencePiece tokens.

        Raises UserError where that rule does not hold: for a vocabulary with operators, and for a
        tokenizer that puts its spaces elsewhere than before words.
        """
        if self.has_operators:
            raise UserError(
                f"tokenizer {self.path} writes capitals with operators (CaseOps): only"
                " fineweb_val_bytes_*.bin beside the shards says how many bytes its tokens stand for"
            )
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
        return ByteTable(bytes_of, leading_space, boundary)
