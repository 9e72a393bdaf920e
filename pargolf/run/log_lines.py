"""The lines that close a training log, in the form of the challenge's published logs."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from pargolf.challenge import TIME_LIMIT
from pargolf.config.schema import ExportConfig
from pargolf.score.windows import Score

# How a score was taken -> what the published logs call it.
LABELS = {"standard": "roundtrip", "sliding": "sliding_window", "adapted": "adapted"}


class Scored(NamedTuple):
    """A score, the stride of its windows in tokens, and the seconds it took."""

    score: Score
    stride: int
    seconds: float


def closing_lines(
    export: ExportConfig, code_bytes: int, model_bytes: int, scores: Mapping[str, Scored], doubt: str = ""
) -> list[str]:
    """Sizes of code and artifact, then two lines a score: rounded, and exact to 8 digits.

    `scores` maps how they were taken, of LABELS, to scores of the artifact as read back from disk;
    `doubt` says what is not known of their text.
    """
    lines = size_lines(export, code_bytes, model_bytes)
    note = f" ({doubt})" if doubt else ""
    for how, (score, stride, seconds) in scores.items():
        label = f"final_{_precision(export)}_{LABELS[how]}"
        lines += [
            f"{label} val_loss:{score.val_loss:.4f} val_bpb:{score.val_bpb:.4f} stride:{stride}"
            f" tokens:{score.tokens} bytes:{score.bytes} eval_time:{seconds * 1000:.0f}ms{note}",
            f"{label}_exact val_loss:{score.val_loss:.8f} val_bpb:{score.val_bpb:.8f}",
        ]
    return lines


def taken(result: Mapping[str, Any]) -> dict[str, str]:
    """How each score of a result.json was taken, in words: of "artifact" and "checkpoint", by their keys."""
    told = result.get("eval")
    settings = told if isinstance(told, dict) else {}
    apart = " of each document" if settings.get("documents") == "apart" else ""
    learns = str(settings.get("adapt", "off")).replace("off", "")
    hints = "hints" if settings.get("tilt") else ""
    return {
        "standard": (f"rows of {result['seq_len']}" if "seq_len" in result else "rows") + apart,
        "sliding": (f"stride {result['stride']}" if "stride" in result else "sliding window") + apart,
        "adapted": " + ".join(filter(None, (learns, hints))),
    }


def seconds_line(read: float, scores: Mapping[str, Scored]) -> str:
    """What scoring took in all, from the file on, beside what the challenge allows."""
    taken = {"reading": read} | {how: score.seconds for how, score in scores.items()}
    if scores["standard"] is scores["sliding"]:
        del taken["sliding"]  # the same windows
    parts = ", ".join(f"{what} {seconds:.1f}" for what, seconds in taken.items())
    return f"scoring took {sum(taken.values()):.1f} of {TIME_LIMIT} s: {parts}"


def size_lines(export: ExportConfig, code_bytes: int, model_bytes: int) -> list[str]:
    """What code, artifact and both together take."""
    form = f"{_precision(export)}{'+range' if export.layout == 'range' else ''}+{export.codec}"
    return [
        f"Code size: {code_bytes} bytes",
        f"Serialized model {form}: {model_bytes} bytes",
        f"Total submission size {form}: {code_bytes + model_bytes} bytes",
    ]


def _precision(export: ExportConfig) -> str:
    if export.model_bytes or export.max_loss:
        return "fitted"
    return "".join(
        f"int{bits}" if bits <= 8 else f"float{bits}" for bits in sorted({export.attn_bits, export.mlp_bits})
    )
