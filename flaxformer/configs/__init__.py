"""Gin configurations as objects: find shipped files, load models from them, explain and validate them.

    model = flaxformer.configs.load("t5_1_1/small", bindings=["DROPOUT_RATE = 0.1"])

Nothing here reads or changes the global state of gin-config; whoever calls gin themselves adds `folder()` to gin's
search path and parses the same files.
"""

from flaxformer.configs.configuration import Configuration, Configured
from flaxformer.configs.errors import ConfigurationError
from flaxformer.configs.files import find, folder, shipped
from flaxformer.configs.loading import load
from flaxformer.configs.parsing import read

__all__ = ["Configuration", "ConfigurationError", "Configured", "find", "folder", "load", "read", "shipped"]
