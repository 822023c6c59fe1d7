"""What `[training]` and the working grid say: rates, optimisers, batches, views, patches, flips, refusals."""

from pathlib import Path

import pytest

from fedseg.errors import ConfigError
from fedseg.study import Study, load_study

STUDIES = Path(__file__).parents[2] / "studies"


@pytest.fixture(scope="module")
def study() -> Study:
    return load_study(STUDIES / "phantom.toml")


@pytest.mark.parametrize(
    "field", [{"optimizer": "adamw"}, {"weight_decay": 0.1}, {"schedule": "cosine"}, {"warm_up": 3}, {"batch": 4}]
)
def test_fields_of_local_steps_are_refused_where_no_site_steps_by_itself(field: dict[str, object]) -> None:
    distributed = load_study(STUDIES / "lgg-distributed.toml")
    with pytest.raises(ConfigError, match=rf"\[training\] {next(iter(field))} = .* no site steps by itself"):
        distributed.replace(training=field)


def test_the_rate_grows_and_falls_by_its_place_among_all_local_steps(study: Study) -> None:
    plain = study.replace(study={"rounds": 4, "local_steps": 5, "lr": 2.0})
    assert [plain.terms.rate(number, 1) for number in (1, 4, 9)] == [2.0] * 3
    terms = plain.replace(training={"schedule": "cosine", "warm_up": 3}).terms
    rates = [terms.rate(number, step) for number in range(1, 5) for step in range(1, 6)]
    assert rates[:3] == pytest.approx([0.5, 1.0, 1.5])
    assert rates[3] == max(rates) <= 2.0
    assert rates[10] == pytest.approx(1.0)
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert terms.rate(9, 2) == rates[-1] > 0  # after burned rounds
