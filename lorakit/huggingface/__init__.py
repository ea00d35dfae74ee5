"""The Hugging Face wing: everything that knows transformers."""
