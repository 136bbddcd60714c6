"""The whole panel on the embedded model's own world, in minutes and without a network."""
