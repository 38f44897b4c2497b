"""Configuration files of compilers: what a template says, and that no value of a variable breaks the file."""

import json
import tomllib
from typing import Any

import pytest
import tomli_w
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rm_api.config_template import TemplateInvalid, filled, finished, read, render, variables_of, write

FORMATS = ("JSON", "YAML", "TOML", "INI")
VALUES = {"TP": "4", "MAX_BATCH": "", "TARGET": "npu-1", "INPUT_data": "/rma/inputs/data"}
SAME = {
    "JSON": """
{"build": {"target": "${TARGET}", "tp": "${TP}", "data": "${INPUT_data}/x.bin", "price": "$5", "${TARGET}": ""}}
""",
    "YAML": """
build:
  target: ${TARGET}   # what for
  tp: "${TP}"
  data: ${INPUT_data}/x.bin
  price: $5
  ${TARGET}: ""
""",
    "TOML": """
[build]
target = "${TARGET}"
tp = "${TP}"
data = "${INPUT_data}/x.bin"
price = "$5"
"${TARGET}" = ""
""",
    "INI": """
[build]
target = ${TARGET}
tp = ${TP}
data = ${INPUT_data}/x.bin
price = $5
${TARGET} =
""",
}


@pytest.mark.parametrize("format_", FORMATS)
def test_each_format_says_the_same(format_: str) -> None:
    wanted = {"target": "npu-1", "tp": 4, "data": "/rma/inputs/data/x.bin", "price": "$5", "npu-1": ""}
    made = render(format_, SAME[format_], VALUES)
    if format_ == "INI":
        wanted["tp"] = "4"
    assert read(format_, made) == {"build": wanted}
    assert variables_of(read(format_, SAME[format_])) == {"TARGET", "TP", "INPUT_data"}


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("${TP}", 4),
        ("${MAX_BATCH}", None),
        ("tp${TP}", "tp4"),
        (" ${TP}", " 4"),
        ("${TARGET}", "npu-1"),
        ("batch ${MAX_BATCH}", "batch "),
        ("$", "$"),
        ("$$", "$"),
        ("$${TP}", "${TP}"),
        ("$$${TP}", "$4"),
        ("${TP", "${TP"),
        ("US$ 5, $HOME", "US$ 5, $HOME"),
        ("", ""),
    ],
)
def test_what_becomes_of_a_text(text: str, made: object) -> None:
    assert json.loads(render("JSON", json.dumps([text]), VALUES)) == [made]


def test_a_number_that_is_not_set_is_null_where_the_format_has_one() -> None:
    assert render("YAML", "batch: ${MAX_BATCH}", VALUES) == "batch: null\n"
    assert read("INI", render("INI", "[a]\nbatch = ${MAX_BATCH}", VALUES)) == {"a": {"batch": ""}}
    with pytest.raises(TemplateInvalid, match="TOML cannot say this"):
        render("TOML", 'batch = "${MAX_BATCH}"', VALUES)


def test_variables_of_a_key_stay_what_they_are_where_they_are_not_known_yet() -> None:
    assert filled({"a": "${TP} ${INPUT_x} $"}, {"TP": "$4"}) == {"a": "$$4 ${INPUT_x} $$"}


