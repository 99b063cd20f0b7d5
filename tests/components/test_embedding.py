"""The address of google/flaxformer offers every embedder, whichever file holds it."""

from flaxformer.components import embedding


def test_every_public_name_is_there():
    assert all(hasattr(embedding, name) for name in embedding.__all__)


def test_interfaces_are_related_as_the_stacks_expect():
    assert issubclass(embedding.PositionEmbed, embedding.EmbedderWithDecode)
    assert issubclass(embedding.FixedEmbed, embedding.EmbedderWithDecode)
    assert not issubclass(embedding.Embed, embedding.EmbedderWithDecode)
    assert issubclass(embedding.DictEmbedder, embedding.InspectableMultiEmbedder)
    for name in ("Embed", "HashEmbed", "NgramHashEmbed", "EmbedderWithDeterministic"):
        assert issubclass(getattr(embedding, name), embedding.Embedder)
