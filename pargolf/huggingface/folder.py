"""An artifact's model as a folder for transformers, or as plain safetensors.

What is written are the weights as read back from the artifact, in float32. `modeling.py` is read and
never imported: it needs transformers, which pargolf does not.
"""

from pathlib import Path
from typing import Any, Literal

import jinja2
import safetensors.torch

from pargolf import __version__
from pargolf.bundle.single_file import bundle_classes
from pargolf.config.settings import to_dict
from pargolf.data.tokenizer import Tokenizer
from pargolf.export.artifact import Artifact
from pargolf.huggingface.tokenizer import tokenizer_files
from pargolf.model.gpt import GPT
from pargolf.run.target import Target, load_model
from pargolf.study.records import is_stale, read_json
from pargolf.system.errors import UserError
from pargolf.system.files import new_folder, write_atomic, write_json
from pargolf.system.templates import render

Format = Literal["huggingface", "safetensors"]

DOCSTRING = f"""A parameter-golf model for transformers, made by pargolf {__version__} from its modules."""


def export_target(target: Target, form: Format, out: Path | None = None) -> Path:
    """Write the folder `out`, by default exports/<run>-<form>, and return its path.

    Raises UserError, and writes nothing, if `out` already holds something, the artifact cannot be
    read, or transformers knows no tokenizer like its own.
    """
    name = target.run.folder.resolve().name if target.run else target.artifact.stem
    out = out or Path("exports") / f"{name}-{form}"
    with new_folder(out) as folder:
        artifact, tokenizer = target.open()
        model = load_model(artifact)
        if form == "safetensors":
            _write_weights(folder, model, prefix="")
            write_json(folder / "config.json", to_dict(artifact.model))
            write_atomic(folder / "tokenizer.model", target.tokenizer.read_bytes())
        else:
            _write_weights(folder, model, prefix="model.")
            files = _settings(artifact, tokenizer)
            for file, content in files.items():
                write_json(folder / file, content)
            write_atomic(folder / "modeling_pargolf.py", modeling_source().encode())
            write_atomic(folder / "README.md", _card(name, target, artifact, model).encode())
    return out


def modeling_source() -> str:
    """The source of modeling_pargolf.py, which is the same for all settings of the model."""
    names = ("PargolfConfig", "PargolfForCausalLM")
    return bundle_classes("pargolf.huggingface.modeling", names, DOCSTRING)


def _write_weights(folder: Path, model: GPT, prefix: str) -> None:
    state = {prefix + name: value for name, value in model.state_dict().items()}
    write_atomic(folder / "model.safetensors", safetensors.torch.save(state, metadata={"format": "pt"}))


def _settings(artifact: Artifact, tokenizer: Tokenizer) -> dict[str, Any]:
    """Content of the JSON files, by name."""
    files = tokenizer_files(tokenizer, artifact.model.seq_len)
    padding = files["tokenizer_config.json"]["pad_token"]
    ids = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.bos_id,
        "pad_token_id": files["tokenizer.json"]["model"]["vocab"][padding],
    }
    # As `pargolf sample` draws, and no longer than the model's context.
    tokens = min(128, artifact.model.seq_len // 2)
    generation = {**ids, "do_sample": True, "temperature": 0.8, "top_k": 50, "max_new_tokens": tokens}
    auto = {"AutoConfig": "PargolfConfig", "AutoModelForCausalLM": "PargolfForCausalLM"}
    config = {
        "model_type": "pargolf",
        "architectures": ["PargolfForCausalLM"],
        "auto_map": {name: f"modeling_pargolf.{made}" for name, made in auto.items()},
        "dtype": "float32",
        **to_dict(artifact.model),
        **ids,
    }
    return {"config.json": config, "generation_config.json": generation, **files}


def _card(name: str, target: Target, artifact: Artifact, model: GPT) -> str:
    """The model card; it tells the figures of result.json, if that is about this artifact."""
    run, result = target.run, None
    if run and target.artifact == run.artifact and run.result.exists():
        result = read_json(run.result)
        if result.get("bytes_model") != run.artifact.stat().st_size or is_stale(run, result):
            result = None
    settings = to_dict(target.config) if target.config else {}
    settings |= {"model": to_dict(artifact.model), "export": to_dict(artifact.export)}
    try:
        return render(
            "pargolf.huggingface",
            "README.md.jinja",
            name=name,
            parameters=sum(p.numel() for p in model.parameters()),
            model=artifact.model,
            config=target.config,
            settings=settings,
            result=result,
        )
    except (jinja2.UndefinedError, TypeError, ValueError) as error:
        raise UserError(f"the run's result.json lacks a figure ({error}); run `pargolf eval` again") from None
