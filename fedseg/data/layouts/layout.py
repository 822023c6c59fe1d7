"""What every layout answers, so that no other room asks which layout a study has."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from fedseg.data.cases import Case
from fedseg.study import Study


class Entry(Protocol):
    """One case of a site, found and not read yet."""

    @property
    def patient(self) -> str:
        """Whose it is: the unit of privacy and of the split."""

    @property
    def name(self) -> str:
        """What errors and local reports call the case. Cases are in the order of their names."""

    def load(self, site: str, study: Study) -> Case:
        """Read the case and bring it onto the study's working grid.

        Raises:
            CaseError: a file is missing, damaged or inconsistent.
        """


class Layout(Protocol):
    """A way to keep a site's patients: who is a patient, where the channels of an image and its label come from.

    Attributes:
        needs_folder: whether the patients are in a folder that a person gives, or made by the package.
        index: the file of that folder that lists the patients, where there is one.
    """

    needs_folder: bool
    index: str

    def entries(self, folder: Path, site: str, study: Study) -> Iterator[Entry]:
        """The site's cases in any order.

        Args:
            folder: the site's own; without meaning where the layout needs none.
            site: the site's id.
            study: gives modality and sites.

        Raises:
            ConfigError: an index is missing or malformed.
        """
