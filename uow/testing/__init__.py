"""
The contract suite and what it stands on, for those who write adapters or repositories of their own.
"""

from ._databases import DATABASES, Unavailable, open_database, require_or_skip
from ._harness import Harness

__all__ = ["DATABASES", "Harness", "Unavailable", "open_database", "require_or_skip"]
