"""The tests; `tests.support` is what they share, importable from the root of the repository."""
