"""Mutated inputs of every format that others may have made; ``python -m tests.fuzz --help``."""
