"""Is the score of a model that learns valid? Tried on the running scorer, whatever it learns and how.

A scorer is given a stream and says, in its own order, what it thinks of each token: a probability for every
token of the vocabulary. Whatever it does in between, none of these may change when the tokens that it has
yet to score are others. Conditions: the challenge's thread 1017.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pargolf.config.schema import EvalConfig
from pargolf.data.text import Text
from pargolf.model.gpt import GPT
from pargolf.run.target import Target, load_model
from pargolf.score.adapt import adapted_batches
from pargolf.score.windows import documents
from pargolf.system.errors import UserError, require
from pargolf.system.progress import OnProgress, unseen
from pargolf.verify.conditions import (
    SUM_TOLERANCE,
    Condition,
    Verdict,
    bytes_of_text,
    compared,
    difference,
    finite,
)
from pargolf.verify.model_under_test import AdaptiveScorer

SAMPLE_CHUNKS = 3
WATCHED = 8  # tokens of the vocabulary whose probability is compared everywhere, beside the true one's


@dataclass(frozen=True)
class AdaptedGPT:
    """pargolf's model as `adapted_score` runs it."""

    gpt: GPT
    settings: EvalConfig

    @property
    def documents_alone(self) -> bool:
        e = self.settings
        return e.adapt == "lora" and not e.lora_warm and not e.phases

    def scores(self, text: Text) -> Iterator[tuple[np.ndarray, Tensor]]:
        for batch, logits, _ in adapted_batches(self.gpt, text, self.settings):
            places = [np.arange(window.targets.start, window.targets.stop) for window in batch]
            rows = [row[: len(at)] for row, at in zip(logits, places, strict=True)]
            yield np.concatenate(places), torch.cat(rows).log_softmax(-1)


def load_adapted(target: Target, device: torch.device, settings: EvalConfig) -> AdaptedGPT:
    """The artifact's model, read from disk anew."""
    artifact, _ = target.open()
    return AdaptedGPT(load_model(artifact, target.dtype).to(device), settings)


def sample_of(text: Text, settings: EvalConfig) -> Text:
    """The first tokens of a text: three chunks, or two batches of documents with what phases they have."""
    if settings.adapt != "lora":
        return text.first(1 + SAMPLE_CHUNKS * settings.sgd_chunk)
    count = max(2 * settings.lora_documents, (settings.phases > 0) * settings.phase_documents) + 1
    found = documents(text)[:count]
    return text.first(found[-1].stop)


