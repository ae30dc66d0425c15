"""The recipes of the package, what `extends` and `--set` do, and the messages about wrong ones."""

from __future__ import annotations

import copy
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from popatlas.cli.main import main
from popatlas.errors import InputError
from popatlas.networks.registration import RegistrationNetwork, build_registration_network
from popatlas.training.objective import Objective
from popatlas.training.recipe import Recipe, comparable, load_brain_recipe, load_recipe, parse_changes, recipe_names
from popatlas.training.sections import NetworkSection, RegulariserSection
from popatlas.training.train import contract_of, identity_of

DOCS = Path(__file__).parents[3] / "docs" / "recipes"

# architecture, spatial axes, numbers that are learnt: those of the published networks, with our own choices where the papers
# are silent (docs/recipes)
NETWORKS = {
    "bounding-boxes": ("twostream", 3, 1_308_115),
    "brain-contrast": ("fast", 3, 1_912_993),
    "brain-t1w": ("fast", 3, 1_921_417),
    "brain-t1w-2d": ("fast", 2, 649_592),
    "dual-prnet": ("pyramid", 3, 168_452),
    "dual-prnet-plus": ("pyramid", 3, 613_863),
    "labelreg": ("labelreg", 3, 18_909_743),
    "masked-fcn": ("masked", 3, 374_708),
    "pediatric": ("deepreg", 3, 134_667),
    "rcn": ("cascade", 3, 98_922_909),
    "rigid": ("rigid", 3, 412_438),
    "voxelmorph": ("unet", 3, 301_411),
    "voxelmorph-diffeo": ("unet", 3, 265_075),
}


def on_paper(recipe: Recipe) -> RegistrationNetwork:
    """Build a network of full size without memory for its weights."""
    with torch.device("meta"):
        return build_registration_network(recipe.network.name, recipe.ndim, **recipe.network.options)


def learnt(net: RegistrationNetwork) -> int:
    return sum(value.numel() for value in net.parameters())


def test_the_table_has_every_recipe() -> None:
    assert list(NETWORKS) == recipe_names()


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_of_the_package_is_complete(name: str) -> None:
    recipe = load_recipe(name)
    net = on_paper(recipe)
    assert (net.name, net.ndim, learnt(net)) == NETWORKS[name]
    assert recipe.name == name and recipe.title and recipe.reference
    assert not any(n % net.stride for n in recipe.grid.shape)
    Objective(recipe)  # checks the options of the similarity


@pytest.mark.parametrize("name", recipe_names())
def test_what_the_workflow_trains_registers_its_brains(name: str) -> None:
    """Also by the recipes that are for whole heads elsewhere: the weights say brains, and the engine takes them."""
    recipe = load_brain_recipe(name, {"schedule": {"steps": 7000}})
    assert contract_of(recipe, on_paper(recipe)).stripped and recipe.content["grid"]["stripped"] is True
    assert recipe.schedule.steps == 7000 and recipe.grid.shape == load_recipe(name).grid.shape
    with pytest.raises(InputError, match=r"the changes ask for whole heads .*popatlas train"):
        load_brain_recipe(name, {"grid": {"stripped": False}})


def commands() -> list[tuple[str, list[str]]]:
    """Return recipe and settings of each command with `--set` on the pages of the recipes."""
    found = []
    for page in sorted(DOCS.glob("*.md")):
        for line in re.findall(r"^popatlas train .*$", page.read_text().replace("\\\n", " "), re.M):
            words = shlex.split(line, comments=True)
            if "--set" in words:
                found.append((words[2], words[words.index("--set") + 1 :]))
    return found


@pytest.mark.parametrize(
    ("name", "settings"), commands(), ids=lambda part: part if isinstance(part, str) else " ".join(part)
)
def test_each_variant_of_the_documentation_can_be_built(name: str, settings: list[str]) -> None:
    changed = load_recipe(name, parse_changes(settings))
    assert learnt(on_paper(changed)) > 0
    Objective(changed)
    assert changed.content != load_recipe(name).content, "the variant is the recipe itself"


