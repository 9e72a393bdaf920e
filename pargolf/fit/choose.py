"""Which of several forms of a model to keep: the one that serves the goal best on training text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from pargolf.config.kinds import TENSOR_KINDS, Slot
from pargolf.config.schema import ExportConfig
from pargolf.export.quantize import Quantized, to_floats
from pargolf.fit.price import Stored
from pargolf.system.errors import require


@dataclass(frozen=True)
class Choice:
    """A form of a model: its file, and the bits per byte that it loses on text not calibrated on."""

    form: str
    data: bytes
    loss: float

    def __str__(self) -> str:
        return f"{self.form} {len(self.data):,} bytes, {self.loss:+.6f} bits per byte of training text"


def choose(choices: Sequence[Choice], export: ExportConfig) -> Choice:
    """The one that loses least within `export.model_bytes`, or the smallest within `export.max_loss`.

    So none of the others is both smaller and better. Raises UserError if none keeps to the goal.
    """
    if export.model_bytes:
        smallest = min(len(choice.data) for choice in choices)
        require(
            smallest <= export.model_bytes,
            f"no rounding brings the model down to {export.model_bytes:,} bytes:"
            f" with zeros for all of its matrices it takes {smallest:,}",
        )
        within = [choice for choice in choices if len(choice.data) <= export.model_bytes]
        return min(within, key=lambda choice: (choice.loss, len(choice.data)))
    within = [choice for choice in choices if choice.loss <= export.max_loss]
    require(bool(within), f"even the best quality loses more than {export.max_loss:g} bits per byte")
    return min(within, key=lambda choice: (len(choice.data), choice.loss))


def as_floats(state: Mapping[str, Tensor], slots: Mapping[str, Slot], fitted: Stored) -> dict[str, Tensor]:
    """The tables that are worth trying in float16: `fitted` gives them all 8 bits that integers may have.

    A rare token's row may have to be finer than its largest value allows; no matrix inside a layer
    has been seen to gain by floats.
    """
    found = {}
    for name, slot in slots.items():
        form = fitted[name]
        if TENSOR_KINDS[slot.kind].role == "table" and isinstance(form, Quantized) and form.bits == 8:
            found[name] = to_floats(state[name], 16, name)
    return found
