"""Planning: a Spec decided for one model."""
