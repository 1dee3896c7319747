"""Simulates whole lives of an hour in memory: competing runs, crashes, faults and quirks of servers, from a seed.

``python -m simulation --seeds 10000`` runs 10,000 of them; see :mod:`simulation.world` for what they draw.
"""
