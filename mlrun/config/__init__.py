"""The settings of a run, the classes that they name, and the typed `Config` that is made of both. No torch here."""
