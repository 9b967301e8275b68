"""`ovi-studio batch` over a fake engine: what is made, what is made again, and what it says."""

import csv
import io
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ovi_studio.cli import generate, main
from ovi_studio.errors import OutOfMemoryError
from ovi_studio.events import CancelToken
from ovi_studio.request import GenerationRequest
from ovi_studio.studio.batch import take_up
from ovi_studio.studio.clips import embedded_request
from ovi_studio.studio.library import Filter, Library
from ovi_studio.studio.rows import BatchRow
from ovi_studio.studio.runner import Runner
from ovi_studio.studio.table import harmless, unguarded
from ovi_studio.variants import get_variant
from tests.fakes import FakeEngine


class Shell:
    """The command line in a folder, with a fake engine behind it."""

    def __init__(self, folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.settings: dict[str, Any] = {"steps": 1}
        self.made: list[GenerationRequest] = []
        self._capfd = capfd
        monkeypatch.chdir(folder)
        monkeypatch.setenv("OVI_STUDIO_HOME", str(folder / "home"))
        monkeypatch.setattr(generate, "make_engine", self._make_engine)

    def _make_engine(self, folder: Path, _preferences: object = None) -> FakeEngine:
        return FakeEngine(folder, requests=self.made, **self.settings)

    def __call__(self, *arguments: object) -> tuple[int, list[str], str]:
        """Exit code, lines on stdout, stderr."""
        self.made.clear()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # argparse
            code = int(stop.code or 0)
        out, err = self._capfd.readouterr()
        return code, out.splitlines(), err

    def batch(self, text: str, *options: object, name: str = "b.csv") -> tuple[int, list[str], str]:
        (self.folder / name).write_text(text, encoding="utf-8")
        return self("batch", name, "-o", "out", *options)

    @property
    def clips(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "out").glob("*.mp4"))

    def results(self, name: str = "b") -> list[dict[str, str]]:
        with (self.folder / "out" / f"{name}-results.csv").open(encoding="utf-8-sig", newline="") as file:
            return list(csv.DictReader(file))


