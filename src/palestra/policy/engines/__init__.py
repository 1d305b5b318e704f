"""Token-in-token-out samplers."""
