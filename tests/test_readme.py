"""What the README shows works as it is written."""

import re
import shlex
from pathlib import Path

import pytest

from ovi_studio.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def command(name: str) -> str:
    """The one-line command under a marker of the README."""
    found = re.search(rf"<!-- {name} command -->\n```sh\n(.+)\n```", README)
    assert found is not None
    return found.group(1)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_clip_command_makes_a_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its last part; installing is what runs this test."""
    program, *arguments = shlex.split(command("clip").split("&&")[-1])
    assert program == ".venv/bin/ovi-studio"
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, "--steps", "2"]) == 0
    printed = capfd.readouterr().out.split()
    assert [Path(path).name for path in printed] == ["clip.mp4"]
    assert Path(printed[0]).is_file()


def test_ci_runs_the_test_command() -> None:
    assert command("test").endswith("make check PYTHON=.venv/bin/python")
    assert "<!-- test command -->" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_the_shell_examples_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every `ovi-studio` line parses: a wrong option would end in exit code 2 before anything runs."""
    monkeypatch.chdir(tmp_path)
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("ovi-studio ")]
    assert len(lines) >= 4
    for line in lines:
        arguments = shlex.split(line, comments=True)[1:]
        if arguments[:1] == ["lint"]:
            assert main(arguments) == 1, "the example shows a fault"
        else:
            with pytest.raises(SystemExit) as stop:
                main([*arguments, "--help"])
            assert stop.value.code == 0


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python")
    exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "frame.png").is_file()


def test_files_named_in_the_readme_exist() -> None:
    paths = re.findall(r"`((?:ovi_studio|benchmarks|docs|tests)/[\w./-]+)`", README)
    assert len(paths) >= 10
    assert [path for path in paths if not (ROOT / path).exists()] == []
