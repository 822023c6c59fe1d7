"""A bundle segments with MONAI alone, and voxel for voxel as `fedseg predict` does."""

import ast
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import nibabel
import numpy as np
import pytest
from typer.testing import CliRunner

from fedseg.cli import app
from fedseg.errors import ConfigError
from fedseg.export import export
from fedseg.models import build_model, metadata_of, save_model
from fedseg.study import load_study
from tests.support.folders import AFFINE, brain
from tests.support.tiny import tiny_classes

STUDIES = Path(__file__).parents[2] / "studies"
ALONE = """
import sys
sys.modules["fedseg"] = sys.modules["secagg"] = None  # not there
from monai.bundle import ConfigParser
parser = ConfigParser()
parser.read_config("configs/inference.json")
for part in ("imports", "initialize", "run"):
    parser.get_parsed_content(part)
"""


COMMAND = ["-m", "monai.bundle", "run", "--config_file", "configs/inference.json"]
NO_FIRE = pytest.mark.skipif(find_spec("fire") is None, reason="python -m monai.bundle needs fire: pip install fire")


@pytest.mark.slow
@pytest.mark.parametrize("run", [["-c", ALONE], pytest.param(COMMAND, marks=NO_FIRE)], ids=["alone", "monai.bundle"])
def test_a_bundle_segments_without_fedseg_as_fedseg_does(tmp_path, run):
    """Turned axes, other spacing, standardised inputs, windows and flips: every voxel alike."""
    study = load_study(STUDIES / "fetal.toml").replace(
        study={"structures": ["left", "right"], "seed": 3},
        data={
            "size": 32,
            "spacing": [1.5],
            "patch": [16, 16],
            "statistics": "public",
            "mean": [0.4],
            "sd": [0.25],
        },
        model={"channels": [4, 4], "start": "scratch"},
        training={"mirror": ["x"], "test_flips": True, "weight_standardisation": True},
    )
    save_model(build_model(study), tmp_path / "model.safetensors", metadata_of(study))
    values, turned = brain()[0], np.diag([-1.0, 1.0, 2.0, 1.0]) @ AFFINE
    image = tmp_path / "sub-1_T2w.nii.gz"
    nibabel.Nifti1Image(values, turned).to_filename(image)
    for command in (
        ["predict", "model.safetensors", image.name, "own.nii.gz"],
        ["export", "model.safetensors", "bundle"],
    ):
        given = [command[0], *(str(tmp_path / name) for name in command[1:])]
        result = CliRunner().invoke(app, given)
        assert result.exit_code == 0, (result.output, result.exception)
    bundle = tmp_path / "bundle"
    (bundle / "input").mkdir()
    image.rename(bundle / "input" / image.name)
    subprocess.run([sys.executable, *run], cwd=bundle, check=True, env={"PATH": ""})
    own, theirs = (nibabel.load(path) for path in (tmp_path / "own.nii.gz", bundle / "output" / image.name))
    found = np.asarray(own.dataobj)
    assert len(np.unique(found)) > 1
    np.testing.assert_array_equal(found, np.asarray(theirs.dataobj))
    np.testing.assert_allclose(own.affine, theirs.affine, atol=1e-5)
    told = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert told["network_data_format"]["outputs"]["pred"]["channel_def"] == {
        "0": "background",
        "1": "left",
        "2": "right",
    }
    for path in (bundle / "scripts").glob("*.py"):
        imported = [
            node.module or "" for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)
        ]
        assert not any(name.startswith(("fedseg", "secagg")) for name in imported)


def test_no_bundle_is_made_of_classes_or_over_something(tmp_path):
    study = tiny_classes()
    save_model(build_model(study), tmp_path / "m.safetensors", metadata_of(study))
    with pytest.raises(ConfigError, match="is a model of classes"):
        export(tmp_path / "m.safetensors", tmp_path / "bundle")
    with pytest.raises(ConfigError, match="is not empty"):
        export(_segmenting(tmp_path), tmp_path)


def _segmenting(folder):
    study = load_study(STUDIES / "phantom.toml")
    save_model(build_model(study), folder / "s.safetensors", metadata_of(study))
    return folder / "s.safetensors"
