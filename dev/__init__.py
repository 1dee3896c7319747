"""What developers use and production does not: local stack, made logs, S3 servers, generated reference."""
