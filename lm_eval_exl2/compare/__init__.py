"""Is the small model still good enough: result folders of the stock harness in, a verdict out."""
