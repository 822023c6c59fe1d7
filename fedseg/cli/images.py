"""`fedseg data`: a site's images before a study begins."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedseg.cli.terminal import DataFolder, StudyFile, app
from fedseg.errors import ConfigError
from secagg.terminal import App, AsJson, plain, say, say_json

if TYPE_CHECKING:
    from fedseg.data.fingerprint import Fingerprint, Spread

data_app = App("Look at a site's images before a study begins.")
app.add_typer(data_app, name="data")


@data_app.command("check")
def data_check(
    study: StudyFile,
    data: DataFolder = None,
    only: Annotated[str, typer.Option("--site", help="Check this site only; --data is then its own folder.")] = "",
    as_json: AsJson = False,
) -> None:
    """Check the images and label maps of a study.

    A hospital that has only its own images adds --site. The exit status is 1 where something is wrong.
    """
    from fedseg.data.findings import Finding, check_between, check_site
    from fedseg.study import load_study

    loaded = load_study(study)
    if only and only not in loaded.site_ids:
        raise ConfigError(f"--site {only}: not a site of the study; use one of {', '.join(loaded.site_ids)}")
    folders = {only: data} if only else {site: data / site if data else None for site in loaded.site_ids}
    if data is not None and not only and data.is_dir() and not any((data / site).is_dir() for site in folders):
        sites = ", ".join(loaded.site_ids)
        raise ConfigError(f"{data}: has no subfolder {sites}; is it one hospital's own? Then add --site and its id")
    found: list[Finding] = []

    def tell(findings: list[Finding]) -> None:
        """Keep them, and show them at once where a person reads."""
        found.extend(findings)
        for finding in findings if not as_json else ():
            colour = {"error": "red", "warning": "yellow"}.get(finding.severity, "green")
            say(plain(finding.severity, colour), f" {finding.where}: {finding.message}")

    for site, folder in folders.items():
        tell(check_site(folder, site, loaded))
    tell(check_between(folders, loaded))
    wrong = any(finding.severity == "error" for finding in found)
    if as_json:
        say_json({"ok": not wrong, "findings": [asdict(finding) for finding in found]})
    if wrong:
        raise typer.Exit(1)


@data_app.command("fingerprint")
def data_fingerprint(
    source: Annotated[Path, typer.Argument(help="Folder of images, or a study file.", show_default=False)],
    data: DataFolder = None,
    only: Annotated[str, typer.Option("--site", help="This site only; --data is then its own folder.")] = "",
    as_json: AsJson = False,
) -> None:
    """Tell spacings, sizes, intensities, and labels.

    It is what nnU-Net calls a fingerprint, computed from every patient and not private: it stays at the site.
    """
    from fedseg.data.fingerprint import fingerprint
    from fedseg.data.proposal import proposed
    from fedseg.study import load_study

    if source.is_dir():
        found = proposed(source, "fingerprint")
        study, folders = found.study, dict(found.sites)
    else:
        study = load_study(source)
        if data is None:
            raise ConfigError(f"{source}: a study has no images; give their folder with --data")
        folders = {only: data} if only else {site: data / site for site in study.site_ids if (data / site).is_dir()}
    prints = [fingerprint(folder, site, study) for site, folder in folders.items()]
    if as_json:
        say_json({"private": False, "sites": [asdict(one) for one in prints]})
        return
    for one in prints:
        _tell(one, "the structures" if study.structures else "the pictures")
    say("not private: computed from every patient, it stays at the site")


def _tell(found: "Fingerprint", where: str) -> None:
    say(f"{found.site}: {found.cases} cases")
    for sentence in found.left_out:
        say(plain("  left out ", "yellow"), sentence)
    rows = [("spacing mm", found.spacing, ".2f"), ("size voxels", found.size, ".0f")]
    for what, axes, shape in rows:
        if axes:
            middle = " x ".join(format(axis.percentiles["50"], shape) for axis in axes)
            ends = (" x ".join(f"{axis.low:{shape}}-{axis.high:{shape}}" for axis in axes),)
            say(f"  {what}: median {middle}, from {ends[0]}")
    for name, spread in found.intensities.items():
        say(f"  {name} in {where}: {_of(spread, '.4g')}, mean {spread.mean:.4g}, sd {spread.std:.4g}")
    for name, structure in found.structures.items():
        volume = f", {_of(structure.millilitres, '.3g')} ml" if structure.millilitres else ""
        say(f"  {name}: in {structure.cases} of {found.cases} cases{volume}")


def _of(spread: "Spread", shape: str) -> str:
    cuts = spread.percentiles
    return f"median {cuts['50']:{shape}}, 0.5 % to 99.5 % {cuts['0.5']:{shape}} to {cuts['99.5']:{shape}}"


@app.command("new")
def new(
    study: Annotated[Path, typer.Argument(help="Study file to write (TOML).", show_default=False)],
    source: Annotated[Path, typer.Option("--from", help="Folder of images.", show_default=False)],
) -> None:
    """Write a first study from a folder of images.

    The folder is one hospital's own, or has one subfolder for each site. Nothing that is there is overwritten.
    """
    from fedseg.data.proposal import proposed
    from secagg.writing import write_new

    if study.exists():
        raise ConfigError(f"{study} exists already; move it away first, nothing was overwritten")
    name = re.sub(r"[^A-Za-z0-9._-]", "-", study.stem)
    found = proposed(source, name.lstrip("._-") or "study")
    data = found.study.data  # checked before it is written
    write_new(study, found.text)
    sites = f"{len(found.sites)} sites ({', '.join(found.sites)})"
    say(f"layout {found.layout}: {sites}, modality {', '.join(found.modality)}")
    said = (f"{name} = {', '.join(map(str, values))}" for name, values in found.structures.items())
    say(f"structures by label value: {'; '.join(said)}" if found.structures else f"classes: {', '.join(found.classes)}")
    say(f"working grid: {data.dims} dimensions, {' x '.join(map(str, data.sides))} voxels")
    say(f"study {study}: read its comments, and decide")
    one = f" --site {next(iter(found.sites))}" if len(found.sites) == 1 else ""
    say(f"next: fedseg data check {study}{one} --data {source}")


@app.command("plan")
def plan(
    study: Annotated[Path, typer.Argument(help="Study file (TOML).", show_default=False)],
    data: DataFolder = None,
    only: Annotated[str, typer.Option("--site", help="This site only; --data is then its own folder.")] = "",
    write: Annotated[bool, typer.Option("--write", help="Put it into the study file.")] = False,
) -> None:
    """Propose grid, network and batch that follow the images.

    Computed from patients' images: no epsilon covers what of it everybody reads in the study.
    """
    from fedseg.data.fingerprint import fingerprint
    from fedseg.data.plan import planned, written
    from fedseg.files import read_text
    from fedseg.study import parse_study
    from secagg.writing import PUBLIC, write_whole

    text = read_text(study, "give the path of a study file")
    asked = parse_study(text, str(study))
    if data is None:
        raise ConfigError(f"{study}: a study has no images; give their folder with --data")
    folders = {only: data} if only else {site: data / site for site in asked.site_ids if (data / site).is_dir()}
    found = planned([fingerprint(folder, site, asked) for site, folder in folders.items()], asked)
    after = written(text, found, str(study))
    for section, fields in found.fields.items():
        say(f"[{section}] " + ", ".join(f"{name} = {value}" for name, value in fields.items()))
    for sentence in found.because:
        say(f"  {sentence}")
    if write:
        write_whole(study, after, PUBLIC)
        say(f"written to {study}")
    else:
        say("nothing was written; --write puts it into the study")
    say("computed from patients' images: no epsilon covers it, and who reads the study reads it")
