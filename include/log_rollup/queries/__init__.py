"""Queries about hours, which change nothing."""
