"""`make bench`: how fast the parts are, each against what people use, in one run."""
