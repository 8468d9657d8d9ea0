"""The command line. Without a command it is `generate`.

program.py            the group of commands, exit statuses, error messages
generate.py           `generate`: its options and checks; output.py writes the clips
clip_options.py       the options that describe clips, turned into validated requests
local.py, remote.py   clips from a model in this process, or from a server
models.py, pull.py, serve.py, verify.py    the other commands
progress.py           messages and the progress bar on standard error
docker_entrypoint.py  the first process of the container image
"""

from musicgen_bento.cli.program import main

__all__ = ["main"]
