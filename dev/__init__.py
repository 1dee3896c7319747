"""Development code, not imported by production: local stack, made logs, demo, S3 servers, reference."""
