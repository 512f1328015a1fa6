"""Word problems and competition problems: votes, best of n, and what kind of error was made."""
