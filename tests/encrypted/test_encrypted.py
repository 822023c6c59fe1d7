"""Inference on encrypted images: what can be shown without SPU. The three parties: test_encrypted_parties.py."""

import io
import json
import os
import re
import socket
import ssl
import threading
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional

from fedseg.encrypted.asking import EncryptedNetwork
from fedseg.encrypted.frames import put, take
from fedseg.encrypted.parties import PartyError, answers, make_key, read_parties
from fedseg.encrypted.program import Program
from fedseg.encrypted.session import Session
from fedseg.encrypted.tracing import program_of
from fedseg.errors import ConfigError
from fedseg.models import build_model
from tests.support.command import is_one_sentence, run
from tests.support.tiny import study_with

TORCH = {
    "conv": lambda x, w, *more: functional.conv2d(x, w, *more[:-2] or (None,), int(more[-2]), int(more[-1])),
    "grow": lambda x, w, *more: functional.conv_transpose2d(x, w, *more[:-3] or (None,), *map(int, more[-3:])),
    "norm": lambda x, gain, shift, groups, small: functional.group_norm(x, int(groups), gain, shift, small),
    "relu": lambda x, slope: functional.leaky_relu(x, slope),
    "prelu": functional.prelu,
    "pool": lambda x, side, stride, padding: functional.max_pool2d(x, int(side), int(stride), int(padding)),
    "mean": lambda x: x.mean((2, 3)),
    "linear": functional.linear,
    "add": torch.add,
    "join": lambda one, other: torch.cat([one, other], 1),
}


CASES = [
    ("cnn-small", 32, "[4, 8]", {}),
    ("resnet18", 32, "[4, 8, 8, 8]", {}),
    ("resnet18", 80, "[4, 8, 8, 8]", {}),
    ("unet-small", 32, "[4, 8]", {}),
    ("unet", 32, "[4, 8, 8, 8]", {"weight_standardisation": "true", "trainable": '"lora:2"'}),
    ("dynunet", 32, "[4, 8]", {}),
]


@pytest.mark.parametrize(("network", "size", "channels", "others"), CASES, ids=str)
def test_the_program_computes_what_the_network_does(network, size, channels, others):
    computes_alike(study_with(network, size, channels, **others))


def test_the_program_standardises_pictures_as_the_network_does():
    """[data] statistics: a hook of the network, with values of its file."""
    public = {"statistics": "public", "mean": [0.4], "sd": [2.0]}
    computes_alike(study_with("unet-small", 32, "[4, 8]").replace(data=public))


def test_a_program_with_other_outputs_than_its_study_says_is_refused():
    class Answering:
        def ask(self, pictures):
            return np.zeros((len(pictures), 3, 32, 32), np.float32)

    study = study_with("unet-small", 32, "[4, 8]")
    asked = EncryptedNetwork(Answering(), study)
    with pytest.raises(PartyError, match=f"3 outputs and its study has {len(study.study.structures) + 1}"):
        asked(torch.zeros(2, 1, 32, 32))


def computes_alike(study):
    model = build_model(study).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    program, weights = program_of(model, study)
    program = Program.read(program.text())  # as the other two have it
    pictures = torch.randn(2, *program.picture)
    values = [pictures]
    with torch.no_grad():
        for step in program.steps:
            given = [torch.from_numpy(weights[name]) for name in step.weights]
            values.append(TORCH[step.does](*(values[at] for at in step.takes), *given, *step.numbers))
        assert torch.allclose(values[-1], model(pictures), atol=1e-4)
    assert {name: values.shape for name, values in weights.items()} == program.weights


@pytest.mark.parametrize(("network", "channels", "moved"), [("cnn-small", "[4, 8]", 2), ("unet-small", "[4, 8]", 0)])
def test_relu_comes_after_a_pool_where_nothing_else_takes_it(network, channels, moved):
    """On a quarter of the values. Of a U-Net the decoder takes them too, and nothing is moved."""
    study = study_with(network, 32, channels)
    steps = program_of(build_model(study), study)[0].steps
    assert [one.does + other.does for one, other in pairwise(steps)].count("poolrelu") == moved


@pytest.mark.parametrize("network", ["segresnet", "monet", "unet-resnet18"])
def test_a_network_that_cannot_be_asked_is_refused_by_name(network):
    study = study_with(network)
    with pytest.raises(ConfigError, match=rf"network '{network}' has .*; train cnn-small"):
        program_of(build_model(study), study)


def test_a_study_in_three_dimensions_is_refused():
    study = study_with("unet-small", 16, dims=3, slices_per_patient=1)
    with pytest.raises(ConfigError, match="2D pictures and slices only"):
        program_of(build_model(study), study)