@pytest.fixture
def shell(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    return Shell(tmp_path, capfd, monkeypatch)


def test_a_table_becomes_clips_and_a_table(shell: Shell) -> None:
    code, out, err = shell.batch('text_prompt,image_path\n"A dog says ""hi"". <S>Woof!<E> Audio: barks",\nTwo,\n')
    assert code == 0, err
    assert ("untrained: expect noise" in err) is not get_variant("nano").trained
    assert [Path(line).name for line in out] == shell.clips == ["a-dog-says-hi.mp4", "two.mp4"]
    first, second = shell.results()
    assert (first["row"], first["take"], first["status"], first["error"]) == ("2", "1", "done", "")
    assert embedded_request(Path(first["path"])).seed == int(first["seed"])
    assert float(first["seconds"]) >= 0
    assert first["prompt"] == 'A dog says "hi". <S>Woof!<E> Audio: barks'
    assert second["row"] == "3"
    assert sorted(path.name for path in (shell.folder / "out").iterdir()) == [
        *shell.clips[:1],
        "b-results.csv",
        "two.mp4",
    ]


def test_running_again_makes_only_what_is_missing(shell: Shell) -> None:
    text = "prompt\na\nb\nc\n"
    assert shell.batch(text)[0] == 0
    assert len(shell.made) == 3
    code, out, err = shell.batch(text, "--resume")
    assert (code, out, len(shell.made)) == (0, [], 0)
    assert "0 of them to be made" in err
    (shell.folder / "out/b.mp4").unlink()
    assert shell.batch(text)[0] == 0
    assert [request.prompt for request in shell.made] == ["b"]


def test_rows_may_move_be_added_and_be_changed(shell: Shell) -> None:
    shell.batch("prompt,seed\na,1\nb,2\nb,2\n")
    shell.batch("prompt,seed\nb,2\nnew,3\na,1\nb,5\nb,2\n")
    assert [(request.prompt, request.seed) for request in shell.made] == [("new", 3), ("b", 5)]
    assert [row["prompt"] for row in shell.results()] == ["b", "new", "a", "b", "b"]
    assert len({row["path"] for row in shell.results()}) == 5


def test_more_takes_are_added_to_those_that_are_there(shell: Shell) -> None:
    shell.batch("prompt,seed\na,7\n")
    shell.batch("prompt,seed\na,7\n", "--takes", 3)
    assert [request.seed for request in shell.made] == [8, 9]
    assert [(row["take"], row["seed"]) for row in shell.results()] == [("1", "7"), ("2", "8"), ("3", "9")]


def test_open_seeds_differ_and_are_recorded(shell: Shell) -> None:
    shell.batch("prompt,takes\na,3\n")
    assert len({row["seed"] for row in shell.results()}) == 3


def test_a_lost_library_does_not_make_clips_again(shell: Shell) -> None:
    text = "prompt,seed,takes\na,1,2\na,,1\nb,3,1\n"
    shell.batch(text)
    before = {name: (shell.folder / "out" / name).stat().st_mtime_ns for name in shell.clips}
    shell.batch(text, "--library", "other.db")
    assert shell.made == []
    assert {name: (shell.folder / "out" / name).stat().st_mtime_ns for name in shell.clips} == before
    assert len({row["path"] for row in shell.results()}) == 4


def test_options_are_for_rows_that_do_not_say(shell: Shell) -> None:
    shell.batch("prompt,model,size\na,,64x64\nb,nano,\n", "--model", "720x720_5s")
    assert [request.variant for request in shell.made] == ["720x720_5s", "nano"]


def test_images_are_relative_to_the_table(shell: Shell) -> None:
    (shell.folder / "deep").mkdir()
    Image.new("RGB", (64, 64), "red").save(shell.folder / "deep/a.png")
    Image.new("RGB", (64, 64), "blue").save(shell.folder / "here.png")
    code, _, err = shell.batch("text_prompt,image_path\na,a.png\nb,here.png\n", name="deep/b.csv")
    assert code == 0, err
    assert [request.first_frame.name for request in shell.made] == ["a.png", "here.png"]


def test_faults_are_shown_as_a_table_and_nothing_is_made(shell: Shell) -> None:
    code, out, err = shell.batch("prompt,seed,size\nfine,1,\nbad,x,64\n")
    assert code == 2
    assert out[0].split() == ["row", "column", "what", "is", "wrong", "what", "would", "mend", "it"]
    assert [line.split()[:2] for line in out[1:]] == [["3", "size"], ["3", "seed"]]
    assert "heightxwidth" in out[1]
    assert "704x1280" in out[1]
    assert "faults in" in err
    assert not (shell.folder / "out").exists()
    assert not (shell.folder / "home").exists()


def test_the_first_failure_stops_the_batch_and_running_again_goes_on(shell: Shell) -> None:
    shell.settings["error"] = OutOfMemoryError("There was not enough memory.", "Choose a smaller size.")
    code, _, err = shell.batch("prompt\na\nb\nc\n")
    assert code == 1
    assert len(shell.made) == 1
    assert "row 2: failed. There was not enough memory. Choose a smaller size." in err
    assert [row["status"] for row in shell.results()] == ["failed", "paused", "paused"]
    assert shell.results()[0]["error"].startswith("There was not enough memory.")
    assert shell.results()[0]["path"] == ""
    del shell.settings["error"]
    assert shell.batch("prompt\na\nb\nc\n")[0] == 0
    assert len(shell.made) == 3


def test_keep_going(shell: Shell) -> None:
    shell.settings["error"] = OutOfMemoryError("No.", "Yes.")
    code, _, _ = shell.batch("prompt\na\nb\n", "--keep-going")
    assert (code, len(shell.made)) == (1, 2)
    assert [row["status"] for row in shell.results()] == ["failed", "failed"]


def test_a_folder_that_vanishes_stops_the_batch_with_a_reason(shell: Shell) -> None:
    shell.settings["before_finish"] = lambda: shutil.rmtree(shell.folder / "out")
    code, _, err = shell.batch("prompt\na\nb\n")
    assert code == 1
    assert "There is no folder" in err
    assert "Traceback" not in err
    shell.settings.pop("before_finish")
    assert shell.batch("prompt\na\nb\n")[0] == 0
    assert shell.clips == ["a.mp4", "b.mp4"]


def test_resume_wants_something_to_go_on_with(shell: Shell) -> None:
    code, _, err = shell.batch("prompt\na\n", "--resume")
    assert code == 2
    assert "Nothing was begun" in err


def test_rows_that_are_no_longer_wanted_are_given_up(library: Library, clips: Path) -> None:
    rows = [BatchRow(n, GenerationRequest.create(prompt=str(n))) for n in (2, 3)]
    take_up(library, rows, clips)
    take_up(library, rows[1:], clips)
    assert [job.status for job in library.find(Filter())] == ["cancelled", "queued"]
    take_up(library, rows, clips)
    assert [job.status for job in library.find(Filter())] == ["queued", "queued"]


def test_a_batch_leaves_other_jobs_alone(
    library: Library, clips: Path, ask: Callable[..., Any], engine: FakeEngine
) -> None:
    other = ask("other")
    batch = take_up(library, [BatchRow(2, GenerationRequest.create(prompt="a"))], clips)
    runner = Runner(library, engine, engine.folder, batch=batch.name)
    assert runner.run_next(CancelToken()).request.prompt == "a"
    assert runner.run_next(CancelToken()) is None
    assert library.get(other.id).status == "queued"


def test_thousands_of_rows_are_taken_up_and_found_again(library: Library, clips: Path) -> None:
    rows = [BatchRow(n, GenerationRequest.create(prompt="the same", seed=n)) for n in range(3000)]
    batch = take_up(library, rows, clips)
    assert len({job.output for job in batch.jobs(library)}) == 3000
    assert take_up(library, rows, clips) == batch


@pytest.mark.parametrize(
    "arguments",
    [
        ["gone.csv", "-o", "out"],
        ["b.txt", "-o", "out"],
        ["b.csv"],
        ["b.csv", "-o", "b.csv"],
        ["b.csv", "-o", "out", "--model", "nanno"],
        ["b.csv", "-o", "out", "--takes", "0"],
        ["b.csv", "-o", "out", "--library", "b.csv"],
    ],
    ids=" ".join,
)
def test_wrong_arguments(shell: Shell, arguments: list[str]) -> None:
    for name in ("b.csv", "b.txt"):
        (shell.folder / name).write_text("prompt\na\n")
    code, _, err = shell("batch", *arguments)
    assert code == 2
    assert "Traceback" not in err
    assert (shell.folder / "b.csv").read_text() == "prompt\na\n"


# --- The result table -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["=1+1", "+1", "-1", "@x", "＝1", "\n=1", "\t=1", "\r=1", " =1", "=HYPERLINK(1)"])
def test_no_cell_is_a_formula(cell: str) -> None:
    assert harmless(cell) == f"'{cell}"
    assert harmless(f"a{cell}") == f"a{cell}"


@pytest.mark.parametrize("cell", ["=1", "'=1", "''=1", "' =1", "a", "'a", "'", "", "-", "'tis", "'-tis"])
def test_what_was_guarded_is_read_as_it_was(cell: str) -> None:
    assert unguarded(harmless(cell)) == cell


def test_formulas_in_prompts_stay_text(shell: Shell) -> None:
    assert shell.batch('prompt\n"=HYPERLINK(""http://x"")"\n"a\nb"\n')[0] == 0
    assert [row["prompt"] for row in shell.results()] == ['\'=HYPERLINK("http://x")', "a\nb"]


def test_names_of_all_kinds_are_safe_and_differ(shell: Shell) -> None:
    prompts = ["../../up", "CON", "con", "日本", "? a * : | <>", "x" * 200, "A B", "a b", ".hidden", "-o"]
    text = io.StringIO()
    csv.writer(text).writerows([["prompt"], *([prompt] for prompt in prompts)])
    code, _, err = shell.batch(text.getvalue())
    assert code == 0, err
    assert len(shell.clips) == len({name.lower() for name in shell.clips}) == len(prompts)
    assert all(name[0].isalnum() and len(name) < 60 and name.isascii() for name in shell.clips)
    assert not (shell.folder / "up.mp4").exists()


# --- Ctrl-C ---------------------------------------------------------------------------------------------------


@pytest.mark.distributed
def test_ctrl_c_leaves_the_rest_queued(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text("prompt\na\nb\nc\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.studio.program", "batch", "b.csv", "-o", "out", "--library", "library.db"],
        cwd=tmp_path,
        env={"STEP": "0.5", "PYTHONPATH": str(Path(__file__).parents[2]), "PATH": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.readline()  # the first clip's path
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert b"Traceback" not in err
    with Library(tmp_path / "library.db") as library:
        assert [job.status for job in library.find(Filter())] == ["done", "queued", "queued"]
    with (tmp_path / "out/b-results.csv").open(encoding="utf-8-sig", newline="") as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["done", "queued", "queued"]


# --- `ovi-studio library` -------------------------------------------------------------------------------------


def test_the_library_from_the_command_line(shell: Shell) -> None:
    shell.batch("prompt,seed\na fox,1\na dog,2\n")
    code, out, _ = shell("library", "list")
    assert (code, len(out)) == (0, 2)
    assert "a-dog.mp4" in out[0], "the newest first"
    _, (line,), _ = shell("library", "list", "fox", "--json", "--status", "done")
    job = json.loads(line)
    assert (job["seed"], job["request"]["prompt"], job["status"]) == (1, "a fox", "done")
    _, shown, _ = shell("library", "show", job["id"])
    assert json.loads("\n".join(shown)) == job
    (shell.folder / "out/a-fox.mp4").unlink()
    assert shell("library", "retry", job["id"])[0] == 0
    assert shell("library", "pause")[2].strip().endswith("1 jobs paused")
    assert shell("library", "resume", job["id"])[0] == 0
    assert shell("library", "pause", job["id"])[0] == 0
    assert shell("library", "cancel", job["id"])[0] == 0
    assert shell("library", "cancel", "--all")[2].strip().endswith("0 jobs cancelled")
    assert [json.loads(line)["status"] for line in shell("library", "list", "--json")[1]] == ["done", "cancelled"]


@pytest.mark.parametrize(
    "arguments",
    [["show", "0"], ["cancel"], ["cancel", "0", "--all"], ["list", "--status", "x"], ["list", "--page", "0"]],
)
def test_wrong_arguments_of_the_library(shell: Shell, arguments: list[str]) -> None:
    code, _, err = shell("library", *arguments)
    assert code == 2
    assert "Traceback" not in err


def test_a_damaged_library_is_rebuilt_from_the_command_line(shell: Shell) -> None:
    shell.batch("prompt\na\nb\n")
    store = shell.folder / "home/library.db"
    assert shell("library", "rescan", "--rebuild")[0] == 2, "a sound one is not put aside"
    store.write_bytes(b"damage" * 1000)
    code, _, err = shell("library", "list")
    assert code == 2
    assert "rescan --rebuild" in err
    code, _, err = shell("library", "rescan", "out", "--rebuild")
    assert code == 0, err
    assert "2 clips added" in err
    assert len(shell("library", "list")[1]) == 2
    assert len(list(store.parent.glob("library.damaged-*.db"))) == 1
    assert shell("library", "rescan")[2].strip().endswith("2 known")


def test_help_imports_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from ovi_studio.cli import main\n"
        "try: main(['batch', '--help'])\nexcept SystemExit: pass\n"
        "import ovi_studio.studio.batch, ovi_studio.presets\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0