def trials_of(positions: int) -> int:
    """Futures to change: each takes a whole score of the sample."""
    return max(1, positions // 8)


@dataclass(frozen=True)
class Seen:
    """What a scorer said of a stream of N tokens."""

    when: np.ndarray
    """(N,) the number of the answer that scored the token; -1: none did."""
    times: np.ndarray
    """(N,) how often it was scored."""
    watched: np.ndarray
    """(N, 1 + WATCHED) log-probabilities of the true token of the stream as it is, and of some others."""
    off: float
    """Largest difference of a sum of probabilities from 1."""


def verify_adaptive(
    load: Callable[[], AdaptiveScorer], text: Text, trials: int, seed: int, progress: OnProgress = unseen
) -> Verdict:
    """Try each condition on a scorer, with `trials` changed futures of all of `text`.

    `load` gives the scorer as freshly read. `progress` is called with runs done and runs in all. Raises
    UserError if `text` has too few tokens, or the scorer gives no full distribution.
    """
    require(len(text) >= 4, f"{len(text)} validation tokens leave no later token to change")
    require(trials >= 1, f"positions must be at least 1, is {trials}")
    generator = np.random.default_rng(seed)
    alone = getattr(load(), "documents_alone", False) and len(documents(text)) > 1
    done = 0

    def listen(stream: Text) -> Seen:
        nonlocal done
        seen = _listen(load(), stream, text)
        done += 1
        progress(done, 2 + trials + alone)
        return seen

    first, second = listen(text), listen(text)
    unlike = _deviation(first, second, np.ones(len(text), bool))
    leak = max(_leak(listen, first, text, at, generator) for at in _cuts(first, text, trials, generator))
    count, times = len(text) - 1, first.times[1:]
    once = bool((times == 1).all()) and not first.times[0]
    how_often = "once each" if once else f"{times.min()} to {times.max()} times"
    counted, wanted = text.bytes, bytes_of_text(text)
    said = f"{count:,} positions: their {text.tokenizer.vocab_size:,} probabilities"
    doubt = f" ({text.doubt})" if text.doubt else ""
    rows = [
        compared("determinism", count, f"scored twice from the start, {count:,} positions", unlike),
        Condition(
            "normalization", first.off <= SUM_TOLERANCE, count, finite(first.off), SUM_TOLERANCE,
            f"{said} sum to 1 within {first.off:.1e}",
        ),
        compared("causality", count, f"{trials:,} futures changed, what was scored before them", leak),
        Condition("one pass", once, count, None, 0, f"{count:,} tokens scored {how_often}"),
        Condition(
            "accounting", counted == wanted, count, abs(counted - wanted), 0,
            f"{counted:,} bytes counted, {wanted:,} in the text{doubt}",
        ),
    ]  # fmt: skip
    if alone:
        others = _others(listen, first, text, generator)
        rows.append(compared("documents alone", count, "all other documents changed", others))
    return Verdict(tuple(rows))


def _listen(scorer: AdaptiveScorer, stream: Text, true: Text) -> Seen:
    """Have `stream` scored; what is kept is of the tokens of the `true` one."""
    size, vocab_size = len(stream), stream.tokenizer.vocab_size
    when, times = np.full(size, -1), np.zeros(size, int)
    watched, off = np.full((size, 1 + WATCHED), np.nan), 0.0
    others = np.random.default_rng(0).integers(0, vocab_size, (size, WATCHED))
    columns = torch.from_numpy(np.column_stack((true.tokens.astype(np.int64), others)))
    for answer, (places, logprobs) in enumerate(scorer.scores(stream)):
        places = np.asarray(places)
        require(
            places.ndim == 1 and places.dtype.kind in "iu" and bool(((places >= 0) & (places < size)).all()),
            f"scores gave places that are no integers from 0 to {size - 1}",
        )
        shape = tuple(logprobs.shape) if isinstance(logprobs, Tensor) else type(logprobs).__name__
        require(
            shape == (len(places), vocab_size),
            f"scores gave {shape} for {len(places)} places, no tensor of the whole vocabulary,"
            f" {(len(places), vocab_size)}",
        )
        values = logprobs.detach().cpu()
        sums = values.double().exp().sum(-1)
        off = max(off, float((sums - 1).abs().max().nan_to_num(torch.inf)))
        when[places] = answer
        np.add.at(times, places, 1)
        watched[places] = values.gather(-1, columns[places]).double().numpy()
    return Seen(when, times, watched, off)


def _cuts(seen: Seen, text: Text, trials: int, generator: np.random.Generator) -> np.ndarray:
    """Places of tokens from which on the future is changed: at the edges of answers and of documents, and
    anywhere."""
    bos = text.tokens == text.tokenizer.bos_id
    scored = (seen.when >= 0) & ~bos
    new_answer = np.append(True, seen.when[1:] != seen.when[:-1]) & scored
    after_bos = np.append(False, bos[:-1]) & scored
    kinds = [np.flatnonzero(kind) for kind in (new_answer, after_bos, scored) if kind.any()]
    if not kinds:
        raise UserError("the scorer scored no token")
    return np.array([generator.choice(kinds[trial % len(kinds)]) for trial in range(trials)])


def _leak(
    listen: Callable[[Text], Seen], true: Seen, text: Text, cut: int, generator: np.random.Generator
) -> float:
    """Largest change of a probability of what is scored up to `cut`, when all tokens from it on are others.

    "On" is in the order of scoring: in one answer, whatever stands behind in the stream. Its documents
    begin and end where they did.
    """
    place = np.arange(len(text))
    past = (true.when < true.when[cut]) | ((true.when == true.when[cut]) & (place < cut))
    changed = _other(text, ~past, generator)
    # The token at the cut is another, and what was thought of it before is not.
    return _deviation(true, listen(changed), past | (place == cut))


def _others(listen: Callable[[Text], Seen], true: Seen, text: Text, generator: np.random.Generator) -> float:
    """Largest change of a probability in every second document when all the others are changed."""
    document = np.cumsum(text.tokens == text.tokenizer.bos_id)
    changed = _other(text, document % 2 == 1, generator)
    # A BOS is a document's last target.
    own = (document % 2 == 0) ^ (text.tokens == text.tokenizer.bos_id)
    return _deviation(true, listen(changed), own)


def _other(text: Text, where: np.ndarray, generator: np.random.Generator) -> Text:
    """The text with every token `where` replaced by another, and none by or instead of a BOS."""
    vocab_size, bos_id = text.tokenizer.vocab_size, text.tokenizer.bos_id
    tokens = text.tokens.astype(np.int64)
    others = (tokens + generator.integers(1, vocab_size, len(tokens))) % vocab_size
    others = np.where(others == bos_id, (tokens + vocab_size // 2) % vocab_size, others)
    good = where & (tokens != bos_id) & (others != bos_id) & (np.arange(len(tokens)) > 0)
    return Text(np.where(good, others, tokens).astype(text.tokens.dtype), text.sizes, text.tokenizer)


def _deviation(one: Seen, other: Seen, where: np.ndarray) -> float:
    """Largest difference between what two runs said `where` both have scored; inf where one has not."""
    where = where & (one.when >= 0)
    return difference(torch.from_numpy(one.watched[where]), torch.from_numpy(other.watched[where]))
