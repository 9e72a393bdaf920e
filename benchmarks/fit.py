"""What rounding costs: plain rows, second-order rounding, and a filled budget, on one trained run.

    python benchmarks/fit.py runs/demo
    python benchmarks/fit.py runs/demo --records

For each setting of plain bits: its file and score; the same steps, rounded to second order; priced
steps, rounded to the nearest, in no more bytes; both, which is what `pargolf pack --fit` does; and
the smallest such file with a score no worse, if there is one. With --records the same beside the
rounding of two of the challenge's records, with and without corrections of low rank, and ours at their bytes.
Gap: val_bpb above the unquantized checkpoint's; closed: 1 - gap / the gap of the first row.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.table import Table
from torch import Tensor

from pargolf.config.presets import load_preset
from pargolf.config.schema import ExportConfig
from pargolf.config.settings import flatten, to_dict, with_settings
from pargolf.data.tokenizer import Tokenizer
from pargolf.export import artifact
from pargolf.export.quantize import dequantize_state
from pargolf.fit.gptq import PreparedMatrix
from pargolf.fit.pack import calibrated, rounded, with_corrections
from pargolf.fit.price import Prepared, Stored, expected_bits, fit_bytes, fit_loss, prepare_state, state_at
from pargolf.model.gpt import GPT, tensor_kinds
from pargolf.run.target import find_target
from pargolf.score.windows import score
from pargolf.system.console import console
from pargolf.train.checkpoint import load_weights

PLAIN = ((6, 16), (6, 6), (5, 16), (5, 5), (4, 16), (4, 4))  # bits of matrices, of the embedding
# Those whose way of rounding is compared: the first of steps by deviations, and the last.
RECORDS = ("record-0405", "record-0427")
WAYS = ("export.attn_", "export.mlp_", "export.embed_", "export.rounding")
LQER = {"export.lqer_rank": 4, "export.lqer_matrices": 3}
WEIGHTED = LQER | {"export.lqer_weighted": True}


def main(
    run: tyro.conf.Positional[Path], stride: int = 0, records: bool = False, calibration_tokens: int = 0
) -> None:
    """Print the table for a run's checkpoint, scored by plain rows, or windows every `stride`.

    All ways calibrate on the same training text: as much as the run's settings say, or `calibration_tokens`.
    """
    target = find_target(run)
    assert target.config is not None and target.run is not None
    config, tokenizer = target.config, Tokenizer(target.tokenizer)
    text = target.validation()
    model, scored = GPT(config.model), GPT(config.model, target.dtype)
    load_weights(target.run.checkpoint, model)
    state, slots = dict(model.state_dict()), tensor_kinds(model)
    calibrate = {
        "export.rounding": "gptq",
        "export.calibration_tokens": calibration_tokens or config.export.calibration_tokens,
    }
    calibration = calibrated(with_settings(config, calibrate), model, target.training)
    assert calibration is not None
    prepared = prepare_state(state, slots, calibration.moments)
    nearest = {
        # With inputs that are independent there is nothing to make good later.
        name: dataclasses.replace(x, factor=torch.eye(len(x.order))) if isinstance(x, PreparedMatrix) else x
        for name, x in prepared.items()
    }

    def with_(settings: Mapping[str, Any]) -> ExportConfig:
        return with_settings(config, settings).export

    def val_bpb(weights: Mapping[str, Tensor]) -> float:
        scored.load_state_dict(weights)
        every = stride or config.model.seq_len
        return score(scored, text, every, config.eval.batch_rows).val_bpb

    def pack(stored: Stored, export: ExportConfig = config.export) -> bytes:
        return artifact.pack_stored(stored, slots, config.model, export, tokenizer.sha256)

    def plain(settings: Mapping[str, Any]) -> bytes:
        return pack(rounded(state, slots, with_(settings), calibration), with_(settings))

    def filled(ready: Prepared, limit: int, settings: Mapping[str, Any] = {}) -> bytes:
        def at(price: float) -> bytes:
            export = with_(settings)
            return pack(with_corrections(state_at(ready, price), state, export, calibration), export)

        return at(fit_bytes(lambda price: len(at(price)), limit, expected_bits(ready)))

    before = val_bpb(state)

    def as_good(gap: float) -> dict[str, bytes]:
        price = fit_loss(lambda x: val_bpb(dequantize_state(state_at(prepared, x))) - before, gap)
        found = state_at(prepared, price)
        # Else the finest steps lose more.
        return {"fitted, as good": pack(found)} if val_bpb(dequantize_state(found)) - before <= gap else {}

    def of_bits(bits: int, embed_bits: int) -> dict[str, bytes]:
        settings = {"export.attn_bits": bits, "export.mlp_bits": bits, "export.embed_bits": embed_bits}
        files = {
            f"plain, {bits} and {embed_bits} bits": plain(settings),
            "second order": plain(settings | {"export.rounding": "gptq"}),
        }
        limit = len(next(iter(files.values())))
        return files | {"priced steps": filled(nearest, limit), "both: fitted": filled(prepared, limit)}

    def of_record(record: str) -> dict[str, bytes]:
        there = flatten(to_dict(load_preset(record)))
        way = {name: there[name] for name in there if name.startswith(WAYS)} | {"export.lqer_rank": 0}
        files = {
            record: plain(way),
            "corrected": plain(way | LQER),
            "corrected by output": plain(way | WEIGHTED),
        }
        limit = len(files[record])
        files["fitted"] = filled(prepared, limit)
        files["fitted, corrected by output"] = filled(prepared, limit, WEIGHTED)
        return files

    lines = Table(title=f"{run}: val_bpb before quantization {before:.4f}")
    for column in ("rounding", "bytes", "val_bpb", "gap", "closed"):
        lines.add_column(column, justify="left" if column == "rounding" else "right")
    for files in map(of_record, RECORDS) if records else (of_bits(*bits) for bits in PLAIN):
        scores = {name: val_bpb(artifact.unpack(data).state) for name, data in files.items()}
        gap = next(iter(scores.values())) - before
        if gap > 0:
            for name, data in as_good(gap).items():
                files[name], scores[name] = data, val_bpb(artifact.unpack(data).state)
        for number, (name, data) in enumerate(files.items()):
            closed = 1 - (scores[name] - before) / gap if gap > 0 and number else math.nan
            lines.add_row(
                name, f"{len(data):,}", f"{scores[name]:.4f}", f"{scores[name] - before:+.4f}",
                "" if math.isnan(closed) else f"{closed:.0%}",
            )  # fmt: skip
        lines.add_section()
    console.print(lines)


if __name__ == "__main__":
    tyro.cli(main)
