"""The program's door for a submission: all stages; with `--eval MODEL.PGZ` the artifact's score alone.

It runs under torchrun or plain Python, on GPUs or a CPU. `bundle` makes one file of it and of what it
needs; as a module it runs `CONFIG` as it stands here.
"""

import os
import shutil
import sys
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from pargolf.config.environment import ENVIRONMENT
from pargolf.config.schema import RunConfig
from pargolf.config.validation import validate, validate_world
from pargolf.data.dataset import load_data, open_validation
from pargolf.data.tokenizer import Tokenizer
from pargolf.export.artifact import read_header
from pargolf.system import distributed, launch, machine
from pargolf.system.errors import UserError
from pargolf.train import stages
from pargolf.train.loop import Log, Training, resolve
from pargolf.train.recorder import Recorder

CONFIG = RunConfig()
ARTIFACT = Path("model.pgz")
LOGS = Path("logs")


def from_environment(config: RunConfig, environment: Mapping[str, str]) -> RunConfig:
    """`config` with the settings that `environment` gives; UserError if one is malformed or does not fit.

    WARMDOWN_ITERS also ends a warm-down that is a share of the run.
    """
    if "WARMDOWN_ITERS" in environment:
        environment = {"WARMDOWN_FRACTION": "0", **environment}
    for variable, setting in ENVIRONMENT.items():
        if variable not in environment:
            continue
        section, name = setting.split(".")
        part = getattr(config, section)
        kind = type(getattr(part, name))
        try:
            value = kind(environment[variable])
        except ValueError:
            raise UserError(
                f"{variable} must be of type {kind.__name__}, is {environment[variable]!r}"
            ) from None
        config = replace(config, **{section: replace(part, **{name: value})})
    return validate(config)


def run(arguments: list[str], environment: Mapping[str, str]) -> None:
    """Do what the command line and the environment ask for; UserError where they cannot be followed."""
    if arguments and (len(arguments) != 2 or arguments[0] != "--eval"):
        raise UserError("give no arguments to train, or --eval MODEL.PGZ to score an artifact")
    config = from_environment(CONFIG, environment)
    validate_world(config, launch.world_size())
    LOGS.mkdir(exist_ok=True)
    log_file = LOGS / f"{environment.get('RUN_ID', uuid.uuid4())}.txt"

    def log(line: str) -> None:
        if launch.is_main():
            print(line, flush=True)
            with open(log_file, "a", encoding="utf-8") as file:
                file.write(line + "\n")

    with distributed.world(machine.resolve_device(config.train.device)) as device:
        config = resolve(config, device.type)
        if arguments:
            score_artifact(config, Path(arguments[1]), device, log)
        else:
            train(config, device, log)


def code_bytes(config: RunConfig) -> int:
    """This file's."""
    return Path(__file__).stat().st_size


def train(config: RunConfig, device: torch.device, log: Log) -> None:
    """All stages, into ARTIFACT, or LOGS / ARTIFACT where one has been submitted already."""
    (taken,) = distributed.agree(float(ARTIFACT.exists()))
    compile_cache = LOGS / "compile-cache"
    if launch.is_main():
        shutil.rmtree(compile_cache, ignore_errors=True)
    distributed.barrier()
    data = load_data(config)
    training = Training.build(config, data.train, device)
    path = LOGS / ARTIFACT if taken else ARTIFACT
    stages.run(training, data, Recorder(), compile_cache, path, code_bytes, log)


def score_artifact(config: RunConfig, path: Path, device: torch.device, log: Log) -> None:
    """The last stages for an artifact of this script's settings."""
    header = read_header(path.read_bytes(), str(path))
    if (header.model, header.export) != (config.model, config.export):
        raise UserError(f"{path} was made with other settings than this script's")
    text = open_validation(Path(config.data.dataset), Tokenizer(Path(config.data.tokenizer)))
    dtype = getattr(torch, config.train.dtype)
    stages.score_file(path, text, config.eval, dtype, device, lambda artifact: code_bytes(config), log)


def main() -> None:
    """Run, with exit code 2 and one line on stderr for bad input and full disks."""
    try:
        run(sys.argv[1:], os.environ)
    except (UserError, OSError) as error:
        if launch.speaks():
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
