"""Trained weights -> artifact, in the way that the settings ask for.

Plainly, each matrix row by row in the bits of its kind; or with the rounding and the bytes that
training text shows to be best (`calibrate`, `gptq`, `price`).
"""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from pargolf.config.schema import RunConfig, validate
from pargolf.config.settings import settled
from pargolf.data.shards import TokenStream
from pargolf.data.tokenizer import Tokenizer
from pargolf.export.artifact import pack, pack_stored
from pargolf.export.quantize import dequantize_state, quantize_state
from pargolf.fit.calibrate import bits_per_byte, calibrate, spread_rows
from pargolf.fit.choose import Choice, as_floats, choose
from pargolf.fit.price import Prepared, Stored, fit_bytes, fit_loss, prepare_state, state_at
from pargolf.fit.smallest import pack_smallest
from pargolf.model.gpt import GPT, tensor_kinds
from pargolf.system.errors import require
from pargolf.system.progress import Bars, no_bar

LONGEST = 2**32  # in digits, of the settings that differ between runs to one goal
# Bytes that compressed code may be longer with other digits: of 60 seeds, none took 50 more.
OTHER_DIGITS = 128


def pack_model(
    config: RunConfig,
    model: GPT,
    tokenizer: Tokenizer,
    code_bytes: Callable[[RunConfig], int],
    training: Callable[[], TokenStream],
    say: Callable[[str], None],
    bars: Bars = no_bar,
) -> bytes:
    """The artifact of a trained model; the same weights and settings give the same bytes.

    `code_bytes` says how long the code of a configuration is, for codec or layout "auto". The
    `training` tokens are opened if `export.model_bytes` or `export.max_loss` is set, no others ever;
    `say` is then told in a line where fitting gave nothing better than plain rounding.
    Raises UserError where the settings cannot be met.
    """
    x = config.export
    state = {name: value.cpu() for name, value in model.state_dict().items()}
    slots = tensor_kinds(model)
    if x.codec == "auto" or x.layout == "auto":
        if not x.model_bytes and not x.max_loss:
            stored = quantize_state(state, slots, x)
            with bars("packing in every codec and layout"):
                return pack_smallest(stored, slots, config, tokenizer.sha256, code_bytes)
        # What is smallest for trained weights: range coding takes what bits a row has, however few.
        usual = replace(config, export=settled(x))
        return pack_model(usual, model, tokenizer, code_bytes, training, say, bars)
    if x.model_bytes or x.max_loss:
        return _fitted(config, model, state, tokenizer, training(), say, bars)
    with bars("packing"):
        return pack(state, slots, config.model, x, tokenizer.sha256)


def _fitted(
    config: RunConfig,
    model: GPT,
    state: dict[str, Tensor],
    tokenizer: Tokenizer,
    stream: TokenStream,
    say: Callable[[str], None],
    bars: Bars,
) -> bytes:
    """The best file of `state` within `export.model_bytes`, or the smallest within `export.max_loss`.

    The forms are the priced rounding, the same with the embedding in float16, and the plain rounding.
    """
    x = config.export
    slots = tensor_kinds(model)
    rows, held_back = spread_rows(stream, config.model.seq_len, x.calibration_tokens)
    measured = GPT(config.model).to(model.embed.weight.device)  # in float32, whatever `model` computes in
    measured.load_state_dict(state)
    with bars("calibrating") as bar:
        moments = calibrate(measured, rows, bar)
    table = tokenizer.byte_table()
    before = bits_per_byte(measured, held_back, table)

    def file_of(stored: Stored) -> bytes:
        return pack_stored(stored, slots, config.model, x, tokenizer.sha256)

    def loss_of(stored: Stored) -> float:
        measured.load_state_dict(dequantize_state(stored))
        return bits_per_byte(measured, held_back, table) - before

    goal = f"{x.model_bytes:,} bytes" if x.model_bytes else f"a loss of {x.max_loss:g} bits per byte"

    def fit(prepared: Prepared) -> Stored:
        with bars(f"searching the steps for {goal}") as bar:
            if x.model_bytes:
                price = fit_bytes(lambda price: len(file_of(state_at(prepared, price))), x.model_bytes, bar)
            else:
                price = fit_loss(lambda price: loss_of(state_at(prepared, price)), x.max_loss, bar)
        return state_at(prepared, price)

    prepared = prepare_state(state, slots, moments)
    forms = {"fitted": fit(prepared)}
    floats = as_floats(state, slots, forms["fitted"])
    if floats:
        forms["fitted, float16 embedding"] = fit({**prepared, **floats})
    forms["plain"] = quantize_state(state, slots, x)
    choices = [Choice(form, file_of(stored), loss_of(stored)) for form, stored in forms.items()]
    best = choose(choices, x)
    if best.form == "plain":
        say(f"plain rounding is kept, as the best: {'; '.join(map(str, choices))}")
    return best.data


def with_goal(
    config: RunConfig, fit: int | None, max_loss: float | None, code_bytes: Callable[[RunConfig], int]
) -> RunConfig:
    """`config` with another goal for its packing: fill `fit` bytes of code and model, or lose `max_loss`.

    The code's size depends on the digits of the seed. The size with the longest seed is counted, so that
    runs which differ in the seed alone have one goal. Raises UserError unless there is one that can be met.
    """
    for option, value in (("--fit", fit), ("--max-loss", max_loss)):
        require(value is None or value > 0, f"{option} must be above 0, is {value}")

    def fitted(model_bytes: int) -> RunConfig:
        export = replace(settled(config.export), model_bytes=model_bytes, max_loss=max_loss or 0.0)
        return validate(replace(config, export=export))

    if fit is None:
        return fitted(0)
    code = code_bytes(replace(fitted(LONGEST), train=replace(config.train, seed=LONGEST)))
    code += OTHER_DIGITS if config.export.code_form == "compressed" else 0
    require(code < fit, f"the code alone takes {code:,} bytes, no less than the {fit:,} to fill")
    return fitted(fit - code)
