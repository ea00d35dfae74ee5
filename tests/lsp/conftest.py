"""The fixtures of all tests of the folder; types are checked where they are written."""

from __future__ import annotations

from lsp_fixtures import client, editor, encoded_client, folder

__all__ = ["client", "editor", "encoded_client", "folder"]
