"""Generates the figures of docs/RETENTION.md: a year of the project's example, by the code of the command cost."""
