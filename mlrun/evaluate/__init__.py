"""Numbers about a network beside its training loss: the held-out loss and what else conf/evaluation/ names."""
