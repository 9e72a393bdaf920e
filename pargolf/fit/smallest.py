"""Codec and layout left at "auto": the pair under which file and code together are smallest.

One pair for a whole file. A submission's script carries the code of what its configuration can
meet, so each further codec costs more code than mixing saves (docs/formats.md has the figures).
"""

import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product

from torch import Tensor

from pargolf.config.kinds import Slot
from pargolf.config.schema import RunConfig
from pargolf.config.settings import with_codec
from pargolf.config.validation import TOP_LEVEL
from pargolf.export.artifact import lay_out, seal
from pargolf.export.quantize import Quantized
from pargolf.export.section import LAYOUTS


def pack_smallest(
    stored: Mapping[str, Quantized | Tensor],
    slots: Mapping[str, Slot],
    config: RunConfig,
    tokenizer_sha256: str,
    code_bytes: Callable[[RunConfig], int],
) -> bytes:
    """The file of `pack_stored` for `config`, codec and layout settled where they are "auto".

    `code_bytes` says how long the code is that decodes it. The file's header says what was chosen.
    """
    codecs = TOP_LEVEL if config.export.codec == "auto" else ("",)
    layouts = LAYOUTS if config.export.layout == "auto" else ("",)
    exports = [with_codec(config.export, *pair) for pair in product(codecs, layouts)]
    blobs = {x.layout: lay_out(stored, slots, x) for x in {x.layout: x for x in exports}.values()}
    with ThreadPoolExecutor() as pool:
        files = list(pool.map(lambda x: seal(blobs[x.layout], config.model, x, tokenizer_sha256), exports))
    if len(files) == 1:
        return files[0]
    # Bundling takes a second or so: not for files that lose even with the least code there is.
    least_code = code_bytes(replace(config, export=with_codec(config.export, "zlib", "bytes")))
    smallest, best = math.inf, b""
    for data, export in sorted(zip(files, exports, strict=True), key=lambda pair: len(pair[0])):
        if len(data) + least_code >= smallest:
            break
        total = len(data) + code_bytes(replace(config, export=export))
        if total < smallest:
            smallest, best = total, data
    return best
