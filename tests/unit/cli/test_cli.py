"""The command line as a process: exit status, standard output, standard error."""

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

import click
import pytest
import soundfile

from musicgen_bento import model_catalog
from musicgen_bento.cli.generate import generate
from musicgen_bento.cli.serve import _bentoml_home, _parse_address
from musicgen_bento.errors import InvalidRequest
from musicgen_bento.schemas import GenerationRequest, StreamRequest
from tests.support.command_line import COMMAND, ENVIRONMENT, ROOT, error_line, run


def test_generate_writes_a_complete_file(tmp_path: Path) -> None:
    result = run("--prompt", "a secret", "--duration", "1", "--output", "out.wav", "--seed", "7", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    assert "No --model was given: using demo." in result.stderr
    assert "Built in and tiny" in result.stderr
    assert "seed 7" in result.stderr
    assert "secret" not in result.stderr
    info = soundfile.info(tmp_path / "out.wav")
    assert (info.samplerate, info.channels, info.frames, info.subtype) == (32_000, 1, 32_000, "PCM_16")
    assert os.listdir(tmp_path) == ["out.wav"]
    assert (tmp_path / "out.wav").stat().st_mode & 0o777 == 0o666 & ~current_umask()


def current_umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def test_a_model_folder_and_the_printed_seed_reproduce_the_clip(tmp_path: Path) -> None:
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


def test_several_prompts_write_numbered_files(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\ufeffcalm\n\n  wild  \n")
    result = run("--prompts", "prompts.txt", "--duration", "0.5", "--seed", "7", "--output", "out.wav", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert sorted(os.listdir(tmp_path)) == ["out-1.wav", "out-2.wav", "prompts.txt"]
    assert "out-1.wav: 0.5 s by demo, seed 7." in result.stderr
    assert "out-2.wav: 0.5 s by demo, seed 8." in result.stderr
    single = run("--prompt", "wild", "--duration", "0.5", "--seed", "8", "--output", "single.wav", cwd=tmp_path)
    assert single.returncode == 0, single.stderr
    assert soundfile.info(tmp_path / "single.wav").frames == 16_000


def test_the_error_of_an_invalid_prompt_has_its_number(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("calm\na\x01b\n")
    assert "Prompt 2 of 2" in error_line(run("--prompts", "prompts.txt", "--output", "x.wav", cwd=tmp_path), 2)
    (tmp_path / "prompts.txt").write_bytes(b"\xff\xfe")
    assert "UTF-8" in error_line(run("--prompts", "prompts.txt", "--output", "x.wav", cwd=tmp_path), 2)


def test_a_dash_writes_to_standard_output_and_quiet_prints_nothing(tmp_path: Path) -> None:
    command = [*COMMAND, "--prompt", "x", "--duration", "0.5", "--output", "-", "--quiet"]
    result = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, timeout=120, check=False)
    assert (result.returncode, result.stderr) == (0, b"")
    assert soundfile.info(io.BytesIO(result.stdout)).frames == 16_000
    assert os.listdir(tmp_path) == []


def test_a_closed_standard_output_is_one_error_line(tmp_path: Path) -> None:
    command = shlex.join([*COMMAND, "--prompt", "x", "--duration", "0.5", "--output", "-", "--quiet"]) + " | true"
    result = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (1, "error: Cannot write to standard output: Broken pipe.\n")


def test_ctrl_c_leaves_no_file(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "--prompt", "x", "--duration", "290", "--output", "out.wav"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,  # type: ignore[call-overload]
    )
    time.sleep(6)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=100)  # the process waits for a model that is loading
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert stderr.endswith("interrupted\n")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("args", "message"),
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
        (("--prompts", "/dev/null", "--output", "x.wav"), "contains no prompt"),
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
        (("serve", "--host", "example.org"), "not an IP address"),
        (("serve", "--port", "0"), "--port"),
    ],
    ids=str,
)
def test_a_usage_error_is_one_line_and_status_2_before_a_model_is_loaded(
    args: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    assert message in error_line(run(*args, cwd=tmp_path), 2)
    assert os.listdir(tmp_path) == []


def test_an_unwritable_folder_is_an_error_before_a_model_is_loaded(tmp_path: Path) -> None:
    if not Path("/proc/1").is_dir():
        pytest.skip("needs /proc, where not even root can create a file")
    assert "Cannot write to /proc" in error_line(run("--prompt", "x", "--output", "/proc/x.wav"), 2)


def test_the_error_of_a_setting_out_of_range_names_it() -> None:
    line = error_line(run("--prompt", "x", "--output", "x.wav", MUSICGEN_MAX_QUEUE="-1"), 2)
    assert "MUSICGEN_MAX_QUEUE" in line


def test_preloaded_models_beyond_the_budget_are_one_error_line() -> None:
    settings = {"PRELOAD": "demo,small", "MEMORY_BUDGET": "2GB", "DEVICE": "cpu", "PRECISION": "float32"}
    line = error_line(run("serve", **{f"MUSICGEN_{name}": value for name, value in settings.items()}), 1)
    assert "MUSICGEN_PRELOAD (demo, facebook/musicgen-small) needs 3.1 GB" in line
    assert "the memory budget is 2.0 GB" in line


def test_help_imports_no_heavy_package() -> None:
    code = (
        "import sys; from musicgen_bento import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit as exit: status = exit.code\n"
        "heavy = {'torch', 'bentoml', 'numpy', 'pydantic', 'requests', 'transformers'} & set(sys.modules)\n"
        "print(status, sorted(heavy), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert result.stderr.strip() == "0 []"
    for option in ("--prompt", "--duration", "--output", "--model", "--seed", "--temperature", "--top-k", "--top-p"):
        assert option in result.stdout


def test_the_defaults_of_the_options_are_those_of_a_request() -> None:
    options = {option.name: option.default for option in generate.params}
    fields = {name: field for name, field in GenerationRequest.model_fields.items() if not field.is_required()}
    described_in_help = {"model", "seed"}
    assert {name: options[name] for name in fields if name not in described_in_help} == {
        name: field.default for name, field in fields.items() if name not in described_in_help
    }
    choices = {option.name: option.type.choices for option in generate.params if isinstance(option.type, click.Choice)}
    assert tuple(choices["normalize"]) == get_args(GenerationRequest.model_fields["normalize"].annotation)
    assert tuple(choices["format"]) == get_args(StreamRequest.model_fields["format"].annotation)


def test_models_lists_every_model_and_licence() -> None:
    result = run("models")
    assert result.returncode == 0, result.stderr
    for card in model_catalog.CATALOG:
        [line] = [line for line in result.stdout.splitlines() if line.split()[:1] == [card.id]]
        assert card.license in line
    assert "Built in and tiny" in result.stdout


def test_serve_accepts_localhost_and_ip_addresses_only() -> None:
    assert str(_parse_address("localhost")) == "127.0.0.1"
    assert _parse_address("::1").is_loopback
    with pytest.raises(InvalidRequest):
        _parse_address("8000")


def test_each_port_has_its_own_private_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    first, second = _bentoml_home(8000), _bentoml_home(8001)
    assert first != second
    assert _bentoml_home(8000) == first
    assert first.stat().st_mode & 0o777 == 0o700
    first.chmod(0o777)
    assert _bentoml_home(8000) != first
