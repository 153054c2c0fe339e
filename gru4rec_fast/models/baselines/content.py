"""ContentSimilarity: items whose texts are similar to those of the items of a session or user."""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from gru4rec_fast.data import InteractionGraph, SessionStore
from gru4rec_fast.models.baselines.item_tables import read_item_values
from gru4rec_fast.models.baselines.item_to_item import ItemToItem
from gru4rec_fast.models.baselines.parameters import ContentSimilarityParameters
from gru4rec_fast.models.baselines.sparse import scipy_sparse
from gru4rec_fast.models.parameter_fields import document_parameters


@document_parameters
class ContentSimilarity(ItemToItem, ContentSimilarityParameters):
    """Ranks items by the similarity of their text to that of the last item of a session, or of the items of a user.

    The similarity is the cosine of the TF-IDF vectors of `sklearn.feature_extraction.text.TfidfVectorizer`: the number
    of occurrences of a term in the text of the item, times ln((1 + n) / (1 + d)) + 1, where n is the number of items
    with a text and d the number of those that have the term.

    The parameters below are keyword arguments and attributes. See `Baseline` for the methods and further attributes.

    Raises:
        TypeError: an unknown parameter or a value of the wrong type. ValueError: a value out of range.
    """

    file_format = "gru4rec_fast.ContentSimilarity/1"

    def fit(
        self,
        data: Any,
        *,
        texts: Any = None,
        text_key: str = "Text",
        interactions: bool = False,
        **columns: str,
    ) -> Self:
        """Compute the similarities of the texts; return self.

        Args:
            data, interactions, columns: see `Baseline.fit`. Items of `data` can be recommended.
            texts: file or table with a column of items (`item_key`) and one of texts. The texts of several rows of an
                item are joined. Texts of items that `data` does not have are left out, with a warning.
            text_key: name of the column of texts.

        Raises: see `Baseline.fit`; ImportError also if scikit-learn is not installed.
        """
        try:
            from sklearn.feature_extraction.text import TfidfVectorizer
        except ImportError as error:
            raise ImportError("ContentSimilarity needs scikit-learn: pip install 'gru4rec_fast[baselines]'") from error

        def count(model: Self, opened: SessionStore | InteractionGraph) -> None:
            assert model.vocabulary is not None
            item_key = columns.get("item_key", "ItemId")
            index, values = read_item_values(texts, "text", text_key, item_key, model.vocabulary)
            texts_of: dict[int, list[str]] = {}
            for item, text in zip(index.tolist(), values, strict=True):
                if text.strip():
                    texts_of.setdefault(item, []).append(text)
            described = sorted(texts_of)
            vectorizer = TfidfVectorizer(ngram_range=(1, self.n_gram), min_df=self.min_texts)
            try:
                vectors = vectorizer.fit_transform(["\n".join(texts_of[item]) for item in described])
            except ValueError as error:
                raise ValueError(f"texts: no term is left with min_texts={self.min_texts} ({error})") from error
            # A row for each item, empty for those without a text.
            rows = np.ones(len(described)), (described, np.arange(len(described)))
            placed = scipy_sparse().csr_array(rows, shape=(opened.n_items, len(described))) @ vectors
            model._set_matrix(placed, lambda products, row, column: products)

        return self._fit(data, interactions, columns, count)
