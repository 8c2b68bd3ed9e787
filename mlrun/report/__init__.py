"""Tables and figures from finished or running run folders: what was saved, at equal loss, against whom."""
