"""What a seed draws about the parts that reruns keep: are small ones merged, are hours repacked?

The choices come from a random stream of their own, as those of :mod:`simulation.layout`.
"""

import random


class Keeping:
    """How the runs of a scenario keep parts.

    :param seed: of the scenario
    """

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(f"keeping {seed}")
        self.merges = self._rng.random() < 0.3
        """The stream's ``late_merge``."""
        self.repacks_at_end = self._rng.random() < 0.25
        """Whether the last runs pack the whole hour again."""
        self._repack_rate = self._rng.choice((0.0, 0.0, 0.2))

    def is_repacked(self) -> bool:
        """Draw whether a run packs the whole hour again."""
        return self._rng.random() < self._repack_rate
