"""
Vision features of photos, computed once: the vision encoder is frozen, and it is most of the work of training.

[`VisionFeatureCache`], made by [`build_feature_cache`], is for fine-tuning: the one view of a photo that captioning
sees, with a manifest that says whose features they are. [`cache_vision_features`] is for training from scratch:
several random views of each photo in one array.
"""

from .random_views import cache_vision_features, random_view
from .vision_cache import VisionFeatureCache
from .vision_cache_building import build_feature_cache


__all__ = ["VisionFeatureCache", "build_feature_cache", "cache_vision_features", "random_view"]
