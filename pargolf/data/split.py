"""Which documents are held out: a choice by the hash of their texts, so that it depends on nothing else."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from pargolf.system.errors import UserError


@dataclass(frozen=True)
class Survey:
    """What a stream of documents holds, without their texts: 48 bytes a document."""

    digests: np.ndarray
    """(n,) V32: SHA-256 of each document's UTF-8."""
    sizes: np.ndarray
    """(n,) int64: bytes of each."""
    sha256: str
    """Of all of them in their order, ends of documents included."""

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def equal(self) -> int:
        """Documents whose text an earlier one has, too."""
        return len(self) - len(np.unique(self.digests))


def survey(documents: Iterable[str]) -> Survey:
    """Read a stream of documents once."""
    digests, sizes, whole = [], [], hashlib.sha256()
    for text in documents:
        data = text.encode()
        whole.update(len(data).to_bytes(8, "little") + data)  # the length marks where documents end
        digests.append(hashlib.sha256(data).digest())
        sizes.append(len(data))
    # As void: NumPy's bytes would drop trailing zeros.
    return Survey(np.array(digests, "V32"), np.array(sizes, np.int64), whole.hexdigest())


def joined(a: Survey, b: Survey) -> Survey:
    """What two streams hold, one after the other."""
    parts = np.concatenate((a.digests, b.digests)), np.concatenate((a.sizes, b.sizes))
    return Survey(*parts, hashlib.sha256((a.sha256 + b.sha256).encode()).hexdigest())


def choose_validation(documents: Survey, fraction: float, most_bytes: int = 0) -> np.ndarray:
    """bool (n,): the documents to hold out.

    The max(1, round(fraction * n)) documents with the smallest SHA-256, or so many of them as fit into
    `most_bytes` (0: no limit). Equal documents stay on one side, so it may be a few less, or more where
    there would be none. Raises UserError if there are fewer than two different documents or the
    fraction is not between 0 and 1.
    """
    if not 0 < fraction < 1:
        raise UserError(f"the validation fraction must lie between 0 and 1, is {fraction}")
    order = np.argsort(documents.digests, kind="stable")
    ordered = documents.digests[order]
    # Where the documents before and after differ; equal ones follow each other.
    cuts = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    if not len(cuts):
        alike = f"; all {len(documents)} documents are equal" if len(documents) > 1 else ""
        raise UserError(
            f"one document cannot be split into training and validation text{alike};"
            " give more files, or the separator that stands between documents"
        )
    fits = cuts <= max(1, round(fraction * len(documents)))
    if most_bytes:
        fits &= np.cumsum(documents.sizes[order])[cuts - 1] <= most_bytes
    count = cuts[fits][-1] if fits.any() else cuts[0]
    chosen = np.zeros(len(documents), bool)
    chosen[order[:count]] = True
    return chosen


def sample(documents: Survey, among: np.ndarray, most_bytes: int) -> np.ndarray:
    """bool (n,): of the documents `among` (n,) bool, the smallest SHA-256 that fit; at least one."""
    order = np.argsort(documents.digests, kind="stable")
    order = order[among[order]]
    count = max(1, int(np.searchsorted(np.cumsum(documents.sizes[order]), most_bytes, side="right")))
    chosen = np.zeros(len(documents), bool)
    chosen[order[:count]] = True
    return chosen
