"""Three parties as processes, over TLS, on shares: in the environment that `make encrypted` makes; skipped without it.

The commands run there; this file runs anywhere.
"""

import csv
import os
import re
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from fedseg.encrypted.parties import hash_of, make_key
from fedseg.models import build_model, metadata_of, save_model
from tests.support.tiny import study_with

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("FEDSEG_ENCRYPTED", ROOT / "build/encrypted")) / "bin/python"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason=f"no environment with spu at {PYTHON}: make encrypted makes it"),
]
SECONDS = 300


def started(folder, *arguments):
    """`fedseg encrypted ...` as a process in a folder."""
    return subprocess.Popen(
        [PYTHON, "-m", "fedseg.cli", "encrypted", *map(str, arguments)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )


def ended(process):
    """Status, output and errors of a process at its end."""
    out, err = process.communicate(timeout=SECONDS)
    return process.returncode, out, err


def refused(process, told):
    """One sentence and no success."""
    code, _, err = ended(process)
    assert code == 1, err
    assert err.startswith("fedseg:"), err
    assert err.count("\n") == 1, err
    assert re.search(told, err), err


@pytest.fixture
def clinic(tmp_path, free_ports):
    """Three folders with `parties.toml`, a key each, and a model at its owner's."""

    def make(network="cnn-small", size=16, channels="[4, 8]"):
        study = study_with(network, size, channels)
        model = tmp_path / "model" / "model.safetensors"
        for role in ("data", "model", "third"):
            make_key(role, tmp_path / role)
        save_model(build_model(study), model, metadata_of(study))
        lines = []
        for role, port in zip(("data", "model", "third"), free_ports, strict=True):
            lines += [f"[{role}]", f'address = "127.0.0.1:{port}"', f'certificate = "{role}.pem"']
            lines += [f'sha256 = "{hash_of(model)}"'] if role == "model" else []
        for role in ("data", "model", "third"):
            for other in ("data", "model", "third"):
                (tmp_path / role / f"{other}.pem").write_bytes((tmp_path / other / f"{other}.pem").read_bytes())
            (tmp_path / role / "parties.toml").write_text("\n".join(lines))
        return study

    return make


@pytest.fixture
def free_ports():
    import socket

    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


@pytest.fixture
def parties(tmp_path):
    """Starts a party in its folder; none is left at the end."""
    running = []

    def start(role, *arguments):
        running.append(started(tmp_path / role, *arguments))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.communicate()


def plain(folder, *arguments):
    """What `fedseg predict` writes."""
    done = subprocess.run(
        [PYTHON, "-m", "fedseg.cli", "predict", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr


def picture(path, seed):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 48), np.uint8)).save(path)


def test_pictures_are_classified_as_plain_ones_and_only_their_owner_learns_how(tmp_path, clinic, parties):
    clinic()
    for seed in (0, 1):
        picture(tmp_path / "data" / "images" / f"{seed}.png", seed)
    before = {role: sorted(path.name for path in (tmp_path / role).rglob("*")) for role in ("model", "third")}
    third = parties("third", "serve", "--third", "--once")
    model = parties("model", "serve", "--model", "model.safetensors", "--once")
    asking = parties("data", "ask", "images", "classes.csv", "--wait", SECONDS)
    code, out, err = ended(asking)
    assert (code, err) == (0, ""), err
    assert "classes of 2 of 2 pictures" in out
    plain(tmp_path / "data", tmp_path / "model/model.safetensors", "images", "plain.csv")
    answers, truth = (list(csv.DictReader((tmp_path / "data" / name).open())) for name in ("classes.csv", "plain.csv"))
    for answer, true in zip(answers, truth, strict=True):
        assert (answer["file"], answer["said"]) == (true["file"], true["said"])
        assert float(answer["p(clear)"]) == pytest.approx(float(true["p(clear)"]), abs=1e-3)
    for role, process in (("model", model), ("third", third)):
        code, out, err = ended(process)
        assert (code, err) == (0, "")
        assert out.count("computed on 1 encrypted pictures") == 2
        assert not [word for word in ("clear", "cloudy", answers[0]["p(clear)"][:5]) if word in out], "of the answer"
        assert sorted(path.name for path in (tmp_path / role).rglob("*")) == before[role], "nothing is written there"


