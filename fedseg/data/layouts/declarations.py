"""What a layout found declared, held against the study."""

from collections.abc import Sequence
from typing import Any

from fedseg.data.declaration import Declaration
from fedseg.data.layouts.channels import plain
from fedseg.data.layouts.decathlon import IGNORE
from fedseg.data.layouts.layout import Declared
from fedseg.study import Study


def declaration_of(declared: Declared, site: str, study: Study) -> Declaration:
    """What a site may say of its index to the others: only names, in the study's order."""
    structures = None
    if declared.labels is not None:
        called = {values: name for name, values in declared.labels.items()}
        structures = tuple(plain(called.get(values, "")) for values in _values(site, study))
    channels = None if declared.channels is None else tuple(map(plain, declared.channels))
    return Declaration(structures, channels, None if declared.space is None else plain(declared.space))


def contradictions(declared: Declared, site: str, study: Study) -> list[str]:
    """Sentences on what cannot be meant: a structure's name at other label values, channels in another order."""
    said = []
    ours = {plain(name): (name, values) for name, values in zip(study.structures, _values(site, study), strict=True)}
    for name, values in (declared.labels or {}).items():
        if name == IGNORE and values in _values(site, study):
            said.append(f"the files declare label {_listed(values)} to be ignored, and in the study it is a structure")
        structure, expected = ours.get(plain(name), ("", values))
        if values != expected:
            said.append(
                f"the files declare label {_listed(values)} to be '{name}', and in the study '{structure}' is "
                f"{_listed(expected)}; correct the files' declaration or give this site's values as [[sites]] labels"
            )
    theirs, wanted = (list(map(plain, names)) for names in (declared.channels or (), study.data.modality))
    if theirs != wanted and sorted(theirs) == sorted(wanted):
        said.append(
            f"the files declare the channels {', '.join(declared.channels or ())}, and [data] modality lists "
            f"{', '.join(study.data.modality)}: another order; correct either"
        )
    return said


def other_names(declared: Declared, site: str, study: Study) -> list[str]:
    """Sentences on what is called otherwise than in the study, which may be meant."""
    said = []
    called = {values: name for name, values in (declared.labels or {}).items()}
    known = set(map(plain, study.structures))
    for structure, values in zip(study.structures, _values(site, study), strict=True):
        name = called.pop(values, structure)
        if plain(name) not in known:
            said.append(
                f"the files call label {_listed(values)} '{name}', and the study '{structure}'; is it the same?"
            )
    for values, name in called.items():
        if plain(name) not in known:
            said.append(f"the files declare label {_listed(values)}, '{name}', which the study does not have")
    theirs, wanted = (list(map(plain, names)) for names in (declared.channels or (), study.data.modality))
    if theirs and sorted(theirs) != sorted(wanted):
        names = ", ".join(declared.channels or ())
        said.append(f"the files call the channels {names}, and the study {', '.join(study.data.modality)}")
    return said


def _values(site: str, study: Study) -> tuple[tuple[int, ...], ...]:
    """Each structure's label values in the site's files."""
    return study.labels_of(site) or tuple((number,) for number in range(1, len(study.structures) + 1))


def _listed(values: Sequence[Any]) -> str:
    return " and ".join(map(str, values))
