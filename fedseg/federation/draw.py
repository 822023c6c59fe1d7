"""Who is in a round where not all sites are: a draw that every party makes again from the study alone.

It is balanced, so that no site is in more rounds than another by more than one: the noise is planned for as many rounds
as a site is ever in. Who is drawn is public, so that it hides nobody; it saves training and traffic.
"""

from functools import lru_cache

from secagg.encoding import digest


@lru_cache(maxsize=64)
def drawn(study_hash: bytes, sites: tuple[str, ...], number: int, participation: int) -> frozenset[str]:
    """The sites of a round: those that were in the fewest rounds so far, and among equals as a hash says.

    Args:
        study_hash: 32 bytes.
        sites: all of the study.
        number: of the round, at least 1.
        participation: sites of a round; 0 for all.
    """
    if not participation:
        return frozenset(sites)
    counts, chosen = dict.fromkeys(sites, 0), list(sites)
    for before in range(1, number + 1):
        places = {site: (counts[site], digest("participation", study_hash, before, site)) for site in sites}
        chosen = sorted(sites, key=places.__getitem__)[:participation]
        for site in chosen:
            counts[site] += 1
    return frozenset(chosen)


def rounds_of_a_site(rounds: int, sites: int, participation: int) -> int:
    """In how many of so many rounds a site is at most."""
    return -(-rounds * participation // sites) if participation else rounds
