"""S3 for the pipeline: boto3 for control requests, and a capped HTTP client for bodies."""
