"""Text from a model, token by token, with a key-value cache."""

from collections.abc import Iterator

import torch
from torch import Tensor

from pargolf.data.tokenizer import Tokenizer
from pargolf.model.attention import KVCache
from pargolf.model.gpt import GPT
from pargolf.score.windows import require_number
from pargolf.system.errors import UserError


def continue_text(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str,
    count: int,
    temperature: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
) -> Iterator[str]:
    """Yield `prompt`, then up to `count` tokens of text as they come; ends where the document does.

    Raises UserError if `count`, `temperature` or `top_k` is negative.
    """
    if min(count, temperature, top_k) < 0:
        raise UserError(f"tokens {count}, temperature {temperature} and top-k {top_k} must not be negative")
    tokens = [tokenizer.bos_id, *tokenizer.encode(prompt)]
    shown = tokenizer.decode(tokens[1:])  # the prompt, or what a tokenizer that rewrites text makes of it
    yield prompt
    for token in generate(model, tokens, count, temperature, top_k, seed):
        if token == tokenizer.bos_id:
            break
        tokens.append(token)
        text = tokenizer.decode(tokens[1:])
        # Half a character: its last bytes are yet to come.
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            yield text[len(shown) :]
            shown = text
    yield tokenizer.decode(tokens[1:])[len(shown) :]


@torch.inference_mode()
def generate(
    model: GPT, prompt: list[int], count: int, temperature: float = 1.0, top_k: int = 0, seed: int = 0
) -> Iterator[int]:
    """Yield `count` token ids that continue `prompt` (at least one id).

    temperature 0 takes the likeliest token; top_k 0 draws from all. Past seq_len the model
    goes on with the last half of its window, since its positions end there.
    """
    device = model.embed.weight.device
    window = model.config.seq_len
    generator = torch.Generator().manual_seed(seed)
    tokens = list(prompt[-window:])
    cache = KVCache(model.config, 1, model.dtype, device)
    pending = tokens
    for _ in range(count):
        if cache.length + len(pending) > window:
            cache.length, pending = 0, tokens[-window // 2 :]
        states = model.trunk(torch.tensor([pending], device=device), cache)
        logits = model.head(states[0, -1]).cpu()
        require_number(float(logits.sum()))
        token = _draw(logits, temperature, top_k, generator)
        tokens.append(token)
        pending = [token]
        yield token


def _draw(logits: Tensor, temperature: float, top_k: int, generator: torch.Generator) -> int:
    """One token id by its probability under logits (vocab_size,) / temperature, among the top_k."""
    if temperature == 0:
        return int(logits.argmax())
    if top_k:
        best = logits.topk(min(top_k, logits.numel()))
        choice = torch.multinomial((best.values / temperature).softmax(-1), 1, generator=generator)
        return int(best.indices[choice])
    return int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator))
