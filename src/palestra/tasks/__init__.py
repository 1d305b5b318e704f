"""Task sources and converters; part of the ground floor."""
