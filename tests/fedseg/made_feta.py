"""Made patients as files on a disk, in FeTA's layout."""

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib

from fedseg.data.phantoms.fetal_scan import PhantomCase


def write_feta(folder: Path, cases: Sequence[PhantomCase]) -> None:
    """`sub-001/anat/sub-001_rec-mial_T2w.nii.gz`, `..._dseg.nii.gz`, `participants.tsv`."""
    rows = ["participant_id\tPathology\tGestational age"]
    for number, case in enumerate(cases, 1):
        name = f"sub-{number:03d}"
        anat = folder / name / "anat"
        anat.mkdir(parents=True, exist_ok=True)
        for kind, voxels in (("T2w", case.image[0]), ("dseg", case.label)):
            file = nib.Nifti1Image(voxels, case.affine)
            file.header.set_xyzt_units("mm")
            nib.save(file, anat / f"{name}_rec-mial_{kind}.nii.gz")
        rows.append(f"{name}\tPhantom\t{case.weeks:.1f}")
    (folder / "participants.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
