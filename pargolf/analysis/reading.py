"""A run's model at work for the report: which text is hard for it, and what it writes itself."""

from dataclasses import dataclass

from pargolf.analysis import figures
from pargolf.analysis.figures import Picture
from pargolf.run.target import Target, load_model
from pargolf.score.passages import Passage, Span, by_position, passages, spans, token_bits
from pargolf.score.sample import continue_text
from pargolf.system.console import Bar
from pargolf.system.errors import UserError

SHOWN_PASSAGES = 3  # at either end
PROMPTS = ("The city", "In 1945,", "Scientists have")
SAMPLE_TOKENS, TEMPERATURE, TOP_K, SEED = 96, 0.8, 50, 0


@dataclass(frozen=True)
class Reading:
    """What the tokens of the validation text cost."""

    tokens: int
    """Tokens looked at, from the first on, ..."""
    all_tokens: int
    """... of so many."""
    bpb: float
    """Bits per byte of the tokens looked at, by the sliding window."""
    pictures: list[Picture]
    """By place in the window, and by passage."""
    hardest: list[tuple[Passage, list[Span]]]
    easiest: list[tuple[Passage, list[Span]]]


def read_validation(target: Target, stride: int, max_tokens: int) -> Reading:
    """Score up to `max_tokens` of the validation text one by one with the artifact of a run folder.

    `stride` is the sliding window's. Raises UserError if shards are missing or hold no text, or
    the artifact cannot be read.
    """
    artifact, _ = target.open()
    whole = target.validation()
    text = whole.first(max_tokens + 1)
    tokens, sizes = text.tokens, text.sizes
    model = load_model(artifact, target.dtype).to(target.device_type)
    seq_len, batch_rows = artifact.model.seq_len, target.scoring.batch_rows
    with Bar("bits of each token, rows") as bar:
        position = by_position(token_bits(model, tokens, seq_len, batch_rows, bar), sizes, seq_len)
    with Bar("bits of each token, sliding") as bar:
        bits = token_bits(model, tokens, stride, batch_rows, bar)
    found = sorted(passages(text, bits), key=lambda passage: passage.bpb)
    if not found:
        raise UserError(f"the {len(tokens) - 1:,} validation tokens looked at hold no passage of text")
    count = min(SHOWN_PASSAGES, (len(found) + 1) // 2)
    easiest, hardest = (
        [(p, spans(p, text, bits)) for p in chosen] for chosen in (found[:count], found[: -count - 1 : -1])
    )
    return Reading(
        tokens=len(tokens) - 1,
        all_tokens=len(whole) - 1,
        bpb=float(bits.sum() / text.bytes),
        pictures=[figures.position_picture(*position), figures.passages_picture([p.bpb for p in found])],
        hardest=hardest,
        easiest=easiest,
    )


def write_samples(target: Target) -> list[tuple[str, str]]:
    """PROMPTS, each with the artifact's continuation; the same as `pargolf sample` gives.

    Raises UserError if the artifact cannot be read.
    """
    artifact, tokenizer = target.open()
    model = load_model(artifact)
    samples = []
    with Bar("sampling") as bar:
        for done, prompt in enumerate(PROMPTS, 1):
            pieces = continue_text(model, tokenizer, prompt, SAMPLE_TOKENS, TEMPERATURE, TOP_K, SEED)
            samples.append((prompt, "".join(pieces).removeprefix(prompt)))
            bar(done, len(PROMPTS))
    return samples
