"""The exported folder in transformers itself: the same logits, losses and texts as pargolf's model."""

import ast
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

import pargolf
from pargolf.config.presets import load_preset, overlay_names, preset_names
from pargolf.config.schema import ModelConfig
from pargolf.config.settings import model_from_dict, to_dict
from pargolf.export.artifact import read_artifact
from pargolf.huggingface.folder import export_target, modeling_source
from pargolf.run.target import find_target, load_model
from pargolf.score.sample import generate
from support import Dataset, shaken, write_run

pytestmark = pytest.mark.usefixtures("module_cache")
BOS = 1


def tiny(preset: str) -> ModelConfig:
    """The options of a preset in a tiny shape."""
    m = replace(load_preset(preset).model, vocab_size=512, seq_len=24, d_model=24, n_heads=4, kv_heads=2)
    ranks = {name: 3 for name, value in to_dict(m).items() if name.endswith("_rank") and value}
    return model_from_dict(to_dict(m) | ranks | {"rope_dims": min(m.rope_dims, 4)})


def load(folder: Path, **options: Any) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **options)
    assert not model.training
    return model


def export(c: ModelConfig, dataset: Dataset, folder: Path) -> tuple[Path, Path]:
    """An artifact with a model whose weights all matter, and its folder for transformers."""
    run = write_run(folder / "run", shaken(c), dataset.tokenizer)
    return run.artifact, export_target(find_target(run.folder), "huggingface", folder / "export")


# One stack of each model that presets and overlays make.
STACKS = [*(f"lowrank-q192+{name}" for name in reversed(overlay_names())), *preset_names()]
MODELS = {tiny(stack): stack for stack in STACKS}


@pytest.fixture(scope="module")
def folders(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return export(tiny("lowrank-q192"), dataset, tmp_path_factory.mktemp("seed"))


@pytest.fixture(scope="module")
def model(folders: tuple[Path, Path]) -> Any:
    return load(folders[1])


def tokens(rows: int, length: int) -> Tensor:
    return torch.randint(512, (rows, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("preset", MODELS.values())
def test_logits_loss_and_greedy_text_are_those_of_pargolf(
    preset: str, dataset: Dataset, tmp_path: Path
) -> None:
    artifact, folder = export(tiny(preset), dataset, tmp_path)
    ours, theirs = load_model(read_artifact(artifact)), load(folder)
    x = tokens(2, 24)
    with torch.no_grad():
        got = theirs(x, labels=x)
        torch.testing.assert_close(got.logits, ours.head(ours.trunk(x)), rtol=0, atol=1e-6)
        torch.testing.assert_close(got.loss, ours(x[:, :-1], x[:, 1:]))
    prompt = [BOS, 300, 301]
    greedy = list(generate(ours, prompt, 20, temperature=0))
    if BOS in greedy:
        greedy = greedy[: greedy.index(BOS) + 1]
    for use_cache in (True, False):
        given = torch.tensor([prompt])
        text = theirs.generate(given, max_new_tokens=20, do_sample=False, use_cache=use_cache)
        assert text[0].tolist() == prompt + greedy


def test_beams_and_batches_may_use_the_cache(model: Any) -> None:
    prompts = tokens(3, 5)
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": 511}
    whole, cached = (
        model.generate(prompts, num_beams=3, use_cache=use_cache, **options) for use_cache in (False, True)
    )
    assert torch.equal(whole, cached)
    batch = model.generate(prompts, **options)
    for row, prompt in zip(batch, prompts, strict=True):
        alone = model.generate(prompt[None], **options)[0]
        assert torch.equal(row[: len(alone)], alone)


@torch.no_grad()
def test_a_text_may_come_in_pieces(model: Any) -> None:
    x = tokens(2, 12)
    whole = model(x).logits
    first = model(x[:, :5], use_cache=True)
    assert isinstance(first.cache, DynamicCache)
    second = model(x[:, 5:], past_key_values=first.cache, logits_to_keep=3)
    torch.testing.assert_close(torch.cat((first.logits, second.logits), 1), whole[:, [*range(5), 9, 10, 11]])
    assert model(x).cache is None
    loose, *_ = model(x, return_dict=False)
    assert torch.equal(loose, whole)


@torch.no_grad()
def test_padding_at_the_right_changes_nothing(model: Any) -> None:
    x = tokens(2, 12)
    mask = torch.ones_like(x)
    mask[0, 8:] = 0
    labels = x.masked_fill(mask == 0, -100)
    got = model(x, attention_mask=mask, labels=labels)
    torch.testing.assert_close(got.logits[0, :8], model(x[:1, :8]).logits[0])
    short, long = (model(row, labels=row).loss for row in (x[:1, :8], x[1:]))
    torch.testing.assert_close(got.loss, (short * 7 + long * 11) / 18)


@torch.no_grad()
def test_padding_at_the_left_changes_nothing(model: Any) -> None:
    x = tokens(2, 12)
    mask = torch.ones_like(x)
    mask[0, :4] = 0
    padded = x.masked_fill(mask == 0, 0)
    got, alone = model(padded, attention_mask=mask).logits, model(x[:1, 4:]).logits[0]
    torch.testing.assert_close(got[0, 4:], alone)
    torch.testing.assert_close(got[1], model(x[1:]).logits[0])
    first = model(padded[:, :6], attention_mask=mask[:, :6], use_cache=True)
    second = model(padded[:, 6:], attention_mask=mask, past_key_values=first.cache)
    torch.testing.assert_close(second.logits[0], alone[2:])


@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"num_beams": 3}])
def test_a_padded_batch_writes_what_each_prompt_writes_alone(
    folders: tuple[Path, Path], model: Any, options: dict[str, Any]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folders[1])
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": 511, **options}
    prompts = ["The city", "A", "It was one of the"]
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    assert batch["attention_mask"].min() == 0
    texts = tokenizer.batch_decode(model.generate(**batch, **options), skip_special_tokens=True)
    for prompt, text in zip(prompts, texts, strict=True):
        alone = model.generate(**tokenizer(prompt, return_tensors="pt"), **options)
        assert text == tokenizer.decode(alone[0], skip_special_tokens=True)


