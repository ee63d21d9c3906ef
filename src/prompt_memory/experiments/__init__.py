"""One module a chapter: its protocol, its results, its claims, its figures."""
