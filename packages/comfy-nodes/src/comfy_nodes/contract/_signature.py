"""Parameters of a function of the host as its source gives them, and whether a call or a replacement fits."""

from __future__ import annotations

import ast
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Call:
    """The shape of a call.

    Attributes:
        positional: how many arguments are given by position, without `self`.
        keywords: names of those given by name, sorted.
        is_open: more may be given by ``*`` or ``**``, so that required parameters cannot be checked.
    """

    positional: int
    keywords: tuple[str, ...] = ()
    is_open: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """The parameters of a function.

    Attributes:
        positional: names of those that can be given by position, in order.
        required: how many of these have no default.
        by_position_only: how many of these cannot be given by name.
        named: names of those that can only be given by name.
        named_required: which of these have no default.
        takes_more: whether it takes any further positional arguments.
        takes_any: whether it takes any further named arguments.
    """

    positional: tuple[str, ...] = ()
    required: int = 0
    by_position_only: int = 0
    named: tuple[str, ...] = ()
    named_required: tuple[str, ...] = ()
    takes_more: bool = False
    takes_any: bool = False

    @classmethod
    def of(cls, arguments: ast.arguments, *, bound: bool = False) -> Signature:
        """The parameters of a definition.

        Args:
            arguments: of the definition.
            bound: leave out the first, which Python fills in (``self``).
        """
        positional = [each.arg for each in (*arguments.posonlyargs, *arguments.args)]
        required = len(positional) - len(arguments.defaults)
        by_position_only = len(arguments.posonlyargs)
        if bound and positional:
            positional, required, by_position_only = positional[1:], max(0, required - 1), max(0, by_position_only - 1)
        pairs = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        return cls(
            positional=tuple(positional),
            required=required,
            by_position_only=by_position_only,
            named=tuple(each.arg for each in arguments.kwonlyargs),
            named_required=tuple(each.arg for each, default in pairs if default is None),
            takes_more=arguments.vararg is not None,
            takes_any=arguments.kwarg is not None,
        )

    def refuses(self, call: Call) -> str | None:
        """Why a call does not fit; None where it does.

        >>> signature = Signature.of(ast.parse("def f(a, b=1, *, c): ...").body[0].args)
        >>> signature.refuses(Call(positional=1, keywords=("c", "d")))
        "it takes no argument 'd'"
        >>> signature.refuses(Call(positional=2))
        "it requires the argument 'c'"
        """
        if call.positional > len(self.positional) and not self.takes_more:
            return f"it takes {len(self.positional)} arguments by position, {call.positional} are given"
        given = set(self.positional[: call.positional])
        by_name = {*self.positional[self.by_position_only :], *self.named}
        for name in call.keywords:
            if name in given & by_name:
                return f"it takes the argument {name!r} in another place"
            if name not in by_name and not self.takes_any:
                return f"it takes no argument {name!r}"
        given |= by_name & set(call.keywords)
        for name in (*self.positional[: self.required], *self.named_required):
            if name not in given and not call.is_open:
                return f"it requires the argument {name!r}"
        return None

    def lacks(self, host: Signature) -> str | None:
        """Why this replacement cannot take what the host's own takes; None where it can.

        >>> ours, theirs = (Signature.of(ast.parse(f"def f({a}): ...").body[0].args) for a in ("a, b=1", "a, b, c=2"))
        >>> ours.lacks(theirs)
        "the host may give it the argument 'c'"
        """
        for index, name in enumerate(host.positional):
            if self.takes_any and (self.takes_more or index >= len(self.positional)):
                break
            if self.positional[index : index + 1] != (name,):
                return f"the host may give it the argument {name!r}"
        missing = [name for name in host.named if name not in {*self.positional, *self.named}]
        if missing and not self.takes_any:
            return f"the host may give it the argument {missing[0]!r}"
        return None
