"""The language server: what an editor shows of a spec while it is written. Nothing here imports torch."""
