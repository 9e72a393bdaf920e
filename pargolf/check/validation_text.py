"""The rule on what is scored: all of the challenge's validation text, each byte of it counted once.

val_bpb = val_loss / ln 2 x tokens / bytes, and all scores of one log are of the same tokens and bytes:
their ratio of val_loss to val_bpb is one figure. The text is fixed, so the bytes that a log's scores
and its number of tokens stand for are known, whatever the tokenizer.
"""

import ast
import math
from collections.abc import Iterator
from decimal import Decimal

from pargolf.challenge import LEAKING_SHARDS, VAL_DOCUMENTS
from pargolf.check.evidence import Evidence, Finding, RunLog, judge
from pargolf.check.sources import Source, calls, strings
from pargolf.run.logs import TrainLog

# The challenge's validation text, without the tail that fills no row.
BYTES = 151_080_000
# Its tokens as published logs state them: SentencePiece of 1,024 and 8,192 pieces, CaseOps of 8,192.
FULL_TOKENS = (62_021_632, 40_540_160, 47_851_520)
TOKENS_NEAR = 2e-4  # the tail that is left out depends on the length of rows
BYTES_NEAR = 0.005
RATIO_SURE, RATIO_NEAR = 0.005, 0.0005  # accepted logs move by 0.00013 at most


def validation_text(evidence: Evidence) -> Finding:
    """All of the validation text is scored, and its bytes are counted once."""
    faults: list[str] = []
    doubts: list[str] = []
    for run in evidence.logs:
        _judge_ratio(run, faults, doubts)
        _judge_extent(run, evidence.unlimited, faults, doubts)
        _judge_bytes(run, faults, doubts)
    if evidence.source is not None:
        doubts += _byte_table(evidence.source)
    return judge("validation text", faults, doubts, "nothing against it in logs and code")


def _judge_ratio(run: RunLog, faults: list[str], doubts: list[str]) -> None:
    """The ratio of val_loss to val_bpb does not move within a log."""
    ratios = _ratios(run.log)
    if not ratios:
        return
    _, usual, _ = sorted(ratios, key=lambda item: item[1])[len(ratios) // 2]
    moves = [(abs(ratio / usual - 1) - slack, what, ratio) for what, ratio, slack in ratios]
    # Step 0 has no score that anybody claims: only a large move of it counts.
    for limit, found, lines in (
        (RATIO_SURE, moves, faults),
        (RATIO_NEAR, [m for m in moves if m[1] != "step 0"], doubts),
    ):
        move, what, ratio = max(found, default=(0.0, "", 0.0))
        if move > limit:
            lines.append(
                f"{run.name}: val_loss / val_bpb is {ratio:.5f} at {what}, else {usual:.5f}:"
                " not of the same tokens and bytes"
            )
            return


def _ratios(log: TrainLog) -> list[tuple[str, float, float]]:
    """(where, val_loss / val_bpb, by how much of it it may be off by rounding) of every score in a log."""
    scores = [
        (f"step {step.step}", step.losses["val_loss"], step.losses["val_bpb"])
        for step in log.steps
        if {"val_loss", "val_bpb"} <= step.losses.keys()
    ]
    scores += [(f"'{score.label}'", score.val_loss, score.val_bpb) for score in log.scores]
    return [
        (what, float(loss / bpb), _rounding(loss) + _rounding(bpb))
        for what, loss, bpb in scores
        if loss > 0 and bpb > 0
    ]


def _rounding(value: Decimal) -> float:
    exponent = value.as_tuple().exponent
    return 0.5 * 10.0**exponent / float(value) if isinstance(exponent, int) else 0.0


def _judge_extent(run: RunLog, unlimited: bool, faults: list[str], doubts: list[str]) -> None:
    """All documents and tokens are scored, once, and none of them was trained on."""
    log = run.log
    if log.documents is not None and log.documents != VAL_DOCUMENTS:
        text = f"{run.name} scores {log.documents:,} of {VAL_DOCUMENTS:,} documents"
        (doubts if unlimited else faults).append(text)
    if log.train_shards == LEAKING_SHARDS:
        doubts.append(
            f"{run.name}: {LEAKING_SHARDS:,} training shards are those of a locally built CaseOps dataset"
            " that holds validation documents (the challenge's issue 2127)"
        )
    scored = log.final.tokens if log.final else None
    if scored and log.val_tokens and scored > log.val_tokens:
        faults.append(f"{run.name} scores {scored:,} tokens of {log.val_tokens:,}: some more than once")
    elif scored and log.val_tokens and scored < log.val_tokens * (1 - 0.001):
        doubts.append(f"{run.name} scores {scored:,} tokens of {log.val_tokens:,}")


def _judge_bytes(run: RunLog, faults: list[str], doubts: list[str]) -> None:
    """The bytes that a log's scores stand for are those of the text."""
    final, tokens = run.log.final, run.log.val_tokens
    if final is None or final.val_bpb <= 0:
        return
    if final.bytes is not None:
        counted = float(final.bytes)
    elif tokens:
        counted = tokens * float(final.val_loss) / (math.log(2) * float(final.val_bpb))
    else:
        return
    if abs(counted / BYTES - 1) <= BYTES_NEAR:
        return
    text = f"{run.name} counts {counted / 1e6:,.2f} million bytes, the challenge's text has {BYTES / 1e6:.2f}"
    whole = any(tokens and abs(tokens / full - 1) < TOKENS_NEAR for full in FULL_TOKENS)
    (faults if whole else doubts).append(text)


def _byte_table(source: Source) -> Iterator[str]:
    """What a table of bytes a token must ask SentencePiece for, and the code does not."""
    for tree in source.trees:
        asked = {call.func.attr.lower() for call in calls(tree) if isinstance(call.func, ast.Attribute)}
        if not asked & {"id_to_piece", "idtopiece"}:
            continue
        if not asked & {"is_byte", "isbyte"}:
            yield "the code measures pieces and never asks which are bytes, that count 1"
        if not any("\u2581" in text for text in strings(tree)):
            yield "the code measures pieces and never names the space marker U+2581"
        if not asked & {"is_control", "iscontrol"}:
            yield "the code measures pieces and never asks which are control pieces, that count 0"
