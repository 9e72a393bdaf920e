"""Where every byte of a submission goes, and how many there will be."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, log2, prod

from pargolf.config.kinds import Slot
from pargolf.config.schema import ExportConfig
from pargolf.config.settings import settled
from pargolf.export.artifact import read_header
from pargolf.export.quantize import RIGHT_GROUP, most_bits, sigmas_of, top_value
from pargolf.system.errors import UserError

# Bits a quantized value saved by the codec, measured on published records of trained models with
# scales and floats counted whole (OpenAI parameter-golf, its records and pull request #215):
# zstd 22, int6: three runs of pull request #215, mean 14,787,646 bytes, less ~55,000 of code, 1,048,576 of
#   float16 embedding, 100,704 of float32 vectors and 83,072 of scales, over 25,231,360 values:
#   4.28 bits, 1.72 below 6.
# zlib 9, int8: the baseline, 15.86 MB, less ~48,000 of code, 82,208 of vectors and 57,344 of scales,
#   over 17,039,360 values: 7.36 bits, 0.64 below 8.
# Nobody has published the others: they stand by what they took more or less than zstd 22 for the
# same values, those of a demo run and Student-t(5) rows (benchmarks/pack.py).
# A rough prior: Gaussian rows, such as barely trained ones, save only about 0.7 bits under zstd.
SAVED_BITS = {"zstd": 1.72, "zlib": 0.64, "brotli": 1.80, "lzma": 1.70}
SAVED_BY_RANGE = 1.86
# Bits a float saved by planes over what zstd saves without, which is in SAVED_BITS; by the same benchmark.
SAVED_BY_PLANES = {16: 1.2, 32: 3.0}

# Bits a value that the codecs may lose, at their worst level, on uniformly random values: their
# match search finds chance repeats among few different values, which cost more than they save.
LOST_BITS = {
    "zstd": {4: 0.25, 5: 0.05},
    "zlib": {4: 0.65, 5: 0.5, 6: 0.2, 7: 0.05},
    "brotli": {4: 0.42, 5: 0.1},
    "lzma": {4: 0.12, 5: 0.14, 6: 0.15, 7: 0.15},
}

# Bits of a Gaussian value of deviation 1 rounded to a step of 1: log2(sqrt(2 pi e)).
GAUSSIAN_BITS = 2.047
# What trained rows take of that at steps by deviations. brotli: three published files of full size, threads
# 1394, 1493 and 1530, 1.0068 to 1.0073. The others by what they took beside brotli for the same integers of
# trained runs (docs/log.md, "Bytes of steps by deviations"): the codecs at the mean of demos; range, 0.947 to
# 0.971 of brotli's bytes, at the least that it saved, as no run of full size was at hand.
OF_GAUSSIAN = {"zstd": 1.03, "zlib": 1.15, "brotli": 1.007, "lzma": 1.045}
OF_GAUSSIAN_BY_RANGE = 0.978
# Of the values of 1 and 2 bits, which have no larger ones to save on.
FEW_BITS = {1: 1.0, 2: 1.6}

CONTAINER_BYTES = 1024  # prefix, header and checksum
TENSOR_BYTES = 200  # names and shapes in the safetensors header, uncompressed
CODEC_SLACK = 1.01


@dataclass(frozen=True)
class LedgerRow:
    """Bytes of one section; `values` counts the parameters in it (0 for overhead and code)."""

    kind: str
    layer: int | None
    bytes: int
    values: int


@dataclass(frozen=True)
class Ledger:
    """Every byte of artifact and code, each in exactly one row."""

    rows: tuple[LedgerRow, ...]

    @property
    def total(self) -> int:
        """Bytes of the artifact file and the code: the size that the challenge limits."""
        return sum(row.bytes for row in self.rows)

    @property
    def code_bytes(self) -> int:
        """Bytes of the code."""
        return sum(row.bytes for row in self.rows if row.kind == "code")

    @property
    def model_bytes(self) -> int:
        """Bytes of the artifact file."""
        return self.total - self.code_bytes

    def by_kind(self) -> dict[str, tuple[int, int]]:
        """(values, bytes) a kind, including "overhead" and "code", most bytes first."""
        totals: dict[str, tuple[int, int]] = {}
        for row in self.rows:
            values, size = totals.get(row.kind, (0, 0))
            totals[row.kind] = (values + row.values, size + row.bytes)
        return dict(sorted(totals.items(), key=lambda item: -item[1][1]))


@dataclass(frozen=True)
class Prediction:
    """Bytes of an artifact file before its training; code is not in it."""

    expected: int
    at_most: int


def ledger(data: bytes, code_bytes: int) -> Ledger:
    """Account for `data` (a whole artifact file) and the code; sums to len(data) + code_bytes.

    Raises UserError if the file is malformed.
    """
    sections = read_header(data).sections
    overhead = len(data) - sum(section.bytes for section in sections)
    return Ledger(
        (
            *(LedgerRow(s.kind, s.layer, s.bytes, s.values) for s in sections),
            LedgerRow("overhead", None, overhead, 0),
            LedgerRow("code", None, code_bytes, 0),
        )
    )


def check_budget(ledger: Ledger, budget: int) -> None:
    """Raise UserError, with the excess and the largest kinds, if the total is above `budget` bytes."""
    over = ledger.total - budget
    if over > 0:
        largest = ", ".join(f"{kind} {size:,}" for kind, (_, size) in list(ledger.by_kind().items())[:3])
        raise UserError(
            f"{ledger.total:,} bytes of code and model are {over:,} over the budget of {budget:,};"
            f" largest: {largest}; make the model smaller or lower its export bits"
        )


def coded_bits(bits: int, sigmas: float, export: ExportConfig) -> float:
    """Bits that a quantized value is expected to take: fewer than its own, by its step where that tells."""
    ranged = export.layout == "range"
    if bits in FEW_BITS:
        return FEW_BITS[bits]
    if sigmas:
        share = OF_GAUSSIAN_BY_RANGE if ranged else OF_GAUSSIAN[export.codec]
        return min(bits, share * (GAUSSIAN_BITS + log2(top_value(bits) / sigmas)))
    return bits - (SAVED_BY_RANGE if ranged else SAVED_BITS[export.codec])


def predict_bytes(
    shapes: Mapping[str, tuple[int, ...]], slots: Mapping[str, Slot], export: ExportConfig
) -> Prediction:
    """Artifact bytes of a model with these tensor shapes, before any training.

    `at_most` gives every value its full bits, and what the codec can lose (see LOST_BITS).
    `expected` takes off what the codec saved on published trained models (see SAVED_BITS): a
    rough prior, which barely trained weights exceed.
    Neither is above `export.model_bytes`.
    Raises ValueError if names differ.
    """
    if shapes.keys() != slots.keys():
        raise ValueError(f"shapes and slots differ: {sorted(shapes.keys() ^ slots.keys())}")
    export = settled(export)
    ranged = export.layout == "range"
    lost = {} if ranged else LOST_BITS[export.codec]
    saved_floats = {} if export.layout == "bytes" else SAVED_BY_PLANES
    expected = at_most = 0.0
    for name, shape in shapes.items():
        bits = most_bits(slots[name].kind, prod(shape), export)
        quantized = bits <= 8
        scales = shape[0] if quantized else 0
        levels = sum(shape) if quantized and ranged else 0
        at_most += prod(shape) * (bits + lost.get(bits, 0.0)) / 8 + 2 * scales + levels
        sigmas = sigmas_of(slots[name].kind, export)
        coded = coded_bits(bits, sigmas, export) if quantized else bits - saved_floats.get(bits, 0.0)
        expected += prod(shape) * coded / 8
        expected += scales * (6 + export.scale_bits) / 8
        expected += levels / 3  # they compress to about that
    corrected = sorted((shape for shape in shapes.values() if len(shape) == 2), key=prod)[
        -export.lqer_matrices :
    ]
    for rows, cols in corrected if export.lqer_rank else []:
        at_most += export.lqer_rank * (rows + cols * (1 + 2 / RIGHT_GROUP))
        expected += export.lqer_rank * (rows * 2 / 8 + cols * (4 / 8 + 2 / RIGHT_GROUP))
    overhead = CONTAINER_BYTES + TENSOR_BYTES * len(shapes)
    # Names and shapes repeat, so in earnest they compress to about a third.
    expected, at_most = expected + overhead / 3, at_most * CODEC_SLACK + overhead
    if export.model_bytes:
        expected, at_most = min(expected, export.model_bytes), min(at_most, export.model_bytes)
    return Prediction(ceil(expected), ceil(at_most))
