"""The study file: what a federation agreed to, in TOML; unknown fields are errors.

Everything except `[run]` and `[report]` is hashed into every round. Nothing here touches data, and a study
whose secure aggregation would be unsafe cannot be constructed.
"""

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from fedseg.errors import ConfigError
from fedseg.files import read_text
from fedseg.mechanisms.mechanism import Encoding, Mechanism, Terms
from fedseg.mechanisms.table import MECHANISMS
from fedseg.privacy.delta import SMALLEST_DELTA, too_large
from fedseg.privacy.trust import Trust
from secagg.encoding import digest
from secagg.errors import ConfigError as PolicyError
from secagg.policy import Policy, Suite
from secagg.printable import printable

LARGEST_EPSILON = 100.0
"""From here on even one patient's presence is as good as shown, whatever delta."""

UNHASHED = frozenset({"run", "report"})  # sections that can change neither results nor privacy
SECTIONS = {"project": "[study]", "clients": "[[sites]]", "weight": "[[sites]]"}  # of the policy's words


def _shown(text: str) -> str:
    if not text.isprintable():
        raise ValueError(f"name '{printable(text)}': use letters that can be seen, in one line")
    return text


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Label = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_shown)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Labels = tuple[Annotated[tuple[Annotated[int, Field(ge=1, le=65535)], ...], Field(min_length=1)], ...]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def regions(labels: Labels) -> tuple[tuple[int, ...], ...]:
    """Of each structure the numbers, from 1, of those whose label values it contains: BraTS' tumour contains its core.

    Structures are disjoint or one within the other, the outer first: of a voxel the last one counts.
    """
    found = []
    for number, values in enumerate(map(set, labels), 1):
        inner = [other for other, those in enumerate(map(set, labels), 1) if those <= values]
        parts = [set(labels[other - 1]) for other in range(1, len(labels) + 1) if values & set(labels[other - 1])]
        if min(inner) != number or any(not (part <= values or part >= values) for part in parts):
            raise ValueError(
                "labels: two structures share a label value and neither holds the other's after it; "
                "list the outer one first, such as [[1, 2, 4], [1, 4], [4]]"
            )
        found.append(tuple(inner))
    return tuple(found)


class StudySection(_Section):
    """`[study]`: what is trained, and for how long."""

    name: Name = Field(description="a short name of ASCII letters, digits, '.', '_' or '-'")
    task: Literal["segmentation"] = Field(default="segmentation", description="what is asked of an image")
    structures: tuple[Label, ...] = Field(
        min_length=1, max_length=254, description="names of the label values 1, 2, ... in this order; 0 is background"
    )
    rounds: Count = Field(description="how many sums; after each, every site has the next model")
    spare_rounds: Annotated[int, Field(ge=0)] = Field(
        default=0,
        description="rounds more that the noise is planned for: a burned one stays charged and does not end the study",
    )
    local_steps: Count = Field(description="gradient steps of a site in one round; 1 with 'distributed'")
    lr: Positive = Field(description="learning rate of the gradient steps")
    optimizer: Literal["sgd", "adam"] = Field(
        default="sgd", description="what steps by the sums of 'distributed': SGD with momentum, or Adam"
    )
    seed: Seed | None = Field(
        default=None,
        description="makes a run reproducible; noise that can be repeated protects nobody: no privacy claim",
    )

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.structures)) != len(self.structures):
            raise ValueError("structures: two have the same name; give every label value its own")
        return self


