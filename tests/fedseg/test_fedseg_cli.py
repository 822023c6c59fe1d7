"""Every mistake of a person ends in one sentence that names what and where, exit code 1, and nothing half-written."""

import asyncio
import importlib.util
import json
import re
import shutil
import socket
import threading
from contextlib import nullcontext
from pathlib import Path

import nibabel
import numpy as np
import pytest

from fedseg.credentials import load_federation, make_credentials, signing_key
from fedseg.models import build_model, check_model
from fedseg.screen import Screen
from fedseg.study import load_study
from secagg.rpc.server import MailboxServer
from secagg.rpc.tls import ServerTls
from tests.support.command import feta_study, is_one_sentence, run
from tests.support.folders import copied
from tests.support.tiny import STRUCTURES, tiny_study

STUDIES = {
    "threshold too low": ("min_survivors = 0", "min_survivors = 2", ["[secagg]", "min_survivors", "3"]),
    "too many corrupt": ("max_corrupt = 1", "max_corrupt = 2", ["[secagg]", "max_corrupt"]),
    "bits overflow": ("bits = 32", "bits = 20", ["[secagg]", "bits = 20", "22"]),
    "budget": ("epsilon = 8.0\ndelta = 0.01", "epsilon = 0.001\ndelta = 1e-9", ["[privacy] epsilon", "raise epsilon"]),
    "no delta": ("delta = 0.01\n", "", ["[privacy]", "delta"]),
    "unknown field": ("rounds = 1", "rounds = 1\nroundz = 2", ["[study]", "roundz", "rounds"]),
    "unknown mechanism": ('mechanism = "local"', 'mechanism = "magic"', ["[privacy]", "mechanism", "local"]),
    "weak privacy unit": ('unit = "patient"', 'unit = "slice"', ["[privacy]", "unit"]),
    "two sites of one name": ('id = "site-b"', 'id = "site-a"', ["[[sites]]", "site-a"]),
    "batch norm model": ('name = "unet-small"', 'name = "basicunet"', ["[model]", "name", "unet-small"]),
    "not TOML": ("[study]", "[study", ["study.toml", "TOML"]),
}


@pytest.mark.parametrize("case", STUDIES)
@pytest.mark.parametrize("command", ["simulate", "epsilon"])
def test_an_unsafe_study_is_refused_before_anything_happens(tmp_path, capsys, monkeypatch, case, command):
    before, after, words = STUDIES[case]
    text = tiny_study(rounds=1).toml()
    assert before in text
    study = tmp_path / "study.toml"
    study.write_text(text.replace(before, after, 1))
    extra = ["--out", tmp_path / "runs"] if command == "simulate" else []
    code, _, error = run(capsys, monkeypatch, command, study, *extra)
    assert code == 1
    assert is_one_sentence(error), error
    assert all(word in error for word in words), error
    assert not (tmp_path / "runs").exists()


def test_a_wrong_alone_is_refused_before_any_image_is_read(tmp_path, capsys, monkeypatch, feta_folder):
    """It was refused after a minute, when all images had been read and the start trained."""
    study, read = tmp_path / "study.toml", []
    study.write_text(feta_study())
    monkeypatch.setattr(nibabel, "load", lambda *arguments, **_: read.append(arguments))
    given = ["--data", feta_folder, "--out", tmp_path / "runs", "--alone", "site-x"]
    code, _, error = run(capsys, monkeypatch, "simulate", study, *given)
    assert code == 1
    assert is_one_sentence(error), error
    assert "--alone site-x: not a site of the study; use one of site-a, site-b, site-c" in error
    assert read == []
    assert not (tmp_path / "runs").exists()


def rewrite(path: Path, change) -> None:
    image = nibabel.load(path)
    values, affine = change(np.asanyarray(image.dataobj).copy(), image.affine.copy())
    nibabel.save(nibabel.Nifti1Image(values, affine), path)


def without_label(root: Path) -> Path:
    path = next(root.glob("site-b/*/anat/*dseg*"))
    path.unlink()
    return path


def other_shape(root: Path) -> Path:
    path = next(root.glob("site-b/*/anat/*dseg*"))
    rewrite(path, lambda values, affine: (values[:-1], affine))
    return path


def other_affine(root: Path) -> Path:
    path = next(root.glob("site-b/*/anat/*dseg*"))
    rewrite(path, lambda values, affine: (values, affine + np.diag([0.5, 0, 0, 0])))
    return path


def nan_voxels(root: Path) -> Path:
    path = next(root.glob("site-b/*/anat/*T2w*"))

    def change(values, affine):
        values = values.astype(np.float32)
        values[3, 3, 3] = np.nan
        return values, affine

    rewrite(path, change)
    return path