def bombs() -> str:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 20)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("format_", "content", "message"),
    [
        ("JSON", '{"a": }', "no valid JSON: .*line 1"),
        ("JSON", '{"a": 1, "a": 2}', "two members 'a'"),
        ("JSON", '{"a": NaN}', "NaN is no number"),
        ("JSON", '{"a": -Infinity}', "-Infinity is no number"),
        ("JSON", '{"a": 1e999}', "1e999 is too large"),
        ("JSON", f'{{"a": {"1" * 5000}}}', "no valid JSON"),
        ("JSON", "[" * 66 + "]" * 66, "nests"),
        ("JSON", "[" * 16000 + "]" * 16000, "no valid JSON|nests"),
        ("YAML", "a: [", "no valid YAML: .*line"),
        ("YAML", "a: 1\nb:\n  c: 2\n  c: 3", "two members 'c'"),
        ("YAML", "1: a", "names of members must be texts"),
        ("YAML", "on: a", "names of members must be texts"),
        ("YAML", "a: !!binary aGk=", "bytes cannot be"),
        ("YAML", "a: !!python/name:os.system", "no valid YAML"),
        ("YAML", "a: 2001-13-45", "no valid YAML: month must be"),
        ("YAML", "&a [*a]", "nests"),
        ("YAML", bombs(), "says more than"),
        ("YAML", "a: 1\n---\nb: 2", "no valid YAML"),
        ("TOML", "a = ", "no valid TOML: Invalid value"),
        ("TOML", "a = 1\na = 2", "no valid TOML"),
        ("INI", "a = 1", "no valid INI: .*no section headers"),
        ("INI", "[a]\nx = 1\nx = 2", "no valid INI: .*already exists"),
        ("INI", "[a]\n[a]", "no valid INI: .*already exists"),
        ("INI", "[a]\nno value", "no valid INI"),
        ("XML", "<a/>", "there is no format XML; there are JSON, YAML, TOML and INI"),
    ],
)
def test_templates_that_say_nothing(format_: str, content: str, message: str) -> None:
    with pytest.raises(TemplateInvalid, match=message):
        read(format_, content)


@pytest.mark.parametrize(
    ("format_", "content", "message"),
    [
        ("JSON", '["${NONE}", "${ALSO}", "${TP}"]', "names ALSO, NONE, which is not set"),
        ("JSON", '{"${NONE}": 1}', "names NONE"),
        ("JSON", '["${PP}"]', "PP is 'one', which is no whole number"),
        ("JSON", '{"${TARGET}": 1, "x": 2}', "two members come to have the same name"),
        ("JSON", '{"$": 1, "$$": 2}', "two members come to have the same name"),
        ("JSON", '["\\ud800"]', "no Unicode text"),
        ("YAML", "a: ${BYTES}", "no Unicode text"),
        ("INI", "[a]\nx = ${BLANK}", "INI cannot say x = ' '"),
        ("INI", "[a]\nx = ${COMMENT}", "INI cannot say x = 'a\\\\n#b'"),
        ("INI", "[a]\nx = ${RETURN}", "INI cannot say x"),
        ("INI", "[a]\n${EQUALS} = 1", "INI cannot say b=c = '1'"),
        ("INI", "[${BRACKET}]\nx = 1", "INI cannot say x"),
    ],
)
def test_values_that_a_template_or_a_format_cannot_take(format_: str, content: str, message: str) -> None:
    values = {
        "TP": "4", "PP": "one", "TARGET": "x", "BYTES": "\udc80", "BLANK": " ", "COMMENT": "a\n#b", "EQUALS": "b=c",
        "BRACKET": "a\nb", "RETURN": "a\rb = 2",
    }  # fmt: skip
    with pytest.raises(TemplateInvalid, match=message):
        render(format_, content, values)


ODD_TEXTS = (
    ("", '"', "'", "\\", '"""', "'''", "\n", "a\nb", "a\n\n  b", "\t", " ", "\x00", "\x85", "\u2028", "\ufeff"),
    ("$", "$$", "${TP}", "${", "}", "%(x)s"),
    ("a: b", "- a", "# no", "[x]", "a = b", "yes", "1", "null", "~", "=", "2001-01-01"),
)
NASTY = st.sampled_from([text for texts in ODD_TEXTS for text in texts]) | st.text(
    st.characters(exclude_categories=["Cs"])
)
PIECES = st.lists(st.one_of(st.sampled_from(["${A}", "${B}", "${INPUT_x}"]), NASTY), max_size=4)


def templates(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.dictionaries(
        NASTY,
        st.recursive(
            leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NASTY, inner, max_size=3), max_leaves=8
        ),
        max_size=4,
    )


def filled_by_hand(pieces: list[str], values: dict[str, str]) -> str:
    """A text of pieces, whose first three are variables and whose others are as they are written."""
    return "".join(values[piece[2:-1]] if piece in ("${A}", "${B}", "${INPUT_x}") else piece for piece in pieces)


