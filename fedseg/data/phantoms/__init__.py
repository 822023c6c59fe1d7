"""Made patients: generators of labelled images that are nobody's. No real image ever enters them."""
