"""Code read by its syntax: what is packed in it, what it imports, whom it calls."""

import ast
import base64
import bz2
import gzip
import lzma
import tracemalloc
import zlib

import pytest

from pargolf.check.network import network_use
from pargolf.check.sources import LARGEST_CODE, MOST_UNPACKED, Broken, imports, read_source, third_party
from submission_support import pack

HIDDEN = "import secret_package\n"
TEXT = HIDDEN.encode()
RAW = [{"id": lzma.FILTER_LZMA2}]

PACKED = {
    "lzma, base85": pack(HIDDEN),
    "zlib, base64": "import zlib,base64\nexec(zlib.decompress(base64.b64decode("
    f"{base64.b64encode(zlib.compress(TEXT))!r})))",
    "gzip literal": f"import gzip\nexec(gzip.decompress({gzip.compress(TEXT)!r}))",
    "bz2, from-imports": f"from bz2 import decompress as d\nexec(d({bz2.compress(TEXT)!r}).decode())",
    "lzma of the old form": f"import lzma\nexec(lzma.decompress({lzma.compress(TEXT, lzma.FORMAT_ALONE)!r}))",
    "raw lzma": "import lzma as L,base64 as B\nexec(L.decompress(B.b85decode("
    f'"{base64.b85encode(lzma.compress(TEXT, lzma.FORMAT_RAW, filters=RAW)).decode()}"),format=L.FORMAT_RAW,'
    'filters=[{"id":L.FILTER_LZMA2}]))',
    "through names and compile": f"import zlib\nDATA={zlib.compress(TEXT)!r}\nCODE=zlib.decompress(DATA)\n"
    "exec(compile(CODE,'train','exec'),{'__name__':'__main__'})",
    "bytes in a text": "import lzma\nexec(lzma.decompress("
    f"{lzma.compress(TEXT).decode('latin-1')!r}.encode('latin-1')))",
    "no packing at all": f"exec({HIDDEN!r})",
    "twice": pack(pack(HIDDEN)),
}


@pytest.mark.parametrize("name", PACKED)
def test_packed_code_is_read(name: str) -> None:
    source = read_source(PACKED[name].encode())
    assert "secret_package" in third_party(source)
    assert not source.opaque


BOMB = base64.b64encode(zlib.compress(zlib.compress(b"#" * 300_000_000, 9), 9))
OPAQUE = {
    "read from a file": "exec(open('x').read())",
    "changed before": "import zlib\nD=b''\nD=b'x'\nexec(zlib.decompress(D))",
    "encrypted": "exec(bytes(b ^ 7 for b in b'...'))",
    "damaged": "import zlib\nexec(zlib.decompress(b'abc'))",
    "damaged base64": "import base64\nexec(base64.b85decode('\\x00'))",
    "a second stream": f"import lzma\nexec(lzma.decompress({lzma.compress(b'') + lzma.compress(TEXT)!r}))",
    "a second member": f"import gzip\nexec(gzip.decompress({gzip.compress(b'') + gzip.compress(TEXT)!r}))",
    "added to": f"import zlib\nD={zlib.compress(b'pass')!r}\nD+=b'x'\nexec(zlib.decompress(D))",
    "another encoding": "exec(b'+AGEAPQAx-'.decode('utf-7'))",
    "another alphabet": "import base64\nexec(base64.b64decode(b'eD0x', b'-_'))",
    "other bits": f"import zlib\nexec(zlib.decompress({zlib.compress(b'pass')!r}, wbits=15))",
    "filters that are none": "import lzma\nexec(lzma.decompress(b'abc',filters=[3]))",
    "a bomb": f"import zlib,base64\nexec(zlib.decompress(zlib.decompress(base64.b64decode({BOMB!r}))))",
    "a dictionary of 1 GiB": "import lzma\nexec(lzma.decompress(b'abc',format=lzma.FORMAT_RAW,"
    "filters=[{'id':lzma.FILTER_LZMA2,'dict_size':1<<30}]))",
    "layers without end": pack(pack(pack(pack(HIDDEN)))),
}


@pytest.mark.parametrize("name", OPAQUE)
def test_what_cannot_be_unpacked_is_said_to_be_opaque(name: str) -> None:
    source = read_source(OPAQUE[name].encode())
    assert len(source.opaque) == 1
    assert "only known when it runs" in source.opaque[0]


def test_many_calls_are_not_all_looked_into() -> None:
    source = read_source(b"CODE = 'pass'\n" + b"exec(CODE)\n" * 1000)
    assert len(source.trees) == 1 + MOST_UNPACKED
    assert len(source.opaque) == 1000 - MOST_UNPACKED


