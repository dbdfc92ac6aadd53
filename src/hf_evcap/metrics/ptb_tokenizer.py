"""Caption tokenisation equal to coco-caption's, without Java.

coco-caption writes all captions of a run into one file, a caption a line, runs Stanford's `PTBTokenizer` of CoreNLP
3.4.1 over it (`-preserveLines -lowerCase`) and removes a list of punctuation tokens. Because the Java tokeniser looks
across line ends, a few tokens depend on the caption that follows ("platform b." in front of "A train" loses its
period). [`tokenize_captions`] therefore takes the whole run as one list, in coco-caption's order.

The token forms stand in [`hf_evcap.metrics.ptb_grammar`].
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate

from hf_evcap.metrics.ptb_grammar import BLANK, NUMBER_ABBREVIATIONS, RULES, SPLIT_WORDS, Rule


# coco-caption's list. Its brackets are upper case while the tokeniser lower-cases, so "-lrb-" stays, as it does there.
PUNCTUATION = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)

_BLANKS = re.compile(f"[{BLANK}]+")
_LINE_ENDS = re.compile("[\\n\\r\\x0b\\x0c\\u2028\\u2029]")
_ASTRAL = re.compile("[\U00010000-\U0010ffff]")
_LONE_UNIT = re.compile("[\ud800-\udfff]")
# A chunk between two spaces is read alike in every caption unless it holds a character outside this class (digits join
# across blanks, "<" may open a tag that has blanks) or ends as a single letter or a number abbreviation with a period.
_PLAIN_CHUNK = re.compile("[!-/:;=-~\xc0-\u017f\u2018\u2019\u201c\u201d\u2013\u2014]*")
_OPEN_CHUNK = re.compile(f"(?:^|[^A-Za-z])(?:[A-Za-z]|{'|'.join(NUMBER_ABBREVIATIONS)})\\.$", re.IGNORECASE)
_MAX_CACHED_CHUNKS = 200_000


def tokenize_captions(captions: Sequence[str]) -> list[str]:
    """Tokenise captions exactly as coco-caption does in one run.

    Args:
        captions (`Sequence[str]`): The captions of one run in coco-caption's order: all predictions, or the references
            of the first image, then those of the second, and so on. Line breaks inside a caption count as blanks.

    Returns:
        `list[str]`: One string a caption, lower-case tokens without punctuation joined by single spaces. A token may
        hold a no-break space ("2 1/2").
    """
    captions = [_as_one_line(caption) for caption in captions]
    tokenized: list[str] = []
    reader: _Reader | None = None
    for index, caption in enumerate(captions):
        if index + 1 < len(captions) and (reader is None or not reader.open_pieces):
            try:
                tokenized.append(
                    " ".join([tokens for chunk in caption.split(" ") if (tokens := _chunk_tokens[chunk])])
                )
                continue
            except KeyError:  # a chunk of this caption cannot be read by itself
                pass
        if reader is None:
            reader = _Reader(captions)
        tokenized.append(reader.read_line(index))
    return tokenized


def _as_one_line(caption: str) -> str:
    """Replace line breaks by blanks and characters above U+FFFF by the two UTF-16 units that the grammar reads."""
    if not caption.isascii():
        caption = _ASTRAL.sub(_utf16_units, caption)
    return _LINE_ENDS.sub(" ", caption)


def _utf16_units(match: re.Match[str]) -> str:
    offset = ord(match[0]) - 0x10000
    return chr(0xD800 + (offset >> 10)) + chr(0xDC00 + (offset & 0x3FF))


def _as_printed(token: str) -> str:
    """Lower-case a token, its UTF-16 units joined again; a unit left alone prints as `?`, as Java's encoder does."""
    if not token.isascii():
        token = _LONE_UNIT.sub("?", token.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass"))
    return token.lower()


_RULES_BY_START: dict[str, list[Rule]] = {}


def _next_token(text: str, start: int) -> tuple[str, int]:
    """Read the token at `start`; the text of a blank or of a dropped character is empty. Also gives where it ends."""
    first = text[start]
    rules = _RULES_BY_START.get(first)
    if rules is None:
        rules = _RULES_BY_START[first] = [rule for rule in RULES if rule.starts.match(first)]
    blanks = _BLANKS.match(text, start)
    reach = blanks.end() if blanks else start
    winner: tuple[Rule, re.Match[str]] | None = None
    for rule in rules:
        match = rule.pattern.match(text, start)
        if match is not None and match.end() > reach:
            reach = match.end()
            winner = rule, match
    if winner is None:
        return "", max(reach, start + 1)
    rule, match = winner
    token = match[1]
    return (rule.write(token) if rule.write else token), match.end(1)


class _ChunkTokens(dict[str, str]):
    """The tokens of chunks that read alike in every caption, computed when first asked for.

    Raises `KeyError` for a chunk whose tokens depend on its surroundings.
    """

    def __missing__(self, chunk: str) -> str:
        if len(self) >= _MAX_CACHED_CHUNKS:
            self.clear()
        if chunk.isascii() and chunk.isalpha() and chunk.lower() not in SPLIT_WORDS:
            self[chunk] = tokens = chunk.lower()
            return tokens
        if not _PLAIN_CHUNK.fullmatch(chunk) or _OPEN_CHUNK.search(chunk):
            raise KeyError(chunk)
        text = chunk + "\n"
        kept: list[str] = []
        position = 0
        while position < len(chunk):
            token, position = _next_token(text, position)
            _keep(token, kept)
        self[chunk] = tokens = " ".join(kept)
        return tokens


_chunk_tokens = _ChunkTokens()


class _Reader:
    """Reads single captions of a run token by token, with the whole run in sight.

    Args:
        captions (`Sequence[str]`): The captions of the run, each without line breaks.
    """

    def __init__(self, captions: Sequence[str]) -> None:
        self.text = "\n".join(captions)
        self.ends = [length + index for index, length in enumerate(accumulate(map(len, captions)))]
        self.position = 0
        # A markup tag may run over line ends: what is left of it, a piece for each line it still covers.
        self.open_pieces: list[str] = []

    def read_line(self, index: int) -> str:
        """Give the tokens of caption `index`; captions must be read in order."""
        end = self.ends[index]
        kept: list[str] = []
        if self.open_pieces:
            _keep(self.open_pieces.pop(0), kept)
            if self.open_pieces:
                return " ".join(kept)
            position = self.position
        else:
            position = self.ends[index - 1] + 1 if index else 0
        text = self.text
        while position < end:
            if text[position] != " " and (position == 0 or text[position - 1] in " \n"):
                chunk_end = text.find(" ", position, end)
                chunk_end = end if chunk_end < 0 else chunk_end
                if chunk_end < len(text):  # at the very end of the text, rules that look ahead find nothing
                    try:
                        tokens = _chunk_tokens[text[position:chunk_end]]
                    except KeyError:
                        pass
                    else:
                        if tokens:
                            kept.append(tokens)
                        position = chunk_end
                        continue
            token, position = _next_token(text, position)
            piece, *self.open_pieces = token.split("\n")
            _keep(piece, kept)
        self.position = position
        return " ".join(kept)


def _keep(token: str, kept: list[str]) -> None:
    token = _as_printed(token)
    if token and token not in PUNCTUATION:
        kept.append(token)
