"""Which definitions a program needs: everything that can be reached from its entries.

Methods count by name: one is needed if its class is and its name is mentioned anywhere as an
attribute, keyword or string. That keeps a little too much, and never too little.
"""

from collections.abc import Mapping, Sequence

from pargolf.bundle.modules import Key, Mentions, Node, find_definition, find_module, mentions, read_module

# Methods that are called without being named: by Python itself, and by nn.Module's __call__.
CALLED_UNNAMED = {"forward"}


def reach(nodes: dict[Key, Node], entries: Sequence[Key]) -> dict[Key, Node]:
    """The definitions and methods that `entries` need, themselves among them, in the order they were found.

    Of a class among the entries all methods count: whoever it is made for calls them. `nodes` holds
    the current form of every definition that has been changed; others are read from their modules,
    and added to it.
    """
    live: dict[Key, Node] = {}
    words: set[str] = set()
    waiting = [*entries]
    while waiting:
        while waiting:
            key = waiting.pop()
            if key in live:
                continue
            if key not in nodes:
                nodes |= {k: n for k, n in read_module(key[0]).nodes.items() if k[:2] == key}
            live[key] = nodes[key]
            mentioned = mentions(nodes[key])
            words |= mentioned.words
            waiting += needed(key[0], mentioned)
        waiting = [key for key in nodes if key not in live and _is_called(key, live, words, entries)]
    return live


def needed(module: str, mentioned: Mentions) -> list[Key]:
    """The keys of the definitions that code in `module` refers to by name."""
    keys = [find_definition(module, name) for name in sorted(mentioned.names | mentioned.annotations)]
    for name, attribute in sorted(mentioned.members):
        if submodule := find_module(module, name):
            keys.append(find_definition(submodule, attribute))
    return [key for key in keys if key is not None]


def _is_called(key: Key, live: Mapping[Key, Node], words: set[str], entries: Sequence[Key]) -> bool:
    if len(key) < 3 or key[:2] not in live:
        return False
    name = key[2]
    unnamed = name in CALLED_UNNAMED or (name.startswith("__") and name.endswith("__"))
    return name in words or unnamed or key[:2] in entries
