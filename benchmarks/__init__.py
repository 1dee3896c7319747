"""Compares the pack step with other programs for the same work, on one machine in one run."""