def test_the_documentation_has_the_variants_of_labelreg() -> None:
    """Those that the paper compares, and what they change."""
    plain = load_recipe("labelreg")
    found = {
        " ".join(settings): load_recipe(name, parse_changes(settings)) for name, settings in commands() if name == "labelreg"
    }
    networks = [recipe.network.options for recipe in found.values()]
    for part in (
        {"levels": [0]},
        {"levels": [1, 2, 3, 4]},
        {"additive": False},
        {"variant": "global"},
        {"variant": "composite"},
    ):
        assert part in networks
    sizes = {str(recipe.network.options): learnt(on_paper(recipe)) for recipe in found.values()}
    assert sizes[str({"variant": "composite"})] > sizes["{}"] > sizes[str({"levels": [1, 2, 3, 4]})]
    losses = [recipe.loss for recipe in found.values()]
    assert any(loss.labels.kind == "cross_entropy" for loss in losses)
    assert any(loss.regulariser == replace(plain.loss.regulariser, name="diffusion") for loss in losses)
    assert any(loss.labels.prefilter and loss.labels.kind == "multiscale_dice" for loss in losses)


def test_every_recipe_has_a_page() -> None:
    pages = {path.stem: path.read_text() for path in DOCS.glob("*.md") if path.stem != "index"}
    for name in recipe_names():
        page = next(stem for stem in (name, name.removesuffix("-diffeo").removesuffix("-plus"), "brains") if stem in pages)
        assert f"`{name}`" in pages[page]


@pytest.mark.parametrize(
    ("settings", "message", "remedy"),
    [
        (["loss.similarty.weight=1"], "loss: unknown key 'similarty', did you mean 'similarity'?", "correct the keys"),
        (["scheduel={steps: 3}"], "unknown key 'scheduel', did you mean 'schedule'?", "base.yaml lists all of them"),
        (["schedule.steps=many"], "schedule.steps: 'many' is not of type 'integer'", "correct the keys"),
        (["schedule.steps='30'"], "schedule.steps: '30' is not of type 'integer'; write 30 \\(Steps", "correct the keys"),
        (["schedule.steps='1e400'"], "schedule.steps: '1e400' is not of type 'integer' \\(Steps", "correct the keys"),
        (["schedule.rate=1e-4"], "schedule.rate: '1e-4' is not of type 'number'", "correct the keys"),
        (["schedule.steps=0"], "schedule.steps: 0 is less than the minimum", "correct the keys"),
        (["loss.labels.kind=jaccard"], "loss.labels.kind: 'jaccard' is not one of", "correct the keys"),
        (["network.name=resnet"], "network.name: 'resnet' is not one of .*'unet'", "correct the keys"),
        (
            ["network.options.width=3"],
            "network.options: unknown key 'width', known keys: alignment, .*, up",
            "correct the keys",
        ),
        (
            ["network.options.encoder=[]"],
            r"network.options.encoder: \[\] should be non-empty \(",
            "correct the keys",
        ),
        (["grid.shape=[80, 96, 81]"], r"grid.shape: \[80, 96, 81\] are not multiples of 16, which unet needs", "correct"),
        (["grid.shape=[80]"], r"grid.shape: \[80\] is too short", "correct the keys"),
        (
            ["loss.similarity.weight=0"],
            "all weights of similarity, labels, painted, boxes, pose are 0, there is nothing to learn",
            "correct",
        ),
        (["data.source=shapes"], "loss.similarity: synthetic pairs of different contrasts have no similarity", "correct"),
        (["synthesis.compare=scans"], "synthesis.compare: scans: with data.source scans there are no scans", "correct"),
        (["synthesis.options={recoloured: 0.5}"], "recoloured: needs the scans behind the images", "correct"),
        (["grid.spacing_mm=.inf"], "grid.spacing_mm: inf is not a finite number", "correct"),
        (["schedule.rate=.nan"], "schedule.rate: nan is not a finite number", "correct"),
        (["grid.slices_mm=[.inf, 3]"], r"grid.slices_mm.0: inf is not a finite number", "correct"),
        (["grid.slice_axis=S"], "grid: slice axis 'S' needs one letter of .* and a shape of two axes", "correct"),
        (["grid.slices_mm=[30, -30]"], "grid.slices_mm: 30 is above -30", "correct"),
        (["augment.common={rotate: 3}"], "augment.common: unknown key 'rotate', did you mean 'rotation'", "correct"),
        (["augment.each={look: {gamma: -1}}"], "augment.each.look.gamma: -1 is less than the minimum of 0", "correct"),
        (["synthesis.options={same: 2}"], "synthesis.options.same: 2 is greater than the maximum of 1", "correct"),
        (["schedule.warm_up=20000"], "schedule.warm_up: 20000 of 20000 steps leave nothing to train in", "correct"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_told(settings: list[str], message: str, remedy: str) -> None:
    with pytest.raises(InputError, match=f"recipe voxelmorph: 1 problem.*\n.*{message}") as error:
        load_recipe("voxelmorph", parse_changes(settings))
    assert remedy in str(error.value.remedy)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(InputError, match="2 problem") as error:
        load_recipe("rcn", parse_changes(["schedule.steps=0", "grid.spacing_mm=-1"]))
    assert "schedule.steps" in str(error.value) and "grid.spacing_mm" in str(error.value)


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ("loss.similarity.options={width: 3}", r"loss\.similarity\.options: unknown key 'width'"),
        ("loss.similarity.name=pearson", "loss.similarity.name: 'pearson' is not one of .*lncc"),
    ],
)
def test_a_wrong_similarity_is_told_before_the_training(settings: str, where: str) -> None:
    with pytest.raises(InputError, match=where) as error:
        Objective(load_recipe("voxelmorph", parse_changes([settings])))
    assert error.value.remedy


@pytest.mark.parametrize(
    ("source", "content", "message"),
    [
        ("nothing", None, "unknown recipe 'nothing'.*use one of .*voxelmorph"),
        ("absent.yaml", None, "cannot read the recipe.*check the path"),
        ("mine.yaml", "name: [", "the recipe is not valid YAML.*check indentation"),
        ("mine.yaml", "- voxelmorph", "the recipe has no keys.*base.yaml"),
        ("mine.yaml", "extends: voxelmorf", "unknown recipe 'voxelmorf'.*use one of .*voxelmorph"),
    ],
)
def test_recipes_that_cannot_be_read(tmp_path: Path, source: str, content: str | None, message: str) -> None:
    path = tmp_path / source
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=re.compile(message, re.DOTALL)):
        load_recipe(path if path.suffix else source)


