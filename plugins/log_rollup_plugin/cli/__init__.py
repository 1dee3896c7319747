"""The command ``log-rollup``, which shows and verifies the hours of streams at a shell."""
