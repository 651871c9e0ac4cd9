import pytest
from conftest import ROOT
from pydantic import BaseModel
from ruamel.yaml import YAML

from tasks.errors import ParamsError
from tasks.params import Block, Params
from tasks.params_file import leaf_paths, load_params

TEXT = (ROOT / "params.yaml").read_text()


@pytest.fixture
def params_file(tmp_path):
    def write(text):
        path = tmp_path / "params.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def with_value(key, value):
    """The text of params.yaml with another value at a key path, or without that line (None)."""
    *blocks, leaf = key.split(".")
    lines, start = TEXT.split("\n"), 0
    for depth, name in enumerate([*blocks, leaf]):
        opening = f"{'  ' * depth}{name}:"
        start = next(n for n in range(start, len(lines)) if lines[n].startswith(opening))
    lines[start] = "" if value is None else f"{opening} {value}"
    while lines[start + 1].startswith("  - "):  # the items of its list
        del lines[start + 1]
    return "\n".join(lines), start + 1


# the schema --------------------------------------------------------------------------------------


def blocks(model=Params):
    yield model
    for field in model.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from blocks(field.annotation)


@pytest.mark.parametrize("block", [*blocks()], ids=lambda block: block.__name__)
def test_no_field_has_a_default_and_every_value_is_described(block):
    for name, field in block.model_fields.items():
        assert field.is_required(), name
        is_block = isinstance(field.annotation, type) and issubclass(field.annotation, Block)
        assert is_block or field.description, name
    assert block.__doc__


def test_the_leaves_are_the_values_of_the_file_in_its_order():
    def walk(tree, at=""):
        for key, value in tree.items():
            if isinstance(value, dict):
                yield from walk(value, f"{at}{key}.")
            else:
                yield f"{at}{key}"

    assert leaf_paths() == list(walk(YAML(typ="safe").load(TEXT)))


def test_values_cannot_be_changed_after_reading(default_params):
    with pytest.raises(ValueError, match="frozen"):
        default_params.finetune.epochs = 3


# one clear line for every mistake ----------------------------------------------------------------

MISTAKES = {
    "wrong type": ("finetune.head_lr", "fast", "is 'fast'; allowed: number, greater than 0"),
    "too large": ("finetune.head_lr", "5", "is 5; allowed: number, greater than 0, at most 1"),
    "excluded bound": ("finetune.head_lr", "0.0", "is 0.0; allowed: number, greater than 0"),
    "not a number": ("finetune.head_lr", ".nan", "is nan; allowed: number"),
    "infinite": ("decide.far_mmd", ".inf", "is inf; allowed: number"),
    "no choice": ("augment.fit", "stretch", r"is 'stretch'; allowed: squash \| crop \| pad"),
    "YAML 1.1 boolean": ("class_balanced", "yes", "is 'yes'; allowed: true or false"),
    "number as boolean": ("class_balanced", "1", "is 1; allowed: true or false"),
    "neither number nor word": (
        "baseline.mlp_hidden",
        "automatic",
        r"is 'automatic'; allowed: integer, at least 2, at most 8192 \| auto \(",
    ),
    "fraction or word": ("baseline.mlp_hidden", "1.5", r"is 1.5; allowed: integer, .* \| auto \("),
    "boolean as number": ("finetune.epochs", "true", "is True; allowed: integer"),
    "fraction as integer": ("finetune.epochs", "2.5", "is 2.5; allowed: integer, at least 1"),
    "text as number": ("finetune.epochs", "'3'", "is '3'; allowed: integer"),
    "nothing": ("report.title", "", "is None; allowed: string"),
    "empty text": ("report.title", "''", "is ''; allowed: string, length at least 1"),
    "empty list": ("finetune.interpolation", "[]", r"is \[\]; allowed: list, items at least 1"),
    "a block as value": ("seed", "{a: 1}", r"is {'a': 1}; allowed: integer"),
    "left out": ("finetune.head_lr", None, "is missing; every value stands in params.yaml: number"),
}