@pytest.mark.parametrize(
    "change",
    [
        lambda said: said["steps"][0].__setitem__(0, "reveal"),
        lambda said: said["steps"][0].__setitem__(1, [1]),
        lambda said: said["steps"][0].__setitem__(2, ["others"]),
        lambda said: said["steps"][0].__setitem__(3, [1.0, float("nan")]),
        lambda said: said["steps"][0].append([]),
        lambda said: said["weights"].__setitem__("0.weight", [1 << 20, 1 << 20]),
        lambda said: said["weights"].__setitem__("0.weight", [-4, 1, 3, 3]),
        lambda said: said["steps"].clear(),
        lambda said: said.pop("picture"),
    ],
)
def test_a_program_of_somebody_else_is_read_strictly(change):
    study = study_with("cnn-small", 32, "[4]")
    said = json.loads(program_of(build_model(study), study)[0].text())
    change(said)
    with pytest.raises(ConfigError):
        Program.read(json.dumps(said))


def folder_of_three(tmp_path, port=9401):
    """`parties.toml` with three keys beside it."""
    lines = []
    for number, role in enumerate(("data", "model", "third")):
        make_key(role, tmp_path)
        lines += [f"[{role}]", f'address = "127.0.0.1:{port + number}"', f'certificate = "{role}.pem"']
        lines += [f'sha256 = "{"0" * 64}"'] if role == "model" else []
    path = tmp_path / "parties.toml"
    path.write_text("\n".join(lines))
    return path


def test_keys_are_their_owners_only_and_are_never_replaced(tmp_path, capsys, monkeypatch):
    path = folder_of_three(tmp_path)
    assert (tmp_path / "data.key").stat().st_mode & 0o777 == 0o600
    before = (tmp_path / "data.key").read_bytes()
    code, _, said = run(capsys, monkeypatch, "encrypted", "keygen", "data", tmp_path)
    assert (code, is_one_sentence(said)) == (1, True)
    assert (tmp_path / "data.key").read_bytes() == before
    parties = read_parties(path)
    assert parties.key("data") == tmp_path / "data.key"
    os.chmod(tmp_path / "data.key", 0o644)
    with pytest.raises(ConfigError, match="others can read this private key"):
        parties.key("data")
    with pytest.raises(ConfigError, match="is not the key of"):
        parties.key("data", tmp_path / "model.key")


@pytest.mark.parametrize("days", ["inf", "1e9"])
def test_days_that_no_calendar_has_are_one_sentence(tmp_path, days, capsys, monkeypatch):
    code, _, said = run(capsys, monkeypatch, "encrypted", "keygen", "data", tmp_path, "--days", days)
    assert (code, is_one_sentence(said)) == (1, True), said
    assert "at most 36500" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("[third]", "[fourth]", "[third] has"),
        ("127.0.0.1:9402", "127.0.0.1", "no HOST:PORT"),
        ("127.0.0.1:9402", "127.0.0.1:99999", "no HOST:PORT"),
        ("0" * 64, "0" * 63, "no hash"),
        ("third.pem", "model.pem", "two parties have one certificate"),
        ("third.pem", "absent.pem", "cannot be read"),
        ("third.pem", "third.key", "is not a certificate"),
        ("[data]", "[data", "not valid TOML"),
        ("[data]", "[data]\nsecret = 'x'", "and nothing else"),
    ],
)
def test_parties_are_refused_in_one_sentence(tmp_path, before, after, told):
    path = folder_of_three(tmp_path)
    path.write_text(path.read_text().replace(before, after))
    with pytest.raises(ConfigError, match=re.escape(told)):
        read_parties(path)


def test_a_party_is_its_certificate_whatever_is_named_in_it(tmp_path):
    path = folder_of_three(tmp_path)
    make_key("third", tmp_path / "stranger")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "stranger/third.pem", tmp_path / "stranger/third.key")
    with socket.create_server(("127.0.0.1", 0)) as server:
        text = path.read_text().replace("127.0.0.1:9403", f"127.0.0.1:{server.getsockname()[1]}")
        path.write_text(text)
        parties = read_parties(path)

        def greet():
            with pytest.raises(ssl.SSLError):
                context.wrap_socket(server.accept()[0], server_side=True)

        thread = threading.Thread(target=greet)
        thread.start()
        with pytest.raises(PartyError, match=r"the third party at .* shows another certificate than .*third.pem"):
            answers(parties.each["third"], tmp_path / "data.pem", parties.key("data"))
        thread.join()
    assert not answers(parties.each["third"], tmp_path / "data.pem", parties.key("data")), "nobody is there any more"


