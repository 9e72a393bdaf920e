"""Downloading the challenge's published shards and tokenizer, checked as they arrive."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from pargolf.data.record import Record, Split, write_record
from pargolf.data.shards import HEADER_BYTES, read_header, shard_name
from pargolf.data.tokenizer import Tokenizer
from pargolf.system.errors import UserError, require

REPO = "willdepueoai/parameter-golf"  # the challenge's
ELSEWHERE = {"sp4096": "kevclark/parameter-golf", "sp8192": "kevclark/parameter-golf"}
REMOTE = "datasets"  # folder of the repository that everything is in
PREFIX = "fineweb10B_"  # of a dataset's name, before its variant


def fetch(repo: str, file: str, folder: Path, force: bool) -> Path:
    """Fetch a file of the hub's `repo` into `folder`, going on where a broken download stopped; its path.

    `force` fetches it anew even if a copy is there. Raises UserError if the hub or the network fails.
    """
    import huggingface_hub

    try:
        path = huggingface_hub.hf_hub_download(
            repo, file, repo_type="dataset", local_dir=folder, force_download=force
        )
    except Exception as error:  # the hub client raises its HTTP library's own exceptions, too
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"cannot download {file} of {repo}: {reason}; check the network and try again"
        ) from None
    return Path(path)


def download(variant: str, train_shards: int, root: Path, repo: str = "") -> None:
    """Fetch the tokenizer, all validation shards and the first `train_shards` training shards.

    They come from the hub's `repo`, by default the challenge's, or the one that has what it lacks. They
    go to root/datasets/fineweb10B_{variant}/ and root/tokenizers/; files that are there and valid are
    kept. A dataset.json says which tokenizer the manifest gives for them. Raises UserError if the
    repository lacks one of them, the network fails, or a file arrives damaged twice.
    """
    if not re.fullmatch(r"sp\d+", variant):
        raise UserError(f"unknown variant {variant!r}: it is 'sp' and the vocabulary size, such as sp1024")
    if train_shards < 0:
        raise UserError(f"the number of training shards must not be negative, is {train_shards}")
    name, repo = PREFIX + variant, repo or ELSEWHERE.get(variant, REPO)

    def get(remote: str, path: Path, check: Callable[[Path], object]) -> None:
        _get(repo, f"{REMOTE}/{remote}", path, root / ".download", check)

    manifest_path = root / "manifest.json"
    get("manifest.json", manifest_path, lambda path: _read_manifest(path, name))
    counts, tokenizer = _read_manifest(manifest_path, name)
    if train_shards > counts["train"]:
        raise UserError(f"{repo} has {counts['train']} training shards of {variant}, not {train_shards}")
    model, dataset = root / "tokenizers" / PurePosixPath(tokenizer).name, root / "datasets" / name
    get(tokenizer, model, Tokenizer)
    for split, count in (("val", counts["val"]), ("train", train_shards)):
        for index in range(count):
            file = shard_name(split, index)
            get(f"datasets/{name}/{file}", dataset / file, read_header)
    there = {split: _on_disk(dataset, split) for split in ("train", "val")}
    recipe = {"repository": repo, "dataset": name}
    splits = {split: found for split, found in there.items() if found.files}
    write_record(dataset, Record(recipe, model.name, Tokenizer(model).sha256, splits))


def variant_of(dataset: str) -> str:
    """The variant of the shards that a dataset's folder holds, by its name; empty for other data."""
    name = Path(dataset).name
    return name.removeprefix(PREFIX) if name.startswith(PREFIX) else ""


def _on_disk(dataset: Path, split: str) -> Split:
    """The shards of a split that are there, of this download or an earlier one."""
    tokens = {path.name: read_header(path) for path in sorted(dataset.glob(f"fineweb_{split}_[0-9]*.bin"))}
    return Split(sum(tokens.values()), {name: HEADER_BYTES + 2 * count for name, count in tokens.items()})


def _get(repo: str, remote: str, path: Path, folder: Path, check: Callable[[Path], object]) -> None:
    """Make sure that a file for which `check` raises no UserError is at `path`."""
    if path.exists() and not _fault(path, check):
        return
    fault = None
    for force in (False, True):
        fetched = fetch(repo, remote, folder, force)
        fault = _fault(fetched, check)
        if not fault:
            path.parent.mkdir(parents=True, exist_ok=True)
            fetched.replace(path)
            return
        fetched.unlink(missing_ok=True)
    raise UserError(f"{remote} of {repo} arrived damaged twice: {fault}")


def _fault(path: Path, check: Callable[[Path], object]) -> str | None:
    try:
        check(path)
    except UserError as error:
        return str(error)
    return None


def _read_manifest(path: Path, name: str) -> tuple[dict[str, int], str]:
    """({"train": shards, "val": shards}, remote path of the tokenizer model) of the dataset `name`."""
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
        datasets = {entry["name"]: entry for entry in manifest["datasets"]}
        if name not in datasets:
            raise UserError(f"the manifest lists no dataset {name}; it has {', '.join(datasets) or 'none'}")
        entry = datasets[name]
        tokenizers = {entry["name"]: entry for entry in manifest["tokenizers"]}
        model = tokenizers[entry["tokenizer_name"]]["model_path"]
        stats = entry["stats"]
        # It names a file here as well as there.
        require(model == os.path.normpath(model) and model[:1] not in "./", f"tokenizer path {model!r}")
        return {split: int(stats[f"files_{split}"]) for split in ("train", "val")}, str(model)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is not a manifest of datasets ({type(error).__name__}: {error})") from None
