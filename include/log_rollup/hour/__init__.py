"""One hour in the bucket: where it lies, its plan, its records, its parts, and its state."""
