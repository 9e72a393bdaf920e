"""What train_gpt.py can be seen to do, from its syntax alone: nothing of it is ever run.

A published train_gpt.py is often a short line that unpacks the code proper, such as
`exec(lzma.decompress(base64.b85decode("...")))`. Literals of that kind are unpacked here, with
their size capped, and read as well.
"""

import ast
import base64
import bz2
import lzma
import re
import sys
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pargolf.challenge import PACKAGES

LARGEST_CODE = 2_000_000  # bytes, as written and unpacked; the longest published script has 0.2 million
LARGEST_MEMORY = 128 << 20  # bytes that unpacking may take
DEEPEST_PACKING = 3  # layers of code that unpacks code
MOST_UNPACKED = 20  # calls of exec and eval that are looked into; published scripts have one or two


@dataclass(frozen=True)
class Source:
    """Code as written and every layer of code that it unpacks from literals."""

    trees: tuple[ast.Module, ...]
    opaque: tuple[str, ...]
    """Where code is run that cannot be seen: one line each."""


class Broken(Exception):
    """Code that does not compile. The message says where."""


class Newer(Broken):
    """Code that this Python cannot read, and a newer one may. The message says which."""


# What a newer Python reads, by what an older one says of it, and by the line it says it of.
NEWER = (
    ((3, 12), re.compile(r"f-string"), re.compile("")),
    ((3, 12), re.compile(r"unterminated string"), re.compile(r"(?i).*(?<!\w)(f|fr|rf)[\"']")),
    (
        (3, 12),
        re.compile(""),
        re.compile(r"\s*(type\s+\w+\s*(\[.*\])?\s*=|((async\s+)?def|class)\s+\w+\s*\[)"),
    ),
    ((3, 14), re.compile(r"multiple exception types"), re.compile("")),
    ((3, 14), re.compile(""), re.compile(r"(?i).*(?<!\w)(t|tr|rt)[\"']")),
)


def read_source(data: bytes) -> Source:
    """Parse Python code, and the code packed in it; Broken if a layer does not compile here."""
    trees: list[ast.Module] = []
    opaque: list[str] = []
    layers: list[tuple[bytes | str, int]] = [(data, 0)]
    tries, room = 0, LARGEST_CODE
    while layers:
        code, depth = layers.pop(0)
        where = "" if depth == 0 else " of the unpacked code"
        tree = _parse(code, where)
        trees.append(tree)
        for call in calls(tree):
            if isinstance(call.func, ast.Name) and call.func.id in ("exec", "eval") and call.args:
                tries += 1
                looks = tries <= MOST_UNPACKED and depth < DEEPEST_PACKING
                packed = _unpack(call.args[0], tree) if looks else None
                if packed is None or len(packed) > room:
                    opaque.append(f"line {call.lineno}{where} runs code that is only known when it runs")
                else:
                    layers.append((packed, depth + 1))
                    room -= len(packed)
    return Source(tuple(trees), tuple(opaque))


def _parse(code: bytes | str, where: str) -> ast.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old escapes in strings
            compile(code, "train_gpt.py", "exec", dont_inherit=True)
            return ast.parse(code)
    except SyntaxError as error:
        version = ".".join(map(str, sys.version_info[:2]))
        text = f"line {error.lineno}{where}: {error.msg} (Python {version})"
        if needed := _needs(error):
            raise Newer(f"{text}; Python {needed} or newer may read it: run the check with that") from None
        raise Broken(text) from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise Broken(f"it does not compile{where}: {error or type(error).__name__}") from None


def _needs(error: SyntaxError) -> str:
    """The Python whose syntax the line may be; "" if it is none newer than this one."""
    for version, message, line in NEWER:
        if sys.version_info < version and message.search(error.msg) and line.match(error.text or ""):
            return ".".join(map(str, version))
    return ""


def _unpack(node: ast.expr, tree: ast.Module) -> bytes | str | None:
    """The code that an expression of literals and decoders stands for; None if it is no such thing."""
    try:
        value = _literal(node, tree, 0)
    except Exception:  # decoders fail in many ways on bytes that were made to break them
        return None
    return value if isinstance(value, bytes | str) and len(value) <= LARGEST_CODE else None


def _literal(node: ast.expr, tree: ast.Module, depth: int) -> Any:
    """The value of the expression; an exception if anything in it could give another one when it runs."""
    if depth > 20:
        raise ValueError("too deep")
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return _literal(_constants(tree)[node.id], tree, depth + 1)
    if not isinstance(node, ast.Call):
        raise ValueError("no constant")
    if isinstance(node.func, ast.Attribute) and node.func.attr in ("encode", "decode"):
        encoding = [ast.literal_eval(a) for a in node.args]
        if node.keywords or encoding not in ([], ["utf-8"], ["utf8"], ["latin-1"]):
            raise ValueError("another encoding")
        value = _literal(node.func.value, tree, depth + 1)
        return value.encode(*encoding) if isinstance(value, str) else value.decode(*encoding)
    function = qualified(node.func, aliases(tree))
    options = {keyword.arg or "": keyword.value for keyword in node.keywords}
    if function not in DECODERS or (function != "compile" and len(node.args) != 1):
        raise ValueError("no decoder")
    value = _literal(node.args[0], tree, depth + 1)
    if function == "compile":
        return value
    data = value.encode() if isinstance(value, str) else value
    if function == "lzma.decompress":
        return _lzma(data, {name: _option(option) for name, option in options.items()})
    if options:
        raise ValueError("options unknown here")
    return DECODERS[function](data)


