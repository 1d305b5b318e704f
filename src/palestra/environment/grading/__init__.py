"""Hidden tests in a pristine sandbox, and the verdict they give."""
