"""What every layout answers, so that no other room asks which layout a study has."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fedseg.data.cases import Case
from fedseg.study import Study


@dataclass(frozen=True)
class Declared:
    """What a site's own files say of its images; each is None where they say nothing.

    Attributes:
        labels: label values by the structure's name, without background; a region has several.
        channels: what the image's channels are called, in order.
        space: the reference space.
    """

    labels: Mapping[str, tuple[int, ...]] | None = None
    channels: tuple[str, ...] | None = None
    space: str | None = None


class Entry(Protocol):
    """One case of a site, found and not read yet."""

    @property
    def case(self) -> str:
        """What the case is called within its site: no two have the same."""

    @property
    def subject(self) -> str | None:
        """Whose it is, where the layout itself says so; None where there is nothing but a file's name."""

    @property
    def patient(self) -> str:
        """Whose it is: the unit of privacy and of the split. A layout gives the subject, or the case without one."""

    @property
    def images(self) -> tuple[Path, ...]:
        """Its files: one with all channels, or one for each modality; none for a made patient."""

    @property
    def name(self) -> str:
        """What errors and local reports call the case. Cases are in the order of their names."""

    def remarks(self) -> Sequence[str]:
        """Sentences on what was decided by a rule where the files contradict themselves; no voxel is read."""

    def load(self, site: str, study: Study) -> Case:
        """Read the case and bring it onto the study's working grid.

        Raises:
            CaseError: a file is missing, damaged or inconsistent.
        """


class Layout(Protocol):
    """A way to keep a site's patients: where the channels of an image and its label come from, and whose they are.

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

    def modalities(self, folder: Path) -> tuple[str, ...]:
        """What the channels of a folder's images are called, as its files say; none where it has another layout."""

    def declared(self, folder: Path, study: Study) -> Declared:
        """What the folder's files say of all its images; raises as `entries`."""

    def remarks(self, folder: Path, study: Study) -> Sequence[str]:
        """Sentences on what of the folder is left alone; raises as `entries`."""


class PictureLayout(Layout, Protocol):
    """A way to keep pictures of which each is of a class."""

    def classes(self, folder: Path) -> tuple[str, ...]:
        """What the classes are called, in the order that a study takes them in."""
