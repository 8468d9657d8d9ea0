"""Write the generated documents: `make docs`. With `--check` write none, and fail if one differs from the code."""

import os
import sys

for setting in [name for name in os.environ if name.startswith("MUSICGEN_")]:
    del os.environ[setting]  # the documents show the defaults

from docs.pages import DOCS_FOLDER, PAGES  # noqa: E402

outdated = [name for name, page in PAGES.items() if (DOCS_FOLDER / name).read_text(encoding="utf-8") != page()]
if "--check" not in sys.argv:
    for name in outdated:
        (DOCS_FOLDER / name).write_text(PAGES[name](), encoding="utf-8")
elif outdated:
    sys.exit(f"docs/{' and docs/'.join(outdated)} do not match the code: run `make docs`.")
