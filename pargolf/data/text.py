"""Tokens to be scored, and the bytes that each of them stands for: the one place that counts bytes."""

from dataclasses import dataclass, replace

import numpy as np

from pargolf.data.tokenizer import Tokenizer
from pargolf.system.errors import Mismatch, UserError, require

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Text:
    """A stream of tokens to score; `measured` makes it, so that its bytes are those of its tokens."""

    tokens: np.ndarray
    """(N,) uint16 or int64. The first one is context and is not scored."""
    sizes: np.ndarray
    """(N,) integers: UTF-8 bytes that each token stands for; 0 for the first."""
    tokenizer: Tokenizer
    doubt: str = ""
    """What could not be known about tokens and bytes, in words; "" where everything is known."""

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def bytes(self) -> int:
        """UTF-8 bytes of all scored tokens."""
        return int(self.sizes.sum(dtype=np.int64))

    def first(self, count: int) -> "Text":
        """The first `count` tokens, or all if there are fewer."""
        return replace(self, tokens=self.tokens[:count], sizes=self.sizes[:count])


def measured(tokens: np.ndarray, tokenizer: Tokenizer, sidecar: np.ndarray | None = None) -> Text:
    """`tokens` (N,) with the bytes that each stands for, by the tokenizer's table or by a `sidecar` (N,).

    Raises UserError where no true number of bits per byte exists: an id outside the vocabulary, unknown
    tokens, a sidecar of other tokens, or no byte to score.
    """
    require(len(tokens) > 0, "there are no tokens to score")
    largest, unknown = int(tokens.max()), tokenizer.unknown()
    if largest >= tokenizer.vocab_size:
        raise Mismatch(
            f"token {largest} is outside the {tokenizer.vocab_size} pieces of {tokenizer.path}:"
            " it was made with another tokenizer"
        )
    if count := int(unknown[tokens].sum()):
        raise UserError(
            f"{count:,} of {len(tokens):,} tokens ({count / len(tokens):.1%}) are unknown to {tokenizer.path}"
            " and stand for no bytes that could be counted; use a tokenizer with byte fallback"
        )
    sizes = np.zeros(len(tokens), np.uint16)
    if sidecar is None:
        sizes[1:] = tokenizer.byte_table().count(tokens[:-1], tokens[1:])
    else:
        _check_sidecar(tokens, tokenizer, sidecar)
        sizes[1:] = sidecar[1:]
    text = Text(tokens, sizes, tokenizer)
    require(text.bytes > 0, f"there is no byte to score in {len(tokens):,} tokens: they hold no text")
    return text


def _check_sidecar(tokens: np.ndarray, tokenizer: Tokenizer, sidecar: np.ndarray) -> None:
    """Mismatch unless the sidecar's bytes (N,) can be those of `tokens` (N,)."""
    if len(sidecar) != len(tokens):
        raise Mismatch(
            f"fineweb_val_bytes_*.bin is of {len(sidecar):,} tokens, but the shards hold {len(tokens):,}"
        )
    # The last byte of a character that is spelled in bytes carries all of them.
    most = [4 if tokenizer.is_fallback(t) else len(piece) for t, piece in enumerate(tokenizer.pieces)]
    over = np.flatnonzero(sidecar > np.array(most)[tokens])
    if len(over):
        at = int(over[0])
        raise Mismatch(
            f"fineweb_val_bytes_*.bin gives token {at:,}, {tokenizer.piece_of(int(tokens[at]))!r},"
            f" {sidecar[at]} bytes, more than it can stand for: it was made for other shards"
        )


def decoded(tokens: np.ndarray, tokenizer: Tokenizer) -> bytes:
    """The original text of `tokens` (N,), byte for byte, documents one after the other, as SentencePiece
    decodes it.

    Unlike SentencePiece it keeps the bytes of a character that is cut, as at the end of a stream, and the
    space that begins a stream inside a document.
    """
    boundary = tokenizer.boundaries()
    # Part by part: some tokenizers drop a space at the start of each.
    starts = np.flatnonzero(boundary[tokens])
    return b"".join(_decoded_part(part, tokenizer, boundary) for part in np.split(tokens, starts))


def _decoded_part(part: np.ndarray, tokenizer: Tokenizer, boundary: np.ndarray) -> bytes:
    ids: list[int] = part.tolist()
    theirs = tokenizer.decode(ids)
    raw = tokenizer.decode_bytes(ids)
    inside = bool(ids) and not boundary[ids[0]]
    if inside and raw[:1] == b" " and theirs[:1] != " ":
        theirs = " " + theirs
    elif raw[:1] == b" " and theirs[:1] != " ":
        raw = raw[1:]
    # Where a character is cut SentencePiece writes U+FFFD, as three bytes for each one.
    whole = raw.decode(errors="ignore").replace(REPLACEMENT, "") == theirs.replace(REPLACEMENT, "")
    return raw if whole else theirs.encode()
