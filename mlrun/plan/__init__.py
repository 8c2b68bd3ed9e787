"""The cycle worked out before anything runs: values, how they are made, and how they are shown. No torch here."""
