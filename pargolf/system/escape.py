"""Words of files that anybody may have made, to be shown."""


def visible(text: str, newline: str = "\\n") -> str:
    """`text` with its lines ended by `newline`, and escapes for what would not show, or move the cursor."""
    return "".join(
        char if char.isprintable() else newline if char == "\n" else char.encode("unicode_escape").decode()
        for char in text
    )
