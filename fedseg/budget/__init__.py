"""A study's privacy budget: planned (`plan`), charged before each round (`charge`), said before training (`explain`) and after it (`achieved`).

Nothing here reads images or weights.
"""
