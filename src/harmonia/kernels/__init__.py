"""One operation, one file: the eager version is the specification, faster ones must agree with it."""
