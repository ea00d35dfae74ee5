"""The trainers that people already use, and what an adapted model needs to feel at home in them."""
