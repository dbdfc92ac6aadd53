"""Demo: captions with what was retrieved for them, and a memory that visitors edit."""

from __future__ import annotations

import os
from typing import Any

import gradio as gr
from PIL import Image
from transformers import pipeline

import hf_evcap


MODEL = os.environ.get("MODEL") or hf_evcap.default_model()
MEMORY = os.environ.get("MEMORY")
MAX_PHOTOS = 10
TITLE = "Captions with a memory"
INTRO = (
    "The captioner looks up what a photo may show in a memory, and writes a caption with what it finds. "
    "Teach it a name with a few photos: no training, the next caption can use it."
)


def load_captioner(model: str = MODEL, memory: str | None = MEMORY) -> Any:
    """Loads a captioning pipeline, with another memory than its own where one is named."""
    trust = bool(os.environ.get("TRUST_REMOTE_CODE"))
    options = {} if memory is None else {"model_kwargs": {"memory": memory}}
    captioner = pipeline("image-to-text", model=model, trust_remote_code=trust or None, **options)
    if not hasattr(captioner.model.memory, "copy"):
        raise ValueError(f"This page edits one memory; {model} brings {captioner.model.memory!r}. Name one in MEMORY.")
    return captioner


class Visit:
    """
    What one visitor does: a memory of their own, which starts as a copy of the captioner's.

    Rows are shared with the captioner's memory until they are edited, so a visit costs next to nothing.
    """

    def __init__(self, captioner: Any) -> None:
        self.captioner = captioner
        self.memory = captioner.model.memory.copy()

    @property
    def word(self) -> str:
        """What a row holds: `name` or `caption`."""
        return self.captioner.model.memory_class.text_word

    def caption(self, photo: Image.Image | None, beams: float = 5) -> tuple[str, list[list[Any]]]:
        """Captions a photo; the table has what was retrieved, with scores."""
        if photo is None:
            raise gr.Error("Choose a photo first.")
        answer = self.captioner(photo, num_beams=int(beams), memory=self.memory)[0]
        found = answer.get(self.captioner.model.retrieved_field) or []
        return answer["generated_text"], [[one[self.word], one["score"]] for one in found]

    def add(self, name: str, photos: list[str] | None) -> str:
        """Adds a name with photos of it."""
        if not (name or "").strip() or not photos:
            raise gr.Error(f"Give a {self.word} and at least one photo.")
        if len(photos) > MAX_PHOTOS:
            raise gr.Error(f"At most {MAX_PHOTOS} photos at once, please.")
        columns = {"source": "visitor"} if "source" in self.memory.columns.column_names else {}
        try:
            self.memory.add_images(self.captioner.model, self.captioner.processor, photos, name.strip(), **columns)
        except ValueError as error:
            raise gr.Error(str(error)) from error
        shown = "1 photo" if len(photos) == 1 else f"{len(photos)} photos"
        return f"Added {name.strip()!r} with {shown}. {self.describe()}"

    def remove(self, names: str) -> str:
        """Removes names, given with commas between them (one caption a line)."""
        parts = (names or "").split("\n" if self.word == "caption" else ",")
        wanted = [part.strip() for part in parts if part.strip()]
        if not wanted:
            raise gr.Error(f"Give a {self.word} to remove.")
        try:
            self.memory.remove(wanted)
        except KeyError as error:
            raise gr.Error(str(error.args[0])) from error
        return f"Removed {', '.join(wanted)}. {self.describe()}"

    def swap(self, source: str) -> str:
        """Takes another memory of the same encoder; nothing given takes the captioner's own again."""
        model = self.captioner.model
        if not (source or "").strip():
            self.memory = model.memory.copy()
            return f"Back to the captioner's own. {self.describe()}"
        if os.path.exists(source.strip()) or source.strip().startswith(("/", ".", "~")):
            raise gr.Error("Give a dataset repo on the Hub, such as org/name.")
        try:
            # Without a token: a visitor must not read private repos with the Space's own.
            memory = model.memory_class.from_pretrained(source.strip(), token=False)
            model.check_memory(memory)
        except (OSError, ValueError) as error:
            raise gr.Error(str(error)) from error
        self.memory = memory
        return f"Now with {source.strip()}. {self.describe()}"

    def describe(self) -> str:
        """What the memory holds."""
        facts = self.memory.describe()
        texts = f"{self.word}s"
        return f"The {self.memory.store_word} holds {facts[texts]:,} {texts} in {facts['rows']:,} rows."


def build_page(captioner: Any) -> gr.Blocks:
    """Lays the page out; every visitor gets a [`Visit`] of their own."""
    word = captioner.model.memory_class.text_word
    store = captioner.model.memory_class.store_word
    photos = os.path.join(os.path.dirname(hf_evcap.__file__), "assets", "photos")
    with gr.Blocks(title=TITLE) as page:
        visit = gr.State(None)
        gr.Markdown(f"# {TITLE}\n\n{INTRO}")
        status = gr.Markdown()
        with gr.Row():
            with gr.Column():
                photo = gr.Image(type="pil", label="Photo")
                gr.Examples([os.path.join(photos, f"{one}.jpg") for one in ("cat", "rocket", "coffee")], photo)
                beams = gr.Slider(1, 8, value=5, step=1, label="Beams")
                run = gr.Button("Caption", variant="primary")
            with gr.Column():
                text = gr.Textbox(label="Caption", interactive=False)
                found = gr.Dataframe(headers=[word, "score"], label=f"Retrieved {word}s", interactive=False)
        with gr.Accordion(f"Edit the {store}", open=True), gr.Row():
            with gr.Column():
                name = gr.Textbox(label=f"New {word}", placeholder="quokka")
                files = gr.File(label="Photos of it", file_count="multiple", file_types=["image"])
                add = gr.Button("Add")
            with gr.Column():
                gone = gr.Textbox(label=f"{word.capitalize()}s to remove")
                remove = gr.Button("Remove")
                other = gr.Textbox(label=f"Another {store}", placeholder="org/name or org/name@revision")
                swap = gr.Button("Swap")

        def begin() -> tuple[Visit, str]:
            started = Visit(captioner)
            return started, started.describe()

        page.load(begin, None, [visit, status])
        run.click(lambda own, *given: own.caption(*given), [visit, photo, beams], [text, found])
        add.click(lambda own, *given: own.add(*given), [visit, name, files], status)
        remove.click(lambda own, given: own.remove(given), [visit, gone], status)
        swap.click(lambda own, given: own.swap(given), [visit, other], status)
    return page


if __name__ == "__main__":
    build_page(load_captioner()).launch()
