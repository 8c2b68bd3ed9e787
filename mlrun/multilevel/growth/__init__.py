"""How a model becomes the next finer one: one file per method."""
