"""Deterministic simulation of an hour: competing runs, crashes, faults and server quirks, all drawn from a seed.

``python -m simulation --seeds 10000`` simulates 10,000 scenarios in memory. See :mod:`simulation.scenario`.
A fifth of them have groups, and a fifth have raw objects and parts in different stores: :mod:`simulation.layout`.
"""
