"""What a NIfTI header may say, and what of it is refused: real files contradict themselves."""

import gzip
import struct
import tracemalloc
from pathlib import Path

import nibabel
import numpy as np
import pytest
from monai.transforms import Resize

from fedseg.data.grid import grid_around
from fedseg.data.layouts.files import FileEntry, read_image
from fedseg.data.layouts.nifti import nifti_remarks, read_nifti, write_label_map
from fedseg.data.scans import Scan, working_case
from fedseg.errors import CaseError
from fedseg.study import Study, load_study
from tests.support.folders import AFFINE, brain

STUDY = Path(__file__).parents[2] / "studies/fetal.toml"


@pytest.fixture(scope="module")
def study() -> Study:
    return load_study(STUDY).replace(study={"structures": ["left", "right"]}, data={"size": 32})


def write(path: Path, values: np.ndarray, affine: np.ndarray = AFFINE, sform: int = 2, qform: int = 0) -> Path:
    image = nibabel.Nifti1Image(values, affine)
    image.set_sform(affine, sform)
    image.set_qform(affine, qform)
    image.to_filename(path)
    return path


def pack(path: Path, kind: str, place: int, *values: float) -> Path:
    """Change bytes of a header."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into(kind, content, place, *values)
    path.write_bytes(gzip.compress(bytes(content)))
    return path


def entry(folder: Path) -> FileEntry:
    return FileEntry("P", (folder / "i.nii.gz",), folder / "l.nii.gz")


def test_axes_of_one_voxel_are_nothing_and_itks_vectors_are_channels(tmp_path: Path) -> None:
    image = brain()[0]
    two = np.stack([image, 2 * image], -1)
    for values, channels in ((image[..., None], 1), (two, 2), (two[:, :, :, None, :], 2), (image[:, :, :1], 1)):
        volume = read_nifti(write(tmp_path / "i.nii.gz", values))
        assert volume.values.shape == (channels, *values.shape[:3])
        np.testing.assert_array_equal(volume.values[-1], values.reshape(*values.shape[:3], channels)[..., -1])


def test_what_is_no_number_a_voxel_is_refused_by_name(tmp_path: Path) -> None:
    image = brain()[0]
    colours = np.zeros(image.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    for values, said in (
        (image.astype(np.complex64), "holds complex values, of which half would be lost"),
        (colours, r"holds colours \(RGB\)"),
        (np.zeros((4, 4, 4, 2, 3), np.float32), "is 4 x 4 x 4 x 2 x 3 voxels: two axes beyond space"),
    ):
        with pytest.raises(CaseError, match=said):
            read_nifti(write(tmp_path / "i.nii.gz", values))


@pytest.mark.parametrize("kind", ["i1", "u1", "i2", "u2", "i4", "i8", "u8", "f8", ">f4", ">i2"])
def test_every_type_of_number_is_read(kind: str, tmp_path: Path) -> None:
    image = brain()[0].astype(int)
    header = nibabel.Nifti1Header(endianness=">" if kind[0] == ">" else "<")
    header.set_data_dtype(kind)
    nibabel.Nifti1Image(image.astype(kind), AFFINE, header).to_filename(tmp_path / "i.nii")
    np.testing.assert_array_equal(read_nifti(tmp_path / "i.nii").values[0], image)


def test_the_second_version_of_nifti_is_read(tmp_path: Path) -> None:
    nibabel.Nifti2Image(brain()[0], AFFINE).to_filename(tmp_path / "i.nii.gz")
    volume = read_nifti(tmp_path / "i.nii.gz")
    np.testing.assert_array_equal(volume.values[0], brain()[0])
    write_label_map(brain()[1], tmp_path / "i.nii.gz", tmp_path / "o.nii")
    np.testing.assert_allclose(nibabel.load(tmp_path / "o.nii").affine, AFFINE, atol=1e-6)


@pytest.mark.parametrize(("slope", "offset", "factor", "shift"), [(0, 7, 1, 0), (np.nan, np.nan, 1, 0), (2, -1, 2, -1)])
def test_a_slope_of_nothing_is_no_scale(slope, offset, factor, shift, tmp_path: Path) -> None:
    path = pack(write(tmp_path / "i.nii.gz", brain()[1].astype(np.int16)), "<ff", 112, slope, offset)
    np.testing.assert_array_equal(read_nifti(path).values[0], brain()[1] * float(factor) + shift)


def moved(by: float) -> np.ndarray:
    affine = AFFINE.copy()
    affine[0, 3] += by
    return affine


def test_a_qform_elsewhere_is_told_in_millimetres_and_the_sform_counts(tmp_path: Path) -> None:
    path = write(tmp_path / "i.nii.gz", brain()[0], AFFINE, 2, 1)
    assert nifti_remarks(path) == ()
    image = nibabel.load(path)
    image.set_qform(moved(12), 1)
    image.to_filename(path)
    assert nifti_remarks(path) == ("qform (code 1) and sform (code 2) place it up to 12 mm apart; the sform counts",)
    np.testing.assert_allclose(read_nifti(path).affine, AFFINE, atol=1e-6)


def test_geometry_that_cannot_be_true_at_once_is_refused(tmp_path: Path) -> None:
    image = brain()[0]

    def header(name: str) -> Path:
        path = write(tmp_path / "i.nii.gz", image, AFFINE, 2, 1)
        changed = nibabel.load(path)
        if name == "sizes":
            return pack(path, "<f", 80, 1.6)
        if name == "sides":
            changed.set_qform(np.diag([-0.8, 0.8, 0.8, 1]), 1)
        if name == "metres":
            changed.header["xyzt_units"] = 1
        if name == "quaternion":
            return pack(path, "<fff", 256, 0.8, 0.8, 0.8)
        changed.to_filename(path)
        return path

    for name, said in (
        ("sizes", "has voxels of 1.6 x 0.8 x 0.8 mm by its pixdim and 0.8 x 0.8 x 0.8 mm by its sform"),
        ("sides", "has left and right swapped between its qform and its sform"),
        ("metres", "says that its voxels are in metres"),
        ("quaternion", "has a qform whose quaternion is no rotation"),
    ):
        with pytest.raises(CaseError, match=said):
            read_nifti(header(name))


def test_a_quaternion_a_rounding_above_one_is_read_as_by_other_tools(tmp_path: Path) -> None:
    path = write(tmp_path / "i.nii.gz", brain()[0], AFFINE, 0, 1)
    pack(path, "<fff", 256, 0.0, 0.0, 1.000001)
    assert nibabel.aff2axcodes(read_nifti(path).affine) == ("L", "P", "S")


def test_a_slice_without_a_thickness_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "i.nii.gz", brain()[0][:, :, 18:19], AFFINE, 0, 1)
    with pytest.raises(CaseError, match=r"says that its voxels are 0.8 x 0.8 x 0 mm"):
        read_nifti(pack(path, "<f", 88, 0.0))


def test_headers_apart_by_a_rounding_are_one_grid(tmp_path: Path, study: Study) -> None:
    image, label = brain()
    write(tmp_path / "i.nii.gz", image)
    for shift, whole in ((3e-4, True), (0.03, True), (0.05, False)):
        write(tmp_path / "l.nii.gz", label, moved(shift))
        if whole:
            assert set(np.unique(entry(tmp_path).load("site-a", study).label)) == {0, 1, 2}
        else:
            with pytest.raises(CaseError, match=r"another affine than its image \(by up to 0.05 mm\)"):
                entry(tmp_path).load("site-a", study)
    rounded = AFFINE.copy()
    rounded[0, 0] = 0.7995
    write(tmp_path / "l.nii.gz", label, rounded)
    entry(tmp_path).load("site-a", study)


@pytest.mark.parametrize("axes", ["LPS", "SAR", "ARI"])
def test_a_label_map_in_another_order_of_axes_lies_on_the_same_grid(axes: str, tmp_path: Path, study: Study) -> None:
    image, label = brain()
    write(tmp_path / "i.nii.gz", image)
    expected = FileEntry("P", (tmp_path / "i.nii.gz",), write(tmp_path / "l.nii.gz", label)).load("site-a", study)
    turned = nibabel.Nifti1Image(label, AFFINE).as_reoriented(nibabel.orientations.axcodes2ornt(axes))
    turned.to_filename(tmp_path / "l.nii.gz")
    np.testing.assert_array_equal(entry(tmp_path).load("site-a", study).label, expected.label)


def test_a_label_map_is_one_whole_number_a_voxel(tmp_path: Path, study: Study) -> None:
    image, label = brain()
    write(tmp_path / "i.nii.gz", image)
    write(tmp_path / "l.nii.gz", np.stack([label == value for value in range(3)], -1).astype(np.uint8))
    with pytest.raises(CaseError, match="has 3 channels, and a label map has one value a voxel"):
        entry(tmp_path).load("site-a", study)
    write(tmp_path / "l.nii.gz", label * np.float32(1.00002))
    assert set(np.unique(entry(tmp_path).load("site-a", study).label)) == {0, 1, 2}


def test_a_modality_on_another_grid_is_refused(tmp_path: Path, study: Study) -> None:
    image = brain()[0]
    paths = [write(tmp_path / "a.nii.gz", image), write(tmp_path / "b.nii.gz", image, moved(1.6))]
    two = study.replace(data={"modality": ["T1w", "FLAIR"]})
    with pytest.raises(CaseError, match=r"b.nii.gz: has another affine.*export all modalities on one grid"):
        read_image(paths, two)
    write(tmp_path / "b.nii.gz", 2 * image)
    np.testing.assert_array_equal(read_image(paths, two).values, [image, 2 * image])


def test_a_label_map_has_the_images_qform_and_sform_with_their_codes(tmp_path: Path) -> None:
    image, label = brain()
    for sform, qform in ((2, 1), (0, 1), (4, 0), (0, 0)):
        path = write(tmp_path / "i.nii.gz", image, AFFINE, sform, qform)
        source = nibabel.load(path)
        if sform and qform:
            source.set_qform(moved(12), qform)
            source.to_filename(path)
        write_label_map(label, path, tmp_path / "o.nii.gz")
        result = nibabel.load(tmp_path / "o.nii.gz")
        np.testing.assert_array_equal(result.dataobj, label)
        for form in ("sform", "qform"):
            (wanted, code), (found, same) = (
                getattr(one.header, f"get_{form}")(coded=True) for one in (nibabel.load(path), result)
            )
            assert code == same == {"sform": sform, "qform": qform}[form]
            assert wanted is found is None or np.allclose(wanted, found)
        np.testing.assert_allclose(result.affine, nibabel.load(path).affine, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "dims"), [((20, 44, 30), 3), ((12, 12, 160), 3), ((50, 44, 7), 2), ((20, 20, 20), 3)]
)
def test_the_working_grid_is_the_padded_cube_resampled(shape, dims: int, study: Study) -> None:
    """Axis by axis and without the part beyond the image it is the same as all at once."""
    data = study.replace(data={"dims": dims, "slices_per_patient": 1}).data
    image, inside = np.random.default_rng(0).uniform(1, 2, (2, *shape)).astype(np.float32), np.zeros(shape, bool)
    inside[3:-1, 2:-5] = True
    grid = grid_around(inside, np.diag([1.0, 1.0, 5.0 if dims == 2 else 1.0, 1.0]), np.eye(4), data)
    beyond = [
        (0, 0),
        *((max(-int(a), 0), max(int(b) - n, 0)) for a, b, n in zip(grid.low, grid.high, shape, strict=True)),
    ]
    padded = np.pad(grid.window(image), beyond)
    if dims == 3:
        expected = np.asarray(Resize(grid.shape, mode="trilinear", anti_aliasing=True)(padded))
    else:
        plane = Resize(grid.shape[:2], mode="bilinear", anti_aliasing=True)
        expected = np.stack([np.asarray(plane(padded[..., index])) for index in range(shape[2])], -1)
    np.testing.assert_allclose(grid.resampled(grid.window(image)), expected, atol=2e-6)


def test_a_long_thin_scan_takes_memory_like_itself(study: Study) -> None:
    """Its cube has 25 times its voxels, and a label map has a copy for each structure: that was 650 times a scan."""
    image, label = brain((64, 64, 320))
    seven = study.replace(study={"structures": list("abcdefg")}, data={"dims": 3, "slices_per_patient": 1})
    tracemalloc.start()
    working_case(Scan("p", "p", image[None], np.eye(4), label), "site-a", seven)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * image.nbytes
