"""Real processes, real TLS, real kills: the demonstration's own machinery on a tiny federation."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from safetensors.torch import load_file

from fedseg.credentials import make_credentials
from fedseg.demo import Demo
from fedseg.evidence import HELD
from fedseg.ledger import read
from fedseg.report import write_report
from fedseg.study import Study
from fedseg.verifying.material import gather
from fedseg.verifying.models import t16_next_model
from tests.support.tiny import tiny_classes, tiny_study

HELD_OUT = (1, 3, 3, 1)
"""Of six patients at each of the four sites."""


def test_a_site_killed_before_its_masked_input_is_out_and_one_killed_after_is_in(tmp_path):
    study = tiny_study(sites=4, rounds=3, seed=None, patients=6)
    # Held back, so that whoever is to be killed before its masked input has not sent it yet.
    study = study.replace(run={"evaluate_every": 3, "hold_seconds": 5}, report={"share_metrics": True})
    events: list[dict] = []
    kills = {(1, "site-b"): "ShareReport", (2, "site-d"): "MaskedInputCollection"}
    run = Demo(tmp_path, study, lambda event: events.append(event.model_dump()), kills).run()

    rounds = {event["round"]: event for event in events if event["kind"] == "end_round"}
    assert list(rounds) == [1, 2, 3]
    assert all(event["exact"] is True for event in rounds.values())  # bit for bit, over what the sites kept
    assert set(rounds[1]["included"]) == set(study.site_ids) - {"site-b"}
    assert rounds[1]["dropped"] == ("site-b",)
    assert set(rounds[2]["included"]) == set(study.site_ids)  # accepted, hence in
    unmasked = {e["site"] for e in events if e["kind"] == "step" and e["round"] == 2 and e["step"] == "Unmasking"}
    # A late signal finds it done with unmasking, and nobody misses it then; tests/faults kills at the step itself.
    assert unmasked >= set(study.site_ids) - {"site-d"}
    back = [("site-b", 2)] + [("site-d", 3)] * ("site-d" not in unmasked)
    assert [(e["site"], e["round"]) for e in events if e["kind"] == "rejoined"] == back
    assert set(rounds[3]["included"]) == set(study.site_ids)

    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["protocol"]["rounds_completed"] == 3
    assert metrics["privacy"]["epsilon"] == pytest.approx(8.0, abs=0.01)
    tested = {site: found["n_test"] for site, found in metrics["dice"]["sites"].items()}
    assert tested == dict(zip(study.site_ids, HELD_OUT, strict=True))
    assert "site-b" in write_report(run).read_text()
    local = [path for path in run.parent.parent.glob("site-a/*") if path.is_dir()]
    assert write_report(local[0]).is_file()
    own = json.loads((local[0] / "metrics.json").read_text())["protocol"]  # what site-a saw for itself
    assert own["dropouts"] == [{"round": 1, "site": "site-b"}]
    assert own["bytes_down"] > own["bytes_up"] > 0
    assert not _children_of(tmp_path)


@pytest.mark.slow
def test_steps_with_the_noise_in_the_sum_are_exact_without_a_site_that_was_killed(tmp_path):
    study = tiny_study(sites=4, rounds=3, seed=None, patients=6, mechanism="distributed")
    study = study.replace(run={"evaluate_every": 3}, report={"share_metrics": True})
    events: list[dict] = []
    demo = Demo(tmp_path, study, lambda event: events.append(event.model_dump()), {(2, "site-b"): "ShareReport"})
    run = demo.run()
    ends = [event for event in events if event["kind"] == "end_round"]
    assert [event["exact"] for event in ends] == [True] * 3
    assert "site-b" not in ends[1]["included"]
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["privacy"]["epsilon"] == pytest.approx(8.0, abs=0.05)
    html = write_report(run).read_text()
    assert "at most 1 of the sites may side with the coordinator" in html
    assert "nobody is trusted" not in html
    assert not _children_of(tmp_path)


@pytest.mark.slow
def test_a_round_that_burns_takes_no_seed_of_its_excess_noise_along(tmp_path):
    """Two of five are killed behind their reports, so that round 2 has too few inputs: nobody disclosed anything."""
    study = tiny_study(sites=5, rounds=3, seed=None, patients=6, mechanism="distributed").replace(
        study={"spare_rounds": 1},
        privacy={"excess_noise": "removed"},
        secagg={"min_survivors": 4},
        run={"evaluate_every": 4, "hold_seconds": 5},
    )
    events: list[dict] = []
    kills = {(2, "site-b"): "ShareReport", (2, "site-d"): "ShareReport"}
    run = Demo(tmp_path, study, lambda event: events.append(event.model_dump()), kills).run()
    ends = [event for event in events if event["kind"] == "end_round"]
    assert [event["exact"] for event in ends] == [True] * 3
    assert [event["round"] for event in events if event["kind"] == "burned"] == [2]
    material = gather([run], None)
    told = [published for _, published in material.rounds.values()]
    seeds = [seed for each in told for seed in each.excess_seeds.values()]
    assert len(seeds) == len(set(seeds)) == sum(len(each.included) for each in told if len(each.included) == 5)
    assert {finding.state for finding in t16_next_model(material)} == {HELD}
    assert not _children_of(tmp_path)


@pytest.mark.slow
def test_classes_are_learned_over_tls_after_one_sum_of_statistics_that_a_killed_site_missed(tmp_path):
    study = _at(tiny_classes(rounds=3, seed=None, mechanism="local").replace(data={"statistics": "secure"}), "abcde")
    study = study.replace(run={"evaluate_every": 3}, report={"share_metrics": True})
    events: list[dict] = []
    run = Demo(tmp_path, study, lambda event: events.append(event.model_dump()), {(1, "site-b"): "ShareReport"}).run()
    ends = [event for event in events if event["kind"] == "end_round"]
    assert [event["exact"] for event in ends] == [True] * 3
    assert "site-b" not in ends[0]["included"]
    (told,) = (e["text"] for e in events if e["kind"] == "note" and e["text"].startswith("statistics of"))
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["privacy"]["epsilon"] <= 8.0
    assert set(metrics["dice"]["overall"]) == {"clear", "cloudy"}
    models = [path.read_bytes() for path in tmp_path.rglob("model.safetensors") if ".partial" not in str(path)]
    assert len(models) >= 5, "of the coordinator and of every site that saw the end"
    assert len(set(models)) == 1, "every party has the same weights, mean and deviation"
    assert "input_mean" in load_file(run / "model.safetensors")
    for site in study.site_ids:  # the killed one may have been charged for what it did not send, never the other way
        (ledger,) = tmp_path.rglob(f"{site}*/ledger.jsonl")
        kinds = [line.entry.kind for line in read(ledger) if line.entry.kind != "metrics"]
        contributed = sum(site in end["included"] for end in ends)
        assert kinds == ["statistics", "local", "local"] or (site == "site-b" and len(kinds) >= contributed)
    assert "with noise" in told
    assert not _children_of(tmp_path)


def test_interrupting_the_demo_ends_all_its_children(tmp_path):
    study = tmp_path / "study.toml"
    study.write_text(tiny_study(sites=3, rounds=50, seed=None).toml(), encoding="utf-8")
    command = [sys.executable, "-m", "fedseg.cli", "demo", "--out", str(tmp_path), "--study", str(study)]
    demo = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while len(_children_of(tmp_path)) < 4:
        assert demo.poll() is None
        time.sleep(0.1)
    demo.send_signal(signal.SIGINT)
    said, _ = demo.communicate(timeout=300)
    assert demo.returncode != 0
    assert "Traceback" not in said
    assert not _children_of(tmp_path)


def test_an_interruption_while_a_child_is_started_leaves_none_behind(tmp_path, monkeypatch):
    """It came out of Popen, after the child's birth: a site waited for ever for a coordinator that was gone."""
    born, popen = [], subprocess.Popen

    def interrupted(*_, **__):
        child = popen(["sleep", "600"])
        born.append(child)
        os.kill(os.getpid(), signal.SIGINT)
        return child

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Demo(tmp_path, tiny_study(), lambda event: None).run()
    (child,) = born
    assert child.wait(timeout=60) == -signal.SIGTERM


