"""The lock under which models of the transformers library are built."""

from __future__ import annotations

import threading

TRANSFORMERS_LOCK = threading.Lock()
"""transformers builds one model at a time: after two concurrent from_pretrained calls both models lack weights."""