def test_many_layers_together_are_not_larger_than_one_may_be() -> None:
    half = zlib.compress(b"#" * (LARGEST_CODE // 2))
    source = read_source(f"import zlib\nD={half!r}\n".encode() + b"exec(zlib.decompress(D))\n" * 3)
    assert len(source.trees) == 3
    assert len(source.opaque) == 1


def test_a_bomb_is_not_inflated() -> None:
    code = OPAQUE["a bomb"].encode()
    tracemalloc.start()
    read_source(code)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30_000_000


@pytest.mark.parametrize(
    "code", ["x = (", "def f(:", "\x00", "x = 1\n  y = 2", "(" * 5000, "x" + "+x" * 50_000, "\u20ac = 1"]
)
def test_broken_code_is_refused_in_one_line(code: str) -> None:
    with pytest.raises(Broken) as refusal:
        read_source(code.encode())
    assert "\n" not in str(refusal.value)


def test_imports_and_whether_they_are_optional() -> None:
    tree = ast.parse(
        "import a.b as c, d\nfrom .e import f\nfrom g.h import i\n"
        "try:\n    import brotli\nexcept (ImportError, OSError):\n    pass\n"
        "try:\n    import needed\nexcept KeyError:\n    pass\n"
        "import importlib\nimportlib.import_module('late')\n__import__('later')\n"
    )
    found = {one.module: one.optional for one in imports(tree)}
    assert found == {
        "a.b": False, "d": False, ".e": False, "g.h": False, "brotli": True, "needed": False,
        "importlib": False, "late": False, "later": False,
    }  # fmt: skip


def test_third_party_packages() -> None:
    source = read_source(
        b"import os, torch.nn, numpy as np, zstandard, sentencepiece\nfrom flash_attn_interface import f\n"
        b"try:\n    import zstandard, brotli\nexcept ImportError:\n    pass\n"
    )
    assert third_party(source) == {"zstandard": False, "flash_attn_interface": False, "brotli": True}


CALLS = [
    ("import requests\nrequests.get('x')", True, "requests.get"),
    ("import requests as r\nr.Session().get('x')", True, "requests.Session"),
    ("from urllib import request\nrequest.urlopen('x')", True, "urllib.request.urlopen"),
    ("import http.client as h\nh.HTTPSConnection('x')", True, "http.client.HTTPSConnection"),
    ("from socket import *\nimport socket\nsocket.create_connection(('x', 1))", True, "socket.create_con"),
    ("from huggingface_hub import snapshot_download as s\ns('x')", True, "huggingface_hub.snapshot"),
    ("import torch\ntorch.hub.load('a', 'b')", True, "torch.hub.load"),
    ("import importlib as i\ni.import_module('requests').get('x')", True, "requests.get"),
    ("import os\nos.system('cd /tmp && curl -O x')", True, "curl"),
    ("import os\nos.system(f'/usr/bin/wget {x}')", True, "wget"),
    (
        "import subprocess, sys\nsubprocess.check_call([sys.executable, '-m', 'pip', 'install', x])",
        True,
        "pip",
    ),
    ("import subprocess as s\ns.Popen(args=['git-lfs', 'curl'])", True, "curl"),
    ("import subprocess\nsubprocess.run(command)", False, "only known then"),
    ("import subprocess\nsubprocess.run(['make'])", False, "make"),
    ("import wandb\nwandb.init()", False, "wandb.init"),
    ("from kernels import get_kernel\nget_kernel('x')", False, "kernels.get_kernel"),
    ("import pandas\npandas.read_csv('https://x')", False, "an address"),
    ("__import__(name)", False, "only known when"),
    ("import urllib.request", False, "imports urllib.request"),
    ("import socket\ns = socket.socket()\ns.bind(('', 0))", False, "socket.socket"),
    ("import requests\nexec('requests.get(1)')", True, "requests.get"),
]


@pytest.mark.parametrize(("code", "certain", "words"), CALLS)
def test_network_use(code: str, certain: bool, words: str) -> None:
    faults, doubts = network_use(read_source(code.encode()))
    found = faults if certain else doubts
    assert any(words in line for line in found), (faults, doubts)
    assert not (doubts if certain else faults)


@pytest.mark.parametrize(
    "code",
    [
        "import subprocess\nsubprocess.run(['nvidia-smi'])\nsubprocess.run('nproc')",
        "import urllib.parse\nurllib.parse.quote('http')",
        "import socket\nprint(socket.gethostname())",
        "import torch.distributed as dist\ndist.init_process_group('nccl')",
        "model.eval()\ntorch.compile(model)\nrequests = {}\nlog('see the README')",
        "requests = []\nrequests.append(1)\nhttp.wait()\ndatasets.append(1)",
    ],
)
def test_no_network_use(code: str) -> None:
    assert network_use(read_source(code.encode())) == ([], [])
