"""Deployment tools: init step, keys for Docker Compose, minimal IAM policy, files for Amazon MWAA."""
