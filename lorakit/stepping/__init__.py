"""A training step as a value: forward, backward and update, finished exactly where memory runs out on the way."""
