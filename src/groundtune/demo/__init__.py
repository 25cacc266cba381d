"""A page that shows what a model finds in anybody's pictures."""
