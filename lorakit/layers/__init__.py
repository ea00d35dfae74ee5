"""The modules that take a layer's place in an adapted model."""
