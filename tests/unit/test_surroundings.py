"""Homes, folders for temporary files and names that are missing; paths that other folders would change."""

import os
import pwd
import tempfile
from pathlib import Path

import pytest

from popatlas import surroundings
from popatlas.errors import InputError
from popatlas.surroundings import QUIET, settled, silence, unusable
from popatlas.zoo.lock import read_lock, user_folder

NOWHERE = [
    "/proc/nothing",
    "/dev/null",
    "/dev/null/home",
    "/proc/1/nothing",
    "relative",
    "",
]  # not even root can write there


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A home and a folder for temporary files that can be written, and nothing else said."""
    for name in (*surroundings.CHOSEN, *surroundings.TEMPORARY, "XDG_DATA_HOME", "POPATLAS_WEIGHTS", "PYTHONPATH"):
        monkeypatch.delenv(name, raising=False)
    for name in ("home", "tmp"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    return tmp_path


def test_where_nothing_is_missing_nothing_is_changed_or_said(places, capsys):
    before = dict(os.environ)
    with settled() as changes:
        assert changes == {}
        assert dict(os.environ) == before | QUIET
    assert dict(os.environ) == before
    assert capsys.readouterr().err == ""
    assert list((places / "home").iterdir()) == list((places / "tmp").iterdir()) == []


@pytest.mark.parametrize("home", [*NOWHERE, None])
def test_a_home_that_cannot_be_written_is_replaced_for_this_time(home, places, monkeypatch, capsys):
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.delenv("HOME") if home is None else monkeypatch.setenv("HOME", home)
    with settled():
        private = Path(os.environ["HOME"])
        assert private.parent == places / "tmp"
        assert private.stat().st_mode & 0o777 == 0o700
        (Path.home() / ".cache" / "numba").mkdir(parents=True)
        assert capsys.readouterr().err.count("popatlas: the home folder") == 1
    assert not private.exists()
    assert os.environ.get("HOME") == home


def unknown(number):
    raise KeyError(f"getpwuid(): uid not found: {number}")


def test_a_home_that_only_etc_passwd_knows_is_taken(places, monkeypatch, capsys):
    monkeypatch.delenv("HOME")
    entry = pwd.struct_passwd(("x", "x", 1, 1, "", str(places / "home"), ""))
    monkeypatch.setattr(pwd, "getpwuid", lambda number: entry)
    with settled() as changes:
        assert changes == {"HOME": str(places / "home")}
    assert capsys.readouterr().err == ""


def test_a_file_in_the_place_of_the_cache_costs_the_cache_only(places, capsys):
    (places / "home" / ".cache").write_text("")
    with settled() as changes:
        assert list(changes) == ["XDG_CACHE_HOME"]
        assert not unusable(changes["XDG_CACHE_HOME"])
    assert ".cache is no folder: another folder is used, for this time only" in capsys.readouterr().err


@pytest.mark.parametrize("name", surroundings.CHOSEN)
def test_a_chosen_folder_that_cannot_be_written_is_not_used_and_a_good_one_is(name, places, monkeypatch, capsys):
    monkeypatch.setenv(name, str(places / "mine"))
    with settled() as changes:
        assert changes == {}
    monkeypatch.setenv(name, "/dev/null/cache")
    with settled():
        assert name not in os.environ
    assert f"{name} (/" in capsys.readouterr().err


def test_a_good_cache_is_kept_where_the_home_is_not(places, monkeypatch):
    monkeypatch.setenv("HOME", "/dev/null")
    monkeypatch.setenv("XDG_CACHE_HOME", str(places / "cache"))
    with settled():
        assert os.environ["XDG_CACHE_HOME"] == str(places / "cache")


@pytest.mark.parametrize("folder", NOWHERE[:-1])
def test_a_folder_for_temporary_files_of_another_machine_is_not_used(folder, places, monkeypatch, capsys):
    monkeypatch.setenv("TMPDIR", folder)
    with settled():
        assert Path(os.environ["TMPDIR"]).is_absolute()
        with tempfile.TemporaryDirectory() as made:
            assert Path(made).is_relative_to(os.environ["TMPDIR"])
    said = capsys.readouterr().err
    assert f"TMPDIR ({folder}) " in said
    assert "is used" in said


def test_a_name_that_ants_would_split_is_hidden_by_a_link(places, monkeypatch):
    odd = places / "a, b [1] 'c'"
    odd.mkdir()
    monkeypatch.setenv("TMPDIR", str(odd))
    with settled():
        plain = Path(tempfile.gettempdir())
        assert surroundings.PLAIN.fullmatch(str(plain))
        assert plain.resolve() == odd
        (plain / "x").write_text("")
    assert (odd / "x").is_file()
    assert not plain.parent.exists()


def test_the_output_folder_serves_where_no_usual_folder_can_be_written(places, monkeypatch, capsys):
    monkeypatch.setattr(surroundings, "USUAL", ("/dev/null",))
    monkeypatch.setenv("TMPDIR", "/proc/nothing")
    monkeypatch.setenv("HOME", "/proc/nothing")
    out_dir = places / "out"
    with settled([out_dir]):
        assert Path(os.environ["TMPDIR"]).parent == out_dir
        assert Path(os.environ["HOME"]).is_relative_to(out_dir)
        assert Path(tempfile.gettempdir()).parent == out_dir
    assert list(out_dir.iterdir()) == []


def test_without_any_folder_it_is_refused_with_a_remedy_unless_none_is_needed(places, monkeypatch):
    monkeypatch.setattr(surroundings, "USUAL", ("/dev/null",))
    monkeypatch.setenv("TMPDIR", "/proc/nothing")
    message = r"TMPDIR \(/proc/nothing\) does not exist; /dev/null is no folder.*Remedy: set TMPDIR"
    with pytest.raises(InputError, match=message), settled([Path("/dev/null/out")]):
        pass
    with settled(required=False) as changes:
        assert "HOME" not in changes


def test_a_disk_that_is_full_makes_a_home_useless(places, monkeypatch, capsys):
    class Full(tempfile.SpooledTemporaryFile):
        def write(self, content):
            raise OSError(28, "No space left on device")

    original = tempfile.TemporaryFile

    def made(*, dir, **options):
        return Full() if Path(dir) == places / "home" else original(dir=dir, **options)

    monkeypatch.setattr(tempfile, "TemporaryFile", made)
    with settled():
        assert os.environ["HOME"] != str(places / "home")
    assert "cannot be written (No space left on device)" in capsys.readouterr().err


def test_a_user_whom_nobody_knows_gets_a_name(places, monkeypatch):
    import getpass

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in surroundings.NAMES:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises((KeyError, OSError)):
        getpass.getuser()
    with settled():
        assert getpass.getuser() == f"uid-{os.getuid()}"


def test_relative_paths_mean_the_same_in_the_folder_of_a_job(places, monkeypatch):
    monkeypatch.chdir(places)
    monkeypatch.setenv("POPATLAS_WEIGHTS", "nets")
    monkeypatch.setenv("PYTHONPATH", f"lib{os.pathsep}/usr/lib")
    with settled():
        assert os.environ["POPATLAS_WEIGHTS"] == str(places / "nets")
        assert os.environ["PYTHONPATH"] == f"{places / 'lib'}{os.pathsep}/usr/lib"
    monkeypatch.setenv("POPATLAS_WEIGHTS", "~/nets")
    with settled():
        assert user_folder() == places / "home" / "nets"


def test_networks_in_a_home_that_cannot_be_written_are_still_found(places, monkeypatch):
    folder = places / "home" / ".local" / "share" / "popatlas" / "weights"
    folder.mkdir(parents=True)
    monkeypatch.setattr(surroundings, "unusable", lambda path, **_: "cannot be written" * (path == str(places / "home")))
    with settled():
        assert os.environ["HOME"] != str(places / "home")
        assert user_folder() == folder


def test_the_home_of_another_user_holds_no_networks(tmp_path, monkeypatch, places):
    """Root sees into every folder, so the answer of the system to others is given here."""
    home, real = tmp_path / "theirs", os.stat
    home.mkdir()

    def denied(path, *args, **kwargs):
        if str(path).startswith(f"{home}/"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", denied)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("POPATLAS_WEIGHTS", raising=False)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    assert read_lock(shipped=False) == []
    with settled(required=False):
        assert read_lock(shipped=False) == []


def test_without_a_home_the_folder_of_networks_is_none(monkeypatch):
    for name in ("HOME", "POPATLAS_WEIGHTS", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert user_folder() == Path("/.local/share/popatlas/weights")


def test_a_current_folder_that_is_gone_is_told(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(InputError, match=r"the current folder cannot be used.*Remedy: change to another"), settled():
        pass


def test_silence_leaves_what_a_user_has_set():
    environment = {"NO_ET": "mine"}
    silence(environment)
    assert environment == QUIET | {"NO_ET": "mine"}
