"""Calls of train_gpt.py that reach, or may reach, beyond the machine."""

import ast
from collections.abc import Iterator

from pargolf.check.sources import Source, aliases, calls, dynamic_import, imports, qualified, strings, words

# Modules that exist to talk to other machines: calling them is a network call, importing them
# alone only looks like one.
NETWORK_MODULES = (
    "aiohttp", "boto3", "ftplib", "gdown", "http", "httpx", "huggingface_hub", "imaplib", "paramiko",
    "poplib", "requests", "smtplib", "socket", "telnetlib", "torch.hub", "urllib.request", "urllib3",
    "websocket", "websockets", "xmlrpc",
)  # fmt: skip
HARMLESS_CALLS = frozenset({"socket.gethostname", "socket.getfqdn", "http.HTTPStatus"})
# A socket of its own machine finds a free port for torch.distributed.
MAYBE_CALLS = ("socket.socket",)
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
    # Unpacked code may use what the code around it has imported. A name that nothing imports is a variable.
    layers = [(tree, aliases(tree)) for tree in source.trees]
    known = {"", *(name for _, names in layers for name in names)}
    called = {
        _within(qualified(call.func, names), NETWORK_MODULES)
        for tree, names in layers
        for call in calls(tree)
        if _root(call.func) in known
    }
    for tree, names in layers:
        for call in calls(tree):
            for sure, what in _call(call, names, known):
                (certain if sure else suspicious).append(f"line {call.lineno} {what}")
        suspicious += [
            f"line {found.line} imports {found.module}"
            for found in imports(tree)
            if _within(found.module, NETWORK_MODULES) not in {"", *called}
        ]
    return certain, suspicious


def _root(function: ast.expr) -> str:
    """The name that a chain of attributes begins with; "" if it begins with something else, as a call."""
    while isinstance(function, ast.Attribute):
        function = function.value
    return function.id if isinstance(function, ast.Name) else ""


def _call(call: ast.Call, names: dict[str, str], known: set[str]) -> Iterator[tuple[bool, str]]:
    """(whether it is certain, what) of a call that reaches or may reach the network."""
    function = qualified(call.func, names)
    of_module = _root(call.func) in known
    if of_module and _within(function, MAYBE_CALLS):
        yield False, f"calls {function}, which may reach other machines"
    elif of_module and _within(function, NETWORK_MODULES) and function not in HARMLESS_CALLS:
        yield True, f"calls {function}"
    elif of_module and _within(function, MAYBE_DOWNLOADS):
        yield False, f"calls {function}, which may download"
    elif function.startswith(RUNNERS):
        yield from _program(call, function)
    elif dynamic_import(call, names) == "":
        yield False, "imports a module that is only known when it runs"
    elif any(
        text.startswith(("http://", "https://", "ftp://")) for part in call.args for text in strings(part)
    ):
        yield False, f"gives {function or 'a function'} an address"


def _program(call: ast.Call, function: str) -> Iterator[tuple[bool, str]]:
    """What a call that starts a program says of the network."""
    given = [
        word.rsplit("/", 1)[-1]
        for part in [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "args")]
        for word in words(part)
    ]
    reaching = [word for word in given if word in NETWORK_PROGRAMS]
    if reaching:
        yield True, f"calls {function} with {reaching[0]}"
    elif call.args and (not given or given[0] not in LOCAL_PROGRAMS):
        yield False, f"calls {function} with {given[0] if given else 'what is only known then'}"


def _within(name: str, modules: tuple[str, ...]) -> str:
    """The module of `modules` that `name` is, or lies in; "" if there is none."""
    return next((module for module in modules if name == module or name.startswith(module + ".")), "")
