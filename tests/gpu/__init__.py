"""One command that measures on a GPU what qframe does there, each result beside its prediction."""
