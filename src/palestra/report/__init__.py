"""What a run directory shows of itself: a page to look at, and a few lines for the terminal."""
