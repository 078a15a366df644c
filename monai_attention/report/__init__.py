"""Pictures, tables and pages that tell a person how a run went."""
