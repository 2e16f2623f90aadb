"""One file a measurement; each is a function of a Target."""
