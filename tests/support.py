"""What several tests need: the command line in a process of its own, and a tiny run's options."""

import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from torch import Tensor

from pargolf.cli import dispatch
from pargolf.config.schema import (
    DataConfig,
    EvalConfig,
    ExportConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
)
from pargolf.data.batches import Batches
from pargolf.data.shards import open_split
from pargolf.export.artifact import pack
from pargolf.model.gpt import GPT, tensor_kinds
from pargolf.model.layers import Linear, LowRank
from pargolf.optim.groups import Optimizers
from pargolf.run.folder import Run, start_run
from pargolf.system.files import sha256_file
from pargolf.train.checkpoint import Progress, save_checkpoint
from pargolf.train.loop import Training

TINY = {
    "model.vocab-size": "512",
    "model.seq-len": "64",
    "model.n-layers": "3",
    "model.d-model": "32",
    "model.n-heads": "4",
    "model.kv-heads": "2",
    "model.q-rank": "8",
    "data.corpus": "none",
    "data.order": "stream",
    "train.batch-tokens": "512",
    "train.micro-batches": "2",
    "train.iterations": "20",
    "train.max-seconds": "0",
    "train.log-every": "1",
    "train.checkpoint-every": "5",
    "train.dtype": "float32",
    "train.compile": "off",
    "eval.batch-rows": "64",
    "export.code-form": "readable",  # the compressed form takes seconds to make
}


@dataclass(frozen=True)
class Dataset:
    """A tokenizer and shards made from a few real articles by the command line."""

    folder: Path
    tokenizer: Path
    documents: list[str]

    def options(self, **changes: object) -> list[str]:
        """Command-line options of a tiny run on this data; `train__seed=3` means --train.seed 3."""
        values: dict[str, object] = dict(TINY)
        values |= {"data.dataset": self.folder, "data.tokenizer": self.tokenizer}
        values |= {name.replace("__", ".").replace("_", "-"): value for name, value in changes.items()}
        return [part for name, value in values.items() for part in (f"--{name}", str(value))]


def pargolf(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user would, in its own process."""
    return subprocess.run(
        [sys.executable, "-m", "pargolf", *map(str, arguments)],
        cwd=cwd, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def failure(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that a command which must fail prints."""
    assert dispatch([str(a) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("pargolf: error: ")
    assert error.count("\n") == 1
    return error


def model_options() -> list[dict[str, Any]]:
    """Each option of the model at other values than its default, whatever options there are."""
    # What has a meaning beside another option alone is tried with it.
    shape = {
        "vocab_size", "seq_len", "n_layers", "d_model", "n_heads", "kv_heads", "mlp_ratio", "bos_id",
        "parallel_from", "loop_from", "loop_to", "bigram_dim", "value_embed_dim", "head_gate_scale",
    }  # fmt: skip
    found: list[dict[str, Any]] = []
    for field in fields(ModelConfig):
        default: Any = field.default
        if get_origin(field.type) is Literal:
            found += [{field.name: choice} for choice in get_args(field.type) if choice != default]
        elif field.name not in shape:
            needs = {"q_rank": 0} if field.name == "legendre_attn" else {}
            found.append({field.name: option_value(field.name, default), **needs})
    return found


def option_value(name: str, default: bool | float) -> bool | float:
    """Another value than the default, which a tiny model can have."""
    if isinstance(default, bool):
        return not default
    if isinstance(default, int):
        return {"rope_dims": 2, "bigram_rows": 31}.get(name, 3)
    return default / 2 or 0.5


def shaken(c: ModelConfig) -> GPT:
    """A model in which every parameter matters: none is left at the zero or one of its init."""
    torch.manual_seed(1)
    model = GPT(c, seed=0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    return model


# Every option of the optimizers that keeps or computes something, all at once.
ALL_OF_OPTIM = OptimConfig(
    muon_neuron_norm=True, soap="mlp", soap_every=2, update_floor=0.3, update_floor_rows=True,
    outward_brake=0.5, radius_pin=True, muon_cautious_decay=True, adam_cautious_decay=True,
    embed_weight_decay=0.5, embed_beta2=0.9, vector_beta2=0.99, ema_nesterov=0.5,
)  # fmt: skip


def training_of(
    model: GPT, dataset: Dataset, batch_tokens: int, micro_batches: int, o: OptimConfig | None = None
) -> Training:
    """A training of this model, whose device is the training's, on rows in a shuffled order."""
    optimizers = Optimizers(model, o or OptimConfig(), model.dtype)
    stream = open_split(dataset.folder, "train")
    train = TrainConfig(batch_tokens=batch_tokens, micro_batches=micro_batches, seed=1)
    batches = Batches(stream, RunConfig(model.config, DataConfig(order="shuffle"), train))
    device = model.embed.weight.device
    return Training(RunConfig(model.config), device, model, model, optimizers, batches)


def matrix(projection: Linear | LowRank) -> Tensor:
    """The (n_out, n_in) matrix that a projection stands for."""
    if isinstance(projection, LowRank):
        return projection.up.weight @ projection.down.weight
    return projection.weight


def write_run(folder: Path, model: GPT, tokenizer: Path | None = None) -> Run:
    """A run folder with this model as checkpoint and as artifact, without any training."""
    export = ExportConfig(level=3)
    training = TrainConfig(batch_tokens=8 * model.config.seq_len)
    scoring = EvalConfig(stride=min(64, model.config.seq_len))
    run = start_run(folder, RunConfig(model.config, train=training, export=export, eval=scoring))
    save_checkpoint(run.checkpoint, model, Optimizers(model, OptimConfig(), torch.float32), Progress())
    if tokenizer:
        run.tokenizer.write_bytes(tokenizer.read_bytes())
    sha256 = sha256_file(run.tokenizer) if tokenizer else "0" * 64
    data = pack(dict(model.state_dict()), tensor_kinds(model), model.config, export, sha256)
    run.artifact.write_bytes(data)
    return run
