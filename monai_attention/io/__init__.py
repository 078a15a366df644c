"""Reading and writing volumes: the gate that keeps wrong geometry out."""
