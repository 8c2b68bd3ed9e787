"""The command line: what it asks for, what is wrong with it, and who does it. No torch at import."""
