"""Fixtures of the store's tests."""

from __future__ import annotations

from tests.store.remote_fixtures import bucket, moto, place

__all__ = ["bucket", "moto", "place"]
