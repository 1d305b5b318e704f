"""Web pages over run directories: read-only, without a database, and never in the way."""
