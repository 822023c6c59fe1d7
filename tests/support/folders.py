"""Folders of images as hospitals keep them, small and made up."""

import json
import stat
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np

from fedseg.data.phantoms.fetal_scan import PROFILES, PhantomCase, phantom_case

AFFINE = np.diag([0.8, 0.8, 0.8, 1.0])


def brain(shape: tuple[int, int, int] = (40, 48, 36), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A noisy block in zeros; label 1 fills its low half along the first axis, 2 the high half."""
    image, label = np.zeros(shape, np.float32), np.zeros(shape, np.uint8)
    x, y, z = (extent // 4 for extent in shape)
    image[x:-x, y:-y, z:-z] = np.random.default_rng(seed).uniform(
        50, 100, (shape[0] - 2 * x, shape[1] - 2 * y, shape[2] - 2 * z)
    )
    label[x : shape[0] // 2, y:-y, z:-z], label[shape[0] // 2 : -x, y:-y, z:-z] = 1, 2
    return image, label


def write_feta(folder: Path, patients: int = 5) -> Path:
    for number in range(1, patients + 1):
        anat = folder / f"sub-{number:03}" / "anat"
        anat.mkdir(parents=True)
        for values, ending in zip(brain(seed=number), ("T2w", "dseg"), strict=True):
            nibabel.save(nibabel.Nifti1Image(values, AFFINE), anat / f"sub-{number:03}_{ending}.nii.gz")
    rows = [f"sub-{number:03}\t{20 + number}" for number in range(1, patients + 1)]
    (folder / "participants.tsv").write_text("\n".join(["participant_id\tGestational age", *rows]) + "\n")
    return folder


def write_decathlon(folder: Path, patients: int = 3) -> Path:
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    training = []
    for number in range(patients):
        image, label = brain((40, 40, 8), seed=number)
        name = f"P{number}.nii.gz"
        nibabel.save(
            nibabel.Nifti1Image(np.stack([image] * 3, -1).astype(np.uint8), np.eye(4)), folder / "imagesTr" / name
        )
        nibabel.save(nibabel.Nifti1Image((label == 1).astype(np.float32), np.eye(4)), folder / "labelsTr" / name)
        training.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
    (folder / "dataset.json").write_text(json.dumps({"training": training}))
    return folder


def write_hospitals(root: Path) -> Path:
    """Three sites of two phantom patients each, in FeTA's layout."""
    for i, site in enumerate(("site-a", "site-b", "site-c")):
        write_phantoms(root / site, [phantom_case(PROFILES["A"], seed=10 * i + k, size=32) for k in range(2)])
    return root


def write_phantoms(folder: Path, cases: Sequence[PhantomCase]) -> None:
    """`sub-001/anat/sub-001_rec-mial_T2w.nii.gz`, `..._dseg.nii.gz`, `participants.tsv`."""
    rows = ["participant_id\tPathology\tGestational age"]
    for number, case in enumerate(cases, 1):
        name = f"sub-{number:03d}"
        anat = folder / name / "anat"
        anat.mkdir(parents=True, exist_ok=True)
        for kind, voxels in (("T2w", case.image[0]), ("dseg", case.label)):
            file = nibabel.Nifti1Image(voxels, case.affine)
            file.header.set_xyzt_units("mm")
            nibabel.save(file, anat / f"{name}_rec-mial_{kind}.nii.gz")
        rows.append(f"{name}\tPhantom\t{case.weeks:.1f}")
    (folder / "participants.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def wider_than_its_owner(folder: Path) -> dict[str, int]:
    """Modes of what others than its owner may open, the folder itself and all below it, by name within it."""
    found = {}
    for path in (folder, *folder.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode != (0o700 if path.is_dir() else 0o600):
            found[path.relative_to(folder).as_posix()] = mode
    return found


def copied(source: Path, target: Path) -> Path:
    """A copy of a folder that may be changed, whatever the modes of the source."""
    for path in sorted(source.rglob("*")):
        place = target / path.relative_to(source)
        if path.is_dir():
            place.mkdir(parents=True, exist_ok=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(path.read_bytes())
    return target