class DataSection(_Section):
    """`[data]`: what a site's folder holds, and how images become batches."""

    layout: Literal["feta", "bids", "decathlon", "nnunet", "brats", "table", "dicom", "phantom"] = Field(
        description="how a site's folder is organised: see Layouts"
    )
    modality: tuple[Label, ...] = Field(
        min_length=1, description="names of the image's channels in order, such as ['T2w']"
    )
    labels: Labels = Field(
        default=(),
        description="each structure's label values in the files, such as [[1, 2, 4], [1, 4], [4]]; [] for 1, 2, ...",
    )
    dims: Literal[2, 3] = Field(description="2 trains on slices, 3 on volumes")
    size: int = Field(ge=16, le=512, description="side of the working grid in pixels, a multiple of 16")
    slices_per_patient: Count = Field(
        default=1, description="slices that a drawn patient gives to a step; 1 with dims = 3"
    )
    normalisation: tuple[Literal["percentiles", "z-score", "ct"], ...] = Field(
        min_length=1,
        default=("percentiles",),
        description="how intensities are made alike: one for all modalities, or one for each",
    )
    window: tuple[float, float] | None = Field(
        default=None, description="lowest and highest Hounsfield unit that 'ct' tells apart, such as [-160, 240]"
    )
    holdout: float = Field(
        default=0.2, ge=0, lt=1, description="share of patients kept for testing, each by its identifier"
    )
    patient: str = Field(
        default="",
        description="regular expression whose group 'patient' is found in an image's path: who it is: see Patients",
    )
    patients: str = Field(
        default="", description="table in each site's folder with the columns file and patient: see Patients"
    )

    @property
    def methods(self) -> tuple[str, ...]:
        """How each modality is normalised."""
        return self.normalisation * len(self.modality) if len(self.normalisation) == 1 else self.normalisation

    @model_validator(mode="after")
    def _intensities(self) -> Self:
        if len(self.methods) != len(self.modality):
            said = f"normalisation lists {len(self.normalisation)} methods and modality {len(self.modality)} channels"
            raise ValueError(f"{said}; give one for all, or one for each")
        if ("ct" in self.normalisation) == (self.window is None):
            wish = "add window = [lowest, highest] in Hounsfield units" if self.window is None else "remove window"
            raise ValueError(f"window goes with normalisation = 'ct' and nothing else; {wish}")
        if self.window is not None and self.window[0] >= self.window[1]:
            raise ValueError(f"window = {list(self.window)}: the lowest Hounsfield unit comes first")
        return self

    @model_validator(mode="after")
    def _whose(self) -> Self:
        if self.patient:
            try:
                groups = re.compile(self.patient).groupindex
            except re.error as error:
                raise ValueError(
                    f"patient = {self.patient!r}: not a regular expression ({error}); correct it"
                ) from None
            if "patient" not in groups:
                raise ValueError(f"patient = {self.patient!r}: must have a group (?P<patient>...), which is who it is")
        if self.patient and self.patients:
            raise ValueError("patient and patients both say who is a patient; remove one")
        if self.patients and Path(self.patients).name != self.patients:
            raise ValueError(f"patients = {self.patients!r}: must be the name of a file in the site's folder")
        return self

    @model_validator(mode="after")
    def _grid(self) -> Self:
        if self.size % 16:
            raise ValueError(f"size = {self.size}: must be a multiple of 16, such as {self.size // 16 * 16 + 16}")
        if self.dims == 3 and self.slices_per_patient != 1:
            raise ValueError("slices_per_patient: with dims = 3 a patient contributes the whole volume; set it to 1")
        return self


class ModelSection(_Section):
    """`[model]`: the network and where it starts."""

    name: Literal["unet-small", "unet", "segresnet"] = Field(
        default="unet-small", description="the network; small ones bear noise better"
    )
    channels: tuple[Count, ...] = Field(
        default=(), max_length=5, description="features per level; [] for the network's own"
    )
    start: str = Field(
        default="scratch",
        min_length=1,
        description="weights before round 1: 'scratch', 'phantom' (trained on made images) or a .safetensors file",
    )


def _known(mechanism: str) -> str:
    if mechanism not in MECHANISMS:
        raise ValueError(f"mechanism = {mechanism!r}: use {' or '.join(map(repr, MECHANISMS))}")
    return mechanism


