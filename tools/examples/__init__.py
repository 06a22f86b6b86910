"""Makes the data sets of `examples/`, from text written for this project."""
