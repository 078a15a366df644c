"""Fine-tuning a bundle's network on a cohort of the user's: what the data are, and whether they are fit for it."""
