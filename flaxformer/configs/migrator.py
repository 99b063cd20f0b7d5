"""How `flaxformer migrate` rewrites one file: statement by statement, then its imports."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from flaxformer.configs.gin_text import Edit, Name, Statement, rewrite
from flaxformer.configs.old_lookup import (
    Symbol,
    is_old,
    longest,
    missing_module,
    symbol_of,
    why_not,
    without_counterpart,
)
from flaxformer.configs.old_names import FILES, MODULES, NO_FILE, USUAL_IMPORTS, No, without_prefix

HEADING = "# flaxformer migrate could not map the following; the lines are those of the old file."
_DYNAMIC = "__gin__.dynamic_registration"


class Note(NamedTuple):
    """What could not be mapped: the old line, what stands there, and why or what to write instead."""

    line: int
    what: str
    why: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.what}: {self.why}"


class Migrated(NamedTuple):
    """A migrated file.

    Attributes:
      text: the new file.
      notes: what could not be mapped; they stand at the top of `text` too.
      advice: what is worth knowing besides.
    """

    text: str
    notes: list[Note]
    advice: list[str]


@dataclasses.dataclass
class _Import:
    """An import statement: the alias that it binds, and the module."""

    statement: Statement
    alias: str
    module: str

    @property
    def old(self) -> bool:
        """Whether it goes: T5X's, or a module that this version lacks."""
        return is_old(self.module)


