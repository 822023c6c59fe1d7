"""What sites' own files call structures and channels, held against each other before the first round.

Where one hospital writes 1 for what another calls 2, training mixes the two without a word. A declaration is read from
the head of an index such as `dataset.json`, never from a patient's file and without any number of patients, so that no
patient's presence changes it: a site may say it to everybody, and refuse by it.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from fedseg.errors import ConfigError
from fedseg.study import Study
from secagg.encoding import digest


@dataclass(frozen=True)
class Declaration:
    """What a site's files call the study's structures and channels, in the study's order; None where they say nothing.

    Names are without case, spaces and signs. Equal declarations have equal digests.
    """

    structures: tuple[str, ...] | None = None
    channels: tuple[str, ...] | None = None
    space: str | None = None

    @property
    def digest(self) -> bytes:
        """32 bytes."""
        return digest("declared", json.dumps(asdict(self), sort_keys=True))


def agree(said: Mapping[str, Declaration], study: Study) -> None:
    """Hold the sites' declarations against each other.

    Raises:
        ConfigError: two declare something else of the same structure or channel; names the odd one out.
    """
    if odd := odd_ones(said, study):
        raise ConfigError(next(iter(odd.values())))


def odd_ones(said: Mapping[str, Declaration], study: Study) -> dict[str, str]:
    """Sites that declare something else than most do, each with a sentence; all of them where no two agree."""
    found: dict[str, str] = {}
    for what, names in (("structures", study.structures), ("channels", study.data.modality), ("space", ("",))):
        for number, name in enumerate(names):
            here = {site: _part(getattr(declared, what), number) for site, declared in said.items()}
            here = {site: value for site, value in here.items() if value}
            counted = Counter(here.values()).most_common()
            if len(counted) > 1:
                usual = counted[0][0] if counted[0][1] > counted[1][1] else ""
                sentence = _odd_one(what, name, here, usual)
                found |= {site: sentence for site, value in here.items() if value != usual and site not in found}
    return found


def _odd_one(what: str, name: str, said: Mapping[str, str], usual: str) -> str:
    odd = [f"{site} '{value}'" for site, value in said.items() if value != usual]
    others = f", the others '{usual}'" if usual else ""
    of = {"structures": f"what the study calls '{name}'", "channels": f"the channel '{name}'"}.get(what, "their space")
    return (
        f"sites' files declare {of} differently: {', '.join(odd)}{others}; compare what their labels and channels are, "
        "and correct the declaration (dataset.json) of whoever is wrong, or remove it"
    )


def _part(names: Sequence[str] | str | None, number: int) -> str:
    if names is None or isinstance(names, str):
        return names or ""
    return names[number] if number < len(names) else ""
