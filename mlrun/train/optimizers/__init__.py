"""How weights move: one file per optimizer, each a choice of conf/optimizer."""
