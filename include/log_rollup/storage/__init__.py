"""Object storage as the pipeline sees it: the protocol of a store, and checked listings."""
