"""The forge: tested Python projects made into graded tasks by seeding bugs."""
