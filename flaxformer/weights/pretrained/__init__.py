"""Published weights of other libraries: Hugging Face folders, read and written without torch or transformers.

    model, variables = load_pretrained("t5-v1_1-small")
    save_pretrained(model, variables, "mine")

Glossary:

* *folder*: `config.json` and the weights, as `save_pretrained` of transformers writes them, in its 4.x or 5.x spelling.
* *family*: the models that one gin file and one table of names describe; see `family.Family`.
* *attribute*: an entry of config.json. One that a family does not know, or whose value it does not implement, is
  refused by name.
"""

from flaxformer.weights.errors import CheckpointError
from flaxformer.weights.pretrained.loading import load_pretrained
from flaxformer.weights.pretrained.saving import save_pretrained

__all__ = ["CheckpointError", "load_pretrained", "save_pretrained"]
