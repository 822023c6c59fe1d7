"""The coordinator's side of enrolment: it invites sites, approves what they ask for, and publishes who takes part.

Its folder is the coordinator's folder of credentials; `office/` in it holds what only enrolment needs: the authority's
key and the register. Must never: approve what no token, pinned key or compared fingerprint speaks for, use a token
twice, or write one down.
"""

import datetime as dt
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from secagg.audit import AUDIT, AuditLog, operator
from secagg.enrolment.papers import (
    Approval,
    Invitation,
    Request,
    as_bytes,
    coordinator_fingerprint,
    new_token,
    token_key,
)
from secagg.enrolment.register import Invited, Member, Register, moment, past, today
from secagg.enrolment.requests import checked_csr, read_csr
from secagg.errors import ConfigError
from secagg.files import Federation, federation_text, load_key, load_public_key, public_text, secret_text
from secagg.keys import SigningKey
from secagg.roster import PinnedRoster
from secagg.rpc.authority import Authority, valid_for
from secagg.rpc.proxy import LOCAL_HOSTS
from secagg.rpc.tls import AUTHORITY, COORDINATOR
from secagg.writing import PRIVATE, PRIVATE_FOLDER, PUBLIC, write_new, write_whole

FEDERATION, REVOKED, OFFICE = "federation.toml", "revoked.pem", "office"
TOKEN_DAYS, CERTIFICATE_DAYS, AUTHORITY_DAYS = 14.0, 365.0, 3650.0
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.:_-]{0,252}[A-Za-z0-9])?|::1?")
_RUN = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Office:
    """A coordinator's folder in which sites are enrolled.

    Raises:
        ConfigError: there is none yet (`init` makes it), or a file of it is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._file = folder, folder / OFFICE / "register.toml"
        self.register = Register.read(self._file)
        self._authority = Authority.read(folder / f"{AUTHORITY}.pem", folder / OFFICE / f"{AUTHORITY}.key")
        self._key = load_key(folder / f"{COORDINATOR}.signing")[1]

    @classmethod
    def init(cls, folder: Path, hosts: Collection[str], port: int, *, days: float = CERTIFICATE_DAYS) -> "Office":
        """Make the coordinator's keys, its authority and an empty register.

        Args:
            folder: new, or empty.
            hosts: names and addresses under which sites reach it, the one that they are told first.
            port: on which it listens.
            days: how long its certificate is valid.

        Raises:
            ConfigError: there are keys already, or a host is no name.
        """
        for host in hosts:
            if not _HOST.fullmatch(host):
                raise ConfigError(f"host {host!r}: give a name or an address, without a port")
        if not hosts or not 0 < port < 65536:
            raise ConfigError("give at least one host under which sites reach the coordinator, and a port up to 65535")
        for needed in (folder, folder / OFFICE):
            needed.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
        key, authority = SigningKey.generate(), Authority(valid_for(AUTHORITY_DAYS))
        write_new(folder / f"{COORDINATOR}.signing", secret_text(COORDINATOR, key), PRIVATE)
        write_new(folder / f"{COORDINATOR}.pub", public_text(COORDINATOR, key))
        authority.keep(folder / OFFICE / f"{AUTHORITY}.key")
        authority.write(folder)
        first, *_ = hosts
        address = f"[{first}]:{port}" if ":" in first else f"{first}:{port}"
        Register(address, list(dict.fromkeys([*hosts, *LOCAL_HOSTS]))).write(folder / OFFICE / "register.toml")
        office = cls(folder)
        office.renew(days=days)
        office.revoke()
        return office

    @property
    def fingerprint(self) -> str:
        """What the coordinator reads aloud."""
        return coordinator_fingerprint(self._key.verify_key, self._authority.pem.decode("ascii"))

    def invite(self, site: str, folder: Path, *, days: float = TOKEN_DAYS) -> tuple[Path, str]:
        """An invitation for a site, and the token that its operator is told by telephone; it is not kept anywhere.

        Args:
            site: its id.
            folder: where `SITE.invitation` goes.
            days: after which the token is worth nothing.

        Raises:
            ConfigError: no such id can be, or the site is approved already.
        """
        if site in self.register.approved:
            raise ConfigError(f"{site} is approved already; it renews by itself, or revoke it first")
        if site in (AUTHORITY, COORDINATOR):
            raise ConfigError(f"site id {site!r} is the name of a file that the coordinator needs; choose another id")
        PinnedRoster({site: self._key.verify_key})  # refuses what is no id
        token = new_token()
        key = token_key(token, site)
        expires = moment(dt.datetime.now(dt.UTC) + dt.timedelta(days=days))
        paper = Invitation(
            site=site,
            address=self.register.address,
            server_key=self._key.verify_key.hex(),
            authority=self._authority.pem.decode("ascii"),
            expires=expires,
        ).signed(token_signature=key)
        self.register.invited[site] = Invited(site, key.verify_key.hex(), expires)
        self.register.write(self._file)
        return write_whole(folder / f"{site}.invitation", paper.text, PUBLIC), token

    def approve(
        self,
        path: Path,
        folder: Path,
        *,
        public: Path | None = None,
        token: str = "",
        heard: str = "",
        days: float = CERTIFICATE_DAYS,
    ) -> tuple[Request, list[Path]]:
        """Approve a request, and write what goes back to the site.

        Args:
            path: `SITE.request`, or a plain certificate request (CSR) together with `public`.
            folder: where `SITE.approval` goes, and `SITE.pem` for a plain request.
            public: the site's `.pub` file, with a plain request.
            token: with a plain request: the token, as the site's operator said it.
            heard: the fingerprint that the site's operator read aloud, which is compared; "" where nobody did.
            days: how long its certificate is valid.

        Returns:
            What was approved, and the files.

        Raises:
            ConfigError: nothing speaks for the request, or it cannot be certified; nothing was approved or used up.
        """
        request = self._plain(path, public, token) if public is not None else self._asked(path)
        site = request.site
        if heard and as_bytes(heard) != as_bytes(request.fingerprint):
            raise ConfigError(
                f"{path}: its fingerprint is {request.fingerprint}, and {heard!r} was heard; somebody else made this "
                "file, or it was misread: ask again, and do not approve it"
            )
        csr = checked_csr(request.csr, site, path)
        first, last = valid_for(days)
        certificate = self._authority.certify(csr.public_key(), site, valid=(first, min(last, self._authority.ends)))
        known = self.register.members.get(site)
        others = {name: as_bytes(m.verify_key) for name, m in self.register.approved.items() if name != site}
        PinnedRoster({**others, site: as_bytes(request.verify_key)})
        self.register.members[site] = Member(
            site,
            request.verify_key,
            today() if known is None else known.since,
            moment(certificate.not_valid_after_utc),
            [*(known.serials if known is not None else []), f"{certificate.serial_number:x}"],
            fingerprint=request.fingerprint,
        )
        self.register.invited.pop(site, None)
        self._note("approved", site=site, fingerprint=request.fingerprint)
        self.register.write(self._file)  # the token is used up before anybody has what it is good for
        pem = certificate.public_bytes(Encoding.PEM).decode("ascii")
        approval = Approval(site=site, verify_key=request.verify_key, certificate=pem).signed(signature=self._key)
        files = [write_whole(folder / f"{site}.approval", approval.text, PUBLIC)]
        if public is not None:
            files.append(write_whole(folder / f"{site}.pem", pem, PUBLIC))
        return request, files

    def publish(self, run: str, sites: Collection[str] = (), without: Collection[str] = ()) -> Federation:
        """Write `federation.toml`: the roster of the next training run, signed, for every site to pin.

        Args:
            run: name of the training run; one that was never used with these data sets.
            sites: who takes part; none for everybody who is approved.
            without: who is left out.

        Raises:
            ConfigError: somebody is not approved, or fewer than three are left.
        """
        approved = self.register.approved
        for site in [*sites, *without]:
            if site not in approved:
                raise ConfigError(f"{site} is not approved: {', '.join(sorted(approved)) or 'nobody'} is; name those")
        if not _RUN.fullmatch(run):
            raise ConfigError(f"run {run!r}: use 1 to 64 ASCII letters, digits, '.', '_' or '-'")
        taking = [site for site in (sites or approved) if site not in without]
        if len(taking) < 3:
            raise ConfigError(f"{len(taking)} sites take part and a sum needs at least 3; approve more of them first")
        self.register.number += 1
        pinned = PinnedRoster({site: as_bytes(approved[site].verify_key) for site in taking})
        federation = Federation(run, self._key.verify_key, pinned, self.register.number).signed(self._key)
        self.register.write(self._file)
        write_whole(self.folder / FEDERATION, federation_text(federation), PUBLIC)
        return federation

    def revoke(self, *sites: str) -> Path:
        """Take back every certificate of these sites, and leave them out of what is published from now on.

        Raises:
            ConfigError: one was never approved; nothing was revoked.
        """
        for site in sites:
            if site not in self.register.members and site not in self.register.invited:
                raise ConfigError(f"{site} was never invited or approved here; see enrol show")
        for site in sites:
            self.register.invited.pop(site, None)
            if site in self.register.approved:
                member = self.register.members[site]
                member.revoked = today()
                self.register.revoked = sorted({*self.register.revoked, *member.serials})
            self._note("revoked", site=site)
        self.register.write(self._file)
        return self._authority.revoke(self.folder / REVOKED, (int(serial, 16) for serial in self.register.revoked))

    def renew(self, hosts: Iterable[str] = (), *, days: float = CERTIFICATE_DAYS) -> Path:
        """A new key and certificate for the coordinator itself, in their places; a coordinator that runs takes them up.

        Args:
            hosts: names and addresses to be added to those of the certificate.
            days: how long it is valid.
        """
        self.register.hosts = list(dict.fromkeys([*self.register.hosts, *hosts]))
        self._note("renewed", site=COORDINATOR, hosts=", ".join(self.register.hosts))
        self.register.write(self._file)
        first, last = valid_for(days)
        valid = first, min(last, self._authority.ends)
        return self._authority.issue(self.folder, COORDINATOR, self.register.hosts, valid)[0]

    def _note(self, what: str, **about: object) -> None:
        """Into the coordinator's audit log, before it is done: nothing is done that is not there."""
        AuditLog(self.folder / AUDIT).append(operator(), what, **about)

    def _asked(self, path: Path) -> Request:
        """A request that its own key signed, and its token or the key that is pinned for the site."""
        request = Request.read(path)
        site, key = request.site, as_bytes(request.verify_key)
        if not request.holds("own_signature", key):
            raise ConfigError(f"{path}: was changed after {site} signed it; ask for the file again")
        if as_bytes(request.server_key) != self._key.verify_key:
            raise ConfigError(
                f"{path}: is for another coordinator; ask {site} to use the invitation that came from here"
            )
        member = self.register.approved.get(site)
        if member is not None and request.holds("earlier_signature", as_bytes(member.verify_key)):
            return request
        self._spoken_for(site, path, request)
        return request

    def _spoken_for(self, site: str, path: Path, request: Request) -> None:
        invited = self.register.invited.get(site)
        if invited is None:
            raise ConfigError(f"{path}: no token of {site} is open; invite it (again), and tell it the new token")
        if past(invited.expires):
            raise ConfigError(f"{path}: the token of {site} expired on {invited.expires}; invite it again")
        if not request.holds("token_signature", as_bytes(invited.token)):
            raise ConfigError(f"{path}: was not made with the token of {site}; ask who made it, or invite {site} again")

    def _plain(self, path: Path, public: Path, token: str) -> Request:
        """What a plain certificate request and a public key say, spoken for by the token that was said."""
        site, verify_key = load_public_key(public)
        key = token_key(token, site)
        server_key = self._key.verify_key.hex()
        request = Request(site=site, server_key=server_key, verify_key=verify_key.hex(), csr=read_csr(path))
        request = request.signed(token_signature=key)
        self._spoken_for(site, path, request)
        return request
