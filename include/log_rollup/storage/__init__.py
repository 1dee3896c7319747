"""The interface to object storage, and listings that are validated page by page."""