@lru_cache(maxsize=1)  # asked for again and again while a tree is read
def _constants(tree: ast.Module) -> dict[str, ast.expr]:
    """What names are set to that are set just once, by an assignment of the module."""
    names = (node for node in ast.walk(tree) if isinstance(node, ast.Name))
    bound = Counter(name.id for name in names if not isinstance(name.ctx, ast.Load))
    return {
        target.id: statement.value
        for statement in tree.body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name) and bound[target.id] == 1
    }


def _option(node: ast.expr) -> Any:
    """Constants, lists, dicts and lzma's own constants, as lzma.decompress takes them."""
    if isinstance(node, ast.Dict):
        return {_option(k): _option(v) for k, v in zip(node.keys, node.values, strict=True) if k}
    if isinstance(node, ast.List):
        return [_option(item) for item in node.elts]
    if isinstance(node, ast.Attribute) and node.attr.startswith(("FORMAT_", "FILTER_")):
        return getattr(lzma, node.attr)
    return ast.literal_eval(node)


def _lzma(data: bytes, options: dict[str, Any]) -> bytes:
    if not options.keys() <= {"format", "filters"}:
        raise ValueError("options unknown here")
    if any(f.get("dict_size", 0) > LARGEST_MEMORY for f in options.get("filters") or ()):
        raise ValueError("too much memory")
    if options.get("format") != lzma.FORMAT_RAW:  # which takes its needs from the filters alone
        options["memlimit"] = LARGEST_MEMORY
    return _whole(lzma.LZMADecompressor(**options), data)


def _whole(decompressor: Any, data: bytes) -> bytes:
    """The one stream that `data` holds; ValueError if it is too large or more follows it."""
    code: bytes = decompressor.decompress(data, LARGEST_CODE)
    if not decompressor.eof or decompressor.unused_data:
        raise ValueError("not one whole stream")
    return code


# What packs code in published scripts.
DECODERS: dict[str, Callable[[bytes], bytes]] = {
    "base64.b64decode": base64.b64decode,
    "base64.b85decode": base64.b85decode,
    "base64.a85decode": base64.a85decode,
    "bytes.fromhex": lambda data: bytes.fromhex(data.decode()),
    "zlib.decompress": lambda data: _whole(zlib.decompressobj(), data),
    "gzip.decompress": lambda data: _whole(zlib.decompressobj(31), data),
    "bz2.decompress": lambda data: _whole(bz2.BZ2Decompressor(), data),
    "lzma.decompress": lambda data: _lzma(data, {}),
    "compile": lambda data: data,  # which may be a text, too
}


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    """Every call in the tree."""
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


@lru_cache(maxsize=1)
def aliases(tree: ast.AST) -> dict[str, str]:
    """What imported names stand for: {"np": "numpy", "urlopen": "urllib.request.urlopen"}."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.split(".")[0]
                names[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def qualified(node: ast.expr, names: dict[str, str]) -> str:
    """The dotted name of a function, imports resolved; what is no chain of names gives "".

    `__import__("x").f` and `importlib.import_module("x").f` are "x.f".
    """
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if isinstance(node, ast.Name):
        parts.append(names.get(node.id, node.id))
    elif isinstance(node, ast.Call) and (module := dynamic_import(node, names)):
        parts.append(module)
    else:
        return ""
    return ".".join(reversed(parts))


def dynamic_import(call: ast.Call, names: dict[str, str]) -> str | None:
    """The module that a call of __import__ or import_module names, "" if only known when it runs."""
    function = call.func
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
        name = f"{names.get(function.value.id, function.value.id)}.{function.attr}"
    else:
        name = names.get(function.id, function.id) if isinstance(function, ast.Name) else ""
    if name not in ("__import__", "importlib.import_module"):
        return None
    argument = call.args[0] if call.args else None
    return argument.value if isinstance(argument, ast.Constant) and isinstance(argument.value, str) else ""


@dataclass(frozen=True)
class ImportedModule:
    """One imported module."""

    module: str
    """Dotted; begins with "." if it is relative."""
    line: int
    optional: bool
    """Inside a `try` that goes on without it."""


def imports(tree: ast.Module) -> list[ImportedModule]:
    """Every import statement and every dynamic import of a literal name, in the tree."""
    optional = {
        id(node)
        for attempt in ast.walk(tree)
        if isinstance(attempt, ast.Try) and any(map(_catches_imports, attempt.handlers))
        for statement in attempt.body
        for node in ast.walk(statement)
    }
    names = aliases(tree)
    found: list[ImportedModule] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = ["." * node.level + (node.module or "")]
        elif isinstance(node, ast.Call) and (module := dynamic_import(node, names)):
            modules = [module]
        else:
            continue
        found += [ImportedModule(module, node.lineno, id(node) in optional) for module in modules]
    return found


def _catches_imports(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    caught = {node.id for node in ast.walk(handler.type) if isinstance(node, ast.Name)}
    return bool(caught & {"ImportError", "ModuleNotFoundError", "Exception", "BaseException"})


def third_party(source: Source) -> dict[str, bool]:
    """Packages beyond Python's own and the challenge's: name as imported -> whether it is optional."""
    packages: dict[str, bool] = {}
    for tree in source.trees:
        for found in imports(tree):
            top = found.module.split(".")[0]
            if top and top not in sys.stdlib_module_names and top not in PACKAGES:
                packages[top] = packages.get(top, True) and found.optional
    return packages


def strings(node: ast.AST) -> list[str]:
    """Every string literal below a node, pieces of f-strings included."""
    return [
        part.value
        for part in ast.walk(node)
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
    ]


def words(node: ast.AST) -> list[str]:
    """The literals below a node cut as a shell would roughly cut them."""
    return [word for text in strings(node) for word in re.split(r"[\s;&|()<>\"']+", text) if word]
