"""Files as people have them, and folders that cannot be written: right, or one sentence; what is private stays so."""

import codecs
import gzip
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from fedseg.credentials import load_federation, make_credentials, signing_key
from fedseg.study import load_study
from tests.support.command import feta_study, is_one_sentence, run
from tests.support.folders import copied, wider_than_its_owner
from tests.support.tiny import tiny_study

ROOT = Path(__file__).parents[2]
SAVED = {
    "mark": lambda text: codecs.BOM_UTF8 + text.encode(),
    "UTF-16": lambda text: codecs.BOM_UTF16_LE + text.encode("utf-16-le"),
    "CRLF": lambda text: text.replace("\n", "\r\n").encode(),
}


@pytest.mark.parametrize("how", SAVED)
def test_study_lists_and_credentials_may_be_saved_by_any_editor(how, tmp_path, capsys, monkeypatch, feta_folder):
    study, images, keys = tmp_path / "study.toml", copied(feta_folder, tmp_path / "images"), tmp_path / "keys"
    study.write_bytes(SAVED[how](feta_study()))
    for site in ("site-a", "site-b", "site-c"):
        patients = sorted(path.name for path in (images / site).glob("sub-*"))
        (images / site / "participants.tsv").write_bytes(SAVED[how]("\n".join(["participant_id\tage", *patients, ""])))
    code, said, error = run(capsys, monkeypatch, "data", "check", study, "--data", images)
    assert code == 0, said + error
    assert said.count("2 patients") == 3
    make_credentials(keys, load_study(study), "run")
    for name in ("federation.toml", "site-a.signing"):
        (keys / name).write_bytes(SAVED[how]((keys / name).read_text()))
    assert signing_key(keys, "site-a").verify_key == load_federation(keys, load_study(study)).pinned["site-a"]


def test_a_list_in_an_old_code_page_finds_its_folders(tmp_path, capsys, monkeypatch, feta_folder):
    """A remark in Latin-1 does no harm, and neither does a folder's name that is Latin-1 on the disk, too."""
    study, images = tmp_path / "study.toml", copied(feta_folder, tmp_path / "images")
    study.write_text(feta_study())
    site = images / "site-a"
    first, second = sorted(site.glob("sub-*"))
    (site / "participants.tsv").write_bytes(
        b"participant_id\tremark\n" + first.name.encode() + b"\t5 \xb5m\n" + "sub-Müller\t\x85\n".encode("latin-1")
    )
    second.rename(os.fsdecode(os.fsencode(site) + "/sub-Müller".encode("latin-1")))
    code, said, error = run(capsys, monkeypatch, "data", "check", study, "--data", images)
    assert code == 0, said + error
    assert said.count("2 patients") == 3


def test_what_systems_leave_beside_files_is_passed_over(tmp_path, capsys, monkeypatch, feta_folder):
    study, images = tmp_path / "study.toml", copied(feta_folder, tmp_path / "images")
    study.write_text(feta_study())
    for folder in [path for path in images.rglob("*") if path.is_dir()]:
        (folder / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
        (folder / ".DS_Store").write_bytes(b"\x00\x00\x00\x01Bud1")
        for path in [path for path in folder.iterdir() if path.is_file()]:
            path.with_name(f"._{path.name}").write_bytes(b"\x00\x05\x16\x07\x00\x02\x00\x00")
    code, said, error = run(capsys, monkeypatch, "data", "check", study, "--data", images)
    assert code == 0, said + error
    assert said.count("2 patients") == 3


def _apple(path: Path) -> None:
    path.write_bytes(b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[30] ^= 0xFF
    path.write_bytes(data)


def _unpacked(path: Path) -> None:
    path.write_bytes(gzip.decompress(path.read_bytes()))


def _short(path: Path) -> None:
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:2000]))


