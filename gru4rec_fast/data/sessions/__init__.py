"""Session logs: ingest, preparation, the memory-mapped store and the loader that plays it."""
