"""A submission's folder for tests: what is in a good one, and how one thing in it is changed."""

import base64
import json
import lzma
import re
from pathlib import Path
from typing import Any

from pargolf.check.check import check_folder
from pargolf.check.evidence import Finding
from pargolf.check.figures import RecordToBeat

RECORD = RecordToBeat("baseline", 1.1748)
CODE = '''\
"""Trains on the training shards, packs the weights, and scores what it reads back."""
import glob
import os
import subprocess
import zlib

import numpy as np
import torch
import zstandard


class Args:
    data_path = os.environ.get("DATA_PATH", "./data/datasets/fineweb10B_sp1024")
    train_files = os.path.join(data_path, "fineweb_train_*.bin")
    val_files = os.path.join(data_path, "fineweb_val_*.bin")
    val_batch_size = 524_288


class Loader:
    def __init__(self, pattern):
        self.files = sorted(glob.glob(pattern))

    def next_batch(self, tokens):
        span = torch.from_numpy(np.fromfile(self.files[0], np.uint16)[: tokens + 1].astype(np.int64))
        return span[:-1], span[1:]


def load_validation_tokens(pattern):
    return torch.cat([torch.from_numpy(np.fromfile(f, np.uint16)) for f in sorted(glob.glob(pattern))])


def eval_val(args, model, val_tokens):
    loss_sum = torch.zeros((), dtype=torch.float64)
    count = 0
    with torch.inference_mode():
        for start in range(0, val_tokens.numel() - 1, args.val_batch_size):
            local = val_tokens[start : start + args.val_batch_size + 1]
            x, y = local[:-1], local[1:]
            batch_loss = model(x, y).detach()
            loss_sum += batch_loss.to(torch.float64) * y.numel()
            count += y.numel()
    return loss_sum / count


def main():
    args = Args()
    print(subprocess.run(["nvidia-smi"], capture_output=True, text=True, check=False).stdout)
    val_tokens = load_validation_tokens(args.val_files)
    train_loader = Loader(args.train_files)
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.Adam(model.parameters())
    for step in range(100):
        if step % 10 == 0:
            val_loss = eval_val(args, model, val_tokens)
            print(f"step:{step}/100 val_loss:{val_loss:.4f}")
        x, y = train_loader.next_batch(1024)
        loss = model(x, y)
        loss.backward()
        optimizer.step()
    blob = zstandard.ZstdCompressor(22).compress(zlib.compress(model.weight.numpy().tobytes()))
    with open("final_model.int6.ptz", "wb") as f:
        f.write(blob)
    val_loss = eval_val(args, model, val_tokens)
    print(f"final_roundtrip val_loss:{val_loss:.4f}")


if __name__ == "__main__":
    main()
'''
MODEL_BYTES = 1_234_567
LOSSES = {1337: "1.95012345", 42: "1.95112345", 7: "1.95212345"}
BPBS = {1337: "1.15498765", 42: "1.15557992", 7: "1.15617218"}


def log_text(seed: int, code_bytes: int) -> str:
    """A log in the form of the challenge's script."""
    return f"""\
logs/{seed}.txt
model_params:25780824
tie_embeddings:True embed_lr:0.03 head_lr:0.0 matrix_lr:0.02 scalar_lr:0.02
train_batch_tokens:524288 train_seq_len:1024 iterations:20000 warmup_steps:20 max_wallclock_seconds:600.000
seed:{seed}
warmup_step:1/20
step:0/20000 val_loss:6.9370 val_bpb:4.0978 train_time:0ms step_avg:0.01ms
step:1/20000 train_loss:6.9408 train_time:77ms step_avg:77.00ms
step:7732/20000 val_loss:1.9600 val_bpb:1.1608 train_time:600021ms step_avg:77.60ms
stopping_early: wallclock_cap train_time:600021ms step:7732/20000
Serialized model: 103000000 bytes
Code size: {code_bytes} bytes
Serialized model int6+zstd: {MODEL_BYTES} bytes
Total submission size int6+zstd: {MODEL_BYTES + code_bytes} bytes
final_int6_roundtrip val_loss:1.9812 val_bpb:1.1734 eval_time:7750ms
final_int6_roundtrip_exact val_loss:1.98123456 val_bpb:1.17340000
final_int6_sliding_window val_loss:{LOSSES[seed][:6]} val_bpb:{BPBS[seed][:6]} stride:64 eval_time:83873ms
final_int6_sliding_window_exact val_loss:{LOSSES[seed]} val_bpb:{BPBS[seed]}
"""


