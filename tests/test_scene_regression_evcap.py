"""Ridge regression of scene names on keys: against a fit in NumPy, photo by photo."""

import numpy as np
import pytest
import torch

from hf_evcap.scene_regression_evcap import SceneRegression


NUM_PHOTOS, NUM_NAMES, DIM = 30, 12, 8


def random_scenes(seed):
    generator = np.random.default_rng(seed)
    keys = generator.normal(size=(NUM_PHOTOS, DIM))
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    said = generator.random((NUM_PHOTOS, NUM_NAMES)) < 0.2
    said[generator.integers(NUM_PHOTOS)] = False  # a photo of which nothing is said
    return keys, said


def slow_fit(keys, said, query, penalty, excluded=()):
    """Solves the normal equations without the excluded photos; the shares stay those of all."""
    shares = said.mean(0)
    kept = [photo for photo in range(len(keys)) if photo not in excluded]
    x, y = keys[kept], said[kept] - shares
    return query @ np.linalg.solve(x.T @ x + penalty * np.eye(keys.shape[1]), x.T @ y) + shares


def regression_of(keys, said, penalty):
    photos, names = said.nonzero()
    order = np.random.default_rng(0).permutation(len(photos)).repeat(2)  # any order, and said twice
    pairs = (torch.from_numpy(values[order]) for values in (photos, names))
    return SceneRegression(torch.from_numpy(keys).float(), *pairs, said.shape[1], penalty)


@pytest.mark.parametrize("penalty", [0.1, 5.0])
@pytest.mark.parametrize("seed", range(3))
def test_fit(seed, penalty):
    keys, said = random_scenes(seed)
    queries = np.random.default_rng(seed + 10).normal(size=(4, DIM))
    scores = regression_of(keys, said, penalty)(torch.from_numpy(queries).float())
    expected = [slow_fit(keys, said, query, penalty) for query in queries]
    np.testing.assert_allclose(scores.numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("penalty", [0.1, 5.0])
def test_excluded_photos(penalty):
    keys, said = random_scenes(3)
    queries = np.concatenate([keys[:3], np.random.default_rng(4).normal(size=(1, DIM))])
    excluded = [[0, -1, -1], [5, 1, 7], [-1, -1, -1], [29, -1, 0]]
    scores = regression_of(keys, said, penalty)(torch.from_numpy(queries).float(), torch.tensor(excluded))
    for row, query in enumerate(queries):
        np.testing.assert_allclose(scores[row], slow_fit(keys, said, query, penalty, excluded[row]), atol=1e-4)


def test_none_excluded():
    keys, said = random_scenes(5)
    regression, queries = regression_of(keys, said, 1.0), torch.from_numpy(keys).float()
    torch.testing.assert_close(regression(queries, torch.zeros(NUM_PHOTOS, 0, dtype=torch.long)), regression(queries))


def test_half_of_the_photos_excluded_for_every_query_at_once():
    keys, said = random_scenes(6)
    excluded = torch.arange(0, NUM_PHOTOS, 2).expand(2, -1)
    scores = regression_of(keys, said, 0.5)(torch.from_numpy(keys[:2]).float(), excluded)
    for row in range(2):
        expected = slow_fit(keys, said, keys[row], 0.5, excluded[0].tolist())
        np.testing.assert_allclose(scores[row], expected, atol=1e-4)
