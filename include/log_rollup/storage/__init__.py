"""The interface to object storage, and listings that enforce the contract of S3."""