def test_it_draws_by_default_as_pargolf_sample_does(model: Any) -> None:
    c = model.generation_config
    assert (c.bos_token_id, c.eos_token_id, c.pad_token_id) == (BOS, BOS, 0)
    assert (c.do_sample, c.temperature, c.top_k, c.max_new_tokens) == (True, 0.8, 50, 12)
    assert model.generate(torch.tensor([[BOS, 300]])).size(1) <= 14


@pytest.mark.parametrize(
    ("length", "options", "message"),
    [
        (25, {}, "25 tokens are more than the model's context of 24"),
        (4, {"attention_mask": torch.tensor([[0, 1, 0, 1]])}, "padding inside a text"),
        (4, {"attention_mask": torch.tensor([[1, 1, 1, 0]]), "use_cache": True}, "padding"),
        (4, {"attention_mask": torch.ones(1, 1, 4, 4).tril()}, "attention_mask is"),
        (4, {"attention_mask": torch.tensor([[0, 1, 1]])}, "not a row of 4"),
        (4, {"position_ids": torch.arange(4)[None]}, "give no position_ids"),
    ],
)
def test_what_the_model_cannot_do_is_refused(
    model: Any, length: int, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        model(tokens(1, length), **options)


def test_a_cache_of_fixed_size_is_refused(model: Any) -> None:
    with pytest.raises(ValueError, match="takes a DynamicCache, not a StaticCache"):
        model.generate(tokens(1, 3), max_new_tokens=3, cache_implementation="static")


@torch.no_grad()
def test_in_bfloat16_it_computes_as_pargolf_does(folders: tuple[Path, Path]) -> None:
    artifact, folder = folders
    ours = load_model(read_artifact(artifact), torch.bfloat16)
    x = tokens(2, 24)
    torch.testing.assert_close(load(folder, dtype=torch.bfloat16)(x).logits, ours.head(ours.trunk(x)))


@torch.no_grad()
def test_a_saved_copy_is_a_whole_folder(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "copy")
    assert (tmp_path / "copy/modeling_pargolf.py").read_text() == modeling_source()
    x = tokens(1, 24)
    assert torch.equal(load(tmp_path / "copy")(x).logits, model(x).logits)
    assert model.get_input_embeddings() is model.model.embed


def imported(source: str) -> set[str]:
    """Packages and modules that a source imports, by their full names."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_the_code_stands_alone(tmp_path: Path) -> None:
    source = modeling_source()
    packages = {name.partition(".")[0] for name in imported(source)}
    assert packages - sys.stdlib_module_names == {"numpy", "torch", "transformers"}
    file = tmp_path / "modeling_pargolf.py"
    file.write_text(source)
    # Undefined names, unused imports, names defined twice.
    lint = ["ruff", "check", "--isolated", "--select", "F,E9", "--target-version", "py311"]
    done = subprocess.run([sys.executable, "-m", *lint, file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    defined = {
        node.name for node in ast.parse(source).body if isinstance(node, ast.ClassDef | ast.FunctionDef)
    }
    assert {"GPT", "LowRank", "ContentRotation", "DepthAttention", "PargolfConfig"} <= defined
    assert not {"tensor_kinds", "take_weights", "UserError", "RunConfig"} & defined


def test_pargolf_itself_needs_no_transformers() -> None:
    for file in Path(pargolf.__file__).parent.rglob("*.py"):
        names = imported(file.read_text())
        assert "pargolf.huggingface.modeling" not in names, file
        assert not any(name.startswith("transformers") for name in names) or file.name == "modeling.py", file
