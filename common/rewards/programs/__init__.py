"""What a program of a model is tested with, and how its results are compared."""
