"""A file to fewer bytes by a model, and back: the whole way of both."""

import hashlib
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pargolf.compress.coder import Decoder, Encoder, bits, counts
from pargolf.compress.container import FileHeader, pack, unpack
from pargolf.compress.contexts import Layout, Tokens, cache_bytes, walk
from pargolf.config.schema import ModelConfig
from pargolf.data.tokenizer import Tokenizer
from pargolf.export.artifact import Artifact
from pargolf.model.gpt import GPT
from pargolf.run.target import Target, load_model
from pargolf.system import machine
from pargolf.system.console import Bar
from pargolf.system.errors import UserError, require
from pargolf.system.files import sha256_file, write_atomic

STREAM_WINDOWS = 4  # a stream for every so many windows of seq_len tokens: a start costs a few bytes
FASTEST_STREAMS = 128  # more hardly help two cores
MAX_CACHE_BYTES = 2 << 30  # of keys and values, all streams together


@dataclass(frozen=True)
class Report:
    """What became of a file."""

    header: FileHeader
    coded_bytes: int
    """The coded tokens alone."""
    file_bytes: int
    """The whole .pgc file."""
    seconds: dict[str, float]
    """Of each step, in order."""
    start_bits: float = 0.0
    """About what it cost that all streams but the first began without context; 0 when unknown."""


def compress_file(
    source: Path, out: Path, target: Target,
    streams: int = 0, dtype: str = "auto", threads: int = 0, verify: bool = True,
) -> Report:  # fmt: skip
    """Write `source`, any file, to `out` in the .pgc format, coded by an artifact's model on the CPU.

    streams 0 chooses by the file's size, dtype "auto" takes the run's, threads 0 takes PyTorch's.
    With `verify`, `out` is decoded and compared before it is written. Raises UserError if a setting
    is out of range, if streams take too much memory, or if a decoded byte differs.
    """
    _refuse_same(source, out)
    clock = _Clock()
    data = _read(source)
    artifact, tokenizer = target.open()
    model = load_model(artifact, target.dtype if dtype == "auto" else getattr(torch, dtype))
    c = model.config
    clock("model")
    tokens = np.array(tokenizer.encode_bytes(data), np.int64)
    clock("tokens")
    header = FileHeader(
        sha256_file(target.artifact), hashlib.sha256(data).hexdigest(), len(data), len(tokens),
        streams or _default_streams(len(tokens), c, model.dtype), keep=-(-c.seq_len // 2),
        dtype=str(model.dtype).removeprefix("torch."), threads=threads or torch.get_num_threads(),
        machine=_this_machine(),
    )  # fmt: skip
    _require_room(header, c)
    payload, step_bits = _encode(model, tokenizer, header, tokens)
    packed = pack(header, payload)
    clock("encode")
    if verify:
        _restore(model, tokenizer, header, payload, source)
        clock("verify")
    write_atomic(out, packed)
    return Report(header, len(payload), len(packed), clock.seconds, _start_bits(_layout(header), step_bits))


def decompress_file(source: Path, out: Path, target: Target) -> Report:
    """Write the original of `source`, a .pgc file, to `out`.

    Raises UserError, and leaves `out` as it was, if the file is damaged, another model made it, or
    what it decodes to is not its original, which is so where a machine computes other floats.
    """
    _refuse_same(source, out)
    clock = _Clock()
    data = _read(source)
    try:
        header, payload = unpack(data)
        artifact, tokenizer = _open_maker(header, target)
        _require_room(header, artifact.model)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    model = load_model(artifact, getattr(torch, header.dtype))
    clock("model")
    original = _restore(model, tokenizer, header, payload, source)
    clock("decode")
    write_atomic(out, original)
    return Report(header, len(payload), len(data), clock.seconds)


def _encode(
    model: GPT, tokenizer: Tokenizer, header: FileHeader, tokens: Tokens
) -> tuple[bytes, list[float]]:
    """The coded tokens, and the mean bits of a token at each step of the streams."""
    layout, coder, step_bits = _layout(header), Encoder(), []
    columns = iter(layout.columns(tokens))

    def write(logits: Tensor) -> Tokens:
        table, symbols = counts(logits), next(columns)
        coder.write(table, symbols)
        step_bits.append(bits(table, symbols) / len(symbols))
        return symbols

    with Bar("compressing") as bar, machine.cpu_threads(header.threads):
        walk(model, tokenizer.bos_id, layout, write, bar)
    return coder.finish(), step_bits


def _restore(model: GPT, tokenizer: Tokenizer, header: FileHeader, payload: bytes, source: Path) -> bytes:
    """The original of the coded tokens; UserError if they give other bytes."""
    layout = _layout(header)
    try:
        coder = Decoder(payload)
        with Bar("decoding") as bar, machine.cpu_threads(header.threads):
            columns = walk(model, tokenizer.bos_id, layout, lambda logits: coder.read(counts(logits)), bar)
        original = tokenizer.decode_bytes(layout.joined(columns).tolist())
        require(hashlib.sha256(original).hexdigest() == header.sha256, "its SHA-256 is another")
    except UserError as error:
        raise UserError(
            f"{source}: decoding does not give back the original ({error}): floats came out differently."
            f" It was made by {header.machine}, {header.dtype}, {header.threads} threads; this is"
            f" {_this_machine()}. Decompress it where it was made"
        ) from None
    return original


def _layout(header: FileHeader) -> Layout:
    return Layout(header.tokens, header.streams, header.keep)


def _default_streams(tokens: int, c: ModelConfig, dtype: torch.dtype) -> int:
    fitting = MAX_CACHE_BYTES // cache_bytes(c, dtype)
    return max(1, min(tokens // (STREAM_WINDOWS * c.seq_len), FASTEST_STREAMS, fitting))


def _require_room(header: FileHeader, c: ModelConfig) -> None:
    """UserError unless this model can be stepped as the header says, in bounded memory."""
    require(1 <= header.keep <= c.seq_len, f"keep must lie in 1..{c.seq_len}")
    cache = header.streams * cache_bytes(c, getattr(torch, header.dtype))
    require(
        cache <= MAX_CACHE_BYTES,
        f"{header.streams} streams need {cache:,} bytes of keys and values, more than {MAX_CACHE_BYTES:,}",
    )


def _open_maker(header: FileHeader, target: Target) -> tuple[Artifact, Tokenizer]:
    """The artifact and tokenizer of `target`, if the file was made with them."""
    actual = sha256_file(target.artifact)
    require(
        actual == header.model,
        f"made with another model (SHA-256 {header.model[:12]}...) than {target.artifact} ({actual[:12]}...)",
    )
    return target.open()


def _this_machine() -> str:
    """What floats may depend on."""
    return f"torch {torch.__version__}, {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def _start_bits(layout: Layout, step_bits: list[float]) -> float:
    """What tokens with less context than `keep` cost more than those with it, in all streams but one."""
    early, full = step_bits[: layout.keep], step_bits[layout.keep :]
    if not full:
        return 0.0
    return (layout.streams - 1) * (sum(early) - len(early) * sum(full) / len(full))


def _refuse_same(source: Path, out: Path) -> None:
    require(not out.exists() or not out.samefile(source), f"{out} is the file to be read; name another")


def _read(source: Path) -> bytes:
    try:
        return source.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {source}: {error.strerror}") from None


class _Clock:
    """Seconds between calls, by the name of what was done."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def __call__(self, step: str) -> None:
        now = time.perf_counter()
        self.seconds[step] = now - self._last
        self._last = now
