"""Tools that run a model to learn something about it: its speed, its accuracy."""
