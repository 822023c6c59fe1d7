"""All layouts, and who is listed at a site."""

from collections.abc import Mapping
from pathlib import Path

from fedseg.data.layouts.bids import Bids
from fedseg.data.layouts.brats import Brats
from fedseg.data.layouts.channels import told_apart
from fedseg.data.layouts.decathlon import Decathlon
from fedseg.data.layouts.dicom import Dicom
from fedseg.data.layouts.layout import Entry, Layout, PictureLayout
from fedseg.data.layouts.made import Made
from fedseg.data.layouts.medmnist import MedMnist
from fedseg.data.layouts.nnunet import NnUNet
from fedseg.data.layouts.patients import by_patient
from fedseg.data.layouts.pictures import Images
from fedseg.data.layouts.radiographs import Radiographs
from fedseg.data.layouts.rows import Rows
from fedseg.errors import ConfigError
from fedseg.study import Study

PICTURES: Mapping[str, PictureLayout] = {"images": Images(), "radiographs": Radiographs(), "medmnist": MedMnist()}

LAYOUTS: Mapping[str, Layout] = {
    "feta": Bids(),
    "bids": Bids(),
    "decathlon": Decathlon(),
    "nnunet": NnUNet(),
    "brats": Brats(),
    "table": Rows(),
    "dicom": Dicom(),
    **PICTURES,
    "phantom": Made(),
}


def layout_of(study: Study) -> Layout:
    """The study's layout."""
    return LAYOUTS[study.data.layout]


def entries(folder: Path | None, site: str, study: Study) -> list[Entry]:
    """The site's cases, each under its patient, sorted by name.

    Args:
        folder: the site's own; None where the layout needs none.
        site: a site of the study.
        study: gives the layout, and maybe who is a patient.

    Raises:
        ConfigError: the folder or its index is missing or malformed, it lists nobody, or nobody says who is a patient.
            With differential privacy an index may list nobody: refusing would tell that the last patient has left.
    """
    layout, name = layout_of(study), study.data.layout
    if not layout.needs_folder:
        return list(layout.entries(Path(), site, study))
    if folder is None:
        raise ConfigError(f"[data] layout = '{name}' needs images: give their folder with --data")
    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no such folder; give --data the folder that holds the site's images")
    told_apart(study.data.modality, "[data] modality")
    listed = sorted(layout.entries(folder, site, study), key=lambda entry: entry.name)
    if not listed and not (study.trust.claims_epsilon and layout.index and (folder / layout.index).exists()):
        raise ConfigError(f"{folder}: no patients in layout '{name}'; correct the folder or the layout")
    return by_patient(listed, folder, study)