@pytest.mark.parametrize(("key", "value", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_wrong_value_is_named_with_what_is_allowed(params_file, key, value, message):
    text, _ = with_value(key, value)
    with pytest.raises(ParamsError, match=rf"\.yaml:\d+: {key} {message}"):
        load_params(params_file(text))


def test_the_line_of_a_wrong_value_is_given(params_file):
    text, line = with_value("finetune.head_lr", "fast")
    with pytest.raises(ParamsError, match=rf"params\.yaml:{line}: finetune\.head_lr"):
        load_params(params_file(text))


def test_a_wrong_item_of_a_list_is_named(params_file):
    text, line = with_value("finetune.interpolation", "[0.5, much]")
    with pytest.raises(ParamsError, match=rf":{line}: finetune\.interpolation\.1 is 'much'"):
        load_params(params_file(text))


def test_a_wrong_word_of_a_list_is_named_with_the_choices(params_file):
    text, line = with_value("baseline.heads", "[linear, svm]")
    message = rf":{line}: baseline\.heads\.1 is 'svm'; allowed: linear \| mlp"
    with pytest.raises(ParamsError, match=message):
        load_params(params_file(text))


def test_a_value_of_several_types_gets_one_line(params_file):
    with pytest.raises(ParamsError) as caught:
        load_params(params_file(with_value("baseline.mlp_hidden", "wide")[0]))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(("written", "value"), [("auto", "auto"), ("300", 300)])
def test_a_width_may_be_a_number_or_auto(params_file, written, value):
    text, _ = with_value("baseline.mlp_hidden", written)
    assert load_params(params_file(text)).baseline.mlp_hidden == value


def test_every_mistake_gets_its_line(params_file):
    text = with_value("finetune.head_lr", "fast")[0].replace("seed: 17", "seed: -1")
    with pytest.raises(ParamsError) as caught:
        load_params(params_file(text))
    first, second = str(caught.value).split("\n")
    assert "seed is -1; allowed: integer, at least 0" in first
    assert "finetune.head_lr is 'fast'" in second


UNKNOWN = {
    "misspelled": ("  patience: 6", "  patiense: 6", "patiense", "finetune.patience"),
    "misspelled block": ("\nfinetune:", "\nfinetun:", "finetun", "finetune"),
    "in the wrong block": ("\nseed:", "\nhead_lr: 1.0\nseed:", "head_lr", "finetune.head_lr"),
}


@pytest.mark.parametrize(("old", "new", "key", "meant"), UNKNOWN.values(), ids=UNKNOWN.keys())
def test_an_unknown_key_is_refused_with_the_one_that_was_meant(params_file, old, new, key, meant):
    assert old in TEXT
    with pytest.raises(ParamsError, match=rf"{key} is not a parameter\. Did you mean {meant}\?"):
        load_params(params_file(TEXT.replace(old, new)))


def test_a_key_like_no_other_is_refused_with_what_is_allowed_there(params_file):
    text = TEXT.replace("\nreport:\n", "\nreport:\n  zzz: 1\n")
    with pytest.raises(
        ParamsError, match=r"report\.zzz is not a parameter\. Allowed here: title\."
    ):
        load_params(params_file(text))


def test_a_number_as_key_is_refused(params_file):
    with pytest.raises(ParamsError, match="1 is not a parameter"):
        load_params(params_file("1: 2\n" + TEXT))


def test_a_long_value_is_cut(params_file):
    with pytest.raises(ParamsError) as caught:
        load_params(params_file(with_value("report.title", "x" * 5000)[0]))
    assert len(str(caught.value)) < 400


def test_similar_is_nearer_than_far(params_file):
    text = TEXT.replace("similar_mmd: auto", "similar_mmd: 0.2")
    text = text.replace("far_mmd: auto", "far_mmd: 0.1")
    with pytest.raises(ParamsError, match=r"decide: similar_mmd is 0\.2; allowed: below far_mmd"):
        load_params(params_file(text))


RULES = {
    "shares": ("ingest.val_fraction", "0.45", r"ingest: val_fraction \+ test_fraction is 0\.63"),
    "views": ("augment.policy", "none", "augment: policy none makes every one of the"),
    "marks": (
        "decide.far_mmd",
        "0.1",
        "decide: similar_mmd is auto and far_mmd 0.1; allowed: both",
    ),
    "rates": ("finetune.backbone_lr", "0.5", "finetune: backbone_lr is 0.5; allowed: at most head"),
    "heads": (
        "baseline.heads",
        "[mlp, mlp]",
        r"baseline: heads is \['mlp', 'mlp'\]; allowed: each",
    ),
    "strengths": ("baseline.l2_strengths", "[1.0, 0.0]", "baseline: l2_strengths holds 0; allowed"),
    "interpolation": (
        "finetune.interpolation",
        "[1.5]",
        "finetune: interpolation holds 1.5; allow",
    ),
}


@pytest.mark.parametrize(("key", "value", "message"), RULES.values(), ids=RULES.keys())
def test_values_that_contradict_each_other_are_refused(params_file, key, value, message):
    with pytest.raises(ParamsError, match=rf"\.yaml:\d+: {message}"):
        load_params(params_file(with_value(key, value)[0]))


# reading -----------------------------------------------------------------------------------------

UNREADABLE = {
    "duplicate key": (TEXT + "\nseed: 1\n", r":\d+: not readable as YAML: found duplicate key"),
    "tab": (TEXT.replace("  views:", "\tviews:"), r":\d+: not readable as YAML: .*'\\t'.*quotes"),
    "control character": ("seed: \x01", "not readable as YAML: unacceptable character"),
    "two documents": (TEXT + "\n---\nseed: 1\n", ":.*another document"),
    "python object": ("seed: !!python/object/apply:os.getcwd []", "could not determine a constru"),
    "not UTF-8": (b"seed: \xff", "byte 6 is not UTF-8"),
    "too large": (b"#" * 200_001, "200001 bytes; allowed: at most 200000"),
    "list": ("- a\n- b\n", ":1: expected blocks of `key: value`, found list"),
    "empty": ("", "found nothing"),
    "alias": ("a: &x [1]\nb: *x\n", r":2: alias \*x; write the value out"),
    "alias of itself": ("a: &x [*x]\n", r":1: alias \*x"),
    "deep flow": ("a: " + "[" * 50_000, "nested more than 20 levels"),
    "deep blocks": ("- " * 5_000, "nested more than 20 levels"),
}


@pytest.mark.parametrize(("text", "message"), UNREADABLE.values(), ids=UNREADABLE.keys())
@pytest.mark.timeout(10)
def test_a_file_that_is_no_parameters_is_refused_at_once(params_file, text, message):
    with pytest.raises(ParamsError, match=message):
        load_params(params_file(text))


def test_a_missing_file_says_how_to_name_it(tmp_path):
    with pytest.raises(ParamsError, match=r"cannot be read \(No such file.*--params"):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize("written", ["1e-4", "1.0e-4", "0.0001", "1E-4"])
def test_numbers_are_read_as_dvc_reads_them(params_file, written):
    text, _ = with_value("finetune.backbone_lr", written)
    assert load_params(params_file(text)).finetune.backbone_lr == 0.0001


def test_an_integer_is_accepted_for_a_fraction(params_file):
    text, _ = with_value("finetune.clip_norm", "1")
    assert load_params(params_file(text)).finetune.clip_norm == 1.0
