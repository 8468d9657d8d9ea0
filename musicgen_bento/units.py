"""Sizes in bytes as text."""

from __future__ import annotations

MEGABYTE, GIGABYTE = 1_000_000, 1_000_000_000


def format_bytes(size: int) -> str:
    """Return a number of bytes in MB or GB, such as `1.5 GB`."""
    return f"{size / GIGABYTE:.1f} GB" if size >= 100 * MEGABYTE else f"{size / MEGABYTE:.1f} MB"


def format_bytes_of(done: int, total: int) -> str:
    """Return two numbers of bytes in GB, such as `0.25 of 1.50 GB`."""
    return f"{done / GIGABYTE:.2f} of {total / GIGABYTE:.2f} GB"
