"""The language of cohort.query: what it selects, what it refuses, and that it runs nothing."""

import builtins
import subprocess

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from popatlas.cohort.query import select
from popatlas.errors import ConfigError

NAMES = ["sub-1", "sub-2", "sub-3", "sub-4"]
TABLE = pd.DataFrame(
    {
        "participant_id": NAMES,
        "age": ["30", "n/a", "50.5", "7"],
        "sex": ["F", "M", "", "F"],
        "iq": ["100", "90", "87,5", "95"],
        "site code": ["01", "02", "01", "03"],
        "patient": ["True", "false", "n/a", "true"],
        "seen": ["2020-01-31", "2021-05-01", "n/a", "2019-12-24"],
        "empty": ["", "n/a", "", ""],
        "note": ['__import__("os").system("touch ran")', "open('ran', 'w')", "a", "b"],
        "in": ["1", "2", "3", "4"],
        "größe": ["1", "2", "3", "4"],
    },
    index=NAMES,
)


def chosen(query, table=TABLE):
    found = select(table, query, ["participant_id"])
    return "".join(name[-1] for name, one in found.chosen.items() if one)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("age > 20", "13"),
        ("age>20&sex=='F'", "1"),
        ("age > 40 | sex == 'M'", "23"),
        ("sex == 'M' or age > 20 and sex == 'F'", "12"),
        ("(sex == 'M' or age > 20) and sex == 'F'", "1"),
        ("7 <= age < 50.5", "14"),
        ("30 == age", "1"),
        ("20 > age", "4"),
        ("not age > 20", "4"),
        ("~(age > 20)", "4"),
        ("not (age > 20) or sex == 'M'", "24"),
        ("sex != 'F'", "2"),
        ("sex in ['F', 'M']", "124"),
        ("sex not in ('M',)", "14"),
        ("sex.isin(['M'])", "2"),
        ("~sex.isin(['M'])", "14"),
        ("sex == ['M', 'F']", "124"),
        ("age in [30, 7]", "14"),
        ("age in [-7, +30]", "1"),
        ("age.between(7, 30)", "14"),
        ("missing(age)", "2"),
        ("not missing(`age`)", "134"),
        ("age.isna() or age.isnull()", "2"),
        ("age.notna() & sex.notnull()", "14"),
        ("`site code` == '01'", "13"),
        ("`site code` == 1", "13"),
        ("patient", "14"),
        ("not patient", "2"),
        ("patient == False", "2"),
        ("patient != True and age > 0", ""),
        ("seen >= '2020-01-31'", "12"),
        ("participant_id.str.startswith('sub-')", "1234"),
        ("`participant_id`.str.endswith(\"3\")", "3"),
        ("participant_id in ['sub-2', 'sub-4']", "24"),
        ("age * 2 - 10 > 40 / 2 + 1", "13"),
        ("age + iq * 0 > 1", None),
        ("-age < -20", "13"),
        ("2 * (age + 3) == 20", "4"),
        ("age / 0 > 1 or sex == 'M'", "2"),
        ("empty > 3 or age == 7", "4"),
        ("größe >= 3", "34"),
        ("`in` >= 3", "34"),
        ("age == age", "134"),
        ("sex == sex", "124"),
        ("note == 'a'", "3"),
        ("note == \"open('ran', 'w')\"", "2"),
        ("note == 'open(\\'ran\\', \\'w\\')'", "2"),
        ("age\n  > 20\n", "13"),
    ],
)  # fmt: skip
def test_what_a_query_selects(query, expected):
    if expected is None:
        with pytest.raises(ConfigError, match=r"iq is no column of numbers: 1 of its 4 cells are none: '87,5' \(sub-3\)"):
            chosen(query)
    else:
        assert chosen(query) == expected


def test_what_is_missing_leaves_a_query_unknown_unless_the_rest_decides():
    found = select(TABLE, "age > 40 or sex == 'M'")
    assert found.unknown == {}
    found = select(TABLE, "age > 10 and sex == 'F'")
    assert found.unknown == {"sub-3": ["sex"]}, "sub-2 is not female, whatever its age"
    assert select(TABLE, "not (age > 40)").unknown == {"sub-2": ["age"]}
    assert select(TABLE, "age > 40 and empty == 1").unknown == {"sub-2": ["age", "empty"], "sub-3": ["empty"]}


