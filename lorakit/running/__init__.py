"""Training scripts that know nothing of lorakit: what is adapted in them, as their model is loaded."""
