"""The variants of the C kernel that this processor can run."""

from __future__ import annotations

from musicgen_bento.native import bindings

RUNNABLE_VARIANTS = [
    name
    for variants in bindings.VARIANTS.values()
    for name, required in variants
    if required <= bindings._processor_features() and (bindings.FOLDER / f"{name}.so").is_file()
]
