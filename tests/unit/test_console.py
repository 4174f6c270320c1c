"""What the terminal shows: results on stdout, the rest on stderr."""

import json
from dataclasses import dataclass

import pytest

from olmoearth_cli import console
from olmoearth_cli.console import Console, Progress, duration, size


@dataclass
class Tile:
    status: str = "done"
    km2: float = 2.0
    tiles_to_do: int = 4
    km2_to_do: float = 8.0


def test_a_result_is_one_line_or_one_json_object(capsys):
    Console().result("maps/a", {"folder": "maps/a"})
    Console(as_json=True).result("maps/a", {"folder": "maps/a"})
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "maps/a"
    assert json.loads(out[1]) == {"folder": "maps/a"}


def test_quiet_keeps_notes_back_and_not_warnings(capsys):
    quiet = Console(quiet=True)
    quiet.note("a note")
    quiet.warn("a warning")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "warning: a warning\n"


def test_without_a_terminal_progress_is_a_plain_line_now_and_then(capsys, monkeypatch):
    now = iter([0.0, 10.0, 40.0, 50.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(now))
    progress = Progress(Console())
    for tile in (Tile(), Tile(), Tile(status="gap")):
        progress.advance(tile)
    progress.close()
    assert capsys.readouterr().err == "2/4 tiles, 0.1 km2/s, 40 s left\n"


def test_on_a_terminal_progress_is_one_live_line(capsys, monkeypatch):
    monkeypatch.setattr(console.sys.stderr, "isatty", lambda: True)
    progress = Progress(Console())
    progress.advance(Tile())
    progress.advance(Tile(status="gap"))
    progress.close()
    err = capsys.readouterr().err
    assert err.count("\r") == 2
    assert "2/4 tiles, 1 gaps" in err
    assert err.endswith("\n")


@pytest.mark.parametrize(
    ("seconds", "text"), [(45, "45 s"), (600, "10 min"), (9000, "2.5 h"), (float("inf"), "unknown time")]
)
def test_durations_read_as_a_person_says_them(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(12, "12 B"), (13_700_000, "13.7 MB"), (2e12, "2 TB")])
def test_sizes_read_as_a_person_says_them(count, text):
    assert size(count) == text