class PrivacySection(_Section):
    """`[privacy]`: the promise to every patient; where no epsilon is claimed the rest only shapes the batches."""

    mechanism: Annotated[str, AfterValidator(_known)] = Field(
        description=" or ".join(f"{name!r} ({one.trust.short})" for name, one in MECHANISMS.items()),
        json_schema_extra={"enum": list(MECHANISMS)},
    )
    unit: Literal["patient"] = Field(default="patient", description="whom the promise speaks for")
    epsilon: Positive | None = Field(
        default=None, description="budget of a site's patients over the whole study; smaller is safer"
    )
    delta: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, description="it has no default: choose it below 1/patients, for example 1/(10 patients)"
    )
    sample_rate: float = Field(gt=0, le=1, description="probability that a patient is drawn in a local step")
    clip_norm: Positive | None = Field(default=None, description="L2 length to which one patient's gradient is cut")
    denominator: Count = Field(
        description="public constant that divides a step's sum: about the patients that a site draws in a step"
    )
    noise: Literal["discrete-gaussian", "skellam"] = Field(
        default="discrete-gaussian", description="whole-number noise of 'distributed'; no other mechanism adds such"
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        for name in MECHANISMS[self.mechanism].needs:
            if getattr(self, name) is None:
                needs = f"{name} is missing and mechanism = {self.mechanism!r} needs it"
                raise ValueError(f"{needs}; add {name}: {type(self).model_fields[name].description}")
        if MECHANISMS[self.mechanism].trust.claims_epsilon:
            if self.epsilon is not None and self.epsilon > LARGEST_EPSILON:
                raise ValueError(
                    f"epsilon = {self.epsilon:g} promises nothing; choose at most {LARGEST_EPSILON:g}, and at most 10 "
                    "for a promise that means something"
                )
            if self.delta is not None and self.delta < SMALLEST_DELTA:
                least = f"choose at least {SMALLEST_DELTA:g}"
                raise ValueError(f"delta = {self.delta:g} is smaller than the accountants resolve; {least}")
        return self


class SecAggSection(_Section):
    """`[secagg]`: how updates are added; parameters of `secagg.Policy`."""

    suite: Suite = Field(
        default=Suite.MLKEM768_X25519, description="key agreement; the default outlasts quantum computers"
    )
    max_corrupt: int = Field(default=1, description="how many sites may collude with the coordinator")
    min_survivors: int = Field(
        default=0, ge=0, description="sites that a sum must have; 0 for the smallest safe number"
    )
    bits: int = Field(default=32, description="bits of a masked value; as many as the sum of all sites needs")
    clip_range: Positive | None = Field(
        default=None,
        description="bound of every value of an update, fixed and never taken from data; 'distributed' needs none",
    )


class ReportSection(_Section):
    """`[report]`: what leaves a site beside its updates."""

    share_metrics: bool = Field(
        default=False, description="sites send the Dice of their held-out patients; not covered by epsilon"
    )


class RunSection(_Section):
    """`[run]`: how fast, never what."""

    device: Literal["cpu", "cuda"] = Field(default="cpu", description="where a site trains")
    threads: Count = Field(default=1, description="threads of torch in one process")
    workers: Count = Field(default=1, description="sites of a simulation that train at the same time")
    evaluate_every: Count = Field(default=1, description="rounds after which the model is scored, and after the last")
    hold_seconds: float = Field(
        default=0.0,
        ge=0,
        description="seconds before which a site hands over no update: how long it trained tells of patients",
    )


class Site(_Section):
    """`[[sites]]`: who takes part; one table a site."""

    id: Name = Field(description="a short name of ASCII letters, digits, '.', '_' or '-'")
    weight: Positive = Field(default=1.0, description="what its update counts in the mean, a public constant")
    patients: Count | None = Field(default=None, description="layout 'phantom' only: patients to make")
    labels: Labels = Field(default=(), description="its own label values, where they are not those of [data] labels")


class Study(_Section):
    """A whole study. Raises `ConfigError` through `load_study`, `parse_study` and `replace`."""

    study: StudySection
    data: DataSection
    model: ModelSection = ModelSection()
    privacy: PrivacySection
    secagg: SecAggSection
    report: ReportSection = ReportSection()
    run: RunSection = RunSection()
    sites: tuple[Site, ...]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        ids = [site.id for site in self.sites]
        for site_id in ids:
            if ids.count(site_id) > 1:
                raise ValueError(f"[[sites]] id = '{site_id}' is there {ids.count(site_id)} times; rename all but one")
        for site in self.sites:
            labels = self.labels_of(site.id)
            if len(labels) not in (0, len(self.structures)):
                said = f"labels lists {len(labels)} structures and [study] structures {len(self.structures)}"
                raise ValueError(f"[data] {said}; give each its label values, in the same order")
            if (regions(labels) or self.regions) != self.regions:
                raise ValueError(f"[[sites]] {site.id}: labels nests the structures otherwise than [data] labels does")
            if (site.patients is None) == (self.data.layout == "phantom"):
                wish = "add it" if site.patients is None else "remove it"
                raise ValueError(f"[[sites]] {site.id}: patients goes with layout = 'phantom' and nothing else; {wish}")
        made = "start" if self.model.start == "phantom" else "layout" if self.data.layout == "phantom" else ""
        if made and set(self.data.normalisation) != {"percentiles"}:
            said = f"{made} = 'phantom': made images are normalised by percentiles"
            raise ValueError(f"[data] normalisation = {list(self.data.normalisation)} with {said}; change either")
        if self.trust.claims_epsilon and (said := too_large(self.privacy.delta, self.expected_patients)):
            raise ValueError(f"[privacy] {said}")
        if said := self.mechanism.refusal(self.terms):
            raise ValueError(said)
        self.policy(1)
        return self

    @property
    def site_ids(self) -> list[str]:
        """Ids in the order of the file."""
        return [site.id for site in self.sites]

    @property
    def structures(self) -> list[str]:
        """Names of label values 1, 2, ...; 0 is background."""
        return list(self.study.structures)

    def labels_of(self, site: str) -> Labels:
        """Each structure's label values in a site's files; empty where they are 1, 2, ... in the structures' order."""
        return next((member.labels for member in self.sites if member.id == site and member.labels), self.data.labels)

    @property
    def regions(self) -> tuple[tuple[int, ...], ...]:
        """Of each structure the label values of a prediction that make it up: its own and those of what it contains."""
        return regions(self.data.labels) or tuple((number,) for number in range(1, len(self.structures) + 1))

    @property
    def in_channels(self) -> int:
        """Image channels: one per modality."""
        return len(self.data.modality)

    @property
    def expected_patients(self) -> int:
        """How many patients train at all sites together, as far as the study itself knows: of its public constants."""
        made = sum(site.patients or 0 for site in self.sites)
        return made or len(self.sites) * max(1, round(self.privacy.denominator / self.privacy.sample_rate))

    @property
    def mechanism(self) -> Mechanism:
        """How patients are protected."""
        return MECHANISMS[self.privacy.mechanism]

    @property
    def trust(self) -> Trust:
        """What the mechanism claims, and who has to be trusted for it."""
        return self.mechanism.trust.with_corrupt(self.secagg.max_corrupt)

    @property
    def terms(self) -> Terms:
        """The numbers that the mechanism works with."""
        policy = self._policy(Encoding(1, 1.0, 2))  # the sites' numbers do not depend on how values are encoded
        return Terms(
            epsilon=self.privacy.epsilon,
            delta=self.privacy.delta,
            sample_rate=self.privacy.sample_rate,
            clip_norm=self.privacy.clip_norm,
            denominator=self.privacy.denominator,
            noise=self.privacy.noise,
            rounds=self.study.rounds,
            spare_rounds=self.study.spare_rounds,
            local_steps=self.study.local_steps,
            lr=self.study.lr,
            optimizer=self.study.optimizer,
            seeded=self.study.seed is not None,
            weights=tuple(site.weight for site in self.sites),
            min_survivors=policy.min_survivors,
            max_corrupt=policy.max_corrupt,
            clip_range=self.secagg.clip_range,
            bits=self.secagg.bits,
        )

    def scored_after(self, completed: int) -> bool:
        """Whether the model of so many completed rounds is scored."""
        return completed % self.run.evaluate_every == 0 or completed == self.study.rounds

    def kept(self, parameters: int) -> int:
        """How many values a state has behind the weights of such a model; see `Mechanism.kept`."""
        return self.mechanism.kept(parameters, self.terms)

    def following(
        self, state: NDArray[np.float32], total: NDArray[np.float64], included: Sequence[str], policy: Policy
    ) -> NDArray[np.float32]:
        """The next state; see `Mechanism.following`."""
        return self.mechanism.following(state, total, included, policy, self.terms)

    def hash(self) -> bytes:
        """Digest of all that can change results or privacy, 32 bytes: of every section but `UNHASHED`."""
        content = self.model_dump(mode="json", exclude=set(UNHASHED))
        return digest("study", json.dumps(content, sort_keys=True, separators=(",", ":")))

    def policy(self, parameters: int, server_key: bytes = b"") -> Policy:
        """The pinned aggregation policy for updates of a model with so many parameters.

        Raises:
            ConfigError: the parameters are unsafe; names the study's field.
        """
        return self._policy(self.mechanism.encoding(parameters, self.terms), server_key)

    def _policy(self, encoding: Encoding, server_key: bytes = b"") -> Policy:
        try:
            return Policy(
                **encoding._asdict(),
                project=self.study.name,
                clients=len(self.sites),
                max_corrupt=self.secagg.max_corrupt,
                min_survivors=self.secagg.min_survivors,
                suite=self.secagg.suite,
                bits=self.secagg.bits,
                weights={site.id: site.weight for site in self.sites},
                server_key=server_key,
            )
        except PolicyError as error:
            text = str(error)
            section = SECTIONS.get(text.split()[0], "[secagg]")
            raise ConfigError(f"{section} {text}") from error

    def replace(self, **sections: Mapping[str, object]) -> "Study":
        """A copy with some fields changed, checked again: `study.replace(privacy={"mechanism": "none"})`.

        Raises:
            ConfigError: as `load_study`.
        """
        content = self.model_dump(mode="json")
        for section, changes in sections.items():
            if not isinstance(content.get(section), dict):
                known = ", ".join(name for name, fields in content.items() if isinstance(fields, dict))
                raise ConfigError(
                    f"study: [{section}] is not a section whose fields can be changed; use one of {known}"
                )
            content[section] = {**content[section], **changes}
        return _checked(content, "study")

    def toml(self) -> str:
        """This study as TOML text that `parse_study` reads back to an equal study."""
        lines = []
        for section, content in self.model_dump(mode="json", exclude_none=True).items():
            for table in content if isinstance(content, list) else [content]:
                lines.append(f"[[{section}]]" if isinstance(content, list) else f"[{section}]")
                lines += [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in table.items()]
                lines.append("")
        return "\n".join(lines)


def load_study(path: Path) -> Study:
    """Read and check a study file.

    Raises:
        ConfigError: missing or malformed file, unknown or missing field, unsafe policy: one sentence with the
            file, the field and the remedy.
    """
    return parse_study(read_text(path, "give the path of a study file"), str(path))


def parse_study(text: str, where: str) -> Study:
    """Check the text of a study; `where` begins every error. Raises as `load_study`."""
    try:
        return _checked(tomllib.loads(text), where)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where}: not valid TOML ({error}); correct that line") from error


