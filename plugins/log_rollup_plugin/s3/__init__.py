"""S3 for the pipeline: boto3 for listings and small objects, and a capped HTTP client for bodies."""