@pytest.fixture
def asking(tmp_path):
    """The pictures' owner's session, whose engine is a pipe that nobody reads; nobody listens anywhere."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    path = folder_of_three(tmp_path)
    for number, one in enumerate(held):
        path.write_text(path.read_text().replace(f":{9401 + number}", f":{one.getsockname()[1]}"))
        one.close()
    parties = read_parties(path)
    session = Session(parties, "data", parties.key("data"), wait=1.0)
    session._process = SimpleNamespace(stdin=io.BytesIO(), kill=lambda: None, wait=lambda: None)
    yield session
    session._folder.cleanup()


def test_somebody_who_listens_and_says_nothing_is_not_there_and_not_waited_for_for_ever(asking, monkeypatch):
    monkeypatch.setattr("fedseg.encrypted.parties._SECONDS", 0.2)
    silent = [socket.create_server(("127.0.0.1", int(other.address.partition(":")[2]))) for other in asking._others]
    asking._look(0.5)
    with pytest.raises(
        PartyError, match=r"the model's owner at .* and the third party at .* did not answer within 1 s"
    ):
        asking._look(1.5)
    for one in silent:
        one.close()


def test_two_who_answer_and_do_not_begin_are_not_waited_for_for_ever(asking, monkeypatch):
    monkeypatch.setattr("fedseg.encrypted.session.answers", lambda *given: True)
    asking._look(0.5)
    with pytest.raises(PartyError, match=r"the other two answer, and all three did not come together within 1 s"):
        asking._look(1.5)


def test_a_party_that_ends_in_the_middle_of_a_greeting_has_refused_no_certificate(asking):
    third = asking._others[1]
    server = socket.create_server(("127.0.0.1", int(third.address.partition(":")[2])))

    def ends():
        connection = server.accept()[0]
        server.close()
        connection.close()

    thread = threading.Thread(target=ends)
    thread.start()
    assert not answers(third, asking._parties.each["data"].certificate, asking._key)
    thread.join()


def test_a_refusal_counts_at_the_second_look_for_an_engine_may_end_between_two_sessions(asking, monkeypatch):
    def refusing(*given):
        raise PartyError("does not take our certificate")

    monkeypatch.setattr("fedseg.encrypted.session.answers", refusing)
    asking._look(0.1)
    monkeypatch.setattr("fedseg.encrypted.session.answers", lambda *given: True)
    asking._look(0.2)
    monkeypatch.setattr("fedseg.encrypted.session.answers", refusing)
    asking._look(0.3)
    with pytest.raises(PartyError, match="does not take our certificate"):
        asking._look(0.4)


def test_answers_that_are_here_are_not_lost_because_the_others_leave_first(asking, monkeypatch):
    monkeypatch.setattr("fedseg.encrypted.session.LEAVING", 0.5)
    asking._linked = True
    asking.end()
    asking._frames.put(({"end": True}, []))
    monkeypatch.setattr("fedseg.encrypted.session.LEAVING", 1000.0)
    asking.end()


def test_an_engine_that_breaks_before_it_began_says_whether_it_could_listen(asking):
    asking._frames.put(({"broken": "somebody left"}, []))
    with pytest.raises(PartyError, match=r"the model's owner at .* has gone, nothing was written"):
        asking.hear("ready")
    with socket.create_server(("127.0.0.1", int(asking._setup["addresses"][0][1].partition(":")[2]))):
        asking._frames.put(({"broken": "somebody left"}, []))
        with pytest.raises(ConfigError, match=r"could not begin at .*; free the port"):
            asking.hear("ready")


def test_frames_are_what_was_written_or_nothing(tmp_path):
    arrays = [np.arange(6, dtype=np.float32).reshape(2, 3), np.zeros((0,), np.float32)]
    with (tmp_path / "pipe").open("wb") as stream:
        put(stream, {"ask": True}, arrays)
    with (tmp_path / "pipe").open("rb") as stream:
        said, found = take(stream)
        assert said == {"ask": True}
        assert all(np.array_equal(one, other) for one, other in zip(found, arrays, strict=True))
        assert take(stream) is None
    whole = (tmp_path / "pipe").read_bytes()
    for end in (3, len(whole) - 1):  # its process was killed while it wrote
        (tmp_path / "pipe").write_bytes(whole[:end])
        with (tmp_path / "pipe").open("rb") as stream:
            assert take(stream) is None


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("serve", "--third"), "make encrypted"),
        (("serve",), "say --model FILE"),
        (("ask", "picture.png", "classes.csv"), "make encrypted"),
    ],
)
def test_without_its_environment_the_command_says_which_one(capsys, monkeypatch, arguments, told):
    monkeypatch.setattr("fedseg.encrypted.session.find_spec", lambda name: None)
    code, _, said = run(capsys, monkeypatch, "encrypted", *arguments)
    assert (code, is_one_sentence(said)) == (1, True), said
    assert told in said
    assert not Path("classes.csv").exists()
