"""A file to fewer bytes by a model, and back: the whole way of both."""

import hashlib
import os
import platform
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from pargolf.compress import learner
from pargolf.compress.coder import Counts, Decoder, Encoder, bits
from pargolf.compress.container import FileHeader, pack, unpack
from pargolf.compress.contexts import Layout, Tokens, cache_bytes
from pargolf.compress.steps import layout_of, probe, steps
from pargolf.config.schema import ModelConfig
from pargolf.data.tokenizer import Tokenizer
from pargolf.export.artifact import Artifact
from pargolf.model.gpt import GPT
from pargolf.run.target import Target, load_model
from pargolf.system.console import Bar
from pargolf.system.errors import UserError, require
from pargolf.system.files import sha256_file, write_atomic

STREAM_WINDOWS = 4  # a stream for every so many windows of seq_len tokens: a start costs a few bytes
FASTEST_STREAMS = 128  # more hardly help two cores
ADAPT_STREAMS = 4  # with fewer, what is learnt serves sooner; with more, a step does more
MAX_CACHE_BYTES = 2 << 30  # of keys and values, all streams together
MAX_LOGIT_BYTES = 1 << 30  # the same of logits that are learnt from at once


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
    streams: int = 0, dtype: str = "auto", threads: int = 0, verify: bool = True, adapt: bool = False,
) -> Report:  # fmt: skip
    """Write `source`, any file, to `out` in the .pgc format, coded by an artifact's model on the CPU.

    streams 0 chooses by the file's size, dtype "auto" takes the run's, threads 0 takes PyTorch's.
    With `adapt`, in float32 alone, model and counts learn from what has been coded. With `verify`, `out`
    is decoded and compared before it is written. Raises UserError if a setting is out of range, if
    streams take too much memory, or if a decoded byte differs.
    """
    _check_out(source, out)
    if adapt:
        require(dtype != "bfloat16", "--adapt learns in float32, too fine for bfloat16: leave out --dtype")
        dtype = "float32"
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
        streams or _default_streams(len(tokens), c, model.dtype, adapt), keep=-(-c.seq_len // 2),
        dtype=str(model.dtype).removeprefix("torch."), threads=threads or torch.get_num_threads(),
        machine=_this_machine(),
    )  # fmt: skip
    if adapt:
        header = replace(header, rate=learner.RATE, steps=learner.STEPS)
    _require_room(header, c)
    if adapt:
        header = replace(header, probe=probe(model, tokenizer.bos_id, header))
        clock("probe")
    payload, step_bits = _encode(model, tokenizer, header, tokens)
    packed = pack(header, payload)
    clock("encode")
    if verify:
        _restore(model, tokenizer, header, payload, source)
        clock("verify")
    write_atomic(out, packed)
    # Of a file that learns, early tokens cost more for another reason.
    starts = 0.0 if adapt else _start_bits(layout_of(header), step_bits)
    return Report(header, len(payload), len(packed), clock.seconds, starts)


def decompress_file(source: Path, out: Path, target: Target) -> Report:
    """Write the original of `source`, a .pgc file, to `out`.

    Raises UserError, and leaves `out` as it was, if the file is damaged, another model made it, or
    what it decodes to is not its original, which is so where a machine computes other floats.
    """
    _check_out(source, out)
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
    if header.rate:
        require(
            probe(model, tokenizer.bos_id, header) == header.probe,
            f"{source}: it learnt as it was coded, and floats come out differently. {_machines(header)}",
        )
        clock("probe")
    original = _restore(model, tokenizer, header, payload, source)
    clock("decode")
    write_atomic(out, original)
    return Report(header, len(payload), len(data), clock.seconds)


def _encode(
    model: GPT, tokenizer: Tokenizer, header: FileHeader, tokens: Tokens
) -> tuple[bytes, list[float]]:
    """The coded tokens, and the mean bits of a token at each step of the streams."""
    layout, coder, step_bits = layout_of(header), Encoder(), []
    columns = iter(layout.columns(tokens))

    def write(table: Counts) -> Tokens:
        symbols = next(columns)
        coder.write(table, symbols)
        step_bits.append(bits(table, symbols) / len(symbols))
        return symbols

    with Bar("compressing") as bar:
        steps(model, tokenizer.bos_id, header, layout, write, bar)
    return coder.finish(), step_bits


def _restore(model: GPT, tokenizer: Tokenizer, header: FileHeader, payload: bytes, source: Path) -> bytes:
    """The original of the coded tokens; UserError if they give other bytes."""
    layout = layout_of(header)
    try:
        coder = Decoder(payload)
        with Bar("decoding") as bar:
            columns = steps(model, tokenizer.bos_id, header, layout, coder.read, bar)
        original = tokenizer.decode_bytes(layout.joined(columns).tolist())
        require(hashlib.sha256(original).hexdigest() == header.sha256, "its SHA-256 is another")
    except UserError as error:
        raise UserError(
            f"{source}: decoding does not give back the original ({error}): floats came out differently."
            f" {_machines(header)}"
        ) from None
    return original


def _default_streams(tokens: int, c: ModelConfig, dtype: torch.dtype, adapt: bool) -> int:
    fitting = MAX_CACHE_BYTES // cache_bytes(c, dtype)
    most = min(ADAPT_STREAMS, MAX_LOGIT_BYTES // _logit_bytes(c)) if adapt else FASTEST_STREAMS
    return max(1, min(tokens // (STREAM_WINDOWS * c.seq_len), most, fitting))


def _require_room(header: FileHeader, c: ModelConfig) -> None:
    """UserError unless this model can be stepped as the header says, in bounded memory."""
    require(1 <= header.keep <= c.seq_len, f"keep must lie in 1..{c.seq_len}")
    cache = header.streams * cache_bytes(c, getattr(torch, header.dtype))
    require(
        cache <= MAX_CACHE_BYTES,
        f"{header.streams} streams need {cache:,} bytes of keys and values, more than {MAX_CACHE_BYTES:,}",
    )
    logits = header.streams * _logit_bytes(c) if header.rate else 0
    require(
        logits <= MAX_LOGIT_BYTES,
        f"{header.streams} streams learn from {logits:,} bytes of logits, more than {MAX_LOGIT_BYTES:,}",
    )


def _logit_bytes(c: ModelConfig) -> int:
    """Bytes of the logits of each stream's context, all of which learning looks at."""
    return 4 * c.seq_len * c.vocab_size


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


def _machines(header: FileHeader) -> str:
    made = f"{header.machine}, {header.dtype}, {header.threads} threads"
    return f"It was made by {made}; this is {_this_machine()}. Decompress it where it was made"


def _start_bits(layout: Layout, step_bits: list[float]) -> float:
    """What tokens with less context than `keep` cost more than those with it, in all streams but one."""
    early, full = step_bits[: layout.keep], step_bits[layout.keep :]
    if not full:
        return 0.0
    return (layout.streams - 1) * (sum(early) - len(early) * sum(full) / len(full))


def _check_out(source: Path, out: Path) -> None:
    """UserError unless `out` can be written and is not `source`: found out before hours of work."""
    place = out.parent
    require(not out.is_dir(), f"{out} is a folder; name a file in it")
    require(place.is_dir() and os.access(place, os.W_OK), f"cannot write into {place}; name another place")
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
