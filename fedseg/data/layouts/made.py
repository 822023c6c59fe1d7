"""Sites whose patients the package makes: for demonstrations, simulations and tests."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedseg.data.cases import Case
from fedseg.data.layouts.layout import Declared
from fedseg.data.phantoms.table import phantom_of
from fedseg.study import Study

COHORT = 1  # seed of a study's made patients


@dataclass(frozen=True)
class MadeEntry:
    """One made patient."""

    patient: str
    seed: int

    @property
    def case(self) -> str:
        """The patient."""
        return self.patient

    @property
    def subject(self) -> str:
        """The patient."""
        return self.patient

    @property
    def images(self) -> tuple[Path, ...]:
        """None."""
        return ()

    @property
    def name(self) -> str:
        """The patient."""
        return self.patient

    def remarks(self) -> Sequence[str]:
        """Nothing to say."""
        return ()

    def load(self, site: str, study: Study) -> Case:
        """Make the patient; as many times as one likes, it is the same."""
        return phantom_of(study, FIELD, REMEDY).site_case(site, self.patient, self.seed, study)


FIELD, REMEDY = "[data] layout = 'phantom'", "change those or give real images with another layout"


class Made:
    """As many patients as the study gives a site, of the phantom that fits it."""

    needs_folder = False
    index = ""

    def entries(self, folder: Path, site: str, study: Study) -> Iterator[MadeEntry]:
        """An entry for every patient; raises `ConfigError` where no phantom fits the study."""
        phantom = phantom_of(study, FIELD, REMEDY)
        patients = next(member.patients for member in study.sites if member.id == site) or 0
        for number, seed in enumerate(phantom.site_seeds(site, patients, COHORT), 1):
            yield MadeEntry(f"sub-{number:03d}", seed)

    def modalities(self, folder: Path) -> tuple[str, ...]:
        """None."""
        return ()

    def declared(self, folder: Path, study: Study) -> Declared:
        """Nothing."""
        return Declared()

    def remarks(self, folder: Path, study: Study) -> Sequence[str]:
        """Nothing."""
        return ()
