"""Write the generated documents anew: `make docs`. With `--check` write none, and fail where that would change one."""

import os
import sys

for setting in [name for name in os.environ if name.startswith("MUSICGEN_")]:
    del os.environ[setting]  # the documents are of the defaults

from docs.pages import HERE, PAGES  # noqa: E402

drifted = [name for name, page in PAGES.items() if (HERE / name).read_text(encoding="utf-8") != page()]
if "--check" not in sys.argv:
    for name in drifted:
        (HERE / name).write_text(PAGES[name](), encoding="utf-8")
elif drifted:
    sys.exit(f"docs/{' and docs/'.join(drifted)} do not match the code: `make docs` writes them anew.")
