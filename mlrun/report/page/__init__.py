"""The report as a page: index.html, one file that opens from disk and asks the network for nothing."""
