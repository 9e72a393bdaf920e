"""Downloading the challenge's published shards and tokenizer, checked as they arrive."""

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pargolf.challenge import LEAKING_SHARDS, VAL_DOCUMENTS
from pargolf.data.record import Record, Split, write_record
from pargolf.data.shards import HEADER_BYTES, SIDECAR, open_split, read_header, shard_name
from pargolf.data.tokenizer import Tokenizer, Transform
from pargolf.system.errors import UserError, require

REPO = "willdepueoai/parameter-golf"  # the challenge's
ELSEWHERE = {
    "sp4096": "kevclark/parameter-golf",
    "sp8192": "kevclark/parameter-golf",
    "caseops": "romeerp/parameter-golf-caseops-v1",
}
REMOTE = "datasets"  # folder of the repository that everything is in
PREFIX = "fineweb10B_"  # of a dataset's name, before its variant
CASEOPS = "sp8192_lossless_caps_caseops_v1_reserved"  # the variant "caseops" by its dataset's name
# What manifests call the transforms of text.
IN_MANIFESTS = {"none": "identity", "caseops": "lossless_caps_caseops_v1"}


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


@dataclass(frozen=True)
class Listed:
    """What a manifest says of one dataset; None where it is silent."""

    files: dict[str, int]
    """Shards of "train" and of "val"."""
    tokenizer: str
    """Path of its model in the repository's folder."""
    transform: str | None
    val_documents: int | None
    val_tokens: int | None


def download(variant: str, train_shards: int, root: Path, repo: str = "") -> Path:
    """Fetch the tokenizer, all validation shards and the first `train_shards` training shards; their folder.

    They come from the hub's `repo`, by default the challenge's, or the one that has what it lacks. They
    go to root/datasets/fineweb10B_{variant}/ and root/tokenizers/; files that are there and valid are
    kept. A dataset.json says which tokenizer the manifest gives for them. Raises UserError if the
    repository lacks one of them, the network fails, a file arrives damaged twice, or the validation
    documents are not all of the challenge's: those that lack are then among the training documents.
    """
    if variant != "caseops" and not re.fullmatch(r"sp\d+", variant):
        raise UserError(
            f"unknown variant {variant!r}: it is caseops, or 'sp' and the vocabulary size, such as sp1024"
        )
    if train_shards < 0:
        raise UserError(f"the number of training shards must not be negative, is {train_shards}")
    name = PREFIX + (CASEOPS if variant == "caseops" else variant)
    repo = repo or ELSEWHERE.get(variant, REPO)

    def get(remote: str, path: Path, check: Callable[[Path], object]) -> None:
        _get(repo, f"{REMOTE}/{remote}", path, root / ".download", check)

    manifest_path = root / "manifest.json"
    get("manifest.json", manifest_path, lambda path: _read_manifest(path, name))
    listed = _read_manifest(manifest_path, name)
    source = f"{repo}, {name}"
    if listed.files["train"] == LEAKING_SHARDS:
        _refuse_leak(source, 10_000, manifest_path)
    if listed.val_documents is not None:
        _refuse_leak(source, listed.val_documents, manifest_path)
    if train_shards > listed.files["train"]:
        raise UserError(
            f"{repo} has {listed.files['train']} training shards of {variant}, not {train_shards}"
        )
    model, dataset = root / "tokenizers" / PurePosixPath(listed.tokenizer).name, root / "datasets" / name
    get(listed.tokenizer, model, Tokenizer)
    tokenizer = Tokenizer(model)
    transform: Transform = "caseops" if variant == "caseops" else "none"
    require(
        tokenizer.transform == transform and listed.transform in (None, IN_MANIFESTS[transform]),
        f"{source}: the transform of {variant} is {transform}, but the manifest says"
        f" {listed.transform} and the tokenizer's pieces are of {tokenizer.transform}; name another --repo",
    )

    def get_shards(split: str, count: int) -> None:
        for index in range(count):
            file = shard_name(split, index)
            get(f"datasets/{name}/{file}", dataset / file, read_header)

    for split in ("val",) if transform == "none" else ("val", SIDECAR):
        get_shards(split, listed.files["val"])
    documents = _val_documents(source, dataset, tokenizer.bos_id, listed)
    get_shards("train", train_shards)
    splits = {"train": _on_disk(dataset, "train"), "val": _on_disk(dataset, "val", documents)}
    splits = {split: found for split, found in splits.items() if found.files}
    recipe = {"repository": repo, "dataset": name}
    write_record(dataset, Record(recipe, model.name, tokenizer.sha256, splits, transform=transform))
    return dataset


def variant_of(dataset: str) -> str:
    """The variant of the shards that a dataset's folder holds, by its name; empty for other data."""
    name = Path(dataset).name
    variant = name.removeprefix(PREFIX) if name.startswith(PREFIX) else ""
    return "caseops" if variant == CASEOPS else variant


def _refuse_leak(source: str, count: int, remains: Path) -> None:
    """UserError unless a dataset has all validation documents: the rest of them would be trained on."""
    require(
        count >= VAL_DOCUMENTS,
        f"{source}: {count:,} validation documents and not {VAL_DOCUMENTS:,}, so that the others are among"
        f" the training documents and a score would be of text that was trained on; delete {remains} and"
        " name another --repo",
    )


def _val_documents(source: str, dataset: Path, bos_id: int, listed: Listed) -> int:
    """Documents that the validation shards hold; UserError if there are too few, or others than listed."""
    val = open_split(dataset, "val")
    documents = len(val.find(bos_id))
    _refuse_leak(source, documents, dataset)
    found, said = (documents, len(val)), (listed.val_documents, listed.val_tokens)
    require(
        all(one in (None, other) for one, other in zip(said, found, strict=True)),
        f"{source}: the validation shards have {found} documents and tokens, but the manifest says {said};"
        f" delete {dataset} and try again",
    )
    return documents


def _on_disk(dataset: Path, split: str, documents: int | None = None) -> Split:
    """The shards of a split that are there, of this download or an earlier one, and its sidecar's."""
    paths = sorted(dataset.glob(f"fineweb_{split}_[0-9]*.bin"))
    files = [*paths, *sorted(dataset.glob(f"fineweb_{split}_bytes_[0-9]*.bin"))]
    sizes = {path.name: HEADER_BYTES + 2 * read_header(path) for path in files}
    return Split(sum(map(read_header, paths)), sizes, documents=documents)


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


def _read_manifest(path: Path, name: str) -> Listed:
    """What the manifest at `path` says of the dataset `name`; UserError if it is none, or lacks that."""
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
        datasets = {entry["name"]: entry for entry in manifest["datasets"]}
        if name not in datasets:
            raise UserError(f"the manifest lists no dataset {name}; it has {', '.join(datasets) or 'none'}")
        entry = datasets[name]
        tokenizers = {entry["name"]: entry for entry in manifest["tokenizers"]}
        tokenizer = tokenizers[entry["tokenizer_name"]]
        model, stats = tokenizer["model_path"], entry["stats"]
        # It names a file here as well as there.
        require(model == os.path.normpath(model) and model[:1] not in "./", f"tokenizer path {model!r}")
        said = {"num_val_docs": manifest.get("num_val_docs"), **stats}
        documents, tokens = said.get("docs_val", said["num_val_docs"]), said.get("tokens_val")
        return Listed(
            {split: int(stats[f"files_{split}"]) for split in ("train", "val")},
            str(model),
            tokenizer.get("text_transform"),
            None if documents is None else int(documents),
            None if tokens is None else int(tokens),
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is not a manifest of datasets ({type(error).__name__}: {error})") from None
