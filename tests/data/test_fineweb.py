import json
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest

from pargolf.data import fineweb
from pargolf.data.fineweb import REPO, download, fetch
from pargolf.data.record import is_whole, read_record
from pargolf.data.shards import open_split, write_shard
from pargolf.data.tokenizer import Tokenizer, train_tokenizer
from pargolf.system.errors import UserError

SHARDS = "datasets/datasets/fineweb10B_sp1024"


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
    for name in ("train_000000", "train_000001", "train_000002", "val_000000"):
        write_shard(folder / SHARDS / f"fineweb_{name}.bin", np.arange(500))
    text = ["the quick brown fox jumps over the lazy dog " * 20]
    train_tokenizer(text, 300, folder / "datasets/tokenizers/fineweb_1024_bpe.model")
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
    assert len(open_split(dataset, "train")) == 1000 and len(open_split(dataset, "val")) == 500
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