def _checked(content: Mapping[str, Any], where: str) -> Study:
    try:
        # Through JSON, because pydantic's strict mode takes arrays and names of enums only from there.
        return Study.model_validate_json(json.dumps(content, default=str))
    except ValidationError as error:
        # An unknown field goes first: it is usually the misspelt one that another error calls missing.
        first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
        raise ConfigError(f"{where}: {_sentence(first)}") from error


def _sentence(error: ErrorDetails) -> str:
    """One of pydantic's errors in the study's words."""
    loc = error["loc"]
    section, owner = _owner(loc)
    name = (
        str(next(part for part in reversed(loc) if isinstance(part, str)))
        if len(loc) > 1 or error["type"] in ("missing", "extra_forbidden")
        else ""
    )
    given = error["input"]
    match error["type"]:
        case "missing" if len(loc) == 1:
            heading = "[[sites]]" if name == "sites" else f"[{name}]"
            return f"section {heading} is missing; add it"
        case "missing":
            return f"{section} {name} is missing; add {name}: {owner.model_fields[name].description}"
        case "extra_forbidden":
            near = get_close_matches(name, owner.model_fields, n=1)
            remedy = f"did you mean '{near[0]}'?" if near else f"use one of {', '.join(owner.model_fields)}"
            return f"{section} {name} is not a field of a study; {remedy}".lstrip()
        case "value_error":
            return f"{section} {error['ctx']['error']!s}".lstrip()
        case "literal_error" | "enum":
            return f"{section} {name} = {given!r}: use {error['ctx']['expected']}"
        case "string_pattern_mismatch":
            return f"{section} {name} = {given!r}: must be {owner.model_fields[name].description}"
        case _:
            field = next((str(part) for part in loc[1:] if isinstance(part, str)), str(loc[0]))
            return f"{section} {field} = {given!r}: {error['msg'].replace('Input should', 'must')}"


def _owner(loc: tuple[int | str, ...]) -> tuple[str, type[BaseModel]]:
    """The section's heading as in the file, and its class, of a pydantic location."""
    if not loc or (len(loc) == 1 and loc[0] not in Study.model_fields):
        return "", Study
    if loc[0] == "sites":
        return "[[sites]]" if len(loc) == 1 else f"[[sites]] number {int(loc[1]) + 1}", Site
    annotation = Study.model_fields[str(loc[0])].annotation
    return f"[{loc[0]}]", annotation if isinstance(annotation, type) else Study