def _children_of(folder: Path) -> list[str]:
    """Command lines of living coordinators and sites that were started for `folder`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if {"coordinator", "site"} & set(words) and any(str(folder) in word for word in words):
            found.append(f"{process.name} {' '.join(words)}")
    return [line for line in found if not line.startswith(f"{os.getpid()} ")]


@pytest.mark.slow
def test_a_coordinator_that_is_terminated_before_its_rounds_begin_says_so(tmp_path):
    """It ended with -15 and without a word while it imported and read."""
    (tmp_path / "study.toml").write_text(tiny_study(seed=None).toml(), encoding="utf-8")
    os.mkfifo(tmp_path / "federation.toml")
    command = [sys.executable, "-m", "fedseg.cli", "coordinator", str(tmp_path / "study.toml")]
    command += ["--credentials", str(tmp_path), "--out", str(tmp_path / "runs")]
    coordinator = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    reads = None
    while reads is None:
        assert coordinator.poll() is None
        time.sleep(0.1)
        with suppress(OSError):  # nobody reads yet
            reads = os.open(tmp_path / "federation.toml", os.O_WRONLY | os.O_NONBLOCK)
    coordinator.send_signal(signal.SIGTERM)
    said, _ = coordinator.communicate(timeout=300)
    os.close(reads)
    assert (coordinator.returncode, said) == (75, "SIGTERM came; the same command goes on with this run\n")


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_same_command_goes_on_with_a_coordinator_that_was_ended_and_says_when_the_run_is_finished(tmp_path, how):
    """Rows 1 and 5 of the trials: the run was lost, and every site refused for ever."""
    study, credentials = tiny_study(sites=3, rounds=3, seed=None, steps=60, patients=6), tmp_path / "credentials"
    make_credentials(credentials, study, "trial")
    (tmp_path / "study.toml").write_text(study.toml(), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fedseg = [sys.executable, "-m", "fedseg.cli"]
    given = [str(tmp_path / "study.toml"), "--credentials", str(credentials)]
    coordinator = [*fedseg, "coordinator", *given, "--port", str(port), "--out", str(tmp_path / "runs")]
    sites = [
        subprocess.Popen(
            [
                *fedseg,
                "site",
                given[0],
                name,
                *given[1:],
                "--coordinator",
                f"127.0.0.1:{port}",
                "--out",
                str(tmp_path / name),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name in study.site_ids
    ]
    try:
        first = subprocess.Popen(coordinator, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        deadline = time.monotonic() + 900  # limits for a busy machine: nothing waits for them where all is well
        while not _has(tmp_path / "runs", '"round":2', "MaskedInputCollection"):
            assert first.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        first.send_signal(how)
        said, _ = first.communicate(timeout=300)
        assert first.returncode == (-signal.SIGKILL if how is signal.SIGKILL else 75), said
        if how is signal.SIGTERM:
            assert "the same command goes on with this run" in said
        again = subprocess.run(coordinator, capture_output=True, text=True, timeout=900, check=False)
        assert again.returncode == 0, again.stdout + again.stderr
        assert [site.wait(timeout=900) for site in sites] == [0, 0, 0]
    finally:
        for site in sites:
            site.kill()
    (run,) = (path for path in (tmp_path / "runs").glob("tiny-*") if path.is_dir())
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert [(event["round"], len(event["included"])) for event in events if event["kind"] == "end_round"] == [
        (1, 3),
        (2, 3),
        (3, 3),
    ]
    assert not [event for event in events if event["kind"] == "burned"], "nothing that could finish is lost"
    last = subprocess.run(coordinator, capture_output=True, text=True, timeout=600, check=False)
    assert last.returncode == 0, last.stdout + last.stderr
    assert "this run is finished" in last.stdout


def _has(runs: Path, *words: str) -> bool:
    """Whether a line of the run's events has all of these words."""
    lines = [line for path in runs.glob("*/events.jsonl") for line in path.read_text().splitlines()]
    return any(all(word in line for word in words) for line in lines)


