"""What is done to a finished model reads this: an artifact, alone or in its run's folder."""

from dataclasses import dataclass
from pathlib import Path

import torch

from pargolf.config.kinds import TENSOR_KINDS
from pargolf.config.schema import EvalConfig, RunConfig
from pargolf.config.settings import read_config
from pargolf.data.dataset import open_training, open_validation
from pargolf.data.shards import TokenStream
from pargolf.data.text import Text
from pargolf.data.tokenizer import Tokenizer
from pargolf.export.artifact import Artifact, check_state, read_artifact
from pargolf.model.gpt import GPT, tensor_kinds
from pargolf.run.folder import Run
from pargolf.system import machine
from pargolf.system.errors import Mismatch, UserError


def load_model(artifact: Artifact, dtype: torch.dtype = torch.float32) -> GPT:
    """The model of an artifact, ready to run, its matrices in `dtype` as activations are.

    Raises UserError if its tensors are not those of its config.
    """
    with torch.device("meta"):
        model = GPT(artifact.model, dtype)
    check_state(artifact.state, {name: tuple(p.shape) for name, p in model.named_parameters()})
    model = GPT(artifact.model, dtype)
    model.load_state_dict(artifact.state)
    slots = tensor_kinds(model)
    for name, parameter in model.named_parameters():
        if TENSOR_KINDS[slots[name].kind].role != "vector":
            parameter.data = parameter.data.to(dtype)  # once, where training's float32 are cast at every use
    return model.eval()


@dataclass(frozen=True)
class Target:
    """An artifact to score, alone or in its run's folder."""

    artifact: Path
    tokenizer: Path
    dataset: Path | None
    run: Run | None
    config: RunConfig | None

    @property
    def device_type(self) -> machine.Device:
        """Where to run it: a run that was trained on a GPU may be looked at where there is none."""
        on_cpu = self.config is not None and self.config.train.device == "cpu"
        return machine.resolve_device("cpu" if on_cpu else "auto")

    @property
    def dtype(self) -> torch.dtype:
        """The run's compute dtype; float32 for an artifact outside its run folder."""
        setting = self.config.train.dtype if self.config else "float32"
        # A run's is settled, but a config.json from elsewhere may still say "auto".
        dtype: torch.dtype = getattr(torch, machine.resolve_dtype(setting, self.device_type))
        return dtype

    @property
    def scoring(self) -> EvalConfig:
        """How the run is scored; the defaults for an artifact outside its run folder."""
        return self.config.eval if self.config else EvalConfig()

    def open(self) -> tuple[Artifact, Tokenizer]:
        """The artifact and its tokenizer; UserError if they do not belong together."""
        return open_artifact(self.artifact, Tokenizer(self.tokenizer))

    def validation(self) -> Text:
        """The text it is scored on; UserError if no dataset is known or it does not fit the tokenizer."""
        return open_validation(self._known_dataset(), Tokenizer(self.tokenizer))

    def training(self) -> TokenStream:
        """The tokens it learned from; UserError as `validation`."""
        return open_training(self._known_dataset(), Tokenizer(self.tokenizer))

    def _known_dataset(self) -> Path:
        if self.dataset is None:
            raise UserError(f"{self.artifact} lies in no run folder; name its shards with --dataset FOLDER")
        return self.dataset


def find_target(path: Path, tokenizer: Path | None = None, dataset: Path | None = None) -> Target:
    """The artifact at `path`, a run folder or a model.pgz, and what it is scored with.

    The tokenizer defaults to the tokenizer.model beside the artifact, the dataset to that of the run
    folder that it lies in; UserError if there is no artifact or no tokenizer.
    """
    folder = path if path.is_dir() else path.parent
    run = Run(folder) if (folder / "config.json").exists() else None
    if path.is_dir() and run is None:
        raise UserError(f"{path} is no run folder: it has no config.json")
    artifact = run.artifact if run and path.is_dir() else path
    if not artifact.exists():
        raise UserError(f"{artifact} does not exist; make it with `pargolf pack`")
    config = read_config(run.config) if run else None
    if tokenizer is None:
        tokenizer = Run(folder).tokenizer
        if not tokenizer.exists():
            raise UserError(
                f"no tokenizer.model lies beside {artifact}; name its tokenizer with --tokenizer FILE"
                " (in Python tokenizer=...)"
            )
    if dataset is None and config is not None:
        dataset = Path(config.data.dataset)
    return Target(artifact, tokenizer, dataset, run, config)


def open_artifact(path: Path, tokenizer: Tokenizer) -> tuple[Artifact, Tokenizer]:
    """Read an artifact, and its tokenizer with it; UserError if they do not belong together."""
    artifact = read_artifact(path)
    if tokenizer.sha256 != artifact.tokenizer_sha256:
        raise Mismatch(
            f"{tokenizer.path} is not the tokenizer {path} was trained with"
            f" (SHA-256 {tokenizer.sha256[:12]}, wanted {artifact.tokenizer_sha256[:12]})"
        )
    if tokenizer.vocab_size != artifact.model.vocab_size:
        raise UserError(
            f"{path} has a vocabulary of {artifact.model.vocab_size:,}, but its tokenizer"
            f" {tokenizer.vocab_size:,} pieces; pack the run again"
        )
    return artifact, tokenizer
