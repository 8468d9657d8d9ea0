"""The command line as people meet it: a process, its exit status, its two streams."""

from __future__ import annotations

import io
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import pytest
import soundfile

from musicgen_bento import model_catalog
from musicgen_bento.cli import launch
from musicgen_bento.cli.generate import FORMATS, NORMALIZE, generate
from musicgen_bento.errors import InvalidRequest
from musicgen_bento.schemas import GenerationRequest, Normalize, StreamFormat

ROOT = Path(__file__).parents[3]
CLI = [sys.executable, "-m", "musicgen_bento.cli"]
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("MUSICGEN_", "BENTOML_"))}
ENVIRONMENT = {**CLEAN, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


def run(*args: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CLI, *args], cwd=cwd, env={**ENVIRONMENT, **environment}, capture_output=True, text=True, timeout=120
    )


def one_error(done: subprocess.CompletedProcess[str], status: int) -> str:
    """The one line of a failed command."""
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_a_clip_lands_in_the_file_whole(tmp_path: Path) -> None:
    done = run("--prompt", "a secret", "--duration", "1", "--output", "out.wav", "--seed", "7", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "No --model was given: taking demo." in done.stderr
    assert "Built in and tiny" in done.stderr
    assert "seed 7" in done.stderr
    assert "secret" not in done.stderr
    info = soundfile.info(tmp_path / "out.wav")
    assert (info.samplerate, info.channels, info.frames, info.subtype) == (32_000, 1, 32_000, "PCM_16")
    assert os.listdir(tmp_path) == ["out.wav"]
    assert (tmp_path / "out.wav").stat().st_mode & 0o777 == 0o666 & ~umask()


def umask() -> int:
    now = os.umask(0)
    os.umask(now)
    return now


def test_a_folder_is_a_model_and_the_drawn_seed_makes_the_clip_again(tmp_path: Path) -> None:
    folder = model_catalog.CATALOG[0].folder
    first = run("--prompt", "x", "--duration", "0.5", "--model", str(folder), "--output", str(tmp_path / "1.wav"))
    assert first.returncode == 0, first.stderr
    assert "No --model" not in first.stderr
    seed = first.stderr.strip().rstrip(".").rpartition("seed ")[2]
    again = run(
        *("--prompt", "x", "--duration", "0.5", "--model", "demo", "--seed", seed),
        *("--output", str(tmp_path / "2.wav")),
        HF_HUB_OFFLINE="1",
    )
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "1.wav").read_bytes() == (tmp_path / "2.wav").read_bytes()


def test_several_prompts_are_numbered_files(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\ufeffcalm\n\n  wild  \n")
    done = run("--prompts", "prompts.txt", "--duration", "0.5", "--seed", "7", "--output", "out.wav", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(tmp_path)) == ["out-1.wav", "out-2.wav", "prompts.txt"]
    assert "out-1.wav: 0.5 s by demo, seed 7." in done.stderr
    assert "out-2.wav: 0.5 s by demo, seed 8." in done.stderr
    alone = run("--prompt", "wild", "--duration", "0.5", "--seed", "8", "--output", "alone.wav", cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    assert soundfile.info(tmp_path / "alone.wav").frames == 16_000


def test_a_prompt_of_several_that_is_wrong_is_named(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("calm\na\x01b\n")
    assert "Prompt 2 of 2" in one_error(run("--prompts", "prompts.txt", "--output", "x.wav", cwd=tmp_path), 2)
    (tmp_path / "prompts.txt").write_bytes(b"\xff\xfe")
    assert "UTF-8" in one_error(run("--prompts", "prompts.txt", "--output", "x.wav", cwd=tmp_path), 2)


def test_a_dash_is_standard_output_and_quiet_is_quiet(tmp_path: Path) -> None:
    command = [*CLI, "--prompt", "x", "--duration", "0.5", "--output", "-", "--quiet"]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert soundfile.info(io.BytesIO(done.stdout)).frames == 16_000
    assert os.listdir(tmp_path) == []


def test_standard_output_that_is_closed_is_one_line(tmp_path: Path) -> None:
    command = shlex.join([*CLI, "--prompt", "x", "--duration", "0.5", "--output", "-", "--quiet"]) + " | true"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (1, "error: Cannot write to standard output: Broken pipe.\n")


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*CLI, "--prompt", "x", "--duration", "290", "--output", "out.wav"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,  # type: ignore[call-overload]
    )
    time.sleep(6)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=100)  # a load that has begun is waited for
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert stderr.endswith("interrupted\n")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--output", "x.wav"), "--prompt is missing"),
        (("--prompt", "x"), "--output is missing"),
        (("--prompt", "x", "--output", "x.wav", "--duration", "long"), "'long' is not a valid float"),
        (("--prompt", "x", "--output", "x.wav", "--duration", "0"), "duration should be"),
        (("--prompt", "x", "--output", "x.wav", "--duration", "nan"), "duration should be a finite number"),
        (("--prompt", "x", "--output", "x.wav", "--duration", "301"), "MUSICGEN_MAX_DURATION"),
        (("--prompt", "x", "--output", "x.wav", "--seed", "-1"), "seed should be"),
        (("--prompt", " ", "--output", "x.wav"), "prompt must contain text"),
        (("--prompt", "x", "--output", "nowhere/x.wav"), "There is no folder nowhere"),
        (("--prompt", "x", "--output", "."), "is a folder"),
        (("generate", "--output", "x.wav"), "--prompt is missing"),
        (("--prompt", "x", "--prompts", "-", "--output", "x.wav"), "exclude each other"),
        (("--prompts", "nowhere.txt", "--output", "x.wav"), "nowhere.txt"),
        (("--prompts", "/dev/null", "--output", "x.wav"), "no prompt"),
        (("--prompt", "x", "--output", "x.wav", "--server", "localhost:8000"), "Invalid server URL"),
        (("--prompt", "x", "--output", "x.wav", "--server", "http://x", "--timeout", "0"), "timeout"),
        (("--prompt", "x", "--output", "x.wav", "--server", "http://x", "--seed", "-1"), "seed should be"),
        (("models", "--server", "x"), "Invalid server URL"),
        (("--prompt", "x", "--output", "x.wav", "--server", ""), "Invalid server URL"),
        (("--promt", "x"), "No such option"),
        (("sing",), "No such command"),
        ((), "--prompt is missing"),
        (("serve", "--host", "0.0.0.0"), "MUSICGEN_ALLOW_ANONYMOUS=1"),
        (("serve", "--host", "::"), "MUSICGEN_ALLOW_ANONYMOUS=1"),
        (("serve", "--host", "example.org"), "no IP address"),
        (("serve", "--port", "0"), "--port"),
    ],
    ids=str,
)
def test_misuse_is_one_line_and_status_2_before_anything_is_loaded(
    args: tuple[str, ...], says: str, tmp_path: Path
) -> None:
    assert says in one_error(run(*args, cwd=tmp_path), 2)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_refused_first(tmp_path: Path) -> None:
    if not Path("/proc/1").is_dir():
        pytest.skip("needs /proc, where not even root can make a file")
    assert "Cannot write to /proc" in one_error(run("--prompt", "x", "--output", "/proc/x.wav"), 2)


