"""Sampling: the cache changes nothing, the settings do what they say."""

import torch

from pargolf.config.schema import ModelConfig
from pargolf.data.tokenizer import Tokenizer
from pargolf.score.sample import continue_text, generate
from support import Dataset, shaken

TINY = ModelConfig(vocab_size=32, seq_len=12, n_layers=3, d_model=16, n_heads=2, kv_heads=1, q_rank=4)


def test_greedy_text_equals_running_the_whole_sequence_each_time() -> None:
    model, tokens = shaken(TINY), [1, 5, 9]
    for _ in range(9):
        tokens.append(int(model.head(model.trunk(torch.tensor([tokens]))[0, -1]).argmax()))
    assert list(generate(model, [1, 5, 9], 9, temperature=0)) == tokens[3:]


def test_generation_goes_on_past_the_window() -> None:
    model = shaken(TINY)
    long = list(generate(model, [1, 5, 9], 40, temperature=0))
    assert len(long) == 40
    # The window fills at 12 tokens and restarts from its last six.
    sequence = [1, 5, 9, *long]
    expected = int(model.head(model.trunk(torch.tensor([sequence[7:13]]))[0, -1]).argmax())
    assert sequence[13] == expected


def test_a_prompt_longer_than_the_window_is_cut() -> None:
    assert len(list(generate(shaken(TINY), list(range(30)), 3))) == 3


def test_seed_and_top_k() -> None:
    model = shaken(TINY)
    draws = [list(generate(model, [1], 20, 1.0, 0, seed)) for seed in (3, 3, 4)]
    assert draws[0] == draws[1] != draws[2]
    assert list(generate(model, [1], 8, 1.0, 1)) == list(generate(model, [1], 8, 0))


def test_text_streams_whole_characters(dataset: Dataset) -> None:
    c = ModelConfig(vocab_size=512, seq_len=48, n_layers=2, d_model=16, n_heads=2, kv_heads=1, q_rank=0)
    tokenizer = Tokenizer(dataset.tokenizer)
    pieces = list(continue_text(shaken(c), tokenizer, "Zürich – ", 60, seed=1))
    assert pieces[0] == "Zürich – "
    assert "".join(pieces).startswith("Zürich – ")
    assert len("".join(pieces)) > len("Zürich – ")
    assert "".join(continue_text(shaken(c), tokenizer, "", 5)) is not None


def test_a_tokenizer_that_rewrites_the_prompt_loses_none_of_the_text(dataset: Dataset) -> None:
    c = ModelConfig(vocab_size=512, seq_len=48, n_layers=2, d_model=16, n_heads=2, kv_heads=1, q_rank=0)
    tokenizer = Tokenizer(dataset.tokenizer)
    encode = tokenizer.encode
    tokenizer.encode = lambda text: encode(" ".join(text.split()))  # type: ignore[method-assign]
    rewritten, plain = (
        "".join(list(continue_text(shaken(c), tokenizer, prompt, 20, seed=1))[1:])
        for prompt in ("the   city", "the city")
    )
    assert rewritten == plain != ""
