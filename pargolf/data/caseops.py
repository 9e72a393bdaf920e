"""CaseOps: capitals as operators before lower-case words, so that "The" and "the" share their pieces.

It is the challenge's transform `lossless_caps_caseops_v1` (thread 1729). A word is a maximal run of ASCII
letters; all else stays as it is.

| word                    | written                                  |
|-------------------------|------------------------------------------|
| the                     | the                                      |
| The, I                  | TITLE the, TITLE i                       |
| NASA                    | ALLCAPS nasa                             |
| iPhone, McDonald        | i CAPNEXT phone, TITLE mc CAPNEXT donald |
| an operator in the text | ESC operator                             |
"""

import re

from pargolf.system.errors import UserError

TITLE = "\ue001"
ALLCAPS = "\ue002"
CAPNEXT = "\ue003"
ESC = "\ue004"
OPERATORS = (TITLE, ALLCAPS, CAPNEXT, ESC)
OPERATOR_BYTES = 3  # of one that stands in the text itself, in UTF-8
NAMES = {ord(TITLE): "<TITLE>", ord(ALLCAPS): "<ALLCAPS>", ord(CAPNEXT): "<CAPNEXT>", ord(ESC): "<ESC>"}

# Words with a capital, each from its first letter on, and operators.
_TO_WRITE = re.compile(f"(?<![A-Za-z])[a-z]*+[A-Z][A-Za-z]*|[{''.join(OPERATORS)}]")
# Operators and what they work on; an operator alone is one that nothing follows to work on.
_WRITTEN = re.compile(f"{ESC}.|[{TITLE}{CAPNEXT}][a-z]|{ALLCAPS}[a-z]+|[{''.join(OPERATORS)}]", re.DOTALL)


def encode(text: str) -> str:
    """`text` with operators for its capitals; any text comes back by `decode`."""
    return _TO_WRITE.sub(lambda found: _write(found[0]), text)


def _write(word: str) -> str:
    if word in OPERATORS:
        return ESC + word
    if len(word) > 1 and word.isupper():
        return ALLCAPS + word.lower()
    later = re.sub("[A-Z]", lambda capital: CAPNEXT + capital[0].lower(), word[1:])
    return (TITLE if word[0].isupper() else "") + word[0].lower() + later


def restore(written: str) -> list[str]:
    """For each character of a transformed text what stands in the original: itself, its capital or nothing.

    Nothing stands for an operator. One without a letter that it could work on, as where a text is cut or a
    model wrote it, is passed over.
    """
    original = list(written)
    for found in _WRITTEN.finditer(written):
        operator, operand = found[0][0], found[0][1:]
        original[found.start()] = ""
        original[found.start() + 1 : found.end()] = operand if operator == ESC else operand.upper()
    return original


def decode(written: str) -> str:
    """The text that `encode` makes `written` of; UserError if there is none."""
    text = "".join(restore(written))
    if encode(text) != written:
        raise UserError("text with operators for capitals (CaseOps) is malformed: no text is written so")
    return text
