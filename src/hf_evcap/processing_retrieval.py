"""What the processors of both families share: options of a call, chats, saving, publishing, decoding."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import CommitInfo
from PIL import Image
from transformers import AutoImageProcessor, ProcessorMixin
from transformers.utils import logging

from .chat_messages import is_conversation, read_conversation, requests_of
from .configuration_efficientnet_lite import EfficientNetLiteConfig
from .hub_upload import push_saved, take_hub_arguments
from .image_processing_efficientnet_lite import EfficientNetLiteImageProcessor
from .photo_loading import as_list, load_photo


logger = logging.get_logger(__name__)

AutoImageProcessor.register(
    EfficientNetLiteConfig, slow_image_processor_class=EfficientNetLiteImageProcessor, exist_ok=True
)

# First line of the chat templates that the processors make themselves, which follow changes of the prompt.
CHAT_TEMPLATE_MARK = "{#- Made of the processor's prompt by hf_evcap. -#}"
_OTHER_MODALITIES = ("videos", "audio")


@dataclass
class CallInputs:
    """
    What a call of a processor gives, but for its texts.

    Args:
        pixels (`dict`): What the image processor makes of the photos; empty without photos.
        places (`list[int]`, *optional*): Photos of each prompt; `None` without photos.
        count (`int`): Prompts: as many as `places`, else as the first list of texts has.
        text_options (`dict`): For the tokenizer.
        return_tensors (`str`, *optional*): `"pt"` or `"np"`; lists when absent.
        max_length (`int`, *optional*): As it was given, in whichever of the ways.
    """

    pixels: dict[str, Any]
    places: list[int] | None
    count: int
    text_options: dict[str, Any]
    return_tensors: str | None
    max_length: int | None


class RetrievalProcessor(ProcessorMixin):
    """Reads photos, chats and the options of a call, saves and publishes itself, and decodes captions."""

    chat_template: Any
    # What a prompt of a user's own is passed as, whatever it holds.
    prompt_argument = "text"

    @property
    def takes_requests(self) -> bool:
        """`bool`: Whether a prompt has a place for what a user asks; otherwise the model captions, whatever it is."""
        return False

    def make_chat_template(self) -> str:
        """The chat template for the processor's present prompt."""
        raise NotImplementedError(f"{type(self).__name__} has no chat template of its own.")

    def refresh_chat_template(self) -> None:
        """Writes the chat template anew, unless it is a user's own."""
        if self.chat_template is None or str(self.chat_template).startswith(CHAT_TEMPLATE_MARK):
            self.chat_template = f"{CHAT_TEMPLATE_MARK}\n{self.make_chat_template()}"

    def apply_chat_template(self, conversation: Any, chat_template: str | None = None, **kwargs: Any) -> Any:
        """
        Makes prompts, or with `tokenize=True, return_dict=True` the model's inputs, of chats with a photo each.

        Where the model's prompt has no place for a request (as that of the embedded model), it captions the photo
        whatever a user's message asks, and a warning says so.

        Args:
            conversation (`list[dict]` or a list of them): Messages; see [`~chat_messages.read_conversation`].
            chat_template (`str`, *optional*): Instead of the processor's own.
            kwargs: Everything else that [`~transformers.ProcessorMixin.apply_chat_template`] takes, such as
                `add_generation_prompt`, `continue_final_message`, `return_tensors` and `processor_kwargs`.
        """
        several = not is_conversation(conversation)
        conversations = [read_conversation(one) for one in (conversation if several else [conversation])]
        if chat_template is None:
            self.refresh_chat_template()
            own = str(self.chat_template).startswith(CHAT_TEMPLATE_MARK)
            if own:
                self.tell_of_requests([request for one in conversations for request in requests_of(one)])
        return super().apply_chat_template(conversations if several else conversations[0], chat_template, **kwargs)

    def tell_of_requests(self, requests: list[str]) -> None:
        """Warns that what users ask in chats is not heeded, where it is not."""
        if requests and not self.takes_requests:
            logger.warning_once(
                "The model was trained to caption photos without being asked: it captions the photo, whatever the "
                f"messages ask ({requests[0]!r})."
            )

    def read_options(self, given: dict[str, Any]) -> dict[str, Any]:
        """
        Sorts the options of a call by what they are for.

        Args:
            given (`dict`): Options of the tokenizer or the image processor, in `text_kwargs`, `images_kwargs` and
                `common_kwargs` or by themselves.

        Returns:
            `dict`: `text_kwargs` and `images_kwargs`, with the defaults of the processor's parts.

        Raises:
            TypeError: Nothing knows an option. ValueError: One stands twice, or there are videos or audio.
        """
        for modality in _OTHER_MODALITIES:
            if given.pop(modality, None) is not None:
                raise ValueError(f"{type(self).__name__} reads photos and text, no {modality}.")
        kinds = self.valid_processor_kwargs.__annotations__
        known = {name: set(getattr(kind, "__annotations__", ())) for name, kind in kinds.items()}
        known["images_kwargs"] |= set(
            getattr(getattr(self.image_processor, "valid_kwargs", None), "__annotations__", ())
        )
        unknown = set(given) - {"common_kwargs", *known}.union(*known.values())
        for name in ("text_kwargs", "images_kwargs"):
            unknown |= set(given.get(name) or ()) - known[name]
        if unknown:
            raise TypeError(f"Unknown arguments {sorted(unknown)}: not of the tokenizer or the image processor.")
        # transformers before 5.20 takes entries out of the dictionaries that it is given
        options = self._merge_kwargs(
            self.valid_processor_kwargs, tokenizer_init_kwargs=self.tokenizer.init_kwargs, **copy.deepcopy(given)
        )
        options["text_kwargs"].setdefault("padding", True)
        return options

    def open_photos(self, images: Any) -> tuple[list[Image.Image], list[int] | None]:
        """
        Opens photos.

        Args:
            images: A photo, a list of them, or a list of lists with the photos of each prompt.

        Returns:
            `tuple`: The photos and, of lists of lists, how many each prompt has.
        """
        given = as_list(images)
        if not given:
            raise ValueError("`images` is empty; give at least one photo.")
        if not any(isinstance(group, (list, tuple)) for group in given):
            return [load_photo(image) for image in given], None
        groups = [list(group) if isinstance(group, (list, tuple)) else [group] for group in given]
        most = max(map(len, groups))
        if most > 1:
            raise ValueError(f"A prompt has one photo; got {most} in one. Give each photo a prompt of its own.")
        return [load_photo(image) for group in groups for image in group], [len(group) for group in groups]

    def read_call(self, images: Any, texts: Sequence[Any], options: dict[str, Any]) -> CallInputs:
        """
        Opens and prepares a call's photos and sorts its options.

        Args:
            images (*optional*): As in [`open_photos`].
            texts (`Sequence`): What is given for prompts and captions: strings, lists of them and `None`.
            options (`dict`): The call's other arguments; see [`read_options`].
        """
        max_length = {**options, **(options.get("text_kwargs") or {})}.get("max_length")
        read = self.read_options(dict(options))
        return_tensors = read["text_kwargs"].pop("return_tensors", None)
        if images is None:
            lists = [given for given in texts if given is not None and not isinstance(given, str)]
            count = len(lists[0]) if lists else 1
            return CallInputs({}, None, count, read["text_kwargs"], return_tensors, max_length)
        photos, places = self.open_photos(images)
        places = [1] * len(photos) if places is None else places
        pixels = {}
        if photos:
            pixels = self.image_processor(photos, **{**read["images_kwargs"], "return_tensors": return_tensors})
        return CallInputs(dict(pixels), places, len(places), read["text_kwargs"], return_tensors, max_length)

    def save_pretrained(
        self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any
    ) -> list[str]:
        """
        Saves the image processor, the tokenizers, the settings and the code.

        Args:
            save_directory (`str` or `os.PathLike`): Made if it does not exist.
            push_to_hub (`bool`, *optional*, defaults to `False`): Also upload; `repo_id` and the like go to
                `push_to_hub`.
        """
        hub = take_hub_arguments(kwargs)
        self.refresh_chat_template()
        files = super().save_pretrained(save_directory, **kwargs)
        self.__dict__.pop("auto_map", None)  # of what was saved; a loaded processor has none
        if push_to_hub:
            self.push_to_hub(hub.pop("repo_id", os.path.basename(os.path.abspath(save_directory))), **hub)
        return files

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
    ) -> CommitInfo:
        """
        Uploads the processor in one commit; the repo's card and other files stay as they are.

        Args:
            repo_id (`str`): Such as `"user/name"`.
            private (`bool`, *optional*): Whether a new repo is private.
            revision (`str`, *optional*): Branch to commit to; made if it does not exist.
            create_pr (`bool`, *optional*, defaults to `False`): Open a pull request instead.
        """
        return push_saved(
            self.save_pretrained,
            repo_id,
            commit_message=commit_message or "Upload processor",
            commit_description=commit_description,
            private=private,
            token=token,
            revision=revision,
            create_pr=create_pr,
        )

    def post_process_image_text_to_text(self, generated_outputs: Any, **kwargs: Any) -> list[str]:
        """Decodes generated ids into captions, without special tokens and surrounding white space."""
        kwargs.setdefault("skip_special_tokens", True)
        return [text.strip() for text in self.batch_decode(generated_outputs, **kwargs)]


def one_each(value: str | list[str], count: int, argument: str) -> list[str]:
    """Gives a string for each photo, from one for all or a list of them."""
    values = [value] * count if isinstance(value, str) else list(value)
    if len(values) != count:
        raise ValueError(
            f"Got {len(values)} strings in `{argument}` for {count} photos; give one a photo, or one for all."
        )
    if not all(isinstance(string, str) for string in values):
        raise TypeError(f"`{argument}` must be a string or a list of strings.")
    return values


__all__ = ["CHAT_TEMPLATE_MARK", "RetrievalProcessor", "one_each"]
