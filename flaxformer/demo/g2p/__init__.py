"""Pronunciation of English words (grapheme to phoneme): `python -m flaxformer.demo.g2p`.

Glossary:

* *phoneme*: one of the 39 sounds of the CMU Pronouncing Dictionary, stress removed: `'AA'`, `'AE'`, ...
* *pronunciation*: a tuple of phonemes.
* *references*: all pronunciations that the dictionary gives for a word.
* *hypotheses*: a model's pronunciations of a word, best first.
"""
