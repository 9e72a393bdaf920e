"""Trained weights -> artifact, in the way that the settings ask for.

Plainly, each matrix row by row in the bits of its kind; or with the rounding and the bytes that
training text shows to be best (`calibrate`, `gptq`, `price`).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from pargolf.config.schema import RunConfig
from pargolf.data.shards import open_split
from pargolf.data.tokenizer import Tokenizer
from pargolf.export.artifact import pack, pack_stored
from pargolf.export.quantize import dequantize_state
from pargolf.fit.calibrate import bits_per_byte, calibrate, spread_rows
from pargolf.fit.price import OnProgress, fit_bytes, fit_loss, prepare_state, state_at
from pargolf.model.gpt import GPT, tensor_kinds

Bars = Callable[[str], AbstractContextManager[OnProgress]]


def pack_model(
    config: RunConfig,
    model: GPT,
    tokenizer: Tokenizer,
    bars: Bars | None = None,
) -> bytes:
    """The artifact of a trained model; the same weights and settings give the same bytes.

    The training shards are read if `export.model_bytes` or `export.max_loss` is set, no others ever.
    Raises UserError where the settings cannot be met.
    """
    x = config.export
    state = {name: value.cpu() for name, value in model.state_dict().items()}
    slots = tensor_kinds(model)
    if not x.model_bytes and not x.max_loss:
        return pack(state, slots, config.model, x, tokenizer.sha256)
    stream = open_split(Path(config.data.dataset), "train")
    rows, held_back = spread_rows(stream, config.model.seq_len, x.calibration_tokens)
    measured = GPT(config.model).to(model.embed.weight.device)  # in float32, whatever `model` computes in
    measured.load_state_dict(state)
    with bars("calibrating") if bars else nullcontext() as bar:
        moments = calibrate(measured, rows, bar)
    prepared = prepare_state(state, moments)

    def file_at(price: float) -> bytes:
        return pack_stored(state_at(prepared, price), slots, config.model, x, tokenizer.sha256)

    with bars("fitting") if bars else nullcontext() as bar:
        if x.model_bytes:
            return fit_bytes(file_at, x.model_bytes, bar)
        table = tokenizer.byte_table()
        before = bits_per_byte(measured, held_back, table)

        def loss(price: float) -> float:
            measured.load_state_dict(dequantize_state(state_at(prepared, price)))
            return bits_per_byte(measured, held_back, table) - before

        return file_at(fit_loss(loss, x.max_loss, bar))
