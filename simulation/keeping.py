"""What a seed draws about the parts that reruns keep: merged and repacked parts, and raw objects that expire.

The choices come from a random stream of their own, as those of :mod:`simulation.layout`.
"""

import random


class Keeping:
    """How the runs of a scenario keep parts, and how often raw objects expire.

    :param seed: of the scenario
    """

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(f"keeping {seed}")
        self.merges = rng.random() < 0.3
        """The stream's ``late_merge``."""
        self.repacks_at_end = rng.random() < 0.25
        """Whether the last runs pack the whole hour again."""
        self._repack_rate = rng.choice((0.0, 0.0, 0.2))
        self.expiries = rng.choice((1, 2, 3)) if rng.random() < 0.2 else 0
        """How often raw objects expire while runs compete."""
        self.expires_at_end = self.expires and rng.random() < 0.5
        """Whether they expire after the hour was completed at the end, and further ones come late."""

    @property
    def expires(self) -> bool:
        """Whether raw objects expire as the hour's record announces."""
        return self.expiries > 0

    def is_repacked(self) -> bool:
        """Draw whether a run packs the whole hour again."""
        return self.rng.random() < self._repack_rate
