"""The token grammar of Stanford's PTBTokenizer (CoreNLP 3.4.1), as coco-caption runs it.

A token starts at the first character that is no blank. Every rule of [`RULES`] that can start there is tried; the rule
that reaches furthest wins, text it only looks ahead at included, and of two that reach equally far the earlier one.
A character that no rule takes (emoji, control characters) is dropped. The rules describe what the Java tokeniser does
with its default options and `-preserveLines`; they were found and are checked by differential testing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from hf_evcap.metrics.ptb_characters import DIGITS, LETTERS, MARKS, SYMBOLS


class Rule(NamedTuple):
    """One token form.

    Attributes:
        starts (`re.Pattern`): Matches the characters a token of this form can start with.
        pattern (`re.Pattern`): The token is group 1; what follows group 1 is looked ahead at and not consumed.
        write (`Callable`, *optional*): Gives the token as the tokeniser prints it; the text itself when missing.
    """

    starts: re.Pattern[str]
    pattern: re.Pattern[str]
    write: Callable[[str], str] | None


RULES: list[Rule] = []


def _rule(
    starts: str, token: str, ahead: str = "", write: Callable[[str], str] | None = None, ignore_case: bool = False
) -> None:
    flags = re.ASCII | (re.IGNORECASE if ignore_case else 0)  # case of ASCII letters only, as in the original
    pattern = f"({token})(?:{ahead})" if ahead else f"({token})"
    RULES.append(Rule(re.compile(starts, flags), re.compile(pattern, flags), write))


# --- characters
BLANK = r" \t\xa0\u2000-\u200a\u3000"
LINE_END = r"\n\r\x0b\x0c\x85\u2028\u2029"
ACCENTED = "&[aeiouAEIOU](?:acute|grave|uml);"  # an accented letter written as an HTML entity
LETTER = rf"(?:[{LETTERS}{MARKS}\xad]|{ACCENTED})"
WORD_CHARACTER = rf"(?:[{LETTERS}{MARKS}{DIGITS}\xad]|{ACCENTED})"
ALPHANUMERIC = f"[{LETTERS}{DIGITS}]"
DIGIT = f"[{DIGITS}]"
APOSTROPHE = r"(?:['\x92\u2019]|&apos;)"
ANY_APOSTROPHE = r"(?:['`\x91\x92\u2018\u2019\u201b]|&apos;)"
IN_WORD = rf"[{LETTERS}{MARKS}\xad&]"
IN_TOKEN = rf"[{LETTERS}{MARKS}{DIGITS}\xad&]"
SINGLE_QUOTES = r"['\x92\u2019&]"
BREAK = f"[{BLANK}{LINE_END}]"

# Found by trying all strings of two to five letters in three spellings, and 236,011 longer words, prefixes and
# consonant skeletons of words, in front of a period.
TITLES = (
    "adj adm adv alex assoc asst atty attys ave brig capt cf cie cmdr col comdr cpl dept det dr drs elec ens ft"
    " gen gov govs hon insp invt jos lieut lt maj messrs mlle mme mr mrs ms msgr mt natl pfc ph pres prof profs"
    " pvt rep reps rev sen sens sfc sgt spc st ste supt supts treas vs wm"
).split()
# Regular expressions. These can also end a sentence, and are not joined to a single character that follows ("Inc.s").
ABBREVIATIONS = (
    r"al ala apr ariz assn aug bhd bldg blvd bros calif co colo conn corp cos ct dak dec ed\.d esq est etc ext feb"
    " fla fri ga inc ind intl jan jr jul jun kan kans ky ltd mar md mich minn mo mon mont neb nev nov oct okla penn"
    r" ph\.d plc rd rt sep sept seq sq sr sys tel tenn thu thurs tue tues univ va vt wed wis wisc wyo"
).split()
CAPITALISED_ABBREVIATIONS = ("ark", "az", "del", "ill", "la", "mass", "miss", "ore", "pa", "tex", "wash")
NUMBER_ABBREVIATIONS = ("art", "ca", "fig", "figs", "no", "nos", "op", "pp", "prop")  # only in front of a number
SENTENCE_STARTERS = (
    "a about according additionally after an as at but earlier he her here however if in it last many more now once"
    " one other our she since so some such that the their then there these they this we what when while yet you"
).split()

QUOTES = {
    quote: written
    for quotes, written in (
        ("`\x91\u2018\u201b\u2039", "`"),
        ("\x92\u2019\u203a", "'"),
        ("\x93\u201c\xab", "``"),
        ("\x94\u201d\xbb", "''"),
    )
    for quote in quotes
}
BRACKETS = {"(": "-LRB-", ")": "-RRB-", "[": "-LSB-", "]": "-RSB-", "{": "-LCB-", "}": "-RCB-"}
CURRENCIES = {"\xa2": "cents", "\xa3": "#", "\x80": "$", "\xa4": "$", "\u20a0": "$", "\u20ac": "$"}
FRACTIONS = {"\xbc": "1/4", "\xbd": "1/2", "\xbe": "3/4", "\u2153": "1/3", "\u2154": "2/3"}


def _without_soft_hyphens(token: str) -> str:
    return token.replace("\xad", "") or "-"


def _with_plain_apostrophe(token: str) -> str:
    token = re.sub("[\x92\u2019]|&apos;", "'", token)
    return re.sub("[\x91\u2018\u201b]", "`", token)


def _plain_ampersand(token: str) -> str:
    return re.sub("&(?:amp|AMP);", "&", token)


def _plain_compound(token: str) -> str:
    return _plain_ampersand(_without_soft_hyphens(token))


def _unbroken(token: str) -> str:
    return token.replace(" ", "\xa0")


def _unbroken_brackets(token: str) -> str:
    return _round_brackets(_unbroken(token))


def _round_brackets(token: str) -> str:
    return token.replace("(", "-LRB-").replace(")", "-RRB-")


# --- markup
_TAG_NAME = r"[A-Za-z][A-Za-z0-9_:.\-]*"
_TAG_ATTRIBUTE = f"{_TAG_NAME}(?:[ ]*=[ ]*(?:'[^']*'|\"[^\"]*\"))?"
TAG = rf"<(?:[!?][A-Za-z\-][^>\r\n]*|/{_TAG_NAME}[ ]*|{_TAG_NAME}(?:[ ]+{_TAG_ATTRIBUTE})*[ ]*/?[ ]*)>"
_rule("<", TAG, write=_unbroken)
_rule(r"[&\x96\x97\u2013-\u2015]", r"&(?:MD|mdash|ndash);|[\x96\x97\u2013-\u2015]", write=lambda token: "--")
_rule("&", "&(?:amp|AMP);", write=lambda token: "&")
_rule("&", "&(?:HT|TL|UR|LR|QC|QL|QR|odq|cdq|#[0-9]+);")
_rule("&", "&nbsp;", write=lambda token: "")

# --- words, and the words that are split
WORD = f"{LETTER}{WORD_CHARACTER}*(?:[.!?]{LETTER}{WORD_CHARACTER}*)*"
CLITIC = f"{APOSTROPHE}(?:[mMsSdD]|[rR][eE]|[vV][eE]|[lL][lL])"
NOT_CLITIC = f"[nN]{ANY_APOSTROPHE}[tT]"
SPLIT_WORDS = {"cannot": 3, "gonna": 3, "gotta": 3, "lemme": 3, "gimme": 3, "wanna": 3}  # word -> length of its head
for _word, _length in SPLIT_WORDS.items():
    _rule(f"[{_word[0]}]", _word[:_length], _word[_length:], ignore_case=True)
_rule("'", "'t", "is|was", ignore_case=True)
_rule(r"[A-Za-z\xad]", r"[A-Za-z\xad]*[A-MO-Za-mo-z](?:\xad)*", NOT_CLITIC, _without_soft_hyphens)
_rule(IN_WORD, WORD, CLITIC, _without_soft_hyphens)
_rule(IN_WORD, WORD, write=_without_soft_hyphens)

_rule(SINGLE_QUOTES, f"{APOSTROPHE}[nN]{APOSTROPHE}?")
_rule("[lLdDjJ]", f"[lLdDjJ]{APOSTROPHE}")
_rule("[dDsSoO]", f"(?:[dD]unkin|[sS]omethin|[oO][lL]){APOSTROPHE}")
_rule(SINGLE_QUOTES, f"{APOSTROPHE}(?:em|[2-9]0s|till?|cause)", ignore_case=True)
_rule(f"[{LETTERS}]", f"[A-HJ-XZn]{ANY_APOSTROPHE}[{LETTERS}][{LETTERS}]+")
_rule(f"[{LETTERS}]", f"[{LETTERS}]+[aeiouyAEIOUY]{ANY_APOSTROPHE}[aeiouA-Z][{LETTERS}]*")
_rule("[ncesl]", "nor'easter|c'mon|e'er|s'mores|ev'ry|li'l|nat'l", ignore_case=True)
_rule("[oO]", f"[oO]{ANY_APOSTROPHE}[oO]")
_rule("[cC]", f"(?:cap{APOSTROPHE}n|c{APOSTROPHE}est)", ignore_case=True)
_rule("[-paPAsS]", "-(?:[lr][rcs]b)-|pro-|anti-|s(?:&amp;|&)(?:p-500|ls)", write=_plain_ampersand, ignore_case=True)
_rule("[cCfF]", r"[cC]\+\+|[cCfF]#")
_rule("[yY]", f"[yY]{APOSTROPHE}", f"[{LETTERS}]")

# --- addresses
_PATH = r'[^ \t\n\f\r"<>|()]+[^ \t\n\f\r"<>|.!?(){},\-]'
_URL = r'[^ \t\n\f\r"<>|(){}]+[^ \t\n\f\r"<>|.!?(){},\-]'
_LABEL = "[^ \\t\\n\\f\\r\"`'<>|.!?(){},-_$]"
_HOST = r'[^ \t\n\f\r"<>|.!?(){},]'
_rule("[hH]", f"(?i:https?)://{_URL}")
_rule("[wW]", rf"(?i:www)\.(?:{_HOST}+\.)+[a-zA-Z]{{2,4}}(?:/{_PATH})?")
_rule(_LABEL, rf"(?:{_LABEL}+\.)+(?i:com|net|org|edu)(?:/{_PATH})?")
_MAILBOX = r'[^ \t\n\f\r"<>|(){}\xa0]'
_DOMAIN = r'[^ \t\n\f\r"<>|(){}.\xa0]'
_rule("[A-Za-z0-9<&]", rf"(?:&lt;|<)?[a-zA-Z0-9]{_MAILBOX}*@(?:{_DOMAIN}+\.)*{_DOMAIN}+(?:&gt;|>)?")
_ENDING = f"(?i:{'|'.join(ABBREVIATIONS)})|(?=[A-Z])(?i:{'|'.join(CAPITALISED_ABBREVIATIONS)})|[pP]?[pP][tT][ey][sS]?"
_rule("[A-Za-z]", rf"(?:{_ENDING})\.", r"[\s\S]{2}")
_rule("[A-Za-z]", _ENDING, r"\.", lambda token: token + ".")  # at the end of the text, where the period is read again
_rule("@", "@[a-zA-Z_][a-zA-Z_0-9]*|@+")
_rule("#", rf"#[{LETTERS}{MARKS}\xad]+")

# --- clitics on their own
_rule(SINGLE_QUOTES, CLITIC, "[^A-Za-z]", _with_plain_apostrophe)
_rule("'", "'", f"[A-Za-z][^{BLANK}{LINE_END}]")  # an opening quote
_rule(SINGLE_QUOTES, CLITIC, write=_with_plain_apostrophe)
_rule("[nN]", NOT_CLITIC, write=_with_plain_apostrophe)
_rule(SINGLE_QUOTES, f"{APOSTROPHE}[0-9][0-9]", BREAK)

# --- numbers
_GROUP = rf"[.:,\xad\u066b\u066c]{DIGIT}+"
NUMBER = f"(?:{DIGIT}+(?:{_GROUP})*|(?:{_GROUP})+)"
_STARTS_NUMBER = rf"[-+.:,\xad\u066b\u066c{DIGITS}]"
_rule(DIGIT, f"{DIGIT}{{1,2}}[-/]{DIGIT}{{1,2}}[-/]{DIGIT}{{2,4}}")
_rule(_STARTS_NUMBER, f"[-+]?{NUMBER}", write=_without_soft_hyphens)
_rule(
    r"[\u207a\u207b\u208a\u208b\u2070\xb9\xb2\xb3\u2074-\u2079\u2080-\u2089]",
    r"[\u207a\u207b\u208a\u208b]?(?:[\u2070\xb9\xb2\xb3\u2074-\u2079]+|[\u2080-\u2089]+)",
)
_rule(DIGIT, rf"(?:{DIGIT}{{1,4}}[- \xa0])?{DIGIT}{{1,4}}(?:\\?/|\u2044){DIGIT}{{1,4}}", write=_unbroken)
_rule("[\xbc-\xbe\u2153-\u215e]", "[\xbc-\xbe\u2153-\u215e]", write=lambda token: FRACTIONS.get(token, token))
_rule(
    "[(+0-9]",
    r"(?:\([0-9]{2,3}\)[ \xa0]?|(?:\+\+?)?(?:[0-9]{2,4}[- \xa0])?[0-9]{2,4}[- \xa0])"
    r"[0-9]{3,4}[- \xa0]?[0-9]{3,5}",
    write=_unbroken_brackets,
)
_rule("[A-Z$#]", r"[A-Z]*\$|#")
_rule(
    "[\xa2-\xa5\x80\u20a0\u20ac\u060b\u0e3f\u20a4\uffe0\uffe1\uffe5\uffe6]",
    "[\xa2-\xa5\x80\u20a0\u20ac\u060b\u0e3f\u20a4\uffe0\uffe1\uffe5\uffe6]",
    write=lambda token: CURRENCIES.get(token, token),
)

# --- compounds
_PART = f"(?:[dDoOlL]{ANY_APOSTROPHE}{ALPHANUMERIC}{ALPHANUMERIC}+|{ALPHANUMERIC}+)"
HYPHENATED = rf"{_PART}(?:[-\u058a\u2010\u2011_]{_PART})*"
AMPERSANDED = "[A-Z]+(?:(?:&amp;|&AMP;|[+&])[A-Z]+)+"
_SLASH_PART = "[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
_COUNTRY = r"(?:Canada|Sino|Korean|EU|Japan|non)-U\.S|U\.S\.-(?:U\.K|U\.S\.S\.R)"
ACRONYM = rf"[A-Za-z](?:\.[A-Za-z])*|{_COUNTRY}"
_LONG_ACRONYM = rf"[A-Za-z](?:\.[A-Za-z])+|{_COUNTRY}"
HYPHENATED_NUMBER = rf"[A-Za-z0-9][A-Za-z0-9.,\xad]*(?:-(?:(?:{_LONG_ACRONYM})\.|[A-Za-z0-9\xad]+))+"
_rule(ALPHANUMERIC, HYPHENATED, write=_without_soft_hyphens)
_rule("[A-Z]", AMPERSANDED, write=_plain_ampersand)
_rule("[A-Za-z0-9]", rf"{_SLASH_PART}(?:\\?/{_SLASH_PART}){{1,2}}")
_rule("[A-Za-z0-9]", HYPHENATED_NUMBER, write=_without_soft_hyphens)

# --- abbreviations
_SENTENCE_START = rf"(?:(?=[A-Z])(?i:{'|'.join(SENTENCE_STARTERS)})|{TAG})"
_rule("[A-Za-z]", "[A-Za-z]", rf"\.[{BLANK}{LINE_END}]+{_SENTENCE_START}[{BLANK}{LINE_END}]")
_rule("[A-Za-z]", rf"(?:{ACRONYM})\.")
_rule("[A-Zn]", _COUNTRY, BREAK)
_rule("[A-Za-z]", rf"(?:{'|'.join(TITLES)})\.", ignore_case=True)
_rule("[mM]", r"[mM][ft][gG]\.")
_rule("[A-Za-z]", rf"(?:{'|'.join(NUMBER_ABBREVIATIONS)})\.", f"[{BLANK}{LINE_END}]?{DIGIT}", ignore_case=True)
for _form in (HYPHENATED, AMPERSANDED, HYPHENATED_NUMBER, WORD):
    _rule(IN_TOKEN, rf"(?:{_form})\.", r"[,;:\u3001]", _plain_compound)
_FILE_TYPES = (
    "bat|bmp|cgi|class|cpp|c|dll|docx|doc|exe|gif|gz|html|htm|h|jar|java|jpeg|jpg|mov|mp3|pdf|php|pl|png|ppt|ps|py"
    "|sql|tar|txt|wav|xml|x|zip"
)
_rule(
    IN_TOKEN,
    rf"{WORD_CHARACTER}+(?:\.{WORD_CHARACTER}+)*\.(?:{_FILE_TYPES})",
    f"{BREAK}|[.?!,]",
    ignore_case=True,
)

# --- faces, brackets, quotes, punctuation
_rule("[<>:;=]", r"[<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]]", "[^A-Za-z0-9]", _round_brackets)
_rule(
    "[-^x=~<>'(]",
    r"[-^x=~<>']_[-^x=~<>']|\([-^x=~<>'][_.]?[-^x=~<>']\)|\([\^x=~<>']-[\^x=~<>'`]\)",
    write=_round_brackets,
)
_rule(r"[\[\](){}]", r"[\[\](){}]", write=lambda token: BRACKETS[token])
_rule("[\"&']", "\"|''|&quot;", write=lambda token: "''")
_rule("['&]", "'|&apos;", write=lambda token: "'")
_rule(f"[{''.join(QUOTES)}]", f"[{''.join(QUOTES)}]{{1,2}}", write=lambda token: "".join(QUOTES[c] for c in token))
_rule("&", "&lt;", write=lambda token: "<")
_rule("&", "&gt;", write=lambda token: ">")
_rule(r"[.\u2026\x85]", r"\.{3,5}|\.(?:[ \xa0]\.){2,4}|[\u2026\x85]", write=lambda token: "...")
_rule("-", "-{2,4}", write=lambda token: "--")
_rule("[-_*?!#]", r"-+|_+|\*+|[?!]+|#+")
_rule("\\\\", r"(?:\\\*)+")
_rule("[<>]", "<<|>>")
_rule(r"[.,;:@%&/\\|+=~^<>\u201a\u201e\u201f\u2044$]", r"[.,;:@%&/\\|+=~^<>\u201a\u201e\u201f\u2044$]")
_rule(f"[{SYMBOLS}]", f"[{SYMBOLS}]")
