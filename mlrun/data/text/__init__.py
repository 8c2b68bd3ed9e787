"""Text: where documents come from, how they become windows, and what a model predicts of them."""
