"""The study file: what a federation agreed to, in TOML; unknown fields are errors.

Everything except `[run]` and `[report]` is hashed into every round. Nothing here touches data, and a study
whose secure aggregation would be unsafe cannot be constructed.
"""

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError, model_validator

from fedseg.errors import ConfigError
from fedseg.federation.algorithm import Rules
from fedseg.federation.draw import drawn
from fedseg.federation.table import ALGORITHMS
from fedseg.files import read_text
from fedseg.mechanisms.asking import FIELD, Asked, asked_by
from fedseg.mechanisms.mechanism import VALUE_BITS, Encoding, Mechanism, Terms
from fedseg.mechanisms.table import MECHANISMS
from fedseg.privacy.delta import too_large
from fedseg.privacy.trust import Trust
from fedseg.sharing.method import Sharing
from fedseg.study.sections import (
    PICTURES,
    DataSection,
    FederationSection,
    Labels,
    ModelSection,
    PrivacySection,
    ReportSection,
    RunSection,
    SecAggSection,
    Section,
    SharingSection,
    Site,
    StudySection,
    TrainingSection,
    regions,
)
from fedseg.study.words import sentence
from secagg.encoding import digest
from secagg.errors import ConfigError as PolicyError
from secagg.layout import Field, Layout
from secagg.policy import Policy

UNHASHED = frozenset({"run", "report"})  # sections that can change neither results nor privacy
DEEP = ("dynunet", "segresnet")  # networks whose lower levels can have a loss of their own
SECTIONS = {"project": "[study]", "clients": "[[sites]]", "weight": "[[sites]]"}  # of the policy's words


