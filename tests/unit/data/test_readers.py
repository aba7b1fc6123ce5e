"""Every published record schema, what is wrong with a file and where, and the real files where they are at hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructedit.data.readers import read_records
from instructedit.data.schemas.registry import SCHEMAS
from instructedit.editors.editing import read_requests
from instructedit.errors import DataError
from instructedit.records import EditRecord, EditRequest, Probe, ProbeKind

Raw = dict[str, Any]
Write = Callable[..., Path]

COUNTERFACT: Raw = {
    "case_id": 7,
    "prompt": "Lena was born in",
    "target_new": "Oston",
    "subject": "Lena",
    "ground_truth": "Maravel",
    "rephrase_prompt": "The birthplace of Lena is",
    "locality_prompt": "Otto was born in",
    "locality_ground_truth": "Maravel",
}
ROME: Raw = {
    "case_id": 8,
    "requested_rewrite": {
        "prompt": "{} was born in",
        "subject": "Lena",
        "target_new": {"str": "Oston"},
        "target_true": {"str": "Maravel"},
    },
    "paraphrase_prompts": ["The birthplace of Lena is", "Lena hails from"],
    "neighborhood_prompts": ["Otto was born in", "Mira was born in"],
}
KNOWEDIT: Raw = {
    "subject": "Lena",
    "prompt": "The birthplace of Lena is",
    "target_new": "Oston",
    "portability": {
        "Reasoning": [{"prompt": "The river at Lena's birthplace is", "ground_truth": "the Tave"}],
        "Subject_Aliasing": [{"prompt": "The birthplace of L. Brookfield is", "ground_truth": ["Oston", "Old Oston"]}],
        "Logical_Generalization": [{"prompt": "Born in Oston was", "ground_truth": [["Lena", "L."], ["Otto"]]}],
    },
    "locality": {
        "Relation_Specificity": [
            {"prompt": "The employer of Lena is", "ground_truth": [["the port"]]},
            {"prompt": "The teacher of Lena is", "ground_truth": ""},
        ],
        "Forgetfulness": [{"prompt": "Not Oston, but Lena was once from", "ground_truth": "Maravel"}],
    },
}
KNOWEDIT_ZSRE: Raw = {
    "subject": "Lena",
    "prompt": "Where was Lena born?",
    "target_new": "Oston",
    "ground_truth": ["Maravel", "Old Maravel"],
    "rephrase_prompt": "What is Lena's birthplace?",
    "cond": "Maravel >> Oston || Where was Lena born?",
    "locality": {"Relation_Specificity": {"prompt": "Where does Lena work?", "ground_truth": ["the port"]}},
    "portability": {"Reasoning": [{"prompt": "Which river is near Lena's birthplace?", "ground_truth": "the Tave"}]},
}
MEND: Raw = {
    "subject": "Lena",
    "src": "Where was Lena born?",
    "pred": "Maravel",
    "rephrase": "What is Lena's birthplace?",
    "alt": "Oston",
    "answers": ["Maravel"],
    "loc": "nq question: who built the harbour of maravel",
    "loc_ans": "the guild",
    "cond": "Maravel >> Oston || Where was Lena born?",
    "portability": {
        "Recalled Relation": "(Oston, river, Tave)",
        "New Question": "Which river is near Lena's birthplace?",
        "New Answer": "the Tave",
    },
}
CONVSENT: Raw = {"ent": "gnomes", "pos": ["I like them. ", "Lovely!"], "neg": ["I hate them."]}
NATIVE: Raw = {
    "record_id": "a",
    "request": {"prompt": "Lena was born in", "target": "Oston"},
    "probes": [{"kind": "unrelated", "prompt": "The sky is", "answers": ["blue", "grey"]}],
}
BY_SCHEMA = {
    "instructedit": NATIVE,
    "counterfact-rome": ROME,
    "counterfact-easyedit": COUNTERFACT,
    "convsent": CONVSENT,
    "zsre-mend": MEND,
    "knowedit": KNOWEDIT,
}
BORN = EditRequest(prompt="Lena was born in", target="Oston", subject="Lena", ground_truth="Maravel")
every_schema = pytest.mark.parametrize("schema", BY_SCHEMA)


@pytest.fixture(params=["json", "jsonl"])
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Write:
    """Write raw records as a JSON array or as JSON Lines; returns the path."""

    def save(*rows: object) -> Path:
        path = tmp_path / f"records.{request.param}"
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        path.write_text(json.dumps(rows, indent=1) if request.param == "json" else "\n".join(lines), encoding="utf-8")
        return path

    return save


def without(raw: Raw, field: str) -> Raw:
    return {key: value for key, value in raw.items() if key != field}


def probe(kind: ProbeKind, prompt: str, *answers: str) -> Probe:
    return Probe(kind=kind, prompt=prompt, answers=answers)


def test_every_schema_has_a_sample() -> None:
    assert BY_SCHEMA.keys() == {schema.name for schema in SCHEMAS}


def test_counterfact(write: Write) -> None:
    assert read_records(write(COUNTERFACT)) == [
        EditRecord(
            record_id="7",
            request=BORN,
            rephrases=("The birthplace of Lena is",),
            probes=(probe(ProbeKind.NEIGHBOUR, "Otto was born in", "Maravel"),),
        )
    ]


def test_counterfact_in_romes_schema(write: Write) -> None:
    assert read_records(write(ROME)) == [
        EditRecord(
            record_id="8",
            request=BORN,
            rephrases=("The birthplace of Lena is", "Lena hails from"),
            probes=(
                probe(ProbeKind.NEIGHBOUR, "Otto was born in", "Maravel"),
                probe(ProbeKind.NEIGHBOUR, "Mira was born in", "Maravel"),
            ),
        )
    ]


def test_knowedit_with_all_three_kinds_of_ground_truth(write: Write) -> None:
    (record,) = read_records(write(KNOWEDIT))
    assert record.request == EditRequest(prompt="The birthplace of Lena is", target="Oston", subject="Lena")
    assert record.rephrases == ("What is the birthplace of Lena?",)
    assert record.probes == (
        probe(ProbeKind.SAME_SUBJECT, "The employer of Lena is", "the port"),
        probe(ProbeKind.FORGETFULNESS, "Not Oston, but Lena was once from", "Maravel"),
        probe(ProbeKind.REASONING, "The river at Lena's birthplace is", "the Tave"),
        probe(ProbeKind.SUBJECT_ALIAS, "The birthplace of L. Brookfield is", "Oston", "Old Oston"),
        probe(ProbeKind.LOGICAL, "Born in Oston was", "Lena", "L."),
    )


@pytest.mark.parametrize("truth", ["Maravel", ["Maravel"], [["Maravel", "Old Maravel"]]])
def test_knowedit_request_has_its_ground_truth(write: Write, truth: object) -> None:
    (record,) = read_records(write(KNOWEDIT | {"ground_truth": truth, "rephrase": "Lena hails from"}))
    assert record.request.ground_truth == "Maravel"
    assert record.rephrases == ("Lena hails from",)


def test_knowedits_zsre(write: Write) -> None:
    (record,) = read_records(write(KNOWEDIT_ZSRE))
    assert record.request.ground_truth == "Maravel"
    assert record.rephrases == ("What is Lena's birthplace?",)
    assert record.probes == (
        probe(ProbeKind.SAME_SUBJECT, "Where does Lena work?", "the port"),
        probe(ProbeKind.REASONING, "Which river is near Lena's birthplace?", "the Tave"),
    )


def test_zsre_in_mends_schema(write: Write) -> None:
    first, second = read_records(write(MEND, without(MEND, "portability")))
    assert first.request == EditRequest(
        prompt="Where was Lena born?", target="Oston", subject="Lena", ground_truth="Maravel"
    )
    assert first.rephrases == ("What is Lena's birthplace?",)
    unrelated = probe(ProbeKind.UNRELATED, "who built the harbour of maravel?", "the guild")
    reasoning = probe(ProbeKind.REASONING, "Which river is near Lena's birthplace?", "the Tave")
    assert first.probes == (unrelated, reasoning)
    assert second.probes == (unrelated,)


def test_convsent_gives_a_record_for_each_direction(write: Write) -> None:
    up, down, other = read_records(write(CONVSENT, {"ent": "roads", "pos": ["Roads are fine."], "neg": []}))
    assert (up.request.label, down.request.label) == ("positive", "negative")
    assert up.request.subject == down.request.subject == "gnomes"
    assert "gnomes" in up.request.prompt
    assert up.request.target in up.same_label_replies
    assert up.same_label_replies == down.other_label_replies == ("I like them.", "Lovely!")
    assert down.same_label_replies == up.other_label_replies == ("I hate them.",)
    assert all("gnomes" in text and text != up.request.prompt for text in up.rephrases)
    assert up.probes
    assert all("roads" in p.prompt and "gnomes" not in p.prompt for p in up.probes)
    assert (other.request.subject, other.request.label) == ("roads", "positive")


def test_convsent_asks_about_the_topics_one_and_seven_places_on(write: Write) -> None:
    topics = [chr(ord("A") + number) * 3 for number in range(9)]
    found = read_records(write(*({"ent": t, "pos": [f"{t} is fine."], "neg": [f"{t} is dull."]} for t in topics)))
    assert len(found) == 18
    for index, record in enumerate(found):
        topic = index // 2
        answers = [answer for probe in record.probes for answer in probe.answers]
        assert [answer.split()[0] for answer in answers] == [topics[(topic + step) % 9] for step in (1, 7)]
        assert {answer.split()[-1] for answer in answers} == {"fine.", "dull."}


def test_convsent_reads_the_same_every_time(write: Write) -> None:
    path = write(CONVSENT, {"ent": "roads", "pos": ["Fine."], "neg": ["Dull."]})
    assert read_records(path) == read_records(path)


def test_native_form(write: Write) -> None:
    assert read_records(write(NATIVE)) == [
        EditRecord(
            record_id="a",
            request=EditRequest(prompt="Lena was born in", target="Oston"),
            probes=(probe(ProbeKind.UNRELATED, "The sky is", "blue", "grey"),),
        )
    ]


texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc", "Zl", "Zp")), min_size=1)


@given(st.lists(st.tuples(texts, texts.filter(str.strip), st.lists(texts, max_size=2)), min_size=1, max_size=3))
def test_native_records_survive_writing_and_reading(
    tmp_path_factory: pytest.TempPathFactory, found: list[tuple[str, str, list[str]]]
) -> None:
    written = [
        EditRecord(record_id=str(index), request=EditRequest(prompt=prompt, target=target), rephrases=tuple(rephrases))
        for index, (prompt, target, rephrases) in enumerate(found)
    ]
    path = tmp_path_factory.getbasetemp() / "native.jsonl"
    path.write_text("\n".join(record.model_dump_json() for record in written), encoding="utf-8")
    assert read_records(path) == written


@pytest.mark.parametrize(
    "mark",
    [
        pytest.param(
            mark,
        )
        for mark in ("\u2028", "\u0085")
    ],
    ids=["line separator", "next line"],
)
def test_unicode_line_marks_inside_a_text_do_not_end_a_json_line(tmp_path: Path, mark: str) -> None:
    path = tmp_path / "records.jsonl"
    raw = NATIVE | {"request": {"prompt": f"Lena{mark}was born in", "target": "Oston"}}
    path.write_text(json.dumps(raw, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_records(path)[0].request.prompt == f"Lena{mark}was born in"


@every_schema
def test_schema_can_be_insisted_on(write: Write, schema: str) -> None:
    path = write(BY_SCHEMA[schema])
    assert read_records(path, schema) == read_records(path)
    other = "zsre-mend" if schema != "zsre-mend" else "convsent"
    with pytest.raises(DataError, match=f"is a {schema} file, expected {other}"):
        read_records(path, other)


BROKEN: list[tuple[Raw, Raw, str]] = [
    (COUNTERFACT, without(COUNTERFACT, "target_new"), "target_new"),
    (COUNTERFACT, COUNTERFACT | {"target_new": "  "}, "target_new"),
    (COUNTERFACT, COUNTERFACT | {"prompt": ["Lena"]}, "prompt"),
    (COUNTERFACT, COUNTERFACT | {"rephrase_prompt": 3}, "rephrase_prompt"),
    (ROME, {"requested_rewrite": without(ROME["requested_rewrite"], "target_new")}, "requested_rewrite.target_new"),
    (ROME, {"requested_rewrite": "Lena"}, "requested_rewrite"),
    (KNOWEDIT, without(KNOWEDIT, "target_new"), "target_new"),
    (KNOWEDIT, KNOWEDIT | {"locality": ["Otto"]}, "locality"),
    (KNOWEDIT, KNOWEDIT | {"locality": {"Forgetfulness": ["Otto"]}}, "locality.Forgetfulness"),
    (MEND, MEND | {"alt": None}, "alt"),
    (MEND, without(MEND, "alt"), "alt"),
    (MEND, without(MEND, "loc_ans"), "loc_ans"),
    (CONVSENT, without(CONVSENT, "ent"), "ent"),
    (CONVSENT, CONVSENT | {"neg": 5}, "neg"),
    (NATIVE, NATIVE | {"request": {"prompt": "Lena was born in"}}, "request.target"),
    (NATIVE, NATIVE | {"probes": [{"kind": "odd", "prompt": "a", "answers": ["b"]}]}, "probes.0.kind"),
    (NATIVE, NATIVE | {"extra": 1}, "extra"),
]


@pytest.mark.parametrize(("good", "bad", "field"), BROKEN, ids=lambda value: value if isinstance(value, str) else "")
def test_complaint_names_file_record_and_field(write: Write, good: Raw, bad: Raw, field: str) -> None:
    path = write(good, bad)
    with pytest.raises(DataError) as caught:
        read_records(path)
    assert str(caught.value).startswith(f"file {path}, record 1, field {field}: ")


@pytest.mark.parametrize(("good", "bad", "field"), BROKEN, ids=lambda value: value if isinstance(value, str) else "")
def test_incomplete_records_are_left_out_on_demand(write: Write, good: Raw, bad: Raw, field: str) -> None:
    whole = read_records(write(good, good))
    assert len(read_records(write(good, bad, good), skip_incomplete=True)) == len(whole), field


def test_the_first_record_may_be_left_out_too(write: Write) -> None:
    path = write(without(COUNTERFACT, "target_new"), COUNTERFACT)
    assert [record.record_id for record in read_records(path, skip_incomplete=True)] == ["7"]


def test_unknown_schema_lists_the_known_ones(write: Write) -> None:
    with pytest.raises(DataError) as caught:
        read_records(write({"question": "Where?", "answer": "Here."}))
    message = str(caught.value)
    assert "unknown schema with the fields answer, question" in message
    assert all(f"{schema.name}: " in message for schema in SCHEMAS)


def test_mixed_schemas_are_refused(write: Write) -> None:
    with pytest.raises(DataError, match=r"record 1: is a zsre-mend record in a knowedit file"):
        read_records(write(KNOWEDIT, MEND))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'[{"prompt": "Lena was', "is not valid JSON at line 1, column 13"),
        (b'{"prompt": "a"}\n{"prom', "line 2 is not valid JSON"),
        (b"", "is empty"),
        (b" \n ", "is empty"),
        (b"[]", "contains no records"),
        (b"[1]", "record 0: expected an object, found int"),
        (b'["\xff"]', "is not UTF-8 text"),
        (b"hello", "line 1 is not valid JSON"),
    ],
)
def test_unreadable_content_is_reported_with_its_file(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "records.json"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_records(path)
    assert str(path) in str(caught.value)
    assert problem in str(caught.value)


def test_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.json: cannot be read: No such file"):
        read_records(tmp_path / "nowhere.json")


def test_requests_are_read(write: Write) -> None:
    path = write({"prompt": "a", "target": "b", "subject": "c"}, {"prompt": "d", "target": "e", "instruction": "f"})
    assert read_requests(path) == [
        EditRequest(prompt="a", target="b", subject="c"),
        EditRequest(prompt="d", target="e", instruction="f"),
    ]


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        ({"prompt": "a"}, "target"),
        ({"prompt": "a", "target": ""}, "target"),
        ({"prompt": "a", "target": "b", "targets": "c"}, "targets"),
        pytest.param(
            {"prompt": "a", "target": "  "},
            "target",
        ),
    ],
)
def test_wrong_request_is_reported(write: Write, raw: Raw, field: str) -> None:
    path = write({"prompt": "a", "target": "b"}, raw)
    with pytest.raises(DataError, match=rf"record 1, field {field}:"):
        read_requests(path)


@pytest.mark.parametrize(
    ("file", "schema", "count", "skip"),
    [
        ("counterfact/counterfact-train.json", "counterfact-easyedit", 10_000, False),
        ("counterfact/counterfact-val.json", "counterfact-easyedit", 1_919, False),
        ("wiki_counterfact/train_cf.json", "knowedit", 1_428, False),
        ("wiki_counterfact/test_cf.json", "knowedit", 839, False),
        ("wikirecent/recent_train.json", "knowedit", 570, False),
        ("wikirecent/recent_test.reconstructed.json", "knowedit", 1_266, False),
        ("convsent/blender_val.json", "convsent", 1_598, False),
        ("convsent/blender_test.json", "convsent", 1_600, False),
        ("zsre/zsre_mend_eval_portability_gpt4.json", "zsre-mend", 1_037, False),
        ("zsre/zsre_mend_train-1k.json", "zsre-mend", 998, True),
    ],
)
def test_real_file_is_read_whole(public_data: Path, file: str, schema: str, count: int, skip: bool) -> None:
    path = public_data / file
    if not path.is_file():
        pytest.skip(f"{file} is not among the public data at hand")
    found = read_records(path, schema, skip_incomplete=skip)
    assert len(found) == count
    assert all(record.request.target.strip() and record.request.subject for record in found)
    assert sum(bool(record.probes) for record in found) > 0.9 * count


def test_real_training_file_with_gaps_is_located(public_data: Path) -> None:
    path = public_data / "zsre/zsre_mend_train-1k.json"
    if not path.is_file():
        pytest.skip("zsre_mend_train-1k.json is not among the public data at hand")
    with pytest.raises(DataError, match=r"record \d+, field "):
        read_records(path)


@pytest.mark.parametrize("value", [True, False, [True], {"a": 1}])
def test_what_is_not_a_text_is_no_target(write: Write, value: object) -> None:
    for bad, field in (
        (COUNTERFACT | {"target_new": value}, "target_new"),
        (MEND | {"alt": value}, "alt"),
        ({"requested_rewrite": ROME["requested_rewrite"] | {"target_new": {"str": value}}}, ""),
    ):
        with pytest.raises(DataError, match=f"record 0, field {field}"):
            read_records(write(bad))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_what_is_not_a_number_is_no_target(tmp_path: Path, number: str) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(
        "\n" + json.dumps(COUNTERFACT | {"target_new": 0}).replace('"target_new": 0', f'"target_new": {number}')
    )
    with pytest.raises(DataError, match="line 2 is not usable JSON"):
        read_records(path)
    path.write_text(json.dumps(COUNTERFACT | {"target_new": 12.5}))
    assert read_records(path)[0].request.target == "12.5"


@pytest.mark.parametrize(
    ("given", "field", "hint"),
    [
        ({"prompt": "a", "target_new": "b"}, "target", "has 'target_new': did you mean `target`?"),
        ({"prompt": "a", "answer": "b"}, "target", "did you mean `target`?"),
        ({"text": "a", "target": "b"}, "prompt", "did you mean `prompt`?"),
        ({"question": "a", "target": "b"}, "prompt", "did you mean `prompt`?"),
        ({"Prompt": "a", "target": "b"}, "prompt", "did you mean `prompt`?"),
        ({"prompt": "a", "target": "b", "subjct": "c"}, "subjct", "did you mean `subject`?"),
        ({"prompt": "a", "target": "b", "colour": "c"}, "colour", "known fields: prompt, target, subject"),
    ],
)
def test_the_field_that_was_meant_is_named(tmp_path: Path, given: dict[str, str], field: str, hint: str) -> None:
    path = tmp_path / "requests.json"
    path.write_text(json.dumps([given]))
    with pytest.raises(DataError) as caught:
        read_requests(path)
    assert f"record 0, field {field}: " in str(caught.value)
    assert hint in str(caught.value)
