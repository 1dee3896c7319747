"""The command ``log-rollup``: what an operator asks of streams and hours at a shell, answered by the bucket."""
