"""Certificates: what is written, and one sentence for everything that can be wrong with a file."""

import datetime as dt
import pickle
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from secagg.errors import ConfigError
from secagg.rpc.tls import Authority, ClientTls, ServerTls, make_certificates

DAY = dt.timedelta(days=1)
NOW = dt.datetime.now(dt.UTC)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    make_certificates(folder, ["site-a", "site-b"], ["ward.example", "192.0.2.7"])
    return folder


def client(folder: Path, name: str = "site-a", roster=("site-a", "site-b"), **paths: Path) -> ClientTls:
    files = {
        "authority": folder / "authority.pem",
        "certificate": folder / f"{name}.pem",
        "key": folder / f"{name}.key",
    }
    return ClientTls.load(**(files | paths), roster=roster)


def test_names_hosts_and_usages(made):
    coordinator = x509.load_pem_x509_certificate((made / "coordinator.pem").read_bytes())
    names = coordinator.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "ward.example"]
    addresses = [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    assert addresses == ["127.0.0.1", "::1", "192.0.2.7"]
    assert client(made).name == "site-a"
    assert client(made, "site-b").name == "site-b"
    ServerTls.load(made / "authority.pem", made / "coordinator.pem", made / "coordinator.key")


def test_keys_are_private_and_the_authority_key_is_not_kept(made):
    keys = sorted(made.glob("*.key"))
    assert [key.name for key in keys] == ["coordinator.key", "site-a.key", "site-b.key"]
    assert {key.stat().st_mode & 0o777 for key in keys} == {0o600}
    assert len(list(made.iterdir())) == 7


def test_a_repeat_replaces_everything_and_narrows_rights(tmp_path):
    make_certificates(tmp_path, ["site-a"])
    (tmp_path / "site-a.key").chmod(0o644)
    before = (tmp_path / "site-a.pem").read_bytes()
    make_certificates(tmp_path, ["site-a"])
    assert (tmp_path / "site-a.pem").read_bytes() != before
    assert (tmp_path / "site-a.key").stat().st_mode & 0o777 == 0o600
    client(tmp_path)


def test_no_key_in_repr_or_pickle(made):
    credentials = client(made)
    assert "PRIVATE" not in repr(credentials)
    assert "BEGIN" not in repr(credentials)
    with pytest.raises(TypeError, match="private key"):
        pickle.dumps(credentials)


def test_the_chain_satisfies_the_strictest_verifier(made):
    """The web's rules are stricter than gRPC's; a hospital's proxy may apply them."""
    store = x509.verification.Store([x509.load_pem_x509_certificate((made / "authority.pem").read_bytes())])
    leaf = x509.load_pem_x509_certificate((made / "coordinator.pem").read_bytes())
    verifier = x509.verification.PolicyBuilder().store(store).build_server_verifier(x509.DNSName("localhost"))
    assert verifier.verify(leaf, [])


def test_certificates_through_an_intermediate_authority(tmp_path):
    """Hospitals issue from an intermediate; the certificate file then holds the chain."""
    root, middle = Authority(), Authority()
    root.write(tmp_path)
    middle._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "intermediate")])
    bridge = (
        root._builder(middle._name, middle._key.public_key(), root._valid)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(root._key, root._certificate.signature_hash_algorithm)
    )
    certificate, _ = middle.issue(tmp_path, "site-a")
    with pytest.raises(ConfigError, match="was not issued by the authority"):
        client(tmp_path)
    chain = certificate.read_bytes() + bridge.public_bytes(serialization.Encoding.PEM)
    certificate.write_bytes(chain)
    assert client(tmp_path).name == "site-a"


@pytest.mark.parametrize("what", ["authority", "certificate", "key"])
def test_missing_files_are_named(made, tmp_path, what):
    with pytest.raises(ConfigError, match=rf"{what} file .*absent.pem cannot be read \(No such file or directory\)"):
        client(made, **{what: tmp_path / "absent.pem"})


@pytest.mark.parametrize(
    ("first", "last", "sentence"),
    [
        (NOW - 2 * DAY, NOW - DAY, r"late.pem expired on \d{4}-\d\d-\d\d .* ask for a new one"),
        (NOW + DAY, NOW + 2 * DAY, r"late.pem is not valid before .* check the clock"),
    ],
)
def test_dates(tmp_path, first, last, sentence):
    authority = Authority()
    authority.write(tmp_path)
    authority.issue(tmp_path, "late", valid=(first, last))
    with pytest.raises(ConfigError, match=sentence):
        client(tmp_path, "late", roster=["late"])


def test_an_expired_authority_is_named(tmp_path):
    authority = Authority(valid=(NOW - 2 * DAY, NOW - DAY))
    authority.write(tmp_path)
    authority.issue(tmp_path, "site-a", valid=(NOW - DAY, NOW + DAY))
    with pytest.raises(ConfigError, match=r"authority.pem expired"):
        client(tmp_path)


def test_another_authority(made, tmp_path):
    Authority().write(tmp_path)
    with pytest.raises(ConfigError, match=r"site-a.pem was not issued by the authority .*authority.pem; use"):
        client(made, authority=tmp_path / "authority.pem")


def test_another_key(made):
    with pytest.raises(ConfigError, match=r"site-b.key does not belong to certificate .*site-a.pem"):
        client(made, key=made / "site-b.key")


def test_a_name_outside_the_roster(made):
    with pytest.raises(ConfigError, match=r"site-a.pem is for 'site-a', which is not in the roster \(site-b, site-c\)"):
        client(made, roster=["site-c", "site-b"])


def test_roles_cannot_be_swapped(made):
    with pytest.raises(ConfigError, match=r"site-a.pem is not for a coordinator"):
        ServerTls.load(made / "authority.pem", made / "site-a.pem", made / "site-a.key")
    with pytest.raises(ConfigError, match=r"coordinator.pem is not for a site"):
        client(made, "coordinator", roster=["coordinator"])


def test_files_of_another_kind(made, tmp_path):
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("hello")
    nonsense.chmod(0o600)
    with pytest.raises(ConfigError, match=r"nonsense.pem is not a certificate in PEM form"):
        client(made, certificate=nonsense)
    with pytest.raises(ConfigError, match=r"nonsense.pem is not a private key in PEM form"):
        client(made, key=nonsense)
    locked = tmp_path / "locked.key"
    locked.write_bytes(
        ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"word"),
        )
    )
    locked.chmod(0o600)
    with pytest.raises(ConfigError, match=r"locked.key has a password"):
        client(made, key=locked)


@pytest.mark.parametrize("name", ["authority", "coordinator"])
def test_site_names_that_would_overwrite_files(tmp_path, name):
    with pytest.raises(ConfigError, match=f"site id '{name}'"):
        make_certificates(tmp_path / "new", ["site-a", name])
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write certificates"):
        make_certificates(tmp_path / "file" / "below", ["site-a"])
