"""Deformable registration: fields, similarity, models, optimisation, and files that other programs apply."""

SIMILARITIES = ("auto", "lncc", "mi", "mind")
"""What a pair may be registered with, see `similarities`; here, where naming them imports nothing."""
