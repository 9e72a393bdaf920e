"""`pargolf compress` against general-purpose compressors: python benchmarks/compress.py runs/demo.

Two texts: the run's held-out articles, and Python source, which its model never saw: the modules at
the top of the standard library in the order of their names, whole, until they hold --source-bytes.
The others also get the training text before the text, where they can look back at it. Sizes of
pargolf are of whole .pgc files, restored and compared; MB are 10^6 bytes of the original. A second
size counts what the decoder must have: the model, or the training text.
"""

import platform
import sysconfig
import tempfile
from pathlib import Path

import torch
import tyro
from rich.table import Table

from pargolf.compress.files import compress_file, decompress_file
from pargolf.data.text import decoded
from pargolf.run.target import Target, find_target
from pargolf.score.compressors import COMPRESSORS, compressor_table
from pargolf.system.console import console, say


def python_source(size: int) -> bytes:
    """Modules of the standard library, at least `size` bytes of them."""
    text = b""
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("[a-z]*.py")):
        if len(text) < size:
            text += path.read_bytes()
    return text


def compare(title: str, text: bytes, train: bytes, target: Target, adapt: bool) -> None:
    """Print one text's table."""
    table = Table(title=f"{title}: {len(text):,} bytes", title_justify="left")
    for column in ("", "bytes", "bits a byte", "and the decoder's model or text", "MB/s", "MB/s back"):
        table.add_column(column, justify="right" if column else "left")

    def row(name: str, size: int, needed: int, seconds: float, back: float | None = None) -> None:
        speeds = [f"{len(text) / 1e6 / s:.3f}" if s else "not measured" for s in (seconds, back)]
        table.add_row(name, f"{size:,}", f"{8 * size / len(text):.4f}", f"{size + needed:,}", *speeds)

    with tempfile.TemporaryDirectory() as folder:
        original, packed, restored = (Path(folder) / name for name in ("original", "packed", "restored"))
        original.write_bytes(text)
        written = compress_file(original, packed, target, verify=False, adapt=adapt)
        read = decompress_file(packed, restored, target)
        assert restored.read_bytes() == text
    name = f"pargolf{' --adapt' * adapt}, {written.header.streams} streams, {written.header.dtype}"
    seconds, back = (sum(report.seconds.values()) - report.seconds["model"] for report in (written, read))
    row(name, written.file_bytes, target.artifact.stat().st_size, seconds, back)
    for other in compressor_table(text, train, list(COMPRESSORS)):
        row(other.name, other.bytes, len(train) if "after" in other.name else 0, other.seconds)
    console.print(table)
    tokens = written.header.tokens
    say(
        f"pargolf: {tokens / seconds:,.0f} tokens/s there, {tokens / back:,.0f} back;"
        f" SHA-256 of the text {written.header.sha256[:16]}"
    )


def main(run: tyro.conf.Positional[Path], source_bytes: int = 200_000, adapt: bool = False) -> None:
    """Print the tables of a run's artifact."""
    target = find_target(run)
    _, tokenizer = target.open()
    train_tokens = target.training()
    val = decoded(target.validation().tokens, tokenizer)
    train = decoded(train_tokens.read(0, len(train_tokens)), tokenizer)
    say(
        f"{target.artifact}: {target.artifact.stat().st_size:,} bytes; {torch.get_num_threads()} CPU threads;"
        f" training text: {len(train):,} bytes"
    )
    compare("held-out articles", val, train, target, adapt)
    compare(
        f"source of Python {platform.python_version()}", python_source(source_bytes), train, target, adapt
    )


if __name__ == "__main__":
    tyro.cli(main)
