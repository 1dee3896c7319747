"""Generates docs/REFERENCE.md from the code."""