def write_good(folder: Path) -> None:
    """A folder that breaks no rule."""
    folder.mkdir()
    (folder / "train_gpt.py").write_text(CODE)
    (folder / "README.md").write_text("# Low-rank queries\n\nQuery matrices of rank 192.\n")
    (folder / "requirements.txt").write_text("--index-url https://pypi.org/simple\nZstandard>=0.22\n")
    (folder / "final_model.int6.ptz").write_bytes(bytes(MODEL_BYTES))
    for seed in LOSSES:
        (folder / f"train_seed{seed}.log").write_text(log_text(seed, len(CODE)))
    stated = {
        "author": "A. Golfer",
        "github_id": "agolfer",
        "name": "Low-rank queries",
        "blurb": "Query matrices of rank 192, int6, zstd 22.",
        "date": "2026-03-20T05:00:00Z",
        "track": "10min_16mb",
        "val_loss": 1.95112345,
        "val_bpb": 1.15557992,
        "bytes_total": MODEL_BYTES + len(CODE),
        "bytes_code": len(CODE),
        "seed_results": {
            str(seed): {
                "val_loss": float(LOSSES[seed]),
                "val_bpb": float(BPBS[seed]),
                "artifact_bytes": MODEL_BYTES + len(CODE),
            }
            for seed in LOSSES
        },
    }
    (folder / "submission.json").write_text(json.dumps(stated, indent=2))


def by_rule(folder: Path, against: RecordToBeat | None = RECORD) -> dict[str, Finding]:
    """What `check` finds, by rule."""
    findings = check_folder(folder, against)
    assert len({found.rule for found in findings}) == len(findings)
    return {found.rule: found for found in findings}


def code(folder: Path, old: str, new: str) -> None:
    """Change train_gpt.py, and keep the bytes that are stated of it true."""
    path = folder / "train_gpt.py"
    text = path.read_text()
    assert text.count(old) == 1
    before = len(text.encode())
    text = text.replace(old, new)
    path.write_text(text)
    recount(folder, before, len(text.encode()))


def recount(folder: Path, before: int, after: int) -> None:
    """Replace the bytes of the code, and the totals they enter, in the logs and the JSON."""
    total = before + (folder / "final_model.int6.ptz").stat().st_size
    for path in [*folder.glob("*.log"), folder / "submission.json"]:
        text = path.read_text()
        text = re.sub(rf"\b{before}\b", str(after), text)
        path.write_text(re.sub(rf"\b{total}\b", str(total - before + after), text))


def log(folder: Path, seed: int, old: str, new: str) -> None:
    """Change the log of one seed."""
    path = folder / f"train_seed{seed}.log"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def submission_json(folder: Path, **changes: Any) -> None:
    """Change fields of submission.json; `...` removes one."""
    path = folder / "submission.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not ...}))


def packed(folder: Path, hidden: str) -> None:
    """train_gpt.py as a line that unpacks itself, with a line more in it."""
    path = folder / "train_gpt.py"
    text = path.read_text()
    path.write_text(pack(text + hidden))
    recount(folder, len(text.encode()), path.stat().st_size)


def pack(text: str) -> str:
    """Code that unpacks itself, as published."""
    payload = base64.b85encode(lzma.compress(text.encode())).decode()
    return f"import lzma as L,base64 as B\nexec(L.decompress(B.b85decode({payload!r})))\n"
