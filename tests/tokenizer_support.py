"""SentencePiece models of other kinds than pargolf's own."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from pargolf.data.caseops import ESC, OPERATORS
from pargolf.data.tokenizer import Tokenizer

SENTENCES = [
    "The city was old and the river ran by it.",
    "In 1945 Élan was no word for that; tiny naïve geese.",
]


def train_model(path: Path, vocab_size: int, **options: object) -> Tokenizer:
    """A SentencePiece model with SentencePiece's defaults but for `options`."""
    model = io.BytesIO()
    settings: dict[str, Any] = {"model_type": "bpe", "byte_fallback": True, "minloglevel": 2}
    settings |= {"vocab_size": vocab_size} | options
    text = iter(SENTENCES * 40)
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=text, model_writer=model, **settings)
    path.write_bytes(model.getvalue())
    return Tokenizer(path)


CaseOps = tuple[Tokenizer, np.ndarray, np.ndarray]


def make_case_ops(folder: Path) -> CaseOps:
    """A vocabulary with operators; the tokens of "The N\ue001 漢" as the transform writes it; their bytes."""
    tokenizer = train_model(
        folder / "ops.model", 380, user_defined_symbols=list(OPERATORS), add_dummy_prefix=False,
        normalization_rule_name="identity", remove_extra_whitespaces=False,
    )  # fmt: skip
    ids = np.array([tokenizer.bos_id, *tokenizer.encode("The N\ue001 漢")])
    sizes, escaped, spelled = [], False, 0
    for token in ids.tolist():
        raw = tokenizer.bytes_of(token)
        operator = raw.decode(errors="ignore") in OPERATORS and not escaped
        escaped = operator and raw.decode() == ESC
        spelled = spelled + 1 if tokenizer.is_fallback(token) else 0
        # Of a character that is spelled in bytes, the last one carries them all.
        sizes.append(0 if operator else (3 if spelled == 3 else 0) if spelled else len(raw))
    return tokenizer, ids, np.array(sizes)
