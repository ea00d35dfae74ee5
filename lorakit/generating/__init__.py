"""Generation of tokens: each after the prompt as one CUDA graph, over a cache whose tensors stay where they are."""
