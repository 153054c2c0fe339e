"""Session logs: reading, filtering, splitting, the memory-mapped `SessionStore` and its data loader."""
