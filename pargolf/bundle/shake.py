"""Which definitions a program needs: everything that can be reached from its entries.

Methods count by name: one is needed if its class is and its name is mentioned anywhere as an
attribute, keyword or string. That keeps a little too much, and never too little.
"""

from collections.abc import Mapping, Sequence

from pargolf.bundle.modules import Key, Node, is_made, mentions, read_module

# Methods that are called without being named: by Python itself, and by nn.Module's __call__.
CALLED_UNNAMED = {"forward"}


def reach(changed: Mapping[Key, Node], entries: Sequence[Key]) -> dict[Key, Node]:
    """The definitions and methods that `entries` need, themselves among them, in the order they were found.

    Of a class among the entries all methods count: whoever it is made for calls them. A class that
    is only one of several types in an annotation does not count: there may be no instance of it.
    `changed` holds the current form of definitions that are no longer as their modules have them.
    """
    live: dict[Key, Node] = {}
    methods: dict[Key, None] = {}  # of the live classes
    words: set[str] = set()
    waiting = [*entries]
    while waiting:
        key = waiting.pop()
        if key not in live:
            nodes = read_module(key[0]).nodes
            live[key] = changed.get(key, nodes[key])
            methods |= {other: None for other in nodes if other[:2] == key != other}
            found = mentions(key[0], live[key])
            words |= found.words
            waiting += [*found.definitions.values(), *found.members.values()]
            waiting += [other for other in found.unions.values() if not is_made(other)]
        if not waiting:
            called = [x for x in methods if x[:2] in entries or _is_called(x[-1], words)]
            waiting = [method for method in called if method not in live]
    return live


def _is_called(method: str, words: set[str]) -> bool:
    unnamed = method in CALLED_UNNAMED or (method.startswith("__") and method.endswith("__"))
    return method in words or unnamed