def test_a_text_that_no_cell_has_is_noted():
    found = select(TABLE, "sex in ['female', 'F'] or sex == 'female'")
    assert found.notes == ("no cell of sex is 'female'; it holds 'F' (2), 'M' (1)",)
    assert select(TABLE, "sex != 'F'").notes == ()


REFUSED = {
    "agee > 3": "no column 'agee'.*did you mean age.*participant_id, age, sex",
    "age > '20'": "age is a column of numbers and is compared with a text",
    "age == '30'": "numbers and is compared with a text",
    "sex > 3": r"sex is a column of text \('F', 'M'\), not of numbers",
    "sex == 1": "sex is a column of text",
    "iq > 3": r"iq is no column of numbers: 1 of its 4 cells are none: '87,5' \(sub-3\).*n/a",
    "iq > '9'": "iq is no column of numbers",
    "sex > 'E'": "texts have no order",
    "age == sex": "sex is a column of text",
    "sex == ''": "missing",
    "sex != 'n/a'": "missing",
    "age": "stands where a condition",
    "~age > 3": "stands where a condition",
    "sex and age > 3": "stands where a condition",
    "3": "stands where a condition",
    "3 < 4": "compares two numbers",
    "'a' == 'b'": "no column",
    "3 in [3, 4]": "a number in a list",
    "age in 3": "needs a list",
    "sex in 'FM'": "needs a list",
    "sex in ('F')": "needs a list",
    "sex in []": "a list must hold",
    "sex in ['F', 1]": "a list must hold",
    "sex in [age]": "a list must hold",
    "sex < ['F']": "a list has no order",
    "patient > True": "no order",
    "age > 1 / 0": "not finite",
    "age > 1e400": "too large",
    "age > 9007199254740993": "too large",
    "age = 3": "write == to compare",
    "age >": "a value is expected before its end",
    "age > 3 or": "a value is expected before its end",
    "(age > 3": r"'\)' is expected before its end",
    "age > 3)": "not expected there",
    "age > 3 4": "not expected there",
    "age > 3; sex": "';' at character 8 is not understood",
    "age > 3 # x": "'#' at character 9",
    "sex == 'F": "a quote that is not closed at character 8",
    "`age > 3": "a quote that is not closed at character 1",
    "sex == 'a\\n'": "a backslash",
    "": "a value is expected before its end",
    "None": "no column 'None'",
    "age is None": "not expected there",
    "age && sex": "a value is expected before",
}


@pytest.mark.parametrize("query", REFUSED)
def test_what_is_refused_says_why_and_what_to_do(query):
    with pytest.raises(ConfigError, match=f"(?s)^cohort.query .*{REFUSED[query]}") as caught:
        select(TABLE, query)
    assert ". Remedy: " in str(caught.value)
    assert len(str(caught.value)) < 700


ATTACKS = [
    'note.map(@__builtins__.get("eval"))',
    "age.to_csv('ran')",
    "age.__class__",
    "age.__class__.__mro__[1].__subclasses__()",
    "`age`.__init__.__globals__",
    "__import__('os').system('touch ran')",
    "__import__",
    "eval('1')",
    "exec(note)",
    "open('ran', 'w')",
    "missing(__import__('os'))",
    "missing(missing(age))",
    "age.isin(open('ran'))",
    "age.isin(age.__class__)",
    "age.between(open('ran'), 3)",
    "age.isna(1)",
    "age.str.startswith(note)",
    "sex.str.startswith('F').map(eval)",
    "sex.str.__class__",
    "sex.str.contains('(a+)+$')",
    "age.map(str)",
    "age.pipe(print)",
    "age.eval('1')",
    "@age > 3",
    "@pd.io.common.os.system('touch ran')",
    "lambda: 3",
    "(lambda x: x)(age)",
    "[x for x in age]",
    "{'a': 1}",
    "age if sex else age",
    "(x := 3)",
    "f'{note}' == 'a'",
    "'{0.__class__}'.format(age) == 'a'",
    "'%s' % note == 'a'",
    "b'a' == sex",
    "9**9**9**9 > age",
    "age ** 9999999 > 1",
    "age // 2 > 1",
    "age % 2 == 1",
    "age << 99999999999",
    "age @ age > 1",
    "age[0] > 3",
    "age; import os",
    "age > 3\x00",
    "import os",
    "global age",
    "`age`; `note`",
    "`__import__('os')`",
    "``",
    "` `",
    "`age` `note`",
    "\\u0061ge > 3",
    "аge > 3",  # a Cyrillic letter
    "ａｇｅ > 3",  # full width letters, which Python takes for age
    "age > １２",
    "ａge.isna()",
    "sex == ‘F’",
    "age\u00a0>\u200b3",
    "9" * 9000 + " > age",
    "(" * 3000 + "age > 3" + ")" * 3000,
    "not " * 2400 + "patient",
    "~" * 5000 + "patient",
    "-" * 5000 + "1 < age",
    "[" * 5000,
    "missing(" * 1000,
    "age.isin(" * 1000,
    "sex == '" + "F" * 100_000 + "'",
    "age > 3 or " * 100_000 + "age > 3",
]


