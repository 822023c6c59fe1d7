"""Which of a site's channels a study asks for."""

from collections.abc import Sequence

from fedseg.errors import ConfigError

ALIASES = (
    ("t2f", "flair", "t2flair", "t2wflair"),
    ("t1c", "t1ce", "t1gd", "t1wce"),
    ("t1n", "t1", "t1w"),
    ("t2w", "t2"),
)
"""Names of one modality in BraTS 2012 to 2024, and what else they are called."""


def plain(name: str) -> str:
    """A modality's name without case and marks, and one for all that mean the same."""
    letters = "".join(letter for letter in name.lower() if letter.isalnum())
    return next((names[0] for names in ALIASES if letters in names), letters)


def told_apart(names: Sequence[str], where: str) -> None:
    """Refuse two modalities of one plain name, such as 'T1' and 'T1+': one of them would be taken for both.

    Raises:
        ConfigError: there are two; names them.
    """
    known: dict[str, str] = {}
    for name in names:
        if other := known.get(plain(name)):
            raise ConfigError(
                f"{where}: '{other}' and '{name}' are one modality to this package, which goes by letters and digits; "
                "call one of them otherwise, such as 'T1' and 'T1ce'"
            )
        known[plain(name)] = name


def chosen(wanted: Sequence[str], there: Sequence[str] | None, where: str) -> list[int]:
    """Positions of the study's modalities among a site's channels: by name, a subset in any order.

    Where no name fits at all and the number does, the order counts: names such as '0' say nothing.

    Raises:
        ConfigError: some are missing; or nothing says how many channels there are.
    """
    if there is None:
        return list(range(len(wanted)))
    names = [plain(name) for name in there]
    told_apart([name for name in there if plain(name) in map(plain, wanted)], where)
    missing = [name for name in wanted if plain(name) not in names]
    if not missing:
        return [names.index(plain(name)) for name in wanted]
    if len(missing) == len(wanted) == len(there):
        return list(range(len(wanted)))
    raise ConfigError(
        f"{where}: has the channels {', '.join(there)}, and "
        f"[data] modality asks for {', '.join(missing)}; correct either"
    )
