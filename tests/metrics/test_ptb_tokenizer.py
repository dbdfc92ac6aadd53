"""The Python tokeniser against Stanford's."""

from __future__ import annotations

import gzip
import json
import random
import re
import subprocess
from importlib.util import find_spec
from pathlib import Path
from shutil import which

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_evcap.metrics import ptb_grammar, ptb_tokenizer
from hf_evcap.metrics.ptb_tokenizer import PUNCTUATION, tokenize_captions


with gzip.open(Path(__file__).parent / "fixtures" / "ptb_tokenizer.json.gz", "rt", encoding="utf-8") as _file:
    RUNS = json.load(_file)


@pytest.mark.parametrize("run", RUNS, ids=[f"run{index}" for index in range(len(RUNS))])
def test_equals_stanford_on_made_up_strings(run):
    tokenized = tokenize_captions(run["captions"])
    assert len(tokenized) == len(run["tokenized"])
    differing = [row for row in zip(run["captions"], tokenized, run["tokenized"], strict=True) if row[1] != row[2]]
    assert differing == []


@pytest.mark.parametrize("name", ["coco", "tricky"])
def test_equals_stanford_on_captions(coco_caption, name):
    captions = coco_caption[name]
    references = [caption for image in captions["references"] for caption in image]
    expected = [caption for image in captions["tokenized_references"] for caption in image]
    assert tokenize_captions(captions["predictions"]) == captions["tokenized_predictions"]
    assert tokenize_captions(references) == expected


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("A man's dogs' bowl, isn't it?", "a man 's dogs bowl is n't it"),
        ("You cannot; we're gonna wait", "you can not we 're gon na wait"),
        ("a \"STOP\" sign and a 'yield' sign", "a stop sign and a yield sign"),
        ("It costs $5.00 or £3 or 5¢", "it costs $ 5.00 or # 3 or 5 cents"),
        ("Mr. Smith at 5 p.m. on Main St.", "mr. smith at 5 p.m. on main st."),
        ("half a cup, 2 1/2 cups, ½ cup", "half a cup 2\xa01/2 cups 1/2 cup"),
        ("a t-shirt - black/white (new) [old]", "a t-shirt black/white -lrb- new -rrb- -lsb- old -rsb-"),
        ("wait... what?! wow!!", "wait what ?! wow !!"),
        ("see http://a.bc/d?e=f, mail a@b.com #fun @you", "see http://a.bc/d?e=f mail a@b.com #fun @you"),
        ("AT&amp;T &lt;3 R&D & co.", "at&t < 3 r&d & co."),
        ("a 😀 x😀y café 日本", "a x y café 日本"),
        ("nice :) and", "nice :-rrb- and"),
        ("a <b>bold</b> word", "a <b> bold </b> word"),
        ("", ""),
        (" . ", ""),
    ],
)
def test_rules(caption, tokens):
    assert tokenize_captions([caption, "next"])[0] == tokens


def test_the_caption_that_follows_is_seen_as_in_coco_caption():
    assert tokenize_captions(["platform b.", "A train", "platform b.", "a train"])[::2] == [
        "platform b",
        "platform b.",
    ]
    assert tokenize_captions(["see no.", "5 dogs", "see no.", "five dogs"])[::2] == ["see no.", "see no"]


def test_markup_over_line_ends_stays_in_its_lines():
    assert tokenize_captions(['a <a b="x', 'y"> z', "end"]) == ['a <a\xa0b="x', 'y"> z', "end"]


def test_line_breaks_inside_a_caption_are_blanks():
    assert tokenize_captions(["a\ndog\r\nruns\u2028fast", "b"]) == ["a dog runs fast", "b"]


def test_empty_list():
    assert tokenize_captions([]) == []


CAPTION = st.text(alphabet="abAB19.,'’\"-/!?:;()&@#$<>= \xa0é½😀", max_size=12)


@settings(max_examples=150, deadline=None)
@given(st.lists(CAPTION, min_size=1, max_size=5))
def test_remembered_chunks_change_nothing(captions):
    """Chunks looked up and the text read character by character give the same."""
    text = "\n".join(ptb_tokenizer._as_one_line(caption) for caption in captions)
    expected, position = [[]], 0
    while position < len(text):
        if text[position] == "\n":
            expected.append([])
            position += 1
            continue
        token, position = ptb_tokenizer._next_token(text, position)
        for index, piece in enumerate(token.split("\n")):
            if index:
                expected.append([])
            piece = ptb_tokenizer._as_printed(piece)
            if piece and piece not in PUNCTUATION:
                expected[-1].append(piece)
    assert tokenize_captions(captions) == [" ".join(tokens) for tokens in expected]


def test_the_memory_of_chunks_is_bounded(monkeypatch):
    monkeypatch.setattr(ptb_tokenizer, "_MAX_CACHED_CHUNKS", 10)
    chunks = [f"w{''.join(random.Random(i).choices('abcdefgh', k=6))}," for i in range(50)]
    assert tokenize_captions(chunks) == [chunk.rstrip(",") for chunk in chunks]
    assert len(ptb_tokenizer._chunk_tokens) <= 10


def test_character_classes_do_not_overlap():
    counts = [re.compile(f"[{table}]") for table in (
        ptb_grammar.DIGITS, ptb_grammar.LETTERS, ptb_grammar.MARKS, ptb_grammar.SYMBOLS
    )]  # fmt: skip
    for code in range(0x10000):
        assert sum(table.match(chr(code)) is not None for table in counts) <= 1


def _jar() -> Path | None:
    try:
        spec = find_spec("pycocoevalcap.tokenizer.ptbtokenizer")
    except ModuleNotFoundError:
        return None
    return None if spec is None else Path(spec.origin).with_name("stanford-corenlp-3.4.1.jar")


@pytest.mark.skipif(_jar() is None or which("java") is None, reason="pycocoevalcap or a Java runtime is missing")
def test_equals_the_java_program_on_random_strings(tmp_path):
    pieces = [
        "a",
        "the",
        "Dog",
        "I",
        "n't",
        "'s",
        "'",
        '"',
        "“",
        "’",
        "1",
        "1/2",
        "$",
        "U.S.",
        "no.",
        ".",
        ",",
        "-",
        "--",
    ]
    pieces += [
        "&amp;",
        "(",
        ")",
        "<b>",
        "@",
        "#",
        "www.a.com",
        "é",
        "😀",
        ":)",
        "½",
        "p.m.",
        "gonna",
        "/",
        "...",
        "*",
        "_",
    ]
    generator = random.Random(0)
    captions = [
        "".join(generator.choice(pieces) + generator.choice(["", " "]) for _ in range(generator.randint(1, 9)))
        for _ in range(3000)
    ]
    file = tmp_path / "captions.txt"
    file.write_bytes("\n".join(captions).encode())
    command = ["java", "-cp", _jar(), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase", file]
    printed = subprocess.run(command, capture_output=True, check=True).stdout.decode().split("\n")
    expected = [" ".join(w for w in line.rstrip().split(" ") if w not in PUNCTUATION) for line in printed]
    tokenized = tokenize_captions(captions)
    differing = [row for row in zip(captions, tokenized, expected, strict=True) if row[1] != row[2]]
    assert differing == []
