"""One sampling run on several workers: exact sequence parallelism, weights loaded once, supervised Ray actors."""
