"""Fine-tuning a bundle's network on a cohort of the user's: other classes, other channels, few cases."""
