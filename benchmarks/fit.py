"""What rounding costs: plain rows, second-order rounding, and a filled budget, on one trained run.

    python benchmarks/fit.py runs/demo

For each setting of plain bits: its file and score; the same steps, rounded to second order; priced
steps, rounded to the nearest, in no more bytes; both, which is what `pargolf pack --fit` does; and
the smallest such file with a score no worse, if there is one. Gap: val_bpb above the unquantized
checkpoint's; closed: 1 - gap / plain gap.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import torch
import tyro
from rich.table import Table
from torch import Tensor

from pargolf.config.settings import with_settings
from pargolf.data.tokenizer import Tokenizer
from pargolf.export import artifact
from pargolf.export.quantize import Quantized, dequantize_state, quantize_state, top_value
from pargolf.fit.calibrate import calibrate, spread_rows
from pargolf.fit.gptq import PreparedMatrix, round_second_order
from pargolf.fit.price import Prepared, Stored, fit_bytes, fit_loss, prepare_state, state_at
from pargolf.model.gpt import GPT, tensor_kinds
from pargolf.run.target import find_target
from pargolf.score.windows import score
from pargolf.system.console import console
from pargolf.train.checkpoint import load_weights

PLAIN = ((6, 16), (6, 6), (5, 16), (5, 5), (4, 16), (4, 4))  # bits of matrices, of the embedding


def second_order(plain: Stored, prepared: Prepared) -> Stored:
    """The plain state's matrices with their scales and bits, rounded to second order."""
    state = dict(plain)
    for name, q in plain.items():
        ready = prepared[name]
        if isinstance(q, Quantized) and isinstance(ready, PreparedMatrix):
            values = round_second_order(ready.weight, q.scale.float(), ready.factor, top_value(q.bits))
            state[name] = dataclasses.replace(q, values=values[:, ready.order.argsort()])
    return state


def main(run: tyro.conf.Positional[Path], stride: int = 0) -> None:
    """Print the table for a run's checkpoint, scored by plain rows, or windows every `stride`."""
    target = find_target(run)
    assert target.config is not None and target.run is not None
    config, tokenizer = target.config, Tokenizer(target.tokenizer)
    text = target.validation()
    model, scored = GPT(config.model), GPT(config.model, target.dtype)
    load_weights(target.run.checkpoint, model)
    state, slots = dict(model.state_dict()), tensor_kinds(model)
    rows, _ = spread_rows(target.training(), config.model.seq_len, config.export.calibration_tokens)
    prepared = prepare_state(state, slots, calibrate(model, rows))
    nearest = {
        # With inputs that are independent there is nothing to make good later.
        name: dataclasses.replace(x, factor=torch.eye(len(x.order))) if isinstance(x, PreparedMatrix) else x
        for name, x in prepared.items()
    }

    def val_bpb(weights: Mapping[str, Tensor]) -> float:
        scored.load_state_dict(weights)
        every = stride or config.model.seq_len
        return score(scored, text, every, config.eval.batch_rows).val_bpb

    before = val_bpb(state)
    lines = Table(title=f"{run}: val_bpb before quantization {before:.4f}")
    for column in ("bits, of the embedding", "rounding", "bytes", "val_bpb", "gap", "closed"):
        lines.add_column(column, justify="left" if column == "rounding" else "right")
    for bits, embed_bits in PLAIN:
        plainly = {"export.attn_bits": bits, "export.mlp_bits": bits, "export.embed_bits": embed_bits}
        export = with_settings(config, plainly).export

        def pack(stored: Stored) -> bytes:
            return artifact.pack_stored(stored, slots, config.model, config.export, tokenizer.sha256)

        def filled(ready: Prepared, limit: int) -> bytes:
            price = fit_bytes(lambda price: len(pack(state_at(ready, price))), limit)
            return pack(state_at(ready, price))

        plain = quantize_state(state, slots, export)
        files = {"plain": pack(plain), "second order": pack(second_order(plain, prepared))}
        limit = len(files["plain"])
        files["priced steps"] = filled(nearest, limit)
        files["both: fitted"] = filled(prepared, limit)
        gap = val_bpb(artifact.unpack(files["plain"]).state) - before
        if gap > 0:
            price = fit_loss(lambda x: val_bpb(dequantize_state(state_at(prepared, x))) - before, gap)
            as_good = state_at(prepared, price)
            if val_bpb(dequantize_state(as_good)) - before <= gap:  # else the finest steps lose more
                files["fitted, as good"] = pack(as_good)
        for name, data in files.items():
            bpb = val_bpb(artifact.unpack(data).state)
            closed = 1 - (bpb - before) / gap if gap > 0 and name != "fitted, as good" else math.nan
            lines.add_row(
                f"{bits}, {embed_bits}" if name == "plain" else "", name, f"{len(data):,}", f"{bpb:.4f}",
                f"{bpb - before:+.4f}", "" if name == "plain" or math.isnan(closed) else f"{closed:.0%}",
            )  # fmt: skip
    console.print(lines)


if __name__ == "__main__":
    tyro.cli(main)
