"""Text of others made fit for a terminal or a log: one line, without anything that acts instead of being read.

What a peer sends or a file holds may carry escape sequences, line breaks, characters that turn the reading direction
round, or halves of characters. Whoever prints such text, or puts it into an error, must pass it through here.
"""


def dialled(host: str, port: int) -> str:
    """HOST:PORT as people and programs read it; an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def printable(text: object, encoding: str = "utf-8") -> str:
    r"""The text in one line: whatever is not a visible character or a plain space is written as ``\\x1b``, ``\\u202e``.

    Args:
        text: anything; its `str` is taken.
        encoding: of where it goes; characters that it lacks are written in the same way.
    """
    shown = str(text)
    if not shown.isprintable():  # false for control, format and bidirectional characters, separators and surrogates
        shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in shown)
    return shown.encode(encoding, "backslashreplace").decode(encoding)
