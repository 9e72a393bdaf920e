"""A trained model for use in one's own programs: `pargolf.load`.

It scores and writes as the command line does, and keeps nothing but the model itself: no state
passes from one call to the next.
"""

import math
import os
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from pargolf.config.schema import EvalConfig, ModelConfig
from pargolf.config.validation import validate_eval
from pargolf.data.text import Text, measured
from pargolf.fit.budget import Ledger, ledger
from pargolf.model.gpt import GPT
from pargolf.run.target import find_target, load_model
from pargolf.score.adapt import adapted_score
from pargolf.score.passages import token_bits
from pargolf.score.sample import continue_text
from pargolf.score.windows import check_stride, score
from pargolf.system.errors import require


class TokenLogprob(NamedTuple):
    """A token of a text, and how likely the model thought it."""

    id: int
    piece: str
    """As the vocabulary writes it: "▁city" with its space, "<0xC3>" for a byte."""
    logprob: float
    """Natural logarithm of its probability given the tokens before it."""


class Model:
    """A trained model and its tokenizer, as read from a file; made by `pargolf.load`.

    A text is taken as the training data has its documents: one BOS token goes before it, which is
    itself not scored, so that the text's first token is predicted from BOS alone. In its run's
    folder the model computes in the run's dtype and on its kind of device, as `pargolf eval` does;
    elsewhere in float32.

    >>> import math, pargolf
    >>> model = pargolf.load("runs/demo")
    >>> model.config.vocab_size == model.tokenizer.vocab_size
    True
    """

    def __init__(self, path: str | os.PathLike[str], tokenizer: str | os.PathLike[str] | None = None) -> None:
        self.target = find_target(Path(path), None if tokenizer is None else Path(tokenizer))
        self._artifact, self.tokenizer = self.target.open()

    @property
    def config(self) -> ModelConfig:
        """The model's shape: `seq_len` is its window in tokens."""
        return self._artifact.model

    @cached_property
    def gpt(self) -> GPT:
        """The PyTorch module that scores, built when it is first asked for.

        Raises UserError if the file's tensors are not those of its config.
        """
        return load_model(self._artifact, self.target.dtype).to(self.target.device_type)

    @cached_property
    def _writer(self) -> GPT:
        """The one that generates: in float32 on the CPU, as for `pargolf sample`."""
        return load_model(self._artifact)

    def encode(self, text: str) -> np.ndarray:
        """BOS and the tokens of `text`, (N + 1,) int64: what is scored.

        Characters without a piece of their own become bytes, so any text can be encoded. Raises
        TypeError if `text` is no str, UserError if it has lone surrogates.

        >>> tokens = model.encode("The 漢 of 1872")
        >>> int(tokens[0]) == model.tokenizer.bos_id, model.tokenizer.decode(tokens)
        (True, 'The 漢 of 1872')
        """
        if not isinstance(text, str):
            raise TypeError(f"text must be a str, is {type(text).__name__}")
        return np.array([self.tokenizer.bos_id, *self.tokenizer.encode(text)], np.int64)

    def logprobs(self, text: str, stride: int = 64) -> list[TokenLogprob]:
        """The tokens of `text`, each with its log-probability in nats.

        The windows are those of `bits_per_byte`, and so is the sum. The list is empty for an empty
        text. Raises as `encode`, and UserError if `stride` is not in 1 .. seq_len.

        >>> tokens = model.logprobs("The city was old.")
        >>> "".join(token.piece for token in tokens).replace("▁", " ")
        'The city was old.'
        >>> bits = -sum(token.logprob for token in tokens) / math.log(2)
        >>> math.isclose(bits / len("The city was old."), model.bits_per_byte("The city was old."))
        True
        """
        check_stride(stride, self.config.seq_len)
        tokens = self.encode(text)
        nats = token_bits(self.gpt, tokens, stride, self.target.scoring.batch_rows) * -math.log(2)
        return [
            TokenLogprob(token, self.tokenizer.piece_of(token), logprob)
            for token, logprob in zip(tokens[1:].tolist(), nats[1:].tolist(), strict=True)
        ]

    def bits_per_byte(self, text: str, stride: int = 64, adapt: str | EvalConfig = "off") -> float:
        """What `text` costs as one document, by the sliding window of `score.windows.score`.

        Each window after the first scores its last `stride` tokens; stride = seq_len gives plain
        rows. Bytes are those of the text that the tokens stand for. With `adapt`, "sgd" or "lora" with the
        run's other settings or an EvalConfig of one's own, a copy of the model learns from what it has
        scored (see `score.adapt`). Raises as `logprobs`, and UserError if there are no bytes, the tokenizer
        lacks pieces for the text, or `adapt` is no such setting.

        >>> prose, noise = "It was one of the first of the new state.", "xq7)Zv 0kQ!j ~Wp"
        >>> model.bits_per_byte(prose) < model.bits_per_byte(noise)
        True
        """
        scored, settings = self.scored(text, stride), self.target.scoring
        if adapt == "off":
            return score(self.gpt, scored, stride, settings.batch_rows).val_bpb
        if isinstance(adapt, str):
            require(adapt in ("sgd", "lora"), f'adapt must be "off", "sgd" or "lora", is {adapt!r}')
            adapt = replace(settings, adapt=adapt)  # type: ignore[arg-type]
        validate_eval(adapt)
        return adapted_score(self.gpt, scored, replace(adapt, stride=stride)).val_bpb

    def scored(self, text: str, stride: int) -> Text:
        """What `bits_per_byte` scores, and raises: the tokens of `encode`, and the bytes each stands for."""
        check_stride(stride, self.config.seq_len)
        require(text != "", "the text is empty: there is no byte to score")
        return measured(self.encode(text), self.tokenizer)

    def generate(
        self, prompt: str, tokens: int = 128, temperature: float = 0.8, top_k: int = 50, seed: int = 0
    ) -> str:
        """`prompt` and up to `tokens` tokens that continue it: what `pargolf sample` prints.

        temperature 0 takes the likeliest token each time, top_k 0 draws among all; the same seed
        gives the same text. It ends early where the model ends its document. Raises as `encode`, and
        UserError if a number is negative.

        >>> text = model.generate("The city", tokens=12, seed=1)
        >>> text.startswith("The city")
        True
        >>> text == model.generate("The city", tokens=12, seed=1)
        True
        """
        self.encode(prompt)
        return "".join(continue_text(self._writer, self.tokenizer, prompt, tokens, temperature, top_k, seed))

    def ledger(self, code_bytes: int = 0) -> Ledger:
        """Where every byte of the file went, and `code_bytes` of a program beside it; builds no model.

        >>> ledger = model.ledger()
        >>> ledger.total == ledger.model_bytes == model.target.artifact.stat().st_size
        True
        """
        return ledger(self.target.artifact.read_bytes(), code_bytes)

    def state_dict(self) -> dict[str, Tensor]:
        """The weights as they are scored, by name: float32 on the CPU, copies to do with as one likes.

        >>> tuple(model.state_dict()["embed.weight"].shape) == (model.config.vocab_size, model.config.d_model)
        True
        """
        return {name: weight.clone() for name, weight in self._artifact.state.items()}