class Migrator:
    """One file on its way from T5X's names to ours; `run` once."""

    def __init__(self, text: str, statements: list[Statement]):
        self.text = text
        self.statements = statements
        self.notes: list[Note] = []
        self.advice: list[str] = []
        self.edits: list[Edit] = []
        self.dropped: list[Statement] = []
        self.removed: list[Statement] = []
        self.inserted: dict[int, list[str]] = {}  # after this line
        found = [_Import(s, *s.imported) for s in statements if s.imported]
        self.dynamic = any(entry.module == _DYNAMIC for entry in found)
        self.imports = {entry.alias: entry for entry in found if entry.module != _DYNAMIC}
        self.needed: dict[str, set[str | None]] = {}  # new module -> aliases it was used through; None without one
        self.kept: set[str] = set()  # aliases that are still used under their old meaning
        self.usual: set[str] = set()  # modules used without an import, under their usual alias

    def run(self) -> Migrated:
        """The migrated file."""
        header: Symbol | None = None
        blocks: list[tuple[Statement, list[Statement]]] = []
        for statement in self.statements:
            if statement.indented:
                blocks[-1][1].append(statement)
                self._child(blocks[-1][0], header, statement)
            elif statement.included is not None:
                self._include(statement, statement.included)
            elif not statement.imported:
                header = self._binding(statement)
                if statement.opens_block:
                    blocks.append((statement, []))
        for opening, children in blocks:
            if children and all(child in self.dropped for child in children) and opening not in self.dropped:
                self.dropped.append(opening)
        self._imports()
        text = rewrite(self.text, self.edits, self.dropped, self.removed, self.inserted)
        notes = sorted(set(self.notes))
        heading = [HEADING, *(f"# * {note}" for note in notes), ""] if notes else []
        return Migrated("\n".join(heading) + "\n" * bool(heading) + text, notes, self.advice)

    # Bindings.

    def _binding(self, statement: Statement) -> Symbol | None:
        """Rewrites a binding or the opening of a block; returns the symbol that a block binds."""
        selector = statement.selector
        found = None if selector is None else self._look_up(selector, statement)
        if statement in self.dropped:
            return None
        if found is None or selector is None:
            self._values(statement)
            return None
        symbol, parameter = found
        why = why_not(symbol, parameter)
        if why is not None:
            self._drop(statement, selector.dotted, why)
        else:
            self._replace(selector, symbol, parameter)
            self._values(statement)
        return symbol

    def _child(self, opening: Statement, symbol: Symbol | None, statement: Statement) -> None:
        """Rewrites a line in a block."""
        if opening in self.dropped:
            self.dropped.append(statement)
            return
        parameter = statement.tokens[0].string
        why = why_not(symbol, parameter) if symbol else None
        if why is not None:
            name = opening.selector.dotted if opening.selector else ""
            self._drop(statement, f"{name}.{parameter}", why)
        else:
            self._values(statement)

    def _values(self, statement: Statement) -> None:
        """Rewrites what stands on the right."""
        for name in statement.values:
            found = self._look_up(name, statement)
            if found is not None and statement not in self.dropped:
                self._replace(name, *found)

    def _look_up(self, name: Name, statement: Statement) -> tuple[Symbol, str] | None:
        """The symbol of ours for an old name, and what follows it; drops the statement where there is none."""
        full = self._full(name)
        if full is None:
            return None
        found = symbol_of(full)
        if found is not None:
            return found
        why = without_counterpart(full)
        if why is not None:
            self._drop(statement, name.dotted, why)
        elif name.root in self.imports:
            self.kept.add(name.root)
            if full.startswith("seqio."):
                self._advise(f"{'.'.join(full.split('.')[:2])} stays seqio's: pip install 'flaxformer[seqio]'")
        else:
            self.usual.add(USUAL_IMPORTS[name.root])
        return None

    def _full(self, name: Name) -> str | None:
        """The dotted path of a name by the file's imports; by T5X's habits in a file that has none."""
        _, dot, rest = name.dotted.partition(".")
        if not dot:
            return None
        if name.root in self.imports:
            return f"{self.imports[name.root].module}.{rest}"
        usual = None if self.dynamic else USUAL_IMPORTS.get(name.root)
        return f"{usual}.{rest}" if usual else None

    def _replace(self, name: Name, symbol: Symbol, rest: str) -> None:
        self.needed.setdefault(symbol.new, set()).add(name.root if name.root in self.imports else None)
        text = ".".join(filter(None, (self._alias(symbol.new), symbol.name, rest)))
        self.edits.append(Edit(name.start, name.end, text))

    def _drop(self, statement: Statement, what: str, why: str) -> None:
        self.notes.append(Note(statement.first, what, why))
        if statement not in self.dropped:
            self.dropped.append(statement)

    def _advise(self, sentence: str) -> None:
        if sentence not in self.advice:
            self.advice.append(sentence)

    # Includes.

    def _include(self, statement: Statement, path: str) -> None:
        old = without_prefix(path)
        if old in FILES:
            token = statement.tokens[1]
            self.edits.append(Edit(token.start, token.end, repr(FILES[old])))
            return
        why = longest(NO_FILE, old, "/")
        if why is not None:
            self._drop(statement, repr(path), why)

    # Imports.

    def _alias(self, module: str) -> str:
        """The name that a module of ours has in the new file: that of the old one where it can stay."""
        for alias, entry in self.imports.items():
            if entry.module == module:
                return alias
        for alias, entry in self.imports.items():
            stands_for = MODULES.get(entry.module)
            if entry.old and stands_for is not None and stands_for.name == module and "." not in alias:
                return alias
        for alias, old in {} if self.dynamic else USUAL_IMPORTS.items():
            if old in MODULES and MODULES[old].name == module and old != "seqio" and alias not in self.imports:
                return alias
        last = module.rpartition(".")[2]
        taken = self.imports.get(last)
        return last if taken is None or taken.old or taken.module == "seqio" else f"flaxformer_{last}"

    def _imports(self) -> None:
        """Rewrites the imports of old modules, and adds those of new text."""
        present = {entry.module for entry in self.imports.values()}
        missing = {module: users for module, users in self.needed.items() if module not in present}
        early = self._early_import()
        placed: dict[str, str | None] = {}
        for module, users in missing.items():
            used = [alias for alias in users if alias is not None]
            placed[module] = min(used, key=self._line) if len(used) == len(users) and used else early
        for alias, entry in self.imports.items():
            ours = [self._import_of(module) for module in sorted(placed) if placed[module] == alias]
            if not entry.old and not self._replaced_seqio(alias, entry):
                self.inserted.setdefault(entry.statement.last, [])[:0] = ours
            elif ours:
                first, last = entry.statement.tokens[0], entry.statement.tokens[-1]
                self.edits.append(Edit(first.start, last.end, "\n".join(ours)))
            elif entry.module.startswith("flaxformer."):
                self._drop(entry.statement, entry.module, missing_module(entry.module) or No(""))
            else:
                self.removed.append(entry.statement)
        extra = sorted(module for module, alias in placed.items() if alias is None)
        if extra:
            self._add([self._import_of(module) for module in sorted({*extra, *self.usual})])

    def _early_import(self) -> str | None:
        """An old import before everything else, whose place others can take too."""
        others = [s.first for s in self.statements if not s.imported]
        for alias, entry in self.imports.items():
            if entry.old and entry.statement.first < min(others, default=0):
                return alias
        return None

    def _replaced_seqio(self, alias: str, entry: _Import) -> bool:
        """Whether all that a file uses of seqio is ours now."""
        used = any(alias in users for users in self.needed.values())
        return entry.module == "seqio" and alias not in self.kept and used and None not in self.needed.get("seqio", ())

    def _line(self, alias: str | None) -> int:
        return self.imports[alias].statement.first if alias is not None else 0

    def _import_of(self, module: str) -> str:
        package, _, last = module.rpartition(".")
        alias = self._alias(module)
        if not package:
            return f"import {module}"
        return f"from {package} import {last}" + (f" as {alias}" if alias != last else "")

    def _add(self, lines: list[str]) -> None:
        """Puts imports behind the one that comes first, or at the top behind the opening comment."""
        for statement in self.statements:
            if statement.imported and statement.imported[1] == _DYNAMIC:
                self.inserted.setdefault(statement.last, [])[:0] = lines
                return
        head = [f"from {_DYNAMIC.replace('.', ' import ')}", *lines, ""]
        first = self.statements[0].first if self.statements else 1
        self.inserted.setdefault(first - 1, [])[:0] = head
