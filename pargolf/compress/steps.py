"""The steps of a file that is coded or decoded: the table of each, of a model that learns or does not."""

import copy
import hashlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from torch import Tensor

from pargolf.compress.coder import Counts, counts
from pargolf.compress.container import FileHeader
from pargolf.compress.contexts import Layout, Tokens, walk
from pargolf.compress.learner import Learner
from pargolf.compress.mixture import Mixture
from pargolf.model.gpt import GPT
from pargolf.system import machine
from pargolf.system.progress import OnProgress, unseen

PROBE_TOKENS = 8  # of each stream, after it has learnt


def layout_of(header: FileHeader) -> Layout:
    """How a file's tokens are cut."""
    return Layout(header.tokens, header.streams, header.keep)


def steps(
    model: GPT, bos_id: int, header: FileHeader, layout: Layout,
    answer: Callable[[Counts], Tokens], progress: OnProgress = unseen,
) -> list[Tokens]:  # fmt: skip
    """`walk` as the header says; `answer` gets the table (active, V) of each step and returns its tokens.

    What learns, if the header says so, are a copy of the model and a mixture of it and of counts.
    """
    with machine.cpu_threads(header.threads):
        if not header.rate:
            return walk(model, bos_id, layout, lambda logits: answer(counts(logits)), progress)
        model = copy.deepcopy(model)
        mixture = Mixture(model.config.vocab_size, layout.streams)

        def mixed(logits: Tensor) -> Tokens:
            tokens = answer(counts(mixture.logits(logits)))
            mixture.learn(tokens)
            return tokens

        return walk(model, bos_id, layout, mixed, progress, Learner(model, header.rate, header.steps))


def probe(model: GPT, bos_id: int, header: FileHeader) -> str:
    """16 hex digits of the SHA-256 of all tables of a made-up text, coded as the file is, a little beyond
    the first context: a machine with other floats is known in seconds, and not after an hour."""
    layout, digest = layout_of(header), hashlib.sha256()
    layout = replace(layout, tokens=layout.streams * (model.config.seq_len + PROBE_TOKENS))
    columns = iter(layout.columns(np.arange(layout.tokens) ** 2 % model.config.vocab_size))

    def known(table: Counts) -> Tokens:
        digest.update(table.tobytes())
        return next(columns)

    steps(model, bos_id, header, layout, known)
    return digest.hexdigest()[:16]
