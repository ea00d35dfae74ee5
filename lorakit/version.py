"""The version of lorakit, written here alone; the distribution takes it from here."""

__version__ = "0.1.0"
