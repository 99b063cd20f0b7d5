"""A configuration as gin text, to be kept beside what it built."""

from flaxformer.configs.configuration import Configuration


def write(configuration: Configuration) -> str:
    """One gin file, without includes, that means the same to gin and to `flaxformer.configs.read`.

    Classes are named by their full dotted paths, so that names which differ between the files read cannot clash.
    """
    lines = ["from __gin__ import dynamic_registration", "", *(f"import {name}" for name in configuration.modules), ""]
    lines += [f"{name} = {bound.value!r}" for name, bound in configuration.macros.items()]
    paths = {target: path for path, target in reversed(configuration.targets.items())}
    for (scope, target), found in configuration.bindings.items():
        lines += ["", f"{'/'.join((*scope, paths[target]))}:", *(f"  {key} = {b.value!r}" for key, b in found.items())]
    return "\n".join(lines) + "\n"
