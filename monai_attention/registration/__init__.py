"""Deformable registration: fields, similarity, models, optimisation, and files that other programs apply."""
