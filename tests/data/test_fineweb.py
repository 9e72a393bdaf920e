import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest

from pargolf.challenge import VAL_DOCUMENTS
from pargolf.data import fineweb
from pargolf.data.dataset import open_validation
from pargolf.data.fineweb import CASEOPS, REPO, download, fetch, variant_of
from pargolf.data.record import is_whole, read_record
from pargolf.data.shards import open_split, write_shard
from pargolf.data.tokenizer import Tokenizer, train_tokenizer
from pargolf.system.errors import UserError

LOSSLESS = "lossless_caps_caseops_v1"
SHARDS = "datasets/datasets/fineweb10B_sp1024"
VAL = np.tile([1, 299], VAL_DOCUMENTS)
TEXT = ["the quick brown fox jumps over the lazy dog " * 20]


class Hub:
    """A fake hub in a folder; `damaged` files arrive cut short that many times."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.damaged: dict[str, int] = {}
        self.fetched: list[tuple[str, bool]] = []
        self.repos: set[str] = set()

    def fetch(self, repo: str, file: str, folder: Path, force: bool) -> Path:
        self.fetched.append((file, force))
        self.repos.add(repo)
        source = self.folder / file
        if not source.exists():
            raise UserError(f"cannot download {file}")
        data = source.read_bytes()
        if self.damaged.get(file, 0) > 0:
            self.damaged[file] -= 1
            data = data[: len(data) // 2]
        target = folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        return target

    def names(self) -> list[str]:
        return [Path(file).name for file, _ in self.fetched]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    folder = tmp_path / "hub"
    for name in ("train_000000", "train_000001", "train_000002"):
        write_shard(folder / SHARDS / f"fineweb_{name}.bin", np.arange(500))
    write_shard(folder / SHARDS / "fineweb_val_000000.bin", VAL)
    train_tokenizer(TEXT, 300, folder / "datasets/tokenizers/fineweb_1024_bpe.model")
    manifest = {
        "datasets": [
            {
                "name": "fineweb10B_sp1024",
                "tokenizer_name": "sp_bpe_1024",
                "stats": {"files_train": 3, "files_val": 1},
            }
        ],
        "tokenizers": [{"name": "sp_bpe_1024", "model_path": "tokenizers/fineweb_1024_bpe.model"}],
    }
    (folder / "datasets/manifest.json").write_text(json.dumps(manifest))
    hub = Hub(folder)
    monkeypatch.setattr(fineweb, "fetch", hub.fetch)
    return hub


def test_download_and_go_on(hub: Hub, tmp_path: Path) -> None:
    root = tmp_path / "data"
    download("sp1024", 2, root)
    dataset = root / "datasets" / "fineweb10B_sp1024"
    assert len(open_split(dataset, "train")) == 1000 and len(open_split(dataset, "val")) == len(VAL)
    assert Tokenizer(root / "tokenizers" / "fineweb_1024_bpe.model").vocab_size == 300
    assert (root / "manifest.json").exists()

    hub.fetched.clear()
    download("sp1024", 2, root)
    assert hub.fetched == []
    broken = dataset / "fineweb_train_000001.bin"
    broken.write_bytes(broken.read_bytes()[:-10])
    download("sp1024", 3, root)
    assert hub.names() == ["fineweb_train_000001.bin", "fineweb_train_000002.bin"]
    assert len(open_split(dataset, "train")) == 1500
    record = read_record(dataset)
    assert record is not None and record.splits["train"].tokens == 1500 and is_whole(record, dataset)
    record.check(dataset, Tokenizer(root / "tokenizers" / "fineweb_1024_bpe.model"))


@pytest.mark.parametrize(
    "file",
    [
        f"{SHARDS}/fineweb_val_000000.bin",
        "datasets/manifest.json",
        "datasets/tokenizers/fineweb_1024_bpe.model",
    ],
)
def test_damaged_file_is_fetched_once_more(hub: Hub, tmp_path: Path, file: str) -> None:
    hub.damaged[file] = 1
    download("sp1024", 1, tmp_path / "data")
    assert [force for name, force in hub.fetched if name == file] == [False, True]


def test_file_damaged_twice_is_an_error(hub: Hub, tmp_path: Path) -> None:
    file = f"{SHARDS}/fineweb_val_000000.bin"
    hub.damaged[file] = 9
    with pytest.raises(UserError, match=r"arrived damaged twice: .*truncated"):
        download("sp1024", 1, tmp_path / "data")
    assert hub.names().count("fineweb_val_000000.bin") == 2
    assert not list(tmp_path.glob("data/**/fineweb_val*"))


def test_missing_shard_and_bad_requests(hub: Hub, tmp_path: Path) -> None:
    root = tmp_path / "data"
    with pytest.raises(UserError, match="has 3 training shards of sp1024, not 4"):
        download("sp1024", 4, root)
    with pytest.raises(UserError, match="negative"):
        download("sp1024", -1, root)
    with pytest.raises(UserError, match="lists no dataset fineweb10B_sp9"):
        download("sp9", 1, root)
    with pytest.raises(UserError, match="unknown variant"):
        download("../sp1024", 1, root)
    (hub.folder / SHARDS / "fineweb_train_000001.bin").unlink()
    with pytest.raises(UserError, match=r"cannot download .*train_000001"):
        download("sp1024", 2, root)
    assert (root / "datasets" / "fineweb10B_sp1024" / "fineweb_train_000000.bin").exists()


@pytest.mark.parametrize("model", ["../../t.model", "tokenizers/../../t.model", "/tmp/t.model", ""])
def test_a_manifest_cannot_name_a_file_elsewhere(hub: Hub, tmp_path: Path, model: str) -> None:
    path = hub.folder / "datasets/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["tokenizers"][0]["model_path"] = model
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="tokenizer path"):
        download("sp1024", 1, tmp_path / "data")
    assert set(hub.names()) == {"manifest.json"}


@pytest.mark.parametrize(
    ("variant", "named", "expected"),
    [
        ("sp1024", "", REPO),
        ("sp8192", "", "kevclark/parameter-golf"),
        ("sp8192", "mine/shards", "mine/shards"),
    ],
)
def test_larger_vocabularies_are_in_another_repository(
    hub: Hub, tmp_path: Path, variant: str, named: str, expected: str
) -> None:
    path = hub.folder / "datasets/manifest.json"
    path.write_text(path.read_text().replace("sp1024", variant))
    (hub.folder / SHARDS).rename(hub.folder / SHARDS.replace("sp1024", variant))
    download(variant, 1, tmp_path / "data", named)
    assert hub.repos == {expected}
    record = json.loads((tmp_path / f"data/datasets/fineweb10B_{variant}/dataset.json").read_text())
    assert record["recipe"] == {"repository": expected, "dataset": f"fineweb10B_{variant}"}


def edit_manifest(hub: Hub, change: Callable[[dict[str, Any]], object]) -> None:
    path = hub.folder / "datasets/manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


@pytest.fixture
def caseops(hub: Hub) -> Hub:
    """The hub with what the repository of CaseOps has."""
    name = f"fineweb10B_{CASEOPS}"
    path = hub.folder / "datasets/manifest.json"
    path.write_text(path.read_text().replace("fineweb10B_sp1024", name))
    edit_manifest(hub, lambda manifest: manifest["tokenizers"][0].update(text_transform=LOSSLESS))
    folder = (hub.folder / SHARDS).rename(hub.folder / f"datasets/datasets/{name}")
    train_tokenizer(TEXT, 300, hub.folder / "datasets/tokenizers/fineweb_1024_bpe.model", "caseops")
    write_shard(folder / "fineweb_val_bytes_000000.bin", np.tile([0, 1], VAL_DOCUMENTS))
    return hub


def test_caseops_comes_with_its_sidecar_from_its_repository(caseops: Hub, tmp_path: Path) -> None:
    dataset = download("caseops", 2, tmp_path / "data")
    assert caseops.repos == {"romeerp/parameter-golf-caseops-v1"}
    assert dataset.name == f"fineweb10B_{CASEOPS}" and variant_of(str(dataset)) == "caseops"
    record = read_record(dataset)
    assert record is not None and record.transform == "caseops" and is_whole(record, dataset)
    assert record.splits["val"].documents == VAL_DOCUMENTS
    model = tmp_path / "data/tokenizers/fineweb_1024_bpe.model"
    assert open_validation(dataset, Tokenizer(model)).bytes == VAL_DOCUMENTS


@pytest.mark.parametrize("variant", ["caseops", "sp1024"])
def test_training_documents_that_are_validation_documents_are_refused(
    variant: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    hub: Hub = request.getfixturevalue("caseops" if variant == "caseops" else "hub")
    root = tmp_path / "data"

    def refused() -> None:
        with pytest.raises(UserError, match=r"10,000 validation documents and not 50,000.*trained on"):
            download(variant, 1, root)
        assert not [name for name in hub.names() if name.startswith("fineweb_train")]
        (root / "manifest.json").unlink()

    def stats(manifest: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = manifest["datasets"][0]["stats"]
        return found

    edit_manifest(hub, lambda manifest: stats(manifest).update(docs_val=10_000))
    refused()
    edit_manifest(
        hub, lambda manifest: (stats(manifest).pop("docs_val"), manifest.update(num_val_docs=10_000))
    )
    refused()
    edit_manifest(
        hub, lambda manifest: (manifest.pop("num_val_docs"), stats(manifest).update(files_train=1499))
    )
    refused()
    # A manifest that says nothing, or the wrong thing: the documents are counted.
    edit_manifest(hub, lambda manifest: stats(manifest).update(files_train=80, docs_val=50_000))
    (val,) = hub.folder.rglob("fineweb_val_0*.bin")
    write_shard(val, VAL[:20_000])
    refused()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"docs_val": 50_001},
            r"have \(50000, 100000\) documents and tokens, but the manifest says \(50001, None\)",
        ),
        ({"tokens_val": 7}, r"but the manifest says \(None, 7\)"),
    ],
)
def test_shards_of_another_manifest_are_refused(
    hub: Hub, change: dict[str, int], message: str, tmp_path: Path
) -> None:
    edit_manifest(hub, lambda manifest: manifest["datasets"][0]["stats"].update(change))
    with pytest.raises(UserError, match=message):
        download("sp1024", 1, tmp_path / "data")


@pytest.mark.parametrize("fault", ["name", "vocabulary"])
def test_another_transform_than_the_variant_s_is_refused(caseops: Hub, fault: str, tmp_path: Path) -> None:
    if fault == "name":
        edit_manifest(caseops, lambda manifest: manifest["tokenizers"][0].update(text_transform="v1"))
    else:
        train_tokenizer(TEXT, 300, caseops.folder / "datasets/tokenizers/fineweb_1024_bpe.model")
    with pytest.raises(UserError, match="the transform of caseops is caseops, but the manifest says"):
        download("caseops", 1, tmp_path / "data")


def test_hub_errors_become_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[tuple[tuple[object, ...], dict[str, object]]] = []

    def fail(*args: object, **options: object) -> str:
        calls.append((args, options))
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(UserError) as raised:
        fetch(REPO, "datasets/manifest.json", tmp_path, True)
    assert "no route to host" in str(raised.value) and "\n" not in str(raised.value)
    expected = {"repo_type": "dataset", "local_dir": tmp_path, "force_download": True}
    assert calls == [((REPO, "datasets/manifest.json"), expected)]
