"""Files and folders that appear whole or not at all, and the silence around C++ code."""

import os
import subprocess
import sys

import pytest

import keras_kd._quiet
from keras_kd._files import bytes_on_disk, written_whole
from keras_kd._quiet import first_line


def names_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def write_folder(path, text):
    path.mkdir()
    (path / "inner").mkdir()
    (path / "inner" / "content").write_text(text)


# --- Writing ----------------------------------------------------------------------------------------------------------


def test_a_file_appears_at_the_end(tmp_path):
    path = tmp_path / "new" / "folder" / "scores.json"
    with written_whole(str(path)) as partial:
        partial.write_text("{}")
        assert not path.exists()
        assert (partial.parent, partial.suffix) == (path.parent, ".json")
    assert path.read_text() == "{}"
    assert names_in(tmp_path) == ["new", "new/folder", "new/folder/scores.json"]


def test_a_file_replaces_a_file_and_a_folder_a_folder(tmp_path):
    file, folder = tmp_path / "a.txt", tmp_path / "model"
    file.write_text("old")
    write_folder(folder, "old")
    (folder / "only in the old one").write_text("")
    with written_whole(file) as partial:
        partial.write_text("new")
    with written_whole(folder) as partial:
        write_folder(partial, "new")
        assert (folder / "inner" / "content").read_text() == "old"
    assert file.read_text() == "new"
    assert (folder / "inner" / "content").read_text() == "new"
    assert names_in(tmp_path) == ["a.txt", "model", "model/inner", "model/inner/content"]


def test_a_link_to_a_folder_is_replaced_not_followed(tmp_path):
    write_folder(tmp_path / "elsewhere", "kept")
    link = tmp_path / "model"
    link.symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with written_whole(link) as partial:
        write_folder(partial, "new")
    assert not link.is_symlink()
    assert (link / "inner" / "content").read_text() == "new"
    assert (tmp_path / "elsewhere" / "inner" / "content").read_text() == "kept"
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("interrupt", [RuntimeError("disk full"), KeyboardInterrupt()])
def test_a_failure_leaves_the_older_ones_and_nothing_else(tmp_path, interrupt):
    file, folder = tmp_path / "a.txt", tmp_path / "model"
    file.write_text("old")
    write_folder(folder, "old")
    before = names_in(tmp_path)
    with pytest.raises(type(interrupt)), written_whole(file) as partial:
        partial.write_text("ne")
        raise interrupt
    with pytest.raises(type(interrupt)), written_whole(folder) as partial:
        write_folder(partial, "ne")
        raise interrupt
    with pytest.raises(type(interrupt)), written_whole(tmp_path / "not" / "there" / "yet.txt"):
        raise interrupt
    assert names_in(tmp_path) == before
    assert file.read_text() == (folder / "inner" / "content").read_text() == "old"


def test_folders_that_someone_else_uses_by_now_stay(tmp_path):
    with pytest.raises(RuntimeError, match="disk full"), written_whole(tmp_path / "shared" / "deep" / "a.txt"):
        (tmp_path / "shared" / "theirs").write_text("")
        raise RuntimeError("disk full")
    assert names_in(tmp_path) == ["shared", "shared/theirs"]


def test_a_file_never_takes_a_folders_place_nor_a_folder_a_files(tmp_path):
    write_folder(tmp_path / "folder", "old")
    (tmp_path / "file").write_text("old")
    before = names_in(tmp_path)
    with pytest.raises(IsADirectoryError), written_whole(tmp_path / "folder") as partial:
        partial.write_text("new")
    with pytest.raises(NotADirectoryError), written_whole(tmp_path / "file") as partial:
        write_folder(partial, "new")
    assert names_in(tmp_path) == before
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "inner" / "content").read_text() == "old"


@pytest.mark.parametrize("failing", [1, 2])
def test_a_folder_that_cannot_be_moved_in_leaves_the_older_one(tmp_path, monkeypatch, failing):
    """Folders take two moves, the old one out and the new one in; either may fail."""
    write_folder(tmp_path / "model", "old")
    before, moves, replace = names_in(tmp_path), [], os.replace

    def failing_replace(source, target):
        moves.append(target)
        if len(moves) == failing:
            raise OSError("no space left")
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing_replace)
    with pytest.raises(OSError, match="no space left"), written_whole(tmp_path / "model") as partial:
        write_folder(partial, "new")
    assert names_in(tmp_path) == before
    assert (tmp_path / "model" / "inner" / "content").read_text() == "old"


def test_a_file_is_no_parent_folder(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(OSError), written_whole(tmp_path / "file" / "new.txt") as partial:
        partial.write_text("new")
    assert names_in(tmp_path) == ["file"]


def test_bytes_on_disk(tmp_path):
    (tmp_path / "model" / "inner").mkdir(parents=True)
    (tmp_path / "model" / "a").write_bytes(b"123")
    (tmp_path / "model" / "inner" / "b").write_bytes(b"4567")
    assert bytes_on_disk(tmp_path / "model" / "a") == 3
    assert bytes_on_disk(str(tmp_path / "model")) == 7


# --- Silence ----------------------------------------------------------------------------------------------------------

# Loaded by its path, in a process that needs no TensorFlow for it.
QUIET = f"""
import importlib.util, os, threading, time
spec = importlib.util.spec_from_file_location("quiet", {keras_kd._quiet.__file__!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
"""


def run_quiet(code, **options):
    return subprocess.run([sys.executable, "-c", QUIET + code], capture_output=True, text=True, check=True, **options)


def test_quiet_hides_what_is_written_past_python_and_restores():
    done = run_quiet("""
try:
    with module.quiet():
        with module.quiet():
            os.write(2, b"hidden")
        os.write(2, b"hidden")
        raise KeyError
except KeyError:
    os.write(2, b"seen")
""")
    assert done.stderr == "seen"


def test_quiet_in_many_threads_gives_the_terminal_back():
    done = run_quiet("""
def work(seconds):
    with module.quiet():
        os.write(2, b"hidden")
        time.sleep(seconds)
threads = [threading.Thread(target=work, args=[0.02 * (1 + i)]) for i in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
os.write(2, b"seen")
""")
    assert done.stderr == "seen"


@pytest.mark.parametrize("closed", [[2], [0, 1, 2]])
def test_quiet_where_the_standard_error_is_closed(tmp_path, closed):
    """It stays closed: nothing of ours is left in its place."""
    code = f"""
[os.close(number) for number in {closed}]
with module.quiet():
    pass
before = os.open(os.devnull, os.O_RDONLY)
open("{tmp_path}/lowest", "w").write(str(before))
"""
    run_quiet(code)
    assert (tmp_path / "lowest").read_text() == str(min(closed))


def test_first_line():
    assert first_line(ValueError("\n  one\ntwo")) == "one"
    assert first_line(ValueError()) == "ValueError"
    assert len(first_line(ValueError("x" * 1000))) == 300
