"""The caption datastore: rows of a key and a caption of some photo, kept as a Hub dataset with a FAISS index."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from typing_extensions import Self

from .retrieval_store import RetrievalStore
from .row_columns import CAPTION_COLUMNS
from .store_card import DATASTORE_WORDS, store_card
from .store_keys import KeyRows
from .store_photos import PhotoRows
from .store_snapshot import StoreSnapshot


class CaptionDatastore(PhotoRows, RetrievalStore):
    r"""
    Rows of `(key, caption)`, of which a model retrieves the k most similar to a photo (SmallCap, section 3.2).

    In the paper a key is the caption's CLIP text embedding, so that captions need no photos. Where an encoder has no
    text side, the key is that of the photo which the caption describes, and all captions of a photo share it.

    The column `image_id` says which photo a caption describes, `None` where that is unknown. Training leaves out the
    photo's own captions by it. Every further column (`source`, ...) travels along. On disk and on the Hub a datastore
    is an ordinary dataset; see [`~CaptionDatastore.save_pretrained`].

    Args:
        table (`pyarrow.Table`): Columns `caption` (string) and `key` (fixed-size list of floats), and any others.
        encoder_fingerprint (`str`, *optional*):
            Identity of the encoder that made the keys, see [`~clip_encoder.clip_fingerprint`]. A model refuses a
            datastore of another encoder. `None` means unknown and is accepted.
        query_tokens_hash (`str`, *optional*): Not used by SmallCap.
        retrieval (`dict`, *optional*): What is known of the retrieval: `encoder` (its name), `min_similarity`.
        licenses (`dict[str, str]`, *optional*): Licence of each source, for its card.
        index_factory (`str`, *optional*): FAISS index factory string. `Flat` is exact. `None` chooses by size.
        dtype (`str`, *optional*, defaults to `"float32"`): Precision of the kept keys, or `"float16"`.

    Example:
    ```python
    >>> encoder = ClipEncoder.from_pretrained("openai/clip-vit-base-patch32")
    >>> datastore = CaptionDatastore.from_captions(encoder, ["a cat on a mat", "two dogs"], image_ids=["7", "9"])
    >>> scores, rows = datastore.search(encoder.encode_photos(["photo.jpg"]), k=4, exclude_image_ids=["7"])
    >>> datastore.save_pretrained("my-datastore")
    ```
    """

    text_column: ClassVar[str] = "caption"
    usual_text_columns: ClassVar[tuple[str, ...]] = CAPTION_COLUMNS
    text_word: ClassVar[str] = "caption"
    store_word: ClassVar[str] = "datastore"
    format_name: ClassVar[str] = "caption-datastore"
    identity_columns: ClassVar[tuple[str, ...]] = ("image_id",)

    @property
    def captions(self) -> list[str]:
        """`list[str]`: The caption of each row."""
        return self.texts

    @property
    def image_ids(self) -> list[str | None]:
        """`list[str or None]`: The photo that each row's caption describes, where that is known."""
        return self.columns["image_id"].to_pylist()

    @classmethod
    def _complete(cls, columns: pa.Table) -> pa.Table:
        return _with_image_ids(columns)

    def _describe(self, rows: StoreSnapshot) -> dict[str, Any]:
        facts, ids = super()._describe(rows), rows.columns["image_id"]
        images = len(ids.unique()) - bool(ids.null_count)  # photos that captions are known to describe
        return {"rows": facts.pop("rows"), "captions": facts.pop("captions"), "images": images, **facts}

    # Making one

    @classmethod
    def from_captions(
        cls,
        encoder: Any,
        captions: Iterable[str],
        *,
        image_ids: Sequence[Any] | None = None,
        source: str | None = None,
        batch_size: int = 256,
        **settings: Any,
    ) -> Self:
        """
        Encodes captions into a datastore; `hf-evcap datastore build` does it for large collections.

        Args:
            encoder ([`~clip_encoder.ClipEncoder`]): Makes the keys with its text side.
            captions (`Iterable[str]`): What to hold.
            image_ids (`Sequence`, *optional*): The photo that each caption describes.
            source (`str`, *optional*): Value of the column `source`.
            batch_size (`int`, *optional*, defaults to 256): Captions encoded at once.
            settings: `dtype`, `index_factory`, `licenses`, `retrieval`; see the class.
        """
        made = cls.empty(encoder.key_size, **encoder.store_settings(settings))
        captions = list(captions)
        ids = [None] * len(captions) if image_ids is None else list(image_ids)
        if len(ids) != len(captions):
            raise ValueError(f"Got {len(captions)} captions and {len(ids)} image ids; give one a caption.")
        columns = {} if source is None else {"source": source}
        for start in range(0, len(captions), batch_size):
            part = slice(start, start + batch_size)
            made.add(captions[part], encoder.encode_captions(captions[part]), image_id=ids[part], **columns)
        return made

    @classmethod
    def from_images(
        cls,
        model: Any,
        processor: Any,
        dataset: Iterable[Mapping[str, Any]],
        *,
        image_column: str = "image",
        caption_column: str = "captions",
        image_id_column: str | None = None,
        batch_size: int = 32,
        columns: Sequence[str] = (),
        on_error: str = "raise",
        **settings: Any,
    ) -> Self:
        """
        Encodes captioned photos into a datastore whose keys are the photos', for a model that has no text encoder.

        Args:
            model, processor: Their encoder makes the keys (`model.encode_memory_keys`).
            dataset (`Iterable[dict]`): Rows with a photo and its captions (a list or one string).
            image_column, caption_column (`str`): Columns of photos and captions; where there are no `image` and
                `captions`, the only column of photos, and `caption`, `text` and the like.
            image_id_column (`str`, *optional*): Column that tells photos apart.
            batch_size (`int`, *optional*, defaults to 32): Photos encoded at once.
            columns (`Sequence[str]`, *optional*): Further columns of the dataset that the datastore keeps.
            on_error (`str`, *optional*, defaults to `"raise"`):
                `"skip"` leaves out photos that cannot be read and says which; `"raise"` stops at the first.
            settings: `dtype`, `index_factory`, `licenses`, `retrieval`; see the class.
        """
        further = {column: column for column in columns}
        if image_id_column is not None:
            further["image_id"] = image_id_column
        return cls._from_photos(
            model, processor, dataset, image_column, caption_column, batch_size, further, on_error, settings
        )

    # Editing it

    def add_captions(self, encoder: Any, captions: Sequence[str], *, batch_size: int = 256, **columns: Any) -> Self:
        """
        Encodes captions and adds them, all of them or, where one fails, none.

        Args:
            encoder ([`~clip_encoder.ClipEncoder`]): The one that made the other keys.
            captions (`Sequence[str]`): One a row.
            columns: Values of further columns such as `image_id`, a value a row or one for all.

        Raises:
            ValueError: The encoder is another one than the datastore's.
        """
        theirs = encoder.fingerprint
        if None not in (theirs, self.encoder_fingerprint) and theirs != self.encoder_fingerprint:
            raise ValueError(
                f"The datastore's keys are of the encoder {str(self.encoder_fingerprint)[:12]}, this one is "
                f"{theirs[:12]}. Use the encoder that built it, or build it anew from its captions with this one."
            )
        captions = [self._check_text(caption, f"caption {place}") for place, caption in enumerate(captions)]
        if not captions:
            return self
        batches = [captions[start : start + batch_size] for start in range(0, len(captions), batch_size)]
        return self.add(captions, np.concatenate([encoder.encode_captions(batch) for batch in batches]), **columns)

    def add_images(
        self,
        model: Any,
        processor: Any,
        images: Sequence[Any],
        captions: Sequence[str] | str,
        *,
        batch_size: int = 32,
        on_error: str = "raise",
        **columns: Any,
    ) -> Self:
        """
        Adds captions under the keys of the photos that they describe, all of them or, where one fails, none.

        Args:
            images (`Sequence`): Photos: paths, URLs, PIL images.
            captions (`Sequence[str]` or `str`): One caption a photo, or one for all.
            batch_size (`int`, *optional*, defaults to 32): Photos encoded at once.
            on_error (`str`, *optional*, defaults to `"raise"`): As in [`from_images`].
            columns: Values of further columns, a value a photo or one for all.
        """
        return self._add_images(model, processor, images, captions, batch_size, on_error, columns)

    # Searching it

    def rows_of_images(self, image_ids: Sequence[Any]) -> np.ndarray:
        """
        The rows whose captions describe certain photos: what a search leaves out in training.

        Args:
            image_ids (`Sequence`): One id a query; `None` or one that the datastore does not know gives no rows.

        Returns:
            `np.ndarray` of shape `(len(image_ids), n)`: Row ids, -1 where a photo has fewer rows than others.
        """
        return _rows_of_images(self.snapshot, image_ids)

    def search(
        self,
        queries: Any,
        k: int,
        key_rows: KeyRows | None = None,
        exclude_rows: Any = None,
        exclude_image_ids: Sequence[Any] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """
        Finds the captions nearest in cosine similarity.

        Args:
            queries, k, key_rows, exclude_rows: As in [`RetrievalStore.search`].
            exclude_image_ids (`Sequence`, *optional*):
                For each query a photo whose captions it must not find, or `None`.

        Returns:
            `scores` and `row_ids` of shape `(num_queries, min(k, rows))`, best first; -inf and -1 where exclusions
            leave fewer.
        """
        rows = self.snapshot
        if exclude_image_ids is not None:
            if key_rows is not None:
                raise ValueError("`exclude_image_ids` goes with a search in all rows; `key_rows` are some of them.")
            if len(exclude_image_ids) != len(queries):
                raise ValueError(
                    f"`exclude_image_ids` must name one photo (or None) a query; got {len(exclude_image_ids)} for "
                    f"{len(queries)} queries."
                )
            own = _rows_of_images(rows, exclude_image_ids)
            exclude_rows = own if exclude_rows is None else np.concatenate([np.asarray(exclude_rows), own], axis=1)
        return rows.search(queries, k, key_rows, exclude_rows, self.store_word)

    def card(self, manifest: Mapping[str, Any], repo_id: str | None = None) -> str:
        """The datastore card, with the metadata that the Hub reads."""
        return store_card(self, manifest, DATASTORE_WORDS, repo_id)


def _rows_of_images(now: StoreSnapshot, image_ids: Sequence[Any]) -> np.ndarray:
    known, none = now.rows_by_value("image_id"), np.zeros(0, np.int64)
    found = [none if name is None else known.get(str(name), none) for name in image_ids]
    rows = np.full((len(found), max(map(len, found), default=0)), -1, dtype=np.int64)
    for place, of_image in enumerate(found):
        rows[place, : len(of_image)] = of_image
    return rows


def _with_image_ids(columns: pa.Table) -> pa.Table:
    """Gives rows the column `image_id`, of strings, whatever the ids were."""
    if "image_id" not in columns.column_names:
        return columns.append_column("image_id", pa.nulls(len(columns), pa.string()))
    ids = columns["image_id"]
    if pa.types.is_string(ids.type):
        return columns
    texts = pa.array([None if one is None else str(one) for one in ids.to_pylist()], pa.string())
    return columns.set_column(columns.column_names.index("image_id"), "image_id", texts)


__all__ = ["CaptionDatastore"]
