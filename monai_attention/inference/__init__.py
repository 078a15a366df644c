"""From a volume on disk to labels on disk."""
