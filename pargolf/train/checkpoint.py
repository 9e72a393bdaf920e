"""Checkpoints: weights, optimizer state and progress in one safetensors file, replaced in one step."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from pargolf.model.gpt import GPT
from pargolf.optim.groups import Optimizers
from pargolf.system.errors import UserError
from pargolf.system.files import write_atomic


@dataclass(frozen=True)
class Progress:
    """How far a training run is."""

    step: int = 0
    """Optimizer steps done."""
    seconds: float = 0.0
    """Training time so far, without compilation, scoring and saving."""
    finished: bool = False


def save_checkpoint(path: Path, model: GPT, optimizers: Optimizers, progress: Progress) -> None:
    """Write everything a continued run needs.

    Raises UserError if the weights are no longer numbers, OSError if they cannot be written; the
    previous checkpoint then stays in place.
    """
    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            raise UserError(f"{name} holds NaN or infinity at step {progress.step}; lower the learning rates")
    tensors = {f"weight/{name}": value for name, value in model.state_dict().items()} | optimizers.state()
    # Cloned, since momentum buffers are views of one batch and safetensors stores no shared memory.
    tensors = {name: value.detach().cpu().clone() for name, value in tensors.items()}
    data = safetensors.torch.save(tensors, metadata={"progress": json.dumps(asdict(progress))})
    write_atomic(path, data)


def read_progress(path: Path) -> Progress:
    """How far the checkpoint is, without reading its tensors; UserError if it is damaged."""
    return _read(path, with_tensors=False)[1]


def load_checkpoint(path: Path, model: GPT, optimizers: Optimizers) -> Progress:
    """Put a checkpoint into the model and its optimizers; UserError if it is damaged or does not fit."""
    tensors, progress = _read(path)
    _load_weights(path, model, _weights(tensors))
    optimizers.load_state({name: value for name, value in tensors.items() if not name.startswith("weight/")})
    return progress


def load_weights(path: Path, model: GPT) -> Progress:
    """Put the weights of a checkpoint into `model`; UserError as `load_checkpoint`."""
    tensors, progress = _read(path)
    _load_weights(path, model, _weights(tensors))
    return progress


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint by name; UserError if it is missing or damaged."""
    return _weights(_read(path)[0])


def _weights(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("weight/"): x for name, x in tensors.items() if name.startswith("weight/")}


def _load_weights(path: Path, model: GPT, weights: dict[str, Tensor]) -> None:
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"checkpoint {path} does not fit the model: {' '.join(str(error).split())}") from None


def _read(path: Path, with_tensors: bool = True) -> tuple[dict[str, Tensor], Progress]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            names = file.keys() if with_tensors else ()
            tensors: dict[str, torch.Tensor] = {name: file.get_tensor(name) for name in names}
            return tensors, Progress(**json.loads(file.metadata()["progress"]))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; train the run first") from None
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"checkpoint {path} is damaged ({error}); remove it to train anew") from None