DAMAGE = {
    "empty": (lambda path: path.write_bytes(b""), "it is empty; copy it again"),
    "AppleDouble": (_apple, "it is what macOS keeps beside a file"),
    "web page": (lambda path: path.write_bytes(b"<!DOCTYPE html>"), "it is a web page; give the image itself"),
    "LFS": (lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1"), "a pointer of Git LFS"),
    "cut": (_cut, "it ends too early; copy it again"),
    "a byte": (_flipped, "its compression is damaged; copy it again"),
    "name": (_unpacked, "it is not compressed, so its name must end in .nii; rename it"),
    "fewer voxels": (_short, "could the file be damaged?"),
    "no NIfTI": (lambda path: path.write_bytes(gzip.compress(b"x" * 4000)), "export it again"),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_what_is_wrong_with_an_image_is_said(how, tmp_path, capsys, monkeypatch, feta_folder):
    study, images = tmp_path / "study.toml", copied(feta_folder, tmp_path / "images")
    study.write_text(feta_study())
    damage, words = DAMAGE[how]
    image = sorted((images / "site-b").rglob("*T2w.nii.gz"))[0]
    damage(image)
    code, said, _ = run(capsys, monkeypatch, "data", "check", study, "--data", images)
    assert code == 1
    (line,) = [line for line in said.splitlines() if line.startswith("error")]
    assert f"{image}: cannot be read as NIfTI: " in line
    assert words in line


def test_a_wrong_line_of_dataset_json_is_named(tmp_path, capsys, monkeypatch):
    study = tmp_path / "study.toml"
    study.write_text(feta_study().replace('layout = "feta"', 'layout = "decathlon"'))
    for site in ("site-a", "site-b", "site-c"):
        (tmp_path / site).mkdir()
        (tmp_path / site / "dataset.json").write_bytes(codecs.BOM_UTF8 + b'{"training": [\n{]}')
    _, said, _ = run(capsys, monkeypatch, "data", "check", study, "--data", tmp_path)
    assert "not valid JSON" in said
    assert "line 2" in said


# --- Refused at once ---------------------------------------------------------------------------------------------


@pytest.fixture
def nothing_is_loaded(monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("images were read first")

    monkeypatch.setattr("fedseg.data.loading.load_site", refuse)
    monkeypatch.setattr("fedseg.data.loading.load_cohort", refuse)


def test_a_wrong_site_alone_is_refused_before_anything_is_loaded(tmp_path, capsys, monkeypatch, nothing_is_loaded):
    study = tmp_path / "study.toml"
    study.write_text(tiny_study().toml())
    code, _, error = run(capsys, monkeypatch, "simulate", study, "--alone", "site-z", "--out", tmp_path / "runs")
    assert code == 1
    assert is_one_sentence(error)
    assert "--alone site-z: not a site of the study; use one of site-a, site-b, site-c" in error
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("spoil", ["site", "roster", "key"])
def test_a_site_that_cannot_take_part_is_told_before_its_images_are_read(
    spoil, tmp_path, capsys, monkeypatch, nothing_is_loaded
):
    study, keys = tmp_path / "study.toml", tmp_path / "keys"
    study.write_text(tiny_study().toml())
    make_credentials(keys, tiny_study(sites=4) if spoil == "roster" else tiny_study(), "run")
    (keys / "site-a.signing").unlink()
    given = ["--coordinator", "127.0.0.1:9", "--credentials", keys, "--out", tmp_path / "runs"]
    name, words = {
        "site": ("site-z", "'site-z' is not in the study"),
        "roster": ("site-a", "lists site-a, site-b, site-c, site-d and the study has site-a, site-b, site-c"),
        "key": ("site-a", "site-a.signing is missing"),
    }[spoil]
    code, _, error = run(capsys, monkeypatch, "site", study, name, *given)
    assert code == 1
    assert is_one_sentence(error)
    assert words in error


def test_a_delta_that_protects_nobody_is_refused_with_the_study(tmp_path, capsys, monkeypatch):
    """Twelve made patients: delta of 1/12 allows publishing one of them; a little less is the site's own decision."""
    study = tmp_path / "study.toml"
    for delta, code in (("0.5", 1), (str(1 / 12), 1), ("0.083", 0)):
        study.write_text(tiny_study().toml().replace("delta = 0.01", f"delta = {delta}"))
        found, _, error = run(capsys, monkeypatch, "epsilon", study)
        assert found == code, error
        if code:
            assert is_one_sentence(error)
            assert "is not below 1/12: among 12 patients it would allow publishing one of them whole" in error


def test_a_missing_folder_of_the_last_site_is_told_before_the_first_is_read(tmp_path, capsys, monkeypatch):
    study = tmp_path / "study.toml"
    study.write_text(feta_study())
    for site in ("site-a", "site-b"):
        (tmp_path / "images" / site).mkdir(parents=True)
    monkeypatch.setattr("fedseg.data.loading.load_site", lambda *_: pytest.fail("images were read first"))
    code, _, error = run(capsys, monkeypatch, "simulate", study, "--data", tmp_path / "images")
    assert code == 1
    assert "site-c: there is no such folder" in error


# --- Folders that cannot be written ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kilobytes", [1, 8, 700])
def test_a_full_disk_is_one_sentence(kilobytes, tmp_path):
    """A limit on a file's size stands for the full disk: whichever write it hits, no traceback and nothing left."""
    study = tmp_path / "study.toml"
    study.write_text(tiny_study(rounds=1).replace(model={"name": "unet", "channels": [16, 32, 64, 128]}).toml())
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({kilobytes} << 10,) * 2)"
    program = f"{limit}\nfrom fedseg.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "simulate", study, "--out", tmp_path / "runs"],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    last = done.stderr.decode().splitlines()[-1]
    assert done.returncode == 1
    assert "Traceback" not in done.stderr.decode()
    assert last.startswith("fedseg: ")
    assert not list((tmp_path / "runs").glob("*.partial"))


# --- Private to its owner --------------------------------------------------------------------------------------------


def modes(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


def test_what_shows_patients_is_their_owners_only(tmp_path, capsys, monkeypatch, feta_folder):
    """Under the usual umask 022: run folder, report, pictures, prediction and overlay; the model may be given away."""
    study, runs = tmp_path / "study.toml", tmp_path / "runs"
    study.write_text(feta_study().replace('mechanism = "local"', 'mechanism = "none"'))
    before = os.umask(0o022)
    try:
        code, _, error = run(capsys, monkeypatch, "simulate", study, "--data", feta_folder, "--out", runs, "--plain")
        assert code == 0, error
        (complete,) = runs.iterdir()
        assert wider_than_its_owner(complete) == {"model.safetensors": 0o644}
        assert {"report.html", "report-private.html", "examples.npz", "events.jsonl", "ledger"} <= set(modes(complete))
        image = next(feta_folder.glob("site-a/*/anat/*T2w*"))
        code, _, error = run(
            capsys, monkeypatch, "predict", complete / "model.safetensors", image, tmp_path / "o.nii.gz"
        )
        assert code == 0, error
        assert modes(tmp_path)["o.nii.gz"] == modes(tmp_path)["o.png"] == 0o600
    finally:
        os.umask(before)
