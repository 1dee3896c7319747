"""One hour in the bucket: the names of its objects, its plan, records, parts and state."""
