"""What a seed draws about runs of the step ``expire_hour``."""

import random

from include.log_rollup.expiry_options import ExpireRaw


class ExpiryDraws:
    """How often the step runs; drawn from a random stream of its own.

    :param seed: of the scenario
    """

    def __init__(self, seed: int) -> None:
        rng = random.Random(f"expiry {seed}")
        self.runs = rng.choice((1, 1, 2)) if rng.random() < 0.25 else 0
        """How often it runs while other runs compete."""
        self.at_end = self.runs > 0 and rng.random() < 0.7
        """Whether it runs when the hour is complete at the end."""
        self.rules = ExpireRaw.model_construct(mode="delete", unconditional=False, deep=rng.random() < 0.3)
