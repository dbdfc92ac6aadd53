"""Chat messages with a photo, as users of `image-text-to-text` send them."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any


Message = dict[str, Any]

# Where a part of a message may hold its photo.
_PHOTO_KEYS = ("image", "url", "path", "base64")
_PHOTO_TYPES = ("image", "image_url")  # the latter is OpenAI's


def is_conversation(value: Any) -> bool:
    """Whether something is a conversation: a list of messages, or transformers' `Chat`."""
    messages = getattr(value, "messages", value)
    if not isinstance(messages, (list, tuple)) or not messages:
        return False
    return all("role" in one if isinstance(one, Mapping) else hasattr(one, "role") for one in messages)


def read_conversation(conversation: Any, photo: Any = None) -> list[Message]:
    """
    Brings a conversation into one form; the given one stays as it is.

    Args:
        conversation (`list[dict]`): Messages with a `role` and as `content` a string or a list of parts: `{"type":
            "text", "text": ...}` and `{"type": "image"}` with a photo under `image`, `url`, `path`, `base64` or
            OpenAI's `image_url`, or without one. Dataclasses and pydantic models do as well.
        photo (*optional*): Photo of the first part that is one, whatever it holds, or of the first user's message.

    Returns:
        `list[dict]`: Messages whose content is a list of `{"type": "text", "text": str}` and `{"type": "image"}`,
        with the photo where there is one.

    Raises:
        ValueError: A part is neither text nor a photo, or has no text.
    """
    messages = [_plain(message) for message in getattr(conversation, "messages", conversation)]
    messages = [{**message, "content": _read_content(message.get("content"))} for message in messages]
    if photo is not None:
        _place_photo(messages, photo)
    return messages


def _plain(value: Any) -> Message:
    """A message or a part of one as a dictionary, without entries that say nothing, as rows of a dataset have."""
    if dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif hasattr(value, "model_dump"):  # pydantic's
        value = value.model_dump()
    if not isinstance(value, Mapping):
        raise TypeError(f"A message must be a dictionary with a role and content, got {type(value).__name__}.")
    return {key: entry for key, entry in value.items() if entry is not None}


def _read_content(content: Any) -> list[Message]:
    if content is None:
        return []
    parts = [content] if isinstance(content, str) else content
    return [{"type": "text", "text": part} if isinstance(part, str) else _read_part(_plain(part)) for part in parts]


def _read_part(part: Message) -> Message:
    kind = part.get("type") or ("text" if "text" in part else "image")
    if kind == "text" and isinstance(part.get("text"), str):
        return {**part, "type": "text"}
    if kind not in _PHOTO_TYPES:
        raise ValueError(
            f'A part of a message must be {{"type": "text", "text": "..."}} or {{"type": "image", "image": ...}}; '
            f"got the type {kind!r} with {', '.join(part) or 'nothing'}."
        )
    photo = {key: value for key, value in part.items() if key != "image_url"}
    if "image_url" in part:
        address = part["image_url"]
        photo["url"] = address.get("url") if isinstance(address, Mapping) else address
    return {**photo, "type": "image"}


def _place_photo(messages: list[Message], photo: Any) -> None:
    placed = {"type": "image", "image": photo}
    for message in messages:
        for number, part in enumerate(message["content"]):
            if part["type"] == "image":
                message["content"][number] = placed
                return
    for message in messages:
        if message["role"] == "user":
            message["content"].insert(0, placed)
            return
    raise ValueError("The conversation has no message of the role 'user' that the photo could go with.")


def photos_of(messages: list[Message]) -> list[Any]:
    """Photos of a conversation from [`read_conversation`]."""
    parts = [part for message in messages for part in message["content"] if part["type"] == "image"]
    return [part[key] for part in parts for key in _PHOTO_KEYS if key in part]


def requests_of(messages: list[Message]) -> list[str]:
    """What a conversation from [`read_conversation`] asks for: texts that are not the assistant's."""
    return [
        part["text"]
        for message in messages
        if message["role"] != "assistant"
        for part in message["content"]
        if part["type"] == "text" and part["text"].strip()
    ]


# A conversation's texts and photos, message by message; what a model does with them comes in between.
_CHAT_TEMPLATE = """\
{%- set quote = namespace(text='', photos='') -%}
START
{%- for message in messages -%}
{%- set quote.text = '' -%}{%- set quote.photos = '' -%}
{%- if message['content'] is string -%}{%- set quote.text = message['content'] -%}{%- else -%}
{%- for part in message['content'] or [] -%}
{%- if part['type'] == 'text' -%}{%- set quote.text = quote.text ~ (' ' if quote.text else '') ~ part['text'] -%}
{%- elif 'image' in part['type'] -%}{%- set quote.photos = quote.photos ~ IMAGE -%}{%- endif -%}
{%- endfor -%}{%- endif -%}
{%- set text = quote.text | replace(IMAGE, PLAIN_IMAGE) | replace('{image}', '{ image }') -%}
{%- if message['role'] == 'assistant' -%}{% generation %}{{ text ~ END }}{% endgeneration %}
{%- elif message['role'] == 'user' -%}{{ USER }}
{%- else -%}{{ OTHER }}{%- endif -%}
{%- endfor -%}
"""


def write_chat_template(
    prompt_template: str, prompt: str, caption_end: str, image_token: str, starts_with_bos: bool = False
) -> str:
    """
    Writes a Jinja chat template that puts each user's message into a prompt.

    Args:
        prompt_template (`str`): With `{image}` for a message's photo and maybe `{prompt}` for its text. Without the
            latter, texts of users and systems are left out.
        prompt (`str`): For messages without a text.
        caption_end (`str`): After the assistant's messages.
        image_token (`str`): Stands for a photo; in texts it is broken up.
        starts_with_bos (`bool`, *optional*, defaults to `False`): Whether the tokenizer's BOS token comes first.
    """
    values = {"{image}": "quote.photos", "{prompt}": f"(text or {_literal(prompt)})"}
    pieces = [piece for piece in re.split(r"(\{image\}|\{prompt\})", prompt_template) if piece]
    words = {
        "START": "{{- bos_token -}}" if starts_with_bos else "",
        "PLAIN_IMAGE": _literal(f"{image_token[0]} {image_token[1:]}"),
        "IMAGE": _literal(image_token),
        "END": _literal(caption_end),
        "USER": " ~ ".join(values.get(piece) or _literal(piece) for piece in pieces),
        "OTHER": "text ~ ' '" if "{prompt}" in prompt_template else "''",
    }
    return re.sub(r"\b(?:START|PLAIN_IMAGE|IMAGE|END|USER|OTHER)\b", lambda found: words[found[0]], _CHAT_TEMPLATE)


def _literal(text: str) -> str:
    """A string as Jinja writes it."""
    return json.dumps(text, ensure_ascii=False)


__all__ = ["Message", "is_conversation", "photos_of", "read_conversation", "requests_of", "write_chat_template"]
