"""Images in, `data/prepared/` out: sources, splits and the prepared data set."""