def test_recipes_that_extend_each_other_are_refused(tmp_path: Path) -> None:
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text(f"extends: {two}")
    two.write_text(f"extends: {one}")
    with pytest.raises(InputError, match=r"in a circle: .*one\.yaml -> .*two\.yaml -> .*one\.yaml.*break the circle"):
        load_recipe(one)


def written(folder: Path, **content: object) -> Path:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_file_says_only_what_differs(tmp_path: Path) -> None:
    mine = load_recipe(written(tmp_path, name="mine", extends="brain-t1w", schedule={"steps": 7, "warm_up": 2}))
    plain = load_recipe("brain-t1w")
    assert mine.name == "mine" and mine.title == plain.title
    assert mine.schedule == replace(plain.schedule, steps=7, warm_up=2)
    same = {key for key in plain.content if mine.content[key] == plain.content[key]}
    assert same == set(plain.content) - {"name", "schedule"}


def test_without_a_parent_the_rest_are_the_defaults(tmp_path: Path) -> None:
    mine = load_recipe(written(tmp_path, name="mine", loss={"regulariser": {"weight": 0.5}}))
    base = load_recipe("base")
    assert mine.loss.regulariser == RegulariserSection("diffusion", 0.5)
    assert mine.network == base.network and mine.schedule == base.schedule


def test_a_regulariser_that_has_no_terms_to_average_is_summed(tmp_path: Path) -> None:
    mine = load_recipe(written(tmp_path, name="mine", extends="voxelmorph", loss={"regulariser": {"name": "tv"}}))
    assert mine.loss.regulariser == RegulariserSection("tv", 1.0, "sum")
    mine = load_recipe("labelreg", {"loss": {"regulariser": {"name": "diffusion"}}})
    assert mine.loss.regulariser.reduction == "components"
    with pytest.raises(InputError, match=r"loss\.regulariser\.reduction: folding is no sum over the components"):
        load_recipe("base", {"loss": {"regulariser": {"name": "folding", "reduction": "mean"}}})


def test_trainings_of_before_the_reduction_go_on() -> None:
    """Their recipes had no such key, nor those of known motions, and what was summed then is summed now."""
    old = copy.deepcopy(load_recipe("brain-t1w").content)
    del old["loss"]["regulariser"]["reduction"], old["loss"]["pose"], old["data"]["pairs"]
    now = load_recipe("brain-t1w")
    assert identity_of(Recipe.of(old), []) == identity_of(now, []) and comparable(now.content) == old
    assert Recipe.of(old).loss == now.loss
    assert comparable(load_recipe("voxelmorph").content)["loss"]["regulariser"]["reduction"] == "mean"


def test_options_of_another_architecture_are_not_inherited(tmp_path: Path) -> None:
    other = {"name": "pyramid", "options": {"correlation": 2}}
    assert load_recipe(written(tmp_path, name="mine", extends="brain-t1w", network=other)).network == NetworkSection(**other)
    same = {"name": "fast", "options": {"norm": "batch"}}
    mine = load_recipe(written(tmp_path, name="mine", extends="brain-t1w", network=same))
    assert mine.network.options == load_recipe("brain-t1w").network.options | {"norm": "batch"}


