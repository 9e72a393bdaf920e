"""pargolf: the best language model in a fixed number of bytes.

>>> import pargolf
>>> model = pargolf.load("runs/demo")

gives a trained model to score text and to write it: see `load` and `pargolf.library.Model`.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

    from pargolf.library import Model

__version__ = "0.1.0"
__all__ = ["load"]


def load(path: "str | os.PathLike[str]", tokenizer: "str | os.PathLike[str] | None" = None) -> "Model":
    """The model in an artifact: `path` is a run's folder, or a model.pgz.

    The tokenizer is the tokenizer.model beside it, or that of the path `tokenizer`. Nothing of the
    file is unpickled, so it may come from a stranger. Raises `pargolf.system.errors.UserError` if a
    file is missing or malformed, or the tokenizer is not the one that the model was trained with.
    """
    from pargolf.system.threads import wait_briefly

    wait_briefly()
    from pargolf.library import Model  # brings PyTorch, which `import pargolf` alone does not

    return Model(path, tokenizer)
