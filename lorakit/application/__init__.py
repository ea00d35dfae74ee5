"""Application: a Plan walked over a model."""