class Study(Section):
    """A whole study. Raises `ConfigError` through `load_study`, `parse_study` and `replace`."""

    study: StudySection
    data: DataSection
    model: ModelSection = ModelSection()
    training: TrainingSection = TrainingSection()
    federation: FederationSection = FederationSection()
    privacy: PrivacySection
    sharing: SharingSection = SharingSection()
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
        if self.data.layout != "phantom" and (self.data.layout in PICTURES) != (self.study.task == "classification"):
            fit = ", ".join(PICTURES) if self.study.task == "classification" else "one of label maps"
            raise ValueError(f"[data] layout = '{self.data.layout}' is not for task = '{self.study.task}'; use {fit}")
        if (self.data.rows, self.data.tested) != ("own", "test") and self.data.layout != "medmnist":
            raise ValueError("[data] rows and tested go with layout = 'medmnist' and nothing else; remove them")
        if self.study.task == "classification" and self.data.dims == 3:
            raise ValueError("[data] dims = 3 with [study] task = 'classification': pictures are classified; set 2")
        made = "start" if self.model.start == "phantom" else "layout" if self.data.layout == "phantom" else ""
        if made and set(self.data.normalisation) != {"percentiles"}:
            said = f"{made} = 'phantom': made images are normalised by percentiles"
            raise ValueError(f"[data] normalisation = {list(self.data.normalisation)} with {said}; change either")
        if self.data.layout == "phantom" and (len(set(self.data.sides)) > 1 or self.data.spacing):
            raise ValueError(
                "[data] layout = 'phantom': made images are squares and cubes; give size as one number only"
            )
        if self.data.statistics != "none" and self.model.start == "phantom":
            raise ValueError(
                "[model] start = 'phantom' with [data] statistics: that start was trained on images as they are; leave "
                "either out"
            )
        if self.model.blocks and self.model.name != "segresnet":
            raise ValueError(f"[model] blocks goes with name = 'segresnet', not '{self.model.name}'; remove it")
        if self.training.deep_supervision and self.model.name not in DEEP:
            raise ValueError(
                f"[training] deep_supervision with network '{self.model.name}': use {' or '.join(map(repr, DEEP))}"
            )
        if self.trust.claims_epsilon and (said := too_large(self.privacy.delta, self.expected_patients)):
            raise ValueError(f"[privacy] {said}")
        if said := self._unaskable() or self.mechanism.refusal(self.terms) or self._too_few():
            raise ValueError(said)
        self.policy(1)
        return self

    @property
    def site_ids(self) -> list[str]:
        """Ids in the order of the file."""
        return [site.id for site in self.sites]

    @property
    def structures(self) -> list[str]:
        """Names of label values 1, 2, ...; 0 is background. Of label maps only: see `names`."""
        return list(self.study.structures)

    @property
    def names(self) -> list[str]:
        """What a patient is scored on, in the study's order: structures, or classes."""
        return list(self.study.names)

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
    def asked(self) -> Asked | None:
        """The statistics that the first sum is of; None where none are asked for."""
        if self.data.statistics != "secure":
            return None
        share = self.privacy.statistics
        return asked_by(self._whole, self.mechanism.trust, len(self.names), self.data.ranges, share)

    def asks(self, state: NDArray[np.float32]) -> bool:
        """Whether the next sum is of statistics: nobody was asked yet, as far as this state knows."""
        return self.asked is not None and self.asked.read(state) is None

    @property
    def terms(self) -> Terms:
        """The numbers that the mechanism works with: of training, without what is set aside for statistics."""
        whole, left = self._whole, 1 - self.privacy.statistics
        if self.data.statistics != "secure":
            return whole
        whole = replace(whole, rounds=whole.rounds - 1)
        if not self.trust.claims_epsilon:
            return whole
        return replace(whole, epsilon=left * (whole.epsilon or 0.0), delta=left * (whole.delta or 0.0))

    @property
    def _whole(self) -> Terms:
        # The sites' numbers do not depend on how values are encoded, but uneven weights need more than two bits.
        even = len({site.weight for site in self.sites}) == 1
        policy = self._policy(Encoding(1, 1.0, 2 if even else VALUE_BITS))
        return Terms(
            epsilon=self.privacy.epsilon,
            delta=self.privacy.delta,
            sample_rate=self.privacy.sample_rate,
            clip_norm=self.privacy.clip_norm,
            denominator=self.privacy.denominator,
            noise=self.privacy.noise,
            released=self.privacy.released,
            threshold=self.privacy.threshold,
            rounds=self.study.rounds,
            spare_rounds=self.study.spare_rounds,
            local_steps=self.study.local_steps,
            lr=self.study.lr,
            optimizer=self.study.optimizer,
            local_optimizer=self.training.optimizer,
            weight_decay=self.training.weight_decay,
            schedule=self.training.schedule,
            warm_up=self.training.warm_up,
            batch=self.training.batch,
            trainable=self.training.trainable,
            seeded=self.study.seed is not None,
            weights=tuple(site.weight for site in self.sites),
            min_survivors=policy.min_survivors,
            max_corrupt=policy.max_corrupt,
            clip_range=self.secagg.clip_range,
            bits=self.secagg.bits,
            sharing=Sharing(**self.sharing.model_dump()),
            federation=self._rules,
            excess_noise=self.privacy.excess_noise,
        )

    @property
    def _rules(self) -> Rules:
        federation = self.federation
        return Rules(
            algorithm=federation.algorithm,
            server_lr=federation.server_lr or ALGORITHMS[federation.algorithm].server_lr,
            momentum=federation.momentum,
            betas=federation.betas,
            adaptivity=federation.adaptivity,
            corrected=federation.corrected,
            proximal=federation.proximal,
            participation=federation.participation,
            personal=federation.personal,
        )

    def _unaskable(self) -> str:
        """Why statistics cannot be asked for; empty where they can, or are not."""
        if (asked := self.asked) is None:
            return ""
        begin = "[data] statistics = 'secure'"
        if self.study.rounds < 2:
            return f"{begin} with [study] rounds = 1: the first sum is of statistics; raise rounds"
        if not self.mechanism.asks:
            return f"{begin} with mechanism = '{self.privacy.mechanism}': its epsilon has no room for it; use 'public'"
        if self.privacy.noise == "skellam":
            return f"{begin} with [privacy] noise = 'skellam': their noise is Gaussian; use 'discrete-gaussian'"
        if self.federation.participation:
            return f"{begin} with [federation] participation: all sites are asked; leave either out"
        if self.secagg.bits < (needed := asked.bits_needed(self.expected_patients, len(self.sites))):
            return f"[secagg] bits = {self.secagg.bits}: the sum of so many patients needs {needed}; raise it"
        return ""

    def _too_few(self) -> str:
        """Why so few sites cannot be in a round, or a site cannot stray in it; empty where they can."""
        terms, part = self.terms, self.federation.participation
        if part and not terms.min_survivors <= part <= len(self.sites):
            return (
                f"[federation] participation = {part}: a sum of {len(self.sites)} sites is safe from "
                f"{terms.min_survivors} on; give {terms.min_survivors} to {len(self.sites)}, or 0 for all"
            )
        if self.federation.algorithm == "fedprox" and self.study.local_steps == 1:
            return (
                "[federation] algorithm = 'fedprox' with [study] local_steps = 1: a site that makes one step has not "
                "left the round's weights yet; raise local_steps or leave algorithm out"
            )
        return ""

    def in_round(self, number: int) -> frozenset[str]:
        """The sites of a round, which every party draws again; see `[federation] participation`."""
        return drawn(self.hash(), tuple(self.site_ids), number, self.federation.participation)

    def scored_after(self, completed: int) -> bool:
        """Whether the model of so many completed rounds is scored."""
        return completed % self.run.evaluate_every == 0 or completed == self.study.rounds

    def kept(self, parameters: int) -> int:
        """How many values are kept behind so many that a sum moves; see `Mechanism.kept`."""
        return self.mechanism.kept(parameters, self.terms)

    def following(
        self,
        state: NDArray[np.float32],
        total: NDArray[np.float64],
        included: Sequence[str],
        policy: Policy,
        excess_seeds: Mapping[str, bytes] | None = None,
    ) -> NDArray[np.float32]:
        """The next state of what a sum moves; see `Mechanism.following`, and `fedseg.course` of a whole model."""
        return self.mechanism.following(state, total, included, policy, self.terms, excess_seeds or {})

    def hash(self) -> bytes:
        """Digest of all that can change results or privacy, 32 bytes: of every section but `UNHASHED`."""
        content = self.model_dump(mode="json", exclude=set(UNHASHED))
        return digest("study", json.dumps(content, sort_keys=True, separators=(",", ":")))

    def policy(self, parameters: int, server_key: bytes = b"") -> Policy:
        """The pinned aggregation policy for updates of so many values.

        Raises:
            ConfigError: the parameters are unsafe; names the study's field.
        """
        encoding = self.mechanism.encoding(parameters, self.terms)
        if (asked := self.asked) is not None:
            length, clip_range, value_bits, own, excess_seeds = encoding
            own = own or Layout({"update": Field.floats(length, clip_range=clip_range, value_bits=value_bits)})
            extra = Field.integers(asked.length, bits=self.secagg.bits)
            encoding = Encoding(layout=Layout({**own, FIELD: extra}), excess_seeds=excess_seeds)
        return self._policy(encoding, server_key)

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
        raise ConfigError(f"{where}: {sentence(first, Study)}") from error
