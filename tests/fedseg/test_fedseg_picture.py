"""Pictures of cases: every slice says its plane, its number and the patient's sides, and nothing lies on the image."""

import nibabel
import numpy as np
import pytest

from fedseg.data.cases import Case
from fedseg.data.layouts.files import FileEntry
from fedseg.data.scans import Scan, working_case
from fedseg.data.view import View, busiest, pixels
from fedseg.picture import picture
from fedseg.study import Study
from tests.support.tiny import tiny_study

SHAPE = (40, 44, 24)
PLACES = {"R": (36, 22, 12), "L": (3, 22, 12), "A": (20, 40, 12), "P": (20, 3, 12), "S": (20, 22, 20), "I": (20, 22, 3)}


def case_with(letter: str, axes: str, spacing: tuple[float, float, float], study: Study) -> Case:
    """A head with a mark at the patient's side `letter`, in a file whose axes are turned."""
    image, label = np.random.default_rng(1).uniform(0.8, 1.2, SHAPE).astype(np.float32), np.zeros(SHAPE, np.uint8)
    x, y, z = PLACES[letter]
    label[x - 3 : x + 4, y - 3 : y + 4, z - 3 : z + 4] = 1
    image[label > 0] = 2
    affine = np.diag([*spacing, 1.0])
    turn = nibabel.orientations.axcodes2ornt(axes)
    turned = [nibabel.Nifti1Image(found, affine).as_reoriented(turn) for found in (image, label)]
    values = np.asarray(turned[0].dataobj, np.float32)[None]
    scan = Scan("DOE", "DOE.nii", values, turned[0].affine, np.asarray(turned[1].dataobj), "DOE.nii")
    return working_case(scan, "s", study)


@pytest.fixture(scope="module")
def study() -> Study:
    return tiny_study()


@pytest.mark.parametrize("axes", ["RAS", "LPS", "ASL", "PIR"])
@pytest.mark.parametrize(
    ("spacing", "plane", "letters"),
    [
        ((1.0, 1.0, 3.0), "axial", "LRAP"),
        ((1.0, 3.0, 1.0), "coronal", "LRSI"),
        ((3.0, 1.0, 1.0), "sagittal", "PASI"),
    ],
)
def test_the_letters_are_where_the_patients_sides_are(axes, spacing, plane, letters, study):
    for letter in letters:
        case = case_with(letter, axes, spacing, study)
        index = busiest(case.label, case)[0]
        view, shown = View.of_slice(case, index), pixels(case.label, case, index)
        assert (view.plane, "".join(view.edges)) == (plane, letters)
        assert view.words == f"{plane} slice {index + 1} of {case.label.shape[case.slice_axis]}"
        rows, columns = np.nonzero(shown)
        at = columns.mean() / shown.shape[1], 1 - rows.mean() / shown.shape[0]
        nearest = {letters[0]: at[0], letters[1]: 1 - at[0], letters[2]: 1 - at[1], letters[3]: at[1]}
        assert min(nearest, key=nearest.get) == letter


def test_a_picture_says_what_it_shows_and_its_legend_is_beside_it(study):
    case = case_with("A", "LPS", (1.0, 1.0, 3.0), study)
    figure = picture(case, case.label, study.structures)
    figure.draw_without_rendering()
    for panel in figure.axes:
        assert panel.get_title().startswith("axial slice ")
        assert [text.get_text() for text in panel.texts[-4:]] == ["L", "R", "A", "P"]
    (legend,) = figure.legends
    assert "1 external CSF" in [text.get_text() for text in legend.get_texts()]
    assert not any(panel.get_window_extent().overlaps(legend.get_window_extent()) for panel in figure.axes)
    said = [text.get_text() for panel in figure.axes for text in (panel.title, *panel.texts)]
    assert "DOE" not in " ".join(said)


@pytest.mark.parametrize(
    ("affine", "code", "said"),
    [
        (np.diag([-1.0, 1.0, 3.0, 1.0]), 1, "axial slice 1 of 4"),
        (np.diag([-1.0, 1.0, 3.0, 1.0]), 0, "slice 1 of 4, sides not in the file"),
        (np.eye(4), 2, "slice 1 of 4, sides not in the file"),
    ],
)
def test_no_side_is_named_that_the_file_does_not_tell(affine, code, said, tmp_path, study):
    """A wrong left is worse than none: converters write the identity where they know no geometry."""
    image = np.random.default_rng(0).uniform(1, 2, (40, 44, 4)).astype(np.float32)
    for name, values in (("image.nii.gz", image), ("label.nii.gz", (image > 1.5).astype(np.uint8))):
        file = nibabel.Nifti1Image(values, affine)
        file.set_sform(affine, code)
        file.set_qform(affine, 0)
        file.to_filename(tmp_path / name)
    case = FileEntry("P", (tmp_path / "image.nii.gz",), tmp_path / "label.nii.gz").load("s", study)
    view = View.of_slice(case, 0)
    assert view.words == said
    assert bool(view.edges) == said.startswith("axial")
    shown = picture(case, case.label, study.structures).axes[0]
    assert {text.get_text() for text in shown.texts} & set("LRAPSI") == set(view.edges)