def unknown_label(root: Path) -> Path:
    path = next(root.glob("site-b/*/anat/*dseg*"))
    rewrite(path, lambda values, affine: (np.where(values == 3, 9, values).astype(np.uint8), affine))
    return path


def truncated(root: Path) -> Path:
    path = next(root.glob("site-b/*/anat/*T2w*"))
    path.write_bytes(path.read_bytes()[:2000])
    return path


def no_patients(root: Path) -> Path:
    for path in sorted((root / "site-b").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    return root / "site-b"


def no_site(root: Path) -> Path:
    no_patients(root)
    (root / "site-b").rmdir()
    return root / "site-b"


@pytest.mark.parametrize(
    "damage",
    [without_label, other_shape, other_affine, nan_voxels, unknown_label, truncated, no_patients, no_site],
    ids=lambda damage: damage.__name__,
)
def test_damaged_images_are_named_and_nothing_is_trained(tmp_path, capsys, monkeypatch, feta_folder, damage):
    root = copied(feta_folder, tmp_path / "data")
    path = damage(root)
    study = tmp_path / "study.toml"
    study.write_text(feta_study().replace('mechanism = "local"', 'mechanism = "none"'))
    code, _, error = run(capsys, monkeypatch, "simulate", study, "--data", root, "--out", tmp_path / "runs")
    assert code == 1
    assert is_one_sentence(error), error
    named = path.name.split("_")[0] if damage is without_label else path.name
    assert "site-b" in error, error
    assert named in error, error
    assert not (tmp_path / "runs").exists()
    code, said, _ = run(capsys, monkeypatch, "data", "check", study, "--data", root)
    assert code == 1
    assert "error" in said
    assert "site-b" in said


def test_sound_images_pass_the_check_and_train(tmp_path, capsys, monkeypatch, feta_folder):
    study = tmp_path / "study.toml"
    study.write_text(feta_study())
    code, said, _ = run(capsys, monkeypatch, "data", "check", study, "--data", feta_folder)
    assert code == 0, said
    runs = tmp_path / "runs"
    code, said, error = run(capsys, monkeypatch, "simulate", study, "--data", feta_folder, "--out", runs)
    assert code == 0, error
    assert "seeded: no privacy claim" in said
    (complete,) = runs.iterdir()
    assert (complete / "report.html").is_file()

    image = next(feta_folder.glob("site-a/*/anat/*T2w*"))
    labels = tmp_path / "labels.nii.gz"
    code, _, error = run(capsys, monkeypatch, "predict", complete / "model.safetensors", image, labels)
    assert code == 0, error
    predicted, source = nibabel.load(labels), nibabel.load(image)
    assert predicted.shape == source.shape
    assert np.array_equal(predicted.affine, source.affine)
    assert set(np.unique(predicted.get_fdata())) <= set(range(len(STRUCTURES) + 1))
    assert (tmp_path / "labels.png").stat().st_size > 1000

    ledger = complete / "ledger" / "site-a.jsonl"
    code, said, _ = run(capsys, monkeypatch, "ledger", "verify", ledger, "--delta", 0.01)
    assert code == 0
    assert "1 entries, chain intact" in said
    ledger.write_text(ledger.read_text().replace('"steps":1', '"steps":0'))
    code, _, error = run(capsys, monkeypatch, "ledger", "verify", ledger, "--delta", 0.01)
    assert code == 1
    assert "line 1" in error


def test_a_port_in_use_is_named_and_leaves_nothing(tmp_path, capsys, monkeypatch):
    study = tiny_study(rounds=1)
    (tmp_path / "study.toml").write_text(study.toml())
    make_credentials(tmp_path / "credentials", study, "run")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        given = ["--credentials", tmp_path / "credentials", "--port", port, "--out", tmp_path / "runs"]
        code, _, error = run(capsys, monkeypatch, "coordinator", tmp_path / "study.toml", *given)
    assert code == 1
    assert is_one_sentence(error), error
    assert f"port {port}" in error
    assert not list((tmp_path / "runs").iterdir())


def test_a_wrong_certificate_is_named_and_leaves_nothing(tmp_path, capsys, monkeypatch):
    study = tiny_study(rounds=1)
    (tmp_path / "study.toml").write_text(study.toml())
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    make_credentials(ours, study, "run")
    make_credentials(theirs, study, "run")
    started, done, port = threading.Event(), asyncio.Event(), []

    async def serve() -> None:
        tls = ServerTls.load(ours / "authority.pem", ours / "coordinator.pem", ours / "coordinator.key")
        async with MailboxServer(study.site_ids, tls) as server:
            port.append(await server.start("127.0.0.1", 0))
            loops.append(asyncio.get_running_loop())
            started.set()
            await done.wait()

    loops: list[asyncio.AbstractEventLoop] = []
    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert started.wait(300)
    try:
        where = ["--credentials", theirs, "--coordinator", f"127.0.0.1:{port[0]}"]
        given = [*where, "--out", tmp_path / "runs", "--patience", "2"]  # for ever where not given: it may be renewed
        code, _, error = run(capsys, monkeypatch, "site", tmp_path / "study.toml", "site-a", *given)
    finally:
        loops[0].call_soon_threadsafe(done.set)
        thread.join(300)
    assert code == 1
    assert is_one_sentence(error), error
    assert "certificate" in error
    assert not list((tmp_path / "runs").glob("tiny-*"))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "federation.toml").unlink(), ["federation.toml", "missing"]),
        (
            lambda folder: (folder / "federation.toml").write_text("clients = 1"),
            ["federation.toml", "not a roster"],
        ),
        (lambda folder: (folder / "site-a.signing").chmod(0o644), ["site-a.signing", "chmod 600"]),
        (lambda folder: (folder / "site-a.signing").write_text("zz"), ["site-a.signing", "secagg keygen"]),
        (lambda folder: (folder / "site-a.pem").unlink(), ["site-a.pem"]),
    ],
    ids=["no federation", "bad federation", "readable key", "bad key", "no certificate"],
)
def test_broken_credentials_are_named(tmp_path, capsys, monkeypatch, spoil, words):
    study = tiny_study(rounds=1)
    (tmp_path / "study.toml").write_text(study.toml())
    make_credentials(tmp_path / "credentials", study, "run")
    spoil(tmp_path / "credentials")
    given = ["--credentials", tmp_path / "credentials", "--coordinator", "127.0.0.1:9", "--out", tmp_path / "runs"]
    code, _, error = run(capsys, monkeypatch, "site", tmp_path / "study.toml", "site-a", *given)
    assert code == 1
    assert is_one_sentence(error), error
    assert all(word in error for word in words), error


