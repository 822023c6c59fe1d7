"""The page on the study file: its tables are the code's, and its folders are read as it says."""

import importlib.util
import json
import re
import sys
import tomllib
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from fedseg.cli import main
from fedseg.study import Study, load_study
from fedseg.study.sections import PICTURES

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/study.md"
TEXT = PAGE.read_text(encoding="utf-8")
LAYOUTS = re.findall(r"^### (\w+)\n(.*?)(?=^##)", TEXT.partition("\n## Layouts\n")[2], re.MULTILINE | re.DOTALL)

_spec = importlib.util.spec_from_file_location("study_tables", ROOT / "docs/tools/study.py")
tables = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tables)


def test_the_tables_are_those_of_the_code():
    assert tables.refreshed(TEXT) == TEXT, "docs/study.md is behind fedseg/study/: run make walks"
    assert tables.tables() in TEXT


def test_every_field_has_a_row_with_a_meaning():
    sections = [found for found in Study.model_json_schema()["$defs"].values() if "properties" in found]
    assert len(sections) >= 8
    for section in sections:
        for field, about in section["properties"].items():
            assert f"| `{field}` | " in TEXT
            assert f" | {about['description']} |" in TEXT


def block(body: str, language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```", body, re.MULTILINE | re.DOTALL)
    return found[1] if found else ""


def written(folder: Path, body: str, layout: str, channels: int) -> None:
    """The files of a page's tree, as small images."""
    site, *paths = block(body, "text").split()
    for path in paths:
        file = folder / site / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.name == "dataset.json":
            json.loads(block(body, "json"))
            file.write_text(block(body, "json"))
        elif file.suffix == ".png":
            Image.fromarray(np.tile(np.arange(48, dtype=np.uint8), (40, 1))).save(file)
        elif file.suffix == ".npz":
            parts = {"train": 4, "val": 2, "test": 2}
            pictures = {
                f"{part}_images": np.tile(np.arange(28, dtype=np.uint8), (n, 28, 1)) for part, n in parts.items()
            }
            labels = {f"{part}_labels": np.arange(n, dtype=np.uint8)[:, None] % 2 for part, n in parts.items()}
            np.savez(file, **pictures, **labels)
        elif layout == "radiographs":
            read = pytest.importorskip("tests.support.dicom")
            read.write_radiograph(file, np.tile(np.arange(48), (40, 1)), person=Path(path).parts[1])
        elif file.suffix == ".dcm":
            read = pytest.importorskip("tests.support.dicom")
            read.write_series(file.parent, np.tile(np.arange(50, 86, 2), (40, 48, 1)), person=Path(path).parts[0])
        elif layout == "dicom":
            from fedseg.data.layouts.series import read_series, series_in

            ((_, files),) = series_in(file.parent).values()
            volume = read_series(files, path)
            nibabel.save(nibabel.Nifti1Image((volume.values[0] > 60).astype(np.uint8), volume.affine), file)
        elif file.suffix == ".csv":
            file.write_text(block(body, "csv"))
        elif file.suffix == ".tsv":
            patients = sorted({path.partition("/")[0] for path in paths if path.startswith("sub-")})
            file.write_text("\n".join(["participant_id\tage", *(f"{patient}\t25" for patient in patients)]) + "\n")
        else:
            values = np.zeros((40, 48, 36), np.uint8)
            values[10:30, 12:36, 9:27] = 1
            if not re.search("dseg|labels|seg.nii|drawn", path):
                values = values * np.arange(50, 86, dtype=np.uint8)
                values = values if channels == 1 or layout != "decathlon" else np.stack([values] * channels, -1)
            nibabel.save(nibabel.Nifti1Image(values, np.diag([0.8, 0.8, 0.8, 1.0])), file)


@pytest.mark.parametrize(("layout", "body"), LAYOUTS, ids=[layout for layout, _ in LAYOUTS])
def test_a_folder_of_the_page_is_read_as_the_page_says(layout, body, tmp_path, monkeypatch, capsys):
    data = tomllib.loads(block(body, "toml"))["data"]
    assert data["layout"] == layout
    base = load_study(ROOT / "studies" / ("phantom.toml" if layout == "phantom" else "fetal.toml"))
    study = (
        base
        if layout == "phantom"
        else base.replace(
            study={"structures": ["liver" if layout == "nnunet" else "brain"]}, model={"start": "scratch"}
        )
    )
    if layout in PICTURES:
        classes = {"task": "classification", "structures": [], "classes": ["normal", "pneumonia"]}
        study = study.replace(study=classes, model={"name": "cnn-small", "channels": []}, data=data)
    (tmp_path / "study.toml").write_text(study.replace(data=data).toml(), encoding="utf-8")
    if layout != "phantom":
        written(tmp_path, body, layout, len(data["modality"]))
    monkeypatch.chdir(tmp_path)
    command, *shown = block(body, "console").splitlines()
    monkeypatch.setattr(sys, "argv", command.removeprefix("$ ").split())
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert capsys.readouterr().out.splitlines() == shown


def test_a_site_of_another_study_is_refused(tmp_path, monkeypatch, capsys):
    command = ["fedseg", "data", "check", str(ROOT / "studies/fetal.toml"), "--site", "site-z", "--data", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit, match="1"):
        main()
    assert "--site site-z: not a site of the study; use one of site-a" in capsys.readouterr().err


def test_the_page_has_every_layout():
    schema = Study.model_json_schema()["$defs"]["DataSection"]["properties"]["layout"]
    assert sorted(layout for layout, _ in LAYOUTS) == sorted(schema["enum"])
