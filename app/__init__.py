"""Trains, verifies and prepares face-recognition models; see README.md for where things are."""

__version__ = "0.1.0"  # the only place: pyproject.toml and --version read it
