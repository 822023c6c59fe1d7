"""A privacy budget: planned (`plan`), charged (`charge`), told before (`explain`) and after training (`achieved`).

Nothing here reads images or weights.
"""
