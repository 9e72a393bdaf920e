"""What the weights of a run look like after training and after quantization."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pargolf.analysis.spectra import MatrixSpectrum, Source, model_spectra
from pargolf.config.kinds import Slot
from pargolf.export.artifact import Artifact, check_state, read_artifact
from pargolf.export.quantize import most_bits
from pargolf.model.gpt import GPT, tensor_kinds
from pargolf.run.folder import Run, open_run
from pargolf.system.errors import UserError
from pargolf.system.files import write_json
from pargolf.train.checkpoint import load_weights


@dataclass(frozen=True)
class QuantizationError:
    """How far the artifact's tensors of one kind are from the checkpoint's."""

    kind: str
    """Of `config.kinds.TENSOR_KINDS`."""
    values: int
    """Parameters of this kind."""
    bits: int
    """Bits a value as set: 4-8 integers, 16 or 32 floats."""
    file_bits: float
    """Bits a value as they came out, compressed, with scales and names."""
    relative_rms: float
    """RMS of the error over RMS of the weights."""
    max_abs: float
    """Largest error of a single value."""
    worst: str
    """Tensor with the largest relative RMS error of its own."""
    worst_relative_rms: float


@dataclass(frozen=True)
class Channels:
    """A vector of one weight a channel, in three figures."""

    mean: float
    std: float
    """Over the channels, without correction."""
    negative: float
    """Share of the channels below 0."""


@dataclass(frozen=True)
class ResidMix:
    """What a layer starts from: stream * (the residual stream) + embedding * (the embedding)."""

    layer: int
    stream: Channels
    embedding: Channels


@dataclass(frozen=True)
class Skip:
    """Weight of an encoder layer's output where a decoder layer adds it."""

    layer: int
    """The decoder layer."""
    encoder_layer: int
    weight: Channels


@dataclass(frozen=True)
class Gain:
    """q_gain of one layer: what the normalized queries of each head are multiplied by."""

    layer: int
    heads: tuple[float, ...]
    mean: float
    min: float
    max: float
    sharpness: float
    """Mean over heads of |gain| * sqrt(d_head): the largest logit, in nats, that attention can reach
    with normalized queries and keys."""


@dataclass(frozen=True)
class Analysis:
    """Everything that `pargolf analyze` finds; its fields are those of analysis.json."""

    run: str
    source: Source
    """Where mixes, skips and gains are from: the checkpoint, or the artifact if there is no checkpoint."""
    energy_loss: float
    """Share of a matrix's energy that `needed_rank` may leave out."""
    matrices: tuple[MatrixSpectrum, ...]
    """Every matrix of the checkpoint and of the artifact, where they are there."""
    quantization: tuple[QuantizationError, ...]
    """By kind; empty unless there are both checkpoint and artifact."""
    mixes: tuple[ResidMix, ...]
    """By layer."""
    skips: tuple[Skip, ...]
    """By decoder layer."""
    gains: tuple[Gain, ...]
    """By layer."""

    def of_source(self, source: Source) -> list[MatrixSpectrum]:
        """The matrices of the checkpoint or of the artifact."""
        return [m for m in self.matrices if m.source == source]


