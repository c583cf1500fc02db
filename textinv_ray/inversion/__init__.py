"""Textual inversion (Gal et al. 2022, arXiv 2208.01618) of many concepts side by side, without a cluster.

Read in this order: `families.backbone` (the frozen model and the loss, eq. (2)), `words` (pseudo-words),
`initialization`, `task` (one concept's state and random draws), `pack` (the optimizer step of many concepts),
`penalties`, `stopping`, `sampling` (images from prompts), `scoring` (CLIP scores), `review` (images and scores of
words), `evaluation` (the paper's protocol), `tuning` (pack size and compilation). `families` has a file for each
family of models.
"""

from textinv_ray.inversion.families.backbone import Backbone
from textinv_ray.inversion.families.loading import load_backbone
from textinv_ray.inversion.pack import Pack
from textinv_ray.inversion.sampling import sample_images
from textinv_ray.inversion.scoring import Scorer
from textinv_ray.inversion.task import ConceptTask
from textinv_ray.inversion.words import load_learned_embeds, save_learned_embeds

__all__ = [
    "Backbone",
    "ConceptTask",
    "Pack",
    "Scorer",
    "load_backbone",
    "load_learned_embeds",
    "sample_images",
    "save_learned_embeds",
]
