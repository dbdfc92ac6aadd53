"""Ridge regression from photos' keys to the names that are said of them."""

from __future__ import annotations

import torch


class SceneRegression:
    """
    Tells how well names fit a photo from all scene photos of a memory at once, instead of from the nearest few.

    Each name's share of the photos plus a linear function of the key, fitted by least squares with a penalty on its
    weights. Photos can be left out of the fit for a query, exactly and without fitting again, by the formula of
    Woodbury; only the shares stay those of all photos.

    Args:
        keys (`torch.Tensor` of shape `(photos, dim)`): Unit vectors.
        photos, names (`torch.LongTensor` of shape `(pairs,)`): The photo and the name of each thing said.
        num_names (`int`): Number of names.
        penalty (`float`): Penalty on the squared weights; above 0.
        photo_weights (`torch.Tensor` of shape `(photos,)`, *optional*):
            How often each photo counts; once where nothing is said.
    """

    def __init__(
        self,
        keys: torch.Tensor,
        photos: torch.LongTensor,
        names: torch.LongTensor,
        num_names: int,
        penalty: float,
        photo_weights: torch.Tensor | None = None,
    ) -> None:
        photos, names = torch.stack([photos, names]).unique(dim=1)
        counts = torch.bincount(photos, minlength=len(keys))
        starts = counts.cumsum(0) - counts
        self.said = torch.full((len(keys), int(counts.max())), num_names, device=keys.device)  # `num_names` is padding
        self.said[photos, torch.arange(len(photos), device=keys.device) - starts[photos]] = names
        weights = keys.new_ones(len(keys)) if photo_weights is None else photo_weights.to(keys)
        self.shares = torch.bincount(names, weights[photos], minlength=num_names) / weights.sum()
        weighted = keys * weights[:, None]
        targets = keys.new_zeros(num_names, keys.shape[1]).index_add_(0, names, weighted[photos])
        targets -= self.shares[:, None] * weighted.sum(0)
        self.roots = weights.sqrt()[:, None]
        self.keys = keys = keys * self.roots  # a photo's squared error counts as often as the photo does
        gram = (keys.T @ keys).cpu().double()  # some accelerators know no float64
        gram.diagonal().add_(penalty)
        self.inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram)).to(keys)
        self.weights = self.inverse @ targets.T

    def __call__(self, queries: torch.Tensor, excluded: torch.LongTensor | None = None) -> torch.Tensor:
        """
        Gives the fit of every name.

        Args:
            queries (`torch.Tensor` of shape `(batch_size, dim)`): Unit vectors.
            excluded (`torch.LongTensor` of shape `(batch_size, n)`, *optional*):
                Photos to leave out for each query, each once; -1 leaves out nothing.

        Returns:
            `torch.Tensor` of shape `(batch_size, num_names)`.
        """
        scores = queries @ self.weights + self.shares
        if excluded is None or not excluded.numel():
            return scores
        present = (excluded >= 0)[..., None]
        keys = self.keys[excluded.clamp(min=0)] * present
        said = scores.new_zeros(*excluded.shape, scores.shape[1] + 1)
        said = said.scatter_(2, self.said[excluded.clamp(min=0)], 1.0)[..., :-1]
        residuals = ((said - self.shares) * self.roots[excluded.clamp(min=0)] - keys @ self.weights) * present
        solved = keys @ self.inverse
        leverage = torch.eye(excluded.shape[1], device=keys.device) - solved @ keys.mT
        return scores - (queries[:, None] @ solved.mT @ torch.linalg.solve(leverage, residuals))[:, 0]


__all__ = ["SceneRegression"]
