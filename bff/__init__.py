"""bff: the JSON API for user interfaces. Nothing of it is built yet; this package holds its place."""
