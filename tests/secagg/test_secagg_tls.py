"""Certificates: what is written, and one sentence for everything that can be wrong with a file."""

import asyncio
import datetime as dt
import pickle
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from secagg.errors import ConfigError
from secagg.rpc import frames
from secagg.rpc.authority import Authority
from secagg.rpc.demo_authority import make_certificates
from secagg.rpc.frames import SERVICE
from secagg.rpc.server import MailboxServer
from secagg.rpc.tls import ClientTls, ServerTls, site_named_by
from secagg.rpc.transport_pb2 import Greeting, Welcome

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


# --- Who a certificate is for -----------------------------------------------------------------------------------------

CLIENT, SERVER = x509.ExtendedKeyUsageOID.CLIENT_AUTH, x509.ExtendedKeyUsageOID.SERVER_AUTH
KEY_USAGE = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
KEY_USAGE += ("key_cert_sign", "crl_sign", "encipher_only", "decipher_only")


def issued(authority: Authority, folder: Path, names=("site-a",), usages=(CLIENT,), others=(), signs=True) -> None:
    """A certificate `site-a.pem` as another tool may have made it."""
    _, key_path = authority.issue(folder, "site-a")
    key = serialization.load_pem_private_key(key_path.read_bytes(), None)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name) for name in names])
    builder = authority._builder(subject, key.public_key(), authority._valid)
    if usages:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    if others:
        builder = builder.add_extension(x509.SubjectAlternativeName(map(x509.DNSName, others)), critical=False)
    if signs is not None:
        allowed = dict.fromkeys(KEY_USAGE, False) | {"digital_signature": signs, "key_encipherment": True}
        builder = builder.add_extension(x509.KeyUsage(**allowed), critical=True)
    pem = builder.sign(authority._key, authority._certificate.signature_hash_algorithm)
    (folder / "site-a.pem").write_bytes(pem.public_bytes(serialization.Encoding.PEM))


GOOD = {
    "plain": {},
    "no key usage": {"signs": None},
    "also a server's": {"usages": (CLIENT, SERVER)},
    "its own name again": {"others": ("site-a",)},
}
BAD = {
    "no usage": ({"usages": ()}, "is not for a site"),
    "a server's": ({"usages": (SERVER,)}, "is not for a site"),
    "may not sign": ({"signs": False}, "is not for a site"),
    "two names": ({"names": ("site-a", "mallory")}, "has 2 common names and must have one"),
    "the same name twice": ({"names": ("site-a", "site-a")}, "has 2 common names and must have one"),
    "no name": ({"names": ()}, "has 0 common names and must have one"),
    "another name beside it": ({"others": ("mallory",)}, "names 'site-a' and others and must name one site"),
    "two names beside it": ({"others": ("site-a", "mallory")}, "names 'site-a' and others and must name one site"),
}


@pytest.mark.parametrize("how", GOOD)
def test_certificates_of_other_tools(tmp_path, how):
    authority = Authority()
    authority.write(tmp_path)
    issued(authority, tmp_path, **GOOD[how])
    assert client(tmp_path).name == "site-a"
    assert site_named_by((tmp_path / "site-a.pem").read_bytes()) == "site-a"


@pytest.mark.parametrize("how", BAD)
def test_a_certificate_for_nothing_or_for_two_is_refused_when_it_is_loaded(tmp_path, how):
    authority = Authority()
    authority.write(tmp_path)
    options, sentence = BAD[how]
    issued(authority, tmp_path, **options)
    with pytest.raises(ConfigError, match=f"site-a.pem {sentence}"):
        client(tmp_path)


