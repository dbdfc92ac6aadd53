"""Settings of a retrieval store: unchangeable values, and how they read and write like attributes and dictionaries."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field, fields, replace
from typing import Any


@dataclass(frozen=True)
class StoreSettings:
    """Everything of a store but its rows; the arguments of [`RetrievalStore`] say what each is. Never changed."""

    encoder_fingerprint: str | None = None
    query_tokens_hash: str | None = None
    preprocessing_hash: str | None = None
    retrieval: Mapping[str, Any] = field(default_factory=dict)
    licenses: Mapping[str, str] = field(default_factory=dict)
    index_factory: str | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> StoreSettings:
        """Takes the arguments of a store's constructor; later changes of what was given do not reach it."""
        given: dict[str, Any] = {
            name: copy.deepcopy(dict(value) if isinstance(value, Mapping) else value)
            for name, value in values.items()
            if value is not None
        }
        return cls(**given)

    def completed_by(self, other: StoreSettings) -> StoreSettings:
        """These settings, with the licences and the origin of keys that another store knows where these do not."""
        return replace(
            self,
            licenses={**other.licenses, **self.licenses},
            encoder_fingerprint=self.encoder_fingerprint or other.encoder_fingerprint,
            query_tokens_hash=self.query_tokens_hash or other.query_tokens_hash,
            preprocessing_hash=self.preprocessing_hash or other.preprocessing_hash,
        )

    def to_dict(self) -> dict[str, Any]:
        """The settings as a constructor takes them, for the caller to keep."""
        return {one.name: copy.deepcopy(getattr(self, one.name)) for one in fields(self)}


class SettingsView(MutableMapping[str, Any]):
    """
    A store's `retrieval` or `licenses` to read and write like a dictionary. A write swaps in the store's next state.

    Args:
        store ([`RetrievalStore`]): The store.
        name (`str`): Which of its settings.
    """

    def __init__(self, store: Any, name: str) -> None:
        self._store, self._name = store, name

    @property
    def _values(self) -> Mapping[str, Any]:
        return getattr(self._store.snapshot.settings, self._name)

    def _change(self, change: Callable[[dict[str, Any]], Any]) -> None:
        def changed(settings: StoreSettings) -> StoreSettings:
            values: Any = dict(getattr(settings, self._name))
            change(values)
            return replace(settings, **{self._name: values})

        self._store.change_settings(changed)

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._change(lambda values: values.update({key: copy.deepcopy(value)}))

    def __delitem__(self, key: str) -> None:
        self._change(lambda values: values.__delitem__(key))

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(dict(self._values))


class Setting:
    """One of a store's settings as its attribute. Assigning a value swaps in the store's next state."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, store: Any, owner: type | None = None) -> Any:
        if store is None:
            return self
        value = getattr(store.snapshot.settings, self._name)
        return SettingsView(store, self._name) if isinstance(value, Mapping) else value

    def __set__(self, store: Any, value: Any) -> None:
        given = StoreSettings.of({self._name: value})
        store.change_settings(lambda settings: replace(settings, **{self._name: getattr(given, self._name)}))


__all__ = ["Setting", "SettingsView", "StoreSettings"]
