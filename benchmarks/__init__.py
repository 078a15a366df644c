"""Side by side with the originals: `make bench` runs all of it, README.md here has the tables."""