@pytest.mark.parametrize("how", [name for name in BAD if name not in ("a server's", "may not sign")])
def test_a_certificate_for_nothing_or_for_two_is_refused_when_a_peer_presents_it(tmp_path, how):
    """The coordinator does not rely on its sites to look; gRPC itself refuses the two kinds left out."""
    authority = Authority()
    authority.write(tmp_path)
    authority.issue(tmp_path, "coordinator", ["127.0.0.1"])
    options, sentence = BAD[how]
    issued(authority, tmp_path, **options)

    async def scenario() -> str:
        tls = ServerTls.load(*(tmp_path / name for name in ("authority.pem", "coordinator.pem", "coordinator.key")))
        server = MailboxServer(["site-a", "mallory"], tls)
        port = await server.start("127.0.0.1", 0)
        pem = [(tmp_path / name).read_bytes() for name in ("authority.pem", "site-a.key", "site-a.pem")]
        async with grpc.aio.secure_channel(f"127.0.0.1:{port}", grpc.ssl_channel_credentials(*pem)) as channel:
            hello = channel.unary_unary(f"/{SERVICE}/Hello", Greeting.SerializeToString, Welcome.FromString)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await hello(Greeting(version=frames.VERSION, session=bytes(16)), timeout=20)
        assert await server.receive(0.05) is None
        await server.stop(0.0)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        return caught.value.details()

    assert sentence in asyncio.run(scenario())


@pytest.mark.parametrize("pem", [b"", b"nonsense", b"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"])
def test_a_peer_without_a_readable_certificate_is_nobody(pem):
    with pytest.raises(ValueError, match="missing or cannot be read"):
        site_named_by(pem)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o660])
@pytest.mark.parametrize("name", ["site-a", "coordinator"])
def test_a_key_that_others_can_reach_is_refused(tmp_path, mode, name):
    make_certificates(tmp_path, ["site-a"])
    (tmp_path / f"{name}.key").chmod(mode)
    kind, rest = (ServerTls, ()) if name == "coordinator" else (ClientTls, (["site-a"],))
    paths = [tmp_path / file for file in ("authority.pem", f"{name}.pem", f"{name}.key")]
    with pytest.raises(
        ConfigError, match=rf"{name}.key: others can read this private key; run: chmod 600 .*{name}.key"
    ):
        kind.load(*paths, *rest)
    paths[2].chmod(0o400)
    kind.load(*paths, *rest)


# --- Files as other tools leave them ----------------------------------------------------------------------------------

LEFT_BY = {
    "Windows": lambda pem: pem.replace(b"\n", b"\r\n"),
    "Notepad": lambda pem: b"\xef\xbb\xbf" + pem.replace(b"\n", b"\r\n"),
    "Notepad, as UTF-16": lambda pem: pem.decode().encode("utf-16"),
    "openssl -text": lambda pem: b"Certificate:\n    Data:\n        Version: 3 (0x2)\n" + pem,
    "an editor without last line end": bytes.rstrip,
}


@pytest.mark.parametrize("tool", LEFT_BY)
def test_a_file_is_read_as_its_tool_left_it_and_goes_to_grpc_as_the_libraries_write_it(made, tmp_path, tool):
    for path in made.iterdir():
        (tmp_path / path.name).write_bytes(LEFT_BY[tool](path.read_bytes()))
        (tmp_path / path.name).chmod(0o600)
    for folder in (tmp_path, made):
        tls = client(folder)
        assert tls.key == (made / "site-a.key").read_bytes()
        assert tls.certificate == (made / "site-a.pem").read_bytes()


def test_the_curve_that_openssl_ecparam_writes_in_front_of_a_key_is_no_harm(made, tmp_path):
    key = serialization.load_pem_private_key((made / "site-a.key").read_bytes(), None)
    old = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    curve = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
    (tmp_path / "old.key").write_bytes(curve + old)
    (tmp_path / "old.key").chmod(0o600)
    assert client(made, key=tmp_path / "old.key").key == (made / "site-a.key").read_bytes()