def test_a_setting_out_of_range_is_named() -> None:
    line = one_error(run("--prompt", "x", "--output", "x.wav", MUSICGEN_MAX_QUEUE="-1"), 2)
    assert "MUSICGEN_MAX_QUEUE" in line


def test_preloaded_models_that_do_not_fit_are_one_line_at_the_start() -> None:
    settings = {"PRELOAD": "demo,small", "MEMORY_BUDGET": "2GB", "DEVICE": "cpu", "PRECISION": "float32"}
    line = one_error(run("serve", **{f"MUSICGEN_{name}": value for name, value in settings.items()}), 1)
    assert "MUSICGEN_PRELOAD (demo, facebook/musicgen-small) takes 3.1 GB" in line
    assert "models may take 2.0 GB" in line


def test_help_is_light() -> None:
    code = (
        "import sys; from musicgen_bento import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit as done: status = done.code\n"
        "heavy = {'torch', 'bentoml', 'numpy', 'pydantic', 'requests', 'transformers'} & set(sys.modules)\n"
        "print(status, sorted(heavy), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.stderr.strip() == "0 []"
    for option in ("--prompt", "--duration", "--output", "--model", "--seed", "--temperature", "--top-k", "--top-p"):
        assert option in done.stdout


def test_the_defaults_are_the_requests() -> None:
    options = {option.name: option.default for option in generate.params}
    fields = {name: field for name, field in GenerationRequest.model_fields.items() if not field.is_required()}
    told = {"model", "seed"}
    assert {name: options[name] for name in fields if name not in told} == {
        name: field.default for name, field in fields.items() if name not in told
    }
    assert get_args(Normalize) == NORMALIZE
    assert get_args(StreamFormat) == FORMATS


def test_models_lists_every_model_with_its_licence() -> None:
    done = run("models")
    assert done.returncode == 0, done.stderr
    for card in model_catalog.CATALOG:
        [line] = [line for line in done.stdout.splitlines() if line.split()[:1] == [card.id]]
        assert card.license in line
    assert "Built in and tiny" in done.stdout


def test_loopback_addresses_are_known() -> None:
    assert str(launch._address("localhost")) == "127.0.0.1"
    assert launch._address("::1").is_loopback
    with pytest.raises(InvalidRequest):
        launch._address("8000")


def test_each_server_has_its_own_private_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    first, second = launch._home(8000), launch._home(8001)
    assert first != second
    assert launch._home(8000) == first
    assert first.stat().st_mode & 0o777 == 0o700
    first.chmod(0o777)
    assert launch._home(8000) != first