def analyze_run(folder: Path, energy_loss: float = 0.01) -> Analysis:
    """Look at the checkpoint of a run, its artifact, or both; the training need not be finished.

    Raises UserError if `folder` is no run with either, if one is damaged, or if `energy_loss` is
    not between 0 and 1.
    """
    if not 0 < energy_loss < 1:
        raise UserError(f"the energy loss must lie between 0 and 1, is {energy_loss}; 0.01 means 1 %")
    run, config = open_run(folder)
    models: dict[Source, GPT] = {}
    if run.checkpoint.exists():
        models["checkpoint"] = GPT(config.model)
        load_weights(run.checkpoint, models["checkpoint"])
    artifact = read_artifact(run.artifact) if run.artifact.exists() else None
    if artifact:
        models["artifact"] = GPT(config.model)
        shapes = {name: tuple(p.shape) for name, p in models["artifact"].named_parameters()}
        check_state(artifact.state, shapes)
        models["artifact"].load_state_dict(artifact.state)
    if not models:
        raise UserError(f"{folder} has neither checkpoint nor artifact; train it first: pargolf train")
    source, model = next(iter(models.items()))
    skips = model.skip_weights.detach().double() if model.skip_weights is not None else ()
    visits = model.config.visits
    quantization: tuple[QuantizationError, ...] = ()
    if artifact and source == "checkpoint":
        quantization = quantization_errors(model.state_dict(), tensor_kinds(model), artifact)
    return Analysis(
        run=run.name,
        source=source,
        energy_loss=energy_loss,
        matrices=tuple(row for name, m in models.items() for row in model_spectra(m, name, energy_loss)),
        quantization=quantization,
        mixes=tuple(ResidMix(layer, *map(channels, mix)) for layer, mix in _in_layers(model, "resid_mix")),
        skips=tuple(
            Skip(visits[len(skips) + i], visits[len(skips) - 1 - i], channels(weight))
            for i, weight in enumerate(skips)
        ),
        gains=tuple(gain(layer, heads, config.model.d_head) for layer, heads in _in_layers(model, "q_gain")),
    )


def save_analysis(folder: Path, analysis: Analysis) -> None:
    """Write analysis.json into the run's folder, in one step."""
    write_json(Run(folder).analysis, dataclasses.asdict(analysis))


def quantization_errors(
    trained: Mapping[str, Tensor], slots: Mapping[str, Slot], artifact: Artifact
) -> tuple[QuantizationError, ...]:
    """One row a kind; `trained`, `slots` and `artifact.state` have the same names."""
    rows = []
    for kind in dict.fromkeys(section.kind for section in artifact.sections):
        names = [name for name, slot in slots.items() if slot.kind == kind]
        weights = {name: trained[name].double() for name in names}
        errors = {name: artifact.state[name].double() - weights[name] for name in names}
        relative = {name: _relative_rms([errors[name]], [weights[name]]) for name in names}
        worst = max(names, key=lambda name: relative[name])
        sections = [section for section in artifact.sections if section.kind == kind]
        values = sum(section.values for section in sections)
        rows.append(
            QuantizationError(
                kind=kind,
                values=values,
                bits=most_bits(kind, max(weight.numel() for weight in weights.values()), artifact.export),
                file_bits=8 * sum(section.bytes for section in sections) / values,
                relative_rms=_relative_rms(list(errors.values()), list(weights.values())),
                max_abs=max(error.abs().max().item() for error in errors.values()),
                worst=worst,
                worst_relative_rms=relative[worst],
            )
        )
    return tuple(rows)


def channels(weight: Tensor) -> Channels:
    """A vector (d_model,) in figures."""
    return Channels(
        weight.mean().item(), weight.std(correction=0).item(), (weight < 0).double().mean().item()
    )


def gain(layer: int, heads: Tensor, d_head: int) -> Gain:
    """A layer's q_gain (n_heads,) in figures."""
    return Gain(
        layer=layer,
        heads=tuple(heads.tolist()),
        mean=heads.mean().item(),
        min=heads.min().item(),
        max=heads.max().item(),
        sharpness=heads.abs().mean().item() * math.sqrt(d_head),
    )


def _in_layers(model: GPT, attribute: str) -> list[tuple[int, Tensor]]:
    """(layer, tensor) of every parameter held under this name inside a layer, float64."""
    slots = tensor_kinds(model)
    return [
        (layer, p.detach().double())
        for name, p in model.named_parameters()
        if name.rpartition(".")[2] == attribute and (layer := slots[name].layer) is not None
    ]


def _relative_rms(errors: list[Tensor], weights: list[Tensor]) -> float:
    error, weight = (math.sqrt(sum(x.square().sum().item() for x in xs)) for xs in (errors, weights))
    # A tensor of zeros comes back as zeros: no error, and no division by zero.
    return error / max(weight, torch.finfo(torch.float64).tiny)