def as_template(pieces: list[str]) -> str:
    return "".join(piece if piece in ("${A}", "${B}", "${INPUT_x}") else piece.replace("$", "$$") for piece in pieces)


@pytest.mark.parametrize("format_", ["JSON", "YAML", "TOML"])
@settings(deadline=None)
@given(data=st.data(), a=NASTY, b=NASTY, x=NASTY)
def test_no_value_breaks_a_file(format_: str, data: st.DataObject, a: str, b: str, x: str) -> None:
    values = {"A": a, "B": b, "INPUT_x": x}
    others = st.one_of(st.booleans(), st.integers(-(2**62), 2**62), st.floats(allow_nan=False, allow_infinity=False))
    if format_ != "TOML":
        others = others | st.none()
    drawn = data.draw(templates(st.tuples(PIECES) | others))

    def with_texts(value: Any, text: Any) -> Any:
        match value:
            case tuple():
                return text(value[0])
            case dict():
                return {name: with_texts(member, text) for name, member in value.items()}
            case list():
                return [with_texts(member, text) for member in value]
        return value

    names = {name.replace("$", "$$"): name for name in _names(drawn)}
    template = _renamed(with_texts(drawn, as_template), {name: written for written, name in names.items()})
    wanted = with_texts(drawn, lambda pieces: filled_by_hand(pieces, values))
    made = render(format_, _written(format_, template), values)
    assert _read(format_, made) == wanted == read(format_, made)


def _names(value: Any) -> set[str]:
    match value:
        case dict():
            return set(value).union(*map(_names, value.values()))
        case list():
            return set().union(*map(_names, value))
    return set()


def _renamed(value: Any, names: dict[str, str]) -> Any:
    match value:
        case dict():
            return {names[name]: _renamed(member, names) for name, member in value.items()}
        case list():
            return [_renamed(member, names) for member in value]
    return value


def _written(format_: str, value: Any) -> str:
    match format_:
        case "JSON":
            return json.dumps(value)
        case "YAML":
            return str(yaml.safe_dump(value, default_style='"', default_flow_style=True))
    return tomli_w.dumps(value)


def _read(format_: str, text: str) -> Any:
    match format_:
        case "JSON":
            return json.loads(text)
        case "YAML":
            return yaml.safe_load(text)
    return tomllib.loads(text)


@pytest.mark.parametrize(
    ("section", "value"),
    [("a", "a\nb"), ("a", "a\n[b]\ny = 1"), ("DEFAULT", "%(y)s"), ("a", '"$x" = 1 # no'), ("a: b", "a\n\nb")],
)
def test_ini_says_lines_and_marks(section: str, value: str) -> None:
    made = render("INI", f"[{section}]\nx = ${{A}}\ny = 2", {"A": value})
    assert read("INI", made) == {section: {"x": value, "y": "2"}}


@settings(deadline=None)
@given(section=NASTY, name=NASTY, value=NASTY, pieces=PIECES)
def test_ini_says_what_is_filled_in_or_refuses(section: str, name: str, value: str, pieces: list[str]) -> None:
    values = {"A": value, "B": "b", "INPUT_x": "/rma/inputs/x"}
    assume(section != "other")
    doubled = (section.replace("$", "$$"), name.replace("$", "$$"))
    data = {doubled[0]: {doubled[1]: as_template(pieces)}, "other": {"stays": "1"}}
    wanted = {section: {name: filled_by_hand(pieces, values)}, "other": {"stays": "1"}}
    try:
        made = write("INI", finished(filled(data, values)))
    except TemplateInvalid:
        text = wanted[section][name]
        odd = set("\r\n\x00\x1c\x1d\x1e\x1f\x0b\x0c\x85\u2028\u2029") & set(section + name + text)
        assert (
            odd
            or text != text.strip()
            or not _is_plain_name(section)
            or not _is_plain_name(name)
            or name != name.strip()
        )
        return
    assert read("INI", made) == wanted


def _is_plain_name(name: str) -> bool:
    """True for a name that nobody could take for anything else."""
    return bool(name) and not set("[]=#;$\n\r") & set(name)