def test_parents_have_parents(tmp_path: Path) -> None:
    below = written(tmp_path, name="below", extends="voxelmorph-diffeo", loss={"regulariser": {"weight": 0.25}})
    above = tmp_path / "above.yaml"
    above.write_text(f"{{name: above, extends: {below}, schedule: {{rate: 0.002}}}}")
    found = load_recipe(above)
    assert found.name == "above" and found.schedule.rate == 0.002
    assert found.loss.regulariser.weight == 0.25
    assert found.network == load_recipe("voxelmorph-diffeo").network
    assert found.network.options["encoder"] == load_recipe("voxelmorph").network.options["encoder"]


def test_settings_are_yaml_and_nested() -> None:
    found = parse_changes(["a.b.c=1.5", "a.b.d=[1, 2]", "a.e={f: true}", "name=my-own", "text='a=b'", "a.b.c=2"])
    assert found == {"a": {"b": {"c": 2, "d": [1, 2]}, "e": {"f": True}}, "name": "my-own", "text": "a=b"}
    assert parse_changes([]) == {}


@pytest.mark.parametrize(
    ("setting", "remedy"), [("schedule.steps", "write section.key=value"), ("=3", "write"), ("a=[", "quote")]
)
def test_settings_that_cannot_be_read(setting: str, remedy: str) -> None:
    with pytest.raises(InputError, match=remedy):
        parse_changes([setting])


def test_settings_replace_values_and_keep_their_neighbours() -> None:
    found = load_recipe("labelreg", parse_changes(["loss.labels.sigmas=[0, 4]", "network.options.channels=8"]))
    plain = load_recipe("labelreg")
    assert found.loss.labels == replace(plain.loss.labels, sigmas=(0, 4))
    assert found.network.options == {"channels": 8}
    assert load_recipe("labelreg").content == plain.content, "the recipe itself stays"


def test_the_command_lists_the_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == recipe_names()
    for line, name in zip(lines, recipe_names(), strict=True):
        recipe = load_recipe(name)
        assert line.split()[1:] == [f"{recipe.ndim}D", *recipe.title.split()]


@pytest.mark.parametrize("name", recipe_names())
def test_the_command_shows_a_recipe_that_is_a_recipe(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", name, "--show", "--set", "schedule.seed=11"]) == 0
    path = tmp_path / "shown.yaml"
    path.write_text(capsys.readouterr().out)
    shown = load_recipe(path)
    assert shown.content == load_recipe(name, {"schedule": {"seed": 11}}).content
    assert shown.schedule.seed == 11


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["rcn"], "no folder for the training. Remedy: popatlas train rcn OUT_DIR --table FILE"),
        (["rcn", "--show", "--set", "schedule.stepps=3"], "did you mean 'steps'?"),
        (["vtn"], "unknown recipe 'vtn'. Remedy: use one of bounding-boxes"),
    ],
)
def test_the_command_tells_what_is_wrong(line: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *line]) == 1
    error = capsys.readouterr().err
    assert error.startswith("popatlas train: ") and message in error and "Remedy: " in error


def test_a_training_without_a_table_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "pediatric", str(tmp_path / "out")]) == 1
    assert "learns from scans. Remedy: give a table of them: --table FILE" in capsys.readouterr().err


def test_another_similarity_or_network_starts_without_the_options_of_the_old_one(tmp_path: Path) -> None:
    recipe = load_recipe("voxelmorph", parse_changes(["loss.similarity.name=ncc", "network.name=pyramid"]))
    assert recipe.loss.similarity.options == {} and recipe.network == NetworkSection("pyramid", {})
    with pytest.raises(InputError, match=r"loss\.similarity\.options: unknown key 'radiuz', did you mean 'radius'"):
        load_recipe("voxelmorph", parse_changes(["loss.similarity.options.radiuz=3"]))


def test_a_recipe_extends_a_file_beside_it(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("name: mine\ntitle: Mine\nextends: voxelmorph\nschedule: {steps: 7}\n")
    (tmp_path / "more.yaml").write_text("name: more\ntitle: More\nextends: mine.yaml\nschedule: {batch: 3}\n")
    recipe = load_recipe(tmp_path / "more.yaml")
    assert (recipe.schedule.steps, recipe.schedule.batch, recipe.network.name) == (7, 3, "unet")


def test_a_section_that_is_no_mapping_is_explained(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("name: mine\ntitle: Mine\nnetwork: unet\n")
    with pytest.raises(InputError, match="network"):
        load_recipe(tmp_path / "mine.yaml")
