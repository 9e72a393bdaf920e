"""A run's curves in the format of somebody else's viewer: TensorBoard, or Weights & Biases.

The packages are extras; a run's own record (`run.folder`) is complete without them.
"""

import importlib.util
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

from pargolf.config.schema import RunConfig
from pargolf.config.settings import to_dict
from pargolf.run.folder import Run
from pargolf.system.errors import require
from pargolf.system.files import write_atomic

Track = Callable[[int, Mapping[str, float]], None]  # takes a step and its figures by name
PROJECT = "pargolf"  # of Weights & Biases, unless WANDB_PROJECT names another


def check_tracker(name: str) -> None:
    """Raise UserError if `train.track` names a package that is not installed."""
    require(
        name == "off" or importlib.util.find_spec(name) is not None,
        f"train.track {name} needs a package; install it with: pip install 'pargolf[{name}]'",
    )


@contextmanager
def tracked(config: RunConfig, run: Run, step: int) -> Iterator[Track]:
    """What writes figures to the tracker that `train.track` names, for the length of the block.

    A run that goes on from `step` goes on there, too: its later figures take the place of those that
    were written after its checkpoint.
    """
    if config.train.track == "tensorboard":
        with _tensorboard(run, step) as track:
            yield track
    elif config.train.track == "wandb":
        with _wandb(config, run) as track:
            yield track
    else:
        yield lambda step, figures: None


@contextmanager
def _tensorboard(run: Run, step: int) -> Iterator[Track]:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(run.tensorboard), purge_step=step + 1) as writer:

        def track(step: int, figures: Mapping[str, float]) -> None:
            for name, value in figures.items():
                writer.add_scalar(name, value, step)

        yield track


@contextmanager
def _wandb(config: RunConfig, run: Run) -> Iterator[Track]:
    import wandb

    if not run.wandb_id.exists():
        write_atomic(run.wandb_id, uuid.uuid4().hex.encode())
    asked = os.environ.get("WANDB_MODE")  # else nobody is asked for a key, and nothing is sent without one
    mode: Literal["offline"] | None = None if asked or wandb.login(prompt=False) else "offline"
    with wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT), name=run.name, id=run.wandb_id.read_text(),
        resume="allow", dir=run.folder, config=to_dict(config), mode=mode,
    ) as tracker:  # fmt: skip
        # Its own counter of steps refuses to go back to a checkpoint.
        tracker.define_metric("*", step_metric="step")

        def track(step: int, figures: Mapping[str, float]) -> None:
            tracker.log({"step": step, **figures})

        yield track
