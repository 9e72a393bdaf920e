"""Trained weights -> artifact, in the way that the settings ask for.

Plainly, each matrix row by row in the bits of its kind; or with the rounding and the bytes that
training text shows to be best (`calibrate`, `gptq`, `price`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from pargolf.config.kinds import Slot
from pargolf.config.schema import ExportConfig, RunConfig
from pargolf.config.settings import settled
from pargolf.config.validation import validate
from pargolf.data.shards import TokenStream
from pargolf.data.tokenizer import Tokenizer
from pargolf.export.artifact import pack_stored
from pargolf.export.quantize import Quantized, dequantize_state, quantize_state
from pargolf.fit.calibrate import bits_per_byte, calibrate, spread_rows
from pargolf.fit.choose import Choice, as_floats, choose
from pargolf.fit.gptq import Moments, with_second_order
from pargolf.fit.lqer import corrected
from pargolf.fit.price import Prepared, Stored, expected_bits, fit_bytes, fit_loss, prepare_state, state_at
from pargolf.fit.smallest import pack_smallest
from pargolf.model.gpt import GPT, tensor_kinds
from pargolf.system import launch
from pargolf.system.errors import require
from pargolf.system.progress import Bars, no_bar

LONGEST = 2**32  # in digits, of the settings that differ between runs to one goal
# Bytes that compressed code may be longer with other digits: of 60 seeds, none took 50 more.
OTHER_DIGITS = 128


@dataclass(frozen=True)
class Calibration:
    """What training text tells of a trained model."""

    moments: dict[str, Moments]
    held_back: np.ndarray
    """(n, seq_len + 1) int64: training text that the moments have not seen."""


def calibrated(
    config: RunConfig, model: GPT, training: Callable[[], TokenStream], bars: Bars = no_bar
) -> Calibration | None:
    """The calibration that packing `model` needs, None where it needs none; every rank calls this.

    Each rank reads its share of the `training` tokens, which are opened only then.
    """
    x = config.export
    if not (x.model_bytes or x.max_loss or x.rounding == "gptq" or x.lqer_weighted):
        return None
    rows, held_back = spread_rows(training(), config.model.seq_len, x.calibration_tokens)
    ranks = launch.world_size()
    mine = rows[launch.rank() :: ranks] if len(rows) >= ranks else rows
    measured = _in_float32(config, model)
    with bars("calibrating") as bar:
        return Calibration(calibrate(measured, mine, bar), held_back)


def pack_model(
    config: RunConfig,
    model: GPT,
    tokenizer: Tokenizer,
    code_bytes: Callable[[RunConfig], int],
    calibration: Calibration | None,
    say: Callable[[str], None],
    bars: Bars = no_bar,
) -> bytes:
    """The artifact of a trained model; the same weights and settings give the same bytes.

    `code_bytes` says how long the code of a configuration is, for codec or layout "auto"; `calibration` is
    that of `calibrated`. `say` is told in a line where fitting gave nothing better than plain rounding.
    Raises UserError where the settings cannot be met.
    """
    x = config.export
    state = {name: value.cpu() for name, value in model.state_dict().items()}
    slots = tensor_kinds(model)
    if x.model_bytes or x.max_loss:
        assert calibration is not None
        # What is smallest for trained weights: range coding takes what bits a row has, however few.
        usual = replace(config, export=settled(x))
        return _fitted(usual, model, state, tokenizer, calibration, say, bars)
    with bars("packing"):
        stored = rounded(state, slots, x, calibration)
        if x.codec == "auto" or x.layout == "auto":
            return pack_smallest(stored, slots, config, tokenizer.sha256, code_bytes)
        return pack_stored(stored, slots, config.model, x, tokenizer.sha256)


def rounded(
    state: Mapping[str, Tensor], slots: Mapping[str, Slot], x: ExportConfig, calibration: Calibration | None
) -> Stored:
    """Every tensor as it is stored without a goal: by its bits, `export.rounding` and corrections."""
    stored: Stored = quantize_state(state, slots, x)
    if x.rounding == "gptq":
        assert calibration is not None
        stored = {
            name: with_second_order(form, state[name], calibration.moments[name])
            if isinstance(form, Quantized) and name in calibration.moments
            else form
            for name, form in stored.items()
        }
    return with_corrections(stored, state, x, calibration)


def with_corrections(
    stored: Stored, state: Mapping[str, Tensor], x: ExportConfig, calibration: Calibration | None
) -> Stored:
    """`stored` with the corrections of low rank that the settings ask for."""
    if not x.lqer_rank:
        return stored
    moments = calibration.moments if x.lqer_weighted and calibration is not None else None
    return corrected(stored, state, moments, x)


def _in_float32(config: RunConfig, model: GPT) -> GPT:
    """A copy of `model` that computes in float32, whatever it computes in itself."""
    copy = GPT(config.model).to(model.embed.weight.device)
    copy.load_state_dict(model.state_dict())
    return copy


def _fitted(
    config: RunConfig,
    model: GPT,
    state: dict[str, Tensor],
    tokenizer: Tokenizer,
    calibration: Calibration,
    say: Callable[[str], None],
    bars: Bars,
) -> bytes:
    """The best file of `state` within `export.model_bytes`, or the smallest within `export.max_loss`.

    The forms are the priced rounding, the same with the embedding in float16, and `rounded`, without a goal.
    """
    x = config.export
    slots = tensor_kinds(model)
    measured, held_back = _in_float32(config, model), calibration.held_back
    table = tokenizer.byte_table()
    before = bits_per_byte(measured, held_back, table)

    def file_of(stored: Stored) -> bytes:
        return pack_stored(stored, slots, config.model, x, tokenizer.sha256)

    def loss_of(stored: Stored) -> float:
        measured.load_state_dict(dequantize_state(stored))
        return bits_per_byte(measured, held_back, table) - before

    goal = f"{x.model_bytes:,} bytes" if x.model_bytes else f"a loss of {x.max_loss:g} bits per byte"

    def fit(prepared: Prepared) -> Stored:
        def at(price: float) -> Stored:
            return with_corrections(state_at(prepared, price), state, x, calibration)

        with bars(f"searching the steps for {goal}") as bar:
            if x.model_bytes:
                bits = expected_bits(prepared)
                return at(fit_bytes(lambda price: len(file_of(at(price))), x.model_bytes, bits, bar))
            return at(fit_loss(lambda price: loss_of(at(price)), x.max_loss, bar))

    prepared = prepare_state(state, slots, calibration.moments)
    forms = {"fitted": fit(prepared)}
    floats = as_floats(state, slots, forms["fitted"])
    if floats:
        forms["fitted, float16 embedding"] = fit({**prepared, **floats})
    forms["plain"] = rounded(state, slots, x, calibration)
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
