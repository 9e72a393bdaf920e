"""Checkpoints: weights, optimizer state and progress in one safetensors file, replaced in one step."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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
    extended: tuple[int, ...] = ()
    """Steps at which it had been finished before, and was then extended."""


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
    state = {name: value for name, value in tensors.items() if not name.startswith("weight/")}
    _check_state(path, state, optimizers, progress)
    optimizers.load_state(state)
    return progress


def _check_state(path: Path, state: dict[str, Tensor], optimizers: Optimizers, progress: Progress) -> None:
    """UserError unless the optimizer state is what these optimizers keep: they would read other memory."""
    wanted = optimizers.state_shapes(started=progress.step > 0)
    for name in wanted.keys() ^ state.keys():
        missing = "lacks" if name in wanted else "has the foreign"
        raise UserError(f"checkpoint {path} is damaged (it {missing} {name}); remove it to train anew")
    for name, shape in wanted.items():
        tensor = state[name]
        if tensor.shape != shape or tensor.dtype != torch.float32 or not tensor.isfinite().all():
            raise UserError(
                f"checkpoint {path} is damaged ({name} is no finite float32 of shape {tuple(shape)});"
                " remove it to train anew"
            )


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


def _progress(values: dict[str, Any]) -> Progress:
    """Of a checkpoint's metadata; ValueError, KeyError or TypeError if they are no progress."""
    known = {"extended": (), **values}
    progress = Progress(
        int(known.pop("step")), float(known.pop("seconds")), bool(known.pop("finished")),
        tuple(int(step) for step in known.pop("extended")),
    )  # fmt: skip
    if known or progress.step < 0 or not 0 <= progress.seconds < math.inf:
        raise ValueError("no progress of a training")
    return progress


def _read(path: Path, with_tensors: bool = True) -> tuple[dict[str, Tensor], Progress]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            names = file.keys() if with_tensors else ()
            tensors: dict[str, torch.Tensor] = {name: file.get_tensor(name) for name in names}
            return tensors, _progress(json.loads(file.metadata()["progress"]))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; train the run first") from None
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"checkpoint {path} is damaged ({error}); remove it to train anew") from None