def test_a_slice_is_segmented_as_a_plain_one(tmp_path, clinic, parties):
    clinic("unet-small", 32, "[4, 8, 8]")
    image = np.random.default_rng(3).normal(100, 30, (36, 40, 2)).astype(np.float32)
    nib.save(nib.Nifti1Image(image, np.diag([1.0, 1.0, 5.0, 1.0])), tmp_path / "data" / "scan.nii.gz")
    parties("third", "serve", "--third", "--once")
    parties("model", "serve", "--model", "model.safetensors", "--once")
    code, _, err = ended(parties("data", "ask", "scan.nii.gz", "labels.nii.gz", "--wait", SECONDS))
    assert (code, err) == (0, ""), err
    plain(tmp_path / "data", tmp_path / "model/model.safetensors", "scan.nii.gz", "plain.nii.gz")
    encrypted, true = (
        np.asarray(nib.load(tmp_path / "data" / name).dataobj) for name in ("labels.nii.gz", "plain.nii.gz")
    )
    assert encrypted.shape == image.shape
    assert (encrypted == true).mean() > 0.999
    assert (tmp_path / "data" / "labels.png").exists() or list((tmp_path / "data").glob("*.png"))


def test_a_party_that_dies_ends_the_question_and_nothing_is_written(tmp_path, clinic, parties):
    clinic()
    for seed in range(12):
        picture(tmp_path / "data" / "images" / f"{seed}.png", seed)
    third = parties("third", "serve", "--third", "--once")
    parties("model", "serve", "--model", "model.safetensors", "--once")
    asking = parties("data", "ask", "images", "classes.csv", "--wait", SECONDS)
    assert any("computed on 1" in line for line in third.stdout)
    third.kill()
    refused(asking, "the third party at 127.0.0.1:[0-9]+ has gone, nothing was written")
    assert not (tmp_path / "data" / "classes.csv").exists()


def test_another_certificate_is_refused_by_whoever_sees_it(tmp_path, clinic, parties):
    clinic()
    picture(tmp_path / "data" / "one.png", 0)
    stranger = tmp_path / "third"
    for name in ("third.key", "third.pem"):
        (stranger / name).unlink()
    make_key("third", stranger)
    parties("third", "serve", "--third", "--once")
    parties("model", "serve", "--model", "model.safetensors", "--once")
    asking = parties("data", "ask", "one.png", "classes.csv", "--wait", SECONDS)
    refused(asking, "the third party at .*(shows another certificate|does not take our certificate)")
    assert not (tmp_path / "data" / "classes.csv").exists()


def test_nobody_there_another_model_and_wrong_images_are_one_sentence_each(tmp_path, clinic, parties):
    clinic()
    picture(tmp_path / "data" / "one.png", 0)
    asking = parties("data", "ask", "one.png", "classes.csv", "--wait", "1")
    refused(asking, "the model's owner at .* and the third party at .* did not answer within 1 s")
    refused(parties("data", "ask", "none.png", "classes.csv"), "none.png: is missing")
    model = tmp_path / "model" / "model.safetensors"
    study = study_with("cnn-small", 16, "[8, 8]")
    save_model(build_model(study), model, metadata_of(study))
    refused(parties("model", "serve", "--model", model, "--once"), "has SHA-256 .*, and parties.toml names")
    study = study_with("segresnet")
    save_model(build_model(study), model, metadata_of(study))
    refused(parties("model", "serve", "--model", model, "--once"), "network 'segresnet' has")
    (tmp_path / "third" / "third.key").chmod(0o644)
    refused(parties("third", "serve", "--third"), "others can read this private key")


@pytest.mark.parametrize("network", ["cnn-small", "unet-small"])
def test_check_says_how_alike_answers_are(tmp_path, clinic, network):
    clinic(network, 16, "[4, 8]")
    code, out, err = ended(started(tmp_path / "model", "check", "model.safetensors"))
    assert code == 0, err
    assert float(re.search(r"differ by ([0-9.e-]+) at most", out)[1]) <= 1e-3
