"""The store: all training tiles in one LMDB, cut into sub-tiles, so that a crop reads little more than itself."""

from agl_core.data.store.layout import StoreEntry
from agl_core.data.store.reader import Store
from agl_core.data.store.writer import StoreWriter

__all__ = ["Store", "StoreEntry", "StoreWriter"]
