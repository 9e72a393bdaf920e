"""The GPT as a model of transformers 5, with its generate() and its cache."""

from dataclasses import fields
from typing import Any, get_args

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from pargolf.config.schema import ModelConfig
from pargolf.model.attention import Kept, KVCache, Named
from pargolf.model.gpt import GPT


class PargolfConfig(PreTrainedConfig):
    """The fields of ModelConfig beside those of every model of transformers."""

    model_type = "pargolf"
    # transformers' name -> ours
    attribute_map = {  # noqa: RUF012
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "num_key_value_heads": "kv_heads",
        "max_position_embeddings": "seq_len",
    }

    def __init__(self, **values: Any):
        defaults = {field.name: field.default for field in fields(ModelConfig)}
        super().__init__(**(defaults | values))

    def shape(self) -> ModelConfig:
        """What the GPT is built from."""
        return ModelConfig(**{field.name: getattr(self, field.name) for field in fields(ModelConfig)})


class GrowingCache(KVCache):
    """A cache of transformers, as the GPT's attention uses it."""

    def __init__(self, cache: DynamicCache, visits: int):
        if not isinstance(cache, DynamicCache):
            raise ValueError(f"a pargolf model takes a DynamicCache, not a {type(cache).__name__}")
        self.cache, self.visits = cache, visits
        self.length = cache.get_seq_length()

    def extend(self, visit: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        # transformers makes a layer for each of the model's, which may be visited several times.
        while len(self.cache.layers) <= visit:
            self.cache.layers.append(DynamicLayer())
        keys, values = self.cache.update(k, v, visit)
        return keys, values

    def last(self, what: Kept) -> Tensor | None:
        return self.cache.layers[self._layer(what)].keys[:, 0, -1:] if self.length else None

    def keep(self, what: Kept, x: Tensor) -> None:
        self.extend(self._layer(what), x[:, None], x[:, None, :, :0])

    def _layer(self, what: Kept) -> int:
        # As a layer of its own, so that transformers reorders it with the beams.
        names = get_args(Named)
        return self.visits + (names.index(what) if isinstance(what, str) else len(names) + what)


class PargolfForCausalLM(PreTrainedModel, GenerationMixin):
    """A trained GPT. Its weights must be loaded: made from a configuration alone, they are no good init."""

    config_class = PargolfConfig
    _input_embed_layer = "embed"

    def __init__(self, config: PargolfConfig):
        super().__init__(config)
        self.model = GPT(config.shape(), config.dtype or torch.float32)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Fill the buffers: transformers builds a model without memory, then loads what the file holds."""
        if isinstance(module, GPT):
            for name, buffer in GPT(module.config).named_buffers():
                module.get_buffer(name).copy_(buffer)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: DynamicCache | None = None,
        past_key_values: DynamicCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """input_ids (B, T) -> logits (B, T, vocab_size), or (B, logits_to_keep, vocab_size) of the last.

        `labels` (B, T), input_ids or -100 where there is nothing to learn, give `loss`: the mean
        cross-entropy in nats of each label given the tokens before it. `past_key_values` is what
        earlier versions of transformers call `cache`. Raises ValueError if the tokens do not fit
        seq_len, or on padding inside a text.

        `attention_mask` (B, tokens so far and T) is 0 at padding. Padding before a text moves its
        positions, which changes nothing: RoPE knows distances alone.
        """
        if kwargs.get("position_ids") is not None:
            raise ValueError("a pargolf model counts positions itself; give no position_ids")
        cache = past_key_values if cache is None else cache
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        length, visits = input_ids.size(1), len(self.model.config.visits)
        past = GrowingCache(cache, visits) if cache is not None else None
        end = length + (past.length if past is not None else 0)
        if end > self.config.seq_len:
            raise ValueError(f"{end} tokens are more than the model's context of {self.config.seq_len}")
        text = _text_after_padding(attention_mask, end, goes_on=past is not None)
        if text is not None:
            past = past or GrowingCache(DynamicCache(config=self.config), visits)
            past.text = text
        states = self.model.trunk(input_ids, past, max(0, length - logits_to_keep) if logits_to_keep else 0)
        logits = self.model.head(states)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss, logits, cache)


def _text_after_padding(attention_mask: Tensor | None, end: int, goes_on: bool) -> Tensor | None:
    """Where a mask (B, end) has text, as bool, if padding comes before it in a row; else None.

    Padding at the right hides nothing, since attention is causal, unless the text goes on after it:
    ValueError then, and on padding inside a text.
    """
    if attention_mask is None or bool(attention_mask.all()):
        return None
    if attention_mask.dim() != 2 or attention_mask.size(1) != end:
        raise ValueError(
            f"attention_mask is {tuple(attention_mask.shape)}, and not a row of {end} for each text"
        )
    text = attention_mask.bool()
    begins = text[:, 1:] & ~text[:, :-1]
    if bool((begins.sum(1) + text[:, 0] > 1).any()) or (goes_on and not bool(text[:, -1].all())):
        raise ValueError(
            "a pargolf model knows no padding inside a text: pad at the left to generate"
            ' (padding_side="left"), at the right only to score'
        )
    return text if bool(begins.any()) else None
