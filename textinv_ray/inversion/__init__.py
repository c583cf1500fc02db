"""The science: textual inversion (Gal et al. 2022) of many concepts side by side, without any cluster.

Read in this order: `backbone` (the frozen model), `words` (pseudo-words), `task` (one concept's
optimisation), `pack` (many in one step), `sampling`, `scoring`, `review`.
"""

from textinv_ray.inversion.backbone import Backbone
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
    "load_learned_embeds",
    "sample_images",
    "save_learned_embeds",
]