REFUSED = {
    "an Ed25519 key": ed25519.Ed25519PrivateKey.generate,
    "an EC key on brainpoolP256r1": lambda: ec.generate_private_key(ec.BrainpoolP256R1()),
    "an EC key on secp521r1": lambda: ec.generate_private_key(ec.SECP521R1()),
    "an RSA key of 1024 bits": lambda: rsa.generate_private_key(65537, 1024),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_key_that_grpc_cannot_use_is_named(made, tmp_path, kind):
    key = REFUSED[kind]()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "odd.key").write_bytes(pem)
    (tmp_path / "odd.key").chmod(0o600)
    with pytest.raises(ConfigError, match=rf"key .*odd.key is {kind}, which is refused; use an EC key on P-256"):
        client(made, key=tmp_path / "odd.key")
    authority = Authority()
    builder = authority._builder(
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "site-a")]), key.public_key(), authority._valid
    )
    signed = builder.sign(authority._key, authority._certificate.signature_hash_algorithm)
    (tmp_path / "odd.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    with pytest.raises(ConfigError, match=rf"certificate .*odd.pem holds {kind}, which is refused"):
        client(made, certificate=tmp_path / "odd.pem")


# --- Revocation -------------------------------------------------------------------------------------------------------


def crl(authority: Authority, path: Path, serials: list[int]) -> Path:
    builder = (
        x509.CertificateRevocationListBuilder().issuer_name(authority._name).last_update(NOW).next_update(NOW + DAY)
    )
    for serial in serials:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(NOW).build()
        builder = builder.add_revoked_certificate(entry)
    signed = builder.sign(authority._key, authority._certificate.signature_hash_algorithm)
    path.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    return path


def test_a_revoked_certificate_is_refused_at_its_first_call(tmp_path):
    authority = Authority()
    authority.write(tmp_path)
    authority.issue(tmp_path, "coordinator", ["127.0.0.1"])
    names = ("authority.pem", "coordinator.pem", "coordinator.key")
    serials = {}
    for site in ("site-a", "site-b"):
        certificate, _ = authority.issue(tmp_path, site)
        serials[site] = x509.load_pem_x509_certificate(certificate.read_bytes()).serial_number
    listed = crl(authority, tmp_path / "revoked.pem", [serials["site-b"]])
    tls = ServerTls.load(*(tmp_path / name for name in names), listed)

    async def said_to(port: int, site: str) -> str:
        pem = [(tmp_path / name).read_bytes() for name in ("authority.pem", f"{site}.key", f"{site}.pem")]
        async with grpc.aio.secure_channel(f"127.0.0.1:{port}", grpc.ssl_channel_credentials(*pem)) as channel:
            hello = channel.unary_unary(f"/{SERVICE}/Hello", Greeting.SerializeToString, Welcome.FromString)
            try:
                await hello(Greeting(version=frames.VERSION, session=bytes(16)), timeout=20)
            except grpc.aio.AioRpcError as error:
                return error.details()
        return "welcome"

    async def scenario() -> list[str]:
        server = MailboxServer(serials, tls)
        port = await server.start("127.0.0.1", 0)
        try:
            return [await said_to(port, site) for site in serials]
        finally:
            await server.stop(0.0)

    welcome, refused = asyncio.run(scenario())
    assert welcome == "welcome"
    assert "the certificate was revoked by the coordinator" in refused


def test_a_list_of_another_authority_or_of_nonsense_lets_nobody_in(tmp_path):
    authority = Authority()
    authority.write(tmp_path)
    authority.issue(tmp_path, "coordinator", ["127.0.0.1"])
    paths = [tmp_path / name for name in ("authority.pem", "coordinator.pem", "coordinator.key")]
    assert ServerTls.load(*paths, tmp_path / "absent.pem").revoked == frozenset()
    with pytest.raises(ConfigError, match=r"others.pem was not signed by the authority"):
        ServerTls.load(*paths, crl(Authority(), tmp_path / "others.pem", []))
    (tmp_path / "nonsense.pem").write_text("hello")
    with pytest.raises(ConfigError, match=r"nonsense.pem is not a list of revoked certificates"):
        ServerTls.load(*paths, tmp_path / "nonsense.pem")
