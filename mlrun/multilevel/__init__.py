"""The heart: operators, what goes through them between two stages, which units merge, and how a model goes up."""
