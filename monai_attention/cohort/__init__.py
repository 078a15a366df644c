"""One function for one case, applied to many: resumable, shared between processes, a verdict for each."""
