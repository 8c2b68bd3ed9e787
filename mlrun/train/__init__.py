"""One stage trained, on one process or many, and what a run keeps on disk."""
