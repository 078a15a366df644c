"""Training data from label maps and shapes: no scans needed."""
