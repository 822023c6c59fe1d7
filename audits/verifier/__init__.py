"""A second implementation of the transcript verifier, written from docs/spec.md and the vectors alone.

It imports neither secagg nor fedseg, and has other libraries for most primitives (`primitives`).
"""
