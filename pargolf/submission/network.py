"""Calls of train_gpt.py that reach, or may reach, beyond the machine."""

import ast
from collections.abc import Iterator

from pargolf.submission.sources import Source, aliases, dynamic_import, imports, qualified, strings, words

# Modules that exist to talk to other machines: calling them is a network call, importing them
# alone only looks like one.
NETWORK_MODULES = (
    "aiohttp", "boto3", "ftplib", "gdown", "http", "httpx", "huggingface_hub", "imaplib", "paramiko",
    "poplib", "requests", "smtplib", "socket", "telnetlib", "torch.hub", "urllib.request", "urllib3",
    "websocket", "websockets", "xmlrpc",
)  # fmt: skip
HARMLESS_CALLS = frozenset({"socket.gethostname", "socket.getfqdn", "http.HTTPStatus"})
# Calls that download unless what they want is on the disk already.
MAYBE_DOWNLOADS = (
    "datasets", "kernels", "tiktoken.encoding_for_model", "tiktoken.get_encoding", "transformers", "wandb",
)  # fmt: skip

RUNNERS = (
    "asyncio.create_subprocess_exec", "asyncio.create_subprocess_shell", "os.exec", "os.popen",
    "os.posix_spawn", "os.spawn", "os.system", "pty.spawn", "subprocess.",
)  # fmt: skip
NETWORK_PROGRAMS = frozenset(
    {"apt", "apt-get", "aria2c", "aws", "conda", "curl", "easy_install", "ftp", "gsutil", "hf",
     "huggingface-cli", "nc", "npm", "pip", "pip3", "rsync", "scp", "sftp", "ssh", "uv", "wget"}
)  # fmt: skip
LOCAL_PROGRAMS = frozenset(
    {"cc", "c++", "free", "g++", "gcc", "hostname", "ldconfig", "lscpu", "lrzip", "nproc", "nvcc",
     "nvidia-smi", "uname", "which"}
)  # fmt: skip


def network_use(source: Source) -> tuple[list[str], list[str]]:
    """(calls that are network calls, uses that may be one), one line each."""
    certain: list[str] = []
    suspicious: list[str] = []
    for tree in source.trees:
        names = aliases(tree)
        called = [
            found for call in ast.walk(tree) if isinstance(call, ast.Call) for found in _call(call, names)
        ]
        certain += [f"line {line} {what}" for sure, line, what in called if sure]
        suspicious += [f"line {line} {what}" for sure, line, what in called if not sure]
        for found in imports(tree):
            module = _within(found.module, NETWORK_MODULES)
            if module and not any(f" {module}" in line for line in certain):
                suspicious.append(f"line {found.line} imports {found.module}")
    return certain, suspicious


def _call(call: ast.Call, names: dict[str, str]) -> Iterator[tuple[bool, int, str]]:
    """(whether it is certain, line, what) of a call that reaches or may reach the network."""
    function = qualified(call.func, names)
    if _within(function, NETWORK_MODULES) and function not in HARMLESS_CALLS:
        yield True, call.lineno, f"calls {function}"
    elif _within(function, MAYBE_DOWNLOADS):
        yield False, call.lineno, f"calls {function}, which may download"
    elif function.startswith(RUNNERS):
        yield from _program(call, function)
    elif dynamic_import(call, names) == "":
        yield False, call.lineno, "imports a module that is only known when it runs"
    elif any(
        text.startswith(("http://", "https://", "ftp://")) for part in call.args for text in strings(part)
    ):
        yield False, call.lineno, f"gives {function or 'a function'} an address"


def _program(call: ast.Call, function: str) -> Iterator[tuple[bool, int, str]]:
    """What a call that starts a program says of the network."""
    given = [
        word.rsplit("/", 1)[-1]
        for part in [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "args")]
        for word in words(part)
    ]
    reaching = [word for word in given if word in NETWORK_PROGRAMS]
    if reaching:
        yield True, call.lineno, f"calls {function} with {reaching[0]}"
    elif call.args and (not given or given[0] not in LOCAL_PROGRAMS):
        yield False, call.lineno, f"calls {function} with {given[0] if given else 'what is only known then'}"


def _within(name: str, modules: tuple[str, ...]) -> str:
    """The module of `modules` that `name` is, or lies in; "" if there is none."""
    return next((module for module in modules if name == module or name.startswith(module + ".")), "")