def test_credentials_of_a_trial_are_complete_private_and_never_replaced(tmp_path, capsys, monkeypatch):
    study, folder = tmp_path / "study.toml", tmp_path / "trial"
    study.write_text(tiny_study().toml())
    code, said, _ = run(capsys, monkeypatch, "credentials", study, folder)
    assert code == 0
    federation = load_federation(folder, tiny_study())
    for site in ("site-a", "site-b", "site-c"):
        assert signing_key(folder, site).verify_key == federation.pinned[site]
        assert (folder / f"{site}.signing").stat().st_mode & 0o077 == 0
        assert (folder / f"{site}.key").stat().st_mode & 0o077 == 0
        assert signing_key(folder, site).export().hex() not in said
    code, _, error = run(capsys, monkeypatch, "credentials", study, folder)
    assert code == 1
    assert is_one_sentence(error), error


def test_a_model_file_is_checked(tmp_path, capsys, monkeypatch, feta_folder):
    bad = tmp_path / "model.safetensors"
    bad.write_bytes(b"not a model")
    image = next(feta_folder.glob("site-a/*/anat/*T2w*"))
    code, _, error = run(capsys, monkeypatch, "predict", bad, image, tmp_path / "out.nii.gz")
    assert code == 1
    assert is_one_sentence(error), error
    assert "model.safetensors" in error
    assert not list(tmp_path.glob("out*"))
    check_model(build_model(tiny_study()))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("rounds=2", ["SECTION.FIELD=VALUE"]),
        ("nowhere.x=1", ["[nowhere]", "privacy"]),
        ("sites.id=1", ["[sites]"]),
        ("study.roundz=2", ["[study] roundz", "rounds"]),
        ("privacy.mechanism=magic", ["[privacy] mechanism", "local"]),
    ],
)
def test_a_wrong_change_of_a_study_is_named(tmp_path, capsys, monkeypatch, change, words):
    study = tmp_path / "study.toml"
    study.write_text(tiny_study().toml())
    code, _, error = run(capsys, monkeypatch, "simulate", study, "--set", change, "--out", tmp_path / "runs")
    assert code == 1
    assert is_one_sentence(error), error
    assert all(word in error for word in words), error