@pytest.mark.slow
def test_a_site_whose_disk_is_full_says_so_waits_and_is_in_a_later_round(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", disk], check=False).returncode
    ):
        pytest.skip("a disk that can be filled takes the rights to mount one")
    study = tiny_classes(rounds=4, seed=None, mechanism="local").replace(run={"evaluate_every": 4, "hold_seconds": 5})
    study = _at(study.replace(data={"statistics": "secure"}), "abcd")
    make_credentials(tmp_path / "credentials", study, "trial")
    (tmp_path / "study.toml").write_text(study.toml(), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = [str(tmp_path / "study.toml"), "--credentials", str(tmp_path / "credentials")]
    parties = {
        "coordinator": [
            *("coordinator", *given, "--port", str(port), "--out", str(tmp_path / "runs")),
            *("--patience", "600"),  # on a busy machine
        ],
        **{
            site: [
                *("site", given[0], site, *given[1:], "--coordinator", f"127.0.0.1:{port}"),
                *("--state", str(folder / "state"), "--out", str(folder / "runs")),
            ]
            for site in study.site_ids
            for folder in [disk if site == "site-a" else tmp_path / site]
        },
    }
    said = {who: tmp_path / f"{who}.txt" for who in parties}
    children = {}
    try:
        for who, words in parties.items():
            with said[who].open("w") as out:
                command = [sys.executable, "-m", "fedseg.cli", *words]
                children[who] = subprocess.Popen(
                    command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
                )
        _until(lambda: _has(tmp_path / "runs", '"round":2', '"site-a"', "ShareReport"), children)
        with suppress(OSError), (disk / "ballast").open("wb") as ballast:
            while True:
                ballast.write(bytes(1 << 20))
        _until(lambda: "the disk is full" in said["site-a"].read_text(), children)
        _until(lambda: _has(tmp_path / "runs", '"kind":"end_round"', '"round":2'), children)
        (disk / "ballast").unlink()
        assert {who: child.wait(timeout=900) for who, child in children.items()} == dict.fromkeys(parties, 0)
        (ledger,) = disk.rglob("ledger.jsonl")
        kinds = [line.entry.kind for line in read(ledger) if line.entry.kind != "metrics"]
        assert kinds[0] == "statistics"
        assert set(kinds[1:]) == {"local"}
        (run,) = (path for path in (disk / "runs").iterdir() if not path.name.endswith(".partial"))
        assert (run / "model.safetensors").is_file()
    finally:
        for child in children.values():
            child.kill()
            child.wait()
        subprocess.run(["umount", "-l", disk], check=True)
    assert "goes on by itself" in said["site-a"].read_text()
    (run,) = (path for path in (tmp_path / "runs").iterdir() if path.is_dir())
    ends = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines() if '"end_round"' in line]
    included = [set(end["included"]) for end in ends]
    assert included[0] == set(study.site_ids)
    assert included[1] == set(study.site_ids) - {"site-a"}
    assert "site-a" in included[-1]


def _at(study: Study, letters: str) -> Study:
    """The same study at other sites."""
    sites = [{"id": f"site-{letter}", "patients": 6} for letter in letters]
    return Study.model_validate_json(json.dumps({**study.model_dump(mode="json"), "sites": sites}))


def _until(condition, children) -> None:
    while not condition():
        assert all(child.poll() is None for child in children.values())
        time.sleep(0.05)
