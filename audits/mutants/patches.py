"""Planted bugs as data: a small edit each, and the detector that has to fail on it.

They lie in the TOML files beside this one. A text that does not occur exactly once in its file is an error, so that
mutants stay edits of the code that is there.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
LISTS = ("privacy", "protocol", "between_rounds")


class PatchError(Exception):
    """A mutant that is none: its text is not in the file, or what comes out is no Python."""


@dataclass(frozen=True)
class Mutant:
    """One planted bug.

    Attributes:
        number: 1 to 44 as in the list of the design, then on.
        name: how it is called on the command line.
        says: what is wrong with it, in a few words.
        file: from the repository's root.
        old: text of the file, which occurs there once.
        new: what takes its place.
        detector: the test (`tests/...::test_...`) or the audit that has to fail.
        shows: what has to stand in its failing line or in what it says, so that it fails for this reason.
        seconds: about, of the detector on one core.
        also: further edits that belong to the same bug, each with file, old and new: where two defences stand against
            it, one of them left would hide that the other is gone.
    """

    number: int
    name: str
    says: str
    file: str
    old: str
    new: str
    detector: str
    shows: str
    seconds: float = 2.0
    also: tuple[dict[str, str], ...] = ()

    def patched(self, tree: Path) -> dict[str, str]:
        """The mutated text of each of its files in a tree.

        Raises:
            PatchError: an old text is not there exactly once, or a new one does not compile.
        """
        texts: dict[str, str] = {}
        for edit in ({"file": self.file, "old": self.old, "new": self.new}, *self.also):
            file, old = edit["file"], edit["old"]
            text = texts.get(file) or (tree / file).read_text(encoding="utf-8")
            if (found := text.count(old)) != 1:
                raise PatchError(f"mutant {self.name}: its text occurs {found} times in {file}; write it anew")
            texts[file] = text.replace(old, edit["new"])
        for file, text in texts.items():
            try:
                compile(text, file, "exec")
            except SyntaxError as error:
                raise PatchError(f"mutant {self.name}: {error} in {file}") from error
        return texts


def mutants() -> dict[str, Mutant]:
    """All mutants by name, in the order of their numbers."""
    every = [
        Mutant(**{**row, "also": tuple(row.get("also", ()))})
        for name in LISTS
        for row in tomllib.loads(Path(__file__).with_name(f"{name}.toml").read_text(encoding="utf-8"))["mutant"]
    ]
    return {mutant.name: mutant for mutant in sorted(every, key=lambda mutant: mutant.number)}
