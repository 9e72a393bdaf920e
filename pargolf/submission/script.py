"""The program of a submission: train, pack, read back, score; with `--eval MODEL.PGZ` only the last two.

It runs under torchrun or plain Python, on GPUs or a CPU. `bundle` makes one file of it and of what it
needs; as a module it runs `CONFIG` as it stands here.
"""

import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from pargolf.config.schema import RunConfig, validate, validate_world
from pargolf.data.shards import open_split
from pargolf.data.tokenizer import Tokenizer
from pargolf.export.artifact import read_artifact
from pargolf.fit.pack import pack_model
from pargolf.run.log_lines import final_lines
from pargolf.run.target import load_model
from pargolf.score.windows import score
from pargolf.system import distributed, launch, machine
from pargolf.system.errors import UserError
from pargolf.system.files import write_atomic
from pargolf.train.loop import load_data, resolve, train_model

CONFIG = RunConfig()
ARTIFACT = Path("model.pgz")
LOGS = Path("logs")

# Environment variables of the challenge's baseline (and of published records, where it has none)
# and the settings they change. Every other setting is fixed.
ENVIRONMENT = {
    "DATA_PATH": ("data", "dataset"),
    "TOKENIZER_PATH": ("data", "tokenizer"),
    "SEED": ("train", "seed"),
    "ITERATIONS": ("train", "iterations"),
    "MAX_WALLCLOCK_SECONDS": ("train", "max_seconds"),
    "TRAIN_BATCH_TOKENS": ("train", "batch_tokens"),
    "TRAIN_SEQ_LEN": ("model", "seq_len"),
    "TRAIN_LOG_EVERY": ("train", "log_every"),
    "VAL_LOSS_EVERY": ("train", "val_every"),
    "WARMUP_STEPS": ("train", "compile_warmup_steps"),
    "WARMDOWN_ITERS": ("train", "warmdown_steps"),
    "WARMDOWN_FRACTION": ("train", "warmdown_fraction"),
    "VOCAB_SIZE": ("model", "vocab_size"),
    "NUM_LAYERS": ("model", "n_layers"),
    "MODEL_DIM": ("model", "d_model"),
    "NUM_HEADS": ("model", "n_heads"),
    "NUM_KV_HEADS": ("model", "kv_heads"),
    "MLP_MULT": ("model", "mlp_ratio"),
    "ROPE_BASE": ("model", "rope_base"),
    "LOGIT_SOFTCAP": ("model", "softcap"),
    "QK_GAIN_INIT": ("model", "q_gain"),
    "TIED_EMBED_INIT_STD": ("model", "embed_std"),
    "TIED_EMBED_LR": ("optim", "embed_lr"),
    "MATRIX_LR": ("optim", "muon_lr"),
    "SCALAR_LR": ("optim", "vector_lr"),
    "WEIGHT_DECAY": ("optim", "muon_weight_decay"),
    "MUON_MOMENTUM": ("optim", "muon_momentum"),
    "MUON_MOMENTUM_WARMUP_START": ("optim", "muon_momentum_start"),
    "MUON_MOMENTUM_WARMUP_STEPS": ("optim", "muon_momentum_warmup"),
    "MUON_BACKEND_STEPS": ("optim", "ns_steps"),
    "BETA1": ("optim", "adam_beta1"),
    "BETA2": ("optim", "adam_beta2"),
    "ADAM_EPS": ("optim", "adam_eps"),
    "EVAL_STRIDE": ("eval", "stride"),
    "EVAL_BATCH_SEQS": ("eval", "batch_rows"),
}


def from_environment(config: RunConfig, environment: Mapping[str, str]) -> RunConfig:
    """`config` with the settings that `environment` gives; UserError if one is malformed or does not fit.

    WARMDOWN_ITERS also ends a warm-down that is a share of the run.
    """
    if "WARMDOWN_ITERS" in environment:
        environment = {"WARMDOWN_FRACTION": "0", **environment}
    for variable, (section, name) in ENVIRONMENT.items():
        if variable not in environment:
            continue
        part = getattr(config, section)
        kind = type(getattr(part, name))
        try:
            value = kind(environment[variable])
        except ValueError:
            raise UserError(
                f"{variable} must be of type {kind.__name__}, is {environment[variable]!r}"
            ) from None
        config = replace(config, **{section: replace(part, **{name: value})})
    return validate(config)


def make_artifact(config: RunConfig, device: torch.device, path: Path, log: Callable[[str], None]) -> None:
    """Train a model and pack it into `path`; every rank calls this, the first one packs."""
    data = load_data(config)
    compile_cache = LOGS / "compile-cache"
    if launch.is_main():
        shutil.rmtree(compile_cache, ignore_errors=True)
    distributed.barrier()
    model = train_model(config, data, device, compile_cache, log)
    if launch.is_main():
        write_atomic(path, pack_model(config, model, data.tokenizer))
    distributed.barrier()
    log(f"artifact in {path}")


def score_artifact(config: RunConfig, device: torch.device, path: Path, log: Callable[[str], None]) -> None:
    """Score the artifact in `path` on the validation tokens, by plain rows and by the sliding window."""
    artifact = read_artifact(path)
    tokenizer = Tokenizer(Path(config.data.tokenizer))
    if (artifact.model, artifact.export) != (config.model, config.export):
        raise UserError(f"{path} was made with other settings than this script's")
    if artifact.tokenizer_sha256 != tokenizer.sha256:
        raise UserError(f"{path} was made with another tokenizer than {tokenizer.path}")
    model = load_model(artifact, getattr(torch, config.train.dtype)).to(device)
    stream = open_split(Path(config.data.dataset), "val")
    tokens, table = stream.read(0, len(stream)), tokenizer.byte_table()
    scores = {}
    for name, stride in (("roundtrip", config.model.seq_len), ("sliding_window", config.eval.stride)):
        start = time.perf_counter()
        result = score(model, tokens, table, stride, config.eval.batch_rows)
        scores[name] = result, stride, time.perf_counter() - start
    code_bytes, model_bytes = (file.stat().st_size for file in (Path(__file__), path))
    for line in final_lines(config.export, code_bytes, model_bytes, scores):
        log(line)


def run(arguments: list[str], environment: Mapping[str, str]) -> None:
    """Do what the command line and the environment ask for; UserError where they cannot be followed."""
    if arguments and (len(arguments) != 2 or arguments[0] != "--eval"):
        raise UserError("give no arguments to train, or --eval MODEL.PGZ to score an artifact")
    config = from_environment(CONFIG, environment)
    validate_world(config, launch.world_size())
    LOGS.mkdir(exist_ok=True)
    log_file = LOGS / f"{environment.get('RUN_ID', uuid.uuid4())}.txt"

    def log(line: str) -> None:
        if launch.is_main():
            print(line, flush=True)
            with open(log_file, "a", encoding="utf-8") as file:
                file.write(line + "\n")

    with distributed.world(machine.resolve_device(config.train.device)) as device:
        settings = resolve(config, device.type)
        if arguments:
            path = Path(arguments[1])
        else:
            (taken,) = distributed.agree(float(ARTIFACT.exists()))
            path = LOGS / ARTIFACT if taken else ARTIFACT  # a submitted artifact stays as it is
            make_artifact(settings, device, path, log)
        score_artifact(settings, device, path, log)


def main() -> None:
    """Run, with exit code 2 and one line on stderr for bad input."""
    try:
        run(sys.argv[1:], os.environ)
    except UserError as error:
        if launch.is_main():
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
