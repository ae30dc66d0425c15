"""YAML that would be read as something else than it says, or that costs too much."""

import time
from pathlib import Path

import pytest

from popatlas.errors import InputError
from popatlas.yamlfile import DEEPEST, parse_yaml, read_yaml

BOMB = "a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12))
LADDER = "a0: &a0 [1]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 60))

REFUSED = {
    "key twice": ("a: 1\nb: 2\na: 3", "line 3: the key 'a' is there twice, in line 1 and in line 3"),
    "key twice below": ("s: {a: 1, a: 1}", "the key 'a' is there twice"),
    "octal": ("include: [01]", "01 is read as the number 1]?.*Remedy: quote it: '01'"),
    "octal of two digits": ("include:\n- 010", "line 2: 010 is read as the number 8"),
    "signed": ("a: -07", "-07 is read as the number -7"),
    "minutes": ("a: 1:30", "1:30 is read as the number 90"),
    "hours": ("a: 12:30:45.5", "is read as the number 45045.5"),
    "underscores": ("a: 1_000", "1_000 is read as the number 1000.*or write 1000"),
    "hexadecimal": ("a: 0x1F", "0x1F is read as the number 31"),
    "binary": ("a: 0b11", "0b11 is read as the number 3"),
    "date": ("label: 2024-01-01", "2024-01-01 is read as a date.*quote it: '2024-01-01'"),
    "time": ("label: 2024-01-01 10:00:00", "is read as a date"),
    "number as key": ("1: a", "the key 1 is no text"),
    "truth as key": ("a:\n  yes: 1", "line 2: the key yes is no text"),
    "nothing as key": ("null: 1", "the key null is no text"),
    "list as key": ("? [a]\n: 1", "the key a list or section is no text"),
    "set": ("a: !!set {x}", "a value of the type set"),
    "bytes": ("a: !!binary aGk=", "a value of the type binary"),
    "code": ("a: !!python/object/apply:os.getcwd []", "a value of the type python"),
    "tab": ("a:\n\t- 1", "line 2, column 1.*indent with spaces, not tabs"),
    "open list": ("a: [1", "not valid YAML: .*line 1"),
    "two documents": ("a: 1\n---\na: 2", "not valid YAML: .*another document, line 2"),
    "unknown alias": ("a: *b", "undefined alias 'b'"),
    "control character": ("a: \x07", "not valid YAML"),
    "many digits": ("a: " + "9" * 5000, "not valid YAML"),
    "deep": ("a: " + "[" * 100 + "]" * 100, f"more than {DEEPEST} levels"),
    "deep without end": ("[" * 300_000, f"more than {DEEPEST} levels"),
    "deep by aliases": (LADDER, f"more than {DEEPEST} levels"),
    "bomb": (BOMB, "more than 100000 values"),
    "part of itself": ("a: &a [*a]", "refers to what it is a part of"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_read_as_something_else_is_refused(case):
    text, message = REFUSED[case]
    started = time.monotonic()
    with pytest.raises(InputError, match=f"(?s)^the file.*{message}") as caught:
        parse_yaml(text, "the file")
    assert caught.value.remedy
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a: ['01', \"010\", sub-01, 08, 1a]", {"a": ["01", "010", "sub-01", "08", "1a"]}),
        ("a: [0, 1, 10, -5, +5, 0.5, -0.5, 1., .5, 1.0e-6]", {"a": [0, 1, 10, -5, 5, 0.5, -0.5, 1.0, 0.5, 1e-6]}),
        ("a: &x {k: 1}\nb: {<<: *x, k: 2}", {"a": {"k": 1}, "b": {"k": 2}}),
        ("a: yes\nb: no\nc: null\nd:", {"a": True, "b": False, "c": None, "d": None}),
        ("a: '2024-01-01'\nb: '1:30'", {"a": "2024-01-01", "b": "1:30"}),
        ("# a comment", None),
        ("- 1", [1]),
    ],
)
def test_what_says_what_it_means_is_read(text, found):
    assert parse_yaml(text, "the file") == found


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"the file is empty \(0 bytes\)"),
        ("atlas: {label: größe}".encode("latin-1"), r"not in UTF-8 \(byte 0xf6 in line 1.*Latin-1.*iconv -f LATIN1"),
        ("a: 1\nb: 2\nc: é".encode("latin-1"), "byte 0xe9 in line 3"),
        ("a: 1".encode("utf-16"), "it is in UTF-16.*iconv -f UTF-16"),
        ("a: 1".encode("utf-16-be"), "no text"),
        (b"PK\x03\x04\0\0", "no text"),
        (b"a: " + b"1" * (1 << 20), "no text of at most"),
    ],
)
def test_files_that_are_no_text_in_utf8_are_refused(content, message, tmp_path):
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_yaml(tmp_path / "c.yaml")
    assert caught.value.file == tmp_path / "c.yaml"
    assert caught.value.remedy


def test_a_mark_of_utf8_is_no_part_of_the_first_key(tmp_path):
    (tmp_path / "c.yaml").write_bytes("größe: 1".encode("utf-8-sig"))
    assert read_yaml(tmp_path / "c.yaml") == {"größe": 1}


def test_a_folder_and_a_missing_file_are_named_with_their_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for name, reason in (("folder", "Is a directory"), ("absent.yaml", "No such file")):
        with pytest.raises(InputError, match=f"cannot read the settings: {reason}.*{tmp_path / name}"):
            read_yaml(Path(name), "the settings")