@pytest.mark.parametrize("query", ATTACKS, ids=[query[:40] for query in ATTACKS])
def test_attacks_are_refused_and_run_nothing(query, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place, name in ((builtins, "eval"), (builtins, "exec"), (builtins, "compile"), (subprocess, "Popen")):
        monkeypatch.setattr(place, name, lambda *_, **__: pytest.fail("code was run"))
    with pytest.raises(ConfigError) as caught:
        select(TABLE, query)
    monkeypatch.undo()
    assert len(str(caught.value)) < 700
    assert list(tmp_path.iterdir()) == []


def test_long_conditions_are_no_deep_ones():
    assert chosen(" or ".join(["age > 3"] * 800)) == "134"
    assert chosen("age > " + " + ".join(["1"] * 2000)) == ""
    assert chosen("participant_id in [" + ", ".join(f"'sub-{n}'" for n in range(800)) + "]") == "1234"


NUMBER = st.integers(-20, 20).map(str) | st.sampled_from(["0.5", "3.25", "-1.5"])
LETTER = st.sampled_from(["x", "y", "z"])
LETTERS = st.lists(LETTER, min_size=1, max_size=2)
BELOW = st.sampled_from(["<", "<="])
ATOMS = st.one_of(
    st.tuples(st.sampled_from(["a", "b", "`c d`", "a + b", "a - 2 * b", "-a", "(a + b) * 2"]),
              st.sampled_from(["==", "!=", "<", "<=", ">", ">="]), NUMBER | st.sampled_from(["b", "a * 2"])).map(" ".join),
    st.tuples(NUMBER, BELOW, st.sampled_from(["a", "b"]), BELOW, NUMBER).map(" ".join),
    st.tuples(st.sampled_from(["==", "!="]), LETTER).map(lambda part: f"t {part[0]} '{part[1]}'"),
    st.tuples(st.sampled_from(["in", "not in"]), LETTERS).map(lambda part: f"t {part[0]} {part[1]}"),
    LETTERS.map(lambda letters: f"t.isin({letters})"),
    st.tuples(NUMBER, NUMBER).map(lambda ends: f"a.between({ends[0]}, {ends[1]})"),
    LETTER.map(lambda letter: f"t.str.startswith('{letter}')"),
)  # fmt: skip
QUERIES = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["and", "or", "&", "|"]), inner).map(" ".join),
        inner.map(lambda query: f"({query})"),
        inner.map(lambda query: f"not ({query})"),
        inner.map(lambda query: f"~({query})"),
    ),
    max_leaves=5,
)
ROWS = st.lists(st.tuples(NUMBER, NUMBER, NUMBER, LETTER), min_size=1, max_size=6)


@settings(max_examples=100, deadline=None)
@given(rows=ROWS, query=QUERIES)
def test_what_pandas_understands_too_selects_the_same(rows, query):
    cells = pd.DataFrame(rows, columns=["a", "b", "c d", "t"])
    typed = cells.assign(**{name: cells[name].astype(float) for name in ("a", "b", "c d")})
    expected = typed.query(query, engine="python").index
    assert list(select(cells, query, ["t"]).chosen[lambda one: one].index) == list(expected)
