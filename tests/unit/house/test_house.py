"""The house rules that a machine can check: rules, sizes, configuration keys, imports, references."""

import ast
import re
import subprocess
import sys
import tomllib
from dataclasses import is_dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import popatlas
from popatlas.cohort.outputs import DERIVED
from popatlas.config.load import default_config, default_content
from popatlas.fusion.methods import MAPS
from popatlas.interfaces import INTERFACES, load_interface
from popatlas.resources import schema_path

ROOT = Path(__file__).parents[3]
PACKAGE = ROOT / "workflow" / "popatlas"
RULE_FILES = sorted((ROOT / "rules").glob("*.smk"))
TRACKED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split("\n")
STEPS = ("RegisterImages", "PredictDeformations", "FuseLabels", "ExtractBrain", "CorrectAndConform")
HEAVY = tuple(f"popatlas step {step} " for step in STEPS)


def rules():
    for path in RULE_FILES:
        for match in re.finditer(r"^( *)rule (\w+):\n((?:\1 .*\n|\n)*)", path.read_text(), re.M):
            # adjacent strings of a shell command are one
            yield pytest.param(match[2], re.sub(r'"\n\s*"', "", match[3]), id=f"{path.stem}-{match[2]}")


def inherited_rules():
    for path in RULE_FILES:
        for match in re.finditer(r"^( *)use rule \w+ as (\w+) with:\n((?:\1 .*\n|\n)*)", path.read_text(), re.M):
            yield pytest.param(match[3], id=f"{path.stem}-{match[2]}")


@pytest.mark.parametrize("body", list(inherited_rules()))
def test_a_rule_that_follows_another_one_has_its_own_words_files_and_parameters(body):
    for word in ('"""', "input:", "output:", "log:", "benchmark:", "params:"):
        assert word in body


@pytest.mark.parametrize(("name", "body"), list(rules()))
def test_every_rule_says_what_it_does_where_it_logs_and_what_it_needs(name, body):
    assert re.match(r"[a-z]+(_[a-z]+)+$", name), "rule names are verb_object"
    assert '"""' in body
    for word in ("log:", "resources:", "mem_mb=growing(", "runtime=", "conda:"):
        assert word in body, f"{name} lacks {word}"
    if any(step in body for step in HEAVY):
        assert "benchmark:" in body, f"{name} is heavy and has no benchmark"
    assert "> {log:q} 2>&1" in body
    if "_together(" not in body:  # else each step has a record and a log of its own
        assert "--record {log:q}.json > {log:q} 2>&1" in body


@pytest.mark.parametrize("name", ["prepare", "preprocess", "atlas"])
def test_params_hold_only_what_the_job_reads(name):
    """A whole section as a parameter would redo the job when a key changes that it does not read."""
    text, study = (ROOT / "rules" / f"{name}.smk").read_text(), SimpleNamespace(config=default_config())
    names = {"study": study, "brain": study.config.preprocess.brain}
    found = re.findall(r"""^ +\w+=((?:study\.config|brain)(?:\.\w+)*),$""", text, re.M)
    assert found or name != "prepare"
    assert [part for part in found if is_dataclass(eval(part, names))] == []


def test_rules_hold_no_science():
    for path in RULE_FILES:
        assert not re.search(r"^\s+(run|script):|^import |^from ", path.read_text(), re.M), path.name


def test_every_step_and_each_file_that_it_takes_or_writes_is_used_by_a_rule():
    code = "\n".join(path.read_text() for path in [*RULE_FILES, *(PACKAGE / "study").glob("*.py")])
    code = re.sub(r'"\n\s*"', "", code)  # adjacent strings of a shell command are one
    # target_options and map_options of popatlas.study.fuse, composed_options of popatlas.study.register
    code = code.replace("--in_{name} ", "--in_target_affine --in_target_inverse_warp ")
    code = code.replace("--out_{name} ", "".join(f"--out_{name} " for name in (*MAPS, *DERIVED["register_to_template"])))
    code = code.replace("{params.division} ", "")  # of popatlas.study.tissues, before the measures
    for name in INTERFACES:
        assert re.search(rf'(?:popatlas step |--then |f"){name} ', code), f"no rule runs {name}"
        files = [trait for trait in load_interface(name).input_spec().copyable_trait_names() if re.match("in_|out_", trait)]
        assert [trait for trait in files if not re.search(rf"--{trait}\b", code)] == [], name


def test_files_stay_short():
    limits = {"Snakefile": 60} | {str(path.relative_to(ROOT)): 150 for path in RULE_FILES}
    limits |= {str(path.relative_to(ROOT)): 400 for path in PACKAGE.rglob("*.py")}
    long = {name: count for name, most in limits.items() if (count := len((ROOT / name).read_text().splitlines())) > most}
    assert long == {}


def schema_keys(schema, prefix=()):
    for name, part in schema.get("properties", {}).items():
        yield (*prefix, name), part
        yield from schema_keys(part, (*prefix, name))


def test_every_key_is_described_has_a_default_and_is_read():
    schema = yaml.safe_load(schema_path("config").read_text())
    code = "\n".join(path.read_text() for path in [*PACKAGE.rglob("*.py"), *RULE_FILES, ROOT / "Snakefile"])
    for keys, part in schema_keys(schema):
        assert part.get("description"), f"{'.'.join(keys)} is not described"
        value = default_content()
        for key in keys:
            assert key in value, f"{'.'.join(keys)} has no default in config.yaml"
            value = value[key]
        assert re.search(rf"""["'\[]{keys[-1]}["'\]]|\.{keys[-1]}\b""", code), f"{'.'.join(keys)} is never read"


def test_sections_of_the_schema_forbid_unknown_keys():
    schema = yaml.safe_load(schema_path("config").read_text())
    assert schema["additionalProperties"] is False
    for keys, part in schema_keys(schema):
        if part.get("type") == "object":
            assert part.get("additionalProperties", True) is not True, keys


def test_the_command_line_imports_nothing_heavy():
    """`popatlas --help` must be quick: the libraries are imported where they are used."""
    code = (
        "import sys; from popatlas.cli.main import build_parser; build_parser();"
        "print([m for m in ('ants','torch','nipype','pandas','numpy','matplotlib','SimpleITK','pydantic','nilearn','scipy')"
        " if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_public_functions_are_annotated_and_documented():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                assert node.returns is not None, f"{path.name}:{node.lineno} {node.name}"
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path.name}:{node.lineno} {node.name} has no docstring"


def test_the_project_refers_to_no_machine():
    """No absolute home or work folder, no registry host."""
    words = re.compile(r"(?<![\w.])/(?:work|root|home)/|file:///|--index-url|extra-index")
    for name in filter(None, TRACKED):
        path = ROOT / name
        if path.is_file() and path.suffix in (".py", ".smk", ".md", ".yaml", ".yml", ".toml", ".sh", ".txt", ".lock", ""):
            if path == Path(__file__).resolve():
                continue
            assert not words.search(path.read_text(errors="replace")), name


def test_the_version_is_the_same_wherever_it_stands():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    headings = re.findall(r"^## (\S+)(?: - (\S+))?$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    version, date = next(heading for heading in headings if heading[0] != "Unreleased")
    assert project == popatlas.__version__ == cited["version"] == version
    assert str(cited["date-released"]) == date


def test_nothing_is_unpickled():
    for path in PACKAGE.rglob("*.py"):
        unsafe = r"\bpickle\b|torch\.load\((?![^()]*weights_only=True\))|allow_pickle=True"
        assert not re.search(unsafe, path.read_text()), path.name
