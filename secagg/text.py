"""Text files as people have them: saved by Notepad, by Excel, on a Mac, or not text at all.

A byte-order mark is taken off, UTF-16 and UTF-32 are read where they have one, and line ends are those of Unix. Nothing
is guessed: bytes without a mark are UTF-8, or refused in a sentence. No message holds what is in the file, which may be
a key.
"""

import codecs
from pathlib import Path

from secagg.errors import ConfigError

_MARKS = (  # UTF-32 first: its little-endian mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_KINDS = (
    (b"\x00\x05\x16\x07", "what macOS keeps beside a file of this name without '._' (AppleDouble)"),
    (b"\xd0\xcf\x11\xe0", "a file of Windows' own (Thumbs.db) or of old Office"),
    (b"PK\x03\x04", "a zip archive, or a document of Office"),
    (b"\x1f\x8b", "compressed (gzip)"),
    (b"%PDF", "a PDF"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"SQLite format 3", "a database (SQLite)"),
    (b"version https://git-lfs", "a pointer of Git LFS, and the file itself was not fetched"),
    (b"/annex/objects/", "a pointer of git-annex, and the file itself was not fetched"),
    (b"<!doctype", "a web page"),
    (b"<html", "a web page"),
)


def kind_of(start: bytes) -> str:
    """Recognise bytes that are no text by how they begin, such as "a PDF"; "" where they are nothing known."""
    start = start.removeprefix(codecs.BOM_UTF8)
    if start[128:132] == b"DICM":
        return "a DICOM file"
    return next((kind for magic, kind in _KINDS if start.lower().startswith(magic.lower())), "")


def byte_order_mark(data: bytes) -> bool:
    """Tell whether bytes begin with a byte-order mark of UTF-8, UTF-16 or UTF-32."""
    return data.startswith(tuple(mark for mark, _ in _MARKS))


def read_text(path: Path, *, names: bool = False) -> str:
    r"""The text of a file, whatever wrote it: without a byte-order mark, lines ended by ``\n``.

    Args:
        path: the file.
        names: keep bytes that are not UTF-8 as file names keep them (``surrogateescape``), so that a name in an old
            code page still finds its file and a remark in one does no harm; for lists of files.

    Raises:
        ConfigError: it is not text, or not in UTF-8: one sentence with the file and the line.
        OSError: it cannot be read.
    """
    data = path.read_bytes()
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    if what := kind_of(data):
        raise ConfigError(f"{path} is {what}, not text; give the text file itself")
    if encoding == "utf-8" and b"\x00" in data:
        raise ConfigError(f"{path} is not text, or UTF-16 without its mark; save it as UTF-8")
    try:
        text = data.decode(encoding, "surrogateescape" if names and encoding.startswith("utf-8") else "strict")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        eight = encoding.startswith("utf-8")
        found = "UTF-8 (Latin-1 or Windows-1252?)" if eight else f"{encoding.upper()}, as its first bytes say"
        raise ConfigError(f"{path}: line {line} is not {found}; save the file as UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")
