"""Who was trained on and who was held out in a run, so that it goes on like that after an interruption.

A patient's role follows from the identifier alone (`fedseg.data.cases.held_out`). But a renamed file, another table or
another pattern can make somebody else of a patient: then a model is tested on an image that it was trained on. So a run
keeps on record which images had which role, and whoever would change sides is left out. That is decided for each
patient alone and changes nothing for the others. The record names nobody: it holds digests under a salt of its own. It
stays at the site and is never sent.
"""

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from fedseg.data.cases import Case, SiteData
from secagg.writing import PRIVATE_FOLDER, write_whole

FOLDER = "roles"
TRAINED, TESTED = "trained on", "held out"
SHOWN = 5

Record: TypeAlias = dict[str, dict[str, str]]
"""By "patients" and "images": digest of an identifier, or of an image, to its role; in "salt" what keys them."""


def going_on(path: Path, data: SiteData) -> tuple[SiteData, list[str]]:
    """Hold a site's patients against those that a run had before, and put who is there now on record.

    Args:
        path: the record of this run and site; absent where the run begins.
        data: the site's patients now.

    Returns:
        The patients without those that would change sides, and sentences for the site's operator on who came, who is
        gone, and who is left out.
    """
    before: Record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    of = _Digests(bytes.fromhex(before["salt"]["key"]) if before else secrets.token_bytes(32))
    roles = [(case, TRAINED) for case in data.train] + [(case, TESTED) for case in data.test]
    crossed = {c.patient: other for c, role in roles if (other := _other_role(c, role, before, of)) is not None}
    train, test = (tuple(c for c in cases if c.patient not in crossed) for cases in (data.train, data.test))
    staying = [(case, role) for case, role in roles if case.patient not in crossed]
    both = {of.image(case) for case in train} & {of.image(case) for case in test}  # one of two patients tells nothing
    now: Record = {
        "salt": {"key": of.salt.hex()},
        "patients": {of.patient(case.patient): role for case, role in staying},
        "images": {name: role for case, role in staying if (name := of.image(case)) not in both},
    }
    path.parent.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
    write_whole(path, json.dumps({kind: {**before.get(kind, {}), **found} for kind, found in now.items()}))
    there = {case.patient: of.patient(case.patient) for case, _ in roles}
    return replace(data, train=train, test=test), _told(data.site, before, there, crossed)


class _Digests:
    """Of patients and images, under one salt."""

    def __init__(self, salt: bytes) -> None:
        self.salt = salt

    def patient(self, identifier: str) -> str:
        return hashlib.blake2b(identifier.encode(), digest_size=16, key=self.salt, person=b"fedseg role").hexdigest()

    def image(self, case: Case) -> str:
        return hashlib.blake2b(case.image.tobytes(), digest_size=16, key=self.salt, person=b"fedseg image").hexdigest()


def _other_role(case: Case, role: str, before: Record, of: _Digests) -> str | None:
    """The role that a case's patient or image had before, where it is another one."""
    had = before.get("images", {}).get(of.image(case)), before.get("patients", {}).get(of.patient(case.patient))
    return next((other for other in had if other not in (None, role)), None)


def _told(site: str, before: Record, there: Mapping[str, str], crossed: Mapping[str, str]) -> list[str]:
    if not before:
        return []
    known = before["patients"].keys()
    said = []
    if came := {patient for patient, digest in there.items() if digest not in known} - crossed.keys():
        said.append(f"{_listed(came)} came since this run began; roles of the others are as they were")
    if gone := known - set(there.values()):
        said.append(f"{len(gone)} patients took part before and are gone; what they added stays in the model")
    for role in (TRAINED, TESTED):
        if these := {patient for patient, other in crossed.items() if other == role}:
            said.append(
                f"{_listed(these)} (by name or image) were {role} in this run and would change sides now: left out; "
                "put their names, the table or the pattern back as they were"
            )
    return [f"{site}: {sentence}" for sentence in said]


def _listed(patients: set[str]) -> str:
    names = sorted(patients)
    return f"{len(names)} patients ({', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''})"
