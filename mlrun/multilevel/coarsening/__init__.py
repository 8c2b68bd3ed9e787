"""Coarsenings: which units of each axis merge into one. They see axis sizes, never an architecture."""
