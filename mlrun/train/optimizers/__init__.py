"""How weights move: one file per optimizer."""
