"""Shared code of the tests: fixtures, raw hours, stores, a fault proxy, process watches, an independent check."""