def test_changes_of_a_study_are_what_is_trained(tmp_path, capsys, monkeypatch):
    study = tmp_path / "study.toml"
    study.write_text(tiny_study().toml())
    changes = ["--set", "privacy.mechanism=none", "--set", "study.rounds=1", "--set", "study.lr=0.01", "--seed", 3]
    code, said, error = run(capsys, monkeypatch, "simulate", study, *changes, "--out", tmp_path / "runs")
    assert code == 0, error
    (complete,) = (tmp_path / "runs").iterdir()
    trained = load_study(complete / "study.toml")
    assert (trained.privacy.mechanism, trained.study.rounds, trained.study.lr, trained.study.seed) == (
        "none",
        1,
        0.01,
        3,
    )
    assert "no differential privacy" in said


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed here")
def test_a_cluster_without_ray_is_one_sentence_and_leaves_nothing(tmp_path, capsys, monkeypatch):
    study = tmp_path / "study.toml"
    study.write_text(tiny_study(rounds=1).toml())
    given = ["simulate", study, "--ray", "local", "--out", tmp_path / "runs"]
    code, _, error = run(capsys, monkeypatch, *given)
    assert code == 1
    assert is_one_sentence(error), error
    assert "pip install 'secagg[ray]'" in error
    assert not list((tmp_path / "runs").iterdir())
    code, _, error = run(
        capsys, monkeypatch, "simulate", study, "--ray", "local", "--plain", "--out", tmp_path / "runs"
    )
    assert code == 1
    assert "leave one of them away" in error


class Killed(BaseException):
    """Takes the process away where it stands."""


@pytest.mark.parametrize(
    ("kind", "number", "how"),
    [
        ("round", 1, Killed),
        ("end_round", 1, KeyboardInterrupt),
        ("dice", 1, KeyboardInterrupt),
        ("step", 2, KeyboardInterrupt),
        ("close", 2, Killed),
        ("end_round", 2, KeyboardInterrupt),
    ],
)
def test_resume_through_the_command_with_its_own_screen(tmp_path, capsys, monkeypatch, kind, number, how):
    """Version 0.3 always ended in `KeyError: 'done'`: the screen had never heard which sites there are."""
    study, runs, kept = tmp_path / "study.toml", tmp_path / "runs", tmp_path / "kept"
    study.write_text(tiny_study(rounds=2, mechanism="none").toml())
    listen = Screen.__call__

    def stop(screen, event) -> None:
        listen(screen, event)
        if (event.kind, getattr(event, "round", None)) == (kind, number):
            shutil.copytree(runs, kept)
            raise how

    with monkeypatch.context() as patched:
        patched.setattr(Screen, "__call__", stop)
        with pytest.raises(Killed) if how is Killed else nullcontext():
            code, _, error = run(capsys, patched, "simulate", study, "--out", runs)
    capsys.readouterr()
    if how is Killed:  # nothing was tidied up
        shutil.rmtree(runs)
        kept.rename(runs)
    else:
        assert code == 1
        assert "go on with --resume" in error
    (cut,) = runs.iterdir()
    done = json.loads((cut / "state.json").read_text())["tally"]["last_round"]
    code, said, error = run(capsys, monkeypatch, "simulate", study, "--resume", "--out", runs)
    assert code == 0, error
    assert f"going on after {f'round {done}' if done else 'the start'}" in said
    assert re.findall(r"round (\d): sum of 3 of 3 sites", said) == ["1", "2"]
    (complete,) = runs.iterdir()
    assert (complete / "report.html").is_file()


def test_nothing_to_resume_is_said(tmp_path, capsys, monkeypatch):
    study = tmp_path / "study.toml"
    study.write_text(tiny_study().toml())
    code, _, error = run(capsys, monkeypatch, "simulate", study, "--resume", "--out", tmp_path / "runs")
    assert code == 1
    assert "no interrupted run" in error


def test_a_run_of_the_first_versions_is_not_resumed(tmp_path, capsys, monkeypatch):
    """Its study has a field that is gone, and its state no format: the reason is told, not the field."""
    study, old = tmp_path / "study.toml", tmp_path / "runs" / "tiny-20261121T101500.partial"
    study.write_text(tiny_study().toml())
    old.mkdir(parents=True)
    (old / "study.toml").write_text(tiny_study().toml().replace("holdout", "split_seed = 1\nholdout"))
    (old / "state.json").write_text('{"tally": {"mode": "secure aggregation"}, "seconds": 1.0, "events": 0}')
    code, _, error = run(capsys, monkeypatch, "simulate", study, "--resume", "--out", tmp_path / "runs")
    assert code == 1
    assert is_one_sentence(error)
    assert f"{old.name}: was written by fedseg 0.1 or 0.2, whose epsilon was not true" in error
    assert sorted(path.name for path in old.iterdir()) == ["state.json", "study.toml"]


def test_epsilon_is_explained_before_any_training(tmp_path, capsys, monkeypatch):
    study = tmp_path / "study.toml"
    study.write_text(tiny_study(seed=None).toml())
    code, said, _ = run(capsys, monkeypatch, "epsilon", study)
    assert code == 0
    claim = ("of 8 per patient at delta 0.01", "noise multiplier", "add or remove one patient", "mu-GDP")
    for words in (*claim, "who is trusted: nobody; each site"):
        assert words in said
