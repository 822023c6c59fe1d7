"""A fingerprint of a site's images, as nnU-Net takes one: spacings, sizes, intensities, label volumes or classes.

It is computed from every patient and is not private: it stays at the site, and nothing sends it.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedseg.data.background import background_of, box_of, foreground
from fedseg.data.grid import slices_along, turned
from fedseg.data.layouts.dicom import DicomEntry
from fedseg.data.layouts.files import FileEntry
from fedseg.data.layouts.medmnist import RowEntry
from fedseg.data.layouts.pictures import PictureEntry
from fedseg.data.layouts.table import layout_of
from fedseg.data.scans import Scan
from fedseg.errors import CaseError, ConfigError
from fedseg.study import Study

PERCENTILES = (0.5, 5, 50, 95, 99.5)
SAMPLED = 10_000  # voxels of a case that stand for its intensities


@dataclass(frozen=True)
class Spread:
    """How values are spread: mean, standard deviation, least, greatest, and percentiles 0.5, 5, 50, 95, 99.5."""

    mean: float
    std: float
    low: float
    high: float
    percentiles: dict[str, float]

    @classmethod
    def of(cls, values: Iterable[float] | NDArray[np.float32]) -> "Spread":
        """Of at least one value."""
        array = np.asarray(list(values) if not isinstance(values, np.ndarray) else values, np.float64)
        cuts = dict(zip(map("{:g}".format, PERCENTILES), map(float, np.percentile(array, PERCENTILES)), strict=True))
        return cls(float(array.mean()), float(array.std()), float(array.min()), float(array.max()), cuts)


@dataclass
class Structure:
    """Attributes: cases that have it or are of this class, and the structure's volumes in millilitres there."""

    cases: int = 0
    millilitres: Spread | None = None


@dataclass
class Fingerprint:
    """One site's.

    Attributes:
        site: its id.
        cases: how many could be read.
        spacing: millimetres of a voxel along each axis of the file.
        size: voxels along each axis.
        voxel: the same millimetres along the patient's axes: x, y, z.
        extent: millimetres of what is not background along these.
        intensities: by modality, of the voxels of any structure, or of a whole picture.
        structures: by name; with classification the classes.
        left_out: sentences on cases that could not be read.
    """

    site: str
    cases: int = 0
    spacing: list[Spread] = field(default_factory=list)
    size: list[Spread] = field(default_factory=list)
    voxel: list[Spread] = field(default_factory=list)
    extent: list[Spread] = field(default_factory=list)
    intensities: dict[str, Spread] = field(default_factory=dict)
    structures: dict[str, Structure] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


def fingerprint(folder: Path, site: str, study: Study) -> Fingerprint:
    """The fingerprint of a site's folder, on the files' own grids.

    Raises:
        ConfigError: the patients are made, or the folder or its index is missing or malformed.
    """
    if not layout_of(study).needs_folder:
        raise ConfigError(f"[data] layout = '{study.data.layout}': its patients are made; there is nothing to look at")
    found = Fingerprint(site)
    spacings, sizes, voxels_xyz, extents = [], [], [], []
    inside: list[list[NDArray[np.float32]]] = [[] for _ in study.data.modality]
    volumes: dict[str, list[float]] = {name: [] for name in study.structures}
    classes: Counter[int] = Counter()
    for entry in layout_of(study).entries(folder, site, study):
        if not isinstance(entry, FileEntry | DicomEntry | PictureEntry | RowEntry):
            continue
        try:
            scan = entry.scan(study) if isinstance(entry, PictureEntry | RowEntry) else entry.scan(site, study)
        except CaseError as error:
            found.left_out.append(str(error))
            continue
        spacing = np.linalg.norm(scan.affine[:3, :3], axis=0)
        spacings.append(spacing)
        sizes.append(scan.image.shape[1:])
        voxel, extent = _extent(scan)
        voxels_xyz.append(voxel)
        extents.append(extent)
        label = np.asarray(scan.label)
        classes.update([] if study.structures else [int(label)])
        for channel, values in zip(inside, scan.image, strict=True):
            seen = values[label > 0] if study.structures else values.ravel()
            channel.append(seen[:: max(len(seen) // SAMPLED, 1)])
        for number, name in enumerate(study.structures, 1):
            voxels = int(np.isin(label, study.regions[number - 1]).sum())
            if voxels:
                volumes[name].append(voxels * float(np.prod(spacing)) / 1000)
    found.cases = len(sizes)
    if sizes:
        found.spacing = [Spread.of(axis) for axis in np.transpose(spacings)]
        found.voxel = [Spread.of(axis) for axis in np.transpose(voxels_xyz)]
        found.extent = [Spread.of(axis) for axis in np.transpose(extents)]
        found.size = [Spread.of(axis) for axis in np.transpose(sizes).astype(np.float64)]
    for name, channel in zip(study.data.modality, inside, strict=True):
        if channel and (together := np.concatenate(channel)).size:
            found.intensities[name] = Spread.of(together)
    found.structures = {
        name: Structure(len(those), Spread.of(those) if those else None) for name, those in volumes.items()
    }
    found.structures |= {name: Structure(classes[number]) for number, name in enumerate(study.study.classes)}
    return found


def _extent(scan: Scan) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Millimetres of a voxel, and of the box around what is not background, along the patient's axes."""
    image, affine = turned(scan.image, scan.affine)
    axis, voxel = slices_along(affine), np.linalg.norm(affine[:3, :3], axis=0)
    seen = np.logical_or.reduce([foreground(channel, background_of(channel, axis)) for channel in image])
    if scan.framed:
        return voxel, voxel * seen.shape
    return voxel, voxel * [side.stop - side.start for side in box_of(seen)]
